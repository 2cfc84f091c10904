/* Kernels for AVX2 + FMA + F16C. Products keep 12 sums in registers: tiles of 3 rows × 4 rows for
 * dot products, 6 × 16 (or 3 × 32) outer products otherwise. */
#ifdef __x86_64__
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/cpu_cache.h"

#define INLINE static inline __attribute__((always_inline))

/* Bytes: few rows against a long matrix wait for memory, and what is far ahead must be asked for.
 */
enum { AHEAD_ROWS = 3, AHEAD_BYTES = 24576 };

/* Rows of b, ld numbers apart, that lie about that far. */
INLINE size_t rows_ahead(enum dtype type, int ld)
{
    return AHEAD_BYTES / ((size_t)ld * (type == DTYPE_F32 ? 4 : 2)) + 1;
}

/* Lanes 0 … n−1 of 8. */
INLINE __m256i lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE float sum8(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE __m128 sum8x4(__m256 a, __m256 b, __m256 c, __m256 d)
{
    __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    __m256 s = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

/* Eight numbers, or the left < 8 that there are (zeros behind them). */
INLINE __m256 load(const float *p, size_t left)
{
    if (left >= 8)
        return _mm256_loadu_ps(p);
    float t[8] = {0};
    memcpy(t, p, left * sizeof *t);
    return _mm256_loadu_ps(t);
}

INLINE void store(float *p, __m256 v, size_t left)
{
    if (left >= 8) {
        _mm256_storeu_ps(p, v);
        return;
    }
    float t[8];
    _mm256_storeu_ps(t, v);
    memcpy(p, t, left * sizeof *t);
}

/* Numbers at … at+7 of b as fp32. */
INLINE __m256 load_as(enum dtype type, const void *b, size_t at)
{
    if (type == DTYPE_F32)
        return _mm256_loadu_ps((const float *)b + at);
    if (type == DTYPE_Q8_0)
        return q8_load8(b, at);
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)b + at));
    if (type == DTYPE_F16)
        return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* The same with left < 8 of them, zeros behind. */
INLINE __m256 load_part(enum dtype type, const void *b, size_t at, int left)
{
    if (type == DTYPE_F32)
        return load((const float *)b + at, (size_t)left);
    if (type == DTYPE_Q8_0) /* the block is whole */
        return q8_load8(b, at);
    uint16_t t[8] = {0};
    memcpy(t, (const uint16_t *)b + at, (size_t)left * sizeof *t);
    return load_as(type, t, 0);
}

/* --- c[m][n] = a · bᵀ --- */

INLINE void dots_tile(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add, size_t ahead)
{
    const int size = type == DTYPE_F32 ? 4 : 2;
    __m256 s[3][4];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            s[i][j] = _mm256_setzero_ps();
    int l = 0;
    for (; l + 8 <= k; l += 8) {
        __m256 x[3];
        for (int i = 0; i < m; i++)
            x[i] = _mm256_loadu_ps(a + (size_t)i * lda + l);
        for (int j = 0; j < n; j++) {
            if (ahead && l * size % 64 == 0)
                _mm_prefetch((const char *)b + ((j + ahead) * ldb + l) * size, _MM_HINT_T1);
            __m256 y = load_as(type, b, (size_t)j * ldb + l);
            for (int i = 0; i < m; i++)
                s[i][j] = _mm256_fmadd_ps(x[i], y, s[i][j]);
        }
    }
    if (l < k)
        for (int j = 0; j < n; j++) {
            __m256 y = load_part(type, b, (size_t)j * ldb + l, k - l);
            for (int i = 0; i < m; i++) {
                __m256 x = load(a + (size_t)i * lda + l, (size_t)(k - l));
                s[i][j] = _mm256_fmadd_ps(x, y, s[i][j]);
            }
        }
    for (int i = 0; i < m; i++) {
        float *y = c + (size_t)i * ldc;
        if (n == 4) {
            __m128 v = sum8x4(s[i][0], s[i][1], s[i][2], s[i][3]);
            _mm_storeu_ps(y, add ? _mm_add_ps(v, _mm_loadu_ps(y)) : v);
        } else {
            *y = sum8(s[i][0]) + (add ? *y : 0);
        }
    }
}

