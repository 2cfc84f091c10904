/* The CUDA backend's attention: one kernel for GQA and for absorbed MLA, whose latent rows are read
 * once and used as keys and as values. Softmax is taken online; keys are split over blocks when
 * queries alone do not fill the device, and a second kernel joins the parts. Refuses heads wider
 * than MOST_DIMS and rows that do not fit shared memory (a latched fault).
 *
 * A block takes ROWS queries of one KV head, (token, head of the group) in order, and KEYS cache
 * rows at a time: all of a group's heads read a key once from memory, and so do the tokens of a
 * prefill. Roofline: the cache's bytes; Llama-3-8B at 8k context has 32 MiB a layer in F16 (10 µs
 * on an H100), its MLA with r + R = 576 9.4 MB (2.8 µs). The inner products run in fp32 from shared
 * memory, two loads for each FMA, so with 64 heads arithmetic is the bound (about 80 µs a layer at
 * 4k, estimated): tensor cores (mma.sync) are the next step and not done. None of it measured. */
#include "kernels/cuda_quant.h"

enum { ROWS = 8, KEYS = 16, MOST_DIMS = 8 * CUDA_THREADS };

struct attn_args {
    float *out;          /* [T][H][dv] */
    const float *q, *q2; /* [T][H][dq], [T][H][dk − dq] */
    const void *k, *v;   /* rows of ldk numbers, head g from g·dk; v NULL: the first dv of k */
    float *part;         /* [rows][splits][2 + dv]: maximum, sum, weighted values; or NULL */
    int T, past, H, G, dq, dk, dv, ldk, splits, window;
    float scale, softcap;
};

static __device__ __forceinline__ float cache_number(const void *p, bool half, size_t i)
{
    return half ? cuda_half(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

static __device__ __forceinline__ float row_max(float v)
{
    for (int other = KEYS / 2; other; other /= 2)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, other));
    return v;
}

static __device__ __forceinline__ float row_sum(float v)
{
    for (int other = KEYS / 2; other; other /= 2)
        v += __shfl_xor_sync(~0u, v, other);
    return v;
}

/* The keys that some query of the block sees, and of those the ones of its split. */
static __device__ __forceinline__ void key_range(const struct attn_args &a, int row0, int rows,
                                                 int *from, int *to)
{
    int per = a.H / a.G, last = row0 + ROWS < rows ? row0 + ROWS - 1 : rows - 1;
    int first = a.past + row0 / per + 1 - a.window;
    *from = a.window && first > 0 ? first : 0;
    *to = a.past + last / per + 1;
    int tiles = (*to - *from + KEYS - 1) / KEYS, share = (tiles + a.splits - 1) / a.splits;
    *from += (int)blockIdx.z * share * KEYS;
    *to = *from + share * KEYS < *to ? *from + share * KEYS : *to;
}

/* tile[key][0 … n) = n numbers of each cache row from `from` on, zeros from `to` on. */
template <bool half>
static __device__ __forceinline__ void load_keys(float *tile, int pitch, const void *cache,
                                                 size_t ld, size_t at, int n, int from, int to)
{
    for (int e = (int)threadIdx.x; e < KEYS * n; e += CUDA_THREADS) {
        int key = e / n, i = e % n;
        tile[key * pitch + i] =
            from + key < to ? cache_number(cache, half, (size_t)(from + key) * ld + at + i) : 0;
    }
}

