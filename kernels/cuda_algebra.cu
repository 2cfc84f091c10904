/* The conversion's algebra on the device (algebra.h): products by cuBLAS, the rest by small
 * kernels, each bound by the bytes it reads and writes. Refuses nothing; faults latch.
 *
 * Roofline, bytes: softmax 8 a logit; keys 8 a logit (half of P and U is read: the causal part);
 * fold 12 an entry of the square read or zeroed and 16 of the triangle; weigh_rows and row_dots 8 a
 * number; divergence 8 a logit and as much from L2. For Llama-3-8B a batch of 8 windows of 256
 * moves 32·(16 + 8 + 67·2) MB a layer = 5 GB, 1.5 ms of an H100's 3.35 TB/s, next to 0.64 TFLOP of
 * products, 13 ms at 50 TFLOP/s. Not measured. */
#include "kernels/cuda_quant.h"

enum { WARPS = CUDA_THREADS / 32 };

static void failed(struct cuda *c, int rc)
{
    if (rc && !c->fault.status)
        err_set(&c->fault, ERR_DEVICE, "cuda:%d: cuBLAS failed: restart with --device cpu",
                c->device);
}

static void cuda_gemm(struct backend *b, const struct algebra_gemm *g)
{
    struct cuda *c = (struct cuda *)b;
    if (g->count > 0 && g->m > 0 && g->n > 0)
        failed(c, cuda_blas_gemm_batch(&c->blas, g));
}

static void cuda_syrk_add(struct backend *b, int n, int k, const float *a, int lda, float *to)
{
    struct cuda *c = (struct cuda *)b;
    failed(c, cuda_blas_syrk(&c->blas, n, k, a, lda, to));
}

static unsigned blocks_for(size_t n, size_t each)
{
    return (unsigned)((n + each - 1) / each);
}

static __global__ void __launch_bounds__(CUDA_THREADS) fold_kernel(double *total, float *c, int n)
{
    /* n ≤ 65535: the square is below 2³² */
    unsigned at = blockIdx.x * CUDA_THREADS + threadIdx.x, w = (unsigned)n;
    if (at >= w * w)
        return;
    size_t i = at / w, j = at % w;
    if (j >= i)
        total[i * w - i * (i + 1) / 2 + j] += c[at];
    c[at] = 0;
}

static void cuda_fold(struct backend *b, double *total, float *from, int n)
{
    struct cuda *c = (struct cuda *)b;
    cuda_launch(c, "adding moments", fold_kernel,
                dim3(blocks_for((size_t)n * (size_t)n, CUDA_THREADS)), CUDA_THREADS, 0, total, from,
                n);
}

static __device__ __forceinline__ float warp_max(float v)
{
    for (int other = 16; other; other /= 2)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, other));
    return v;
}

/* A warp a row. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    softmax_kernel(float *P, size_t rows, int T, int window, float softcap)
{
    int lane = (int)threadIdx.x % 32;
    size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (i >= rows) /* whole warps leave, and nothing waits for the block */
        return;
    int m = (int)(i % T), first = window > 0 && m >= window ? m - window + 1 : 0;
    float *row = P + i * T, top = -INFINITY, sum = 0;
    for (int n = lane; n <= m; n += 32) { /* a lane meets the same numbers in all three rounds */
        if (softcap > 0)
            row[n] = softcap * tanhf(row[n] / softcap);
        if (n >= first)
            top = fmaxf(top, row[n]);
    }
    top = warp_max(top);
    for (int n = lane; n <= m; n += 32) {
        row[n] = n >= first ? expf(row[n] - top) : 0;
        sum += row[n];
    }
    sum = warp_sum(sum);
    for (int n = lane; n < T; n += 32)
        row[n] = n <= m ? row[n] / sum : 0;
}

static void cuda_softmax(struct backend *b, float *P, int count, int T, int window, float softcap)
{
    struct cuda *c = (struct cuda *)b;
    size_t rows = (size_t)count * (size_t)T;
    cuda_launch(c, "attention weights", softmax_kernel, dim3(blocks_for(rows, WARPS)), CUDA_THREADS,
                0, P, rows, T, window, softcap);
}

