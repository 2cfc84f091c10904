/* cuda_mma: the tensor cores' product of 16 × 16 by 16 × 8 halves into fp32, as a warp's
 * instruction and as its twin on the host; fragments as the PTX manual lays them out, g = lane / 4,
 * t = lane mod 4:
 *
 *   a[4]: rows g, g+8, g, g+8, columns 2t and 2t+1, in a[2] and a[3] 8 further on
 *   b[2]: rows 2t and 2t+1, in b[1] 8 further on, column g
 *   c[4]: row g, columns 2t and 2t+1; row g+8, the same columns
 *
 * A word holds the number of the smaller index in its low half. And what feeds it: the transposing
 * load of four 8 × 8 matrices, and copies that run on while the block works (on the host at once).
 */
#ifndef MLATHE_KERNELS_CUDA_MMA_H
#define MLATHE_KERNELS_CUDA_MMA_H

#include "kernels/cuda.h"

#ifdef CUDA_EMULATE
struct emu_fragments {
    float a[8], b[4]; /* a[2i], a[2i+1]: word i */
};

static inline void emu_widen(const uint32_t *w, int n, float *to)
{
    for (int i = 0; i < n; i++) {
        to[2 * i] = f16_to_f32((uint16_t)w[i]);
        to[2 * i + 1] = f16_to_f32((uint16_t)(w[i] >> 16));
    }
}

/* c += a b, sums in double: hardware keeps at least fp32's bits. */
static inline void mma(float *c, const uint32_t *a, const uint32_t *b)
{
    struct emu_fragments mine;
    emu_widen(a, 4, mine.a);
    emu_widen(b, 2, mine.b);
    emu_show(&mine, __LINE__);
    int g = emu.now % 32 / 4, t = emu.now % 4;
    for (int i = 0; i < 4; i++) {
        int n = 2 * t + i % 2;
        double sum = 0;
        for (int k = 0; k < 16; k++) {
            auto A = (const struct emu_fragments *)emu_seen(g * 4 + k % 8 / 2);
            auto B = (const struct emu_fragments *)emu_seen(n * 4 + k % 8 / 2);
            sum += (double)A->a[2 * (i / 2 + 2 * (k / 8)) + k % 2] * B->b[2 * (k / 8) + k % 2];
        }
        c[i] += (float)sum;
    }
    emu_hide(__LINE__);
}

static inline void load_transposed(uint32_t *b, const uint16_t *row)
{
    emu_show(row, __LINE__);
    int g = emu.now % 32 / 4, t = emu.now % 4;
    for (int i = 0; i < 4; i++)
        b[i] = ((const uint16_t *)emu_seen(8 * i + 2 * t))[g] |
               (uint32_t)((const uint16_t *)emu_seen(8 * i + 2 * t + 1))[g] << 16;
    emu_hide(__LINE__);
}

static inline void copy16(void *to, const void *from, bool valid)
{
    if (valid)
        memcpy(to, from, 16);
    else
        memset(to, 0, 16);
}

static inline void copies_end(void)
{
}

template <int LEFT> static inline void copies_wait(void)
{
}
#else
static __device__ __forceinline__ void mma(float *c, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* b[i]: the words of matrix i of four, transposed; lane l brings the address of row l mod 8 of
 * matrix l / 8, 16 bytes at a multiple of 16. */
static __device__ __forceinline__ void load_transposed(uint32_t *b, const uint16_t *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(at)
                 : "memory");
}

/* 16 bytes from global to shared memory, zeros where they are not valid; from is not read then. */
static __device__ __forceinline__ void copy16(void *to, const void *from, bool valid)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(at), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}

/* The copies so far are a group. */
static __device__ __forceinline__ void copies_end(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All groups but the last LEFT are there, for the thread that asked; a barrier tells the others. */
template <int LEFT> static __device__ __forceinline__ void copies_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
#endif

#endif
