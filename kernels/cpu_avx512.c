/* Kernels for AVX-512 (F, BW, DQ, VL): the fp32 products and what attention does between them in
 * vectors of 16. The rest stays as AVX2 has it. Products keep 24 sums in registers: 3 rows × 8 rows
 * for dot products, 6 × 64 outer products otherwise. Every row of a result is summed in an order
 * that does not depend on the number of rows; scores of attention, where a few heads share their
 * keys, are not: pairs of keys side by side need half of the shuffles to be summed. */
#ifdef __x86_64__
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/cpu_avx512.h"
#include "kernels/cpu_cache.h"

/* Few rows against a long matrix wait for memory, and what comes must be asked for: so many bytes
 * ahead where it is read in its order, where several rows or a few heads take turns, and for the
 * scores of many heads, which leave time to bring it to the first level. */
enum { AHEAD_ROWS = 3, AHEAD_NEAR = 4096, AHEAD_FAR = 24576, AHEAD_KEYS = 8192, LONG_ROW = 256 };

/* Numbers at … at+15 of b that the mask names as fp32, zeros for the others. */
INLINE __m512 load_as(enum dtype type, const void *b, size_t at, __mmask16 mask)
{
    if (type == DTYPE_F32)
        return _mm512_maskz_loadu_ps(mask, (const float *)b + at);
    __m256i h = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)b + at);
    if (type == DTYPE_F16)
        return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Asks for the line where vector l of a row begins, every second time for 2-byte numbers. */
INLINE void ask(const void *b, size_t at, int l, enum dtype type, size_t ahead)
{
    const size_t size = type == DTYPE_F32 ? 4 : 2;
    if ((size_t)l * size % 64 == 0)
        _mm_prefetch((const char *)b + at * size + ahead, _MM_HINT_T1);
}

/* --- c[m][n] = a · bᵀ --- */

/* a · one row of b. */
INLINE __m512 dots_row(int k, const float *a, enum dtype type, const void *b)
{
    __m512 s = _mm512_setzero_ps();
    int l = 0;
    for (; l + 16 <= k; l += 16) {
        ask(b, (size_t)l, l, type, AHEAD_NEAR);
        s = _mm512_fmadd_ps(_mm512_loadu_ps(a + l), load_as(type, b, (size_t)l, 0xffff), s);
    }
    if (l < k)
        s = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(first16(k - l), a + l),
                            load_as(type, b, (size_t)l, first16(k - l)), s);
    return s;
}

/* Numbers l … l+15 of n rows of b side by side. Masked loads cost an operation each, so the whole
 * vectors of a row are loaded without. */
INLINE void dots_step(int m, int n, __mmask16 mask, int l, const float *a, int lda, enum dtype type,
                      const void *b, int ldb, __m512 s[3][8], bool far)
{
    __m512 x[3];
    for (int i = 0; i < m; i++)
        x[i] = load_as(DTYPE_F32, a, (size_t)i * lda + l, mask);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        if (j >= n)
            break;
        size_t at = (size_t)j * ldb + l;
        if (far)
            ask(b, at, l, type, AHEAD_FAR);
        __m512 y = load_as(type, b, at, mask);
        for (int i = 0; i < m; i++)
            s[i][j] = _mm512_fmadd_ps(x[i], y, s[i][j]);
    }
}

INLINE void dots_rows8(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                       int ldb, __m512 s[3][8], bool far)
{
    int l = 0;
    for (; l + 16 <= k; l += 16)
        dots_step(m, n, 0xffff, l, a, lda, type, b, ldb, s, far);
    if (l < k)
        dots_step(m, n, first16(k - l), l, a, lda, type, b, ldb, s, far);
}

/* A single row of a waits for memory, so b is read in its order, where its rows are long. Either
 * way a sum is one chain: the same to the last bit. */
