/* mla_solve: what the rooms of the layer conversion share. Not for callers: they include mla.h. */
#ifndef MLATHE_CORE_MLA_SOLVE_H
#define MLATHE_CORE_MLA_SOLVE_H

#include "core/mla.h"

/* A moment C as the heads' refits read it, by rows of A: a lower rank is the first rows of a higher
 * one's. */
struct mla_term {
    int r, room;    /* rows, and room for them */
    double *K;      /* [r(r+1)/2] lower triangle of A C Aᵀ; owns the targets' memory */
    double *target; /* [r][heads·d] A C Sᵀ of each head that shares the moment: S z is its aim */
};
void mla_terms_free(struct mla_term *t, int n);
/* Of r rows with targets of `width` numbers. */
double mla_term_numbers(int r, int width);

/* Everything a solve needs at hand; matrices row-major fp64. The latent lives in the coordinates of
 * the statistics: z itself (w = n), or y of affine statistics with z = Q y. */
struct solve {
    const struct mla_source *src;
    const struct moments *m;
    int n, w, nk, d, D, H, G;
    struct rope_choice rope;
    struct phase_fit fit;
    double complex *shrink; /* [H][half] */
    double *r2;             /* [H][half] */
    double *B;              /* [H][d][nk] nope forms */
    double *MK;             /* [nk][nk] */
    double *L;              /* [H][d][d] */
    double *LG;             /* [G][d][d] Σ over the group */
    double *W, *Winv;       /* [n][n] Wt and its inverse; affine: W [w][w] with WᵀW = FᵀF */
    double *U, *val;        /* [w][w] rows descending, [w] */
    double *A;              /* [r][w] */
    double *X0;             /* [w][r] y ≈ X0·(A y) before the refit */
    double *t1, *t2;        /* [w][w] and [nk][nk] scratch */
    double tau;             /* key weight over value weight */
    struct mla_term *kept;  /* [2][H] of a prepared layer (keys' groups, values'), or NULL */
    /* affine */
    double *Q;  /* [n][w] */
    double *BQ; /* [H][d][w] B Q_k */
    double *F;  /* [n][w] Wt Q */
};

/* Room for all of it, at a latent of r numbers; mla_solve_done also after a failure. */
int mla_solve_init(struct solve *s, const struct mla_source *src, const struct moments *m, int r,
                   struct err *e);
void mla_solve_done(struct solve *s);
/* The parts of a solve: what no rank changes, wanted: with the r rows of A and X0 that lose least
 * (descending: fewer rows are a cut of more); then, from these, the layer at rank r. */
int mla_solve_latent(struct solve *s, const struct mla_options *o, int r, bool wanted,
                     struct err *e);
bool mla_holds_all(const struct solve *s, const struct mla_options *o, int r); /* nothing to solve */
int mla_solve_rank(struct solve *s, const struct mla_options *o, int r, struct mla_result *out,
                   struct err *e);
/* B and BQ from the rope choice and fit; L and LG from the output weights. */
void mla_nope_forms(struct solve *s);
int mla_output_metrics(struct solve *s, struct err *e);
double mla_damping(const struct mla_options *o);
/* kv_b of every head: refitted (mlathe), or straight from X0 (rank n, transmla, no statistics). */
int mla_up_maps(struct solve *s, const struct mla_options *o, int r, bool fitted, float *kv_b,
                struct err *e);

/* C = op(A) op(B) + beta·C on the caller's thread. */
void mla_gemm(bool ta, bool tb, int m, int n, int k, const double *a, int lda, const double *b,
              int ldb, double beta, double *c, int ldc);
/* C = A B where A's rows hold few numbers: what is zero costs nothing. */
void mla_sparse_gemm(int m, int n, int k, const double *a, int lda, const double *b, int ldb,
                     double *c, int ldc);
void mla_store(const double *from, float *to, size_t n);
/* a[m][m] → √a into root, √a⁻¹ into inverse (may be NULL), times f and 1/f; leading dimension ld. */
int mla_square_root(const double *a, int m, double f, double *root, double *inverse, int ld,
                    struct err *e);
/* Eigenpairs of W C Wᵀ into U (rows, descending) and val. */
int mla_eigen_descending(struct solve *s, const double *C, struct err *e);
double mla_trace_product(const double *a, const double *b, int rows, int lda, int ldb);

/* The affine coordinates (mla_affine.c). */
int mla_affine_init(struct solve *s, struct err *e);
/* BQ from B. */
void mla_affine_forms(struct solve *s);
/* Σ_h s² tr(B_hᵀ M_h B_h CKo_h) */
double mla_affine_key_effect(struct solve *s);
/* tr(L C_V) over all groups. */
double mla_affine_value_energy(struct solve *s);
/* F of the weighted latent, from MK, LG and τ. */
int mla_affine_weighting(struct solve *s, struct err *e);
/* A and X0 of rank r under metric F and moment C. */
int mla_affine_latent(struct solve *s, const double *C, int r, struct err *e);
/* The same for TransMLA's latent of the un-rotated components rest [nk − R][nk]. */
int mla_affine_transmla(struct solve *s, const double *rest, const double *C, int r,
                        struct err *e);
/* Shares of keys in the eigenvectors [w], and F C Fᵀ of the rows [at, at + size) into block. */
int mla_affine_key_share(struct solve *s, double *share, struct err *e);
void mla_affine_block(struct solve *s, int at, int size, double *block);

/* The least of share, 10·share, … times K's mean diagonal that makes K [r][r] definite when it is
 * added to the diagonal (rounded moments of few loud tokens are so up to a little only); 0: nothing
 * ever flowed there. try[r][r] becomes the lower Cholesky factor of that sum. */
double mla_ridge(const double *K, int r, double share, double *try);
/* Rounds of alternating least squares from A of rank r on; A and X0 become the latent found. */
int mla_alternate(struct solve *s, int r, int rounds, struct err *e);

/* q, kv_a and their biases of *out from the solved rope, fit and latent (method: step 7). */
int mla_write_maps(struct solve *s, struct mla_result *out, struct err *e);

#endif
