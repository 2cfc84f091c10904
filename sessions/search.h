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
        int rope_dim, rank;
        double kl;
    } trial[SEARCH_MAX];
    int best; /* index into trial */
};
/* Tries rope widths at `even` numbers a layer (r + R) with plan's method, layout and steps: from a
 * quarter of them uphill in coarse steps, then the neighbours of the best. in: base, stats and pool. Cancelled, the best of what was
 * tried stands; ERR_CANCELLED only when nothing was. */
int search_rope(struct search_result *out, const struct engine *base,
                const struct conversion_input *in, const struct rankplan *plan, int even,
                const struct probe_text *text, const struct progress *p, struct err *e);
/* The same for the open model and its statistics; plan becomes the best one, even ranks. */
int workspace_search(struct workspace *w, struct rankplan *plan, int even,
                     struct search_result *out, const struct progress *p, struct err *e);

#endif
