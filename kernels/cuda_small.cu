/* The CUDA backend's small operations: norms, rotation and cache writes, activation and rows. All
 * are bound by memory, or, at one token, by their launch (1 µs in a graph against 0.1 µs of work),
 * so what comes between two products is one launch where it can be: place rotates queries and keys
 * and writes the cache; cuda_gemv.cu takes the activation along. Bytes a number: norm and place 8
 * (6 into an F16 cache), store 6 (F16), glu 12, add 12, scale and softcap 8. */
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

/* Where rows and columns come from a division: 32 bits divide four times as fast as 64, so launches
 * of those take at most MOST_UNITS at a time. */
static const size_t MOST_UNITS = (size_t)1 << 31;

enum { NORM_WARPS = 8, NORM_NARROW = 256 };

/* Σ x² of the numbers of a lane of a team of so many. */
template <int TEAM>
static __device__ __forceinline__ float squares(const float *x, int n, int lane, bool wide)
{
    float sum = 0;
    if (wide)
        for (int i = lane; i < n / 4; i += TEAM) {
            float4 u = ((const float4 *)x)[i];
            sum += u.x * u.x + u.y * u.y + u.z * u.z + u.w * u.w;
        }
    else
        for (int i = lane; i < n; i += TEAM)
            sum += x[i] * x[i];
    return sum;
}

/* A vector for each team of W warps; ld, heads, stride as in head_norm. y and x may be the same: a
 * thread writes what it has read itself. wide: vectors begin at multiples of 16 bytes. */
template <int W>
static __global__ void __launch_bounds__(W == 1 ? CUDA_THREADS : 32 * W)
    norm_kernel(float *y, const float *x, const float *gamma, float eps, int n, size_t ld,
                int heads, size_t stride, int vectors, int wide)
{
    SHARED(float, part, W);
    const int team = 32 * W, lane = (int)threadIdx.x % team;
    int v = W == 1 ? (int)(blockIdx.x * (CUDA_THREADS / 32) + threadIdx.x / 32) : (int)blockIdx.x;
    if (v >= vectors) /* whole warps leave, and only where none waits for the block */
        return;
    size_t at = v / heads * ld + v % heads * stride;
    float sum = warp_sum(squares<team>(x + at, n, lane, wide));
    if (W > 1) {
        if (lane % 32 == 0)
            part[lane / 32] = sum;
        __syncthreads();
        sum = 0;
        for (int w = 0; w < W; w++)
            sum += part[w];
    }
    float scale = 1 / sqrtf(sum / (float)n + eps);
    if (wide)
        for (int i = lane; i < n / 4; i += team) {
            float4 u = ((const float4 *)(x + at))[i], g = ((const float4 *)gamma)[i];
            u.x = u.x * scale * g.x, u.y = u.y * scale * g.y;
            u.z = u.z * scale * g.z, u.w = u.w * scale * g.w;
            ((float4 *)(y + at))[i] = u;
        }
    else
        for (int i = lane; i < n; i += team)
            y[at + i] = x[at + i] * scale * gamma[i];
}

static bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