INLINE void dots_tile(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add, bool far)
{
    __m512 s[3][8];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < 8; j++)
            s[i][j] = _mm512_setzero_ps();
    if (m == 1 && far && k >= LONG_ROW)
        for (int j = 0; j < n; j++)
            s[0][j] = dots_row(k, a, type, (const uint16_t *)b + (size_t)j * ldb);
    else
        dots_rows8(m, n, k, a, lda, type, b, ldb, s, far);
    __mmask8 mask = (__mmask8)first16(n);
    for (int i = 0; i < m; i++) {
        float *y = c + (size_t)i * ldc;
        __m256 v = sum16x8(s[i]);
        if (add)
            v = _mm256_add_ps(v, _mm256_maskz_loadu_ps(mask, y));
        _mm256_mask_storeu_ps(y, mask, v);
    }
}

/* m rows, a constant, against all of b. */
INLINE void dots_rows(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add, bool far)
{
    size_t step = (size_t)ldb * (type == DTYPE_F32 ? 4 : 2);
    int j = 0;
    for (; j + 8 <= n; j += 8)
        dots_tile(m, 8, k, a, lda, type, (const char *)b + (size_t)j * step, ldb, c + j, ldc, add,
                  far);
    if (j < n)
        dots_tile(m, n - j, k, a, lda, type, (const char *)b + (size_t)j * step, ldb, c + j, ldc,
                  add, far);
}

/* --- c[m][n] = a · b --- */

/* Rows and vectors of columns whose sums are kept: of 16-bit numbers, which are widened once for
 * all rows, as many rows as there are registers for. */
enum { TILE_WIDE = 4, TALL_ROWS = 9, TALL_WIDE = 3 };

/* Keeps x in a register: compilers would load it again for each product, and loads are scarce. */
INLINE __m512 once(__m512 x)
{
    __asm__("" : "+v"(x));
    return x;
}

/* nv vectors of columns, of the last one those that the mask names. */
INLINE void gemm_tile(int m, int nv, __mmask16 last, int k, const float *a, int lda,
                      enum dtype type, const void *b, int ldb, float *c, int ldc, bool add)
{
    bool far = m <= AHEAD_ROWS && type != DTYPE_F32;
    __m512 s[TALL_ROWS][TILE_WIDE];
#pragma GCC unroll 9
    for (int i = 0; i < m; i++)
        for (int v = 0; v < nv; v++)
            s[i][v] = add ? _mm512_maskz_loadu_ps(v == nv - 1 ? last : 0xffff,
                                                  c + (size_t)i * ldc + 16 * v)
                          : _mm512_setzero_ps();
    for (int l = 0; l < k; l++) {
        __m512 y[TILE_WIDE];
        for (int v = 0; v < nv; v++) {
            size_t at = (size_t)l * ldb + 16 * v;
            if (far)
                ask(b, at, 16 * v, type, AHEAD_FAR);
            y[v] = load_as(type, b, at, v == nv - 1 ? last : 0xffff);
        }
#pragma GCC unroll 9
        for (int i = 0; i < m; i++) {
            __m512 x = once(_mm512_set1_ps(a[(size_t)i * lda + l]));
            for (int v = 0; v < nv; v++)
                s[i][v] = _mm512_fmadd_ps(x, y[v], s[i][v]);
        }
    }
#pragma GCC unroll 9
    for (int i = 0; i < m; i++)
        for (int v = 0; v < nv; v++)
            _mm512_mask_storeu_ps(c + (size_t)i * ldc + 16 * v, v == nv - 1 ? last : 0xffff,
                                  s[i][v]);
}

/* m rows, a constant, all columns: wide tiles first. */
INLINE void gemm_rows(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    size_t size = type == DTYPE_F32 ? 4 : 2;
    int j = 0;
    for (; j + 64 <= n; j += 64)
        gemm_tile(m, 4, 0xffff, k, a, lda, type, (const char *)b + j * size, ldb, c + j, ldc, add);
    for (; j + 32 <= n; j += 32)
        gemm_tile(m, 2, 0xffff, k, a, lda, type, (const char *)b + j * size, ldb, c + j, ldc, add);
    for (; j < n; j += 16)
        gemm_tile(m, 1, first16(n - j), k, a, lda, type, (const char *)b + j * size, ldb, c + j,
                  ldc, add);
}

/* --- some rows and 16-bit numbers, each of which is widened once for all rows --- */

