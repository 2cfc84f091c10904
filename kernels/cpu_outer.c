/* Sums of outer products of rows, by the instruction set's gemm where that is faster than the BLAS
 * (AVX-512 on Zen 5: 360 GFLOP/s on two cores beside 280, or 180 of its Haswell kernels; AVX2: 160
 * beside 185). */
#include "kernels/cpu.h"
#include "kernels/pool.h"

enum { OUTER_BAND = 48, OUTER_DEPTH = 256 }; /* rows of S a task; tokens turned at once */

struct outer {
    const struct cpu_isa *isa;
    float *S, *X;
    const float *a, *y;
    int W, D, n;
    char *scratch;
    size_t scratch_bytes;
};

/* A band of rows of S, from its diagonal block to the right, and of X. */
static void outer_task(void *arg, int i, int thread)
{
    const struct outer *o = arg;
    float *turned = (float *)(void *)(o->scratch + (size_t)thread * o->scratch_bytes);
    int row = i * OUTER_BAND, rows = o->W - row < OUTER_BAND ? o->W - row : OUTER_BAND;
    size_t w = (size_t)o->W, d = (size_t)o->D;
    float *S = o->S + (size_t)row * (w + 1), *X = o->X + (size_t)row * d;
    for (int t = 0; t < o->n; t += OUTER_DEPTH) {
        int k = o->n - t < OUTER_DEPTH ? o->n - t : OUTER_DEPTH;
        const float *a = o->a + (size_t)t * w + row, *y = o->y + (size_t)t * d;
        o->isa->widen_turned(DTYPE_F32, k, rows, a, o->W, turned, OUTER_DEPTH);
        o->isa->gemm(rows, o->W - row, k, turned, OUTER_DEPTH, DTYPE_F32, a, o->W, S, o->W, t > 0);
        o->isa->gemm(rows, o->D, k, turned, OUTER_DEPTH, DTYPE_F32, y, o->D, X, o->D, t > 0);
    }
}

bool cpu_outer(struct backend *b, float *S, float *X, const float *a, int W, const float *y, int D,
               int n)
{
    struct cpu *c = (struct cpu *)b;
    struct outer o = {&c->isa, S, X, a, y, W, D, n, NULL, OUTER_BAND * OUTER_DEPTH * sizeof(float)};
    o.scratch = c->isa.fast_gemm ? cpu_scratch(c, &o.scratch_bytes) : NULL;
    if (!o.scratch)
        return false;
    pool_for(b->pool, (W + OUTER_BAND - 1) / OUTER_BAND, outer_task, &o);
    return true;
}
