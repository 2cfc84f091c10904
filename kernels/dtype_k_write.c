/* Making Q6_0 and the superblocks Q4_K and Q6_K: each run's scale (and minimum) is the best of a
 * few candidates by squared error, then rounded to what the block can say, and the numbers are
 * rounded anew with that. Not the reference's search, but its layout and its kind of error. */
#include <math.h>
#include <string.h>

#include "kernels/dtype_blocks.h"

enum { SUPER = 256, RUN4 = 32, RUN6 = 16 };

static void put_half(uint8_t *p, float f)
{
    uint16_t h = f32_to_f16(f);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

static float half_of(const uint8_t *p)
{
    return f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static int clamp(float v, int lo, int hi)
{
    return v < (float)lo ? lo : v > (float)hi ? hi : (int)v;
}

/* x ≈ scale·q − min with q 0 … 15 and min ≥ 0: least squares over q from several step widths. */
static void fit_run(const float *x, float *scale, float *min)
{
    float lo = 0, hi = 0, best = INFINITY;
    for (int i = 0; i < RUN4; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    *scale = *min = 0;
    for (int k = -4; k <= 4 && hi > lo; k++) {
        float inverse = (15 + 0.25f * (float)k) / (hi - lo);
        double sq = 0, sx = 0, sqq = 0, sqx = 0, off = 0;
        int q[RUN4];
        for (int i = 0; i < RUN4; i++) {
            q[i] = clamp(roundf((x[i] - lo) * inverse), 0, 15);
            sq += q[i];
            sx += (double)x[i];
            sqq += q[i] * q[i];
            sqx += q[i] * (double)x[i];
        }
        double det = RUN4 * sqq - sq * sq;
        double a = det > 0 ? (RUN4 * sqx - sq * sx) / det : 0, m = (a * sq - sx) / RUN4;
        if (m < 0) { /* the format has no positive shift */
            m = 0;
            a = sqq > 0 ? sqx / sqq : 0;
        }
        for (int i = 0; i < RUN4; i++)
            off += (a * q[i] - m - (double)x[i]) * (a * q[i] - m - (double)x[i]);
        if (a > 0 && off < (double)best) {
            best = (float)off;
            *scale = (float)a;
            *min = (float)m;
        }
    }
    if (hi == lo) /* all zero, or all the same negative number */
        *min = -lo;
    else if (*scale == 0)
        *scale = (hi - lo) / 15, *min = -lo;
}

void dtype_write_q4_k(const float *x, uint8_t *b)
{
    float scale[8], min[8], most_scale = 0, most_min = 0;
    uint8_t *s = b + 4;
    memset(b, 0, 144);
    for (int j = 0; j < 8; j++) {
        fit_run(x + j * RUN4, &scale[j], &min[j]);
        most_scale = fmaxf(most_scale, scale[j]);
        most_min = fmaxf(most_min, min[j]);
    }
    put_half(b, most_scale / 63);
    put_half(b + 2, most_min / 63);
    float d = half_of(b), dmin = half_of(b + 2);
    for (int j = 0; j < 8; j++) {
        int sc = d > 0 ? clamp(roundf(scale[j] / d), 0, 63) : 0;
        int m = dmin > 0 ? clamp(roundf(min[j] / dmin), 0, 63) : 0;
        if (j < 4) {
            s[j] |= (uint8_t)sc;
            s[j + 4] |= (uint8_t)m;
        } else {
            s[j + 4] = (uint8_t)((sc & 15) | (m & 15) << 4);
            s[j - 4] |= (uint8_t)(sc >> 4 << 6);
            s[j] |= (uint8_t)(m >> 4 << 6);
        }
        float step = d * (float)sc, shift = dmin * (float)m;
        uint8_t *q = b + 16 + j / 2 * RUN4;
        for (int i = 0; i < RUN4; i++) {
            int v = step > 0 ? clamp(roundf((x[j * RUN4 + i] + shift) / step), 0, 15) : 0;
            q[i] |= (uint8_t)(v << 4 * (j % 2));
        }
    }
}

/* x[n] ≈ scale·q with q −32 … 31; the scale carries the sign of the largest number. */
static float fit_run_6(const float *x, int n)
{
    float most = 0, best = INFINITY, scale = 0;
    for (int i = 0; i < n; i++)
        most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    for (int k = -4; k <= 4 && most != 0; k++) {
        float inverse = -(32 + 0.25f * (float)k) / most;
        double qq = 0, qx = 0, off = 0;
        int q[RUN4];
        for (int i = 0; i < n; i++) {
            q[i] = clamp(roundf(x[i] * inverse), -32, 31);
            qq += q[i] * q[i];
            qx += q[i] * (double)x[i];
        }
        double a = qq > 0 ? qx / qq : 0;
        for (int i = 0; i < n; i++)
            off += (a * q[i] - (double)x[i]) * (a * q[i] - (double)x[i]);
        if (off < (double)best) {
            best = (float)off;
            scale = (float)a;
        }
    }
    return scale;
}

void dtype_write_q6_0(const float *x, uint8_t *b)
{
    memset(b, 0, 26);
    put_half(b, fit_run_6(x, RUN4));
    float d = half_of(b);
    for (int i = 0; i < RUN4; i++) {
        int v = 32 + (d != 0 ? clamp(roundf(x[i] / d), -32, 31) : 0);
        b[2 + i % 16] |= (uint8_t)((v & 15) << i / 16 * 4);
        b[18 + i % 8] |= (uint8_t)(v >> 4 << i / 8 * 2);
    }
}

void dtype_write_q6_k(const float *x, uint8_t *b)
{
    float scale[16], most = 0;
    memset(b, 0, 210);
    for (int j = 0; j < 16; j++) {
        scale[j] = fit_run_6(x + j * RUN6, RUN6);
        most = fabsf(scale[j]) > fabsf(most) ? scale[j] : most;
    }
    put_half(b + 208, most / -128);
    float d = half_of(b + 208);
    for (int j = 0; j < 16; j++) {
        int sc = d != 0 ? clamp(roundf(scale[j] / d), -128, 127) : 0, half = j / 8, run = j % 8 / 2;
        float step = d * (float)sc;
        uint8_t *low = b + half * 64 + run % 2 * 32 + j % 2 * RUN6;
        uint8_t *high = b + 128 + half * 32 + j % 2 * RUN6;
        b[192 + j] = (uint8_t)sc;
        for (int i = 0; i < RUN6; i++) {
            int v = step != 0 ? clamp(roundf(x[j * RUN6 + i] / step), -32, 31) : 0;
            v += 32;
            low[i] |= (uint8_t)((v & 15) << 4 * (run / 2));
            high[i] |= (uint8_t)(v >> 4 << 2 * run);
        }
    }
}
