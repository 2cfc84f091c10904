/* Products with packed weights for AVX-512 and VNNI: two groups, 16 rows, meet every activation. A
 * weight is d·u + m with u an unsigned byte: Q4_1 as stored, Q4_0 with m = −8d, Q8_0 with
 * u = s + 128 and m = −128d, K types with d and m from their small integers. So Σ w·x is d·Σ u·x +
 * m·Σ x, with x itself or its int8 form; Q6_K has a d for either half of a block and m = −32d. */
#ifdef __x86_64__
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/cpu_avx512.h"

enum {
    TOKENS = 8,         /* whose sums stay in registers */
    FEW = 4,            /* the same in fp32 */
    AHEAD_BYTES = 4096, /* beyond the hardware's own look-ahead, in both groups */
};

/* Where two groups are; an odd last one stands for both. */
struct pair {
    const unsigned char *p[2];
    enum dtype type;
    int blocks, rows; /* rows to store */
};

/* A block of both: Q6_K has a d for either half, the others one d and an m. */
struct block {
    __m512i u[8]; /* 4 consecutive numbers of each row */
    __m512 d[2], m;
};

/* d and minimum of a super-block. */
struct super {
    __m512 d, m;
};

static struct pair open_pair(const struct weight *w, int index, int groups)
{
    int rows = w->m.rows - index * CPU_GROUP, most = (groups > 1 ? 2 : 1) * CPU_GROUP;
    return (struct pair){.p = {cpu_group(w, index), cpu_group(w, groups > 1 ? index + 1 : index)},
                         .type = w->type,
                         .blocks = w->m.cols / CPU_BLOCK,
                         .rows = rows < most ? rows : most};
}

INLINE __m512i line(const struct pair *g, size_t at)
{
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(g->p[0] + at));
    __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(g->p[1] + at));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

INLINE __m512 halves(const struct pair *g, size_t at)
{
    __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(g->p[0] + at));
    __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(g->p[1] + at));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}

INLINE __m512 small(const struct pair *g, size_t at, bool sign)
{
    __m128i b = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(const void *)(g->p[0] + at)),
                                   _mm_loadl_epi64((const __m128i *)(const void *)(g->p[1] + at)));
    return _mm512_cvtepi32_ps(sign ? _mm512_cvtepi8_epi32(b) : _mm512_cvtepu8_epi32(b));
}

INLINE void skip(struct pair *g, size_t bytes)
{
    g->p[0] += bytes;
    g->p[1] += bytes;
}

INLINE void prefetch(const struct pair *g, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) {
        _mm_prefetch((const char *)g->p[0] + AHEAD_BYTES + i, _MM_HINT_T1);
        _mm_prefetch((const char *)g->p[1] + AHEAD_BYTES + i, _MM_HINT_T1);
    }
}

/* The bits above the nibbles (cpu_quant_k.h has their order). */
INLINE void open_high(const struct pair *g, size_t head, enum dtype type, __m512i u[8])
{
    for (int j = 0; j < 8 && type == DTYPE_Q5_K; j++) {
        __m512i h = line(g, head + 128);
        h = j < 4 ? _mm512_slli_epi16(h, 4 - j) : _mm512_srli_epi16(h, j - 4);
        u[j] = _mm512_or_si512(u[j], _mm512_and_si512(h, _mm512_set1_epi8(16)));
    }
    for (int j = 0; j < 8 && cpu_is_six(type); j++) {
        __m512i h = line(g, head + 128 + 32 * (size_t)(j / 4));
        h = j % 4 < 2 ? _mm512_slli_epi16(h, 4 - 2 * (j % 4))
                      : _mm512_srli_epi16(h, 2 * (j % 4) - 4);
        u[j] = _mm512_or_si512(u[j], _mm512_and_si512(h, _mm512_set1_epi8(48)));
    }
}

