/* The BLAS behind prefill: cuBLAS, opened at run time so that the program needs no toolkit to
 * start; under emulation the host's BLAS behind the same call, column-major order included. Without
 * it cuda_linear.cu uses its own product. Exact backends multiply in fp32; the others let tensor
 * cores round activations to TF32 (16-bit weights fit it as they are). */
#include "kernels/cuda.h"

#ifdef CUDA_EMULATE
#include <cblas.h>

int cuda_blas_open(struct cuda_blas *b, cudaStream_t stream)
{
    b->handle = stream;
    return OK;
}

void cuda_blas_close(struct cuda_blas *b)
{
    b->handle = NULL;
}

int cuda_blas_gemm(const struct cuda_blas *b, bool exact, int rows, int T, int cols, const float *w,
                   const float *x, float *y, int ldy, bool add)
{
    (void)b, (void)exact;
    emu_library([&] {
        cblas_sgemm(CblasColMajor, CblasTrans, CblasNoTrans, rows, T, cols, 1, w, cols, x, cols,
                    add ? 1 : 0, y, ldy);
    });
    return OK;
}

int cuda_blas_gemm_batch(const struct cuda_blas *b, const struct algebra_gemm *g)
{
    (void)b;
    emu_library([&] {
        for (int i = 0; i < g->count; i++)
            cblas_sgemm(CblasColMajor, g->tb ? CblasTrans : CblasNoTrans,
                        g->ta ? CblasTrans : CblasNoTrans, g->n, g->m, g->k, g->alpha,
                        g->b + (size_t)i * g->step_b, g->ldb, g->a + (size_t)i * g->step_a, g->lda,
                        g->beta, g->c + (size_t)i * g->step_c, g->ldc);
    });
    return OK;
}

int cuda_blas_syrk(const struct cuda_blas *b, int n, int k, const float *a, int lda, float *c)
{
    (void)b;
    emu_library(
        [&] { cblas_ssyrk(CblasColMajor, CblasLower, CblasNoTrans, n, k, 1, a, lda, 1, c, n); });
    return OK;
}

int cuda_blas_back(const struct cuda_blas *b, int n, int m, const double *factor, double *x)
{
    (void)b;
    emu_library([&] {
        for (int i = 0; i < 2; i++)
            cblas_dtrsm(CblasColMajor, CblasRight, CblasLower, i ? CblasNoTrans : CblasTrans,
                        CblasNonUnit, m, n, 1, factor, n, x, m);
    });
    return OK;
}
#else
#include <cublas_v2.h>
#include <dlfcn.h>
#include <stdio.h>

/* The header has two of this name in C++. */
typedef cublasStatus_t (*gemm_function)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int,
                                        int, int, const void *, const void *, cudaDataType, int,
                                        const void *, cudaDataType, int, const void *, void *,
                                        cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t);

typedef cublasStatus_t (*batch_function)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int,
                                         int, int, const void *, const void *, cudaDataType, int,
                                         long long, const void *, cudaDataType, int, long long,
                                         const void *, void *, cudaDataType, int, long long, int,
                                         cublasComputeType_t, cublasGemmAlgo_t);
typedef cublasStatus_t (*trsm_function)(cublasHandle_t, cublasSideMode_t, cublasFillMode_t,
                                        cublasOperation_t, cublasDiagType_t, int, int,
                                        const double *, const double *, int, double *, int);
typedef cublasStatus_t (*syrk_function)(cublasHandle_t, cublasFillMode_t, cublasOperation_t, int,
                                        int, const float *, const float *, int, const float *,
                                        float *, int);