/* m rows, a constant, against all of b. */
INLINE void dots_rows(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add, bool few)
{
    size_t size = type == DTYPE_F32 ? 4 : 2, ahead = few ? rows_ahead(type, ldb) : 0;
    int j = 0;
    for (; j + 4 <= n; j += 4)
        dots_tile(m, 4, k, a, lda, type, (const char *)b + (size_t)j * ldb * size, ldb, c + j, ldc,
                  add, ahead);
    for (; j < n; j++)
        dots_tile(m, 1, k, a, lda, type, (const char *)b + (size_t)j * ldb * size, ldb, c + j, ldc,
                  add, ahead);
}

/* --- c[m][n] = a · b --- */

INLINE void gemm_tile(int m, int nv, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    size_t ahead = m <= AHEAD_ROWS && type != DTYPE_F32 ? rows_ahead(type, ldb) : 0;
    __m256 s[6][4];
    for (int i = 0; i < m; i++)
        for (int v = 0; v < nv; v++)
            s[i][v] = add ? _mm256_loadu_ps(c + (size_t)i * ldc + 8 * v) : _mm256_setzero_ps();
    for (int l = 0; l < k; l++) {
        __m256 x[6], y[2];
        if (nv <= 2) { /* 12 sums leave room for the columns or for the rows, whichever are fewer */
            for (int v = 0; v < nv; v++)
                y[v] = load_as(type, b, (size_t)l * ldb + 8 * v);
            for (int i = 0; i < m; i++) {
                x[0] = _mm256_broadcast_ss(a + (size_t)i * lda + l);
                for (int v = 0; v < nv; v++)
                    s[i][v] = _mm256_fmadd_ps(x[0], y[v], s[i][v]);
            }
            continue;
        }
        for (int i = 0; i < m; i++)
            x[i] = _mm256_broadcast_ss(a + (size_t)i * lda + l);
        if (ahead)
            _mm_prefetch((const char *)b + (l + ahead) * ldb * 2, _MM_HINT_T1);
        for (int v = 0; v < nv; v++) {
            y[0] = load_as(type, b, (size_t)l * ldb + 8 * v);
            for (int i = 0; i < m; i++)
                s[i][v] = _mm256_fmadd_ps(x[i], y[0], s[i][v]);
        }
    }
    for (int i = 0; i < m; i++)
        for (int v = 0; v < nv; v++)
            _mm256_storeu_ps(c + (size_t)i * ldc + 8 * v, s[i][v]);
}

/* The last n < 8 columns. */
INLINE void gemm_edge(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    __m256 s[6];
    for (int i = 0; i < m; i++)
        s[i] = add ? load(c + (size_t)i * ldc, (size_t)n) : _mm256_setzero_ps();
    for (int l = 0; l < k; l++) {
        __m256 y = load_part(type, b, (size_t)l * ldb, n);
        for (int i = 0; i < m; i++)
            s[i] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + (size_t)i * lda + l), y, s[i]);
    }
    for (int i = 0; i < m; i++)
        store(c + (size_t)i * ldc, s[i], (size_t)n);
}

/* m rows, a constant, all columns: wide tiles first. */
INLINE void gemm_rows(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    size_t size = type == DTYPE_F32 ? 4 : 2;
    int j = 0;
    if (m <= 3)
        for (; j + 32 <= n; j += 32)
            gemm_tile(m, 4, k, a, lda, type, (const char *)b + j * size, ldb, c + j, ldc, add);
    for (; j + 16 <= n; j += 16)
        gemm_tile(m, 2, k, a, lda, type, (const char *)b + j * size, ldb, c + j, ldc, add);
    for (; j + 8 <= n; j += 8)
        gemm_tile(m, 1, k, a, lda, type, (const char *)b + j * size, ldb, c + j, ldc, add);
    if (j < n)
        gemm_edge(m, n - j, k, a, lda, type, (const char *)b + j * size, ldb, c + j, ldc, add);
}

#include "kernels/cpu_rows.h"

/* --- conversions --- */

INLINE void widen_row(enum dtype type, const void *src, float *dst, int n)
{
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        _mm_prefetch((const char *)src + 2 * i + AHEAD_BYTES, _MM_HINT_T1);
        for (int j = i; j < i + 32; j += 8)
            _mm256_storeu_ps(dst + j, load_as(type, src, (size_t)j));
    }
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, load_as(type, src, (size_t)i));
    if (i < n)
        store(dst + i, load_part(type, src, (size_t)i, n - i), (size_t)(n - i));
}