INLINE void open_numbers(const struct pair *g, size_t head, enum dtype type, __m512i u[8])
{
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 8 && type == DTYPE_Q8_0; j++)
        u[j] = _mm512_xor_si512(line(g, head + 32 * (size_t)j), _mm512_set1_epi8(-128));
    for (int j = 0; j < 4 && type != DTYPE_Q8_0; j++) {
        __m512i both = line(g, head + 32 * (size_t)j);
        u[j] = _mm512_and_si512(both, low);
        u[4 + j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
    open_high(g, head, type, u);
}

/* Block b, which is next; moves behind it. */
INLINE void open_block(struct pair *g, int b, enum dtype type, struct super *s, struct block *k)
{
    size_t head = cpu_block_head(type), bytes = cpu_block_bytes(type);
    if (cpu_is_super(type) && b % 8 == 0) {
        s->d = halves(g, 0);
        s->m = type == DTYPE_Q6_K ? s->d : halves(g, 16);
        skip(g, cpu_super_head(type));
    }
    prefetch(g, bytes);
    open_numbers(g, head, type, k->u);
    if (type == DTYPE_Q6_K) {
        k->d[0] = _mm512_mul_ps(s->d, small(g, 0, true));
        k->d[1] = _mm512_mul_ps(s->d, small(g, 8, true));
    } else if (cpu_is_super(type)) {
        k->d[0] = _mm512_mul_ps(s->d, small(g, 0, false));
        k->m = _mm512_mul_ps(s->m, _mm512_sub_ps(_mm512_setzero_ps(), small(g, 8, false)));
    } else {
        k->d[0] = halves(g, 0);
        k->m = type == DTYPE_Q4_1
                   ? halves(g, 16)
                   : _mm512_mul_ps(k->d[0], _mm512_set1_ps(type == DTYPE_Q8_0   ? -128
                                                           : type == DTYPE_Q6_0 ? -32
                                                                                : -8));
    }
    skip(g, bytes);
}

INLINE void store_rows(float *y, __m512 v, int rows, bool plus)
{
    __mmask16 mask = first16(rows);
    if (plus)
        v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, y));
    _mm512_mask_storeu_ps(y, mask, v);
}

/* --- int8 activations --- */

/* Four activations to every row. */
INLINE __m512i spread(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
}

INLINE __m512 block_q(__m512 acc, const struct block *k, const struct cpu_quants *x, size_t at,
                      enum dtype type)
{
    const int8_t *q = x->q + at * CPU_BLOCK;
    __m512i s = _mm512_setzero_si512(), t = s;
    if (type == DTYPE_Q6_K) {
        s = _mm512_set1_epi32(-32 * x->half[2 * at]);
        t = _mm512_set1_epi32(-32 * x->half[2 * at + 1]);
    }
    for (int j = 0; j < 4; j++) {
        s = _mm512_dpbusd_epi32(s, k->u[j], spread(q + 4 * j));
        t = _mm512_dpbusd_epi32(t, k->u[4 + j], spread(q + 16 + 4 * j));
    }
    __m512 scale = _mm512_set1_ps(x->scale[at]);
    if (type == DTYPE_Q6_K) {
        __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(s), k->d[0]);
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t), k->d[1], sum);
        return _mm512_fmadd_ps(sum, scale, acc);
    }
    __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(s, t));
    acc = _mm512_fmadd_ps(sum, _mm512_mul_ps(k->d[0], scale), acc);
    return _mm512_fmadd_ps(k->m, _mm512_set1_ps(x->sum[at]), acc);
}

INLINE void tile_q(struct pair g, const struct cpu_quants *x, int t, int nt, enum dtype type,
                   float *y, int ldy, bool plus)
{
    __m512 acc[TOKENS];
    struct super s = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int i = 0; i < nt; i++)
        acc[i] = _mm512_setzero_ps();
    for (int b = 0; b < g.blocks; b++) {
        struct block k;
        open_block(&g, b, type, &s, &k);
#pragma GCC unroll 8
        for (int i = 0; i < nt; i++)
            acc[i] = block_q(acc[i], &k, x, (size_t)(t + i) * g.blocks + b, type);
    }
    for (int i = 0; i < nt; i++)
        store_rows(y + (size_t)i * ldy, acc[i], g.rows, plus);
}

