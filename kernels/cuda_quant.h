/* cuda_quant: eight consecutive numbers of a weight's row, as fp32, from any of the formats that
 * kernels read in place. A warp reads 256 consecutive numbers, so its loads meet in the same
 * sectors. Exact: where an addition follows, the product of scale and quant fits fp32, so fusing
 * the two changes nothing, and the results are those of dtype.c to the bit. */
#ifndef MLATHE_KERNELS_CUDA_QUANT_H
#define MLATHE_KERNELS_CUDA_QUANT_H

#include "kernels/cuda.h"

/* Blocks lie at even addresses: their sizes are even and rows begin at allocations. */
static __device__ __forceinline__ uint32_t load16(const uint8_t *p)
{
    return *(const uint16_t *)p;
}

/* Eight bytes at an even address: the first four, then the others. */
static __device__ __forceinline__ void load_bytes(const uint8_t *p, uint32_t *q)
{
    q[0] = load16(p) | load16(p + 2) << 16;
    q[1] = load16(p + 4) | load16(p + 6) << 16;
}

static __device__ __forceinline__ int byte_of(const uint32_t *q, int j)
{
    return (int)(q[j / 4] >> 8 * (j % 4) & 255);
}

/* Plain rows may have any length; beyond it the numbers are zeros. */
template <enum dtype type>
static __device__ __forceinline__ void load_plain(const uint8_t *row, int i, int cols, float *v)
{
    const int size = type == DTYPE_F32 ? 4 : 2;
    if (cols % 8 == 0) { /* so every row begins at a multiple of 16 bytes */
        const uint4 *p = (const uint4 *)(row + (size_t)i * size);
        for (int k = 0; k < size / 2; k++) {
            uint4 u = p[k];
            const uint32_t w[4] = {u.x, u.y, u.z, u.w};
            for (int j = 0; j < 4; j++) {
                if (type == DTYPE_F32) {
                    v[4 * k + j] = cuda_bits(w[j]);
                } else if (type == DTYPE_F16) {
                    v[2 * j] = cuda_half((uint16_t)w[j]);
                    v[2 * j + 1] = cuda_half((uint16_t)(w[j] >> 16));
                } else {
                    v[2 * j] = cuda_bits(w[j] << 16);
                    v[2 * j + 1] = cuda_bits(w[j] & 0xffff0000u);
                }
            }
        }
        return;
    }
    for (int j = 0; j < 8; j++) {
        const uint8_t *p = row + (size_t)(i + j) * size;
        if (i + j >= cols)
            v[j] = 0;
        else if (type == DTYPE_F32)
            v[j] = *(const float *)p;
        else
            v[j] = type == DTYPE_F16 ? cuda_half((uint16_t)load16(p)) : cuda_bits(load16(p) << 16);
    }
}

/* Q8_0: d, 32 bytes. Q4_0: d, nibbles of the first and the second half. Q4_1: d, m, nibbles. */
template <enum dtype type>
static __device__ __forceinline__ void load_block(const uint8_t *row, int i, float *v)
{
    const int head = type == DTYPE_Q4_1 ? 4 : 2, bytes = type == DTYPE_Q8_0 ? 34 : 16 + head;
    const uint8_t *b = row + (size_t)(i / 32) * bytes;
    int o = i % 32;
    float d = cuda_half((uint16_t)load16(b));
    uint32_t q[2];
    load_bytes(b + head + (type == DTYPE_Q8_0 ? o : o % 16), q);
    float m = type == DTYPE_Q4_1 ? cuda_half((uint16_t)load16(b + 2)) : 0;
    for (int j = 0; j < 8; j++) {
        int n = byte_of(q, j);
        if (type == DTYPE_Q8_0)
            v[j] = d * (float)(int8_t)n;
        else if (type == DTYPE_Q4_0)
            v[j] = d * (float)((n >> (o & 16) / 4 & 15) - 8);
        else
            v[j] = d * (float)(n >> (o & 16) / 4 & 15) + m;
    }
}

