/* mla_solve: what the rooms of the layer conversion share. Not for callers: they include mla.h. */
#ifndef MLATHE_CORE_MLA_SOLVE_H
#define MLATHE_CORE_MLA_SOLVE_H

#include "core/mla.h"

/* Everything a solve needs at hand; matrices row-major fp64. */
struct solve {
    const struct mla_source *src;
    const struct moments *m;
    int n, nk, d, D, H, G;
    struct rope_choice rope;
    struct phase_fit fit;
    double complex *shrink; /* [H][half] */
    double *r2;             /* [H][half] */
    double *B;              /* [H][d][nk] nope forms */
    double *MK;             /* [nk][nk] */
    double *L;              /* [H][d][d] */
    double *LG;             /* [G][d][d] Σ over the group */
    double *W, *Winv;       /* [n][n] Wt and its inverse */
    double *U, *val;        /* [n][n] rows descending, [n] */
    double *A;              /* [r][n] */
    double *X0;             /* [n][r] z ≈ X0·(A z) before the refit */
    double *t1, *t2;        /* [n][n] scratch */
    double tau;             /* key weight over value weight */
};

/* C = op(A) op(B) + beta·C on the caller's thread. */
void mla_gemm(bool ta, bool tb, int m, int n, int k, const double *a, int lda, const double *b,
              int ldb, double beta, double *c, int ldc);
void mla_store(const double *from, float *to, size_t n);
/* q, kv_a and their biases of *out from the solved rope, fit and latent (method: step 7). */
int mla_write_maps(struct solve *s, struct mla_result *out, struct err *e);

#endif