enum { PAIRS = 8, PAIRS_WIDE = 2 }; /* of keys: whose sums meet; which go side by side */

/* The key that a pair has in its lower half; the upper half's is 4 further. So sums come out in
 * the order of the keys. */
INLINE int lower_key(int pair)
{
    return pair < 4 ? pair : pair + 4;
}

/* s[row][pair] += the products with numbers l … l+7. */
INLINE void pairs_add(int m, __mmask8 mask, int l, const float *a, int lda, const __m512 *y,
                      __m512 s[TALL_ROWS][PAIRS_WIDE])
{
#pragma GCC unroll 9
    for (int i = 0; i < m; i++) {
        __m512 x =
            once(_mm512_broadcast_f32x8(_mm256_maskz_loadu_ps(mask, a + (size_t)i * lda + l)));
        for (int j = 0; j < PAIRS_WIDE; j++)
            s[i][j] = _mm512_fmadd_ps(x, y[j], s[i][j]);
    }
}

/* Numbers l … l+15. */
INLINE void pairs_whole(int m, int l, const float *a, int lda, const uint16_t *const *key,
                        __m512 s[TALL_ROWS][PAIRS_WIDE])
{
    __m512 y[2][PAIRS_WIDE];
    for (int j = 0; j < PAIRS_WIDE; j++) {
        const uint16_t *p = key[2 * j] + l, *q = key[2 * j + 1] + l;
        if (l % 32 == 0) { /* a line of each */
            _mm_prefetch((const char *)p + AHEAD_KEYS, _MM_HINT_T0);
            _mm_prefetch((const char *)q + AHEAD_KEYS, _MM_HINT_T0);
        }
        __m256i lower = _mm256_loadu_si256((const __m256i *)(const void *)p);
        __m256i upper = _mm256_loadu_si256((const __m256i *)(const void *)q);
        y[0][j] = _mm512_cvtph_ps(_mm256_inserti128_si256(lower, _mm256_castsi256_si128(upper), 1));
        y[1][j] = _mm512_cvtph_ps(_mm256_permute2x128_si256(lower, upper, 0x31));
    }
    pairs_add(m, 0xff, l, a, lda, y[0], s);
    pairs_add(m, 0xff, l + 8, a, lda, y[1], s);
}

/* Eight numbers or fewer from l on. */
INLINE void pairs_rest(int m, __mmask8 mask, int l, const float *a, int lda,
                       const uint16_t *const *key, __m512 s[TALL_ROWS][PAIRS_WIDE])
{
    __m512 y[PAIRS_WIDE];
    for (int j = 0; j < PAIRS_WIDE; j++)
        y[j] = _mm512_cvtph_ps(_mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_maskz_loadu_epi16(mask, key[2 * j] + l)),
            _mm_maskz_loadu_epi16(mask, key[2 * j + 1] + l), 1));
    pairs_add(m, mask, l, a, lda, y, s);
}

/* Pairs from, from + 1, unsummed. */
INLINE void pairs_chains(int m, int from, int k, const float *a, int lda,
                         const uint16_t *const *key, __m512 sum[TALL_ROWS][PAIRS])
{
    __m512 s[TALL_ROWS][PAIRS_WIDE];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < PAIRS_WIDE; j++)
            s[i][j] = _mm512_setzero_ps();
    int l = 0;
    for (; l + 16 <= k; l += 16)
        pairs_whole(m, l, a, lda, key + 2 * from, s);
    for (; l < k; l += 8)
        pairs_rest(m, (__mmask8)(k - l >= 8 ? 0xff : first16(k - l)), l, a, lda, key + 2 * from, s);
#pragma GCC unroll 9
    for (int i = 0; i < m; i++)
        for (int j = 0; j < PAIRS_WIDE; j++)
            sum[i][from + j] = s[i][j];
}

