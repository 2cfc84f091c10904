/* The CUDA backend's matrix products for many rows of activations (up to CUDA_FEW: cuda_gemv.cu): a
 * panel of the weight becomes fp32 and a product of fp32 matrices does the work, cuBLAS where it
 * was found, else gemm here. Also embeddings, and keys absorbed into queries. Refuses nothing:
 * shapes were checked.
 *
 * Roofline. cuBLAS with TF32: 2·N·T FLOPs at 400 TFLOP/s of an H100 at best; 16-bit weights fit
 * TF32 as they are, activations round to 11 bits (exact backends multiply in fp32 instead, at 50).
 * widen: 6 bytes a 16-bit number written and read once more by the product, 10 in all: Llama-3-8B
 * 80 GB = 24 ms of 3.35 TB/s for each block of rows, next to 20 ms of products for 512 rows (a
 * prefill: 11,600 tokens/s expected, half of what 16-bit products would give) and 82 ms for a
 * conversion's 2,048. gemm: 16 FMA for 8 loads from shared memory, some 15 TFLOP/s. absorb: the key
 * half of kv_b, H·P·r numbers, once for 4 tokens: 32 heads of 128 by 512 in BF16 4.2 MB, 1.3 µs.
 * embed: a row. None of it measured. */
#include "kernels/cuda_quant.h"

enum { WARPS = CUDA_THREADS / 32 };

/* dst[rows][cols] = the weight's rows as fp32: row i is row ids[i], or first + i. */
template <enum dtype type>
static __global__ void __launch_bounds__(CUDA_THREADS)
    widen_kernel(float *dst, struct cuda_rows w, const int32_t *ids, int first, int cols,
                 size_t all)
{
    size_t at = (size_t)blockIdx.x * CUDA_THREADS + threadIdx.x;
    int chunks = (cols + 7) / 8;
    if (at >= all)
        return;
    size_t row = at / chunks;
    int i = (int)(at % chunks) * 8;
    struct cuda_row from = cuda_row_at(w, (size_t)(ids ? ids[row] : first + (int)row));
    struct cuda_eight e = whole8<type>(from, i, cols);
    if (cols % 4 == 0 && i + 8 <= cols) {
        float4 *to = (float4 *)(dst + row * cols + i);
        to[0] = {e.v[0], e.v[1], e.v[2], e.v[3]};
        to[1] = {e.v[4], e.v[5], e.v[6], e.v[7]};
        return;
    }
    for (int j = 0; j < 8 && i + j < cols; j++)
        dst[row * cols + i + j] = e.v[j];
}

template <enum dtype type>
static void widen(struct cuda *c, float *dst, const struct matrix *m, const int32_t *ids, int first,
                  int rows)
{
    size_t all = (size_t)rows * (size_t)((m->cols + 7) / 8);
    cuda_launch(c, "dequantising", widen_kernel<type>,
                dim3((unsigned)((all + CUDA_THREADS - 1) / CUDA_THREADS)), CUDA_THREADS, 0, dst,
                cuda_rows_of(m), ids, first, m->cols, all);
}

static void embed_from_host(struct cuda *c, float *y, const struct matrix *m, const int32_t *ids,
                            int T)
{
    size_t cols = (size_t)m->cols, row = dtype_bytes(m->dtype, cols);
    float *host = (float *)mem_calloc((size_t)T * cols, sizeof *host);
    if (!host) {
        err_nomem(&c->fault, (size_t)T * cols * sizeof *host, "embeddings");
        return;
    }
    for (int t = 0; t < T; t++)
        dtype_to_f32(m->dtype, (const char *)m->data + (size_t)ids[t] * row,
                     host + (size_t)t * cols, cols);
    cuda_upload(c, y, host, (size_t)T * cols * sizeof *host);
    free(host);
}

void cuda_embed(struct backend *b, float *y, const struct weight *w, const int32_t *ids, int T)
{
    struct cuda *c = (struct cuda *)b;
    const int most = CUDA_RING / 16;
    if (w->streams) { /* a few rows of a large matrix: from where it is */
        embed_from_host(c, y, &w->host, ids, T);
        return;
    }
    for (int t = 0; t < T; t += most) {
        int n = T - t < most ? T - t : most;
        const int32_t *at = (const int32_t *)cuda_carry(c, ids + t, (size_t)n * sizeof *ids);
        if (!at)
            return;
        CUDA_BY_TYPE(w->m.dtype, widen, c, y + (size_t)t * w->m.cols, &w->m, at, 0, n);
    }
}

