/* Attention over F16 caches on tensor cores, GQA and absorbed MLA, whose latent rows are read once
 * as key and value. A block takes 16 queries of a KV head, (token, head of the group) in order, and
 * 32 keys at a time. Halves hold the cache exactly; queries and weights go in as two halves each,
 * the second what the first rounds off, so that products are exact to 2⁻²² and sums are fp32: the
 * results are fp32's, for twice the multiplications. Queries are brought to 1 … 2 by a power of two
 * first, so that no half overflows.
 *
 * The four warps share the inner products by columns (each reads its quarter of the queries once
 * for all 32 keys and adds up through shared memory) and the values by columns too. cp.async brings
 * the next keys while these are worked on, where there is room for a second buffer without giving
 * up a processor's second block, which hides loads as well. Refuses (false) values wider than 512
 * numbers and rows beyond shared memory.
 *
 * Roofline: the cache's bytes; FLOPs 2·2·h·(2r + R) a key with the second halves. At h = 32, r =
 * 512, R = 64, F16: 1152 bytes and 140 kFLOP a key, 121 FLOP a byte, of 220 to 290 that an H100 has
 * to give. Clocks of a tile of 32 keys and 16 queries (37 KB) on a processor: shared memory 900 (36
 * steps of 16, four warps of 80), products 550 to 1100 (72 and 64 a warp at 4 to 8 clocks); two
 * blocks overlap them: about 1000, 37 bytes a clock, 8.5 TB/s for 16 heads on 132 processors
 * at 1.75 GHz, 4.2 TB/s for 32, 2.1 for 64. Batch 1, 4k, h = 32: 4.7 MB of cache 1.4 µs at 3.35
 * TB/s, parts of 64 splits 4.2 MB to and from L2 2 µs, latency of two tiles and two launches 4 µs:
 * about 8 µs a layer expected, aim ≤ 10. GQA of Llama-3-8B (8 heads of 128, 16 MiB a layer at 4k) 5
 * µs of bytes. None of it measured. */
#include "kernels/cuda_attn.h"
#include "kernels/cuda_mma.h"

enum {
    ROWS = 16,
    KEYS = 32,
    WARPS = CUDA_THREADS / 32,
    LEAST = 2, /* tiles of a split */
    S_PITCH = KEYS + 4,
    P_PITCH = KEYS + 8,
    PAD = 8, /* halves beyond a row of a tile: 8 rows lie in different banks then */
};

static __host__ __device__ __forceinline__ int pitch_of(int n)
{
    return (n + 15) / 16 * 16 + PAD;
}

/* A row's place among the threads of its team: 8 threads a row or 4 a key. */
struct team {
    int row, lane;
};

/* tile[key][0 … n) = n halves of cache rows from … , zeros from `to` on. */
static __device__ __forceinline__ void load_keys(uint16_t *tile, int pitch, const void *cache,
                                                 size_t ld, size_t at, int n, int from, int to,
                                                 bool wide)
{
    int key = (int)threadIdx.x / 4, lane = (int)threadIdx.x % 4;
    bool valid = from + key < to;
    const uint16_t *row = (const uint16_t *)cache + (size_t)(valid ? from + key : 0) * ld + at;
    uint16_t *dst = tile + key * pitch;
    if (wide)
        for (int i = lane * 8; i < n; i += 32)
            copy16(dst + i, row + i, valid);
    else
        for (int i = lane; i < n; i += 4)
            dst[i] = valid ? row[i] : 0;
}

/* Zeros behind the n numbers of each of the rows. */
static __device__ __forceinline__ void clear_ends(uint16_t *tile, int pitch, int n, int rows)
{
    for (int r = (int)threadIdx.x / 4; r < rows; r += CUDA_THREADS / 4)
        for (int i = n + (int)threadIdx.x % 4; i < pitch; i += 4)
            tile[r * pitch + i] = 0;
}

static __device__ __forceinline__ float team_max(float v)
{
    for (int other = 4; other; other /= 2)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, other));
    return v;
}

static __device__ __forceinline__ float team_sum(float v)
{
    for (int other = 4; other; other /= 2)
        v += __shfl_xor_sync(~0u, v, other);
    return v;
}

/* v as the sum of two halves. */
static __device__ __forceinline__ void halve(float v, uint16_t *high, uint16_t *low)
{
    *high = cuda_to_half(v);
    *low = cuda_to_half(v - cuda_half(*high));
}