/* A warp a row. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    dots_kernel(float *out, const float *x, size_t ldx, const float *y, size_t ldy, int n, int rows)
{
    int lane = (int)threadIdx.x % 32, i = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32;
    if (i >= rows)
        return;
    float sum = 0;
    for (int j = lane; j < n; j += 32)
        sum += x[i * ldx + j] * y[i * ldy + j];
    sum = warp_sum(sum);
    if (lane == 0)
        out[i] = sum;
}

static void cuda_row_dots(struct backend *b, float *out, const float *x, int ldx, const float *y,
                          int ldy, int n, int rows)
{
    struct cuda *c = (struct cuda *)b;
    cuda_launch(c, "inner products of rows", dots_kernel, dim3(blocks_for((size_t)rows, WARPS)),
                CUDA_THREADS, 0, out, x, (size_t)ldx, y, (size_t)ldy, n, rows);
}

/* A thread a key: neighbours read neighbouring columns of P and U. */
static __global__ void __launch_bounds__(CUDA_THREADS) keys_kernel(struct algebra_keys a)
{
    int i = (int)(blockIdx.x * CUDA_THREADS + threadIdx.x);
    if (i >= a.count * a.T)
        return;
    int n = i % a.T, row0 = i - n;
    float key = 0, squares = 0, v = a.v[i];
    for (int m = n; m < a.T; m++) {
        size_t at = (size_t)(row0 + m) * a.T + n;
        float p2 = a.P[at] * a.P[at];
        key += p2 * fmaxf(0, v - 2 * a.U[at] + a.o[row0 + m]);
        squares += p2;
    }
    a.key[i] += key;
    a.share[i] += (double)squares * v;
}

static void cuda_keys(struct backend *b, const struct algebra_keys *a)
{
    struct cuda *c = (struct cuda *)b;
    cuda_launch(c, "weights of keys", keys_kernel,
                dim3(blocks_for((size_t)a->count * (size_t)a->T, CUDA_THREADS)), CUDA_THREADS, 0,
                *a);
}

static __global__ void __launch_bounds__(CUDA_THREADS)
    weigh_kernel(float *out, const float *y, const float *weight, int n, size_t all)
{
    size_t i = (size_t)blockIdx.x * CUDA_THREADS + threadIdx.x;
    if (i < all)
        out[i] = sqrtf(weight[i / n]) * y[i];
}

static void cuda_weigh_rows(struct backend *b, float *out, const float *y, const float *weight,
                            int n, int rows)
{
    struct cuda *c = (struct cuda *)b;
    size_t all = (size_t)rows * (size_t)n;
    cuda_launch(c, "weighing rows", weigh_kernel, dim3(blocks_for(all, CUDA_THREADS)), CUDA_THREADS,
                0, out, y, weight, n, all);
}

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32 };

/* The block's sum, or maximum, of a number a thread; part has ROW_WARPS of them. */
template <bool most> static __device__ __forceinline__ float of_block(float v, float *part)
{
    v = most ? warp_max(v) : warp_sum(v);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int w = 1; w < ROW_WARPS; w++)
        v = most ? fmaxf(v, part[w]) : v + part[w];
    __syncthreads();
    return v;
}

/* A block a row, which it reads twice, the second time from L2. The logarithms' difference is taken
 * of the sums' quotient: two logarithms of 20 would leave 2e-6 of fp32 between them. */
static __global__ void __launch_bounds__(ROW_THREADS)
    divergence_kernel(float *out, const float *p, const float *q, int n)
{
    SHARED(float, part, ROW_WARPS);
    const float *x = p + (size_t)blockIdx.x * n, *y = q + (size_t)blockIdx.x * n;
    float top_p = -INFINITY, top_q = -INFINITY, zp = 0, zq = 0, sum = 0;
    for (int i = (int)threadIdx.x; i < n; i += ROW_THREADS) {
        top_p = fmaxf(top_p, x[i]);
        top_q = fmaxf(top_q, y[i]);
    }
    top_p = of_block<true>(top_p, part);
    top_q = of_block<true>(top_q, part);
    for (int i = (int)threadIdx.x; i < n; i += ROW_THREADS) {
        float w = expf(x[i] - top_p);
        zp += w;
        zq += expf(y[i] - top_q);
        sum += w * ((x[i] - top_p) - (y[i] - top_q));
    }
    zp = of_block<false>(zp, part);
    zq = of_block<false>(zq, part);
    sum = of_block<false>(sum, part);
    if (threadIdx.x == 0)
        out[blockIdx.x] = sum / zp - logf(zp / zq);
}

static void cuda_divergence(struct backend *b, float *out, const float *p, const float *q, int n,
                            int rows)
{
    struct cuda *c = (struct cuda *)b;
    if (rows > 0)
        cuda_launch(c, "a divergence", divergence_kernel, dim3((unsigned)rows), ROW_THREADS, 0, out,
                    p, q, n);
}

/* Which problems the device solves: cuda_solver.cu. */
enum { EIGH_FROM = 3072, SOLVE_FROM = 1024 };

extern "C" const struct algebra_ops cuda_algebra_ops = {
    .gemm = cuda_gemm,
    .syrk_add = cuda_syrk_add,
    .fold = cuda_fold,
    .softmax = cuda_softmax,
    .row_dots = cuda_row_dots,
    .keys = cuda_keys,
    .weigh_rows = cuda_weigh_rows,
    .divergence = cuda_divergence,
    .eigh = cuda_eigh,
    .eigh_from = EIGH_FROM,
    .solve_spd = cuda_solve_spd,
    .solve_from = SOLVE_FROM,
};
