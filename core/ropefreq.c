/* Rope frequencies. Knows default, linear, llama3 and lists of divisors; dynamic and yarn change
 * with the length of the text or the size of the logits and are refused by those who read
 * configurations. */
#include "core/ropefreq.h"

#include <math.h>

int ropefreq_check(const struct rope_spec *r, const char *where, struct err *e)
{
    if (!(r->theta > 1 && r->theta <= 1e15))
        return err_set(e, ERR_FORMAT, "%s: rope base %g; it must be over 1", where, r->theta);
    if (r->kind != ROPE_DEFAULT && !(r->factor >= 1 && r->factor <= 1e6))
        return err_set(e, ERR_FORMAT, "%s: rope scaling factor %g; it must be 1 or more", where,
                       r->factor);
    if (r->kind == ROPE_LLAMA3 &&
        !(r->low > 0 && r->high > r->low && r->high <= 1e6 && r->original_context >= 1))
        return err_set(e, ERR_FORMAT,
                       "%s: llama3 rope scaling needs 0 < low_freq_factor < high_freq_factor and "
                       "an original context",
                       where);
    return OK;
}

void ropefreq_fill(const struct rope_spec *r, int dim, double *freq)
{
    const double tau = 6.283185307179586;
    for (int j = 0; j < dim / 2; j++) {
        double f = pow(r->theta, -2.0 * j / dim);
        if (r->kind == ROPE_LINEAR)
            f /= r->factor;
        if (r->kind == ROPE_LLAMA3) {
            double turns = r->original_context * f / tau; /* in the original context */
            double keep = (turns - r->low) / (r->high - r->low);
            keep = keep < 0 ? 0 : keep > 1 ? 1 : keep;
            f = keep * f + (1 - keep) * f / r->factor;
        }
        freq[j] = r->divisor ? f / r->divisor[j] : f;
    }
}

int ropefreq_usable(const double *freq, int n, const char *where, struct err *e)
{
    for (int j = 0; j < n; j++)
        if (!(freq[j] > 0 && freq[j] <= 1e3))
            return err_set(e, ERR_FORMAT, "%s: rope frequency %d is %g", where, j, freq[j]);
    return OK;
}
