/* The CUDA backend's small operations: norms, rotation, cache writes, activation and rows. All are
 * bound by memory, or, at one token, by their launch (about 2-3 µs against 0.1 µs of work): they
 * are what fusing and graphs would save, neither of which is done yet. Bytes a number: norm and
 * rope 8, store 6 (F16), glu 12, add 12, scale and softcap 8. */
#include "kernels/cuda_quant.h"

/* Threads that each take one of n things, in a grid that any n fits. */
static dim3 blocks_of(size_t n)
{
    return dim3((unsigned)((n + CUDA_THREADS - 1) / CUDA_THREADS));
}

static __device__ __forceinline__ size_t own_index(void)
{
    return (size_t)blockIdx.x * CUDA_THREADS + threadIdx.x;
}

/* One block a vector; ld, heads, stride as in head_norm. y and x may be the same. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    norm_kernel(float *y, const float *x, const float *gamma, float eps, int n, size_t ld,
                int heads, size_t stride)
{
    SHARED(float, part, CUDA_THREADS / 32);
    size_t at = blockIdx.x / heads * ld + blockIdx.x % heads * stride;
    float sum = 0;
    for (int i = (int)threadIdx.x; i < n; i += CUDA_THREADS)
        sum += x[at + i] * x[at + i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < CUDA_THREADS / 32; w++)
        sum += part[w];
    float scale = 1 / sqrtf(sum / (float)n + eps);
    for (int i = (int)threadIdx.x; i < n; i += CUDA_THREADS)
        y[at + i] = x[at + i] * scale * gamma[i];
}

static void norm(struct backend *b, float *y, const float *x, const float *gamma, float eps, int T,
                 int n, size_t ld, int heads, size_t stride)
{
    struct cuda *c = (struct cuda *)b;
    if (T < 1 || heads < 1)
        return;
    LAUNCH(norm_kernel, dim3((unsigned)T * (unsigned)heads), CUDA_THREADS, 0, c->stream, y, x,
           gamma, eps, n, ld, heads, stride);
    cuda_ok(c, cudaGetLastError(), "norm");
}

void cuda_rms_norm(struct backend *b, float *y, const float *x, const float *gamma, float eps,
                   int T, int n)
{
    norm(b, y, x, gamma, eps, T, n, (size_t)n, 1, 0);
}

void cuda_head_norm(struct backend *b, float *x, int ld, int heads, int stride, const float *gamma,
                    float eps, int T, int n)
{
    norm(b, x, x, gamma, eps, T, n, (size_t)ld, heads, (size_t)stride);
}

/* cos and sin are one table after the other. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    rope_kernel(float *x, size_t ld, int heads, size_t stride, int half, const float *table, int T)
{
    size_t i = own_index();
    if (i >= (size_t)T * heads * half)
        return;
    size_t j = i % half, h = i / half % heads, t = i / half / heads;
    float *v = x + t * ld + h * stride + j;
    float c = table[t * half + j], s = table[((size_t)T + t) * half + j];
    float re = v[0], im = v[half];
    v[0] = re * c - im * s;
    v[half] = re * s + im * c;
}

void cuda_rope(struct backend *b, float *x, int ld, int heads, int stride, int R, const float *cos,
               const float *sin, int T)
{
    struct cuda *c = (struct cuda *)b;
    size_t n = (size_t)T * (size_t)(R / 2), most = CUDA_RING / (4 * sizeof(float));
    if (!n || heads < 1)
        return;
    if (n > most) { /* the two tables must fit the ring side by side */
        int first = T / 2;
        cuda_rope(b, x, ld, heads, stride, R, cos, sin, first);
        size_t skip = (size_t)first * (size_t)(R / 2);
        cuda_rope(b, x + (size_t)first * ld, ld, heads, stride, R, cos + skip, sin + skip,
                  T - first);
        return;
    }
    float *both = (float *)malloc(2 * n * sizeof *both);
    if (!both) {
        err_nomem(&c->fault, 2 * n * sizeof *both, "rope tables");
        return;
    }
    memcpy(both, cos, n * sizeof *both);
    memcpy(both + n, sin, n * sizeof *both);
    const float *table = (const float *)cuda_carry(c, both, 2 * n * sizeof *both);
    free(both);
    if (!table)
        return;
    LAUNCH(rope_kernel, blocks_of(n * (size_t)heads), CUDA_THREADS, 0, c->stream, x, (size_t)ld,
           heads, (size_t)stride, R / 2, table, T);
    cuda_ok(c, cudaGetLastError(), "rope");
}

static __global__ void __launch_bounds__(CUDA_THREADS)
    store_kernel(void *dst, bool half, size_t ld_dst, const float *src, size_t ld_src, int n,
                 size_t all)
{
    size_t i = own_index();
    if (i >= all)
        return;
    size_t t = i / n, j = i % n;
    if (half)
        ((uint16_t *)dst)[t * ld_dst + j] = cuda_to_half(src[t * ld_src + j]);
    else
        ((float *)dst)[t * ld_dst + j] = src[t * ld_src + j];
}