/* N: numbers of the output a thread has, for each of the ROWS queries. */
template <bool half, int N>
static __global__ void __launch_bounds__(CUDA_THREADS, N == 8 ? 2 : 3)
    attn_kernel(struct attn_args a)
{
    SHARED_DYNAMIC(float, shared);
    SHARED(float, p, ROWS *KEYS);
    SHARED(float, shrink, ROWS);
    /* An odd pitch puts the 16 keys that a half warp reads into different banks. */
    const int pitch = a.dk | 1, per = a.H / a.G, rows = a.T * per;
    float *q = shared, *k = q + ROWS * pitch, *v = a.v ? k + KEYS * pitch : k;
    const int vpitch = a.v ? a.dv | 1 : pitch, tid = (int)threadIdx.x;
    const int g = (int)blockIdx.y, row0 = (int)blockIdx.x * ROWS, row = tid / KEYS,
              key = tid % KEYS;
    int from, to;
    key_range(a, row0, rows, &from, &to);
    for (int e = tid; e < ROWS * a.dk; e += CUDA_THREADS) {
        int i = row0 + e / a.dk, j = e % a.dk;
        size_t at = (size_t)(i / per) * a.H + g * per + i % per;
        float x = 0;
        if (i < rows)
            x = j < a.dq ? a.q[at * a.dq + j] : a.q2[at * (a.dk - a.dq) + j - a.dq];
        q[e / a.dk * pitch + j] = x;
    }
    const int pos = a.past + (row0 + row) / per; /* of this thread's query */
    float top = -INFINITY, sum = 0, acc[ROWS][N] = {};
    for (; from < to; from += KEYS) {
        load_keys<half>(k, pitch, a.k, (size_t)a.ldk, (size_t)g * a.dk, a.dk, from, to);
        if (a.v)
            load_keys<half>(v, vpitch, a.v, (size_t)a.ldk, (size_t)g * a.dv, a.dv, from, to);
        __syncthreads();
        float s = 0;
        for (int j = 0; j < a.dk; j++)
            s += q[row * pitch + j] * k[key * pitch + j];
        s *= a.scale;
        if (a.softcap > 0)
            s = a.softcap * tanhf(s / a.softcap);
        int n = from + key;
        bool seen = n < to && n <= pos && (!a.window || n > pos - a.window);
        s = seen ? s : -INFINITY;
        float high = fmaxf(top, row_max(s));
        float keep = top > -INFINITY ? expf(top - high) : 0; /* high is finite when top is */
        s = seen ? expf(s - high) : 0;
        sum = sum * keep + row_sum(s);
        top = high;
        p[row * KEYS + key] = s;
        if (key == 0)
            shrink[row] = keep;
        __syncthreads();
#ifdef __CUDACC__
#pragma unroll
#endif
        for (int i = 0; i < N; i++) {
            int d = tid + i * CUDA_THREADS;
            if (d >= a.dv)
                continue;
            for (int r = 0; r < ROWS; r++)
                acc[r][i] *= shrink[r];
            for (int m = 0; m < KEYS; m++) {
                float x = v[m * vpitch + d];
                for (int r = 0; r < ROWS; r++)
                    acc[r][i] += p[r * KEYS + m] * x;
            }
        }
        __syncthreads();
    }
    if (key == 0) { /* p and shrink are free: maximum and sum of each query */
        p[row] = top;
        shrink[row] = sum;
    }
    __syncthreads();
    for (int r = 0; r < ROWS && row0 + r < rows; r++) {
        size_t at = (size_t)((row0 + r) / per) * a.H + g * per + (row0 + r) % per;
        float *part = a.part ? a.part + (at * a.splits + blockIdx.z) * (a.dv + 2) : nullptr;
        float *out = part ? part + 2 : a.out + at * a.dv, factor = part ? 1 : 1 / shrink[r];
        if (part && tid == 0)
            part[0] = p[r], part[1] = shrink[r];
        for (int i = 0; i < N; i++)
            if (tid + i * CUDA_THREADS < a.dv)
                out[tid + i * CUDA_THREADS] = acc[r][i] * factor;
    }
}

