/* refit: maps of a converted model that write to the residual stream, refitted in sequence on what
 * really flows through it. Both models run over a text side by side; the output projection of a
 * converted layer (and, when asked for, the feed-forward's) becomes the least-squares map from its
 * own inputs ã (under the errors of everything before) to what brings the stream back to the
 * original's:
 *
 *   W' = W + argmin_Δ Σ_t |Δ ã_t − y_t|² + λ |Δ|²,   y = h − h̃
 *
 * with h, h̃ the streams behind the block as W leaves them, or y = W (a − ã) where the block's
 * output is normed before it is added. The text then continues through the refitted block. No
 * gradients. */
#ifndef MLATHE_SESSIONS_REFIT_H
#define MLATHE_SESSIONS_REFIT_H

#include "sessions/calibrate.h"
#include "sessions/conversion.h"

struct refit_options {
    bool ffn;     /* the feed-forward's output map too, in layers without experts */
    bool rounded; /* what flows is the rounded model's, as it runs later (conversion_runtime) */
    const char *phase; /* said as it goes */
};
/* c's maps become its own (conversion_take). base is the original's engine. After a failure c is
 * good for conversion_free only. */
int refit_run(struct conversion *c, const struct engine *base, const struct calib_text *text,
              const struct refit_options *o, const struct progress *p, struct err *e);

/* Bytes it holds at once: both models' hidden states, one layer's sums, all new maps. */
double refit_bytes(const struct model *m, const struct calib_text *text, bool ffn);

#endif
