/* stats: a model's calibration statistics, a layer at a time. Small ones stay in memory; large ones
 * are written to a file as each layer is done and mapped when they are needed, so that one layer's
 * are in memory at once. A file also lets a later program start re-solve without a forward pass:
 * NAME.safetensors holds the moments (fp32), NAME.json what they are of (written last: without it
 * the file does not count). */
#ifndef MLATHE_SESSIONS_STATS_H
#define MLATHE_SESSIONS_STATS_H

#include "core/model.h"
#include "core/moments.h"

/* How much is kept (struct moments_shape): groups of query heads that share cko and cv, 0: none
 * share; pairs of compact phases, 0: all. */
struct stats_form {
    int groups, candidates;
    double
        until; /* a layer's collecting ended early at so small a change of its spectrum; 0: never */
};
/* How far statistics have settled: since half of their tokens. */
struct stats_settled {
    double tokens;        /* collected, mean over layers */
    double change, moved; /* struct moments, mean over layers; change < 0: not known */
    double worst;         /* largest change, in layer */
    int layer;
};
struct moments_shape stats_shape(const struct model *m, int layer, const struct stats_form *form);
/* Bytes of all layers' statistics with samples of 2·window rows. */
double stats_bytes(const struct model *m, const struct stats_form *form, int window);
/* The form with the most in it that takes at most `bytes`; the smallest there is when none does.
 * groups: 0, or that many and compact phases whatever they take. */
struct stats_form stats_choose(const struct model *m, int groups, double bytes, int window);
/* ERR_ARG when the model's heads do not fall into so many groups. */
int stats_check_groups(const struct model *m, int groups, struct err *e);

/* Path prefix of the statistics of a model (fingerprint) on a text (sha256 of its ids): fresh. */
char *stats_path(const char *dir, const char *fingerprint, const char *sha256,
                 const struct stats_form *form);

struct stats;
/* resident: layers are kept in memory. prefix: file that they go to as well; may be NULL for
 * resident ones, and then a full disk does no harm. m must outlive it. */
int stats_new(struct stats **out, const struct model *m, const struct stats_form *form,
              bool resident, const char *prefix, int window, struct err *e);
/* Layer by layer, in order; takes the moments over (they are done with here when it fails). */
int stats_put(struct stats *s, int layer, struct moments *m, struct err *e);
/* After the last one: the set counts, and a large one is mapped. Older sets of the folder go. */
int stats_finish(struct stats *s, struct err *e);
/* A set that is in a file; ERR_IO when there is none. Shapes are checked against the model. */
int stats_open(struct stats **out, const char *prefix, const struct model *m,
               const struct stats_form *form, bool resident, struct err *e);
void stats_free(struct stats *s);
struct moments_shape stats_layer_shape(const struct stats *s, int layer);
/* The layer's statistics, valid until stats_release (any thread, several at once). */
int stats_layer(const struct stats *s, int layer, const struct moments **out, struct err *e);
void stats_release(const struct stats *s, const struct moments *m); /* m may be NULL */
/* The change of spectra at which a layer may stop collecting; 0: none. */
double stats_until(const struct stats *s);
int stats_settled(const struct stats *s, struct stats_settled *out, struct err *e);
/* Whether layers come from the file one at a time. */
bool stats_streamed(const struct stats *s);

#endif