/* This team's query into both halves of q, brought to 1 … 2; returns by what. */
static __device__ __forceinline__ float load_query(const struct attn_args &a, uint16_t *q,
                                                   int pitch, int g, int i, bool in)
{
    int row = (int)threadIdx.x / 8, lane = (int)threadIdx.x % 8;
    float most = 0;
    for (int j = lane; j < a.dk && in; j += 8)
        most = fmaxf(most, fabsf(attn_query(a, g, i, j)));
    uint32_t exponent = cuda_word(team_max(most)) & 0x7f800000u;
    exponent = exponent < 0x00800000u   ? 0x00800000u
               : exponent > 0x7e000000u ? 0x7e000000u
                                        : exponent;
    float factor = cuda_bits(0x7f000000u - exponent); /* of two to the minus that power */
    for (int j = lane; j < a.dk; j += 8) {
        float v = in ? attn_query(a, g, i, j) * factor : 0;
        halve(v, q + row * pitch + j, q + (ROWS + row) * pitch + j);
    }
    return cuda_bits(exponent);
}

static __device__ __forceinline__ uint32_t pair_at(const uint16_t *p)
{
    return *(const uint32_t *)p;
}

/* A fragment of 16 rows from column k on. */
static __device__ __forceinline__ void load_a(uint32_t *f, const uint16_t *tile, int pitch, int k)
{
    int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    const uint16_t *p = tile + g * pitch + k + 2 * t;
    f[0] = pair_at(p), f[1] = pair_at(p + 8 * pitch);
    f[2] = pair_at(p + 8), f[3] = pair_at(p + 8 * pitch + 8);
}

/* This warp's share of the inner products of all rows and keys, into s[ROWS][S_PITCH]. */
static __device__ __forceinline__ void inner_products(float *s, const uint16_t *q,
                                                      const uint16_t *k, int pitch, int steps)
{
    int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    float sum[KEYS / 8][4] = {};
    for (int i = (int)threadIdx.x / 32; i < steps; i += WARPS) {
        uint32_t high[4], low[4];
        load_a(high, q, pitch, 16 * i);
        load_a(low, q + ROWS * pitch, pitch, 16 * i);
#ifdef __CUDACC__
#pragma unroll
#endif
        for (int n = 0; n < KEYS / 8; n++) {
            const uint16_t *p = k + (8 * n + g) * pitch + 16 * i + 2 * t;
            uint32_t b[2] = {pair_at(p), pair_at(p + 8)};
            mma(sum[n], high, b);
            mma(sum[n], low, b);
        }
    }
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int n = 0; n < KEYS / 8; n++) {
        float *to = s + g * S_PITCH + 8 * n + 2 * t;
        to[0] = sum[n][0], to[1] = sum[n][1];
        to[8 * S_PITCH] = sum[n][2], to[8 * S_PITCH + 1] = sum[n][3];
    }
}

/* What a team of 8 threads knows of its query. */
struct softmax {
    float top, sum, scale;
    int pos; /* of the query */
};

/* Four of the row's logits into weights; returns by what earlier sums shrink. */
static __device__ __forceinline__ float weigh(const struct attn_args &a, struct softmax *m,
                                              const float *s, uint16_t *p, int from, int to)
{
    int row = (int)threadIdx.x / 8, first = (int)threadIdx.x % 8 * 4;
    float x[4], high = m->top, all = 0;
    for (int j = 0; j < 4; j++) {
        const float *v = s + row * S_PITCH + first + j;
        x[j] = 0;
        for (int w = 0; w < WARPS; w++)
            x[j] += v[w * ROWS * S_PITCH];
        x[j] *= m->scale;
        if (a.softcap > 0)
            x[j] = a.softcap * tanhf(x[j] / a.softcap);
        int n = from + first + j;
        bool seen = n < to && n <= m->pos && (!a.window || n > m->pos - a.window);
        x[j] = seen ? x[j] : -INFINITY;
        high = fmaxf(high, x[j]);
    }
    high = team_max(high);
    float keep = m->top > -INFINITY ? expf(m->top - high) : 0; /* high is finite when top is */
    for (int j = 0; j < 4; j++) {
        x[j] = x[j] > -INFINITY ? expf(x[j] - high) : 0;
        all += x[j];
        halve(x[j], p + row * P_PITCH + first + j, p + (ROWS + row) * P_PITCH + first + j);
    }
    m->sum = m->sum * keep + team_sum(all);
    m->top = high;
    return keep;
}

