/* Streaming writer of GGUF 3. Refuses over-long names, doubled tensors' data, rows that do not hold
 * whole blocks, types that cannot be made, and a commit before all declared data came. */
#include "core/gguf_writer.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"

#define ALIGNMENT ((size_t)32)
#define NAME_MAX_BYTES 63
#define ROUND ((size_t)8192) /* numbers rounded at a time: whole blocks of any type */

struct bytes {
    uint8_t *v;
    size_t n, cap;
};

struct gguf_writer {
    struct file_writer *file;
    char *path;
    struct bytes keys, infos;
    uint64_t n_keys, n_tensors;
    struct due {
        enum dtype dtype;
        size_t elements;
    } * due;
    size_t cap, next, have; /* the tensor that is due and its numbers already written */
    size_t offset;          /* of the next declared tensor in the data */
    bool started;
    struct err failed;
};

int gguf_writer_new(struct gguf_writer **out, const char *path, struct err *e)
{
    struct gguf_writer *w = mem_calloc(1, sizeof *w);
    *out = NULL;
    if (!w)
        return err_nomem(e, sizeof *w, "a GGUF writer");
    w->path = mem_strdup(path);
    int rc = w->path ? file_writer_open(&w->file, path, e) : err_nomem(e, strlen(path), "a path");
    if (rc) {
        gguf_writer_abort(w);
        return rc;
    }
    *out = w;
    return OK;
}

static void put(struct gguf_writer *w, struct bytes *b, const void *data, size_t n)
{
    if (w->failed.status)
        return;
    if (!mem_grow((void **)&b->v, &b->cap, b->n + n, 1)) {
        err_nomem(&w->failed, b->n + n, "GGUF metadata");
        return;
    }
    if (n)
        memcpy(b->v + b->n, data, n);
    b->n += n;
}

static void put_u32(struct gguf_writer *w, struct bytes *b, uint32_t v)
{
    put(w, b, &v, sizeof v);
}

static void put_u64(struct gguf_writer *w, struct bytes *b, uint64_t v)
{
    put(w, b, &v, sizeof v);
}

static void put_text(struct gguf_writer *w, struct bytes *b, const char *s, size_t n)
{
    put_u64(w, b, n);
    put(w, b, s, n);
}

static void key(struct gguf_writer *w, const char *name, size_t n, enum gguf_type type)
{
    put_text(w, &w->keys, name, n);
    put_u32(w, &w->keys, (uint32_t)type);
    w->n_keys++;
}

void gguf_writer_u32(struct gguf_writer *w, const char *name, uint32_t v)
{
    key(w, name, strlen(name), GGUF_U32);
    put_u32(w, &w->keys, v);
}

void gguf_writer_num(struct gguf_writer *w, const char *name, double v)
{
    float f = (float)v;
    key(w, name, strlen(name), GGUF_F32);
    put(w, &w->keys, &f, sizeof f);
}

void gguf_writer_bool(struct gguf_writer *w, const char *name, bool v)
{
    uint8_t byte = v;
    key(w, name, strlen(name), GGUF_BOOL);
    put(w, &w->keys, &byte, 1);
}

void gguf_writer_str(struct gguf_writer *w, const char *name, const char *v)
{
    key(w, name, strlen(name), GGUF_STRING);
    put_text(w, &w->keys, v, strlen(v));
}

static void array(struct gguf_writer *w, const char *name, enum gguf_type elem, size_t n)
{
    key(w, name, strlen(name), GGUF_ARRAY);
    put_u32(w, &w->keys, (uint32_t)elem);
    put_u64(w, &w->keys, n);
}

