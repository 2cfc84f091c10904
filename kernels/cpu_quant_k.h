/* Products with packed super-blocks (Q4_K, Q5_K, Q6_K) and Q6_0, for AVX2: included by
 * cpu_quant.h only.
 *
 * A super-block is 256 numbers of 8 rows: d (and the minimum's, F16), then 8 blocks of 32 with
 * their own small integers: scale and minimum, or for Q6_K the scales of both halves; then quants:
 * nibbles as in Q4_0, then what lies above them. Of 4 numbers j of a row the fifth bits are bit j
 * of its 4 bytes, the fifth and sixth ones bits 2(j mod 4) of the 4 bytes of that half. Q5_1 has
 * the quants of Q5_K behind d and the (added) minimum. */
#ifndef MLATHE_KERNELS_CPU_QUANT_K_H
#define MLATHE_KERNELS_CPU_QUANT_K_H

struct super {
    __m256 d, m;
};

/* Reads the head where a super-block begins, of Q6_0 each block's; returns where the block's own
 * begins. */
INLINE const unsigned char *open_super(const unsigned char *p, int block, enum dtype type,
                                       struct super *s)
{
    if (type == DTYPE_Q6_0)
        s->d = halves(p);
    if (type == DTYPE_Q6_0 || block % 8)
        return p;
    s->d = halves(p);
    s->m = type == DTYPE_Q6_K ? s->d : halves(p + 16);
    return p + cpu_super_head(type);
}

INLINE __m256 small8(const unsigned char *p, bool sign)
{
    __m128i b = _mm_loadl_epi64((const __m128i *)(const void *)p);
    return _mm256_cvtepi32_ps(sign ? _mm256_cvtepi8_epi32(b) : _mm256_cvtepu8_epi32(b));
}

/* What a half of the block is multiplied by. */
INLINE __m256 block_d(const unsigned char *p, enum dtype type, int half, const struct super *s)
{
    if (type == DTYPE_Q6_0)
        return s->d;
    return _mm256_mul_ps(s->d, small8(p + 8 * half, type == DTYPE_Q6_K));
}

/* The block's numbers, 4 of each row a register; those of six bits signed. */
INLINE void open_k(const unsigned char *quants, enum dtype type, __m256i u[8])
{
    const __m256i low = _mm256_set1_epi8(15);
    for (int j = 0; j < 4; j++) {
        __m256i both = bytes32(quants + 32 * j);
        u[j] = _mm256_and_si256(both, low);
        u[4 + j] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    }
    for (int j = 0; j < 8 && type == DTYPE_Q5_K; j++) {
        __m256i h = bytes32(quants + 128);
        h = j < 4 ? _mm256_slli_epi16(h, 4 - j) : _mm256_srli_epi16(h, j - 4);
        u[j] = _mm256_or_si256(u[j], _mm256_and_si256(h, _mm256_set1_epi8(16)));
    }
    for (int j = 0; j < 8 && cpu_is_six(type); j++) {
        __m256i h = bytes32(quants + 128 + 32 * (j / 4));
        h = j % 4 < 2 ? _mm256_slli_epi16(h, 4 - 2 * (j % 4))
                      : _mm256_srli_epi16(h, 2 * (j % 4) - 4);
        u[j] = _mm256_or_si256(u[j], _mm256_and_si256(h, _mm256_set1_epi8(48)));
        u[j] = _mm256_sub_epi8(u[j], _mm256_set1_epi8(32));
    }
}

/* Σ u·q of 16 numbers: 4 terms of at most 2·32·127 = 8128 stay below 2¹⁵. */
INLINE __m256i half_block(const __m256i *u, const int8_t *q, bool sign)
{
    __m256i s = _mm256_setzero_si256(), pairs;
    for (int j = 0; j < 4; j++) {
        __m256i size = sign ? _mm256_abs_epi8(u[j]) : u[j], x = spread(q + 4 * j);
        x = sign ? _mm256_sign_epi8(x, u[j]) : x;
        pairs = _mm256_maddubs_epi16(size, x);
        s = _mm256_add_epi16(s, pairs);
    }
    return _mm256_madd_epi16(s, _mm256_set1_epi16(1));
}