/* acc = acc · shrink + weights · values, this warp's columns of them. */
template <int N>
static __device__ __forceinline__ void add_values(float acc[][4], const float *shrink,
                                                  const uint16_t *p, const uint16_t *v, int pitch,
                                                  int dv)
{
    int lane = (int)threadIdx.x % 32, col0 = (int)threadIdx.x / 32 * 8 * N;
    uint32_t high[2][4], low[2][4];
    float s0 = shrink[lane / 4], s1 = shrink[lane / 4 + 8];
    for (int i = 0; i < 2; i++) {
        load_a(high[i], p, P_PITCH, 16 * i);
        load_a(low[i], p + ROWS * P_PITCH, P_PITCH, 16 * i);
    }
    const uint16_t *mine = v + lane % 16 * pitch + col0 + lane / 16 * 8;
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int n = 0; n < N; n += 2) {
        if (col0 + 8 * n >= dv)
            continue;
        for (int j = n; j < n + 2; j++)
            acc[j][0] *= s0, acc[j][1] *= s0, acc[j][2] *= s1, acc[j][3] *= s1;
        for (int i = 0; i < 2; i++) {
            uint32_t b[4];
            load_transposed(b, mine + 16 * i * pitch + 8 * n);
            mma(acc[n], high[i], b);
            mma(acc[n], low[i], b);
            mma(acc[n + 1], high[i], b + 2);
            mma(acc[n + 1], low[i], b + 2);
        }
    }
}

/* Rows g and g + 8 of this warp's columns, as parts or finished. */
template <int N>
static __device__ __forceinline__ void give(const struct attn_args &a, const float acc[][4],
                                            const float *sums, int group, int row0)
{
    int lane = (int)threadIdx.x % 32, per = a.H / a.G, rows = a.T * per;
    for (int r = 0; r < 2; r++) {
        int i = row0 + lane / 4 + 8 * r, col0 = (int)threadIdx.x / 32 * 8 * N + lane % 4 * 2;
        if (i >= rows)
            continue;
        size_t at = (size_t)(i / per) * a.H + group * per + i % per;
        float *part = a.part ? a.part + (at * a.splits + blockIdx.z) * (a.dv + 2) : nullptr;
        float *out = part ? part + 2 : a.out + at * a.dv;
        float factor = part ? 1 : 1 / sums[lane / 4 + 8 * r];
#ifdef __CUDACC__
#pragma unroll
#endif
        for (int n = 0; n < N; n++)
            for (int j = 0; j < 2; j++)
                if (col0 + 8 * n + j < a.dv)
                    out[col0 + 8 * n + j] = acc[n][2 * r + j] * factor;
    }
}

struct mma_args {
    struct attn_args a;
    int stages, wide_k, wide_v, unused;
};

