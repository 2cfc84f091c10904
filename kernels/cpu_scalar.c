/* The portable kernels: what runs where no faster set exists. Partial sums by eights keep the
 * products exact enough in fp32 and let the compiler use whatever vectors the target has. Weights
 * stay as the file has them. */
#include <math.h>
#include <string.h>

#include "kernels/cpu.h"

enum { LANES = 8, CHUNK = 256 };

static float dot(const float *a, const float *b, int n)
{
    float s[LANES] = {0}, sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            s[l] += a[i + l] * b[i + l];
    for (; i < n; i++)
        sum += a[i] * b[i];
    for (int l = 0; l < LANES; l++)
        sum += s[l];
    return sum;
}

static const float *piece(enum dtype type, const void *b, size_t at, int n, float *tmp)
{
    if (type == DTYPE_F32)
        return (const float *)b + at;
    dtype_row_to_f32(type, (const char *)b + dtype_bytes(type, at), tmp, (size_t)n);
    return tmp;
}

static void dots(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                 int ldb, float *c, int ldc, bool add)
{
    float tmp[CHUNK];
    for (int l = 0; l < k; l += CHUNK, add = true)
        for (int j = 0; j < n; j++) {
            int len = k - l < CHUNK ? k - l : CHUNK;
            const float *row = piece(type, b, (size_t)j * ldb + l, len, tmp);
            for (int i = 0; i < m; i++) {
                float *y = c + (size_t)i * ldc + j;
                *y = (add ? *y : 0) + dot(a + (size_t)i * lda + l, row, len);
            }
        }
}

static void gemm(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                 int ldb, float *c, int ldc, bool add)
{
    float tmp[CHUNK];
    for (int i = 0; i < m && !add; i++)
        memset(c + (size_t)i * ldc, 0, (size_t)n * sizeof *c);
    for (int j = 0; j < n; j += CHUNK)
        for (int l = 0; l < k; l++) {
            int len = n - j < CHUNK ? n - j : CHUNK;
            const float *row = piece(type, b, (size_t)l * ldb + j, len, tmp);
            for (int i = 0; i < m; i++) {
                float x = a[(size_t)i * lda + l], *y = c + (size_t)i * ldc + j;
                for (int h = 0; h < len; h++)
                    y[h] += x * row[h];
            }
        }
}

static void widen(enum dtype type, int rows, int n, const void *src, int ld, float *dst)
{
    for (int i = 0; i < rows; i++)
        dtype_row_to_f32(type, (const char *)src + dtype_bytes(type, (size_t)i * ld),
                         dst + (size_t)i * n, (size_t)n);
}

static void widen_turned(enum dtype type, int rows, int n, const void *src, int ld, float *dst,
                         int ld_dst)
{
    float tmp[CHUNK];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < n; j += CHUNK) {
            int len = n - j < CHUNK ? n - j : CHUNK;
            const float *row = piece(type, src, (size_t)i * ld + j, len, tmp);
            for (int l = 0; l < len; l++)
                dst[(size_t)(j + l) * ld_dst + i] = row[l];
        }
}

static void narrow(enum dtype type, const float *src, void *dst, int n)
{
    dtype_row_from_f32(type, src, dst, (size_t)n);
}

static float max(const float *x, int n)
{
    float top = -INFINITY;
    for (int i = 0; i < n; i++)
        top = x[i] > top ? x[i] : top;
    return top;
}

static float exp_sum(float *x, int n, float top)
{
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] = expf(x[i] - top);
    return sum;
}

static void softcap(float *x, int n, float cap)
{
    for (int i = 0; i < n; i++)
        x[i] = cap * tanhf(x[i] / cap);
}

static void scale(float *y, const float *x, int n, float factor)
{
    for (int i = 0; i < n; i++)
        y[i] = factor * x[i];
}

static void norm(float *y, const float *x, const float *gamma, float eps, int n)
{
    float factor = 1 / sqrtf(dot(x, x, n) / (float)n + eps);
    for (int i = 0; i < n; i++)
        y[i] = x[i] * factor * gamma[i];
}

static void rotate(float *re, float *im, const float *cos, const float *sin, int n)
{
    for (int j = 0; j < n; j++) {
        float a = re[j], b = im[j];
        re[j] = a * cos[j] - b * sin[j];
        im[j] = a * sin[j] + b * cos[j];
    }
}

static void glu(float *y, const float *gate, const float *up, enum glu_act act, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float g = gate[i];
        if (act == GLU_SILU)
            y[i] = g / (1 + expf(-g)) * up[i];
        else
            y[i] = 0.5f * g * (1 + tanhf(0.7978845608f * (g + 0.044715f * g * g * g))) * up[i];
    }
}

static void add(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

const struct cpu_isa cpu_scalar = {
    .name = "scalar",
    .direct = 3,
    .dots = dots,
    .gemm = gemm,
    .widen = widen,
    .widen_turned = widen_turned,
    .narrow = narrow,
    .max = max,
    .exp_sum = exp_sum,
    .softcap = softcap,
    .scale = scale,
    .norm = norm,
    .rotate = rotate,
    .glu = glu,
    .add = add,
};
