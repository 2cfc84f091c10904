/* Bytes of GGUF files. Memory failures abort: this is a test. */
#include "tests/support_gguf.h"

#include <stdlib.h>
#include <string.h>

void put_bytes(struct bytes *b, const void *data, size_t n)
{
    if (!mem_grow((void **)&b->data, &b->cap, b->n + n, 1))
        abort();
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}

void put_u32(struct bytes *b, uint32_t v)
{
    put_bytes(b, &v, sizeof v);
}

void put_u64(struct bytes *b, uint64_t v)
{
    put_bytes(b, &v, sizeof v);
}

void put_string(struct bytes *b, const char *s)
{
    put_u64(b, strlen(s));
    put_bytes(b, s, strlen(s));
}

void put_header(struct bytes *b, uint64_t n_tensors, uint64_t n_kv)
{
    put_bytes(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, n_tensors);
    put_u64(b, n_kv);
}

static void put_key(struct bytes *b, const char *key, enum gguf_type type)
{
    put_string(b, key);
    put_u32(b, type);
}

void put_key_u32(struct bytes *b, const char *key, uint32_t v)
{
    put_key(b, key, GGUF_U32);
    put_u32(b, v);
}

void put_key_f32(struct bytes *b, const char *key, float v)
{
    put_key(b, key, GGUF_F32);
    put_bytes(b, &v, sizeof v);
}

void put_key_bool(struct bytes *b, const char *key, bool v)
{
    uint8_t byte = v;
    put_key(b, key, GGUF_BOOL);
    put_bytes(b, &byte, 1);
}

void put_key_string(struct bytes *b, const char *key, const char *v)
{
    put_key(b, key, GGUF_STRING);
    put_string(b, v);
}

void put_key_array(struct bytes *b, const char *key, enum gguf_type elem, uint64_t n)
{
    put_key(b, key, GGUF_ARRAY);
    put_u32(b, elem);
    put_u64(b, n);
}

void put_tensor_info(struct bytes *b, const char *name, uint64_t ne0, uint64_t rows, uint32_t type,
                     uint64_t offset)
{
    put_string(b, name);
    put_u32(b, rows ? 2 : 1);
    put_u64(b, ne0);
    if (rows)
        put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}

void put_padding(struct bytes *b, size_t align)
{
    while (b->n % align)
        put_bytes(b, "", 1);
}

void put_free(struct bytes *b)
{
    free(b->data);
    *b = (struct bytes){0};
}