/* N: pieces of 8 columns of the output that a warp has. */
template <int N>
static __global__ void __launch_bounds__(CUDA_THREADS, N <= 8 ? 3 : 2)
    mma_kernel(const __grid_constant__ struct mma_args m)
{
    SHARED_DYNAMIC(uint16_t, shared);
    SHARED(float, s, WARPS *ROWS *S_PITCH);
    SHARED(uint32_t, weights, ROWS * P_PITCH); /* two halves each */
    SHARED(float, shrink, ROWS);
    const struct attn_args &a = m.a;
    uint16_t *p = (uint16_t *)weights;
    const int pitch = pitch_of(a.dk), vpitch = a.v ? pitch_of(a.dv) : pitch;
    const int tid = (int)threadIdx.x, group = (int)blockIdx.y, row0 = (int)blockIdx.x * ROWS;
    const int per = a.H / a.G, i = row0 + tid / 8, past = attn_past(a);
    uint16_t *q = shared, *keys = q + 2 * ROWS * pitch, *values = keys + m.stages * KEYS * pitch;
    int from, to;
    attn_range<KEYS>(a, past, row0, ROWS, LEAST, &from, &to);
    if (a.part && from >= to) { /* a split without keys: all threads leave */
        if (tid % 8 == 0 && i < a.T * per) {
            size_t at = (size_t)(i / per) * a.H + group * per + i % per;
            float *part = a.part + (at * a.splits + blockIdx.z) * (a.dv + 2);
            part[0] = -INFINITY, part[1] = 0;
        }
        return;
    }
    auto load = [&](int first, int stage) {
        load_keys(keys + stage * KEYS * pitch, pitch, a.k, (size_t)a.ldk, (size_t)group * a.dk,
                  a.dk, first, to, m.wide_k);
        if (a.v)
            load_keys(values + stage * KEYS * vpitch, vpitch, a.v, (size_t)a.ldk,
                      (size_t)group * a.dv, a.dv, first, to, m.wide_v);
        copies_end();
    };
    load(from, 0);
    clear_ends(q, pitch, a.dk, 2 * ROWS);
    clear_ends(keys, pitch, a.dk, m.stages * KEYS);
    if (a.v)
        clear_ends(values, vpitch, a.dv, m.stages * KEYS);
    struct softmax soft = {-INFINITY, 0, 0, past + i / per};
    soft.scale = load_query(a, q, pitch, group, i, i < a.T * per) * a.scale;
    float acc[N][4] = {};
    for (int stage = 0; from < to; from += KEYS) {
        if (m.stages > 1 && from + KEYS < to) {
            load(from + KEYS, stage ^ 1);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        const uint16_t *k = keys + stage * KEYS * pitch;
        inner_products(s + tid / 32 * ROWS * S_PITCH, q, k, pitch, (a.dk + 15) / 16);
        __syncthreads();
        float keep = weigh(a, &soft, s, p, from, to);
        if (tid % 8 == 0)
            shrink[tid / 8] = keep;
        __syncthreads();
        add_values<N>(acc, shrink, p, a.v ? values + stage * KEYS * vpitch : k, vpitch, a.dv);
        __syncthreads();
        if (m.stages > 1)
            stage ^= 1;
        else if (from + KEYS < to)
            load(from + KEYS, 0);
    }
    if (tid % 8 == 0) {
        shrink[tid / 8] = soft.sum;
        size_t at = (size_t)(i / per) * a.H + group * per + i % per;
        if (a.part && i < a.T * per) {
            float *part = a.part + (at * a.splits + blockIdx.z) * (a.dv + 2);
            part[0] = soft.top, part[1] = soft.sum;
        }
    }
    __syncthreads();
    give<N>(a, acc, shrink, group, row0);
}

template <int N>
static void launch(struct cuda *c, const struct mma_args &m, dim3 grid, size_t bytes)
{
    if (bytes > 32 << 10 &&
        !cuda_ok(c,
                 cudaFuncSetAttribute(mma_kernel<N>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes),
                 "shared memory of attention"))
        return;
    cuda_launch(c, "attention", mma_kernel<N>, grid, CUDA_THREADS, bytes, m);
}

bool cuda_attn_mma(struct cuda *c, struct attn_args *a)
{
    enum { FIXED = 16 << 10 }; /* static shared memory and what the system keeps */
    int rows = a->T * (a->H / a->G), blocks = (rows + ROWS - 1) / ROWS;
    size_t q = (size_t)(2 * ROWS * pitch_of(a->dk)) * 2;
    size_t tile = (size_t)(KEYS * (pitch_of(a->dk) + (a->v ? pitch_of(a->dv) : 0))) * 2;
    if (a->dv > 512 || a->v == a->k || q + tile + FIXED > c->shared_most)
        return false;
    struct mma_args m = {*a, 1, 0, 0, 0};
    /* Two blocks a processor hide each other's loads; a second buffer does too, and where only one
     * block fits it must. */
    bool two = 2 * (q + tile + FIXED) <= c->shared_most;
    if (two ? 2 * (q + 2 * tile + FIXED) <= c->shared_most : q + 2 * tile + FIXED <= c->shared_most)
        m.stages = 2;
    bool rows_wide = a->ldk % 8 == 0;
    m.wide_k = rows_wide && a->dk % 8 == 0 && (uintptr_t)a->k % 16 == 0;
    m.wide_v = rows_wide && a->dv % 8 == 0 && (uintptr_t)a->v % 16 == 0;
    m.a.splits = cuda_attn_splits(c, blocks * a->G);
    if (!cuda_attn_parts(c, &m.a))
        return true;
    dim3 grid((unsigned)blocks, (unsigned)a->G, (unsigned)m.a.splits);
    size_t bytes = q + (size_t)m.stages * tile;
    if (a->dv <= 64)
        launch<2>(c, m, grid, bytes);
    else if (a->dv <= 128)
        launch<4>(c, m, grid, bytes);
    else if (a->dv <= 256)
        launch<8>(c, m, grid, bytes);
    else if (a->dv <= 448)
        launch<14>(c, m, grid, bytes);
    else
        launch<16>(c, m, grid, bytes);
    cuda_attn_join(c, &m.a);
    return true;
}
