/* Kernels for AArch64, whose base set has NEON, fused products and F16 conversions. Products keep
 * their sums in registers: tiles of 3 rows × 4 rows for dot products, 6 × 16 (or 3 × 32) outer
 * products otherwise. Plain loops over rows are left to the compiler. */
#ifdef __aarch64__
#include <math.h>

#include "kernels/cpu_neon.h"
#include "kernels/cpu_neon_q.h"

enum { AHEAD_ROWS = 0 }; /* dots_rows asks for nothing ahead, however few the rows */

/* Q8_0: an F16 scale and 32 numbers a block; at is a multiple of 8. */
INLINE struct f8 load_q8(const void *b, size_t at)
{
    const unsigned char *block = (const unsigned char *)b + dtype_bytes(DTYPE_Q8_0, at / 32 * 32);
    uint16_t d;
    memcpy(&d, block, sizeof d);
    float32x4_t f = vdupq_n_f32(f16_to_f32(d));
    int16x8_t q = vmovl_s8(vld1_s8((const int8_t *)block + 2 + at % 32));
    return (struct f8){vmulq_f32(f, vcvtq_f32_s32(vmovl_s16(vget_low_s16(q)))),
                       vmulq_f32(f, vcvtq_f32_s32(vmovl_high_s16(q)))};
}

/* Numbers at … at+7 of b as fp32. */
INLINE struct f8 load_as(enum dtype type, const void *b, size_t at)
{
    if (type == DTYPE_F32) {
        const float *p = (const float *)b + at;
        return (struct f8){vld1q_f32(p), vld1q_f32(p + 4)};
    }
    if (type == DTYPE_Q8_0)
        return load_q8(b, at);
    uint16x8_t h = vld1q_u16((const uint16_t *)b + at);
    if (type == DTYPE_F16)
        return from_f16(h);
    return (struct f8){vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)),
                       vreinterpretq_f32_u32(vshll_high_n_u16(h, 16))};
}

/* The same with left < 8 of them, zeros behind. */
INLINE struct f8 load_part(enum dtype type, const void *b, size_t at, int left)
{
    if (type == DTYPE_F32)
        return load((const float *)b + at, (size_t)left);
    if (type == DTYPE_Q8_0) /* the block is whole */
        return load_q8(b, at);
    uint16_t t[8] = {0};
    memcpy(t, (const uint16_t *)b + at, (size_t)left * sizeof *t);
    return load_as(type, t, 0);
}

/* --- c[m][n] = a · bᵀ --- */

/* Into one sum: twelve pairs of them would leave no registers for a and b. */
INLINE float32x4_t fma_both(float32x4_t s, struct f8 a, struct f8 b)
{
    return vfmaq_f32(vfmaq_f32(s, a.low, b.low), a.high, b.high);
}

INLINE void dots_tile(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    float32x4_t s[3][4];
    int l = 0;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            s[i][j] = vdupq_n_f32(0);
    for (; l + 8 <= k; l += 8) {
        struct f8 x[3];
        for (int i = 0; i < m; i++)
            x[i] = load(a + (size_t)i * lda + l, 8);
        for (int j = 0; j < n; j++) {
            struct f8 y = load_as(type, b, (size_t)j * ldb + l);
            for (int i = 0; i < m; i++)
                s[i][j] = fma_both(s[i][j], x[i], y);
        }
    }
    for (int j = 0; j < n && l < k; j++) {
        struct f8 y = load_part(type, b, (size_t)j * ldb + l, k - l);
        for (int i = 0; i < m; i++)
            s[i][j] = fma_both(s[i][j], load(a + (size_t)i * lda + l, (size_t)(k - l)), y);
    }
    for (int i = 0; i < m; i++) {
        float *y = c + (size_t)i * ldc;
        if (n == 4) {
            float32x4_t v = vpaddq_f32(vpaddq_f32(s[i][0], s[i][1]), vpaddq_f32(s[i][2], s[i][3]));
            vst1q_f32(y, add ? vaddq_f32(v, vld1q_f32(y)) : v);
        } else {
            *y = vaddvq_f32(s[i][0]) + (add ? *y : 0);
        }
    }
}

