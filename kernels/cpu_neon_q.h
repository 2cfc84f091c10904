/* Products of packed weights and int8 activations for NEON: included by cpu_neon.c, and by
 * cpu_neon_dot.c with the dot-product extension. All integers fit signed bytes. */
#ifndef MLATHE_KERNELS_CPU_NEON_Q_H
#define MLATHE_KERNELS_CPU_NEON_Q_H

#include "kernels/cpu_neon.h"

enum { QUANT_TOKENS = 4 }; /* tokens whose sums stay in registers */

/* s + Σ u·x of 16 numbers for 4 rows: u has 4 consecutive ones of each row a register. */
#ifdef __ARM_FEATURE_DOTPROD
INLINE int32x4_t dot16(int32x4_t s, const int8x16_t u[4], int8x16_t x)
{
    s = vdotq_laneq_s32(s, u[0], x, 0);
    s = vdotq_laneq_s32(s, u[1], x, 1);
    s = vdotq_laneq_s32(s, u[2], x, 2);
    return vdotq_laneq_s32(s, u[3], x, 3);
}
#else
/* Two products of at most 128·127 stay below 2¹⁵. */
INLINE int32x4_t pairs(int32x4_t s, int8x8_t u, int8x8_t x, int8x8_t u2, int8x8_t x2)
{
    return vpadalq_s16(s, vmlal_s8(vmull_s8(u, x), u2, x2));
}

INLINE int32x4_t dot16(int32x4_t s, const int8x16_t u[4], int8x16_t x)
{
    int32x4_t four = vreinterpretq_s32_s8(x), low = vdupq_n_s32(0), high = low;
    int8x8_t x0 = vreinterpret_s8_s32(vdup_laneq_s32(four, 0)),
             x1 = vreinterpret_s8_s32(vdup_laneq_s32(four, 1)),
             x2 = vreinterpret_s8_s32(vdup_laneq_s32(four, 2)),
             x3 = vreinterpret_s8_s32(vdup_laneq_s32(four, 3));
    low = pairs(low, vget_low_s8(u[0]), x0, vget_low_s8(u[1]), x1);
    high = pairs(high, vget_high_s8(u[0]), x0, vget_high_s8(u[1]), x1);
    low = pairs(low, vget_low_s8(u[2]), x2, vget_low_s8(u[3]), x3);
    high = pairs(high, vget_high_s8(u[2]), x2, vget_high_s8(u[3]), x3);
    return vaddq_s32(s, vpaddq_s32(low, high));
}
#endif

/* Bytes shifted to the left (less than 0: to the right), and what the mask lets through. */
INLINE uint8x16_t moved_bits(uint8x16_t v, int left, uint8_t mask)
{
    return vandq_u8(vshlq_u8(v, vdupq_n_s8((int8_t)left)), vdupq_n_u8(mask));
}

/* The block's numbers of 4 rows, 4 of each a register; p: these rows' part of the first line. */
INLINE void open_numbers(const unsigned char *p, enum dtype type, int8x16_t u[8])
{
    for (int j = 0; j < 8 && type == DTYPE_Q8_0; j++)
        u[j] = vreinterpretq_s8_u8(vld1q_u8(p + 32 * j));
    for (int j = 0; j < 8 && type != DTYPE_Q8_0; j++) {
        uint8x16_t both = vld1q_u8(p + 32 * (j % 4));
        uint8x16_t v = j < 4 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
        if (type == DTYPE_Q5_K)
            v = vorrq_u8(v, moved_bits(vld1q_u8(p + 128), 4 - j, 16));
        if (cpu_is_six(type))
            v = vorrq_u8(v, moved_bits(vld1q_u8(p + 128 + 32 * (j / 4)), 4 - 2 * (j % 4), 48));
        u[j] = vreinterpretq_s8_u8(v);
        if (cpu_is_six(type))
            u[j] = vsubq_s8(u[j], vdupq_n_s8(32));
    }
}

/* s plus a block's products with one token: numbers of rows 0 … 3 in low, of 4 … 7 in high. */
INLINE struct f8 add_block(struct f8 s, enum dtype type, const int8x16_t low[8],
                           const int8x16_t high[8], const struct scales *k,
                           const struct cpu_quants *x, size_t at)
{
    const int32x4_t zero = vdupq_n_s32(0);
    int8x16_t q0 = vld1q_s8(x->q + at * CPU_BLOCK), q1 = vld1q_s8(x->q + at * CPU_BLOCK + 16);
    int32x4_t a = dot16(zero, low, q0), b = dot16(zero, high, q0);
    if (type == DTYPE_Q6_K) {
        struct f8 sum = mul8(from_ints(a, b), k->d);
        sum = fma8(sum, from_ints(dot16(zero, low + 4, q1), dot16(zero, high + 4, q1)), k->m);
        return fma8_all(s, sum, x->scale[at]);
    }
    a = dot16(a, low + 4, q1);
    b = dot16(b, high + 4, q1);
    s = fma8(s, from_ints(a, b), mul8_all(k->d, x->scale[at]));
    return without_m(type) ? s : fma8_all(s, k->m, x->sum[at]);
}

INLINE void tile_q(const struct weight *w, int index, enum dtype type, const struct cpu_quants *x,
                   int t, int nt, float *y, int ldy, bool plus)
{
    const unsigned char *p = cpu_group(w, index);
    const int blocks = w->m.cols / CPU_BLOCK;
    struct f8 acc[QUANT_TOKENS];
    struct super s = {all8(0), all8(0)};
    for (int i = 0; i < nt; i++)
        acc[i] = all8(0);
    for (int b = 0; b < blocks; b++, p += quants_bytes(type)) {
        struct scales k;
        int8x16_t low[8], high[8];
        p = open_scales(p, b, type, &s, &k);
        open_numbers(p, type, low);
        open_numbers(p + 16, type, high);
        for (int i = 0; i < nt; i++)
            acc[i] =
                add_block(acc[i], type, low, high, &k, x, (size_t)(t + i) * (size_t)blocks + b);
    }
    for (int i = 0; i < nt; i++)
        store_rows(y + (size_t)i * ldy, acc[i], rows_left(w, index), plus);
}

INLINE void group_q(const struct weight *w, int index, enum dtype type, const struct cpu_quants *x,
                    int t0, int T, float *y, int ldy, bool plus)
{
    int t = 0;
    for (; t + QUANT_TOKENS <= T; t += QUANT_TOKENS)
        tile_q(w, index, type, x, t0 + t, QUANT_TOKENS, y + (size_t)t * ldy, ldy, plus);
    for (; t + 2 <= T; t += 2)
        tile_q(w, index, type, x, t0 + t, 2, y + (size_t)t * ldy, ldy, plus);
    if (t < T)
        tile_q(w, index, type, x, t0 + t, 1, y + (size_t)t * ldy, ldy, plus);
}

static void matmul_q(const struct weight *w, int first, int groups, const struct cpu_quants *x,
                     int t0, int T, float *y, int ldy, bool plus)
{
#define GROUP_Q(type) group_q(w, first + i, type, x, t0, T, y + i * CPU_GROUP, ldy, plus)
    for (int i = 0; i < groups; i++)
        WITH_TYPE(w->type, GROUP_Q)
#undef GROUP_Q
}

#endif