/* A block a query: out = Σ parts, each brought to the common maximum. A split beyond a query's
 * keys has sum 0 and maximum −∞. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    join_kernel(float *out, const float *part, int splits, int dv)
{
    const float *mine = part + (size_t)blockIdx.x * splits * (dv + 2);
    float top = -INFINITY, sum = 0;
    for (int s = 0; s < splits; s++)
        top = fmaxf(top, mine[(size_t)s * (dv + 2)]);
    for (int s = 0; s < splits; s++)
        sum += expf(mine[(size_t)s * (dv + 2)] - top) * mine[(size_t)s * (dv + 2) + 1];
    for (int d = (int)threadIdx.x; d < dv; d += CUDA_THREADS) {
        float y = 0;
        for (int s = 0; s < splits; s++)
            y += expf(mine[(size_t)s * (dv + 2)] - top) * mine[(size_t)s * (dv + 2) + 2 + d];
        out[(size_t)blockIdx.x * dv + d] = y / sum;
    }
}

template <bool half, int N>
static void launch(struct cuda *c, const struct attn_args &a, dim3 grid, size_t bytes)
{
    if (bytes > 48 << 10 &&
        !cuda_ok(c,
                 cudaFuncSetAttribute(attn_kernel<half, N>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                 "shared memory of attention"))
        return;
    LAUNCH((attn_kernel<half, N>), grid, CUDA_THREADS, bytes, c->stream, a);
    cuda_ok(c, cudaGetLastError(), "attention");
}

template <bool half>
static void by_width(struct cuda *c, const struct attn_args &a, dim3 grid, size_t bytes)
{
    if (a.dv <= CUDA_THREADS)
        launch<half, 1>(c, a, grid, bytes);
    else if (a.dv <= 2 * CUDA_THREADS)
        launch<half, 2>(c, a, grid, bytes);
    else if (a.dv <= 4 * CUDA_THREADS)
        launch<half, 4>(c, a, grid, bytes);
    else
        launch<half, 8>(c, a, grid, bytes);
}

/* As many parts as two blocks for each processor need, none below four tiles of keys. */
static int choose_splits(const struct cuda *c, const struct attn_args *a, int blocks)
{
    int keys = a->past + a->T;
    if (a->window && a->window + a->T < keys)
        keys = a->window + a->T;
    int want = (2 * c->processors + blocks - 1) / blocks, most = keys / (4 * KEYS);
    want = want < most ? want : most;
    return want < 1 ? 1 : want > 64 ? 64 : want;
}

static void attend(struct cuda *c, struct attn_args *a, bool half)
{
    int rows = a->T * (a->H / a->G), blocks = (rows + ROWS - 1) / ROWS;
    size_t bytes = (size_t)(ROWS + KEYS) * (size_t)(a->dk | 1) * sizeof(float);
    if (a->v)
        bytes += (size_t)KEYS * (size_t)(a->dv | 1) * sizeof(float);
    if (rows < 1)
        return;
    if (a->dv > MOST_DIMS || bytes + 2048 > c->shared_most) {
        err_set(&c->fault, ERR_UNSUPPORTED,
                "cuda:%d: attention over %d numbers a key and %d a value does not fit: "
                "use --device cpu",
                c->device, a->dk, a->dv);
        return;
    }
    a->splits = choose_splits(c, a, blocks * a->G);
    if (a->splits > 1) {
        size_t n = (size_t)a->T * (size_t)a->H * (size_t)a->splits * (size_t)(a->dv + 2);
        a->part = (float *)cuda_scratch(c, n * sizeof *a->part);
        if (!a->part)
            return;
    }
    dim3 grid((unsigned)blocks, (unsigned)a->G, (unsigned)a->splits);
    if (half)
        by_width<true>(c, *a, grid, bytes);
    else
        by_width<false>(c, *a, grid, bytes);
    if (a->splits > 1) {
        LAUNCH(join_kernel, dim3((unsigned)(a->T * a->H)), CUDA_THREADS, 0, c->stream, a->out,
               a->part, a->splits, a->dv);
        cuda_ok(c, cudaGetLastError(), "joining attention");
    }
}

void cuda_attn_gqa(struct backend *b, const struct attn_gqa_args *g)
{
    struct attn_args a = {.out = g->out,
                          .q = g->q,
                          .q2 = NULL,
                          .k = g->k,
                          .v = g->v,
                          .part = NULL,
                          .T = g->T,
                          .past = g->past,
                          .H = g->H,
                          .G = g->G,
                          .dq = g->d,
                          .dk = g->d,
                          .dv = g->d,
                          .ldk = g->G * g->d,
                          .splits = 1,
                          .window = g->window,
                          .scale = g->scale,
                          .softcap = g->softcap};
    attend((struct cuda *)b, &a, g->kv == DTYPE_F16);
}

void cuda_attn_mla(struct backend *b, const struct attn_mla_args *m)
{
    struct attn_args a = {.out = m->out,
                          .q = m->q_lat,
                          .q2 = m->q_rope,
                          .k = m->cache,
                          .v = NULL,
                          .part = NULL,
                          .T = m->T,
                          .past = m->past,
                          .H = m->H,
                          .G = 1,
                          .dq = m->r,
                          .dk = m->r + m->R,
                          .dv = m->r,
                          .ldk = m->r + m->R,
                          .splits = 1,
                          .window = m->window,
                          .scale = m->scale,
                          .softcap = m->softcap};
    attend((struct cuda *)b, &a, m->kv == DTYPE_F16);
}