INLINE void pair_q(const struct pair *g, const struct cpu_quants *x, int t0, int T, enum dtype type,
                   float *y, int ldy, bool plus)
{
    int t = 0;
    for (; t + TOKENS <= T; t += TOKENS)
        tile_q(*g, x, t0 + t, TOKENS, type, y + (size_t)t * ldy, ldy, plus);
    for (; t + 2 <= T; t += 2)
        tile_q(*g, x, t0 + t, 2, type, y + (size_t)t * ldy, ldy, plus);
    if (t < T)
        tile_q(*g, x, t0 + t, 1, type, y + (size_t)t * ldy, ldy, plus);
}

static void matmul_q(const struct weight *w, int first, int groups, const struct cpu_quants *x,
                     int t0, int T, float *y, int ldy, bool plus)
{
    for (int i = 0; i < groups; i += 2, y += 2 * CPU_GROUP) {
        struct pair g = open_pair(w, first + i, groups - i);
        switch (g.type) {
        case DTYPE_Q8_0: pair_q(&g, x, t0, T, DTYPE_Q8_0, y, ldy, plus); break;
        case DTYPE_Q4_0: pair_q(&g, x, t0, T, DTYPE_Q4_0, y, ldy, plus); break;
        case DTYPE_Q4_1: pair_q(&g, x, t0, T, DTYPE_Q4_1, y, ldy, plus); break;
        case DTYPE_Q6_0: pair_q(&g, x, t0, T, DTYPE_Q6_0, y, ldy, plus); break;
        case DTYPE_Q4_K: pair_q(&g, x, t0, T, DTYPE_Q4_K, y, ldy, plus); break;
        case DTYPE_Q5_K: pair_q(&g, x, t0, T, DTYPE_Q5_K, y, ldy, plus); break;
        default: pair_q(&g, x, t0, T, DTYPE_Q6_K, y, ldy, plus);
        }
    }
}

/* --- the same weights × fp32 --- */

/* Σ u·x of half a block for nt tokens. */
INLINE void half_f(const __m512i *u, const float *x, size_t cols, int nt, __m512 *sum)
{
    const __m512i byte = _mm512_set1_epi32(255);
    for (int i = 0; i < nt; i++)
        sum[i] = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int at = 0; at < CPU_BLOCK / 2; at++) {
        __m512i w = _mm512_srli_epi32(u[at / 4], (unsigned)(at % 4 * 8));
        __m512 f = _mm512_cvtepi32_ps(at % 4 < 3 ? _mm512_and_si512(w, byte) : w);
        for (int i = 0; i < nt; i++)
            sum[i] = _mm512_fmadd_ps(f, _mm512_set1_ps(x[(size_t)i * cols + at]), sum[i]);
    }
}

INLINE void tile_f(struct pair g, const float *x, int nt, enum dtype type, float *y, int ldy,
                   bool plus)
{
    __m512 acc[FEW], one[FEW], two[FEW];
    struct super s = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t cols = (size_t)g.blocks * CPU_BLOCK;
    for (int i = 0; i < nt; i++)
        acc[i] = _mm512_setzero_ps();
    for (int b = 0; b < g.blocks; b++, x += CPU_BLOCK) {
        struct block k;
        open_block(&g, b, type, &s, &k);
        half_f(k.u, x, cols, nt, one);
        half_f(k.u + 4, x + CPU_BLOCK / 2, cols, nt, two);
        for (int i = 0; i < nt; i++) {
            __m512 a = _mm512_loadu_ps(x + (size_t)i * cols);
            __m512 z = _mm512_loadu_ps(x + (size_t)i * cols + CPU_BLOCK / 2);
            if (type == DTYPE_Q6_K) {
                __m512 sub = _mm512_set1_ps(-32 * _mm512_reduce_add_ps(a));
                acc[i] = _mm512_fmadd_ps(k.d[0], _mm512_add_ps(one[i], sub), acc[i]);
                sub = _mm512_set1_ps(-32 * _mm512_reduce_add_ps(z));
                acc[i] = _mm512_fmadd_ps(k.d[1], _mm512_add_ps(two[i], sub), acc[i]);
            } else {
                __m512 all = _mm512_set1_ps(_mm512_reduce_add_ps(_mm512_add_ps(a, z)));
                acc[i] = _mm512_fmadd_ps(k.d[0], _mm512_add_ps(one[i], two[i]), acc[i]);
                acc[i] = _mm512_fmadd_ps(k.m, all, acc[i]);
            }
        }
    }
    for (int i = 0; i < nt; i++)
        store_rows(y + (size_t)i * ldy, acc[i], g.rows, plus);
}

