/* fp32 to FP8 weights: a scale for each block, the largest number of the block at E4M3's largest.
 */
#include <math.h>

#include "core/fp8.h"

#define E4M3_MAX 448.0f

/* Nearest, ties to even; beyond the largest number the largest. */
uint8_t fp8_from_f32(float f)
{
    uint8_t sign = signbit(f) ? 0x80 : 0;
    float a = fabsf(f);
    int exponent;
    if (isnan(f))
        return 0x7f;
    if (a >= E4M3_MAX)
        return (uint8_t)(sign | 0x7e);
    frexpf(a, &exponent);
    if (a == 0 || exponent < -5)
        exponent = -5; /* subnormals step as the smallest normals do */
    /* Eighths of the leading digit's place: rintf rounds ties to even. A carry into the next power
     * of two is the next code as well. */
    int steps = (int)rintf(ldexpf(a, 4 - exponent));
    return (uint8_t)(sign | (steps + (exponent + 5) * 8));
}

void fp8_write(const float *x, size_t rows, size_t cols, float *scale, uint8_t *out)
{
    size_t across = (cols + FP8_BLOCK - 1) / FP8_BLOCK;
    for (size_t r = 0; r < rows; r += FP8_BLOCK)
        for (size_t c = 0; c < cols; c += FP8_BLOCK) {
            size_t r1 = r + FP8_BLOCK < rows ? r + FP8_BLOCK : rows;
            size_t c1 = c + FP8_BLOCK < cols ? c + FP8_BLOCK : cols;
            float most = 0;
            for (size_t i = r; i < r1; i++)
                for (size_t j = c; j < c1; j++)
                    most = fmaxf(most, fabsf(x[i * cols + j]));
            float s = most > 0 ? most / E4M3_MAX : 1;
            if (scale)
                scale[r / FP8_BLOCK * across + c / FP8_BLOCK] = s;
            for (size_t i = r; out && i < r1; i++)
                for (size_t j = c; j < c1; j++)
                    out[i * cols + j] = fp8_from_f32(x[i * cols + j] / s);
        }
}