/* Rows 0 … 7 of r become columns. */
INLINE void turn8(__m256 r[8])
{
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        __m256 low = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
        r[i] = low;
    }
}

INLINE void turned_as(enum dtype type, int rows, int n, const void *src, int ld, float *dst,
                      int ld_dst)
{
    for (int i = 0; i < rows; i += 8)
        for (int j = 0; j < n; j += 8) {
            __m256 r[8];
            for (int l = 0; l < 8; l++) {
                size_t at = (size_t)(i + l) * ld + j;
                r[l] = i + l >= rows ? _mm256_setzero_ps()
                       : n - j >= 8  ? load_as(type, src, at)
                                     : load_part(type, src, at, n - j);
            }
            turn8(r);
            for (int l = 0; l < 8 && j + l < n; l++)
                store(dst + (size_t)(j + l) * ld_dst + i, r[l], (size_t)(rows - i));
        }
}

#include "kernels/cpu_widen.h"

static void narrow(enum dtype type, const float *src, void *dst, int n)
{
    int i = 0, block = type == DTYPE_Q8_0 ? Q8_BLOCK : 8;
    for (; i + block <= n; i += block) {
        void *to = (char *)dst + dtype_bytes(type, (size_t)i);
        if (type == DTYPE_Q8_0)
            q8_store32(src + i, to);
        else
            _mm_storeu_si128(to, type == DTYPE_F16 ? _mm256_cvtps_ph(_mm256_loadu_ps(src + i),
                                                                     _MM_FROUND_TO_NEAREST_INT)
                                                   : bf16_round8(_mm256_loadu_ps(src + i)));
    }
    dtype_row_from_f32(type, src + i, (char *)dst + dtype_bytes(type, (size_t)i), (size_t)(n - i));
}

/* --- rows of numbers --- */

/* eˣ to about 2 ulp: 2ⁿ times the Taylor polynomial on |r| ≤ ln2/2, whose next term is below
 * 6e-9. Below −87 the result is flushed to 0, above 88 it saturates. */
INLINE __m256 exp8(__m256 x)
{
    __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
    __m256 z = _mm256_min_ps(_mm256_set1_ps(88.0f), x); /* in this order a NaN survives */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(z, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), z);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), bits));
    return _mm256_andnot_ps(tiny, p);
}

INLINE __m256 tanh8(__m256 x)
{
    __m256 one = _mm256_set1_ps(1);
    __m256 y = exp8(_mm256_add_ps(x, x));
    return _mm256_div_ps(_mm256_sub_ps(y, one), _mm256_add_ps(y, one));
}

static float max(const float *x, int n)
{
    __m256 top = _mm256_set1_ps(-INFINITY);
    int i = 0;
    for (; i + 8 <= n; i += 8)
        top = _mm256_max_ps(_mm256_loadu_ps(x + i), top);
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    float best = _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

static float exp_sum(float *x, int n, float top)
{
    __m256 sum = _mm256_setzero_ps(), shift = _mm256_set1_ps(top);
    for (int i = 0; i < n; i += 8) {
        size_t left = (size_t)(n - i);
        __m256 y = exp8(_mm256_sub_ps(load(x + i, left), shift));
        if (left < 8)
            y = _mm256_and_ps(y, _mm256_castsi256_ps(lanes((int)left)));
        store(x + i, y, left);
        sum = _mm256_add_ps(sum, y);
    }
    return sum8(sum);
}

static void softcap(float *x, int n, float cap)
{
    __m256 c = _mm256_set1_ps(cap), inverse = _mm256_set1_ps(1 / cap);
    for (int i = 0; i < n; i += 8) {
        size_t left = (size_t)(n - i);
        __m256 y = tanh8(_mm256_mul_ps(load(x + i, left), inverse));
        store(x + i, _mm256_mul_ps(c, y), left);
    }
}

static void scale(float *y, const float *x, int n, float factor)
{
    __m256 f = _mm256_set1_ps(factor);
    for (int i = 0; i < n; i += 8) {
        size_t left = (size_t)(n - i);
        store(y + i, _mm256_mul_ps(f, load(x + i, left)), left);
    }
}

static void norm(float *y, const float *x, const float *gamma, float eps, int n)
{
    __m256 s[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int i = 0; i < n; i += 8) {
        __m256 v = load(x + i, (size_t)(n - i));
        s[i >> 3 & 1] = _mm256_fmadd_ps(v, v, s[i >> 3 & 1]);
    }
    __m256 f = _mm256_set1_ps(1 / sqrtf(sum8(_mm256_add_ps(s[0], s[1])) / (float)n + eps));
    for (int i = 0; i < n; i += 8) {
        size_t left = (size_t)(n - i);
        __m256 v = _mm256_mul_ps(f, load(x + i, left));
        store(y + i, _mm256_mul_ps(v, load(gamma + i, left)), left);
    }
}

static void rotate(float *re, float *im, const float *cos, const float *sin, int n)
{
    for (int j = 0; j < n; j += 8) {
        size_t left = (size_t)(n - j);
        __m256 a = load(re + j, left), b = load(im + j, left);
        __m256 c = load(cos + j, left), s = load(sin + j, left);
        store(re + j, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)), left);
        store(im + j, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)), left);
    }
}