/* m rows, a constant, against all of b. */
INLINE void dots_rows(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add, bool few)
{
    const char *p = b;
    size_t row = (size_t)ldb * (type == DTYPE_F32 ? 4 : 2);
    int j = 0;
    (void)few;
    for (; j + 4 <= n; j += 4, p += 4 * row)
        dots_tile(m, 4, k, a, lda, type, p, ldb, c + j, ldc, add);
    for (; j < n; j++, p += row)
        dots_tile(m, 1, k, a, lda, type, p, ldb, c + j, ldc, add);
}

/* --- c[m][n] = a · b --- */

INLINE void gemm_tile(int m, int nv, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    struct f8 s[6][4];
    for (int i = 0; i < m; i++)
        for (int v = 0; v < nv; v++)
            s[i][v] = add ? load(c + (size_t)i * ldc + 8 * v, 8) : all8(0);
    for (int l = 0; l < k; l++) {
        float x[6];
        for (int i = 0; i < m; i++)
            x[i] = a[(size_t)i * lda + l];
        for (int v = 0; v < nv; v++) {
            struct f8 y = load_as(type, b, (size_t)l * ldb + 8 * v);
            for (int i = 0; i < m; i++)
                s[i][v] = fma8_all(s[i][v], y, x[i]);
        }
    }
    for (int i = 0; i < m; i++)
        for (int v = 0; v < nv; v++)
            store(c + (size_t)i * ldc + 8 * v, s[i][v], 8);
}

/* The last n < 8 columns. */
INLINE void gemm_edge(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    struct f8 s[6];
    for (int i = 0; i < m; i++)
        s[i] = add ? load(c + (size_t)i * ldc, (size_t)n) : all8(0);
    for (int l = 0; l < k; l++) {
        struct f8 y = load_part(type, b, (size_t)l * ldb, n);
        for (int i = 0; i < m; i++)
            s[i] = fma8_all(s[i], y, a[(size_t)i * lda + l]);
    }
    for (int i = 0; i < m; i++)
        store(c + (size_t)i * ldc, s[i], (size_t)n);
}

/* m rows, a constant, all columns: wide tiles first. */
INLINE void gemm_rows(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    const char *p = b;
    size_t size = type == DTYPE_F32 ? 4 : 2;
    int j = 0;
    for (; m <= 3 && j + 32 <= n; j += 32)
        gemm_tile(m, 4, k, a, lda, type, p + j * size, ldb, c + j, ldc, add);
    for (; j + 16 <= n; j += 16)
        gemm_tile(m, 2, k, a, lda, type, p + j * size, ldb, c + j, ldc, add);
    for (; j + 8 <= n; j += 8)
        gemm_tile(m, 1, k, a, lda, type, p + j * size, ldb, c + j, ldc, add);
    if (j < n)
        gemm_edge(m, n - j, k, a, lda, type, p + j * size, ldb, c + j, ldc, add);
}

#include "kernels/cpu_rows.h"

/* --- conversions --- */

INLINE void widen_row(enum dtype type, const void *src, float *dst, int n)
{
    int j = 0;
    for (; j + 8 <= n; j += 8)
        store(dst + j, load_as(type, src, (size_t)j), 8);
    if (j < n)
        store(dst + j, load_part(type, src, (size_t)j, n - j), (size_t)(n - j));
}

/* Four rows become columns of dst, which has room for `left` of them. */
INLINE void turn4(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d, int columns,
                  float *dst, int ld, size_t left)
{
    float32x4_t ab[2] = {vtrn1q_f32(a, b), vtrn2q_f32(a, b)};
    float32x4_t cd[2] = {vtrn1q_f32(c, d), vtrn2q_f32(c, d)};
    for (int j = 0; j < 4 && j < columns; j++, dst += ld) {
        float64x2_t x = vreinterpretq_f64_f32(ab[j % 2]), y = vreinterpretq_f64_f32(cd[j % 2]);
        float32x4_t v = vreinterpretq_f32_f64(j < 2 ? vtrn1q_f64(x, y) : vtrn2q_f64(x, y));
        float t[4];
        vst1q_f32(left >= 4 ? dst : t, v);
        if (left < 4)
            memcpy(dst, t, left * sizeof *t);
    }
}