void cuda_store(struct backend *b, void *dst, enum dtype kv, int ld_dst, const float *src,
                int ld_src, int n, int T)
{
    struct cuda *c = (struct cuda *)b;
    size_t all = (size_t)T * (size_t)n;
    if (!all)
        return;
    LAUNCH(store_kernel, blocks_of(all), CUDA_THREADS, 0, c->stream, dst, kv == DTYPE_F16,
           (size_t)ld_dst, src, (size_t)ld_src, n, all);
    cuda_ok(c, cudaGetLastError(), "store");
}

static __global__ void __launch_bounds__(CUDA_THREADS)
    glu_kernel(float *y, const float *gate, const float *up, enum glu_act act, size_t n)
{
    size_t i = own_index();
    if (i >= n)
        return;
    float g = gate[i], a;
    if (act == GLU_SILU)
        a = g / (1 + expf(-g));
    else
        a = 0.5f * g * (1 + tanhf(0.7978845608028654f * (g + 0.044715f * g * g * g)));
    y[i] = a * up[i];
}

void cuda_glu(struct backend *b, float *y, const float *gate, const float *up, enum glu_act act,
              size_t n)
{
    struct cuda *c = (struct cuda *)b;
    if (!n)
        return;
    LAUNCH(glu_kernel, blocks_of(n), CUDA_THREADS, 0, c->stream, y, gate, up, act, n);
    cuda_ok(c, cudaGetLastError(), "glu");
}

/* y[i] += x[i mod m]: an addition, or a bias for every row. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    add_kernel(float *y, const float *x, size_t n, size_t m)
{
    size_t i = own_index();
    if (i < n)
        y[i] += x[m == n ? i : i % m];
}

static void add(struct backend *b, float *y, const float *x, size_t n, size_t m)
{
    struct cuda *c = (struct cuda *)b;
    if (!n)
        return;
    LAUNCH(add_kernel, blocks_of(n), CUDA_THREADS, 0, c->stream, y, x, n, m);
    cuda_ok(c, cudaGetLastError(), "add");
}

void cuda_add(struct backend *b, float *y, const float *x, size_t n)
{
    add(b, y, x, n, n);
}

void cuda_add_bias(struct backend *b, float *y, const float *bias, int T, int n)
{
    add(b, y, bias, (size_t)T * (size_t)n, (size_t)n);
}

/* y = factor·y, or cap·tanh(y / cap) where cap is not 0. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    scale_kernel(float *y, float factor, float cap, size_t n)
{
    size_t i = own_index();
    if (i < n)
        y[i] = cap != 0 ? cap * tanhf(y[i] / cap) : factor * y[i];
}

static void scale(struct backend *b, float *y, float factor, float cap, size_t n)
{
    struct cuda *c = (struct cuda *)b;
    if (!n)
        return;
    LAUNCH(scale_kernel, blocks_of(n), CUDA_THREADS, 0, c->stream, y, factor, cap, n);
    cuda_ok(c, cudaGetLastError(), "scale");
}

void cuda_scale(struct backend *b, float *y, float factor, size_t n)
{
    scale(b, y, factor, 0, n);
}

void cuda_softcap(struct backend *b, float *y, float cap, size_t n)
{
    scale(b, y, 1, cap, n);
}

/* factor NULL: y[t] = x[rows[t]]; else y[rows[t]] += factor[t]·x[t]. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    rows_kernel(float *y, const float *x, const int32_t *rows, const float *factor, int n,
                size_t all)
{
    size_t i = own_index();
    if (i >= all)
        return;
    size_t t = i / n, j = i % n, at = (size_t)rows[t] * n + j;
    if (factor)
        y[at] += factor[t] * x[i];
    else
        y[i] = x[at];
}

/* The ring holds a part of the rows at a time. */
static void move_rows(struct backend *b, float *y, const float *x, const int32_t *rows,
                      const float *factor, int T, int n)
{
    struct cuda *c = (struct cuda *)b;
    const int most = CUDA_RING / 16;
    for (int t = 0; t < T && n > 0; t += most) {
        int m = T - t < most ? T - t : most;
        size_t all = (size_t)m * (size_t)n, at = (size_t)t * (size_t)n;
        const int32_t *ids = (const int32_t *)cuda_carry(c, rows + t, (size_t)m * sizeof *rows);
        const float *f = NULL;
        if (ids && factor)
            f = (const float *)cuda_carry(c, factor + t, (size_t)m * sizeof *factor);
        if (!ids || (factor && !f))
            return;
        LAUNCH(rows_kernel, blocks_of(all), CUDA_THREADS, 0, c->stream, factor ? y : y + at,
               factor ? x + at : x, ids, f, n, all);
        cuda_ok(c, cudaGetLastError(), "rows");
    }
}

void cuda_take_rows(struct backend *b, float *y, const float *x, const int32_t *rows, int T, int n)
{
    move_rows(b, y, x, rows, NULL, T, n);
}

void cuda_add_rows(struct backend *b, float *y, const int32_t *rows, const float *x,
                   const float *factor, int T, int n)
{
    move_rows(b, y, x, rows, factor, T, n);
}
