/* linalg: dense linear algebra for the conversion, over OpenBLAS and LAPACKE.
 *
 * Row-major throughout. OpenBLAS runs single-threaded; large products are split over the pool by
 * rows of C, so results do not depend on timing. Only kernels/ includes the BLAS headers. */
#ifndef MLATHE_KERNELS_LINALG_H
#define MLATHE_KERNELS_LINALG_H

#include <complex.h>

#include "core/base.h"

struct pool;

/* Once per process before other calls (backends do it): one BLAS thread. */
void linalg_init(void);

/* C[m][n] = alpha · op(A) op(B) + beta · C; ta: A is stored [k][m], tb: B is stored [n][k]. */
void linalg_sgemm(struct pool *p, bool ta, bool tb, int m, int n, int k, float alpha,
                  const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
void linalg_dgemm(struct pool *p, bool ta, bool tb, int m, int n, int k, double alpha,
                  const double *a, int lda, const double *b, int ldb, double beta, double *c,
                  int ldc);
/* Upper triangle (j ≥ i) of C[n][n] += Aᵀ A with A [k][n]; the lower one is left alone. */
void linalg_ssyrk_add(struct pool *p, int n, int k, const float *a, int lda, float *c, int ldc);

/* Symmetric eigenproblem: a[n][n] is replaced by eigenvectors in its ROWS, w ascending. */
int linalg_eigh(int n, double *a, double *w, struct err *e);
/* w alone, ascending; a is destroyed. */
int linalg_eigenvalues(int n, double *a, double *w, struct err *e);
/* Hermitian: a[n][n] → eigenvectors u_i in rows i (a[i][j] = component j of u_i), w ascending. */
int linalg_eigh_complex(int n, double complex *a, double *w, struct err *e);
/* Solves A X = B for symmetric positive definite A [n][n] (destroyed); B [n][m] becomes X. */
int linalg_solve_spd(int n, int m, double *a, double *b, struct err *e);
/* A[n][n] becomes its lower Cholesky factor (upper triangle zeroed). */
int linalg_cholesky(int n, double *a, struct err *e);
/* linalg_solve_spd from the lower factor l of A. */
void linalg_solve_factored(int n, int m, const double *l, double *b);

#endif
