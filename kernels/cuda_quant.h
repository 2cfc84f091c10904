/* cuda_quant: eight consecutive numbers of a weight's row, as fp32, from any of the formats that
 * kernels read in place. A warp reads 256 consecutive numbers, a lane 4 to 32 bytes of them in one
 * or two loads, so that a warp's loads are whole sectors. Exact: where an addition follows, the
 * product of scale and quant fits fp32, so fusing the two changes nothing, and the results are
 * those of dtype.c to the bit. */
#ifndef MLATHE_KERNELS_CUDA_QUANT_H
#define MLATHE_KERNELS_CUDA_QUANT_H

#include "kernels/cuda.h"

/* Rows of a weight on the device. Blocks lie there in two parts, bodies first and then the heads
 * that hold their scales, so that bodies begin at multiples of 16 bytes and are read 8 at a time;
 * the host takes them apart on the way (cuda_weights.cu). */
struct cuda_split {
    int block, head_at, head, body; /* numbers; bytes; head 0: all is body */
};
static constexpr struct cuda_split cuda_split_of(enum dtype type)
{
    switch (type) {
    case DTYPE_F32: return {1, 0, 0, 4};
    case DTYPE_F16:
    case DTYPE_BF16: return {1, 0, 0, 2};
    case DTYPE_Q8_0: return {32, 0, 2, 32};
    case DTYPE_Q4_0: return {32, 0, 2, 16};
    case DTYPE_Q4_1: return {32, 0, 4, 16};
    case DTYPE_Q4_K: return {256, 0, 0, 144}; /* begins with 16 bytes of scales */
    default: return {256, 208, 2, 208};       /* Q6_K */
    }
}

struct cuda_rows {
    const uint8_t *body, *head;
    size_t body_row, head_row; /* bytes */
};
static inline struct cuda_rows cuda_rows_of(const struct matrix *m)
{
    struct cuda_split f = cuda_split_of(m->dtype);
    size_t blocks = (size_t)(m->cols / f.block);
    struct cuda_rows r = {(const uint8_t *)m->data, NULL, blocks * (size_t)f.body,
                          blocks * (size_t)f.head};
    r.head = r.body + (size_t)m->rows * r.body_row;
    return r;
}

/* One row. */
struct cuda_row {
    const uint8_t *body, *head;
};
static __device__ __forceinline__ struct cuda_row cuda_row_at(const struct cuda_rows &r, size_t i)
{
    return {r.body + i * r.body_row, r.head + i * r.head_row};
}

/* Bytes of 256 numbers, which is a whole number of blocks in every format: kernels go on by that
 * much, so that what a lane does with its own eight is the same in every round. */
template <enum dtype type> struct cuda_round {
    static constexpr int body = cuda_split_of(type).body * 256 / cuda_split_of(type).block;
    static constexpr int head = cuda_split_of(type).head * 256 / cuda_split_of(type).block;
};

/* Eight numbers: v[j]·d + m. */
struct cuda_eight {
    float v[8], d, m;
};

/* Byte j of a word as a number: into the mantissa of 2²³, which goes again. Conversions run at a
 * quarter of the speed of these two. */
static __device__ __forceinline__ float byte_number(uint32_t word, int j, float less)
{
#ifdef CUDA_EMULATE
    return cuda_bits(0x4b000000u | (word >> 8 * j & 255)) - (8388608.0f + less);
#else
    return cuda_bits(__byte_perm(word, 0x4b000000u, 0x7650 | j)) - (8388608.0f + less);
#endif
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
            v[j] = type == DTYPE_F16 ? cuda_half(*(const uint16_t *)p)
                                     : cuda_bits((uint32_t) * (const uint16_t *)p << 16);
    }
}

/* Q8_0: 32 bytes; d. Q4_0: nibbles of the first and the second half; d. Q4_1: those; d, m. */
template <enum dtype type>
static __device__ __forceinline__ struct cuda_eight load_block(const struct cuda_row &row, int i)
{
    struct cuda_eight e;
    int o = i % 32;
    if constexpr (type == DTYPE_Q4_1) {
        uint32_t dm = *(const uint32_t *)(row.head + (size_t)(i / 32) * 4);
        e.d = cuda_half((uint16_t)dm);
        e.m = cuda_half((uint16_t)(dm >> 16));
    } else {
        e.d = cuda_half(*(const uint16_t *)(row.head + (size_t)(i / 32) * 2));
        e.m = 0;
    }
    uint2 q;
    if constexpr (type == DTYPE_Q8_0) {
        q = *(const uint2 *)(row.body + i);
        q.x ^= 0x80808080u, q.y ^= 0x80808080u; /* as numbers from 0 to 255 */
    } else {
        q = *(const uint2 *)(row.body + (size_t)(i / 32) * 16 + o % 16);
        int shift = (o & 16) / 4;
        q.x = q.x >> shift & 0x0f0f0f0fu, q.y = q.y >> shift & 0x0f0f0f0fu;
    }
    const float less = type == DTYPE_Q8_0 ? 128 : type == DTYPE_Q4_0 ? 8 : 0;
    for (int j = 0; j < 8; j++)
        e.v[j] = byte_number(j < 4 ? q.x : q.y, j % 4, less);
    return e;
}