/* Q4_K: d, dmin, 12 bytes of scales and minima, nibbles; see dtype_k.c. */
static __device__ __forceinline__ void load_q4_k(const uint8_t *row, int i, float *v)
{
    const uint8_t *b = row + (size_t)(i / 256) * 144, *s = b + 4;
    int j = i % 256 / 32, scale, min;
    if (j < 4) {
        scale = s[j] & 63;
        min = s[j + 4] & 63;
    } else {
        scale = (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        min = s[j + 4] >> 4 | s[j] >> 6 << 4;
    }
    float d = cuda_half((uint16_t)load16(b)) * (float)scale;
    float m = cuda_half((uint16_t)load16(b + 2)) * (float)min;
    uint32_t q[2];
    load_bytes(b + 16 + j / 2 * 32 + i % 32, q);
    for (int k = 0; k < 8; k++)
        v[k] = d * (float)(byte_of(q, k) >> 4 * (j % 2) & 15) - m;
}

/* Q6_K: low nibbles, high pairs, 16 signed scales, d; see dtype_k.c. */
static __device__ __forceinline__ void load_q6_k(const uint8_t *row, int i, float *v)
{
    const uint8_t *b = row + (size_t)(i / 256) * 210;
    int o = i % 256, half = o / 128, run = o % 128 / 32;
    float d = cuda_half((uint16_t)load16(b + 208)) * (float)(int8_t)b[192 + o / 16];
    uint32_t low[2], high[2];
    load_bytes(b + half * 64 + run % 2 * 32 + o % 32, low);
    load_bytes(b + 128 + half * 32 + o % 32, high);
    for (int k = 0; k < 8; k++) {
        int q = (byte_of(low, k) >> 4 * (run / 2) & 15) + (byte_of(high, k) >> 2 * run & 3) * 16;
        v[k] = d * (float)(q - 32);
    }
}

/* v = numbers i … i+7 of a row of cols numbers; i a multiple of 8 below cols. */
template <enum dtype type>
static __device__ __forceinline__ void load8(const uint8_t *row, int i, int cols, float *v)
{
    if constexpr (type <= DTYPE_BF16)
        load_plain<type>(row, i, cols, v);
    else if constexpr (type <= DTYPE_Q4_1)
        load_block<type>(row, i, v);
    else if constexpr (type == DTYPE_Q4_K)
        load_q4_k(row, i, v);
    else
        load_q6_k(row, i, v);
}

/* The formats that kernels read; the others are widened on the way to the device. */
static inline bool cuda_reads(enum dtype type)
{
    return type <= DTYPE_Q4_1 || type == DTYPE_Q4_K || type == DTYPE_Q6_K;
}

/* Calls f<type>(…) for the type that a weight has at run time. */
#define CUDA_BY_TYPE(type, f, ...)                                                                 \
    switch (type) {                                                                                \
    case DTYPE_F32: f<DTYPE_F32>(__VA_ARGS__); break;                                              \
    case DTYPE_F16: f<DTYPE_F16>(__VA_ARGS__); break;                                              \
    case DTYPE_BF16: f<DTYPE_BF16>(__VA_ARGS__); break;                                            \
    case DTYPE_Q8_0: f<DTYPE_Q8_0>(__VA_ARGS__); break;                                            \
    case DTYPE_Q4_0: f<DTYPE_Q4_0>(__VA_ARGS__); break;                                            \
    case DTYPE_Q4_1: f<DTYPE_Q4_1>(__VA_ARGS__); break;                                            \
    case DTYPE_Q4_K: f<DTYPE_Q4_K>(__VA_ARGS__); break;                                            \
    default: f<DTYPE_Q6_K>(__VA_ARGS__); break;                                                    \
    }

static __device__ __forceinline__ float warp_sum(float v)
{
    for (int other = 16; other; other /= 2)
        v += __shfl_xor_sync(~0u, v, other);
    return v;
}

#endif
