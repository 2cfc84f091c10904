/* refit: the converted model's output projections, refitted in sequence on what really flows
 * through it. Both models run over the calibration text side by side; o of a converted layer becomes
 * the least-squares map from its own heads' outputs ã (under the errors of all layers before) to
 * what brings the residual stream back to the original's:
 *
 *   W_O' = argmin Σ_t |W_O' ã_t − (W_O a_t + h_t − h̃_t)|² + λ |W_O' − W_O|²
 *
 * with h, h̃ the streams that enter the layer (h − h̃ left out where the block's output is normed
 * before it is added). The text then continues through the refitted layer. No gradients. */
#ifndef MLATHE_SESSIONS_REFIT_H
#define MLATHE_SESSIONS_REFIT_H

#include "sessions/calibrate.h"
#include "sessions/conversion.h"

/* Fills c->made[].o and shows the model's views to it; c must be freshly solved. base is the
 * original's engine. After a failure c is good for conversion_free only. */
int refit_outputs(struct conversion *c, const struct engine *base, const struct calib_text *text,
                  const struct progress *p, struct err *e);

/* Bytes it holds at once: both models' hidden states, one layer's sums, all new projections. */
double refit_bytes(const struct model *m, const struct calib_text *text);

#endif
