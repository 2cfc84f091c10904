/* prepared: what converting a layer anew at another rank need not do again: its solve up to the
 * rank (core/mla.h), the original's outputs on the kept samples, and what narrowing the rope costs.
 */
#ifndef MLATHE_SESSIONS_PREPARED_H
#define MLATHE_SESSIONS_PREPARED_H

#include "core/mla.h"
#include "sessions/workspace.h"

struct prepared_layer {
    bool rich; /* q, and the heads' moments in the latent, are kept too */
    struct mla_options key; /* rank 0: of every rank */
    int *list;              /* the shared layout's, or NULL */
    struct mla_prepared *solve;
    float *y; /* [sample_rows][D] of the original, NULL: no samples */
    float *q; /* [sample_rows][H·(d+R)] (mla_queries), NULL: not kept */
    double loss_rope,
        loss_layout; /* as in struct layer_report, before the whole error bounds them */
    /* What was made of it last, in which conversion (struct conversion_input's serial); 0: none. */
    unsigned long serial;
    int rank;
    struct layer_report report;
};
/* Brings p up to date with o (every field but rank), for ranks up to `most`. After a failure p is
 * empty but for `rich`. */
int prepared_fill(struct prepared_layer *p, const struct mla_source *src, const struct moments *m,
                  const struct mla_options *o, int most, struct err *e);
void prepared_done(struct prepared_layer *p);
/* Bytes of a layer at most, kept for every rank. */
double prepared_bytes(const struct moments *m, bool rich);

#endif
