/* Number formats, the scalar definition: exact reading, and rounding as the reference writers do.
 * Rows may start at any address. Refuses nothing: callers check types and multiples of the block.
 * Files are little-endian and so must the machine be. */
#include "kernels/dtype.h"

#include <math.h>
#include <string.h>

enum { MAX_BLOCK = 256 }; /* numbers of the largest blocks */

#include "kernels/dtype_blocks.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rows are read as the machine's own");

#define QK 32 /* elements a block, the block types that are written */

static const struct dtype_traits traits[DTYPE_COUNT] = {
    [DTYPE_F32] = {"F32", 0, 1, 4},
    [DTYPE_F16] = {"F16", 1, 1, 2},
    [DTYPE_BF16] = {"BF16", 30, 1, 2},
    [DTYPE_Q8_0] = {"Q8_0", 8, QK, 34},
    [DTYPE_Q4_0] = {"Q4_0", 2, QK, 18},
    [DTYPE_Q4_1] = {"Q4_1", 3, QK, 20},
    [DTYPE_Q5_0] = {"Q5_0", 6, QK, 22},
    [DTYPE_Q5_1] = {"Q5_1", 7, QK, 24},
    [DTYPE_Q2_K] = {"Q2_K", 10, 256, 84},
    [DTYPE_Q3_K] = {"Q3_K", 11, 256, 110},
    [DTYPE_Q4_K] = {"Q4_K", 12, 256, 144},
    [DTYPE_Q5_K] = {"Q5_K", 13, 256, 176},
    [DTYPE_Q6_K] = {"Q6_K", 14, 256, 210},
    [DTYPE_IQ4_NL] = {"IQ4_NL", 20, QK, 18},
    [DTYPE_IQ4_XS] = {"IQ4_XS", 23, 256, 136},
    [DTYPE_MXFP4] = {"MXFP4", 39, QK, 17},
    [DTYPE_Q6_0] = {"Q6_0", -1, QK, 26},
};

const struct dtype_traits *dtype_traits(enum dtype type)
{
    return &traits[type];
}

enum dtype dtype_from_ggml(int ggml)
{
    int t = 0;
    while (t < DTYPE_COUNT && traits[t].ggml != ggml)
        t++;
    return (enum dtype)t;
}

enum dtype dtype_from_name(const char *name)
{
    int t = 0;
    while (t < DTYPE_COUNT && (traits[t].ggml < 0 || strcmp(traits[t].name, name)))
        t++;
    return (enum dtype)t;
}

bool dtype_can_write(enum dtype type)
{
    return type <= DTYPE_Q4_1 || type == DTYPE_Q4_K || type == DTYPE_Q6_K || type == DTYPE_Q6_0;
}

size_t dtype_bytes(enum dtype type, size_t n)
{
    return n / (size_t)traits[type].block * (size_t)traits[type].block_bytes;
}

size_t dtype_padded(enum dtype type, size_t n)
{
    size_t block = (size_t)traits[type].block;
    return (n + block - 1) / block * block;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 1023;
    if (exp == 0) /* zero and subnormals: man · 2⁻²⁴ is exact */
        return float_of(sign | bits_of((float)man * 0x1p-24f));
    return float_of(sign | (exp == 31 ? 0xffu : exp + 112) << 23 | man << 13);
}

uint16_t f32_to_f16(float f)
{
    uint32_t u = bits_of(f), a = u & 0x7fffffff;
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    if (a > 0x7f800000) /* NaN stays NaN, quiet */
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000) /* 65520 and more round to infinity */
        return sign | 0x7c00;
    if (a < 0x38800000) /* below 2⁻¹⁴: one ulp of 0.5 is 2⁻²⁴, so the addition rounds for us */
        return (uint16_t)(sign | (bits_of(float_of(a) + 0.5f) - bits_of(0.5f)));
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - (112u << 23)) >> 13);
}

