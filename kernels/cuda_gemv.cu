/* The CUDA backend's products for up to CUDA_FEW rows of activations: weights are dequantised as
 * they are read, once for all rows. A warp makes two numbers of the result, so that the activations
 * that it reads serve two rows of the weight; weights that share an input go in one launch, and so
 * do the gate, the product beside it and the activation. Refuses nothing: shapes were checked.
 *
 * Roofline: the weight's bytes. Of an H100's 3.35 TB/s, whole model: Llama-3-8B (8.0e9 numbers) 4.8
 * ms a token in 16 bits, 2.5 ms in Q8_0, 1.5 ms in Q4_1; Llama-2-7B 4.0, 2.1, 1.3 ms; 70B in Q4_K
 * 12 ms. To keep a processor's 25 GB/s coming for 700 ns takes 18 KB under way; 1024 threads (64
 * registers) with 16 bytes for each of two rows have 32 KB, with the 8 of quants 16 KB and as much
 * again of the next round, which the loop's unrolling begins early. Instructions a warp and 512
 * numbers, counted in the code for 9.0: Q8_0 some 65, Q4_1 75 (16 byte permutations, 30 additions,
 * 18 FMA, 6 loads), at 4 a clock 34 and 17 bytes a clock and processor: 7.8 and 3.9 TB/s at 132 of
 * them and 1.75 GHz, so Q4 comes near its bound on an H100 and would be held by it on an
 * H200's 4.8. Activations come from L1, 1 KB for two rows of 256 numbers. None of it measured. */
#include "kernels/cuda_quant.h"

enum { WARPS = CUDA_THREADS / 32, GEMV_PARTS = 3 };

/* A weight and where its products go. Number i of a row comes from the weight's row i / per · gap +
 * first + i mod per, and reads the input from (i / per)·cols on: one matrix a head, or all one
 * matrix with per = rows. */
struct gemv_part {
    struct cuda_rows w;
    float *y;
    int ldy, pairs; /* pairs of rows, none across heads */
    int per, first, gap, unused;
};
struct gemv_args {
    struct gemv_part part[GEMV_PARTS];
    const float *x;
    int parts, pairs, cols, T, ldx;
    int add;  /* y += */
    int wide; /* x may be read 16 bytes at a time */
    int act;  /* with glu: part 0 is the gate, part 1 what it multiplies */
};

static __device__ __forceinline__ void load_x(const float *x, int left, bool wide, float *v)
{
    if (wide) {
        float4 a = ((const float4 *)x)[0], b = ((const float4 *)x)[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        return;
    }
    for (int j = 0; j < 8; j++)
        v[j] = j < left ? x[j] : 0;
}

/* Σ x·(v·d + m), sum of x given. */
template <enum dtype type>
static __device__ __forceinline__ float dot8(const struct cuda_eight &w, const float *x, float all)
{
    float s = 0;
    for (int j = 0; j < 8; j++)
        s += w.v[j] * x[j];
    if (cuda_has_m(type))
        return s * w.d + all * w.m;
    return type <= DTYPE_BF16 ? s : s * w.d;
}

/* Two rows of weights times N rows of activations from x on, over this lane's columns. */
template <enum dtype type, int N>
static __device__ __forceinline__ void sums(const struct gemv_args &a, struct cuda_row w0,
                                            struct cuda_row w1, const float *x, int left, float *s0,
                                            float *s1)
{
    const int i = (int)threadIdx.x % 32 * 8;
    x += i;
#ifdef __CUDACC__
#pragma unroll(N == 1 && type > DTYPE_BF16 ? 2 : 1)
#endif
    for (int cols = a.cols; cols > i; cols -= 256, x += 256) {
        struct cuda_eight u = load8<type>(w0, i, cols), v = load8<type>(w1, i, cols);
#ifdef __CUDACC__
#pragma unroll
#endif
        for (int t = 0; t < N; t++) {
            float y[8], all = 0;
            if (t >= left)
                continue;
            load_x(x + (size_t)t * a.ldx, cols - i, a.wide, y);
            for (int j = 0; cuda_has_m(type) && j < 8; j++)
                all += y[j];
            s0[t] += dot8<type>(u, y, all);
            s1[t] += dot8<type>(v, y, all);
        }
        w0.body += cuda_round<type>::body, w1.body += cuda_round<type>::body;
        w0.head += cuda_round<type>::head, w1.head += cuda_round<type>::head;
    }
}

static __device__ __forceinline__ void give(float *y, float v, bool add)
{
    *y = add ? *y + v : v;
}

/* A warp a pair of rows, N rows of activations at a time. GLU: the pair is row i of both weights.
 */
template <enum dtype type, int N, bool GLU>
static __global__ void __launch_bounds__(CUDA_THREADS, N == 1 ? 8 : 4)
    gemv_kernel(const __grid_constant__ struct gemv_args a)
{
    int i = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32, t0 = (int)blockIdx.y * N, k = 0;
    if (i >= a.pairs) /* whole warps leave, and nothing below waits for the block */
        return;
    while (!GLU && k + 1 < a.parts && i >= a.part[k].pairs)
        i -= a.part[k++].pairs;
    const struct gemv_part &p = a.part[k], &q = a.part[GLU ? 1 : k];
    int half = GLU ? p.per : (p.per + 1) / 2, head = i / half, j = i % half * (GLU ? 1 : 2);
    bool two = GLU || j + 1 < p.per;
    size_t row = (size_t)head * p.gap + p.first + j;
    struct cuda_row w0 = cuda_row_at(p.w, row), w1 = cuda_row_at(q.w, row + (!GLU && two));
    const float *x = a.x + (size_t)t0 * a.ldx + (size_t)head * a.cols;
    float s0[N], s1[N];
    for (int t = 0; t < N; t++)
        s0[t] = s1[t] = 0;
    sums<type, N>(a, w0, w1, x, a.T - t0, s0, s1);
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int t = 0; t < N; t++) {
        if (t0 + t >= a.T)
            continue;
        float v = warp_sum(s0[t]), u = warp_sum(s1[t]);
        float *y = p.y + (size_t)(t0 + t) * p.ldy + (size_t)head * p.per + j;
        if (threadIdx.x % 32)
            continue;
        if (GLU) {
            *y = cuda_act(v, (enum glu_act)a.act) * u;
            continue;
        }
        give(y, v, a.add);
        if (two)
            give(y + 1, u, a.add);
    }
}

