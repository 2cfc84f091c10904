/* conversion: a converted model: its attention tensors and everything needed to make, save and
 * reopen them. The model it is made from (base) must outlive it: every other view is borrowed. */
#ifndef MLATHE_SESSIONS_CONVERSION_H
#define MLATHE_SESSIONS_CONVERSION_H

#include "core/mla.h"
#include "core/model.h"
#include "sessions/stats.h"
#include "sessions/workspace.h"

struct safetensors;
struct prepared_layer;
struct spill;
struct cJSON;

/* What a conversion may replace in a layer: q (or rope rows over normed heads), kv_a, kv_b, o,
 * down. */
#define CONVERSION_MATRICES 5

struct conversion {
    const struct model *base;
    struct model model; /* hp of the base; MLA layers */
    struct rankplan plan;
    struct conversion_report report;
    unsigned long serial;       /* of the input it was solved from */
    struct spill *spilled;      /* [L] where made's tensors lie, or NULL: on the heap */
    struct mla_result *made;    /* [L] tensors in memory (F32), or NULL when read from a file */
    struct safetensors *stored; /* the file they are read from, or NULL */
    double **freq, **freq_long; /* [L] of a stored conversion; long: contexts beyond the original */
    char *dir;                  /* where it is saved; NULL: nowhere yet */
    float **taken;         /* [n_taken] tensors given to it (conversion_take) */
    size_t n_taken, cap_taken;
    struct cJSON *healing; /* what was trained when (a list), or NULL */
    struct model small; /* as model, its attention rounded for speed; layer NULL: not made */
    void **small_data;  /* [CONVERSION_MATRICES·L] */
};
/* The model to run: as solved (fp32), or (made at the first call; conversion_small.c) with q, kv_a and
 * o rounded to Q8_0 and kv_b to F16, and with the original's own q where the conversion's follows
 * from it: decoding then reads about as many bytes as the quantised original does. Owned by c. */
int conversion_runtime(struct conversion *c, bool rounded, const struct model **out, struct err *e);
/* After layer l's o or down was replaced (conversion_take): the rounded model has it too, if it was
 * made. After other tensors: it is dropped, and made anew when it is asked for. */
int conversion_runtime_maps(struct conversion *c, int l, struct err *e);
void conversion_runtime_drop(struct conversion *c);

/* What solving needs: the base, its statistics, and (transmla) the second pass's moments. */
struct conversion_input {
    const struct model *base;
    const struct stats *stats;
    double *const *c_second; /* [L] or NULL */
    const int *shared;       /* the shared layout's list [R/2], or NULL */
    struct pool *pool;
    struct backend *device; /* for large eigenproblems; NULL: the host solves them */
    bool measure;      /* fill the report's errors from the kept samples */
    bool brief;        /* of them only the whole error, not what it is made of */
    int at_once;       /* layers solved side by side; 0: one a thread */
    const char *spill; /* folder whose disk the tensors go to as layers are done (spill.h); NULL: they
                        * stay in memory */
    /* To convert again and again from the same statistics: [L] kept from one time to the next, and the
     * conversion of last time; NULL: none. Each solve has a number of its own, from 1. */
    struct prepared_layer *prepared;
    const struct conversion *previous;
    unsigned long serial;
    bool rounded;      /* what is measured runs rounded, where callers run it (conversion_runtime) */
    int first, count;  /* layers to convert, the others stay as they are; count 0: all */
};
/* Bytes that solving one of the model's layers takes at rank r, and the tensors of a plan (F32). */
double conversion_layer_bytes(const struct model *m, int r);
double conversion_bytes(const struct model *m, const struct rankplan *plan);
/* What moments and conversion need to know of a layer's attention. */
struct moments_shape conversion_shape(const struct model *m, int layer);
/* A GQA layer's attention as fp32, for mla_*; free with conversion_source_done. */
int conversion_source(const struct model *m, int layer, struct mla_source *out, struct err *e);
void conversion_source_done(struct mla_source *s);

/* A conversion of nothing yet: the base's views, an empty plan and report. */
int conversion_new(struct conversion **out, const struct model *base, struct err *e);
/* Makes layer l an MLA layer: shapes, scale, frequencies (borrowed); its tensors come after. */
void conversion_set_layer(struct conversion *c, int l, int r, int R, const double *freq,
                          const double *freq_long);
/* kept and bytes a token of the report, from the plan. */
void conversion_fill_report(struct conversion *c);

/* The shared layout's list[R/2] for these statistics: R is one for all layers. */
int conversion_shared_list(const struct model *base, const struct stats *stats, int R, int *list,
                           struct err *e);
int conversion_solve(struct conversion **out, const struct conversion_input *in,
                     const struct rankplan *plan, const struct convert_sink *sink,
                     const struct progress *p, struct err *e);
/* The folder's base model: path (fresh memory) and fingerprint. */
int conversion_base(const char *dir, char **path, char fingerprint[65], struct err *e);
bool conversion_is_dir(const char *path);
int conversion_open(struct conversion **out, const char *dir, const struct model *base,
                    const struct plan_model *pm, struct err *e);
/* Writes mlathe.json and attention.safetensors into dir (created). base_path is recorded as an
 * absolute path. */
int conversion_save(struct conversion *c, const char *dir, const char *base_path, struct err *e);
/* t, a tensor of c's model, becomes f: as many F32 numbers of c's own, freed with it. What t was is
 * freed if it was taken before. On failure f is freed. */
int conversion_take(struct conversion *c, struct tensor *t, float *f, struct err *e);
/* A conversion of its own, to be changed through the views of its model: every attention tensor
 * copied as F32, o as well where with_o; plan, report and history too. Saved nowhere yet.
 * (conversion_copy.c) */
int conversion_copy(struct conversion **out, const struct conversion *c, bool with_o,
                    struct err *e);
void conversion_free(struct conversion *c);
/* The conversion that a workspace holds, NULL when there is none; and another (taken over, freed on
 * failure) in its place. (workspace.c) */
struct conversion *workspace_held(const struct workspace *w);
int workspace_adopt(struct workspace *w, struct conversion *c, struct err *e);

#endif
