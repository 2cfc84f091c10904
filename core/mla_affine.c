/* The rank bound: with z = Q y and y narrower than z (the layer input, for models whose keys and
 * values together are wider than it) everything is solved in y. Exact: the same latent, with
 * eigenproblems of the width of y. Wt is only ever needed as F = Wt Q: any W [w][w] with
 * WᵀW = FᵀF takes its place, and Wt⁻¹U of the wide route is (FᵀF)⁻¹ Aᵀ here. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mla_solve.h"
#include "kernels/linalg.h"

#define GRAM_RIDGE 1e-13 /* of FᵀF, relative to its mean diagonal: only what Q cannot reach */
#define GRAM_RIDGE_MAX 1e-6

int mla_affine_init(struct solve *s, struct err *e)
{
    size_t n = (size_t)s->n, w = (size_t)s->w, nk = (size_t)s->nk, D = (size_t)s->D;
    const struct mla_source *src = s->src;
    s->Q = mem_calloc(n * w, sizeof *s->Q);
    s->F = mem_calloc(n * w, sizeof *s->F);
    s->BQ = mem_calloc((size_t)s->H * (size_t)s->d * w, sizeof *s->BQ);
    if (!s->Q || !s->F || !s->BQ)
        return err_nomem(e, 2 * n * w * sizeof *s->Q, "a layer's conversion");
    for (size_t i = 0; i < n; i++) {
        const float *row = i < nk ? src->wk + i * D : src->wv + (i - nk) * D;
        const float *bias = i < nk ? src->bk : src->bv;
        for (size_t j = 0; j < D; j++)
            s->Q[i * w + j] = row[j];
        if (w > D && bias)
            s->Q[i * w + D] = bias[i < nk ? i : i - nk];
    }
    return OK;
}

void mla_affine_forms(struct solve *s)
{
    mla_gemm(false, false, s->H * s->d, s->w, s->nk, s->B, s->nk, s->Q, s->w, 0, s->BQ, s->w);
}

double mla_affine_key_effect(struct solve *s)
{
    int d = s->d, w = s->w;
    double sum = 0, *MB = s->F, *MBC = MB + (size_t)d * (size_t)w; /* F comes later */
    for (int h = 0; h < s->H; h++) {
        const double *B = s->BQ + (size_t)h * (size_t)d * (size_t)w;
        int per = s->H / moments_groups(&s->m->shape);
        if (h % per == 0)
            moments_of_head(s->m, s->m->cko, h, s->U); /* U is free until the eigenproblem */
        mla_gemm(false, false, d, w, d, s->m->m + (size_t)h * (size_t)(d * d), d, B, w, 0, MB, w);
        mla_gemm(false, false, d, w, w, MB, w, s->U, w, 0, MBC, w);
        for (size_t i = 0; i < (size_t)d * (size_t)w; i++)
            sum += MBC[i] * B[i];
    }
    return s->src->scale * s->src->scale * sum;
}

double mla_affine_value_energy(struct solve *s)
{
    int d = s->d, w = s->w;
    double sum = 0, *LQ = s->F, *LQC = LQ + (size_t)d * (size_t)w;
    for (int g = 0; g < s->G; g++) {
        const double *Q = s->Q + (size_t)(s->nk + g * d) * (size_t)w;
        mla_gemm(false, false, d, w, d, s->LG + (size_t)g * (size_t)(d * d), d, Q, w, 0, LQ, w);
        mla_gemm(false, false, d, w, w, LQ, w, s->m->c, w, 0, LQC, w);
        for (size_t i = 0; i < (size_t)d * (size_t)w; i++)
            sum += LQC[i] * Q[i];
    }
    return sum;
}

int mla_affine_weighting(struct solve *s, struct err *e)
{
    int d = s->d, nk = s->nk, w = s->w;
    int rc = mla_square_root(s->MK, nk, sqrt(s->tau), s->t1, NULL, nk, e);
    if (!rc)
        mla_gemm(false, false, nk, w, nk, s->t1, nk, s->Q, w, 0, s->F, w);
    for (int g = 0; g < s->G && !rc; g++) {
        size_t at = (size_t)(nk + g * d) * (size_t)w;
        rc = mla_square_root(s->LG + (size_t)g * (size_t)(d * d), d, 1, s->t1, NULL, d, e);
        if (!rc)
            mla_gemm(false, false, d, w, d, s->t1, d, s->Q + at, w, 0, s->F + at, w);
    }
    return rc;
}