template <enum dtype type> static void gemv(struct cuda *c, const struct gemv_args &a, bool glu)
{
    dim3 one((unsigned)((a.pairs + WARPS - 1) / WARPS));
    dim3 few(one.x, (unsigned)((a.T + CUDA_FEW - 1) / CUDA_FEW));
    static const char *const what = "a matrix and a vector";
    if (a.T == 1 && glu)
        cuda_launch(c, what, gemv_kernel<type, 1, true>, one, CUDA_THREADS, 0, a);
    else if (a.T == 1)
        cuda_launch(c, what, gemv_kernel<type, 1, false>, one, CUDA_THREADS, 0, a);
    else if (glu)
        cuda_launch(c, what, gemv_kernel<type, CUDA_FEW, true>, few, CUDA_THREADS, 0, a);
    else
        cuda_launch(c, what, gemv_kernel<type, CUDA_FEW, false>, few, CUDA_THREADS, 0, a);
}

static struct gemv_args args_of(const float *x, int cols, int ldx, int T, bool add)
{
    struct gemv_args a = {};
    a.x = x, a.cols = cols, a.ldx = ldx, a.T = T, a.add = add;
    a.wide = cols % 8 == 0 && ldx % 4 == 0 && (uintptr_t)x % 16 == 0;
    return a;
}

/* The whole of a weight as a part. */
static struct gemv_part part_of(const struct matrix *m, float *y)
{
    return {cuda_rows_of(m), y, m->rows, (m->rows + 1) / 2, m->rows, 0, 0, 0};
}

void cuda_gemv(struct cuda *c, int n, const struct weight *const *w, float *const *y,
               const float *x, int T, bool add)
{
    for (int i = 0; i < n;) {
        const struct matrix *m = cuda_weight(c, w[i]);
        struct gemv_args a = args_of(x, m->cols, m->cols, T, add);
        do { /* a weight that streams is good for one launch only */
            a.part[a.parts] = part_of(cuda_weight(c, w[i]), y[i]);
            a.pairs += a.part[a.parts++].pairs;
        } while (++i < n && a.parts < GEMV_PARTS && !w[i]->streams && !w[i - 1]->streams &&
                 w[i]->m.dtype == m->dtype);
        CUDA_BY_TYPE(m->dtype, gemv, c, a, false);
    }
}

bool cuda_gemv_glu(struct cuda *c, const struct weight *gate, const struct weight *up,
                   enum glu_act act, const float *x, int T, float *y)
{
    if (gate->streams || up->streams || gate->m.dtype != up->m.dtype)
        return false;
    struct gemv_args a = args_of(x, gate->m.cols, gate->m.cols, T, false);
    a.part[0] = part_of(&gate->m, y);
    a.part[1] = part_of(&up->m, NULL);
    a.parts = 2, a.pairs = gate->m.rows, a.act = act;
    CUDA_BY_TYPE(gate->m.dtype, gemv, c, a, true);
    return true;
}

/* Values out of latents: a product a head, each with its own rows and its own input. */
void cuda_mla_expand(struct backend *b, float *out, const float *lat, const struct weight *kv_b,
                     int H, int P, int Vd, int r, int T)
{
    struct cuda *c = (struct cuda *)b;
    if (T < 1 || H * Vd < 1)
        return;
    const struct matrix *m = cuda_weight(c, kv_b);
    struct gemv_args a = args_of(lat, r, H * r, T, false);
    a.pairs = H * ((Vd + 1) / 2);
    a.part[0] = {cuda_rows_of(m), out, H * Vd, a.pairs, Vd, P, P + Vd, 0};
    a.parts = 1;
    CUDA_BY_TYPE(m->dtype, gemv, c, a, false);
}
