/* Block types that are only read: the five- and six-bit blocks of 32, the superblocks of 256 (K
 * types) and the ones with a table of levels. Scalar, in the order of operations of the reference
 * readers, so that every number comes out to the last bit. Refuses nothing, see dtype.c. */
#include <string.h>

#include "kernels/dtype_blocks.h"

static float half_at(const uint8_t *p)
{
    return f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

/* The blocks' numbers come in runs whose scale, shift and bytes are the same, and the loops below
 * go by runs: that is what compilers make fast. */

static uint32_t bits_at(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Q5_0: d, 32 fifth bits, nibbles (low: first half); y = d·(q − 16). */
void dtype_read_q5_0(const uint8_t *b, float *y)
{
    float d = half_at(b);
    uint32_t high = bits_at(b + 2);
    for (int i = 0; i < 16; i++) {
        int low = (b[6 + i] & 15) | (int)(high >> i & 1) << 4;
        int top = b[6 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        y[i] = d * (float)(low - 16);
        y[i + 16] = d * (float)(top - 16);
    }
}

/* Q5_1: d, m, 32 fifth bits, nibbles; y = d·q + m. */
void dtype_read_q5_1(const uint8_t *b, float *y)
{
    float d = half_at(b), m = half_at(b + 2);
    uint32_t high = bits_at(b + 4);
    for (int i = 0; i < 16; i++) {
        int low = (b[8 + i] & 15) | (int)(high >> i & 1) << 4;
        int top = b[8 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        y[i] = (float)low * d + m;
        y[i + 16] = (float)top * d + m;
    }
}

/* Q6_0: d, nibbles as Q5_0, 8 bytes of what is above them: numbers i, i + 8, i + 16 and i + 24 in
 * pairs of bits; y = d·(q − 32). */
void dtype_open_q6_0(const uint8_t *b, uint8_t u[32])
{
    for (int i = 0; i < 32; i++)
        u[i] =
            (uint8_t)((b[2 + i % 16] >> i / 16 * 4 & 15) | (b[18 + i % 8] >> i / 8 * 2 & 3) << 4);
}

void dtype_read_q6_0(const uint8_t *b, float *y)
{
    uint8_t u[32];
    dtype_open_q6_0(b, u);
    for (int i = 0; i < 32; i++)
        y[i] = half_at(b) * (float)(u[i] - 32);
}

/* Q2_K: 16 bytes of scale (low nibble) and minimum (high nibble), 64 bytes of 2-bit quants, d,
 * dmin. A byte of quants serves the four runs of 32 of its half. */
void dtype_read_q2_k(const uint8_t *b, float *y)
{
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int j = 0; j < 16; j++) { /* runs of 16 */
        const uint8_t *q = b + 16 + j / 8 * 32 + j % 2 * 16;
        float scale = d * (float)(b[j] & 15), min = dmin * (float)(b[j] >> 4);
        int shift = j % 8 / 2 * 2;
        for (int i = 0; i < 16; i++)
            y[j * 16 + i] = scale * (float)(q[i] >> shift & 3) - min;
    }
}

/* Q3_K: 32 bytes of third bits (clear: 4 less), 64 bytes of 2-bit quants, 16 scales of 6 bits
 * (8 bytes of low nibbles, 4 bytes of high pairs), d. */
void dtype_read_q3_k(const uint8_t *b, float *y)
{
    const uint8_t *s = b + 96;
    float d = half_at(b + 108);
    for (int j = 0; j < 16; j++) {
        const uint8_t *q = b + 32 + j / 8 * 32 + j % 2 * 16, *third = b + j % 2 * 16;
        int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4, high = s[8 + j % 4] >> 2 * (j / 4) & 3;
        float scale = d * (float)((low | high << 4) - 32);
        int shift = j % 8 / 2 * 2;
        for (int i = 0; i < 16; i++)
            y[j * 16 + i] = scale * (float)((q[i] >> shift & 3) + (third[i] >> j / 2 & 1) * 4 - 4);
    }
}

/* Eight scales and minima of 6 bits in 12 bytes, as Q4_K and Q5_K keep them. */
static void scale_min(const uint8_t *s, int j, float *scale, float *min)
{
    if (j < 4) {
        *scale = (float)(s[j] & 63);
        *min = (float)(s[j + 4] & 63);
    } else {
        *scale = (float)((s[j + 4] & 15) | s[j - 4] >> 6 << 4);
        *min = (float)(s[j + 4] >> 4 | s[j] >> 6 << 4);
    }
}

/* Q4_K: d, dmin, scales, 128 bytes of nibbles: 32 bytes hold a run of 32 low and one high. */
void dtype_read_q4_k(const uint8_t *b, float *y)
{
    float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = b + 16 + j / 2 * 32;
        float scale, min;
        scale_min(b + 4, j, &scale, &min);
        scale *= d;
        min *= dmin;
        for (int i = 0; i < 32; i++)
            y[j * 32 + i] = scale * (float)(q[i] >> 4 * (j % 2) & 15) - min;
    }
}

/* Q5_K: as Q4_K with 32 bytes of fifth bits before the nibbles, bit j for run j. */
void dtype_read_q5_k(const uint8_t *b, float *y)
{
    float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = b + 48 + j / 2 * 32;
        float scale, min;
        scale_min(b + 4, j, &scale, &min);
        scale *= d;
        min *= dmin;
        for (int i = 0; i < 32; i++) {
            int high = b[16 + i] >> j & 1;
            y[j * 32 + i] = scale * (float)((q[i] >> 4 * (j % 2) & 15) + 16 * high) - min;
        }
    }
}

/* Q6_K: 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, d. In each half of 128 the
 * runs 0 and 1 are the low nibbles of bytes 0 … 63, the runs 2 and 3 the high ones. */
void dtype_read_q6_k(const uint8_t *b, float *y)
{
    float d = half_at(b + 208);
    for (int j = 0; j < 16; j++) { /* runs of 16 */
        int half = j / 8, run = j % 8 / 2;
        const uint8_t *low = b + half * 64 + run % 2 * 32 + j % 2 * 16;
        const uint8_t *high = b + 128 + half * 32 + j % 2 * 16;
        float scale = d * (float)(int8_t)b[192 + j];
        int shift = 4 * (run / 2);
        for (int i = 0; i < 16; i++)
            y[j * 16 + i] =
                scale * (float)((low[i] >> shift & 15) + (high[i] >> 2 * run & 3) * 16 - 32);
    }
}

void dtype_open_super(enum dtype type, const uint8_t *b, struct dtype_super *s)
{
    const uint8_t *nibbles = type == DTYPE_Q5_K ? b + 48 : b + 16;
    memcpy(&s->d, type == DTYPE_Q6_K ? b + 208 : b, 2);
    memcpy(&s->m, b + 2, 2); /* no such thing in Q6_K */
    if (type == DTYPE_Q6_K) {
        memcpy(s->scale, b + 192, 16);
        for (int run = 0; run < 8; run++) {
            const uint8_t *low = b + run / 4 * 64 + run % 2 * 32, *high = b + 128 + run / 4 * 32;
            int shift = run % 4 / 2 * 4, pair = run % 4 * 2;
            for (int i = 0; i < 32; i++)
                s->u[run * 32 + i] = (uint8_t)((low[i] >> shift & 15) | (high[i] >> pair & 3) << 4);
        }
        return;
    }
    for (int run = 0; run < 8; run++) {
        float scale, min;
        scale_min(b + 4, run, &scale, &min);
        s->scale[run] = (uint8_t)scale;
        s->min[run] = (uint8_t)min;
        for (int i = 0; i < 32; i++)
            s->u[run * 32 + i] = nibbles[run / 2 * 32 + i] >> run % 2 * 4 & 15;
        for (int i = 0; i < 32 && type == DTYPE_Q5_K; i++)
            s->u[run * 32 + i] |= (uint8_t)((b[16 + i] >> run & 1) << 4);
    }
}

/* 32 nibbles that name one of 16 levels, low ones first. */
static void by_level(const uint8_t *q, float scale, const int8_t *level, float *y)
{
    for (int i = 0; i < 16; i++) {
        y[i] = scale * (float)level[q[i] & 15];
        y[i + 16] = scale * (float)level[q[i] >> 4];
    }
}

/* The levels of the IQ4 types. */
static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

/* IQ4_NL: d, nibbles. */
void dtype_read_iq4_nl(const uint8_t *b, float *y)
{
    by_level(b + 2, half_at(b), iq4, y);
}

void dtype_as_q8_0(enum dtype type, const uint8_t *src, uint8_t *dst, size_t n)
{
    size_t head = type == DTYPE_Q5_0 ? 6 : 2;
    for (size_t b = 0; b < n / 32; b++, src += head + 16, dst += 34) {
        const uint8_t *nibbles = src + head;
        int8_t q[32];
        for (int i = 0; i < 16; i++) {
            q[i] = (int8_t)(nibbles[i] & 15);
            q[16 + i] = (int8_t)(nibbles[i] >> 4);
        }
        uint32_t high = type == DTYPE_Q5_0 ? bits_at(src + 2) : 0;
        for (int i = 0; i < 32; i++)
            q[i] =
                type == DTYPE_Q5_0 ? (int8_t)(q[i] + (int8_t)(high >> i & 1) * 16 - 16) : iq4[q[i]];
        memcpy(dst, src, 2);
        memcpy(dst + 2, q, sizeof q);
    }
}

/* IQ4_XS: d, eight scales of 6 bits (2 bytes of high pairs, 4 bytes of low nibbles), then runs of
 * 32 as IQ4_NL. */
void dtype_read_iq4_xs(const uint8_t *b, float *y)
{
    float d = half_at(b);
    int high = b[2] | b[3] << 8;
    for (int j = 0; j < 8; j++) {
        int scale = (b[4 + j / 2] >> 4 * (j % 2) & 15) | (high >> 2 * j & 3) << 4;
        by_level(b + 8 + j * 16, d * (float)(scale - 32), iq4, y + j * 32);
    }
}

/* MXFP4: an exponent and 32 numbers of one sign, two exponent and one mantissa bit; the table
 * holds them doubled, so the scale is 2^(e − 128). */
void dtype_read_mxfp4(const uint8_t *b, float *y)
{
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    uint32_t bits = b[0] < 2 ? 0x200000u << b[0] : (b[0] - 1u) << 23;
    float d;
    memcpy(&d, &bits, sizeof d);
    by_level(b + 1, d, doubled, y);
}
