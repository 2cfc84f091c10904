/* retype IN.gguf OUT.gguf TYPE: the same model with its matrices in another type (F32, F16, BF16,
 * Q8_0, Q4_0, Q4_1, Q4_K, Q6_K), to bench formats against each other. Rows that a type's blocks do
 * not divide become Q4_1 (or F32). On demand: ninja retype. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/gguf_writer.h"

static enum dtype type_of(const struct tensor *t, enum dtype wanted)
{
    size_t cols = t->dim[t->rank - 1];
    if (t->rank < 2)
        return t->dtype;
    const enum dtype by_choice[] = {wanted, DTYPE_Q4_1, DTYPE_F32};
    int i = 0;
    while (cols % (size_t)dtype_traits(by_choice[i])->block)
        i++;
    return by_choice[i];
}

static int declare(struct gguf_writer *w, const struct gguf *g, enum dtype wanted, struct err *e)
{
    int rc = OK;
    for (size_t i = 0; i < gguf_tensor_count(g) && !rc; i++) {
        struct tensor t;
        rc = gguf_tensor(g, gguf_tensor_name(g, i), &t, e);
        if (!rc)
            rc = gguf_writer_declare(w, gguf_tensor_name(g, i), type_of(&t, wanted), t.rank, t.dim,
                                     e);
    }
    return rc;
}

static int write_data(struct gguf_writer *w, const struct gguf *g, struct err *e)
{
    int rc = OK;
    for (size_t i = 0; i < gguf_tensor_count(g) && !rc; i++) {
        struct tensor t;
        float *numbers = NULL;
        rc = gguf_tensor(g, gguf_tensor_name(g, i), &t, e);
        if (!rc)
            rc = tensor_to_f32(&t, &numbers, e);
        if (!rc)
            rc = gguf_writer_part(w, numbers, tensor_elements(&t), e);
        free(numbers);
    }
    return rc;
}

static int retype(const struct gguf *g, const char *path, enum dtype wanted, struct err *e)
{
    struct gguf_writer *w;
    int rc = gguf_writer_new(&w, path, e);
    if (rc)
        return rc;
    gguf_writer_copy(w, g, "");
    rc = declare(w, g, wanted, e);
    if (!rc)
        rc = write_data(w, g, e);
    if (!rc)
        return gguf_writer_commit(w, e);
    gguf_writer_abort(w);
    return rc;
}

int main(int argc, char **argv)
{
    struct err e = {0};
    struct gguf *g = NULL;
    enum dtype wanted = argc == 4 ? dtype_from_name(argv[3]) : DTYPE_COUNT;
    if (wanted == DTYPE_COUNT || !dtype_can_write(wanted)) {
        fprintf(stderr, "usage: retype IN.gguf OUT.gguf F32|F16|BF16|Q8_0|Q4_0|Q4_1|Q4_K|Q6_K\n");
        return 2;
    }
    int rc = gguf_open(&g, argv[1], &e);
    if (!rc)
        rc = retype(g, argv[2], wanted, &e);
    gguf_close(g);
    if (rc)
        fprintf(stderr, "retype: %s\n", e.text);
    return rc ? 1 : 0;
}