/* FᵀF plus its ridge into s->W's place as an upper factor. The ridge grows until it is enough. */
static int factor_gram(struct solve *s, struct err *e)
{
    size_t w = (size_t)s->w, ww = w * w;
    double *S = s->t1, mean = 0, ridge = GRAM_RIDGE;
    int rc;
    mla_gemm(true, false, s->w, s->w, s->n, s->F, s->w, s->F, s->w, 0, S, s->w);
    for (size_t i = 0; i < w; i++)
        mean += S[i * (w + 1)] / (double)w;
    do {
        memcpy(s->t2, S, ww * sizeof *S);
        for (size_t i = 0; i < w; i++)
            s->t2[i * (w + 1)] += ridge * mean + 1e-300;
        rc = linalg_cholesky(s->w, s->t2, e);
        ridge *= 100;
    } while (rc && ridge < GRAM_RIDGE_MAX && mean > 0);
    for (size_t i = 0; i < w && !rc; i++) /* WᵀW = L Lᵀ: W is L's transpose */
        for (size_t j = 0; j < w; j++)
            s->W[i * w + j] = s->t2[j * w + i];
    return rc;
}

/* X [w][r] = (WᵀW)⁻¹ Aᵀ. */
static int pull_back(struct solve *s, const double *A, int r, double *X, struct err *e)
{
    int w = s->w;
    for (int i = 0; i < r; i++)
        for (int j = 0; j < w; j++)
            X[(size_t)j * (size_t)r + (size_t)i] = A[(size_t)i * (size_t)w + (size_t)j];
    mla_gemm(true, false, w, w, w, s->W, w, s->W, w, 0, s->t1, w);
    return linalg_solve_spd(w, r, s->t1, X, e);
}

int mla_affine_latent(struct solve *s, const double *C, int r, struct err *e)
{
    int w = s->w, rc = factor_gram(s, e);
    if (!rc)
        rc = mla_eigen_descending(s, C, e);
    if (rc)
        return rc;
    mla_gemm(false, false, r, w, w, s->U, w, s->W, w, 0, s->A, w);
    return pull_back(s, s->A, r, s->X0, e);
}

int mla_affine_transmla(struct solve *s, const double *rest, const double *C, int r, struct err *e)
{
    int nk = s->nk, w = s->w, R = 2 * s->rope.pairs, left = nk - R;
    size_t values = (size_t)(s->n - nk) * (size_t)w;
    const double *V = s->Q + (size_t)nk * (size_t)w;
    double *FV = s->F + (size_t)nk * (size_t)w, *FC = s->t1, key = 0, value = 0;
    memset(s->F, 0, (size_t)nk * (size_t)w * sizeof *s->F);
    mla_gemm(false, false, left, w, nk, rest, nk, s->Q, w, 0, s->F, w);
    memcpy(FV, V, values * sizeof *V);
    for (int i = 0; i < s->n; i++) { /* mean column norms; the slice of V skips R columns */
        const double *row = s->F + (size_t)i * (size_t)w;
        double sum = 0;
        if (i >= left && i < nk + R)
            continue;
        mla_gemm(false, false, 1, w, w, row, w, C, w, 0, FC, w);
        for (int j = 0; j < w; j++)
            sum += FC[j] * row[j];
        if (i < nk)
            key += sqrt(fmax(sum, 0)) / left;
        else
            value += sqrt(fmax(sum, 0)) / left;
    }
    double ratio = left > 0 && value > 0 && key > 0 ? key / value : 1;
    for (size_t i = 0; i < (size_t)left * (size_t)w; i++)
        s->F[i] /= ratio;
    /* X0 need not forget the roped components as the wide route's pseudo-inverse does: a nope form
     * takes them out of what it reads. */
    return mla_affine_latent(s, C, r, e);
}

int mla_affine_key_share(struct solve *s, double *share, struct err *e)
{
    size_t w = (size_t)s->w, nk = (size_t)s->nk;
    double *A = mem_calloc(2 * w * w + nk * w, sizeof *A);
    if (!A)
        return err_nomem(e, 3 * w * w * sizeof *A, "a spectrum");
    double *X = A + w * w, *FX = X + w * w;
    mla_gemm(false, false, s->w, s->w, s->w, s->U, s->w, s->W, s->w, 0, A, s->w);
    int rc = pull_back(s, A, s->w, X, e);
    if (!rc)
        mla_gemm(false, false, s->nk, s->w, s->w, s->F, s->w, X, s->w, 0, FX, s->w);
    for (size_t i = 0; i < w && !rc; i++) {
        share[i] = 0;
        for (size_t j = 0; j < nk; j++)
            share[i] += FX[j * w + i] * FX[j * w + i];
        share[i] = fmin(1, share[i]);
    }
    free(A);
    return rc;
}

void mla_affine_block(struct solve *s, int at, int size, double *block)
{
    int w = s->w;
    const double *F = s->F + (size_t)at * (size_t)w;
    double *FC = s->U; /* no longer needed; [n][w] is no larger than U only if size ≤ w */
    for (int i = 0; i < size; i += w) {
        int rows = size - i < w ? size - i : w;
        mla_gemm(false, false, rows, w, w, F + (size_t)i * (size_t)w, w, s->m->c, w, 0, FC, w);
        mla_gemm(false, true, rows, size, w, FC, w, F, w, 0, block + (size_t)i * (size_t)size,
                 size);
    }
}
