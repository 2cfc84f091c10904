/* What caches of BF16 and Q8_0 need beside the kernels of 16-bit numbers, for files compiled for
 * AVX2. Rows begin at a block and hold whole ones. */
#ifndef MLATHE_KERNELS_CPU_CACHE_H
#define MLATHE_KERNELS_CPU_CACHE_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { Q8_BLOCK = 32, Q8_BYTES = 34 }; /* an F16 scale, then the numbers */

static inline const unsigned char *q8_block(const void *b, size_t at)
{
    return (const unsigned char *)b + at / Q8_BLOCK * Q8_BYTES;
}

/* The scale of a block in every lane. */
static inline __m256 q8_scale(const unsigned char *block)
{
    int16_t d;
    memcpy(&d, block, sizeof d);
    return _mm256_cvtph_ps(_mm_set1_epi16(d));
}

/* Numbers at … at+7 as fp32; at is a multiple of 8. */
static inline __m256 q8_load8(const void *b, size_t at)
{
    const unsigned char *block = q8_block(b, at);
    __m128i q = _mm_loadl_epi64((const __m128i *)(const void *)(block + 2 + at % Q8_BLOCK));
    return _mm256_mul_ps(q8_scale(block), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)));
}

/* A block of x[32]; as dtype_from_f32 but for ties, which go to even here. */
static inline void q8_store32(const float *x, void *block)
{
    __m256 v[4], top = _mm256_setzero_ps(), sign = _mm256_set1_ps(-0.0f);
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v[i]));
    }
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    t = _mm_max_ss(t, _mm_movehdup_ps(t));
    float d = _mm_cvtss_f32(t) / 127;
    __m256 inv = _mm256_set1_ps(d != 0 ? 1 / d : 0);
    __m256i q[4];
    for (int i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inv));
    __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    p = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    uint16_t h = (uint16_t)_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(d), 0), 0);
    memcpy(block, &h, sizeof h);
    _mm256_storeu_si256((__m256i *)(void *)((unsigned char *)block + 2), p);
}

/* To the nearest BF16, ties to even; a NaN stays one. */
static inline __m128i bf16_round8(__m256 x)
{
    __m256i u = _mm256_castps_si256(x),
            odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i near = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    near = _mm256_blendv_epi8(near, _mm256_or_si256(u, _mm256_set1_epi32(1 << 22)), nan);
    near = _mm256_srli_epi32(near, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(near), _mm256_extracti128_si256(near, 1));
}

#endif
