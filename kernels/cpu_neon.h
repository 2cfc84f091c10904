/* Vectors of NEON and the packed blocks of cpu.h, for the files of cpu_neon*.c only. Eight numbers
 * are two registers: a block's rows 0 … 3 and 4 … 7. Nothing is asked for ahead of its use. */
#ifndef MLATHE_KERNELS_CPU_NEON_H
#define MLATHE_KERNELS_CPU_NEON_H

#include <arm_neon.h>
#include <string.h>

#include "kernels/cpu.h"

#define INLINE static inline __attribute__((always_inline))

struct f8 {
    float32x4_t low, high;
};

INLINE struct f8 all8(float x)
{
    return (struct f8){vdupq_n_f32(x), vdupq_n_f32(x)};
}

INLINE struct f8 add8(struct f8 a, struct f8 b)
{
    return (struct f8){vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}

INLINE struct f8 mul8(struct f8 a, struct f8 b)
{
    return (struct f8){vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}

INLINE struct f8 mul8_all(struct f8 a, float x)
{
    return (struct f8){vmulq_n_f32(a.low, x), vmulq_n_f32(a.high, x)};
}

/* s + a·b */
INLINE struct f8 fma8(struct f8 s, struct f8 a, struct f8 b)
{
    return (struct f8){vfmaq_f32(s.low, a.low, b.low), vfmaq_f32(s.high, a.high, b.high)};
}

INLINE struct f8 fma8_all(struct f8 s, struct f8 a, float x)
{
    return (struct f8){vfmaq_n_f32(s.low, a.low, x), vfmaq_n_f32(s.high, a.high, x)};
}

INLINE struct f8 from_ints(int32x4_t low, int32x4_t high)
{
    return (struct f8){vcvtq_f32_s32(low), vcvtq_f32_s32(high)};
}

INLINE struct f8 from_f16(uint16x8_t h)
{
    float16x8_t f = vreinterpretq_f16_u16(h);
    return (struct f8){vcvt_f32_f16(vget_low_f16(f)), vcvt_high_f32_f16(f)};
}

/* Eight numbers, or the left < 8 that there are (zeros behind them). */
INLINE struct f8 load(const float *p, size_t left)
{
    if (left >= 8)
        return (struct f8){vld1q_f32(p), vld1q_f32(p + 4)};
    float t[8] = {0};
    memcpy(t, p, left * sizeof *t);
    return (struct f8){vld1q_f32(t), vld1q_f32(t + 4)};
}

INLINE void store(float *p, struct f8 v, size_t left)
{
    float t[8], *to = left >= 8 ? p : t;
    vst1q_f32(to, v.low);
    vst1q_f32(to + 4, v.high);
    if (left < 8)
        memcpy(p, t, left * sizeof *t);
}

/* --- packed weights --- */

/* d and minimum of a super-block. */
struct super {
    struct f8 d, m;
};

/* What a block's integers u mean: d·u + m (Q8_0 and Q6_0: without m); of Q6_K d·u in the first
 * half, m·u in the second. */
struct scales {
    struct f8 d, m;
};

INLINE struct f8 halves(const unsigned char *p)
{
    return from_f16(vreinterpretq_u16_u8(vld1q_u8(p)));
}

INLINE struct f8 small8(const unsigned char *p, bool sign)
{
    uint8x8_t b = vld1_u8(p);
    uint16x8_t u = vmovl_u8(b);
    int16x8_t s = sign ? vmovl_s8(vreinterpret_s8_u8(b)) : vreinterpretq_s16_u16(u);
    return from_ints(vmovl_s16(vget_low_s16(s)), vmovl_high_s16(s));
}

/* Reads what lies before the quants of a block; returns where these begin. */
INLINE const unsigned char *open_scales(const unsigned char *p, int block, enum dtype type,
                                        struct super *s, struct scales *k)
{
    bool q6 = type == DTYPE_Q6_K;
    if (cpu_is_super(type)) {
        if (block % 8 == 0) {
            s->d = halves(p);
            s->m = q6 ? s->d : mul8_all(halves(p + 16), -1);
            p += cpu_super_head(type);
        }
        k->d = mul8(s->d, small8(p, q6));
        k->m = mul8(s->m, small8(p + 8, q6));
    } else {
        k->d = halves(p);
        k->m = type == DTYPE_Q4_1 ? halves(p + 16) : mul8_all(k->d, type == DTYPE_Q4_0 ? -8 : 0);
    }
    return p + cpu_block_head(type);
}

INLINE bool without_m(enum dtype type)
{
    return type == DTYPE_Q8_0 || type == DTYPE_Q6_0;
}

INLINE size_t quants_bytes(enum dtype type)
{
    return cpu_block_bytes(type) - cpu_block_head(type);
}

/* Rows left from group `index` on. */
INLINE size_t rows_left(const struct weight *w, int index)
{
    return (size_t)(w->m.rows - index * CPU_GROUP);
}

INLINE void store_rows(float *y, struct f8 v, size_t rows, bool plus)
{
    store(y, plus ? add8(v, load(y, rows)) : v, rows);
}

/* call(…, TYPE, …) with the weight's type a constant: loops over a constant type have no branches
 * left. */
#define WITH_TYPE(type, call)                                                                      \
    switch (type) {                                                                                \
    case DTYPE_Q8_0: call(DTYPE_Q8_0); break;                                                      \
    case DTYPE_Q4_0: call(DTYPE_Q4_0); break;                                                      \
    case DTYPE_Q4_1: call(DTYPE_Q4_1); break;                                                      \
    case DTYPE_Q4_K: call(DTYPE_Q4_K); break;                                                      \
    case DTYPE_Q6_0: call(DTYPE_Q6_0); break;                                                      \
    case DTYPE_Q5_K: call(DTYPE_Q5_K); break;                                                      \
    default: call(DTYPE_Q6_K);                                                                     \
    }

#endif
