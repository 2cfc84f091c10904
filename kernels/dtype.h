/* dtype: how numbers are stored in files and caches. One table of types; every type can be turned
 * into fp32 row by row, and some can be made from fp32. Block layouts are those of GGUF. */
#ifndef MLATHE_KERNELS_DTYPE_H
#define MLATHE_KERNELS_DTYPE_H

#include "core/base.h"

enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_Q8_0,
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0, /* this and the rest are only read, but for Q4_K, Q6_K and Q6_0 */
    DTYPE_Q5_1,
    DTYPE_Q2_K,
    DTYPE_Q3_K,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_IQ4_NL,
    DTYPE_IQ4_XS,
    DTYPE_MXFP4,
    DTYPE_Q6_0, /* our own, in memory only: what conversions run with */
    DTYPE_COUNT
};

struct dtype_traits {
    const char *name; /* "F32", "Q4_1" */
    int ggml;         /* type number in GGUF, −1: files have no such type */
    int block;        /* elements a block (1 for plain types) */
    int block_bytes;  /* bytes a block */
};
const struct dtype_traits *dtype_traits(enum dtype type);
/* DTYPE_COUNT when unknown. */
enum dtype dtype_from_ggml(int ggml);
enum dtype dtype_from_name(const char *name); /* of a type that files have */
/* dtype_from_f32 can make it. */
bool dtype_can_write(enum dtype type);
/* Bytes of n elements; n must be a multiple of the block. */
size_t dtype_bytes(enum dtype type, size_t n);
/* n numbers, made whole blocks. */
size_t dtype_padded(enum dtype type, size_t n);

/* dst[n] = src as fp32, exactly (the scalar definition); n a multiple of the block. */
void dtype_to_f32(enum dtype type, const void *src, float *dst, size_t n);
/* dst = src[n] rounded to type (nearest even for F16/BF16; GGUF's reference rounding for Q8_0, Q4_0
 * and Q4_1, a search of our own for Q4_K, Q6_K and Q6_0). Types that are only read leave dst alone.
 */
void dtype_from_f32(enum dtype type, const float *src, void *dst, size_t n);

/* The same of any n: a last block that is not full holds zeros. */
void dtype_row_to_f32(enum dtype type, const void *src, float *dst, size_t n);
void dtype_row_from_f32(enum dtype type, const float *src, void *dst, size_t n);

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
float bf16_to_f32(uint16_t h);
uint16_t f32_to_bf16(float f);

#endif