/* Sixteen keys at a time; beyond the last, it stands in. */
INLINE void pairs_scores(int m, int n, int k, const float *a, int lda, const uint16_t *b, int ldb,
                         float *c, int ldc)
{
    __m512 sum[TALL_ROWS][PAIRS];
    for (int j = 0; j < n; j += 2 * PAIRS) {
        const uint16_t *key[2 * PAIRS];
        for (int v = 0; v < 2 * PAIRS; v++) {
            int row = j + lower_key(v / 2) + v % 2 * 4;
            key[v] = b + (size_t)(row < n ? row : n - 1) * ldb;
        }
        for (int from = 0; from < PAIRS; from += PAIRS_WIDE)
            pairs_chains(m, from, k, a, lda, key, sum);
        for (int i = 0; i < m; i++)
            _mm512_mask_storeu_ps(c + (size_t)i * ldc + j, first16(n - j), sum8x16(sum[i]));
    }
}

INLINE void tall_gemm(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                      int ldb, float *c, int ldc, bool add)
{
    for (int j = 0; j < n;
         j += 16 * TALL_WIDE, c += 16 * TALL_WIDE, b = (const uint16_t *)b + 16 * TALL_WIDE) {
        int nv = (n - j + 15) / 16;
        __mmask16 last = first16(n - j - 16 * (nv - 1));
        switch (nv) {
        case 1: gemm_tile(m, 1, last, k, a, lda, type, b, ldb, c, ldc, add); break;
        case 2: gemm_tile(m, 2, last, k, a, lda, type, b, ldb, c, ldc, add); break;
        default: gemm_tile(m, 3, nv > 3 ? 0xffff : last, k, a, lda, type, b, ldb, c, ldc, add);
        }
    }
}

#include "kernels/cpu_rows.h"

INLINE void tall_gemm_as(int m, int n, int k, const float *a, int lda, enum dtype type,
                         const void *b, int ldb, float *c, int ldc, bool add)
{
    switch (m) {
    case 4: tall_gemm(4, n, k, a, lda, type, b, ldb, c, ldc, add); break;
    case 5: tall_gemm(5, n, k, a, lda, type, b, ldb, c, ldc, add); break;
    case 6: tall_gemm(6, n, k, a, lda, type, b, ldb, c, ldc, add); break;
    case 7: tall_gemm(7, n, k, a, lda, type, b, ldb, c, ldc, add); break;
    case 8: tall_gemm(8, n, k, a, lda, type, b, ldb, c, ldc, add); break;
    default: tall_gemm(TALL_ROWS, n, k, a, lda, type, b, ldb, c, ldc, add);
    }
}

static bool tall(int m, enum dtype type)
{
    return m > AHEAD_ROWS && m <= CPU_FEW && type != DTYPE_F32;
}

static void scores(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                   int ldb, float *c, int ldc)
{
    int half = (m + 1) / 2;
    if (type != DTYPE_F16 || !tall(m, type)) {
        dots(m, n, k, a, lda, type, b, ldb, c, ldc, false);
        return;
    }
    switch (m) {
    case 4: pairs_scores(4, n, k, a, lda, b, ldb, c, ldc); break;
    case 5: pairs_scores(5, n, k, a, lda, b, ldb, c, ldc); break;
    case 6: pairs_scores(6, n, k, a, lda, b, ldb, c, ldc); break;
    case 7: pairs_scores(7, n, k, a, lda, b, ldb, c, ldc); break;
    case 8: pairs_scores(8, n, k, a, lda, b, ldb, c, ldc); break;
    case 9: pairs_scores(9, n, k, a, lda, b, ldb, c, ldc); break;
    default:
        scores(half, n, k, a, lda, type, b, ldb, c, ldc);
        scores(m - half, n, k, a + (size_t)half * lda, lda, type, b, ldb, c + (size_t)half * ldc,
               ldc);
    }
}

static void any_gemm(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                     int ldb, float *c, int ldc, bool add)
{
    int half = (m + 1) / 2;
    if (!tall(m, type)) {
        gemm(m, n, k, a, lda, type, b, ldb, c, ldc, add);
    } else if (m > TALL_ROWS) {
        any_gemm(half, n, k, a, lda, type, b, ldb, c, ldc, add);
        any_gemm(m - half, n, k, a + (size_t)half * lda, lda, type, b, ldb, c + (size_t)half * ldc,
                 ldc, add);
    } else if (type == DTYPE_F16) {
        tall_gemm_as(m, n, k, a, lda, DTYPE_F16, b, ldb, c, ldc, add);
    } else {
        tall_gemm_as(m, n, k, a, lda, DTYPE_BF16, b, ldb, c, ldc, add);
    }
}