enum { TILE = 64, DEPTH = 16, GEMM_THREADS = 256, PITCH = TILE + 4 };

struct gemm_args {
    const float *w, *x;
    float *y;
    int rows, T, cols;
    size_t ldy;
    bool add;
};

/* tile[k][i] = m[first + i][k0 + k], zeros beyond the matrix. */
static __device__ __forceinline__ void load_tile(float *tile, const float *m, int first, int rows,
                                                 int k0, int cols)
{
    for (int e = (int)threadIdx.x; e < TILE * DEPTH; e += GEMM_THREADS) {
        int i = e / DEPTH, k = e % DEPTH;
        bool in = first + i < rows && k0 + k < cols;
        tile[k * PITCH + i] = in ? m[(size_t)(first + i) * cols + k0 + k] : 0;
    }
}

/* A block makes 64 x 64 numbers of y, a thread 4 x 4 of them. */
static __global__ void __launch_bounds__(GEMM_THREADS) gemm_kernel(struct gemm_args a)
{
    SHARED(float, tx, DEPTH *PITCH);
    SHARED(float, tw, DEPTH *PITCH);
    int row0 = (int)blockIdx.x * TILE, t0 = (int)blockIdx.y * TILE;
    int r = (int)threadIdx.x % 16 * 4, t = (int)threadIdx.x / 16 * 4;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < a.cols; k0 += DEPTH) {
        load_tile(tx, a.x, t0, a.T, k0, a.cols);
        load_tile(tw, a.w, row0, a.rows, k0, a.cols);
        __syncthreads();
        for (int k = 0; k < DEPTH; k++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++)
                    sum[i][j] += tx[k * PITCH + t + i] * tw[k * PITCH + r + j];
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            if (t0 + t + i >= a.T || row0 + r + j >= a.rows)
                continue;
            float *y = a.y + (size_t)(t0 + t + i) * a.ldy + row0 + r + j;
            *y = a.add ? *y + sum[i][j] : sum[i][j];
        }
}

static void gemm(struct cuda *c, const struct gemm_args &a)
{
    if (c->blas.handle) {
        if (cuda_blas_gemm(&c->blas, c->exact, a.rows, a.T, a.cols, a.w, a.x, a.y, (int)a.ldy,
                           a.add))
            err_set(&c->fault, ERR_DEVICE, "cuda:%d: cuBLAS failed: use --device cpu", c->device);
        return;
    }
    dim3 grid((unsigned)((a.rows + TILE - 1) / TILE), (unsigned)((a.T + TILE - 1) / TILE));
    cuda_launch(c, "a matrix product", gemm_kernel, grid, GEMM_THREADS, 0, a);
}

static void product(struct cuda *c, const struct matrix *m, float *y, const float *x, int T,
                    bool add)
{
    int step = CUDA_PANEL / m->cols < 1 ? 1 : CUDA_PANEL / m->cols;
    step = m->dtype == DTYPE_F32 || step > m->rows ? m->rows : step;
    float *panel = NULL;
    if (m->dtype != DTYPE_F32) {
        panel = (float *)cuda_scratch(c, (size_t)step * (size_t)m->cols * sizeof *panel);
        if (!panel)
            return;
    }
    for (int row = 0; row < m->rows; row += step) {
        int n = m->rows - row < step ? m->rows - row : step;
        if (panel)
            CUDA_BY_TYPE(m->dtype, widen, c, panel, m, NULL, row, n);
        struct gemm_args a = {.w = panel ? panel : (const float *)m->data,
                              .x = x,
                              .y = y + row,
                              .rows = n,
                              .T = T,
                              .cols = m->cols,
                              .ldy = (size_t)m->rows,
                              .add = add};
        gemm(c, a);
    }
}

void cuda_linear(struct backend *b, int n, const struct weight *const *w, float *const *y,
                 const float *x, int T, bool add)
{
    struct cuda *c = (struct cuda *)b;
    if (T > 0 && T <= CUDA_FEW)
        cuda_gemv(c, n, w, y, x, T, add);
    for (int i = 0; i < n && T > CUDA_FEW; i++)
        product(c, cuda_weight(c, w[i]), y[i], x, T, add);
}

