/* grad in fp32, compiled for AVX2 + FMA. */
#ifdef __x86_64__
#define REAL float
#define REAL_EXP exp_f32
#define REAL_TANH tanhf
#define REAL_SQRT sqrtf
#define REAL_GEMM cblas_sgemm
#define GRAD_TABLE grad_avx2
#define GRAD_NAME "f32 AVX2"
#include "kernels/grad_body.h"
#endif