void gguf_writer_strs(struct gguf_writer *w, const char *name, const struct gguf_str *v, size_t n)
{
    array(w, name, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        put_text(w, &w->keys, v[i].s, v[i].n);
}

void gguf_writer_array(struct gguf_writer *w, const char *name, enum gguf_type elem, const void *v,
                       size_t n)
{
    array(w, name, elem, n);
    put(w, &w->keys, v, n * (elem == GGUF_F32 || elem == GGUF_I32 || elem == GGUF_U32 ? 4 : 1));
}

void gguf_writer_copy(struct gguf_writer *w, const struct gguf *from, const char *prefix)
{
    size_t n = strlen(prefix);
    for (size_t i = 0; i < gguf_key_count(from); i++) {
        struct gguf_value v = gguf_value(from, i);
        if (v.key.n < n || memcmp(v.key.s, prefix, n))
            continue;
        key(w, v.key.s, v.key.n, v.type);
        put(w, &w->keys, v.data, v.bytes);
    }
}

static size_t padding(size_t at)
{
    return (ALIGNMENT - at % ALIGNMENT) % ALIGNMENT;
}

static int failed(const struct gguf_writer *w, struct err *e)
{
    if (e)
        *e = w->failed;
    return w->failed.status;
}

int gguf_writer_declare(struct gguf_writer *w, const char *name, enum dtype dtype, int rank,
                        const size_t *dim, struct err *e)
{
    size_t n = 1, bytes;
    bool fits = !w->started && strlen(name) <= NAME_MAX_BYTES && rank >= 1 && rank <= 4 &&
                dtype_can_write(dtype) && dim[rank - 1] % (size_t)dtype_traits(dtype)->block == 0;
    for (int i = 0; i < rank && fits; i++)
        fits = dim[i] > 0 && size_mul(n, dim[i], &n) && n <= (size_t)1 << 48;
    if (!w->failed.status && !fits)
        err_set(&w->failed, ERR_ARG, "%s: tensor %s cannot be written as %s", w->path, name,
                dtype_traits(dtype)->name);
    if (!w->failed.status && !mem_grow((void **)&w->due, &w->cap, w->n_tensors + 1, sizeof *w->due))
        err_nomem(&w->failed, sizeof *w->due, "the list of tensors");
    if (w->failed.status)
        return failed(w, e);
    bytes = dtype_bytes(dtype, n);
    put_text(w, &w->infos, name, strlen(name));
    put_u32(w, &w->infos, (uint32_t)rank);
    for (int i = rank; i-- > 0;)
        put_u64(w, &w->infos, dim[i]);
    put_u32(w, &w->infos, (uint32_t)dtype_traits(dtype)->ggml);
    put_u64(w, &w->infos, w->offset);
    w->due[w->n_tensors++] = (struct due){dtype, n};
    w->offset += bytes + padding(bytes);
    return failed(w, e);
}

static int start(struct gguf_writer *w, struct err *e)
{
    static const uint8_t zeros[ALIGNMENT];
    struct bytes head = {0};
    w->started = true;
    put(w, &head, "GGUF", 4);
    put_u32(w, &head, 3);
    put_u64(w, &head, w->n_tensors);
    put_u64(w, &head, w->n_keys);
    size_t all = head.n + w->keys.n + w->infos.n;
    if (!w->failed.status) {
        file_writer_write(w->file, head.v, head.n, NULL);
        file_writer_write(w->file, w->keys.v, w->keys.n, NULL);
        file_writer_write(w->file, w->infos.v, w->infos.n, NULL);
        file_writer_write(w->file, zeros, padding(all), &w->failed);
    }
    free(head.v);
    return failed(w, e);
}

static void end_tensor(struct gguf_writer *w)
{
    static const uint8_t zeros[ALIGNMENT];
    const struct due *t = &w->due[w->next++];
    file_writer_write(w->file, zeros, padding(dtype_bytes(t->dtype, t->elements)), &w->failed);
    w->have = 0;
}

int gguf_writer_part(struct gguf_writer *w, const float *data, size_t n, struct err *e)
{
    uint8_t rounded[ROUND * sizeof *data];
    if (!w->failed.status && !w->started)
        start(w, e);
    if (!w->failed.status && (w->next >= w->n_tensors || n > w->due[w->next].elements - w->have ||
                              n % (size_t)dtype_traits(w->due[w->next].dtype)->block))
        err_set(&w->failed, ERR_ARG, "%s: tensor %zu of %zu does not take %zu numbers", w->path,
                w->next, (size_t)w->n_tensors, n);
    for (size_t at = 0; at < n && !w->failed.status; at += ROUND) {
        size_t m = n - at < ROUND ? n - at : ROUND;
        enum dtype dtype = w->due[w->next].dtype;
        dtype_from_f32(dtype, data + at, rounded, m);
        file_writer_write(w->file, rounded, dtype_bytes(dtype, m), &w->failed);
    }
    w->have += n;
    if (!w->failed.status && w->have == w->due[w->next].elements)
        end_tensor(w);
    return failed(w, e);
}

int gguf_writer_commit(struct gguf_writer *w, struct err *e)
{
    if (!w->failed.status && !w->started)
        start(w, e);
    if (!w->failed.status && w->next < w->n_tensors)
        err_set(&w->failed, ERR_ARG, "%s: only %zu of %zu tensors were written", w->path, w->next,
                (size_t)w->n_tensors);
    int rc = failed(w, e);
    if (!rc) {
        rc = file_writer_commit(w->file, e);
        w->file = NULL;
    }
    gguf_writer_abort(w);
    return rc;
}

void gguf_writer_abort(struct gguf_writer *w)
{
    if (!w)
        return;
    file_writer_abort(w->file);
    free(w->keys.v);
    free(w->infos.v);
    free(w->due);
    free(w->path);
    free(w);
}
