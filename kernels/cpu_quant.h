/* Products with packed weights for AVX2: included by cpu_avx2.c only, which defines INLINE.
 *
 * A weight of block b is d·u + m with u unsigned: Q4_1 as stored, Q4_0 with m = −8d, and Q8_0 as
 * d·s with s signed. So Σ w·x ≈ d·(scale·Σ u·q) + m·sum. */
#ifndef MLATHE_KERNELS_CPU_QUANT_H
#define MLATHE_KERNELS_CPU_QUANT_H

enum {
    QUANT_TOKENS = 4,   /* tokens whose sums stay in registers */
    QUANT_AHEAD = 4096, /* bytes */
};

struct group {
    const unsigned char *data;
    size_t head, bytes; /* of a block */
    enum dtype type;
    int blocks, rows; /* rows of the matrix in this group */
};

INLINE struct group open_group(const struct weight *w, int index)
{
    return (struct group){.data = cpu_group(w, index),
                          .head = cpu_block_head(w->type),
                          .bytes = cpu_block_bytes(w->type),
                          .type = w->type,
                          .blocks = w->m.cols / CPU_BLOCK,
                          .rows = w->m.rows - index * CPU_GROUP};
}

INLINE __m256 halves(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

INLINE __m256i bytes32(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* Four activations to every row. */
INLINE __m256i spread(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Groups lie one behind the other: fetch what comes after the hardware's own look-ahead. */
INLINE void prefetch(const unsigned char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + QUANT_AHEAD + i, _MM_HINT_T1);
}

INLINE void store_rows(float *y, __m256 v, int rows, bool plus)
{
    if (plus)
        v = _mm256_add_ps(v, load(y, (size_t)rows));
    store(y, v, (size_t)rows);
}

/* Σ u·q of one block for 8 rows: low nibbles are numbers 0 … 15, high nibbles 16 … 31. */
INLINE __m256i block_q4(const __m256i *u, const int8_t *q)
{
    /* 8 terms of at most 2·15·127 = 3810 stay below 2¹⁵. */
    __m256i s = _mm256_maddubs_epi16(u[0], spread(q));
    for (int j = 1; j < 8; j++)
        s = _mm256_add_epi16(s, _mm256_maddubs_epi16(u[j], spread(q + 4 * j)));
    return _mm256_madd_epi16(s, _mm256_set1_epi16(1));
}

INLINE void tile_q4(const struct group *g, const struct cpu_quants *x, int t, int nt, bool q4_1,
                    float *y, int ldy, bool plus)
{
    const __m256i low = _mm256_set1_epi8(15);
    __m256 acc[QUANT_TOKENS];
    for (int i = 0; i < nt; i++)
        acc[i] = _mm256_setzero_ps();
    const unsigned char *p = g->data;
    for (int b = 0; b < g->blocks; b++, p += g->bytes) {
        __m256i u[8];
        prefetch(p, g->bytes);
        for (int j = 0; j < 4; j++) {
            __m256i both = bytes32(p + g->head + 32 * j);
            u[j] = _mm256_and_si256(both, low);
            u[4 + j] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        }
        __m256 d = halves(p);
        __m256 m = q4_1 ? halves(p + 16) : _mm256_mul_ps(d, _mm256_set1_ps(-8));
        for (int i = 0; i < nt; i++) {
            size_t at = (size_t)(t + i) * g->blocks + b;
            __m256 s = _mm256_cvtepi32_ps(block_q4(u, x->q + at * CPU_BLOCK));
            __m256 ds = _mm256_mul_ps(d, _mm256_broadcast_ss(x->scale + at));
            acc[i] = _mm256_fmadd_ps(s, ds, acc[i]);
            acc[i] = _mm256_fmadd_ps(m, _mm256_broadcast_ss(x->sum + at), acc[i]);
        }
    }
    for (int i = 0; i < nt; i++)
        store_rows(y + (size_t)i * ldy, acc[i], g->rows, plus);
}

INLINE void tile_q8(const struct group *g, const struct cpu_quants *x, int t, int nt, float *y,
                    int ldy, bool plus)
{
    __m256 acc[QUANT_TOKENS];
    for (int i = 0; i < nt; i++)
        acc[i] = _mm256_setzero_ps();
    const unsigned char *p = g->data;
    for (int b = 0; b < g->blocks; b++, p += g->bytes) {
        __m256i s[QUANT_TOKENS];
        prefetch(p, g->bytes);
        for (int i = 0; i < nt; i++)
            s[i] = _mm256_setzero_si256();
        for (int j = 0; j < 8; j++) {
            __m256i w = bytes32(p + g->head + 32 * j);
            __m256i size = _mm256_abs_epi8(w);
            for (int i = 0; i < nt; i++) {
                size_t at = (size_t)(t + i) * g->blocks + b;
                __m256i q = spread(x->q + at * CPU_BLOCK + 4 * j);
                __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(q, w));
                s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
        __m256 d = halves(p);
        for (int i = 0; i < nt; i++) {
            size_t at = (size_t)(t + i) * g->blocks + b;
            __m256 ds = _mm256_mul_ps(d, _mm256_broadcast_ss(x->scale + at));
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i]), ds, acc[i]);
        }
    }
    for (int i = 0; i < nt; i++)
        store_rows(y + (size_t)i * ldy, acc[i], g->rows, plus);
}