/* --- rows of numbers --- */

INLINE void widen_row(enum dtype type, const void *src, float *dst, int n)
{
    for (int i = 0; i < n; i += 16) {
        ask(src, (size_t)i, i, type, AHEAD_FAR);
        _mm512_mask_storeu_ps(dst + i, first16(n - i),
                              load_as(type, src, (size_t)i, first16(n - i)));
    }
}

/* Both halves of a block under one scale. */
static void widen_q8(int n, const void *src, float *dst)
{
    for (int i = 0; i < n; i += Q8_BLOCK) {
        const unsigned char *block = q8_block(src, (size_t)i);
        __m512 d = _mm512_broadcast_f32x8(q8_scale(block));
        _mm_prefetch((const char *)block + AHEAD_FAR, _MM_HINT_T1);
        for (int j = 0; j < Q8_BLOCK && i + j < n; j += 16) {
            __m128i q = _mm_loadu_si128((const __m128i *)(const void *)(block + 2 + j));
            __m512 x = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)));
            if (n - i - j >= 16)
                _mm512_storeu_ps(dst + i + j, x);
            else
                _mm512_mask_storeu_ps(dst + i + j, first16(n - i - j), x);
        }
    }
}

static void widen(enum dtype type, int rows, int n, const void *src, int ld, float *dst)
{
    const size_t step = dtype_bytes(type, (size_t)ld);
    const char *p = src;
    for (int i = 0; i < rows; i++, p += step, dst += n)
        if (type == DTYPE_F16)
            widen_row(DTYPE_F16, p, dst, n);
        else if (type == DTYPE_BF16)
            widen_row(DTYPE_BF16, p, dst, n);
        else
            widen_q8(n, p, dst);
}

/* eˣ to about 2 ulp: 2ⁿ times the Taylor polynomial on |r| ≤ ln2/2, whose next term is below
 * 6e-9. Below −87 the result is 0, above 88 it saturates. */
INLINE __m512 exp16(__m512 x)
{
    __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    __m512 z = _mm512_min_ps(_mm512_set1_ps(88.0f), x); /* in this order a NaN survives */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(z, _mm512_set1_ps(1.44269504f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), z);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), tiny, _mm512_setzero_ps());
}

static float max(const float *x, int n)
{
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < n; i += 16)
        top = _mm512_mask_max_ps(top, first16(n - i), _mm512_maskz_loadu_ps(first16(n - i), x + i),
                                 top);
    return _mm512_reduce_max_ps(top);
}

static float exp_sum(float *x, int n, float top)
{
    __m512 sum = _mm512_setzero_ps(), shift = _mm512_set1_ps(top);
    for (int i = 0; i < n; i += 16) {
        __mmask16 mask = first16(n - i);
        __m512 y = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), shift));
        _mm512_mask_storeu_ps(x + i, mask, y);
        sum = _mm512_mask_add_ps(sum, mask, sum, y);
    }
    return _mm512_reduce_add_ps(sum);
}

static void scale(float *y, const float *x, int n, float factor)
{
    __m512 f = _mm512_set1_ps(factor);
    for (int i = 0; i < n; i += 16) {
        __mmask16 mask = first16(n - i);
        _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(f, _mm512_maskz_loadu_ps(mask, x + i)));
    }
}

void cpu_avx512_use(struct cpu_isa *isa)
{
    isa->name = "AVX-512 VNNI";
    isa->dots = dots;
    isa->scores = scores;
    isa->gemm = any_gemm;
    isa->fast_gemm = true;
    isa->direct = CPU_FEW;
    isa->widen = widen;
    isa->max = max;
    isa->exp_sum = exp_sum;
    isa->scale = scale;
    cpu_avx512_use_packed(isa);
}
#endif