/* Byte j of four words. */
static __device__ __forceinline__ int byte_of(const uint4 &h, int j)
{
    uint32_t w = j < 8 ? (j < 4 ? h.x : h.y) : (j < 12 ? h.z : h.w);
    return (int)(w >> 8 * (j % 4) & 255);
}

/* Q4_K: d, dmin, 12 bytes of scales and minima, nibbles; see dtype_k.c. */
static __device__ __forceinline__ struct cuda_eight load_q4_k(const struct cuda_row &row, int i)
{
    struct cuda_eight e;
    const uint8_t *b = row.body + (size_t)(i / 256) * 144;
    uint4 h = *(const uint4 *)b;
    int j = i % 256 / 32, k = 4 + j, scale, min;
    if (j < 4) {
        scale = byte_of(h, k) & 63;
        min = byte_of(h, k + 4) & 63;
    } else {
        scale = (byte_of(h, k + 4) & 15) | byte_of(h, k - 4) >> 6 << 4;
        min = byte_of(h, k + 4) >> 4 | byte_of(h, k) >> 6 << 4;
    }
    e.d = cuda_half((uint16_t)h.x) * (float)scale;
    e.m = -cuda_half((uint16_t)(h.x >> 16)) * (float)min;
    uint2 q = *(const uint2 *)(b + 16 + j / 2 * 32 + i % 32);
    int shift = 4 * (j % 2);
    q.x = q.x >> shift & 0x0f0f0f0fu, q.y = q.y >> shift & 0x0f0f0f0fu;
    for (int n = 0; n < 8; n++)
        e.v[n] = byte_number(n < 4 ? q.x : q.y, n % 4, 0);
    return e;
}

/* Q6_K: low nibbles, high pairs, 16 signed scales; d; see dtype_k.c. */
static __device__ __forceinline__ struct cuda_eight load_q6_k(const struct cuda_row &row, int i)
{
    struct cuda_eight e;
    const uint8_t *b = row.body + (size_t)(i / 256) * 208;
    int o = i % 256, half = o / 128, run = o % 128 / 32;
    e.d = cuda_half(*(const uint16_t *)(row.head + (size_t)(i / 256) * 2)) *
          (float)(int8_t)b[192 + o / 16];
    e.m = 0;
    uint2 low = *(const uint2 *)(b + half * 64 + run % 2 * 32 + o % 32);
    uint2 high = *(const uint2 *)(b + 128 + half * 32 + o % 32);
    int s = 4 * (run / 2), t = 2 * run;
    low.x = (low.x >> s & 0x0f0f0f0fu) | (high.x >> t & 0x03030303u) << 4;
    low.y = (low.y >> s & 0x0f0f0f0fu) | (high.y >> t & 0x03030303u) << 4;
    for (int n = 0; n < 8; n++)
        e.v[n] = byte_number(n < 4 ? low.x : low.y, n % 4, 32);
    return e;
}

/* Has numbers with an m of their own. */
static __device__ constexpr bool cuda_has_m(enum dtype type)
{
    return type == DTYPE_Q4_1 || type == DTYPE_Q4_K;
}

/* Numbers i … i+7 of a row of cols numbers; i a multiple of 8 below cols. */
template <enum dtype type>
static __device__ __forceinline__ struct cuda_eight load8(const struct cuda_row &row, int i,
                                                          int cols)
{
    if constexpr (type <= DTYPE_BF16) {
        struct cuda_eight e;
        e.d = 1, e.m = 0;
        load_plain<type>(row.body, i, cols, e.v);
        return e;
    } else if constexpr (type <= DTYPE_Q4_1) {
        return load_block<type>(row, i);
    } else if constexpr (type == DTYPE_Q4_K) {
        return load_q4_k(row, i);
    } else {
        return load_q6_k(row, i);
    }
}

/* The same with scale and minimum in. */
template <enum dtype type>
static __device__ __forceinline__ struct cuda_eight whole8(const struct cuda_row &row, int i,
                                                           int cols)
{
    struct cuda_eight e = load8<type>(row, i, cols);
    for (int j = 0; j < 8; j++)
        e.v[j] = cuda_has_m(type) ? e.v[j] * e.d + e.m : type > DTYPE_BF16 ? e.v[j] * e.d : e.v[j];
    return e;
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

static __device__ __forceinline__ float cuda_act(float g, enum glu_act act)
{
    if (act == GLU_SILU)
        return g / (1 + expf(-g));
    return 0.5f * g * (1 + tanhf(0.7978845608028654f * (g + 0.044715f * g * g * g)));
}

static __device__ __forceinline__ float warp_sum(float v)
{
    for (int other = 16; other; other /= 2)
        v += __shfl_xor_sync(~0u, v, other);
    return v;
}

#endif
