/* Frozen matrices in both directions. Trusts that the backend's memory is the host's. */
#include "sessions/heal_frozen.h"

#include <stdlib.h>

enum { BLOCK = 32 }; /* numbers of a Q8_0 block */

bool heal_frozen_can(const struct tensor *t)
{
    return t->data && t->rank == 2 && t->dim[0] % BLOCK == 0 && t->dim[1] % BLOCK == 0;
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

/* m[rows][cols] in Q8_0 blocks as a weight; *data stays with it. */
static int pack(struct backend *b, const float *m, size_t rows, size_t cols, struct weight **out,
                void **data, struct err *e)
{
    size_t bytes = dtype_bytes(DTYPE_Q8_0, rows * cols), owned;
    *data = mem_aligned(bytes, 1);
    if (!*data)
        return err_nomem(e, bytes, "a frozen matrix");
    dtype_from_f32(DTYPE_Q8_0, m, *data, rows * cols);
    struct matrix q = {*data, DTYPE_Q8_0, (int)rows, (int)cols};
    return b->ops->weight_load(b, &q, out, &owned, e);
}

int heal_frozen_init(struct heal_frozen *f, struct backend *b, const struct weight *w,
                     const struct tensor *t, struct err *e)
{
    size_t rows = t->dim[0], cols = t->dim[1];
    float *plain = NULL, *turned = mem_aligned(rows * cols, sizeof *turned);
    *f = (struct heal_frozen){.b = b, .there = w};
    int rc = turned ? tensor_to_f32(t, &plain, e)
                    : err_nomem(e, rows * cols * sizeof *turned, "a transposed matrix");
    if (!rc && !w) {
        rc = pack(b, plain, rows, cols, &f->own, &f->own_data, e);
        f->there = f->own;
    }
    if (!rc) {
        transpose(turned, plain, rows, cols);
        rc = pack(b, turned, cols, rows, &f->back, &f->back_data, e);
    }
    free(plain);
    free(turned);
    return rc;
}

void heal_frozen_done(struct heal_frozen *f)
{
    if (f->own)
        f->b->ops->weight_free(f->b, f->own);
    if (f->back)
        f->b->ops->weight_free(f->b, f->back);
    free(f->own_data);
    free(f->back_data);
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
