/* Frozen matrices in both directions. Trusts that the backend's memory is the host's. */
#include "sessions/heal_frozen.h"

#include <stdlib.h>

enum { BLOCK = 32 }; /* numbers of a Q8_0 block */

bool heal_frozen_can(const struct tensor *t)
{
    return t->data && t->rank == 2 && t->dim[0] % BLOCK == 0;
}

/* wᵀ [cols][rows] of w [rows][cols], in tiles that stay in the cache. */
static void transpose(float *to, const float *from, size_t rows, size_t cols)
{
    enum { TILE = 32 };
    for (size_t i = 0; i < rows; i += TILE)
        for (size_t j = 0; j < cols; j++)
            for (size_t k = i; k < rows && k < i + TILE; k++)
                to[j * rows + k] = from[k * cols + j];
}

int heal_frozen_init(struct heal_frozen *f, struct backend *b, const struct weight *w,
                     const struct tensor *t, struct err *e)
{
    size_t rows = t->dim[0], cols = t->dim[1], owned;
    float *plain = NULL, *turned = mem_aligned(rows * cols, sizeof *turned);
    *f = (struct heal_frozen){.b = b, .there = w};
    f->data = mem_aligned(dtype_bytes(DTYPE_Q8_0, rows * cols), 1);
    int rc = turned && f->data ? tensor_to_f32(t, &plain, e)
                               : err_nomem(e, rows * cols * sizeof *turned, "a transposed matrix");
    if (!rc) {
        struct matrix m = {f->data, DTYPE_Q8_0, (int)cols, (int)rows};
        transpose(turned, plain, rows, cols);
        dtype_from_f32(DTYPE_Q8_0, turned, f->data, rows * cols);
        rc = b->ops->weight_load(b, &m, &f->back, &owned, e);
    }
    free(plain);
    free(turned);
    return rc;
}

void heal_frozen_done(struct heal_frozen *f)
{
    if (f->back)
        f->b->ops->weight_free(f->b, f->back);
    free(f->data);
    *f = (struct heal_frozen){0};
}

void heal_frozen_apply(const struct heal_frozen *f, float *y, const float *x, int rows, bool add)
{
    f->b->ops->linear(f->b, 1, &f->there, &y, x, rows, add);
}

void heal_frozen_back(const struct heal_frozen *f, float *dx, const float *dy, int rows, bool add)
{
    const struct weight *back = f->back;
    f->b->ops->linear(f->b, 1, &back, &dx, dy, rows, add);
}
