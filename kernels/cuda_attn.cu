/* The CUDA backend's attention: GQA and absorbed MLA, whose latent rows are read once and used as
 * keys and as values. Softmax is taken online; keys are split over blocks when queries alone do not
 * fill the device, and join adds the parts. F16 caches go to the tensor cores (cuda_attn_mma.cu);
 * what is here takes F32 ones, as calibration has them, and values of more than 512 numbers.
 * Refuses heads wider than MOST_DIMS and rows that do not fit shared memory (a latched fault).
 *
 * A block takes ROWS queries of one KV head, (token, head of the group) in order, and KEYS cache
 * rows at a time: all of a group's heads read a key once from memory, and so do the tokens of a
 * prefill. The inner products run in fp32 from shared memory, two loads for each FMA, some 3
 * TFLOP/s of an H100's 67, which is the bound here: calibration of Llama-3-8B (32,768 tokens in
 * windows of 256) has 2.2e12 FLOP of it, 0.7 s next to 1.3 s of products. join: 4·(dv + 2) bytes a
 * part from L2, 1 to 2 µs. None of it measured. */
#include "kernels/cuda_attn.h"

enum { ROWS = 8, KEYS = 16, LEAST = 4, MOST_DIMS = 8 * CUDA_THREADS };

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
    attn_kernel(const __grid_constant__ struct attn_args a)
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
    const int past = attn_past(a), pos = past + (row0 + row) / per; /* of this thread's query */
    int from, to;
    attn_range<KEYS>(a, past, row0, ROWS, LEAST, &from, &to);
    for (int e = tid; e < ROWS * a.dk; e += CUDA_THREADS) {
        int i = row0 + e / a.dk, j = e % a.dk;
        q[e / a.dk * pitch + j] = i < rows ? attn_query(a, g, i, j) : 0;
    }
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

/* A block a query: out = Σ parts, each brought to the common maximum. A split without keys has sum
 * 0 and maximum −∞, and its values were never written. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    join_kernel(float *out, const float *part, int splits, int dv)
{
    SHARED(float, weight, CUDA_MOST_SPLITS);
    SHARED(float, total, 1);
    const float *mine = part + (size_t)blockIdx.x * splits * (dv + 2);
    int lane = (int)threadIdx.x;
    if (lane < 32) {
        float top = -INFINITY, sum = 0;
        for (int s = lane; s < splits; s += 32)
            top = fmaxf(top, mine[(size_t)s * (dv + 2)]);
        for (int other = 16; other; other /= 2)
            top = fmaxf(top, __shfl_xor_sync(~0u, top, other));
        for (int s = lane; s < splits; s += 32) {
            weight[s] = expf(mine[(size_t)s * (dv + 2)] - top);
            sum += weight[s] * mine[(size_t)s * (dv + 2) + 1];
        }
        sum = warp_sum(sum);
        if (lane == 0)
            total[0] = sum;
    }
    __syncthreads();
    for (int d = lane; d < dv; d += CUDA_THREADS) {
        float y = 0;
        for (int s = 0; s < splits; s++)
            if (weight[s] > 0)
                y += weight[s] * mine[(size_t)s * (dv + 2) + 2 + d];
        out[(size_t)blockIdx.x * dv + d] = y / total[0];
    }
}

int cuda_attn_splits(const struct cuda *c, int blocks)
{
    int want = (2 * c->processors + blocks - 1) / blocks;
    return want < 1 ? 1 : want > CUDA_MOST_SPLITS ? CUDA_MOST_SPLITS : want;
}

bool cuda_attn_parts(struct cuda *c, struct attn_args *a)
{
    size_t n = (size_t)a->T * (size_t)a->H * (size_t)a->splits * (size_t)(a->dv + 2);
    if (a->splits > 1)
        a->part = (float *)cuda_scratch(c, n * sizeof *a->part);
    return a->splits < 2 || a->part;
}

void cuda_attn_join(struct cuda *c, const struct attn_args *a)
{
    if (a->splits > 1)
        cuda_launch(c, "joining attention", join_kernel, dim3((unsigned)(a->T * a->H)),
                    CUDA_THREADS, 0, a->out, a->part, a->splits, a->dv);
}

template <bool half, int N>
static void launch(struct cuda *c, const struct attn_args &a, dim3 grid, size_t bytes)
{
    if (bytes > 40 << 10 && /* beyond 48 KiB, what is static included, it must be asked for */
        !cuda_ok(c,
                 cudaFuncSetAttribute(attn_kernel<half, N>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                 "shared memory of attention"))
        return;
    cuda_launch(c, "attention", (attn_kernel<half, N>), grid, CUDA_THREADS, bytes, a);
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

static void attend(struct cuda *c, struct attn_args *a, bool half)
{
    int rows = a->T * (a->H / a->G), blocks = (rows + ROWS - 1) / ROWS;
    size_t bytes = (size_t)(ROWS + KEYS) * (size_t)(a->dk | 1) * sizeof(float);
    if (a->v)
        bytes += (size_t)KEYS * (size_t)(a->dv | 1) * sizeof(float);
    if (rows < 1)
        return;
    if (c->step) {
        a->past_at = (const int32_t *)cuda_carry(c, &a->past, sizeof a->past);
        a->past = 0;
    }
    if (half && cuda_attn_mma(c, a))
        return;
    if (a->dv > MOST_DIMS || bytes + 2048 > c->shared_most) {
        err_set(&c->fault, ERR_UNSUPPORTED,
                "cuda:%d: attention over %d numbers a key and %d a value does not fit: "
                "use --device cpu",
                c->device, a->dk, a->dv);
        return;
    }
    a->splits = cuda_attn_splits(c, blocks * a->G);
    if (!cuda_attn_parts(c, a))
        return;
    dim3 grid((unsigned)blocks, (unsigned)a->G, (unsigned)a->splits);
    if (half)
        by_width<true>(c, *a, grid, bytes);
    else
        by_width<false>(c, *a, grid, bytes);
    cuda_attn_join(c, a);
}

void cuda_attn_gqa(struct backend *b, const struct attn_gqa_args *g)
{
    struct attn_args a = {.out = g->out,
                          .q = g->q,
                          .q2 = NULL,
                          .k = g->k,
                          .v = g->v,
                          .part = NULL,
                          .past_at = NULL,
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
                          .past_at = NULL,
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
