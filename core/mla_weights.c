/* Moments of a layer that was never run, from its weights alone. */
#include <math.h>
#include <stdlib.h>

#include "core/mla_solve.h"

/* A head norm gives every head of rows·(the norm's own gain) unit variance on average: scales the
 * second moment c (ld) of d coordinates so. */
static void norm_moment(double *c, size_t ld, int d, const float *gamma, double *factor)
{
    double mean = 0;
    for (int i = 0; i < d; i++)
        mean += c[(size_t)i * (ld + 1)] / d;
    for (int i = 0; i < d; i++)
        factor[i] = mean > 0 ? gamma[i] / sqrt(mean) : 0;
}

/* Applies the norms' average effect to weight moments: rows and columns of every head. */
static int norm_moments(const struct mla_source *src, struct moments *out, struct err *e)
{
    int d = src->shape.d, n = moments_n(&src->shape);
    double *factor = mem_calloc((size_t)n, sizeof *factor);
    if (!factor)
        return err_nomem(e, (size_t)n * sizeof *factor, "norms");
    for (int i = 0; i < n; i++)
        factor[i] = 1;
    for (int g = 0; g < src->shape.G; g++)
        norm_moment(out->c + (size_t)(g * d) * (size_t)(n + 1), (size_t)n, d, src->k_norm,
                    factor + g * d);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            out->c[(size_t)i * (size_t)n + (size_t)j] *= factor[i] * factor[j];
    for (int h = 0; h < src->shape.H; h++) {
        double *m = out->m + (size_t)h * (size_t)(d * d);
        norm_moment(m, (size_t)d, d, src->q_norm, factor);
        for (int i = 0; i < d * d; i++)
            m[i] *= factor[i / d] * factor[i % d];
    }
    free(factor);
    return OK;
}

/* E[y yᵀ] of an identity input moment through the norm's gain, and E[k kᵀ] from the keys' rows. */
static int input_moments(const struct moments_shape *p, const float *gamma, const double *keys,
                         struct moments *out, struct err *e)
{
    int nk = p->G * p->d, D = p->D;
    size_t w = (size_t)moments_width(p), kk = (size_t)nk * (size_t)nk;
    double *full = mem_calloc(kk, sizeof *full);
    float *key = out->key;
    if (!full)
        return err_nomem(e, kk * sizeof *full, "weights");
    for (size_t i = 0; i < (size_t)D; i++)
        out->c[i * (w + 1)] = (double)gamma[i] * gamma[i];
    mla_gemm(false, true, nk, nk, D, keys, D, keys, D, 0, full, nk);
    for (int i = 0; i < nk; i++)
        for (int j = i; j < nk; j++)
            *key++ = (float)full[(size_t)i * (size_t)nk + (size_t)j];
    free(full);
    return OK;
}

int mla_weight_moments(const struct mla_source *src, const float *gamma, struct moments *out,
                       struct err *e)
{
    const struct moments_shape *p = &src->shape;
    int rc = moments_init(out, p, false, e);
    if (rc)
        return rc;
    int n = moments_n(p), d = p->d, D = p->D, kd = p->G * d;
    size_t rows = (size_t)(n > p->H * d ? n : p->H * d);
    double *w = mem_calloc(rows * (size_t)D, sizeof *w);
    if (!w) {
        moments_done(out);
        return err_nomem(e, rows * (size_t)D * sizeof *w, "weights");
    }
    for (size_t i = 0; i < (size_t)kd * (size_t)D; i++) {
        w[i] = (double)src->wk[i] * gamma[i % (size_t)D];
        w[(size_t)kd * (size_t)D + i] = (double)src->wv[i] * gamma[i % (size_t)D];
    }
    if (p->affine)
        rc = input_moments(p, gamma, w, out, e);
    else
        mla_gemm(false, true, n, n, D, w, D, w, D, 0, out->c, n);
    for (size_t i = 0; i < (size_t)(p->H * d) * (size_t)D; i++)
        w[i] = (double)src->wq[i] * gamma[i % (size_t)D];
    for (int h = 0; h < p->H; h++) {
        const double *q = w + (size_t)h * (size_t)d * (size_t)D;
        mla_gemm(false, true, d, d, D, q, D, q, D, 0, out->m + (size_t)h * (size_t)(d * d), d);
    }
    free(w);
    if (src->q_norm)
        rc = norm_moments(src, out, e);
    if (rc)
        moments_done(out);
    return rc;
}
