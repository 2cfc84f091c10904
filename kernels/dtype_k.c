/* Block types that are only read: the five-bit blocks of 32, the superblocks of 256 (K types) and
 * the ones with a table of levels. Scalar, in the order of operations of the reference readers, so
 * that every number comes out to the last bit. Refuses nothing, see dtype.c. */
#include <string.h>

#include "kernels/dtype_blocks.h"

enum { SUPER = 256 };

static float half_at(const uint8_t *p)
{
    return f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static int nibble(const uint8_t *q, int i, int half)
{
    return i < half ? q[i] & 15 : q[i - half] >> 4;
}

/* Q5_0: d, 32 fifth bits, nibbles; y = d·(q − 16). */
void dtype_read_q5_0(const uint8_t *b, float *y)
{
    float d = half_at(b);
    for (int i = 0; i < 32; i++) {
        int high = b[2 + i / 8] >> i % 8 & 1;
        y[i] = d * (float)((nibble(b + 6, i, 16) | high << 4) - 16);
    }
}

/* Q5_1: d, m, 32 fifth bits, nibbles; y = d·q + m. */
void dtype_read_q5_1(const uint8_t *b, float *y)
{
    float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 32; i++) {
        int high = b[4 + i / 8] >> i % 8 & 1;
        y[i] = (float)(nibble(b + 8, i, 16) | high << 4) * d + m;
    }
}

/* Q2_K: 16 bytes of scale (low nibble) and minimum (high nibble), 64 bytes of 2-bit quants, d,
 * dmin. A byte of quants serves the four runs of 32 of its half. */
void dtype_read_q2_k(const uint8_t *b, float *y)
{
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int i = 0; i < SUPER; i++) {
        int scale = b[i / 16], q = b[16 + i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3;
        y[i] = d * (float)(scale & 15) * (float)q - dmin * (float)(scale >> 4);
    }
}

/* Q3_K: 32 bytes of third bits (clear: 4 less), 64 bytes of 2-bit quants, 16 scales of 6 bits
 * (8 bytes of low nibbles, 4 bytes of high pairs), d. */
void dtype_read_q3_k(const uint8_t *b, float *y)
{
    const uint8_t *s = b + 96;
    float d = half_at(b + 108), scale[16];
    for (int i = 0; i < 16; i++) {
        int high = s[8 + i % 4] >> 2 * (i / 4) & 3;
        scale[i] = d * (float)((nibble(s, i, 8) | high << 4) - 32);
    }
    for (int i = 0; i < SUPER; i++) {
        int q = b[32 + i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3;
        int high = b[i % 32] >> i / 32 & 1;
        y[i] = scale[i / 16] * (float)(q - (high ? 0 : 4));
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
    for (int i = 0; i < SUPER; i++) {
        int half = i / 128, run = i % 128 / 32;
        int low = b[half * 64 + run % 2 * 32 + i % 32] >> 4 * (run / 2) & 15;
        int high = b[128 + half * 32 + i % 32] >> 2 * run & 3;
        float scale = d * (float)(int8_t)b[192 + i / 16];
        y[i] = scale * (float)((low | high << 4) - 32);
    }
}

/* The sixteen levels of the IQ4 types. */
static const int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};

/* IQ4_NL: d, nibbles that name a level. */
void dtype_read_iq4_nl(const uint8_t *b, float *y)
{
    float d = half_at(b);
    for (int i = 0; i < 32; i++)
        y[i] = d * (float)levels[nibble(b + 2, i, 16)];
}

/* IQ4_XS: d, eight scales of 6 bits (2 bytes of high pairs, 4 bytes of low nibbles), then runs of
 * 32 as IQ4_NL. */
void dtype_read_iq4_xs(const uint8_t *b, float *y)
{
    float d = half_at(b);
    int high = b[2] | b[3] << 8;
    for (int j = 0; j < 8; j++) {
        int scale = (b[4 + j / 2] >> 4 * (j % 2) & 15) | (high >> 2 * j & 3) << 4;
        float dl = d * (float)(scale - 32);
        for (int i = 0; i < 32; i++)
            y[j * 32 + i] = dl * (float)levels[nibble(b + 8 + j * 16, i, 16)];
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
    for (int i = 0; i < 32; i++)
        y[i] = d * (float)doubled[nibble(b + 1, i, 16)];
}
