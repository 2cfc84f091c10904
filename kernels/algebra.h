/* algebra: what the conversion computes beside the forward pass, on a backend's own memory. A
 * backend without the table (struct backend: algebra NULL) leaves all of it to the host, linalg.h.
 *
 * Pointers come from the backend's alloc() unless said otherwise; faults surface at its sync().
 * Products and sums are fp32, totals fp64, as on the host, so that both keep the same subspace; TF32
 * would be faster and turns it about eight times further from the exact one
 * (test_moments_device.c measures both). ref_algebra.c is the executable definition. */
#ifndef MLATHE_KERNELS_ALGEBRA_H
#define MLATHE_KERNELS_ALGEBRA_H

#include "kernels/backend.h"

/* For i < count: c_i[m][n] = alpha · op(a_i) op(b_i) + beta · c_i, row-major; matrix i begins i·step
 * numbers after the first one. ta: a is stored [k][m], tb: b is stored [n][k]. */
struct algebra_gemm {
    bool ta, tb;
    int m, n, k, count;
    float alpha, beta;
    const float *a, *b;
    float *c;
    int lda, ldb, ldc;
    size_t step_a, step_b, step_c;
};

/* What errors of keys do to a head's output (core/moments.h: cko), sequences of T rows each:
 * key[n] += Σ_m p²·max(0, v_n − 2·u + o_m) and share[n] += Σ_m p²·v_n, with p and u at [m][n] of
 * the sequence's P and U, m from n on. */
struct algebra_keys {
    const float *P, *U; /* [count][T][T] */
    const float *v, *o; /* [count·T] */
    float *key;         /* [count·T] */
    double *share;      /* [count·T] */
    int count, T;
};

struct algebra_ops {
    void (*gemm)(struct backend *b, const struct algebra_gemm *g);
    /* Upper triangle of c[n][n] += aᵀ a with a [k][n]. */
    void (*syrk_add)(struct backend *b, int n, int k, const float *a, int lda, float *c);
    /* total, a packed upper triangle in fp64, += that of c[n][n], which becomes zero. */
    void (*fold)(struct backend *b, double *total, float *c, int n);
    /* P[count][T][T], logits → attention weights: causal, window (0: none), soft cap (0: none). */
    void (*softmax)(struct backend *b, float *P, int count, int T, int window, float softcap);
    /* out[i] = Σ_j x[i][j]·y[i][j], n numbers of each of the rows. */
    void (*row_dots)(struct backend *b, float *out, const float *x, int ldx, const float *y,
                     int ldy, int n, int rows);
    void (*keys)(struct backend *b, const struct algebra_keys *a);
    /* out[i][n] = √weight[i] · y[i][n] */
    void (*weigh_rows)(struct backend *b, float *out, const float *y, const float *weight, int n,
                       int rows);
    /* out[i] = KL divergence of the softmax of q's row i from that of p's, n logits a row. */
    void (*divergence)(struct backend *b, float *out, const float *p, const float *q, int n,
                       int rows);
    /* As linalg_eigh, in host memory; from any thread, several at once. NULL: the host does it. */
    int (*eigh)(struct backend *b, int n, double *a, double *w, struct err *e);
    int eigh_from; /* the smallest n that it is for */
    /* Likewise linalg_solve_spd. */
    int (*solve_spd)(struct backend *b, int n, int m, double *a, double *x, struct err *e);
    int solve_from;
};
extern const struct algebra_ops ref_algebra_ops, cuda_algebra_ops;

/* linalg_eigh and linalg_solve_spd by whoever is meant for this size; b may be NULL. */
int algebra_eigh(struct backend *b, int n, double *a, double *w, struct err *e);
int algebra_solve_spd(struct backend *b, int n, int m, double *a, double *x, struct err *e);

#endif
