/* The weights of an export as one GGUF file. A base that is a GGUF lends its vocabulary as it is;
 * of a folder it is put together from tokenizer.json. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/gguf_writer.h"
#include "core/tokenizer_write.h"
#include "sessions/export.h"

struct sink {
    struct gguf_writer *w;
    struct export_meter meter;
};

static int put(void *user, const float *numbers, size_t n, struct err *e)
{
    struct sink *s = user;
    int rc = export_step(&s->meter, (double)n, e);
    return rc ? rc : gguf_writer_part(s->w, numbers, n, e);
}

static int add_vocabulary(const struct export_job *j, struct gguf_writer *w, struct err *e)
{
    struct gguf *g;
    if (j->base->format != MODEL_GGUF)
        return tokenizer_gguf_from_folder(j->base->path, j->base->hp.vocab, w, e);
    int rc = gguf_open(&g, j->base->path, e);
    if (!rc)
        gguf_writer_copy(w, g, "tokenizer.");
    gguf_close(rc ? NULL : g);
    return rc;
}

static int write_tensors(struct export_job *j, struct gguf_writer *w, struct err *e)
{
    const struct stock_export *x = &j->x;
    struct sink s = {.w = w, .meter = {.j = j}};
    int rc = OK;
    for (size_t i = 0; i < x->n && !rc; i++) {
        const struct stock_tensor *t = &x->tensor[i];
        size_t n = 1;
        for (int k = 0; k < t->rank; k++)
            n *= t->dim[k];
        s.meter.total += (double)n;
        rc = gguf_writer_declare(w, t->name, t->dtype, t->rank, t->dim, e);
    }
    for (size_t i = 0; i < x->n && !rc; i++)
        rc = stock_export_values(x, &x->tensor[i], put, &s, e);
    return rc;
}

int export_weights_gguf(struct export_job *j, struct err *e)
{
    struct gguf_writer *w;
    int rc = gguf_writer_new(&w, j->dir, e);
    if (rc)
        return rc;
    stock_gguf_keys(&j->x, j->plan->model.name, w);
    rc = add_vocabulary(j, w, e);
    if (!rc)
        rc = write_tensors(j, w, e);
    if (rc) {
        gguf_writer_abort(w);
        return rc;
    }
    rc = gguf_writer_commit(w, e);
    return rc ? rc : export_add_file(j, path_base(j->o->path), e);
}