INLINE void tile_k(const struct group *g, const struct cpu_quants *x, int t, int nt,
                   enum dtype type, float *y, int ldy, bool plus)
{
    __m256 acc[QUANT_TOKENS];
    struct super s = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int i = 0; i < nt; i++)
        acc[i] = _mm256_setzero_ps();
    const unsigned char *p = g->data;
    for (int b = 0; b < g->blocks; b++, p += g->bytes) {
        __m256i u[8];
        p = open_super(p, b, type, &s);
        prefetch(p, g->bytes);
        open_k(p + g->head, type, u);
        __m256 one = block_d(p, type, 0, &s);
        __m256 two =
            cpu_is_six(type) ? block_d(p, type, 1, &s) : _mm256_mul_ps(s.m, small8(p + 8, false));
        for (int i = 0; i < nt; i++) {
            size_t at = (size_t)(t + i) * g->blocks + b;
            const int8_t *q = x->q + at * CPU_BLOCK;
            __m256i first = half_block(u, q, cpu_is_six(type));
            __m256i second = half_block(u + 4, q + 16, cpu_is_six(type));
            __m256 scale = _mm256_broadcast_ss(x->scale + at), sum;
            if (cpu_is_six(type)) {
                sum = _mm256_mul_ps(_mm256_cvtepi32_ps(first), one);
                sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(second), two, sum);
                acc[i] = _mm256_fmadd_ps(sum, scale, acc[i]);
            } else {
                sum = _mm256_cvtepi32_ps(_mm256_add_epi32(first, second));
                acc[i] = _mm256_fmadd_ps(sum, _mm256_mul_ps(one, scale), acc[i]);
                acc[i] = _mm256_fnmadd_ps(two, _mm256_broadcast_ss(x->sum + at), acc[i]);
            }
        }
    }
    for (int i = 0; i < nt; i++)
        store_rows(y + (size_t)i * ldy, acc[i], g->rows, plus);
}

/* --- the same weights as fp32 --- */

/* Number `at` (0 … 31) of the 8 rows; p: the block. */
INLINE __m256 weights_k(const unsigned char *p, enum dtype type, int at, const struct super *s)
{
    const unsigned char *quants = p + cpu_block_head(type);
    int byte = at % 4 * 8, half = at / 16;
    __m256i w = _mm256_srli_epi32(bytes32(quants + at % 16 / 4 * 32), byte + 4 * half);
    w = _mm256_and_si256(w, _mm256_set1_epi32(15));
    if (type == DTYPE_Q5_K) {
        __m256i h = _mm256_srli_epi32(bytes32(quants + 128), byte + at / 4);
        h = _mm256_and_si256(h, _mm256_set1_epi32(1));
        w = _mm256_or_si256(w, _mm256_slli_epi32(h, 4));
    }
    if (cpu_is_six(type)) {
        __m256i h = _mm256_srli_epi32(bytes32(quants + 128 + 32 * half), byte + at / 4 % 4 * 2);
        h = _mm256_and_si256(h, _mm256_set1_epi32(3));
        w = _mm256_or_si256(w, _mm256_slli_epi32(h, 4));
        w = _mm256_sub_epi32(w, _mm256_set1_epi32(32));
        return _mm256_mul_ps(block_d(p, type, half, s), _mm256_cvtepi32_ps(w));
    }
    return _mm256_fmsub_ps(block_d(p, type, 0, s), _mm256_cvtepi32_ps(w),
                           _mm256_mul_ps(s->m, small8(p + 8, false)));
}

/* One token; four sums, or every product would wait for the one before. */
INLINE void tile_fk(const struct group *g, const float *x, enum dtype type, float *y, bool plus)
{
    __m256 acc[4];
    struct super s = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int j = 0; j < 4; j++)
        acc[j] = _mm256_setzero_ps();
    const unsigned char *p = g->data;
    for (int b = 0; b < g->blocks; b++, p += g->bytes, x += CPU_BLOCK) {
        p = open_super(p, b, type, &s);
        prefetch(p, g->bytes);
#pragma GCC unroll 32
        for (int at = 0; at < CPU_BLOCK; at++)
            acc[at % 4] = _mm256_fmadd_ps(weights_k(p, type, at, &s), _mm256_broadcast_ss(x + at),
                                          acc[at % 4]);
    }
    store_rows(y, _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])),
               g->rows, plus);
}

INLINE void unpack_k(const struct group *g, enum dtype type, float *dst, int ld)
{
    struct super s = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    const unsigned char *p = g->data;
    for (int b = 0; b < g->blocks; b++, p += g->bytes) {
        p = open_super(p, b, type, &s);
#pragma GCC unroll 32
        for (int at = 0; at < CPU_BLOCK; at++, dst += ld)
            _mm256_storeu_ps(dst, weights_k(p, type, at, &s));
    }
}

#endif