INLINE void turned_as(enum dtype type, int rows, int n, const void *src, int ld, float *dst,
                      int ld_dst)
{
    for (int i = 0; i < rows; i += 4)
        for (int j = 0; j < n; j += 8) {
            struct f8 r[4];
            size_t left = (size_t)(rows - i);
            float *to = dst + (size_t)j * ld_dst + i;
            for (int l = 0; l < 4; l++) {
                size_t at = (size_t)(i + l) * ld + j;
                r[l] = i + l >= rows ? all8(0)
                       : n - j >= 8  ? load_as(type, src, at)
                                     : load_part(type, src, at, n - j);
            }
            turn4(r[0].low, r[1].low, r[2].low, r[3].low, n - j, to, ld_dst, left);
            if (n - j > 4)
                turn4(r[0].high, r[1].high, r[2].high, r[3].high, n - j - 4,
                      to + 4 * (size_t)ld_dst, ld_dst, left);
        }
}

#include "kernels/cpu_widen.h"

static void narrow(enum dtype type, const float *src, void *dst, int n)
{
    int i = 0;
    for (; i + 8 <= n && type == DTYPE_F16; i += 8) {
        struct f8 v = load(src + i, 8);
        float16x8_t h = vcvt_high_f16_f32(vcvt_f16_f32(v.low), v.high);
        vst1q_u16((uint16_t *)dst + i, vreinterpretq_u16_f16(h));
    }
    dtype_row_from_f32(type, src + i, (char *)dst + dtype_bytes(type, (size_t)i), (size_t)(n - i));
}

/* --- rows of numbers --- */

/* eˣ to about 2 ulp: 2ⁿ times the Taylor polynomial on |r| ≤ ln2/2, whose next term is below
 * 6e-9. Below −87 the result is flushed to 0, above 88 it saturates; a NaN survives. */
INLINE float32x4_t exp4(float32x4_t x)
{
    static const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    uint32x4_t tiny = vcltq_f32(x, vdupq_n_f32(-87));
    float32x4_t z = vminq_f32(x, vdupq_n_f32(88)), p = vdupq_n_f32(1.0f / 5040);
    float32x4_t n = vrndnq_f32(vmulq_n_f32(z, 1.44269504f));
    float32x4_t r = vfmsq_f32(z, n, vdupq_n_f32(0.693359375f));
    r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
    for (int i = 0; i < 7; i++)
        p = vfmaq_f32(vdupq_n_f32(terms[i]), p, r);
    int32x4_t bits = vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtq_s32_f32(n), 23));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(bits), tiny));
}

INLINE struct f8 exp8(struct f8 x)
{
    return (struct f8){exp4(x.low), exp4(x.high)};
}

INLINE struct f8 div8(struct f8 a, struct f8 b)
{
    return (struct f8){vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
}

/* A NaN is passed over, as a comparison does. */
static float max(const float *x, int n)
{
    float32x4_t top[2] = {vdupq_n_f32(-INFINITY), vdupq_n_f32(-INFINITY)};
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        top[0] = vmaxnmq_f32(top[0], vld1q_f32(x + i));
        top[1] = vmaxnmq_f32(top[1], vld1q_f32(x + i + 4));
    }
    float best = vmaxnmvq_f32(vmaxnmq_f32(top[0], top[1]));
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

static float exp_sum(float *x, int n, float top)
{
    struct f8 sum = all8(0), shift = all8(-top);
    float rest = 0;
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        struct f8 y = exp8(add8(load(x + i, 8), shift));
        store(x + i, y, 8);
        sum = add8(sum, y);
    }
    if (i < n)
        store(x + i, exp8(add8(load(x + i, (size_t)(n - i)), shift)), (size_t)(n - i));
    for (; i < n; i++)
        rest += x[i];
    return vaddvq_f32(vaddq_f32(sum.low, sum.high)) + rest;
}

