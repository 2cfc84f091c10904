/* What AVX-512 (VL, VNNI) does better than AVX2: products of bytes in one instruction. */
#ifdef __x86_64__
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256 load(const float *p, size_t left)
{
    return _mm256_maskz_loadu_ps((__mmask8)(left >= 8 ? 255 : (1u << left) - 1), p);
}

INLINE void store(float *p, __m256 v, size_t left)
{
    _mm256_mask_storeu_ps(p, (__mmask8)(left >= 8 ? 255 : (1u << left) - 1), v);
}

#define CPU_VNNI
#include "kernels/cpu_quant.h"

void cpu_avx512_use(struct cpu_isa *isa)
{
    isa->name = "AVX-512 VNNI";
    isa->matmul_q = matmul_q;
}
#endif