static void norm(struct backend *b, float *y, const float *x, const float *gamma, float eps, int T,
                 int n, size_t ld, int heads, size_t stride)
{
    struct cuda *c = (struct cuda *)b;
    int vectors = T * heads;
    bool wide =
        n % 4 == 0 && ld % 4 == 0 && stride % 4 == 0 && aligned(y) && aligned(x) && aligned(gamma);
    if (T < 1 || heads < 1)
        return;
    if (n <= NORM_NARROW)
        cuda_launch(c, "norm", norm_kernel<1>, blocks_of((size_t)vectors * 32), CUDA_THREADS, 0, y,
                    x, gamma, eps, n, ld, heads, stride, vectors, wide);
    else
        cuda_launch(c, "norm", norm_kernel<NORM_WARPS>, dim3((unsigned)vectors), 32 * NORM_WARPS, 0,
                    y, x, gamma, eps, n, ld, heads, stride, vectors, wide);
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

static __device__ __forceinline__ void put_number(void *to, bool half, size_t i, float v)
{
    if (half)
        ((uint16_t *)to)[i] = cuda_to_half(v);
    else
        ((float *)to)[i] = v;
}

/* What a launch places: units are numbers that do not rotate and pairs that do. */
struct place_launch {
    struct place_part part[PLACE_PARTS];
    const float *cos, *sin;    /* [T][pairs] */
    const int32_t *past_at;    /* where the position is, or NULL: it is past */
    unsigned end[PLACE_PARTS]; /* units up to and with this part */
    int past, pairs, unused;
};

/* A thread a unit: neighbours take neighbouring numbers of a head. */
static __device__ __forceinline__ void place_unit(const struct place_launch &a,
                                                  const struct place_part &p, unsigned i)
{
    unsigned half = (unsigned)p.R / 2, units = (unsigned)p.n - half, vector = i / units;
    unsigned u = i - vector * units, h = vector % (unsigned)p.heads;
    size_t t = vector / (unsigned)p.heads, row = t;
    if (p.cached)
        row += a.past_at ? *a.past_at : a.past;
    const float *x = p.src + t * p.ld_src + (size_t)h * p.stride_src;
    size_t at = row * p.ld_dst + (size_t)h * p.stride_dst;
    bool f16 = p.type == DTYPE_F16;
    if (u >= half) {
        unsigned j = u - half < (unsigned)p.at ? u - half : u - half + (unsigned)p.R;
        put_number(p.dst, f16, at + j, x[j]);
        return;
    }
    float c = a.cos[t * a.pairs + u], s = a.sin[t * a.pairs + u];
    float re = x[p.at + u], im = x[p.at + u + half];
    put_number(p.dst, f16, at + p.at + u, re * c - im * s);
    put_number(p.dst, f16, at + p.at + u + half, re * s + im * c);
}

static __global__ void __launch_bounds__(CUDA_THREADS)
    place_kernel(const __grid_constant__ struct place_launch a)
{
    unsigned i = (unsigned)own_index();
    if (i < a.end[0])
        place_unit(a, a.part[0], i);
    else if (i < a.end[1])
        place_unit(a, a.part[1], i - a.end[0]);
    else if (i < a.end[2])
        place_unit(a, a.part[2], i - a.end[1]);
}

/* A part of the rows: the tables must fit the ring. */
static struct place_args rows_of(const struct place_args &a, int from, int T)
{
    struct place_args some = a;
    some.T = T;
    some.past += from;
    some.cos += (size_t)from * (size_t)a.pairs;
    some.sin += (size_t)from * (size_t)a.pairs;
    for (int k = 0; k < a.parts; k++) {
        struct place_part *p = &some.part[k];
        p->src += (size_t)from * (size_t)p->ld_src;
        if (!p->cached) /* a cached one moves with past */
            p->dst = (char *)p->dst + dtype_bytes(p->type, (size_t)from * (size_t)p->ld_dst);
    }
    return some;
}

void cuda_place(struct backend *b, const struct place_args *a)
{
    struct cuda *c = (struct cuda *)b;
    const size_t n = (size_t)a->T * (size_t)a->pairs, most = CUDA_RING / (4 * sizeof(float));
    size_t units = 0;
    for (int k = 0; k < a->parts; k++)
        units += (size_t)a->T * (size_t)a->part[k].heads * (size_t)a->part[k].n;
    if ((n > most || units > MOST_UNITS) && a->T > 1) {
        struct place_args first = rows_of(*a, 0, a->T / 2);
        struct place_args rest = rows_of(*a, a->T / 2, a->T - a->T / 2);
        cuda_place(b, &first);
        cuda_place(b, &rest);
        return;
    }
    struct place_launch l = {};
    units = 0;
    for (int k = 0; k < PLACE_PARTS; k++) {
        if (k < a->parts) {
            const struct place_part *p = &l.part[k];
            l.part[k] = a->part[k];
            units += (size_t)a->T * (size_t)p->heads * (size_t)(p->n - p->R / 2);
        }
        l.end[k] = (unsigned)units;
    }
    if (!units)
        return;
    if (n) {
        l.cos = (const float *)cuda_carry(c, a->cos, n * sizeof *l.cos);
        l.sin = (const float *)cuda_carry(c, a->sin, n * sizeof *l.sin);
        l.pairs = a->pairs;
        if (!l.cos || !l.sin)
            return;
    }
    if (!c->step)
        l.past = a->past;
    else
        l.past_at = (const int32_t *)cuda_carry(c, &a->past, sizeof a->past);
    cuda_launch(c, "placing", place_kernel, blocks_of(units), CUDA_THREADS, 0, l);
}

/* A rotation in place is a placing. */
void cuda_rope(struct backend *b, float *x, int ld, int heads, int stride, int R, const float *cos,
               const float *sin, int T)
{
    struct place_args a = {};
    a.part[0] = {x, x, DTYPE_F32, ld, stride, ld, stride, heads, R - R % 2, 0, R - R % 2, 0};
    a.parts = 1, a.T = T, a.pairs = R / 2;
    a.cos = cos, a.sin = sin;
    cuda_place(b, &a);
}

/* PER numbers a thread, n / PER threads a row; 4 of them are read at once. */
template <int PER>
static __global__ void __launch_bounds__(CUDA_THREADS)
    store_kernel(void *dst, bool half, size_t ld_dst, const float *src, size_t ld_src, int n,
                 unsigned all)
{
    unsigned i = (unsigned)own_index(), units = (unsigned)n / PER;
    if (i >= all)
        return;
    size_t t = i / units, j = i % units * PER;
    if (PER == 1) {
        put_number(dst, half, t * ld_dst + j, src[t * ld_src + j]);
        return;
    }
    float4 v = *(const float4 *)(src + t * ld_src + j);
    if (half)
        *(uint2 *)((uint16_t *)dst + t * ld_dst +
                   j) = {cuda_to_half(v.x) | (uint32_t)cuda_to_half(v.y) << 16,
                         cuda_to_half(v.z) | (uint32_t)cuda_to_half(v.w) << 16};
    else
        *(float4 *)((float *)dst + t * ld_dst + j) = v;
}

void cuda_store(struct backend *b, void *dst, enum dtype kv, int ld_dst, const float *src,
                int ld_src, int n, int T)
{
    struct cuda *c = (struct cuda *)b;
    int most = n > 0 ? (int)(MOST_UNITS / (size_t)n) : 0;
    bool wide = n % 4 == 0 && ld_dst % 4 == 0 && ld_src % 4 == 0 && aligned(dst) && aligned(src);
    for (int t = 0; t < T && n > 0; t += most) {
        int rows = T - t < most ? T - t : most;
        size_t all = (size_t)rows * (size_t)n / (wide ? 4 : 1);
        void *to = (char *)dst + dtype_bytes(kv, (size_t)t * (size_t)ld_dst);
        cuda_launch(c, "store", wide ? store_kernel<4> : store_kernel<1>, blocks_of(all),
                    CUDA_THREADS, 0, to, kv == DTYPE_F16, (size_t)ld_dst,
                    src + (size_t)t * (size_t)ld_src, (size_t)ld_src, n, (unsigned)all);
    }
}

static __global__ void __launch_bounds__(CUDA_THREADS)
    glu_kernel(float *y, const float *gate, const float *up, enum glu_act act, size_t n)
{
    size_t i = own_index();
    if (i >= n)
        return;
    y[i] = cuda_act(gate[i], act) * up[i];
}

void cuda_glu(struct backend *b, float *y, const float *gate, const float *up, enum glu_act act,
              size_t n)
{
    struct cuda *c = (struct cuda *)b;
    if (!n)
        return;
    cuda_launch(c, "glu", glu_kernel, blocks_of(n), CUDA_THREADS, 0, y, gate, up, act, n);
}

/* y[i] += x[i mod m]: a bias for every row; or m 0: an addition. */
static __global__ void __launch_bounds__(CUDA_THREADS)
    add_kernel(float *y, const float *x, size_t n, unsigned m)
{
    size_t i = own_index();
    if (i < n)
        y[i] += x[m ? (unsigned)i % m : i];
}

static void add(struct backend *b, float *y, const float *x, size_t n, unsigned m)
{
    struct cuda *c = (struct cuda *)b;
    if (n)
        cuda_launch(c, "add", add_kernel, blocks_of(n), CUDA_THREADS, 0, y, x, n, m);
}

void cuda_add(struct backend *b, float *y, const float *x, size_t n)
{
    add(b, y, x, n, 0);
}

void cuda_add_bias(struct backend *b, float *y, const float *bias, int T, int n)
{
    int most = n > 0 ? (int)(MOST_UNITS / (size_t)n) : 0;
    for (int t = 0; t < T && n > 0; t += most)
        add(b, y + (size_t)t * (size_t)n, bias, (size_t)(T - t < most ? T - t : most) * (size_t)n,
            (unsigned)n);
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
    cuda_launch(c, "scale", scale_kernel, blocks_of(n), CUDA_THREADS, 0, y, factor, cap, n);
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
    rows_kernel(float *y, const float *x, const int32_t *rows, const float *factor, unsigned n,
                unsigned all)
{
    unsigned i = (unsigned)own_index();
    if (i >= all)
        return;
    unsigned t = i / n, j = i % n;
    size_t at = (size_t)rows[t] * n + j;
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
    const int units = n > 0 ? (int)(MOST_UNITS / (size_t)n) : 0;
    const int most = units < CUDA_RING / 16 ? units : CUDA_RING / 16;
    for (int t = 0; t < T && n > 0; t += most) {
        int m = T - t < most ? T - t : most;
        size_t all = (size_t)m * (size_t)n, at = (size_t)t * (size_t)n;
        const int32_t *ids = (const int32_t *)cuda_carry(c, rows + t, (size_t)m * sizeof *rows);
        const float *f = NULL;
        if (ids && factor)
            f = (const float *)cuda_carry(c, factor + t, (size_t)m * sizeof *factor);
        if (!ids || (factor && !f))
            return;
        cuda_launch(c, "rows", rows_kernel, blocks_of(all), CUDA_THREADS, 0, factor ? y : y + at,
                    factor ? x + at : x, ids, f, (unsigned)n, (unsigned)all);
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
