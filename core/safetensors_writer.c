/* Streaming writer of one safetensors file. The header is written with the first tensor, when all
 * are declared. Refuses block types, doubled names, data out of order, and offsets that are no
 * multiple of the element (other readers reject those): declare wider types first. */
#include "core/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/json.h"

#define CHUNK ((size_t)8192) /* numbers rounded at a time */

struct safetensors_writer {
    struct file_writer *file;
    char *path;
    cJSON *header;
    struct {
        enum dtype dtype;
        size_t elements;
    } * tensor;
    size_t n, cap, next; /* next: the tensor that comes next */
    size_t have;         /* numbers of it that are written */
    size_t data_bytes;
    bool started; /* header written */
};

int safetensors_writer_new(struct safetensors_writer **out, const char *path, struct err *e)
{
    *out = NULL;
    struct safetensors_writer *w = mem_calloc(1, sizeof *w);
    if (!w)
        return err_nomem(e, sizeof *w, "a safetensors writer");
    w->path = mem_strdup(path);
    w->header = cJSON_CreateObject();
    cJSON *meta = w->header ? cJSON_AddObjectToObject(w->header, "__metadata__") : NULL;
    int rc = OK;
    if (!w->path || !meta || !cJSON_AddStringToObject(meta, "format", "pt"))
        rc = err_nomem(e, sizeof *w, "a safetensors writer");
    if (!rc)
        rc = file_writer_open(&w->file, path, e);
    if (rc) {
        safetensors_writer_abort(w);
        return rc;
    }
    *out = w;
    return OK;
}

static bool add_number(cJSON *list, size_t v)
{
    cJSON *item = cJSON_CreateNumber((double)v);
    return item && cJSON_AddItemToArray(list, item);
}

static bool describe(struct safetensors_writer *w, const char *name, const char *dtype, int rank,
                     const size_t *dim, size_t bytes)
{
    cJSON *t = cJSON_AddObjectToObject(w->header, name);
    if (!t || !cJSON_AddStringToObject(t, "dtype", dtype))
        return false;
    cJSON *shape = cJSON_AddArrayToObject(t, "shape");
    for (int i = 0; i < rank; i++)
        if (!shape || !add_number(shape, dim[i]))
            return false;
    cJSON *range = cJSON_AddArrayToObject(t, "data_offsets");
    return range && add_number(range, w->data_bytes) && add_number(range, w->data_bytes + bytes);
}

/* dtype DTYPE_COUNT: bytes of the type that is named. */
static int declare(struct safetensors_writer *w, const char *name, enum dtype dtype,
                   const char *dtype_name, int rank, const size_t *dim, struct err *e)
{
    size_t n = 1, bytes, end;
    for (int i = 0; i < rank; i++)
        if (!size_mul(n, dim[i], &n))
            return err_set(e, ERR_LIMIT, "%s: tensor %s is too large", w->path, name);
    size_t each = dtype == DTYPE_COUNT ? 1 : (size_t)dtype_traits(dtype)->block_bytes;
    if (!size_mul(n, each, &bytes) || !size_add(w->data_bytes, bytes, &end))
        return err_set(e, ERR_LIMIT, "%s: tensor %s is too large", w->path, name);
    if (w->started || json_get(w->header, name))
        return err_set(e, ERR_ARG, "%s: tensor %s is declared %s", w->path, name,
                       w->started ? "after data was written" : "twice");
    if (w->data_bytes % each)
        return err_set(e, ERR_ARG, "%s: tensor %s: declare wider types first", w->path, name);
    if (!mem_grow((void **)&w->tensor, &w->cap, w->n + 1, sizeof *w->tensor) ||
        !describe(w, name, dtype_name, rank, dim, bytes))
        return err_nomem(e, bytes, name);
    w->tensor[w->n].dtype = dtype;
    w->tensor[w->n++].elements = n;
    w->data_bytes = end;
    return OK;
}