static void softcap(float *x, int n, float cap)
{
    for (int i = 0; i < n; i += 8) {
        size_t left = (size_t)(n - i);
        struct f8 y = exp8(mul8_all(load(x + i, left), 2 / cap)); /* tanh z = (y − 1) / (y + 1) */
        y = div8(add8(y, all8(-1)), add8(y, all8(1)));
        store(x + i, mul8_all(y, cap), left);
    }
}

static void glu(float *y, const float *gate, const float *up, enum glu_act act, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        struct f8 g = load(gate + i, n - i), z = g;
        if (act == GLU_GELU_TANH) { /* ½(1 + tanh z) = 1 / (1 + e^−2z) */
            struct f8 cube = mul8(mul8(g, g), mul8_all(g, 0.044715f));
            z = mul8_all(add8(g, cube), 2 * 0.7978845608f);
        }
        struct f8 e = add8(all8(1), exp8(mul8_all(z, -1)));
        store(y + i, mul8(div8(g, e), load(up + i, n - i)), n - i);
    }
}

/* --- packed weights --- */

static void quantise(const float *x, int n, int8_t *q, float *scale, float *sum, int16_t *half)
{
    for (int i = 0; i < n; i += CPU_BLOCK, x += CPU_BLOCK, q += CPU_BLOCK) {
        float32x4_t v[8], top = vdupq_n_f32(0);
        for (int j = 0; j < 8; j++) {
            v[j] = vld1q_f32(x + 4 * j);
            top = vmaxq_f32(top, vabsq_f32(v[j]));
        }
        float amax = vmaxvq_f32(top), inverse = amax > 0 ? 127 / amax : 0;
        int16x8_t z[4];
        for (int j = 0; j < 4; j++) {
            int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(v[2 * j], inverse));
            int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(v[2 * j + 1], inverse));
            z[j] = vqmovn_high_s32(vqmovn_s32(low), high);
        }
        int total = 0;
        for (int j = 0; j < 2; j++) {
            int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(z[2 * j]), z[2 * j + 1]);
            vst1q_s8(q + 16 * j, bytes);
            total += *half++ = vaddlvq_s8(bytes);
        }
        *scale++ = amax / 127;
        *sum++ = amax / 127 * (float)total;
    }
}

/* --- the same weights as fp32 --- */

INLINE uint32x4_t line4(const unsigned char *p, int left)
{
    return vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), vdupq_n_s32(left));
}

/* Number `at` (0 … 31) of 4 rows; p: these rows' part of the first line. */
INLINE int32x4_t number4(const unsigned char *p, enum dtype type, int at)
{
    int byte = at % 4 * 8, half = at / 16;
    if (type == DTYPE_Q8_0)
        return vshrq_n_s32(vreinterpretq_s32_u32(line4(p + at / 4 * 32, 24 - byte)), 24);
    uint32x4_t u = line4(p + at % 16 / 4 * 32, -byte - 4 * half);
    u = vandq_u32(u, vdupq_n_u32(15));
    if (type == DTYPE_Q5_K)
        u = vorrq_u32(u, vandq_u32(line4(p + 128, 4 - byte - at / 4), vdupq_n_u32(16)));
    if (cpu_is_six(type))
        u = vorrq_u32(
            u, vandq_u32(line4(p + 128 + 32 * half, 4 - byte - at / 4 % 4 * 2), vdupq_n_u32(48)));
    int32x4_t s = vreinterpretq_s32_u32(u);
    return cpu_is_six(type) ? vsubq_s32(s, vdupq_n_s32(32)) : s;
}

INLINE struct f8 weights8(const unsigned char *p, enum dtype type, int at, const struct scales *k)
{
    struct f8 u = from_ints(number4(p, type, at), number4(p + 16, type, at));
    if (type == DTYPE_Q6_K)
        return mul8(u, at < 16 ? k->d : k->m);
    return without_m(type) ? mul8(u, k->d) : fma8(k->m, u, k->d);
}

