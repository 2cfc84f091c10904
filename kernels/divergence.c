/* Loops that compilers turn into vectors, as wide as the machine's. Trusts n ≥ 1 and finite logits;
 * NaN comes out where it goes in. */
#include "kernels/divergence.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined __x86_64__ && defined __GLIBC__ && !defined __clang__ && !defined __SANITIZE_ADDRESS__
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif
#define INLINE static inline __attribute__((always_inline))

#define BLOCK 256
#define LANES 16 /* sums side by side */

INLINE float add_lanes(const float lane[LANES])
{
    float sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += lane[i];
    return sum;
}

/* y ≤ 0, not below −87: of numbers with a sign the bits grow as they fall. A comparison of floats
 * would be a branch to a compiler that minds its exceptions, and the loop around it scalar. */
INLINE float not_below(float y)
{
    const float least = -87;
    uint32_t bits, bound;
    memcpy(&bits, &y, sizeof bits);
    memcpy(&bound, &least, sizeof bound);
    bits = bits < bound ? bits : bound;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* out[n] = e^(x − top), x ≤ top, to 2e-7 of it; their sum. A plain loop that compilers turn into
 * vectors: the C library's expf takes most of a probe's time otherwise. */
INLINE double exp_block(float *out, const float *x, float top, int n)
{
    int32_t scale[BLOCK];
    float factor[BLOCK], lane[LANES] = {0};
    for (int i = 0; i < n; i++) {
        float y = not_below(x[i] - top);
        int32_t k = (int32_t)(y * 1.44269504F - 0.5F);
        float r = (y - (float)k * 0.693359375F) + (float)k * 2.12194440e-4F;
        float e = 1.9875691500e-4F;
        e = e * r + 1.3981999507e-3F;
        e = e * r + 8.3334519073e-3F;
        e = e * r + 4.1665795894e-2F;
        e = e * r + 1.6666665459e-1F;
        e = e * r + 5.0000001201e-1F;
        out[i] = e * r * r + r + 1;
        scale[i] = (k + 127) << 23;
    }
    memcpy(factor, scale, sizeof factor); /* beyond n: nothing that is read */
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            lane[k] += out[i + k] *= factor[i + k];
    for (; i < n; i++)
        lane[0] += out[i] *= factor[i];
    return (double)add_lanes(lane);
}

INLINE float highest(const float *x, int n)
{
    float lane[LANES], top = x[0];
    int i = 0;
    for (int k = 0; k < LANES; k++)
        lane[k] = top;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            lane[k] = x[i + k] > lane[k] ? x[i + k] : lane[k];
    for (; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int k = 0; k < LANES; k++)
        top = lane[k] > top ? lane[k] : top;
    return top;
}

/* Softmax of x[n] into p (NULL: not wanted); log Σ exp x is returned. */
INLINE double softmax(float *p, const float *x, int n)
{
    float top = highest(x, n), block[BLOCK];
    double sum = 0;
    for (int i = 0; i < n; i += BLOCK)
        sum += exp_block(p ? p + i : block, x + i, top, n - i < BLOCK ? n - i : BLOCK);
    float scale = (float)(1 / sum);
    for (int i = 0; p && i < n; i++)
        p[i] *= scale;
    return (double)top + log(sum);
}

WIDE double divergence_share(float *share, const float *x, int n)
{
    return softmax(share, x, n);
}

WIDE double divergence_row(const float *share, const float *x, double log_sum, const float *y,
                           int n)
{
    double sum = 0;
    int i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        float lane[LANES] = {0};
        for (int k = i; k < i + BLOCK; k += LANES)
            for (int l = 0; l < LANES; l++)
                lane[l] += share[k + l] * (x[k + l] - y[k + l]);
        sum += (double)add_lanes(lane);
    }
    for (; i < n; i++)
        sum += (double)(share[i] * (x[i] - y[i]));
    return sum - (log_sum - softmax(NULL, y, n));
}
