/* spectrum: what a layer's keys and values are made of, as numbers to plot and to plan with.
 *
 * joint: eigenvalues of the weighted joint K/V second moment of the part that the latent must
 * carry (method: step 5), descending: dropping the ones beyond rank r costs their sum. key and
 * value: the same for keys and values alone. Calibrated ones are attention-output energy over the
 * residual stream's median energy at that layer, so that layers compare; weight-only ones (shares of
 * their own total) do not. Weight-only spectra (no calibration) use an identity
 * input moment. Plain values: safe to copy to the screen. */
#ifndef MLATHE_CORE_SPECTRUM_H
#define MLATHE_CORE_SPECTRUM_H

#include "core/base.h"

struct spectrum {
    int n;                  /* length of joint: 2·G·d (or fewer when rank-deficient) */
    int n_key, n_value;
    double *joint;          /* [n] descending, ≥ 0 */
    double *key_share;      /* [n] fraction of component i that lies in key coordinates */
    double *key, *value;    /* [n_key], [n_value] descending */
    bool calibrated;
    double sink;            /* attention's share on the first token; NaN: not calibrated */
    double change;          /* of E[z zᵀ]'s energies since half of the text; NaN: not known */
    int rope_dim;           /* R the spectrum was computed for */
};
int spectrum_init(struct spectrum *s, int n, int n_key, int n_value, struct err *e);
void spectrum_done(struct spectrum *s);
int spectrum_copy(struct spectrum *to, const struct spectrum *from, struct err *e);
/* Fraction of Σ joint in the first r components (1 for r ≥ n or an all-zero spectrum). */
double spectrum_energy(const struct spectrum *s, int r);
/* Σ joint beyond r. */
double spectrum_dropped(const struct spectrum *s, int r);
/* Mean key share of the first r components. */
double spectrum_key_share(const struct spectrum *s, int r);

#endif