#include "kernels/cpu_quant_k.h"

INLINE void tile_q(const struct group *g, const struct cpu_quants *x, int t, int nt, float *y,
                   int ldy, bool plus)
{
    switch (g->type) {
    case DTYPE_Q8_0: tile_q8(g, x, t, nt, y, ldy, plus); break;
    case DTYPE_Q4_1: tile_q4(g, x, t, nt, true, y, ldy, plus); break;
    case DTYPE_Q6_0: tile_k(g, x, t, nt, DTYPE_Q6_0, y, ldy, plus); break;
    case DTYPE_Q4_K: tile_k(g, x, t, nt, DTYPE_Q4_K, y, ldy, plus); break;
    case DTYPE_Q5_K: tile_k(g, x, t, nt, DTYPE_Q5_K, y, ldy, plus); break;
    case DTYPE_Q6_K: tile_k(g, x, t, nt, DTYPE_Q6_K, y, ldy, plus); break;
    default: tile_q4(g, x, t, nt, false, y, ldy, plus);
    }
}

static void group_q(const struct group *g, const struct cpu_quants *x, int t0, int T, float *y,
                    int ldy, bool plus)
{
    int t = 0;
    for (; t + QUANT_TOKENS <= T; t += QUANT_TOKENS)
        tile_q(g, x, t0 + t, QUANT_TOKENS, y + (size_t)t * ldy, ldy, plus);
    for (; t + 2 <= T; t += 2)
        tile_q(g, x, t0 + t, 2, y + (size_t)t * ldy, ldy, plus);
    if (t < T)
        tile_q(g, x, t0 + t, 1, y + (size_t)t * ldy, ldy, plus);
}

static void matmul_q(const struct weight *w, int first, int groups, const struct cpu_quants *x,
                     int t0, int T, float *y, int ldy, bool plus)
{
    for (int i = 0; i < groups; i++) {
        struct group g = open_group(w, first + i);
        group_q(&g, x, t0, T, y + i * CPU_GROUP, ldy, plus);
    }
}

/* --- the same weights as fp32 --- */

/* Number `at` (0 … 31) of a block of the 8 rows; d and m are the block's. */
INLINE __m256 weights8(const unsigned char *quants, bool q8, int at, __m256 d, __m256 m)
{
    if (q8) {
        __m256i w = bytes32(quants + at / 4 * 32);
        w = _mm256_srai_epi32(_mm256_slli_epi32(w, 24 - at % 4 * 8), 24);
        return _mm256_mul_ps(d, _mm256_cvtepi32_ps(w));
    }
    __m256i w = bytes32(quants + at % 16 / 4 * 32);
    w = _mm256_srli_epi32(w, at % 4 * 8 + (at < 16 ? 0 : 4));
    __m256 u = _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(15)));
    return _mm256_fmadd_ps(d, u, m);
}

INLINE __m256 minimum(const unsigned char *block, enum dtype type, __m256 d)
{
    return type == DTYPE_Q4_1 ? halves(block + 16) : _mm256_mul_ps(d, _mm256_set1_ps(-8));
}

/* Few tokens keep several sums each, or every product would wait for the one before. */
INLINE void tile_f(const struct group *g, const float *x, int nt, bool q8, float *y, int ldy,
                   bool plus)
{
    __m256 acc[QUANT_TOKENS][4];
    size_t cols = (size_t)g->blocks * CPU_BLOCK;
    const unsigned char *p = g->data;
    const int parts = nt == 1 ? 4 : 2;
    for (int i = 0; i < nt; i++)
        for (int j = 0; j < parts; j++)
            acc[i][j] = _mm256_setzero_ps();
    for (int b = 0; b < g->blocks; b++, p += g->bytes, x += CPU_BLOCK) {
        __m256 d = halves(p), m = minimum(p, g->type, d);
        prefetch(p, g->bytes);
#pragma GCC unroll 32
        for (int at = 0; at < CPU_BLOCK; at++) {
            __m256 w = weights8(p + g->head, q8, at, d, m);
            for (int i = 0; i < nt; i++) {
                __m256 v = _mm256_broadcast_ss(x + (size_t)i * cols + at);
                acc[i][at % parts] = _mm256_fmadd_ps(w, v, acc[i][at % parts]);
            }
        }
    }
    for (int i = 0; i < nt; i++) {
        __m256 sum = _mm256_add_ps(acc[i][0], acc[i][1]);
        if (parts == 4)
            sum = _mm256_add_ps(sum, _mm256_add_ps(acc[i][2], acc[i][3]));
        store_rows(y + (size_t)i * ldy, sum, g->rows, plus);
    }
}

