/* grad in fp32 for every machine, and the choice between the fp32 tables. */
#define REAL float
#define REAL_EXP exp_f32
#define REAL_TANH tanhf
#define REAL_SQRT sqrtf
#define REAL_GEMM cblas_sgemm
#define GRAD_TABLE grad_f32
#define GRAD_NAME "f32"
#include "kernels/grad_body.h"

const struct grad_ops *grad_fast(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &grad_avx2;
#endif
    return &grad_f32;
}

size_t grad_attn_scratch(const struct grad_attn *a, int threads)
{
    int longest = 0;
    for (int i = 0; i < a->n_seq; i++)
        longest = a->start[i + 1] - a->start[i] > longest ? a->start[i + 1] - a->start[i] : longest;
    return (size_t)threads * 3 * GRAD_QUERIES * (size_t)longest;
}
