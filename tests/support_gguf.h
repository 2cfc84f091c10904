/* support_gguf: writes GGUF files byte by byte, valid or nasty: nothing is checked. */
#ifndef MLATHE_TESTS_SUPPORT_GGUF_H
#define MLATHE_TESTS_SUPPORT_GGUF_H

#include "core/gguf.h"

struct bytes {
    uint8_t *data;
    size_t n, cap;
};
void put_bytes(struct bytes *b, const void *data, size_t n);
void put_u32(struct bytes *b, uint32_t v);
void put_u64(struct bytes *b, uint64_t v);
void put_string(struct bytes *b, const char *s);
/* "GGUF", version 3, the two counts. */
void put_header(struct bytes *b, uint64_t n_tensors, uint64_t n_kv);
/* Keys. */
void put_key_u32(struct bytes *b, const char *key, uint32_t v);
void put_key_f32(struct bytes *b, const char *key, float v);
void put_key_bool(struct bytes *b, const char *key, bool v);
void put_key_string(struct bytes *b, const char *key, const char *v);
/* Key, array type and length; the elements follow by the caller. */
void put_key_array(struct bytes *b, const char *key, enum gguf_type elem, uint64_t n);
/* ne0 varies fastest; rows 0: one dimension. */
void put_tensor_info(struct bytes *b, const char *name, uint64_t ne0, uint64_t rows, uint32_t type,
                     uint64_t offset);
void put_padding(struct bytes *b, size_t align);
void put_free(struct bytes *b);

#endif