void cuda_glu_linear(struct backend *b, float *gate, float *up, const struct weight *w_gate,
                     const struct weight *w_up, enum glu_act act, const float *x, int T)
{
    struct cuda *c = (struct cuda *)b;
    if (T <= CUDA_FEW && cuda_gemv_glu(c, w_gate, w_up, act, x, T, gate))
        return;
    const struct weight *const w[] = {w_gate, w_up};
    float *const y[] = {gate, up};
    cuda_linear(b, 2, w, y, x, T, false);
    cuda_glu(b, gate, gate, up, act, (size_t)T * (size_t)w_gate->m.rows);
}

enum { ABSORB_TOKENS = 4 };

struct absorb_args {
    struct cuda_rows w;
    const float *q;
    float *y;
    size_t ld, stride;
    int H, P, Vd, r, T, unused;
};

/* q_lat of 256 columns, one head, 4 tokens: a warp sums a quarter of the head's P key rows, a lane
 * has 8 columns. */
template <enum dtype type>
static __global__ void __launch_bounds__(CUDA_THREADS, 4) absorb_kernel(struct absorb_args a)
{
    SHARED(float, part, WARPS * 256);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, h = (int)blockIdx.y;
    int col = (int)blockIdx.x * 256 + lane * 8, t0 = (int)blockIdx.z * ABSORB_TOKENS;
    float sum[ABSORB_TOKENS][8] = {};
    for (int j = warp; j < a.P && col < a.r; j += WARPS) {
        struct cuda_row row = cuda_row_at(a.w, (size_t)h * (a.P + a.Vd) + j);
        struct cuda_eight e = whole8<type>(row, col, a.r);
        for (int t = 0; t < ABSORB_TOKENS; t++) {
            if (t0 + t >= a.T)
                continue;
            float q = a.q[(t0 + t) * a.ld + h * a.stride + j];
            for (int k = 0; k < 8; k++)
                sum[t][k] += q * e.v[k];
        }
    }
    for (int t = 0; t < ABSORB_TOKENS && t0 + t < a.T; t++) {
        for (int k = 0; k < 8; k++)
            part[warp * 256 + k * 32 + lane] = sum[t][k];
        __syncthreads();
        float *y = a.y + ((size_t)(t0 + t) * a.H + h) * a.r + (size_t)blockIdx.x * 256;
        for (int e = (int)threadIdx.x; e < 256; e += CUDA_THREADS) {
            float s = 0;
            for (int w = 0; w < WARPS; w++)
                s += part[w * 256 + e % 8 * 32 + e / 8];
            if ((int)blockIdx.x * 256 + e < a.r)
                y[e] = s;
        }
        __syncthreads();
    }
}

template <enum dtype type> static void absorb(struct cuda *c, const struct absorb_args &a)
{
    dim3 grid((unsigned)((a.r + 255) / 256), (unsigned)a.H,
              (unsigned)((a.T + ABSORB_TOKENS - 1) / ABSORB_TOKENS));
    cuda_launch(c, "absorbing keys", absorb_kernel<type>, grid, CUDA_THREADS, 0, a);
}

void cuda_mla_absorb(struct backend *b, float *q_lat, const float *q, int ld, int stride,
                     const struct weight *kv_b, int H, int P, int Vd, int r, int T)
{
    struct cuda *c = (struct cuda *)b;
    /* The grid's third side ends at 65535. */
    const int most = 65535 * ABSORB_TOKENS;
    const struct matrix *m = cuda_weight(c, kv_b);
    for (int t = 0; t < T; t += most) {
        struct absorb_args a = {.w = cuda_rows_of(m),
                                .q = q + (size_t)t * ld,
                                .y = q_lat + (size_t)t * H * r,
                                .ld = (size_t)ld,
                                .stride = (size_t)stride,
                                .H = H,
                                .P = P,
                                .Vd = Vd,
                                .r = r,
                                .T = T - t < most ? T - t : most,
                                .unused = 0};
        CUDA_BY_TYPE(m->dtype, absorb, c, a);
    }
}
