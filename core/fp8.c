/* FP8 weights of safetensors to fp32. Refuses matrices without scales, and scales that do not cover
 * their matrix exactly. */
#include "core/fp8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

float fp8_e4m3(uint8_t bits)
{
    int exponent = bits >> 3 & 15, mantissa = bits & 7;
    if ((bits & 0x7f) == 0x7f)
        return NAN;
    float v = exponent ? ldexpf((float)(8 + mantissa), exponent - 10)
                       : ldexpf((float)mantissa, -9); /* subnormal */
    return bits & 0x80 ? -v : v;
}

int fp8_find(struct fp8_matrix *out, const struct safetensors *st, const char *name,
             const int block[2], const char *where, struct err *e)
{
    char scale[600];
    struct tensor t;
    int rc = safetensors_get_raw(st, name, "F8_E4M3", &t, e);
    if (rc)
        return rc;
    if (!block[0] || !block[1])
        return err_set(e, ERR_FORMAT,
                       "%s: tensor %s is in FP8, but there is no quantization_config", where, name);
    *out = (struct fp8_matrix){.data = t.data,
                               .rows = t.dim[0],
                               .cols = t.dim[1],
                               .block = {(size_t)block[0], (size_t)block[1]}};
    snprintf(scale, sizeof scale, "%s" FP8_SCALE, name);
    rc = safetensors_get(st, scale, &out->scale, e);
    if (rc)
        return rc;
    size_t rows = (out->rows + out->block[0] - 1) / out->block[0];
    size_t cols = (out->cols + out->block[1] - 1) / out->block[1];
    if (out->scale.rank != 2 || out->scale.dim[0] != rows || out->scale.dim[1] != cols)
        return err_set(e, ERR_FORMAT,
                       "%s: tensor %s must be [%zu][%zu]: a scale for each %d x %d block", where,
                       scale, rows, cols, block[0], block[1]);
    char what[1200];
    snprintf(what, sizeof what, "%s: tensor %s", where, scale);
    return tensor_check_finite(&out->scale, what, e);
}

void fp8_read(const struct fp8_matrix *m, float *out)
{
    float value[256], scale = 0;
    const size_t size = dtype_bytes(m->scale.dtype, 1), across = m->scale.dim[1];
    for (int i = 0; i < 256; i++)
        value[i] = fp8_e4m3((uint8_t)i);
    for (size_t i = 0; i < m->rows; i++) {
        const char *row = (const char *)m->scale.data + i / m->block[0] * across * size;
        for (size_t j = 0; j < m->cols; j++) {
            if (j % m->block[1] == 0)
                dtype_to_f32(m->scale.dtype, row + j / m->block[1] * size, &scale, 1);
            out[i * m->cols + j] = value[m->data[i * m->cols + j]] * scale;
        }
    }
}