static void glu(float *y, const float *gate, const float *up, enum glu_act act, size_t n)
{
    __m256 one = _mm256_set1_ps(1), zero = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 8) {
        __m256 g = load(gate + i, n - i), u = load(up + i, n - i), z = g;
        if (act == GLU_GELU_TANH) { /* ½(1 + tanh z) = 1 / (1 + e^−2z) */
            __m256 cube = _mm256_mul_ps(_mm256_mul_ps(g, g), _mm256_set1_ps(0.044715f));
            z = _mm256_mul_ps(_mm256_fmadd_ps(cube, g, g), _mm256_set1_ps(2 * 0.7978845608f));
        }
        __m256 e = _mm256_add_ps(one, exp8(_mm256_sub_ps(zero, z)));
        store(y + i, _mm256_mul_ps(_mm256_div_ps(g, e), u), n - i);
    }
}

static void add(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 8)
        store(y + i, _mm256_add_ps(load(y + i, n - i), load(x + i, n - i)), n - i);
}

/* --- packed weights --- */

static void quantise(const float *x, int n, int8_t *q, float *scale_out, float *sum_out,
                     int16_t *half)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    for (int i = 0; i < n; i += CPU_BLOCK, x += CPU_BLOCK, q += CPU_BLOCK) {
        __m256 v[4], top = _mm256_setzero_ps();
        for (int j = 0; j < 4; j++) {
            v[j] = _mm256_loadu_ps(x + 8 * j);
            top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v[j]));
        }
        __m128 h = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
        h = _mm_max_ps(h, _mm_movehl_ps(h, h));
        float amax = _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
        __m256 inverse = _mm256_set1_ps(amax > 0 ? 127 / amax : 0);
        __m256i z[4];
        for (int j = 0; j < 4; j++)
            z[j] = _mm256_cvtps_epi32(_mm256_mul_ps(v[j], inverse));
        __m256i all =
            _mm256_packs_epi16(_mm256_packs_epi32(z[0], z[1]), _mm256_packs_epi32(z[2], z[3]));
        all = _mm256_permutevar8x32_epi32(all, order);
        _mm256_storeu_si256((__m256i *)(void *)q, all);
        __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(ones8, all), ones16);
        pairs = _mm256_add_epi32(pairs, _mm256_unpackhi_epi64(pairs, pairs));
        pairs = _mm256_add_epi32(pairs, _mm256_shuffle_epi32(pairs, 1));
        int one = _mm256_cvtsi256_si32(pairs), two = _mm256_extract_epi32(pairs, 4);
        half[i / CPU_BLOCK * 2] = (int16_t)one;
        half[i / CPU_BLOCK * 2 + 1] = (int16_t)two;
        scale_out[i / CPU_BLOCK] = amax / 127;
        sum_out[i / CPU_BLOCK] = amax / 127 * (float)(one + two);
    }
}

#include "kernels/cpu_quant.h"

const struct cpu_isa cpu_avx2 = {
    .name = "AVX2",
    .direct = 3,
    .dots = dots,
    .gemm = gemm,
    .widen = widen,
    .widen_turned = widen_turned,
    .narrow = narrow,
    .max = max,
    .exp_sum = exp_sum,
    .softcap = softcap,
    .scale = scale,
    .norm = norm,
    .rotate = rotate,
    .glu = glu,
    .add = add,
    .quantise = quantise,
    .matmul_q = matmul_q,
    .matmul_f = matmul_f,
    .turned = turned,
    .unpack = unpack,
};
#endif
