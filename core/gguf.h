/* gguf: reader of GGUF files, versions 2 and 3. The file is mapped; every count, offset, type and
 * size is checked against the file's length before use, tensors may not overlap. Values and tensors
 * point into the mapping and live until gguf_close. */
#ifndef MLATHE_CORE_GGUF_H
#define MLATHE_CORE_GGUF_H

#include "core/tensor.h"

struct gguf;

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64
};

struct gguf_str {
    const char *s; /* not NUL-terminated */
    size_t n;
};

int gguf_open(struct gguf **out, const char *path, struct err *e);
void gguf_close(struct gguf *g);
const char *gguf_path(const struct gguf *g);
size_t gguf_file_bytes(const struct gguf *g);

/* Key i in order, with its value's bytes as the file has them, for copies. */
struct gguf_value {
    struct gguf_str key;
    enum gguf_type type;
    const void *data;
    size_t bytes;
};
size_t gguf_key_count(const struct gguf *g);
struct gguf_value gguf_value(const struct gguf *g, size_t i);
bool gguf_has(const struct gguf *g, const char *key);
/* Typed lookups; an integer of any width converts when it fits. Missing key or wrong type:
 * ERR_FORMAT naming file and key. The _or forms give the fallback instead. */
int gguf_int(const struct gguf *g, const char *key, long long *out, struct err *e);
int gguf_num(const struct gguf *g, const char *key, double *out, struct err *e);
int gguf_string(const struct gguf *g, const char *key, struct gguf_str *out, struct err *e);
long long gguf_int_or(const struct gguf *g, const char *key, long long fallback);
double gguf_num_or(const struct gguf *g, const char *key, double fallback);
bool gguf_bool_or(const struct gguf *g, const char *key, bool fallback);
/* Arrays: length, then elements. 0 when absent or not an array of that kind. */
size_t gguf_array_len(const struct gguf *g, const char *key, enum gguf_type elem);
/* Array of strings: walks once, out[n] filled; n from gguf_array_len. */
int gguf_array_strings(const struct gguf *g, const char *key, struct gguf_str *out, size_t n,
                       struct err *e);
/* Raw little-endian elements of a fixed-size array (unaligned), NULL when absent. */
const void *gguf_array_data(const struct gguf *g, const char *key, enum gguf_type elem);

size_t gguf_tensor_count(const struct gguf *g);
/* Tensor i: name (NUL-terminated, owned by g) and view (dims outermost first). */
const char *gguf_tensor_name(const struct gguf *g, size_t i);
/* ERR_FORMAT when absent. A tensor whose type we cannot read is listed, but getting it fails with
 * ERR_UNSUPPORTED and the type's name and number. */
int gguf_tensor(const struct gguf *g, const char *name, struct tensor *out, struct err *e);
bool gguf_has_tensor(const struct gguf *g, const char *name);

#endif
