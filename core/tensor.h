/* tensor: a borrowed, read-only view of numbers in a file, outermost dimension first. */
#ifndef MLATHE_CORE_TENSOR_H
#define MLATHE_CORE_TENSOR_H

#include "kernels/backend.h"

struct tensor {
    const void *data; /* NULL: absent */
    enum dtype dtype;
    int rank;         /* 1 … 4 */
    size_t dim[4];    /* row-major: dim[rank-1] varies fastest */
};

size_t tensor_elements(const struct tensor *t);
size_t tensor_bytes(const struct tensor *t);
/* Row i of the view seen as [elements / last dim][last dim], as fp32. */
void tensor_row_f32(const struct tensor *t, size_t row, float *out);
/* All elements as fp32 into fresh memory (free()). */
int tensor_to_f32(const struct tensor *t, float **out, struct err *e);
/* The view as a weight [dim 0 … dim rank-2][dim rank-1]. */
struct matrix tensor_matrix(const struct tensor *t);
/* ERR_NUMERIC naming the first NaN or infinity (tensor name, index). */
int tensor_check_finite(const struct tensor *t, const char *name, struct err *e);

#endif