int safetensors_writer_declare(struct safetensors_writer *w, const char *name, enum dtype dtype,
                               int rank, const size_t *dim, struct err *e)
{
    if (dtype >= DTYPE_COUNT || dtype_traits(dtype)->block != 1)
        return err_set(e, ERR_ARG, "%s: tensor %s: safetensors holds F32, F16 and BF16 only",
                       w->path, name);
    return declare(w, name, dtype, dtype_traits(dtype)->name, rank, dim, e);
}

int safetensors_writer_declare_raw(struct safetensors_writer *w, const char *name,
                                   const char *dtype, size_t rows, size_t cols, struct err *e)
{
    return declare(w, name, DTYPE_COUNT, dtype, 2, (const size_t[]){rows, cols}, e);
}

/* Length, JSON, blanks up to a multiple of eight. */
static int start(struct safetensors_writer *w, struct err *e)
{
    w->started = true;
    char *text = json_text(w->header, false);
    if (!text)
        return err_nomem(e, w->n * 100, "a safetensors header");
    size_t n = strlen(text);
    uint64_t padded = (n + 7) & ~(uint64_t)7;
    file_writer_write(w->file, &padded, sizeof padded, NULL);
    file_writer_write(w->file, text, n, NULL);
    int rc = file_writer_write(w->file, "       ", (size_t)padded - n, e);
    free(text);
    return rc;
}

int safetensors_writer_part(struct safetensors_writer *w, const float *data, size_t n,
                            struct err *e)
{
    uint8_t rounded[CHUNK * sizeof *data];
    if (w->next >= w->n || w->tensor[w->next].dtype == DTYPE_COUNT ||
        n > w->tensor[w->next].elements - w->have)
        return err_set(e, ERR_ARG, "%s: tensor %zu of %zu has fewer than %zu numbers left", w->path,
                       w->next, w->n, n);
    enum dtype dtype = w->tensor[w->next].dtype;
    int rc = w->started ? OK : start(w, e);
    for (size_t at = 0; at < n && !rc; at += CHUNK) {
        size_t m = n - at < CHUNK ? n - at : CHUNK;
        dtype_from_f32(dtype, data + at, rounded, m);
        rc = file_writer_write(w->file, rounded, dtype_bytes(dtype, m), e);
    }
    w->have += n;
    if (w->have == w->tensor[w->next].elements) {
        w->next++;
        w->have = 0;
    }
    return rc;
}

int safetensors_writer_raw(struct safetensors_writer *w, const void *data, size_t bytes,
                           struct err *e)
{
    if (w->next >= w->n || w->have || w->tensor[w->next].dtype != DTYPE_COUNT ||
        bytes != w->tensor[w->next].elements)
        return err_set(e, ERR_ARG, "%s: tensor %zu of %zu does not have %zu bytes", w->path,
                       w->next, w->n, bytes);
    w->next++;
    int rc = w->started ? OK : start(w, e);
    return rc ? rc : file_writer_write(w->file, data, bytes, e);
}

int safetensors_writer_f32(struct safetensors_writer *w, const float *data, size_t n, struct err *e)
{
    if (w->next >= w->n || w->have || n != w->tensor[w->next].elements)
        return err_set(e, ERR_ARG, "%s: tensor %zu of %zu does not have %zu numbers", w->path,
                       w->next, w->n, n);
    return safetensors_writer_part(w, data, n, e);
}

int safetensors_writer_commit(struct safetensors_writer *w, struct err *e)
{
    int rc = w->started ? OK : start(w, e);
    if (!rc && w->next < w->n)
        rc =
            err_set(e, ERR_ARG, "%s: only %zu of %zu tensors were written", w->path, w->next, w->n);
    if (!rc) {
        rc = file_writer_commit(w->file, e);
        w->file = NULL;
    }
    safetensors_writer_abort(w);
    return rc;
}

void safetensors_writer_abort(struct safetensors_writer *w)
{
    if (!w)
        return;
    file_writer_abort(w->file);
    cJSON_Delete(w->header);
    free(w->tensor);
    free(w->path);
    free(w);
}
