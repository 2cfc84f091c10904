/* Σ ã ãᵀ and Σ ã yᵀ as two corners of one symmetric product, Σ [ã y][ã y]ᵀ: fp32 inside a group,
 * fp64 across groups, as on the host. The third corner is not wanted and costs D²/2 of (W + D)²/2.
 *
 * FLOPs of 40,960 rows and a layer, (W + D)² a row: Llama-3-8B and Llama-2-7B 2.7e12, 55 ms at 50
 * TFLOP/s of fp32; 70B 1.1e13, 0.2 s; whole models 1.8, 1.8 and 18 s, next to two forward passes of
 * the rows (3.3, 2.8 and 29 s at 400 TFLOP/s of TF32). Memory 4·rows·W + 8·(W + D)²: 1.2 GB and 3.5
 * GB. Down comes a triangle of fp64 a layer: 0.27 and 1.1 GB, 20 and 80 ms at 13 GB/s. Not measured
 * on a device. */
#include "sessions/refit_device.h"

#include <stdlib.h>

struct refit_device {
    struct backend *b;
    int W, D;
    bool biased;
    size_t rows, triangle;
    double *total;                        /* packed triangle of the layer's sums */
    float *heads;                         /* [rows][W] */
    float *joint, *y, *block, *wo, *bias; /* [group][W+D], [group][D], [W+D][W+D], [D][W], [D] */
};

int refit_device_new(struct refit_device **out, struct backend *b, size_t rows, int group, int W,
                     int D, struct err *e)
{
    const struct backend_ops *op = b->ops;
    size_t w = (size_t)W, d = (size_t)D, n = (size_t)group, all = w + d, f = sizeof(float);
    *out = NULL;
    if (!b->algebra)
        return OK;
    struct refit_device *r = mem_calloc(1, sizeof *r);
    if (!r)
        return err_nomem(e, sizeof *r, "refitting output projections");
    *r = (struct refit_device){
        .b = b, .W = W, .D = D, .rows = rows, .triangle = all * (all + 1) / 2};
    r->heads = op->alloc(b, rows * w * f);
    r->joint = op->alloc(b, n * all * f);
    r->y = op->alloc(b, n * d * f);
    r->block = op->alloc(b, all * all * f);
    r->wo = op->alloc(b, d * w * f);
    r->bias = op->alloc(b, d * f);
    r->total = op->alloc(b, r->triangle * sizeof *r->total);
    if (r->heads && r->joint && r->y && r->block && r->wo && r->bias && r->total)
        *out = r;
    else
        refit_device_free(r); /* not enough memory there: the host has it */
    return OK;
}

void refit_device_free(struct refit_device *d)
{
    if (!d)
        return;
    void *const all[] = {d->heads, d->joint, d->y, d->block, d->wo, d->bias, d->total};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        d->b->ops->free(d->b, all[i]);
    free(d);
}

int refit_device_start(struct refit_device *d, const float *wo, const float *bias, struct err *e)
{
    const struct backend_ops *op = d->b->ops;
    size_t D = (size_t)d->D, bytes = d->triangle * sizeof *d->total;
    d->biased = bias;
    op->free(d->b, d->total); /* what comes new is zeros */
    d->total = op->alloc(d->b, bytes);
    if (!d->total)
        return err_nomem(e, bytes, "the sums of a refit");
    if (wo)
        op->put(d->b, d->wo, wo, D * (size_t)d->W * sizeof *wo);
    if (bias) {
        op->put(d->b, d->bias, bias, D * sizeof *bias);
        op->scale(d->b, d->bias, -1, D);
    }
    return OK;
}

void refit_device_product(struct refit_device *d, const float *a, int n)
{
    struct algebra_gemm g = {.tb = true,
                             .m = n,
                             .n = d->D,
                             .k = d->W,
                             .count = 1,
                             .alpha = 1,
                             .a = a,
                             .b = d->wo,
                             .c = d->y,
                             .lda = d->W,
                             .ldb = d->W,
                             .ldc = d->D};
    d->b->algebra->gemm(d->b, &g);
}

void refit_device_gap(struct refit_device *d, const float *h, const float *converted, int n)
{
    const struct backend_ops *op = d->b->ops;
    size_t all = (size_t)n * (size_t)d->D;
    op->store(d->b, d->y, DTYPE_F32, d->D, converted, d->D, d->D, n);
    op->scale(d->b, d->y, -1, all);
    op->add(d->b, d->y, h, all);
    if (d->biased)
        op->add_bias(d->b, d->y, d->bias, n, d->D);
}

void refit_device_add(struct refit_device *d, size_t first, const float *heads, int n)
{
    const struct backend_ops *op = d->b->ops;
    int all = d->W + d->D;
    op->store(d->b, d->heads + first * (size_t)d->W, DTYPE_F32, d->W, heads, d->W, d->W, n);
    op->store(d->b, d->joint, DTYPE_F32, all, heads, d->W, d->W, n);
    op->store(d->b, d->joint + d->W, DTYPE_F32, all, d->y, d->D, d->D, n);
    d->b->algebra->syrk_add(d->b, all, n, d->joint, all, d->block);
    d->b->algebra->fold(d->b, d->total, d->block, all);
}

void refit_device_heads(const struct refit_device *d, size_t first, float *heads, int n)
{
    d->b->ops->store(d->b, heads, DTYPE_F32, d->W, d->heads + first * (size_t)d->W, d->W, d->W, n);
}

int refit_device_collect(const struct refit_device *d, double *S, double *X, struct err *e)
{
    size_t W = (size_t)d->W, D = (size_t)d->D, bytes = d->triangle * sizeof *S;
    double *host = mem_calloc(d->triangle, sizeof *host);
    if (!host)
        return err_nomem(e, bytes, "the sums of a refit");
    d->b->ops->get(d->b, host, d->total, bytes);
    const double *at = host;
    for (size_t i = 0; i < W; i++) {
        for (size_t j = i; j < W; j++)
            S[i * W + j] = *at++;
        for (size_t j = 0; j < D; j++)
            X[i * D + j] = *at++;
    }
    free(host);
    return d->b->ops->sync(d->b, e);
}
