/* gguf_writer: a GGUF 3 file, streamed. Keys first, then every tensor is declared (order = order of
 * data), then the data. Errors are sticky: every call after a failed one does nothing, and the
 * first error comes back from each of them. Appears atomically at commit. */
#ifndef MLATHE_CORE_GGUF_WRITER_H
#define MLATHE_CORE_GGUF_WRITER_H

#include "core/gguf.h"

struct gguf_writer;
int gguf_writer_new(struct gguf_writer **w, const char *path, struct err *e);

void gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t v);
void gguf_writer_num(struct gguf_writer *w, const char *key, double v); /* as F32 */
void gguf_writer_bool(struct gguf_writer *w, const char *key, bool v);
void gguf_writer_str(struct gguf_writer *w, const char *key, const char *v);
void gguf_writer_strs(struct gguf_writer *w, const char *key, const struct gguf_str *v, size_t n);
/* Elements of a fixed-size type, as in memory (little-endian). */
void gguf_writer_array(struct gguf_writer *w, const char *key, enum gguf_type elem, const void *v,
                       size_t n);
/* Every key of from that begins with prefix. */
void gguf_writer_copy(struct gguf_writer *w, const struct gguf *from, const char *prefix);

/* dims outermost first; whole blocks in a row. Ends the keys. */
int gguf_writer_declare(struct gguf_writer *w, const char *name, enum dtype dtype, int rank,
                        const size_t *dim, struct err *e);
/* The next numbers of the tensor that is due, whole rows, rounded to its type. */
int gguf_writer_part(struct gguf_writer *w, const float *data, size_t n, struct err *e);
int gguf_writer_commit(struct gguf_writer *w, struct err *e); /* frees w */
void gguf_writer_abort(struct gguf_writer *w);

#endif
