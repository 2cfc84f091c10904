/* On a device Σ a aᵀ and Σ a yᵀ are two corners of one symmetric product, Σ [a y][a y]ᵀ. The third
 * corner is not wanted and costs D²/2 of (W + D)²/2.
 *
 * FLOPs of 40,960 rows and an output projection, (W + D)² a row: Llama-3-8B and Llama-2-7B 2.7e12,
 * 55 ms at 50 TFLOP/s of fp32; 70B 1.1e13, 0.2 s; whole models 1.8, 1.8 and 18 s, next to two
 * forward passes of the rows (3.3, 2.8 and 29 s at 400 TFLOP/s of TF32). Memory 16·(W + D)²: 1.1
 * and 4.3 GB. Down comes a triangle of fp64 a layer: 0.27 and 1.1 GB, 20 and 80 ms at 13 GB/s. Not
 * measured on a device. */
#include "sessions/refit_sums.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"

struct refit_sums {
    struct backend *b;
    int W, D;
    double *S[2], *X[2];   /* host, of both halves: [W][W], [W][D] */
    int half;              /* that the next group goes to */
    float *a, *y;          /* host: a group's rows [group][W], [group][D] */
    float *square, *cross; /* host: a group's shares [W][W], [W][D] */
    bool near;             /* the backend's memory is the host's: a and y are not needed */
    bool device;
    double *total[2];     /* device: packed triangles of the sums */
    float *joint, *block; /* device: [group][W+D], [W+D][W+D] */
};

static size_t triangle(const struct refit_sums *s)
{
    size_t all = (size_t)s->W + (size_t)s->D;
    return all * (all + 1) / 2;
}

static void release(struct refit_sums *s)
{
    void *const all[] = {s->joint, s->block, s->total[0], s->total[1]};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        s->b->ops->free(s->b, all[i]);
    s->joint = s->block = NULL;
    s->total[0] = s->total[1] = NULL;
}

static bool reserve_device(struct refit_sums *s, int group)
{
    const struct backend_ops *op = s->b->ops;
    size_t all = (size_t)s->W + (size_t)s->D, f = sizeof(float);
    if (!s->b->algebra)
        return false;
    s->joint = op->alloc(s->b, (size_t)group * all * f);
    s->block = op->alloc(s->b, all * all * f);
    for (int i = 0; i < 2; i++)
        s->total[i] = op->alloc(s->b, triangle(s) * sizeof **s->total);
    if (s->joint && s->block && s->total[0] && s->total[1])
        return true;
    release(s); /* not enough memory there: the host has it */
    return false;
}

int refit_sums_new(struct refit_sums **out, struct backend *b, int group, int W, int D,
                   struct err *e)
{
    size_t w = (size_t)W, d = (size_t)D, n = (size_t)group;
    struct refit_sums *s = mem_calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return err_nomem(e, sizeof *s, "sums of a refit");
    *s = (struct refit_sums){.b = b, .W = W, .D = D};
    s->device = reserve_device(s, group);
    s->near = b->ops == &cpu_backend_ops;
    for (int i = 0; i < 2; i++) {
        s->S[i] = mem_calloc(w * w, sizeof **s->S);
        s->X[i] = mem_calloc(w * d, sizeof **s->X);
    }
    size_t host = !s->device, copied = host && !s->near;
    s->a = mem_aligned(copied * n * w, sizeof *s->a);
    s->y = mem_aligned(copied * n * d, sizeof *s->y);
    s->square = mem_aligned(host * w * w, sizeof *s->square);
    s->cross = mem_aligned(host * w * d, sizeof *s->cross);
    if (s->S[0] && s->S[1] && s->X[0] && s->X[1] && s->a && s->y && s->square && s->cross) {
        *out = s;
        return OK;
    }
    refit_sums_free(s);
    return err_nomem(e, (size_t)refit_sums_bytes(group, W, D), "sums of a refit");
}

void refit_sums_free(struct refit_sums *s)
{
    if (!s)
        return;
    release(s);
    void *all[] = {s->S[0], s->S[1], s->X[0], s->X[1], s->a, s->y, s->square, s->cross};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(s);
}