INLINE void pair_f(const struct pair *g, const float *x, int T, enum dtype type, float *y, int ldy,
                   bool plus)
{
    size_t cols = (size_t)g->blocks * CPU_BLOCK;
    int t = 0;
    for (; t + FEW <= T; t += FEW)
        tile_f(*g, x + (size_t)t * cols, FEW, type, y + (size_t)t * ldy, ldy, plus);
    for (; t + 2 <= T; t += 2)
        tile_f(*g, x + (size_t)t * cols, 2, type, y + (size_t)t * ldy, ldy, plus);
    if (t < T)
        tile_f(*g, x + (size_t)t * cols, 1, type, y + (size_t)t * ldy, ldy, plus);
}

static void matmul_f(const struct weight *w, int first, int groups, const float *x, int T, float *y,
                     int ldy, bool plus)
{
    for (int i = 0; i < groups; i += 2, y += 2 * CPU_GROUP) {
        struct pair g = open_pair(w, first + i, groups - i);
        switch (g.type) {
        case DTYPE_Q8_0: pair_f(&g, x, T, DTYPE_Q8_0, y, ldy, plus); break;
        case DTYPE_Q4_0: pair_f(&g, x, T, DTYPE_Q4_0, y, ldy, plus); break;
        case DTYPE_Q4_1: pair_f(&g, x, T, DTYPE_Q4_1, y, ldy, plus); break;
        case DTYPE_Q6_0: pair_f(&g, x, T, DTYPE_Q6_0, y, ldy, plus); break;
        case DTYPE_Q4_K: pair_f(&g, x, T, DTYPE_Q4_K, y, ldy, plus); break;
        case DTYPE_Q5_K: pair_f(&g, x, T, DTYPE_Q5_K, y, ldy, plus); break;
        default: pair_f(&g, x, T, DTYPE_Q6_K, y, ldy, plus);
        }
    }
}

/* --- sums over rows --- */

/* Σ x·w over the rows of both groups for 16 numbers of a block, lane by lane. */
INLINE void turn_half(const struct pair *g, size_t at, __m512 x, __m512 s[16])
{
    for (int j = 0; j < 4; j++) {
        __m512i four = line(g, at + 32 * (size_t)j);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            __m512i w = _mm512_srai_epi32(_mm512_slli_epi32(four, (unsigned)(24 - 8 * c)), 24);
            s[4 * j + c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(w), x, s[4 * j + c]);
        }
    }
}

static void turned(const struct weight *w, int first, int groups, int block, const float *x,
                   float *y)
{
    size_t head = cpu_block_head(DTYPE_Q8_0), from = (size_t)block * cpu_block_bytes(DTYPE_Q8_0);
    for (int half = 0; half < 2; half++) {
        __m512 s[16];
        for (int i = 0; i < 16; i++)
            s[i] = _mm512_setzero_ps();
        for (int i = 0; i < groups; i += 2) {
            struct pair g = open_pair(w, first + i, groups - i);
            __mmask16 rows = first16(CPU_GROUP * (groups - i));
            __m512 d = _mm512_mul_ps(halves(&g, from),
                                     _mm512_maskz_loadu_ps(rows, x + CPU_GROUP * (size_t)i));
            turn_half(&g, from + head + 128 * (size_t)half, d, s);
        }
        _mm256_storeu_ps(y + 16 * half, sum16x8(s));
        _mm256_storeu_ps(y + 16 * half + 8, sum16x8(s + 8));
    }
}

void cpu_avx512_use_packed(struct cpu_isa *isa)
{
    isa->matmul_q = matmul_q;
    isa->matmul_f = matmul_f;
    isa->turned = turned;
}
#endif
