/* safetensors: reader of one file or a sharded set (mapped, every offset checked: ranges sorted,
 * contiguous, inside the file, sizes equal to shape × dtype), and a streaming writer. */
#ifndef MLATHE_CORE_SAFETENSORS_H
#define MLATHE_CORE_SAFETENSORS_H

#include "core/tensor.h"

struct safetensors;
/* path: a .safetensors file, or a folder with model.safetensors or
 * model.safetensors.index.json and its shards (names may not leave the folder). */
int safetensors_open(struct safetensors **out, const char *path, struct err *e);
void safetensors_close(struct safetensors *s);
size_t safetensors_count(const struct safetensors *s);
const char *safetensors_name(const struct safetensors *s, size_t i);
bool safetensors_has(const struct safetensors *s, const char *name);
/* ERR_FORMAT when absent; ERR_UNSUPPORTED for dtypes we do not read. */
int safetensors_get(const struct safetensors *s, const char *name, struct tensor *out,
                    struct err *e);
/* A matrix whose dtype has that name ("F8_E4M3") and no readable twin: out's bytes are raw, its
 * dtype DTYPE_COUNT. ERR_FORMAT when absent, of another type or no matrix. */
int safetensors_get_raw(const struct safetensors *s, const char *name, const char *dtype,
                        struct tensor *out, struct err *e);
/* The dtype's name as the file has it; NULL when there is no such tensor. */
const char *safetensors_dtype(const struct safetensors *s, const char *name);
size_t safetensors_file_bytes(const struct safetensors *s);

/* Writer: declare every tensor first (order = order of data), then stream the data in that order.
 * Appears atomically at commit; metadata "format":"pt". */
struct safetensors_writer;
int safetensors_writer_new(struct safetensors_writer **w, const char *path, struct err *e);
int safetensors_writer_declare(struct safetensors_writer *w, const char *name, enum dtype dtype,
                               int rank, const size_t *dim, struct err *e);
/* A matrix of one-byte numbers of a type without a twin ("F8_E4M3"), given as bytes. */
int safetensors_writer_declare_raw(struct safetensors_writer *w, const char *name,
                                   const char *dtype, size_t rows, size_t cols, struct err *e);
int safetensors_writer_raw(struct safetensors_writer *w, const void *data, size_t bytes,
                           struct err *e);
/* Next declared tensor, given as fp32 and rounded to its dtype. */
int safetensors_writer_f32(struct safetensors_writer *w, const float *data, size_t n,
                           struct err *e);
/* A part of it, for tensors that are never in memory whole. */
int safetensors_writer_part(struct safetensors_writer *w, const float *data, size_t n,
                            struct err *e);
int safetensors_writer_commit(struct safetensors_writer *w, struct err *e); /* frees w */
void safetensors_writer_abort(struct safetensors_writer *w);

#endif