float bf16_to_f32(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

uint16_t f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void store16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* Q8_0: d, int8 q[32]; y = d·q. */
static void read_q8_0(const uint8_t *b, float *y)
{
    float d = f16_to_f32(load16(b));
    for (int i = 0; i < QK; i++)
        y[i] = d * (float)(int8_t)b[2 + i];
}

/* Q4_0: d, 16 bytes; low nibbles are the first half of the block, high nibbles the second. */
static void read_q4_0(const uint8_t *b, float *y)
{
    float d = f16_to_f32(load16(b));
    for (int i = 0; i < QK / 2; i++) {
        y[i] = d * (float)((b[2 + i] & 15) - 8);
        y[i + QK / 2] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

/* Q4_1: d, m, nibbles as Q4_0; y = d·q + m. */
static void read_q4_1(const uint8_t *b, float *y)
{
    float d = f16_to_f32(load16(b)), m = f16_to_f32(load16(b + 2));
    for (int i = 0; i < QK / 2; i++) {
        y[i] = d * (float)(b[4 + i] & 15) + m;
        y[i + QK / 2] = d * (float)(b[4 + i] >> 4) + m;
    }
}

typedef void (*block_reader)(const uint8_t *b, float *y);

static const block_reader readers[DTYPE_COUNT] = {
    [DTYPE_Q8_0] = read_q8_0,           [DTYPE_Q4_0] = read_q4_0,
    [DTYPE_Q4_1] = read_q4_1,           [DTYPE_Q5_0] = dtype_read_q5_0,
    [DTYPE_Q5_1] = dtype_read_q5_1,     [DTYPE_Q2_K] = dtype_read_q2_k,
    [DTYPE_Q3_K] = dtype_read_q3_k,     [DTYPE_Q4_K] = dtype_read_q4_k,
    [DTYPE_Q5_K] = dtype_read_q5_k,     [DTYPE_Q6_K] = dtype_read_q6_k,
    [DTYPE_IQ4_NL] = dtype_read_iq4_nl, [DTYPE_IQ4_XS] = dtype_read_iq4_xs,
    [DTYPE_MXFP4] = dtype_read_mxfp4,   [DTYPE_Q6_0] = dtype_read_q6_0,
};

void dtype_to_f32(enum dtype type, const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    size_t block = (size_t)traits[type].block, bytes = (size_t)traits[type].block_bytes;
    switch (type) {
    case DTYPE_F32: memcpy(dst, src, n * sizeof *dst); break;
    case DTYPE_F16:
        for (size_t i = 0; i < n; i++)
            dst[i] = f16_to_f32(load16(p + 2 * i));
        break;
    case DTYPE_BF16:
        for (size_t i = 0; i < n; i++)
            dst[i] = bf16_to_f32(load16(p + 2 * i));
        break;
    default:
        for (size_t i = 0; i < n; i += block, p += bytes)
            readers[type](p, dst + i);
    }
}

/* The quantisers divide by the unrounded scale and store the rounded one, as GGUF's reference
 * does; inputs are finite. */
static void write_q8_0(const float *x, uint8_t *b)
{
    float top = 0;
    for (int i = 0; i < QK; i++)
        top = fmaxf(top, fabsf(x[i]));
    float d = top / 127, inv = d != 0 ? 1 / d : 0;
    store16(b, f32_to_f16(d));
    for (int i = 0; i < QK; i++)
        b[2 + i] = (uint8_t)(int8_t)roundf(x[i] * inv);
}

static uint8_t nibble(float v)
{
    int q = (int)v; /* towards zero; v ≥ 0 up to rounding */
    return (uint8_t)(q < 0 ? 0 : q > 15 ? 15 : q);
}

static void write_q4_0(const float *x, uint8_t *b)
{
    float top = 0, far = 0; /* far: the number of largest size, with its sign */
    for (int i = 0; i < QK; i++) {
        if (fabsf(x[i]) > top) {
            top = fabsf(x[i]);
            far = x[i];
        }
    }
    float d = far / -8, inv = d != 0 ? 1 / d : 0;
    store16(b, f32_to_f16(d));
    for (int i = 0; i < QK / 2; i++) {
        uint8_t low = nibble(x[i] * inv + 8.5f), high = nibble(x[i + QK / 2] * inv + 8.5f);
        b[2 + i] = (uint8_t)(low | high << 4);
    }
}

static void write_q4_1(const float *x, uint8_t *b)
{
    float min = x[0], max = x[0];
    for (int i = 1; i < QK; i++) {
        min = fminf(min, x[i]);
        max = fmaxf(max, x[i]);
    }
    float d = (max - min) / 15, inv = d != 0 ? 1 / d : 0;
    store16(b, f32_to_f16(d));
    store16(b + 2, f32_to_f16(min));
    for (int i = 0; i < QK / 2; i++) {
        uint8_t low = nibble((x[i] - min) * inv + 0.5f);
        uint8_t high = nibble((x[i + QK / 2] - min) * inv + 0.5f);
        b[4 + i] = (uint8_t)(low | high << 4);
    }
}

void dtype_from_f32(enum dtype type, const float *src, void *dst, size_t n)
{
    uint8_t *p = dst;
    switch (type) {
    case DTYPE_F32: memcpy(dst, src, n * sizeof *src); break;
    case DTYPE_F16:
        for (size_t i = 0; i < n; i++)
            store16(p + 2 * i, f32_to_f16(src[i]));
        break;
    case DTYPE_BF16:
        for (size_t i = 0; i < n; i++)
            store16(p + 2 * i, f32_to_bf16(src[i]));
        break;
    case DTYPE_Q8_0:
        for (size_t i = 0; i < n; i += QK, p += 34)
            write_q8_0(src + i, p);
        break;
    case DTYPE_Q4_0:
        for (size_t i = 0; i < n; i += QK, p += 18)
            write_q4_0(src + i, p);
        break;
    case DTYPE_Q4_1:
        for (size_t i = 0; i < n; i += QK, p += 20)
            write_q4_1(src + i, p);
        break;
    case DTYPE_Q4_K:
        for (size_t i = 0; i < n; i += 256, p += 144)
            dtype_write_q4_k(src + i, p);
        break;
    case DTYPE_Q6_K:
        for (size_t i = 0; i < n; i += 256, p += 210)
            dtype_write_q6_k(src + i, p);
        break;
    case DTYPE_Q6_0:
        for (size_t i = 0; i < n; i += QK, p += 26)
            dtype_write_q6_0(src + i, p);
        break;
    default: break;
    }
}

void dtype_row_to_f32(enum dtype type, const void *src, float *dst, size_t n)
{
    float last[MAX_BLOCK];
    size_t left = n % (size_t)traits[type].block, whole = n - left;
    dtype_to_f32(type, src, dst, whole);
    if (!left)
        return;
    dtype_to_f32(type, (const char *)src + dtype_bytes(type, whole), last,
                 dtype_padded(type, left));
    memcpy(dst + whole, last, left * sizeof *last);
}

void dtype_row_from_f32(enum dtype type, const float *src, void *dst, size_t n)
{
    float last[MAX_BLOCK] = {0};
    size_t left = n % (size_t)traits[type].block, whole = n - left;
    dtype_from_f32(type, src, dst, whole);
    if (!left)
        return;
    memcpy(last, src + whole, left * sizeof *last);
    dtype_from_f32(type, last, (char *)dst + dtype_bytes(type, whole), dtype_padded(type, left));
}
