/* grad in fp64: the twin that finite differences are compared with. */
#define REAL double
#define REAL_EXP exp
#define REAL_TANH tanh
#define REAL_SQRT sqrt
#define REAL_GEMM cblas_dgemm
#define GRAD_TABLE grad_f64
#define GRAD_NAME "f64"
#include "kernels/grad_body.h"