/* One token; four sums, or every product would wait for the one before. */
INLINE void tile_f(const struct weight *w, int index, enum dtype type, const float *x, float *y,
                   bool plus)
{
    const unsigned char *p = cpu_group(w, index);
    struct f8 acc[4] = {all8(0), all8(0), all8(0), all8(0)};
    struct super s = {all8(0), all8(0)};
    for (int b = 0; b < w->m.cols / CPU_BLOCK; b++, p += quants_bytes(type), x += CPU_BLOCK) {
        struct scales k;
        p = open_scales(p, b, type, &s, &k);
#pragma GCC unroll 32
        for (int at = 0; at < CPU_BLOCK; at++)
            acc[at % 4] = fma8_all(acc[at % 4], weights8(p, type, at, &k), x[at]);
    }
    store_rows(y, add8(add8(acc[0], acc[1]), add8(acc[2], acc[3])), rows_left(w, index), plus);
}

static void matmul_f(const struct weight *w, int first, int groups, const float *x, int T, float *y,
                     int ldy, bool plus)
{
#define TILE_F(type)                                                                               \
    tile_f(w, first + i, type, x + (size_t)t * w->m.cols, y + (size_t)t * ldy + i * CPU_GROUP, plus)
    for (int i = 0; i < groups; i++)
        for (int t = 0; t < T; t++)
            WITH_TYPE(w->type, TILE_F)
#undef TILE_F
}

INLINE void unpack_as(const struct weight *w, int index, enum dtype type, float *dst, int ld)
{
    const unsigned char *p = cpu_group(w, index);
    struct super s = {all8(0), all8(0)};
    for (int b = 0; b < w->m.cols / CPU_BLOCK; b++, p += quants_bytes(type)) {
        struct scales k;
        p = open_scales(p, b, type, &s, &k);
#pragma GCC unroll 32
        for (int at = 0; at < CPU_BLOCK; at++, dst += ld)
            store(dst, weights8(p, type, at, &k), 8);
    }
}

static void unpack(const struct weight *w, int index, float *dst, int ld)
{
#define UNPACK(type) unpack_as(w, index, type, dst, ld)
    WITH_TYPE(w->type, UNPACK)
#undef UNPACK
}

static void turned(const struct weight *w, int first, int groups, int block, const float *x,
                   float *y)
{
    size_t head = cpu_block_head(DTYPE_Q8_0), from = (size_t)block * cpu_block_bytes(DTYPE_Q8_0);
    for (int at = 0; at < CPU_BLOCK; at += 4) {
        struct f8 s[4] = {all8(0), all8(0), all8(0), all8(0)};
        for (int i = 0; i < groups; i++) {
            const unsigned char *p = cpu_group(w, first + i) + from;
            struct f8 d = mul8(halves(p), load(x + (size_t)i * CPU_GROUP, 8));
            for (int c = 0; c < 4; c++) {
                int32x4_t low = number4(p + head, DTYPE_Q8_0, at + c);
                s[c] = fma8(s[c], from_ints(low, number4(p + head + 16, DTYPE_Q8_0, at + c)), d);
            }
        }
        for (int c = 0; c < 4; c++)
            y[at + c] = vaddvq_f32(vaddq_f32(s[c].low, s[c].high));
    }
}

void cpu_neon_use(struct cpu_isa *isa)
{
    isa->name = "NEON";
    isa->dots = dots;
    isa->gemm = gemm;
    isa->widen = widen;
    isa->widen_turned = widen_turned;
    isa->narrow = narrow;
    isa->max = max;
    isa->exp_sum = exp_sum;
    isa->softcap = softcap;
    isa->glu = glu;
    isa->quantise = quantise;
    isa->matmul_q = matmul_q;
    isa->matmul_f = matmul_f;
    isa->unpack = unpack;
    isa->turned = turned;
}
#endif
