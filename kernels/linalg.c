/* OpenBLAS and LAPACKE behind row-major calls. Large products are cut into fixed bands of rows, so
 * a result depends on the sizes only, never on which thread took which band. */
#include "kernels/linalg.h"

#include <cblas.h>
#include <lapacke.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/pool.h"

#define LINALG_BAND 64               /* rows of C a task */
#define LINALG_SPLIT_FLOPS 4000000.0 /* below this a product is not worth splitting */

void linalg_init(void)
{
    openblas_set_num_threads(1);
}

struct gemm {
    bool ta, tb;
    int m, n, k, band;
    double alpha, beta;
    const void *a, *b;
    void *c;
    int lda, ldb, ldc;
};

static void sgemm_band(void *arg, int i, int thread)
{
    const struct gemm *g = arg;
    (void)thread;
    int row = i * g->band, rows = g->m - row < g->band ? g->m - row : g->band;
    const float *a = (const float *)g->a + (g->ta ? (size_t)row : (size_t)row * g->lda);
    cblas_sgemm(CblasRowMajor, g->ta ? CblasTrans : CblasNoTrans, g->tb ? CblasTrans : CblasNoTrans,
                rows, g->n, g->k, (float)g->alpha, a, g->lda, g->b, g->ldb, (float)g->beta,
                (float *)g->c + (size_t)row * g->ldc, g->ldc);
}

static void dgemm_band(void *arg, int i, int thread)
{
    const struct gemm *g = arg;
    (void)thread;
    int row = i * g->band, rows = g->m - row < g->band ? g->m - row : g->band;
    const double *a = (const double *)g->a + (g->ta ? (size_t)row : (size_t)row * g->lda);
    cblas_dgemm(CblasRowMajor, g->ta ? CblasTrans : CblasNoTrans, g->tb ? CblasTrans : CblasNoTrans,
                rows, g->n, g->k, g->alpha, a, g->lda, g->b, g->ldb, g->beta,
                (double *)g->c + (size_t)row * g->ldc, g->ldc);
}

static void gemm_run(struct pool *p, struct gemm *g, void (*band)(void *, int, int))
{
    if (!g->m || !g->n)
        return;
    bool split = p && 2.0 * g->m * g->n * g->k >= LINALG_SPLIT_FLOPS && g->m > LINALG_BAND;
    g->band = split ? LINALG_BAND : g->m;
    if (split && g->m / LINALG_BAND > 4 * pool_threads(p))
        g->band = (g->m / (4 * pool_threads(p)) + 15) & ~15;
    pool_for(split ? p : NULL, (g->m + g->band - 1) / g->band, band, g);
}

void linalg_sgemm(struct pool *p, bool ta, bool tb, int m, int n, int k, float alpha,
                  const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc)
{
    struct gemm g = {ta, tb, m, n, k, 0, alpha, beta, a, b, c, lda, ldb, ldc};
    gemm_run(p, &g, sgemm_band);
}

void linalg_dgemm(struct pool *p, bool ta, bool tb, int m, int n, int k, double alpha,
                  const double *a, int lda, const double *b, int ldb, double beta, double *c,
                  int ldc)
{
    struct gemm g = {ta, tb, m, n, k, 0, alpha, beta, a, b, c, lda, ldb, ldc};
    gemm_run(p, &g, dgemm_band);
}

/* A band of rows of C, from its diagonal block to the right. */
static void ssyrk_band(void *arg, int i, int thread)
{
    const struct gemm *g = arg;
    (void)thread;
    int row = i * g->band, rows = g->m - row < g->band ? g->m - row : g->band;
    const float *a = (const float *)g->a + row;
    float *c = (float *)g->c + (size_t)row * g->ldc + row;
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, rows, g->k, 1, a, g->lda, 1, c, g->ldc);
    if (row + rows < g->n)
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, rows, g->n - row - rows, g->k, 1, a,
                    g->lda, a + rows, g->lda, 1, c + rows, g->ldc);
}

void linalg_ssyrk_add(struct pool *p, int n, int k, const float *a, int lda, float *c, int ldc)
{
    struct gemm g = {.m = n, .n = n, .k = k, .a = a, .lda = lda, .c = c, .ldc = ldc};
    gemm_run(p, &g, ssyrk_band);
}

static int lapack_failed(struct err *e, const char *routine, int n, int info)
{
    return err_set(e, ERR_NUMERIC, "%s failed (info %d) on a %d × %d matrix: NaN or singular",
                   routine, info, n, n);
}

int linalg_eigh(int n, double *a, double *w, struct err *e)
{
    /* The _work form with our own sizes: the high-level one mis-sizes its workspace for large n.
     * Column-major on a symmetric matrix: eigenvectors land in columns = rows of row-major. */
    lapack_int lwork = 1 + 6 * n + 2 * n * n, liwork = 3 + 5 * n;
    size_t bytes = (size_t)(1 + 6 * (size_t)n + 2 * (size_t)n * n) * sizeof(double);
    double *work = malloc(bytes);
    lapack_int *iwork = malloc((size_t)liwork * sizeof *iwork);
    int rc = OK;
    if (!work || !iwork) {
        rc = err_nomem(e, bytes, "an eigenproblem");
    } else {
        lapack_int info =
            LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'V', 'L', n, a, n, w, work, lwork, iwork, liwork);
        if (info)
            rc = lapack_failed(e, "dsyevd", n, (int)info);
    }
    free(work);
    free(iwork);
    return rc;
}

int linalg_eigenvalues(int n, double *a, double *w, struct err *e)
{
    lapack_int info = LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'N', 'L', n, a, n, w);
    return info ? lapack_failed(e, "dsyevd", n, (int)info) : OK;
}

int linalg_eigh_complex(int n, double complex *a, double *w, struct err *e)
{
    /* Row-major Hermitian read column-major is the conjugate: so are its eigenvectors. */
    lapack_int info =
        LAPACKE_zheevd(LAPACK_COL_MAJOR, 'V', 'L', n, (lapack_complex_double *)(void *)a, n, w);
    if (info)
        return lapack_failed(e, "zheevd", n, (int)info);
    for (size_t i = 0; i < (size_t)n * n; i++)
        a[i] = conj(a[i]);
    return OK;
}

int linalg_solve_spd(int n, int m, double *a, double *b, struct err *e)
{
    lapack_int info = LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', n, a, n);
    if (info)
        return lapack_failed(e, "dpotrf", n, (int)info);
    linalg_solve_factored(n, m, a, b);
    return OK;
}

void linalg_solve_factored(int n, int m, const double *l, double *b)
{
    /* Row-major B [n][m] as column-major is Bᵀ [m][n]: X = A⁻¹B ⇔ Xᵀ = Bᵀ A⁻¹, two dtrsm from the
     * right with the factor A = UᵀU, of which row-major l = Uᵀ. */
    cblas_dtrsm(CblasColMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, m, n, 1, l, n, b,
                m);
    cblas_dtrsm(CblasColMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, m, n, 1, l, n, b,
                m);
}

int linalg_cholesky(int n, double *a, struct err *e)
{
    lapack_int info = LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', n, a, n);
    if (info)
        return lapack_failed(e, "dpotrf", n, (int)info);
    /* Column-major upper U with A = UᵀU is row-major lower L = Uᵀ in place. */
    for (int i = 0; i < n; i++)
        memset(a + (size_t)i * n + i + 1, 0, (size_t)(n - i - 1) * sizeof *a);
    return OK;
}
