/* What the kernels for AVX-512 share: included by cpu_avx512*.c only. */
#ifndef MLATHE_KERNELS_CPU_AVX512_H
#define MLATHE_KERNELS_CPU_AVX512_H

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __mmask16 first16(int n)
{
    return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);
}

/* The sums of the halves of eight vectors: lower halves of 0 … 3, upper ones, the same of 4 … 7. */
INLINE __m512 sum8x16(const __m512 *v)
{
    __m512 pair[4], four[2];
    for (int i = 0; i < 4; i++)
        pair[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                                _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 2; i++)
        four[i] = _mm512_add_ps(_mm512_shuffle_ps(pair[2 * i], pair[2 * i + 1], 0x44),
                                _mm512_shuffle_ps(pair[2 * i], pair[2 * i + 1], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x88),
                         _mm512_shuffle_f32x4(four[0], four[1], 0xdd));
}

/* The sums of eight vectors. */
INLINE __m256 sum16x8(const __m512 *v)
{
    __m512 s = sum8x16(v);
    s = _mm512_add_ps(_mm512_shuffle_f32x4(s, s, 0x08), _mm512_shuffle_f32x4(s, s, 0x0d));
    return _mm512_castps512_ps256(s);
}

#endif
