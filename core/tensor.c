/* Views of numbers. Whoever makes a view has checked its size; nothing is checked again here. */
#include "core/tensor.h"

#include <math.h>
#include <stdlib.h>

#define CHUNK ((size_t)2048) /* a multiple of every block */

size_t tensor_elements(const struct tensor *t)
{
    size_t n = t->data ? 1 : 0;
    for (int i = 0; i < t->rank; i++)
        n *= t->dim[i];
    return n;
}

size_t tensor_bytes(const struct tensor *t)
{
    return dtype_bytes(t->dtype, tensor_elements(t));
}

void tensor_row_f32(const struct tensor *t, size_t row, float *out)
{
    size_t n = t->dim[t->rank - 1];
    dtype_to_f32(t->dtype, (const char *)t->data + row * dtype_bytes(t->dtype, n), out, n);
}

int tensor_to_f32(const struct tensor *t, float **out, struct err *e)
{
    size_t n = tensor_elements(t);
    *out = mem_calloc(n, sizeof **out);
    if (!*out)
        return err_nomem(e, n * sizeof **out, "a tensor as fp32");
    dtype_to_f32(t->dtype, t->data, *out, n);
    return OK;
}

struct matrix tensor_matrix(const struct tensor *t)
{
    size_t rows = 1;
    for (int i = 0; i + 1 < t->rank; i++)
        rows *= t->dim[i];
    return (struct matrix){t->data, t->dtype, (int)rows, (int)t->dim[t->rank - 1]};
}

int tensor_check_finite(const struct tensor *t, const char *name, struct err *e)
{
    float x[CHUNK];
    size_t n = tensor_elements(t);
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t m = n - at < CHUNK ? n - at : CHUNK;
        dtype_to_f32(t->dtype, (const char *)t->data + dtype_bytes(t->dtype, at), x, m);
        float sum = 0; /* 0·x is 0 for every finite x and NaN for the rest */
        for (size_t i = 0; i < m; i++)
            sum += 0 * x[i];
        for (size_t i = 0; sum != 0 && i < m; i++)
            if (!isfinite(x[i]))
                return err_set(e, ERR_NUMERIC, "%s: number %zu is %s", name, at + i,
                               isnan(x[i]) ? "NaN" : "infinite");
    }
    return OK;
}