INLINE void tile_fs(const struct group *g, const float *x, int nt, float *y, int ldy, bool plus)
{
    if (g->type == DTYPE_Q8_0)
        tile_f(g, x, nt, true, y, ldy, plus);
    else
        tile_f(g, x, nt, false, y, ldy, plus);
}

static void group_f(const struct group *g, const float *x, int cols, int T, float *y, int ldy,
                    bool plus)
{
    for (int t = 0; t < T && cpu_is_apart(g->type); t++, y += ldy, x += cols)
        switch (g->type) {
        case DTYPE_Q6_0: tile_fk(g, x, DTYPE_Q6_0, y, plus); break;
        case DTYPE_Q4_K: tile_fk(g, x, DTYPE_Q4_K, y, plus); break;
        case DTYPE_Q5_K: tile_fk(g, x, DTYPE_Q5_K, y, plus); break;
        default: tile_fk(g, x, DTYPE_Q6_K, y, plus);
        }
    for (int t = 0; t < T && !cpu_is_apart(g->type);
         t += QUANT_TOKENS, y += (size_t)QUANT_TOKENS * ldy) {
        const float *q = x + (size_t)t * cols;
        switch (T - t) {
        case 1: tile_fs(g, q, 1, y, ldy, plus); break;
        case 2: tile_fs(g, q, 2, y, ldy, plus); break;
        case 3: tile_fs(g, q, 3, y, ldy, plus); break;
        default: tile_fs(g, q, QUANT_TOKENS, y, ldy, plus);
        }
    }
}

static void matmul_f(const struct weight *w, int first, int groups, const float *x, int T, float *y,
                     int ldy, bool plus)
{
    for (int i = 0; i < groups; i++) {
        struct group g = open_group(w, first + i);
        group_f(&g, x, w->m.cols, T, y + i * CPU_GROUP, ldy, plus);
    }
}

INLINE void unpack_tile(const struct group *g, bool q8, float *dst, int ld)
{
    const unsigned char *p = g->data;
    for (int b = 0; b < g->blocks; b++, p += g->bytes) {
        __m256 d = halves(p), m = minimum(p, g->type, d);
#pragma GCC unroll 32
        for (int at = 0; at < CPU_BLOCK; at++, dst += ld)
            _mm256_storeu_ps(dst, weights8(p + g->head, q8, at, d, m));
    }
}

static void unpack(const struct weight *w, int index, float *dst, int ld)
{
    struct group g = open_group(w, index);
    switch (g.type) {
    case DTYPE_Q8_0: unpack_tile(&g, true, dst, ld); break;
    case DTYPE_Q6_0: unpack_k(&g, DTYPE_Q6_0, dst, ld); break;
    case DTYPE_Q4_K: unpack_k(&g, DTYPE_Q4_K, dst, ld); break;
    case DTYPE_Q5_K: unpack_k(&g, DTYPE_Q5_K, dst, ld); break;
    case DTYPE_Q6_K: unpack_k(&g, DTYPE_Q6_K, dst, ld); break;
    default: unpack_tile(&g, false, dst, ld);
    }
}

/* --- sums over rows --- */

static void turned(const struct weight *w, int first, int groups, int block, const float *x,
                   float *y)
{
    size_t head = cpu_block_head(DTYPE_Q8_0), from = (size_t)block * cpu_block_bytes(DTYPE_Q8_0);
    for (int part = 0; part < CPU_BLOCK / 8; part++, y += 8) {
        __m256 s[8];
        for (int i = 0; i < 8; i++)
            s[i] = _mm256_setzero_ps();
        for (int i = 0; i < groups; i++) {
            const unsigned char *p = cpu_group(w, first + i) + from;
            __m256 d = _mm256_mul_ps(halves(p), _mm256_loadu_ps(x + (size_t)i * CPU_GROUP));
#pragma GCC unroll 8
            for (int at = 0; at < 8; at++) {
                __m256i u = bytes32(p + head + 64 * part + at / 4 * 32);
                u = _mm256_srai_epi32(_mm256_slli_epi32(u, 24 - at % 4 * 8), 24);
                s[at] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(u), d, s[at]);
            }
        }
        _mm_storeu_ps(y, sum8x4(s[0], s[1], s[2], s[3]));
        _mm_storeu_ps(y + 4, sum8x4(s[4], s[5], s[6], s[7]));
    }
}

#endif
