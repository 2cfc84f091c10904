/* search: how to divide a fixed cache between rotation and latent. Every extra rope number is one
 * latent number less; which is worth more depends on the model, the layout and the budget, so it is
 * measured: KL of the whole model, converted at each rope width, on text held back from
 * calibration. */
#ifndef MLATHE_SESSIONS_SEARCH_H
#define MLATHE_SESSIONS_SEARCH_H

#include "sessions/conversion.h"
#include "sessions/probe.h"

#define SEARCH_MAX 12

struct search_result {
    int n; /* tried, in the order of trying */
    struct search_trial {
        int rope_dim, rank; /* 0: each layer has its own */
        int freqfold;       /* transmla: frequencies folded together; else 0 */
        double kl;
    } trial[SEARCH_MAX + 1];
    int best; /* index into trial */
    int n_layer;
    struct plan_layer *layer; /* [n_layer] of the best */
};
void search_result_done(struct search_result *r);
/* "rope 24, rank 72", "rope 16 to 40 by layer", or "freqfold 4". */
void search_trial_text(const struct search_result *r, int trial, char *text, size_t size);
/* Tries rope widths at `even` numbers a layer (r + R) with plan's method, layout and steps: from a
 * quarter of them uphill in coarse steps, then the neighbours of the best; in the own layout last
 * the width in each layer that errs least there. in: base, stats and pool. Cancelled, the best of
 * what was tried stands; ERR_CANCELLED only when nothing was. */
int search_rope(struct search_result *out, const struct engine *base,
                const struct conversion_input *in, const struct rankplan *plan, int even,
                const struct probe_text *text, const struct progress *p, struct err *e);
/* Tries TransMLA's foldings at the rope width of plan's first layer; second moments stay those of
 * the original, which spares a pass over the text each. */
int search_folds(struct search_result *out, const struct engine *base,
                 const struct conversion_input *in, const struct rankplan *plan, int even,
                 const struct probe_text *text, const struct progress *p, struct err *e);
/* The one that fits plan's method, for the open model and its statistics; plan becomes the best. */
int workspace_search(struct workspace *w, struct rankplan *plan, int even,
                     struct search_result *out, const struct progress *p, struct err *e);

#endif
