/* Products with two packed groups at a time, 16 rows in 64-byte registers, for many tokens:
 * included by cpu_quant.h under CPU_VNNI only. Each number is summed in the order of the narrow
 * tiles, so that widths never change a result. */
#ifndef MLATHE_KERNELS_CPU_QUANT_PAIR_H
#define MLATHE_KERNELS_CPU_QUANT_PAIR_H

enum { PAIR_TOKENS = 8 };

struct pair {
    const unsigned char *a, *b; /* the same block of both groups */
    struct group g;             /* the first one; rows: of both */
};

INLINE __m512i pair_bytes(const struct pair *p, size_t at)
{
    __m512i low = _mm512_castsi256_si512(bytes32(p->a + at));
    return _mm512_inserti64x4(low, bytes32(p->b + at), 1);
}

INLINE __m512 pair_halves(const struct pair *p, size_t at)
{
    __m256i low =
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(p->a + at)));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(
        low, _mm_loadu_si128((const __m128i *)(const void *)(p->b + at)), 1));
}

/* Four activations to every row. */
INLINE __m512i pair_spread(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
}

/* The numbers of a block without their signs, 4 of each row a register; d and m: u·d + m. */
INLINE void pair_open(const struct pair *p, enum dtype type, __m512i u[8], __m512 *d, __m512 *m)
{
    const __m512i low = _mm512_set1_epi8(15);
    *d = pair_halves(p, 0);
    if (type == DTYPE_Q8_0) {
        for (int j = 0; j < 8; j++)
            u[j] =
                _mm512_xor_si512(pair_bytes(p, p->g.head + 32 * (size_t)j), _mm512_set1_epi8(-128));
        *m = _mm512_mul_ps(*d, _mm512_set1_ps(-128));
        return;
    }
    for (int j = 0; j < 4; j++) {
        __m512i both = pair_bytes(p, p->g.head + 32 * (size_t)j);
        u[j] = _mm512_and_si512(both, low);
        u[4 + j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
    *m = type == DTYPE_Q4_1 ? pair_halves(p, 16) : _mm512_mul_ps(*d, _mm512_set1_ps(-8));
}

INLINE void pair_tile(struct pair p, enum dtype type, const struct cpu_quants *x, int t, float *y,
                      int ldy, bool plus)
{
    __m512 acc[PAIR_TOKENS];
    for (int i = 0; i < PAIR_TOKENS; i++)
        acc[i] = _mm512_setzero_ps();
    for (int b = 0; b < p.g.blocks; b++, p.a += p.g.bytes, p.b += p.g.bytes) {
        __m512i u[8];
        __m512 d, m;
        pair_open(&p, type, u, &d, &m);
        for (int i = 0; i < PAIR_TOKENS; i++) {
            size_t at = (size_t)(t + i) * p.g.blocks + b;
            const int8_t *q = x->q + at * CPU_BLOCK;
            __m512i one = _mm512_setzero_si512(), two = one;
            for (int j = 0; j < 4; j++) {
                one = _mm512_dpbusd_epi32(one, u[j], pair_spread(q + 4 * j));
                two = _mm512_dpbusd_epi32(two, u[4 + j], pair_spread(q + 16 + 4 * j));
            }
            __m512 s = _mm512_cvtepi32_ps(_mm512_add_epi32(one, two));
            acc[i] = _mm512_fmadd_ps(s, _mm512_mul_ps(d, _mm512_set1_ps(x->scale[at])), acc[i]);
            acc[i] = _mm512_fmadd_ps(m, _mm512_set1_ps(x->sum[at]), acc[i]);
        }
    }
    __mmask16 rows = (__mmask16)(p.g.rows >= 16 ? 0xffff : (1u << p.g.rows) - 1);
    for (int i = 0; i < PAIR_TOKENS; i++, y += ldy) {
        if (plus)
            acc[i] = _mm512_add_ps(acc[i], _mm512_maskz_loadu_ps(rows, y));
        _mm512_mask_storeu_ps(y, rows, acc[i]);
    }
}

INLINE bool pairs_q(const struct weight *w)
{
    return !cpu_is_super(w->type);
}

/* Groups index and index + 1; T ≥ PAIR_TOKENS. */
INLINE void pair_q(const struct weight *w, int index, const struct cpu_quants *x, int t0, int T,
                   float *y, int ldy, bool plus)
{
    struct pair p = {.g = open_group(w, index), .b = cpu_group(w, index + 1)};
    p.a = p.g.data;
    int t = 0;
    for (; t + PAIR_TOKENS <= T; t += PAIR_TOKENS, y += (size_t)PAIR_TOKENS * ldy)
        switch (w->type) {
        case DTYPE_Q8_0: pair_tile(p, DTYPE_Q8_0, x, t0 + t, y, ldy, plus); break;
        case DTYPE_Q4_1: pair_tile(p, DTYPE_Q4_1, x, t0 + t, y, ldy, plus); break;
        default: pair_tile(p, DTYPE_Q4_0, x, t0 + t, y, ldy, plus);
        }
    if (t < T) {
        group_q(w, index, x, t0 + t, T - t, y, ldy, plus);
        group_q(w, index + 1, x, t0 + t, T - t, y + CPU_GROUP, ldy, plus);
    }
}

#endif