int cuda_blas_open(struct cuda_blas *b, cudaStream_t stream)
{
    char name[32];
    snprintf(name, sizeof name, "libcublas.so.%d", CUBLAS_VER_MAJOR);
    b->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!b->library)
        return ERR_UNSUPPORTED;
    auto create = (cublasStatus_t(*)(cublasHandle_t *))dlsym(b->library, "cublasCreate_v2");
    auto set =
        (cublasStatus_t(*)(cublasHandle_t, cudaStream_t))dlsym(b->library, "cublasSetStream_v2");
    b->gemm = dlsym(b->library, "cublasGemmEx");
    b->gemm_batch = dlsym(b->library, "cublasGemmStridedBatchedEx");
    b->syrk = dlsym(b->library, "cublasSsyrk_v2");
    b->trsm = dlsym(b->library, "cublasDtrsm_v2");
    cublasHandle_t handle = NULL;
    if (!create || !set || !b->gemm || !b->gemm_batch || !b->syrk || !b->trsm ||
        create(&handle) != CUBLAS_STATUS_SUCCESS || set(handle, stream) != CUBLAS_STATUS_SUCCESS) {
        b->handle = handle;
        cuda_blas_close(b);
        return ERR_UNSUPPORTED;
    }
    b->handle = handle;
    return OK;
}

void cuda_blas_close(struct cuda_blas *b)
{
    if (b->handle) {
        auto destroy = (cublasStatus_t(*)(cublasHandle_t))dlsym(b->library, "cublasDestroy_v2");
        if (destroy)
            destroy((cublasHandle_t)b->handle);
    }
    if (b->library)
        dlclose(b->library);
    *b = {};
}

int cuda_blas_gemm(const struct cuda_blas *b, bool exact, int rows, int T, int cols, const float *w,
                   const float *x, float *y, int ldy, bool add)
{
    const float one = 1, beta = add ? 1 : 0;
    cublasStatus_t rc = ((gemm_function)b->gemm)(
        (cublasHandle_t)b->handle, CUBLAS_OP_T, CUBLAS_OP_N, rows, T, cols, &one, w, CUDA_R_32F,
        cols, x, CUDA_R_32F, cols, &beta, y, CUDA_R_32F, ldy,
        exact ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT);
    return rc == CUBLAS_STATUS_SUCCESS ? OK : ERR_DEVICE;
}

/* Row-major is column-major transposed: the operands change places. */
int cuda_blas_gemm_batch(const struct cuda_blas *b, const struct algebra_gemm *g)
{
    cublasStatus_t rc = ((batch_function)b->gemm_batch)(
        (cublasHandle_t)b->handle, g->tb ? CUBLAS_OP_T : CUBLAS_OP_N,
        g->ta ? CUBLAS_OP_T : CUBLAS_OP_N, g->n, g->m, g->k, &g->alpha, g->b, CUDA_R_32F, g->ldb,
        (long long)g->step_b, g->a, CUDA_R_32F, g->lda, (long long)g->step_a, &g->beta, g->c,
        CUDA_R_32F, g->ldc, (long long)g->step_c, g->count, CUBLAS_COMPUTE_32F,
        CUBLAS_GEMM_DEFAULT);
    return rc == CUBLAS_STATUS_SUCCESS ? OK : ERR_DEVICE;
}

int cuda_blas_syrk(const struct cuda_blas *b, int n, int k, const float *a, int lda, float *c)
{
    const float one = 1;
    cublasStatus_t rc = ((syrk_function)b->syrk)((cublasHandle_t)b->handle, CUBLAS_FILL_MODE_LOWER,
                                                 CUBLAS_OP_N, n, k, &one, a, lda, &one, c, n);
    return rc == CUBLAS_STATUS_SUCCESS ? OK : ERR_DEVICE;
}

/* x is column-major [m][n], its rows the right sides: X = x L⁻ᵀ L⁻¹. */
int cuda_blas_back(const struct cuda_blas *b, int n, int m, const double *factor, double *x)
{
    const double one = 1;
    for (int i = 0; i < 2; i++)
        if (((trsm_function)b->trsm)((cublasHandle_t)b->handle, CUBLAS_SIDE_RIGHT,
                                     CUBLAS_FILL_MODE_LOWER, i ? CUBLAS_OP_N : CUBLAS_OP_T,
                                     CUBLAS_DIAG_NON_UNIT, m, n, &one, factor, n, x,
                                     m) != CUBLAS_STATUS_SUCCESS)
            return ERR_DEVICE;
    return OK;
}
#endif
