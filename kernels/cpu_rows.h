/* dots and gemm of cpu.h for any number of rows and any plain type, from tiles of constant sizes:
 * included by cpu_avx2.c, cpu_avx512.c and cpu_neon.c only, behind their INLINE, AHEAD_ROWS, and
 *
 *   dots_rows  1 to 3 rows of a against all rows of b; few: they will wait for memory
 *   gemm_rows  1 to 6 rows of a against all columns of b */
#ifndef MLATHE_KERNELS_CPU_ROWS_H
#define MLATHE_KERNELS_CPU_ROWS_H

INLINE void dots_as(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                    int ldb, float *c, int ldc, bool add)
{
    bool few = m <= AHEAD_ROWS && type != DTYPE_F32;
    for (int i = 0; i < m; i += 3, a += 3 * (size_t)lda, c += 3 * (size_t)ldc)
        switch (m - i) {
        case 1: dots_rows(1, n, k, a, lda, type, b, ldb, c, ldc, add, few); break;
        case 2: dots_rows(2, n, k, a, lda, type, b, ldb, c, ldc, add, few); break;
        default: dots_rows(3, n, k, a, lda, type, b, ldb, c, ldc, add, few);
        }
}

static void dots(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                 int ldb, float *c, int ldc, bool add)
{
    switch (type) {
    case DTYPE_F16: dots_as(m, n, k, a, lda, DTYPE_F16, b, ldb, c, ldc, add); break;
    case DTYPE_BF16: dots_as(m, n, k, a, lda, DTYPE_BF16, b, ldb, c, ldc, add); break;
    default: dots_as(m, n, k, a, lda, DTYPE_F32, b, ldb, c, ldc, add);
    }
}

INLINE void gemm_as(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                    int ldb, float *c, int ldc, bool add)
{
    for (int i = 0; i < m; i += 6, a += 6 * (size_t)lda, c += 6 * (size_t)ldc)
        switch (m - i) {
        case 1: gemm_rows(1, n, k, a, lda, type, b, ldb, c, ldc, add); break;
        case 2: gemm_rows(2, n, k, a, lda, type, b, ldb, c, ldc, add); break;
        case 3: gemm_rows(3, n, k, a, lda, type, b, ldb, c, ldc, add); break;
        case 4: gemm_rows(4, n, k, a, lda, type, b, ldb, c, ldc, add); break;
        case 5: gemm_rows(5, n, k, a, lda, type, b, ldb, c, ldc, add); break;
        default: gemm_rows(6, n, k, a, lda, type, b, ldb, c, ldc, add);
        }
}

static void gemm(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                 int ldb, float *c, int ldc, bool add)
{
    switch (type) {
    case DTYPE_F16: gemm_as(m, n, k, a, lda, DTYPE_F16, b, ldb, c, ldc, add); break;
    case DTYPE_BF16: gemm_as(m, n, k, a, lda, DTYPE_BF16, b, ldb, c, ldc, add); break;
    default: gemm_as(m, n, k, a, lda, DTYPE_F32, b, ldb, c, ldc, add);
    }
}

#endif