double refit_sums_bytes(int group, int W, int D)
{
    double w = W, d = D, n = group;
    return (2 * sizeof(double) * w + sizeof(float) * (n + w)) * (w + d);
}

int refit_sums_start(struct refit_sums *s, struct err *e)
{
    const struct backend_ops *op = s->b->ops;
    size_t w = (size_t)s->W, d = (size_t)s->D, bytes = triangle(s) * sizeof **s->total;
    s->half = 0;
    for (int i = 0; i < 2; i++) {
        memset(s->S[i], 0, w * w * sizeof **s->S);
        memset(s->X[i], 0, w * d * sizeof **s->X);
        if (!s->device)
            continue;
        op->free(s->b, s->total[i]); /* what comes new is zeros */
        s->total[i] = op->alloc(s->b, bytes);
        if (!s->total[i])
            return err_nomem(e, bytes, "sums of a refit");
    }
    return OK;
}

/* to += from, a row a task. */
struct fold {
    double *to;
    const float *from;
    size_t cols;
};

static void fold_row(void *arg, int i, int thread)
{
    const struct fold *f = arg;
    (void)thread;
    for (size_t at = (size_t)i * f->cols, end = at + f->cols; at < end; at++)
        f->to[at] += (double)f->from[at];
}

static void add_up(struct refit_sums *s, double *to, const float *from, int rows, int cols)
{
    struct fold f = {to, from, (size_t)cols};
    pool_for(s->b->pool, rows, fold_row, &f);
}

void refit_sums_add(struct refit_sums *s, const float *a, const float *y, int n)
{
    struct backend *b = s->b;
    int W = s->W, D = s->D, all = W + D, half = s->half;
    size_t w = (size_t)W, d = (size_t)D, rows = (size_t)n;
    s->half = !half;
    if (s->device) {
        b->ops->store(b, s->joint, DTYPE_F32, all, a, W, W, n);
        b->ops->store(b, s->joint + W, DTYPE_F32, all, y, D, D, n);
        b->algebra->syrk_add(b, all, n, s->joint, all, s->block);
        b->algebra->fold(b, s->total[half], s->block, all);
        return;
    }
    if (!s->near) {
        b->ops->get(b, s->a, a, rows * w * sizeof *s->a);
        b->ops->get(b, s->y, y, rows * d * sizeof *s->y);
        a = s->a;
        y = s->y;
    }
    if (!s->near || !b->ops->outer || !b->ops->outer(b, s->square, s->cross, a, W, y, D, n)) {
        memset(s->square, 0, w * w * sizeof *s->square);
        linalg_ssyrk_add(b->pool, W, n, a, W, s->square, W);
        linalg_sgemm(b->pool, true, false, W, D, n, 1, a, W, y, D, 0, s->cross, D);
    }
    add_up(s, s->S[half], s->square, W, W);
    add_up(s, s->X[half], s->cross, W, D);
}

static int fetch(struct refit_sums *s, int half, struct err *e)
{
    size_t w = (size_t)s->W, d = (size_t)s->D, bytes = triangle(s) * sizeof **s->total;
    double *host = mem_calloc(triangle(s), sizeof *host);
    if (!host)
        return err_nomem(e, bytes, "sums of a refit");
    s->b->ops->get(s->b, host, s->total[half], bytes);
    const double *at = host;
    for (size_t i = 0; i < w; i++) {
        for (size_t j = i; j < w; j++)
            s->S[half][i * w + j] = *at++;
        for (size_t j = 0; j < d; j++)
            s->X[half][i * d + j] = *at++;
    }
    free(host);
    return s->b->ops->sync(s->b, e);
}

int refit_sums_collect(struct refit_sums *s, double *S[2], double *X[2], struct err *e)
{
    size_t w = (size_t)s->W;
    int rc = OK;
    for (int half = 0; half < 2 && !rc; half++) {
        S[half] = s->S[half];
        X[half] = s->X[half];
        if (s->device)
            rc = fetch(s, half, e);
        for (size_t i = 0; i < w && !rc; i++)
            for (size_t j = 0; j < i; j++)
                S[half][i * w + j] = S[half][j * w + i];
    }
    return rc;
}
