/* Rope frequencies. Knows default, linear, llama3, yarn and lists of divisors. Those that read
 * configurations refuse the rest. */
#include "core/ropefreq.h"

#include <math.h>

#define TAU 6.283185307179586

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
    if (r->kind == ROPE_YARN && !(r->low > 0 && r->high >= r->low && r->high <= 1e6 &&
                                  r->original_context >= 1 && r->original_context <= 1e12))
        return err_set(e, ERR_FORMAT,
                       "%s: yarn rope scaling needs 0 < beta_slow <= beta_fast and an original "
                       "context",
                       where);
    if (!(r->magnitude >= 0 && r->magnitude <= 1e3 && r->logit_scale >= 0 && r->logit_scale <= 1e6))
        return err_set(e, ERR_FORMAT, "%s: a rope magnitude of %g", where, r->magnitude);
    return OK;
}

double ropefreq_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 1 + 0.1 * mscale * log(factor);
}

/* The pair (a real number) that turns this often in the original context. */
static double yarn_pair(const struct rope_spec *r, int dim, double turns)
{
    return dim * log(r->original_context / (turns * TAU)) / (2 * log(r->theta));
}

/* Where the mixing of yarn begins and ends, in pairs. */
static void yarn_range(const struct rope_spec *r, int dim, double *from, double *to)
{
    *from = yarn_pair(r, dim, r->high);
    *to = yarn_pair(r, dim, r->low);
    if (!r->smooth_edges) {
        *from = floor(*from);
        *to = ceil(*to);
    }
    *from = fmax(*from, 0);
    *to = fmin(*to, dim - 1);
    if (*from == *to)
        *to += 0.001; /* as everybody does: a step instead of a ramp */
}

void ropefreq_fill(const struct rope_spec *r, int dim, double *freq)
{
    double from = 0, to = 1;
    if (r->kind == ROPE_YARN)
        yarn_range(r, dim, &from, &to);
    for (int j = 0; j < dim / 2; j++) {
        double f = pow(r->theta, -2.0 * j / dim);
        if (r->kind == ROPE_LINEAR)
            f /= r->factor;
        if (r->kind == ROPE_LLAMA3) {
            double turns = r->original_context * f / TAU; /* in the original context */
            double keep = (turns - r->low) / (r->high - r->low);
            keep = keep < 0 ? 0 : keep > 1 ? 1 : keep;
            f = keep * f + (1 - keep) * f / r->factor;
        }
        if (r->kind == ROPE_YARN) {
            double ramp = fmin(1, fmax(0, (j - from) / (to - from)));
            f = (1 - ramp) * f + ramp * f / r->factor;
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
