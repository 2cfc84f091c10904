/* Solves one layer: nope forms, weighted latent (method: steps 3, 5, 7), and the published
 * TransMLA latent. All algebra in fp64; only the result is fp32. */
#include "core/mla_solve.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/algebra.h"
#include "kernels/linalg.h"

#define SQRT_FLOOR 1e-6 /* method step 5: eigenvalues of a metric, relative to the largest */

void mla_gemm(bool ta, bool tb, int m, int n, int k, const double *a, int lda, const double *b,
              int ldb, double beta, double *c, int ldc)
{
    linalg_dgemm(NULL, ta, tb, m, n, k, 1, a, lda, b, ldb, beta, c, ldc);
}

void mla_sparse_gemm(int m, int n, int k, const double *a, int lda, const double *b, int ldb,
                     double *c, int ldc)
{
    for (int i = 0; i < m; i++) {
        double *restrict to = c + (size_t)i * (size_t)ldc;
        memset(to, 0, (size_t)n * sizeof *to);
        for (int j = 0; j < k; j++) {
            const double f = a[(size_t)i * (size_t)lda + (size_t)j];
            const double *from = b + (size_t)j * (size_t)ldb;
            for (int l = 0; f != 0 && l < n; l++)
                to[l] += f * from[l];
        }
    }
}

void mla_store(const double *from, float *to, size_t n)
{
    for (size_t k = 0; k < n; k++)
        to[k] = (float)from[k];
}

void mla_solve_done(struct solve *s)
{
    double **all[] = {&s->r2,  &s->B, &s->MK, &s->L,  &s->LG, &s->W, &s->Winv, &s->U,
                      &s->val, &s->A, &s->X0, &s->t1, &s->t2, &s->Q, &s->BQ,   &s->F};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(*all[i]);
    free(s->shrink);
    phase_fit_done(&s->fit);
    rope_choice_done(&s->rope);
}

int mla_solve_init(struct solve *s, const struct mla_source *src, const struct moments *m, int r,
                   struct err *e)
{
    const struct moments_shape *p = &src->shape;
    *s = (struct solve){.src = src,
                        .m = m,
                        .n = moments_n(p),
                        .w = moments_width(&m->shape),
                        .nk = p->G * p->d,
                        .d = p->d,
                        .D = p->D,
                        .H = p->H,
                        .G = p->G,
                        .tau = 1};
    if (r < 1 || r > s->n)
        return err_set(e, ERR_ARG, "latent rank %d: this layer takes 1 to %d", r, s->n);
    size_t w = (size_t)s->w, nk = (size_t)s->nk, d = (size_t)s->d, H = (size_t)s->H;
    size_t half = (size_t)(p->rope_dim / 2), wide = w > nk ? w : nk;
    bool affine = m->shape.affine;
    s->shrink = mem_calloc(H * half, sizeof *s->shrink);
    s->r2 = mem_calloc(H * half, sizeof *s->r2);
    s->B = mem_calloc(H * d * nk, sizeof *s->B);
    s->MK = mem_calloc(nk * nk, sizeof *s->MK);
    s->L = mem_calloc(H * d * d, sizeof *s->L);
    s->LG = mem_calloc((size_t)s->G * d * d, sizeof *s->LG);
    s->W = mem_calloc(w * w, sizeof *s->W);
    s->Winv = mem_calloc(affine ? 1 : w * w, sizeof *s->Winv);
    s->U = mem_calloc(w * w, sizeof *s->U);
    s->val = mem_calloc(wide, sizeof *s->val);
    s->A = mem_calloc((size_t)r * w, sizeof *s->A);
    s->X0 = mem_calloc((size_t)r * w, sizeof *s->X0);
    s->t1 = mem_calloc(wide * wide, sizeof *s->t1);
    s->t2 = mem_calloc(wide * wide, sizeof *s->t2);
    if (!s->shrink || !s->r2 || !s->B || !s->MK || !s->L || !s->LG || !s->W || !s->Winv || !s->U ||
        !s->val || !s->A || !s->X0 || !s->t1 || !s->t2)
        return err_nomem(e, 8 * wide * wide * sizeof(double), "a layer's conversion");
    return affine ? mla_affine_init(s, e) : OK;
}

double mla_solve_bytes(const struct moments_shape *p, int r)
{
    double n = moments_n(p), w = moments_width(p), nk = n / 2, wide = w > nk ? w : nk;
    double H = p->H, d = p->d, D = p->D;
    double held = 2 * w * w + 2 * r * w + 2 * wide * wide + H * d * nk + nk * nk + H * d * d;
    held += p->affine ? 2 * n * w + H * d * w : w * w;
    double roots = 3 * nk * nk + 2 * nk * nk, eigen = 2 * w * w, weights = D * H * d;
    double refits = (w + 2.5 * r + (2 + H / moments_groups(p)) * d) * r,
           shares = 2 * w * w + nk * w + w * w;
    double most = fmax(fmax(roots, eigen), fmax(weights, fmax(refits, p->affine ? shares : 0)));
    double made = H * (d + d) * D + r * D + 2 * H * d * r; /* with a rope as wide as a head */
    return sizeof(double) * (held + most) + sizeof(float) * made;
}

double mla_trace_product(const double *a, const double *b, int rows, int lda, int ldb)
{
    double sum = 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < rows; j++)
            sum += a[(size_t)i * (size_t)lda + (size_t)j] * b[(size_t)i * (size_t)ldb + (size_t)j];
    return sum;
}

/* B_h [d][nk]: the nope logit of head h is s·q_hᵀ B_h k. The head's own keys at their shrink, minus
 * the roped part at its own; dims that never rotate as they are. */
static void nope_form(const struct solve *s, int h, double *B)
{
    int d = s->d, half = s->src->shape.rope_dim / 2, g = h / (s->H / s->G);
    size_t nk = (size_t)s->nk, width = (size_t)(s->G * half);
    memset(B, 0, (size_t)d * nk * sizeof *B);
    for (int i = s->src->shape.rope_dim; i < d; i++)
        B[(size_t)i * nk + (size_t)(g * d + i)] = 1;
    for (int j = 0; j < half; j++) {
        double *re = B + (size_t)j * nk, *im = B + (size_t)(j + half) * nk;
        for (int g2 = 0; g2 < s->G; g2++) {
            for (int j2 = 0; j2 < half; j2++) {
                double complex z = g2 == g && j2 == j ? s->fit.own[h * half + j] : 0;
                for (int a = 0; a < s->rope.pairs; a++) {
                    size_t row = (size_t)a * width;
                    double complex p = s->rope.P[row + (size_t)(g * half + j)];
                    if (p != 0)
                        z -= conj(p) * s->fit.roped[h * s->rope.pairs + a] *
                             s->rope.T[row + (size_t)(g2 * half + j2)];
                }
                size_t cr = (size_t)(g2 * d + j2), ci = cr + (size_t)half;
                re[cr] = creal(z);
                re[ci] = -cimag(z);
                im[cr] = cimag(z);
                im[ci] = creal(z);
            }
        }
    }
}

void mla_nope_forms(struct solve *s)
{
    for (int h = 0; h < s->H; h++)
        nope_form(s, h, s->B + (size_t)h * (size_t)s->d * (size_t)s->nk);
    if (s->Q)
        mla_affine_forms(s);
}

/* Every rotation is kept: logits are whole, and what does not turn fits into a latent of the rest.
 */
static bool whole_rope(const struct solve *s, const struct mla_options *o)
{
    return o->method == METHOD_MLATHE && !(o->without & STEP_ROPE) && !s->Q &&
           o->rope_dim == s->G * s->src->shape.rope_dim &&
           (!s->src->shape.still || o->layout == LAYOUT_OWN);
}

double mla_damping(const struct mla_options *o)
{
    return o->damping > 0 ? o->damping : 1;
}

static int build_forms(struct solve *s, const struct mla_options *o, struct err *e)
{
    bool fitted = o->method == METHOD_MLATHE && s->m->phase && !s->src->shape.still &&
                  !(o->without & STEP_ROPE);
    bool shrunk = fitted && !(o->without & STEP_SHRINK);
    int rc = phase_fit_init(&s->fit, s->m, &s->rope, shrunk ? s->shrink : NULL, e);
    if (!rc && fitted && !(o->without & STEP_JOINT) && !whole_rope(s, o))
        rc = phase_fit_joint(&s->fit, s->m, &s->rope, mla_damping(o), e);
    if (!rc)
        mla_nope_forms(s);
    return rc;
}

/* L_h = W_O,hᵀ W_O,h and its sums over groups. */
int mla_output_metrics(struct solve *s, struct err *e)
{
    int d = s->d, width = s->H * d;
    size_t dd = (size_t)d * (size_t)d;
    double *wo = mem_calloc((size_t)s->D * (size_t)width, sizeof *wo);
    if (!wo)
        return err_nomem(e, (size_t)s->D * (size_t)width * sizeof *wo, "output weights");
    for (size_t i = 0; i < (size_t)s->D * (size_t)width; i++)
        wo[i] = s->src->wo[i];
    for (int h = 0; h < s->H; h++) {
        double *L = s->L + (size_t)h * dd, *LG = s->LG + (size_t)(h / (s->H / s->G)) * dd;
        mla_gemm(true, false, d, d, s->D, wo + h * d, width, wo + h * d, width, 0, L, d);
        for (size_t i = 0; i < dd; i++)
            LG[i] += L[i];
    }
    free(wo);
    return OK;
}

/* M_K = s² Σ_h B_hᵀ M_h B_h, and the balance τ: key energy by its effect on the attention output
 * over plain key energy, against the same ratio for values. */
static void key_metric(struct solve *s, const struct mla_options *o)
{
    int d = s->d, nk = s->nk, n = s->n;
    double s2 = s->src->scale * s->src->scale, ko = 0, vi = 0, vu = 0;
    double *mb = s->t1, *bmb = s->t2;
    memset(s->MK, 0, (size_t)nk * (size_t)nk * sizeof *s->MK);
    for (int h = 0; h < s->H; h++) {
        const double *B = s->B + (size_t)h * (size_t)d * (size_t)nk;
        mla_gemm(false, false, d, nk, d, s->m->m + (size_t)h * (size_t)(d * d), d, B, nk, 0, mb,
                 nk);
        mla_gemm(true, false, nk, nk, d, B, nk, mb, nk, 0, bmb, nk);
        for (size_t i = 0; i < (size_t)nk * (size_t)nk; i++)
            s->MK[i] += s2 * bmb[i];
        if (s->m->cko && !s->Q) {
            moments_of_head(s->m, s->m->cko, h, s->U); /* U is free until the eigenproblem */
            ko += s2 * mla_trace_product(bmb, s->U, nk, nk, n);
        }
        if (s->m->cko)
            vi += s->m->cvi[h];
    }
    double ku = 0;
    if (s->Q) {
        for (int i = 0; i < nk; i++)
            for (int j = 0; j < nk; j++)
                ku += s->MK[(size_t)i * (size_t)nk + (size_t)j] * moments_key(s->m, i, j);
        ko = s->m->cko ? mla_affine_key_effect(s) : 0;
        vu = mla_affine_value_energy(s);
    } else {
        ku = mla_trace_product(s->MK, s->m->c, nk, nk, n);
    }
    for (int g = 0; g < s->G && !s->Q; g++) {
        size_t at = (size_t)nk + (size_t)(g * d);
        vu += mla_trace_product(s->LG + (size_t)g * (size_t)(d * d), s->m->c + at * (size_t)n + at,
                                d, d, n);
    }
    if (!s->m->cko || o->without & STEP_BALANCE) /* keys and values weigh the same in total */
        s->tau = ku > 0 ? vu / ku : 1;
    else
        s->tau = ku > 0 && vi > 0 && vu > 0 ? (ko / ku) / (vi / vu) : 1;
    if (o->balance > 0)
        s->tau *= o->balance;
    if (!(s->tau > 0) || !isfinite(s->tau))
        s->tau = 1;
}

/* Without weights: every nope form and every value counts alike, keys scaled to values. */
static void plain_metric(struct solve *s)
{
    int d = s->d, nk = s->nk, n = s->n;
    double value = 0;
    memset(s->MK, 0, (size_t)nk * (size_t)nk * sizeof *s->MK);
    for (int h = 0; h < s->H; h++) {
        const double *B = s->B + (size_t)h * (size_t)d * (size_t)nk;
        mla_gemm(true, false, nk, nk, d, B, nk, B, nk, 1, s->MK, nk);
    }
    memset(s->LG, 0, (size_t)s->G * (size_t)(d * d) * sizeof *s->LG);
    for (int i = 0; i < s->G * d; i++) {
        s->LG[(size_t)(i / d) * (size_t)(d * d) + (size_t)(i % d) * (size_t)(d + 1)] = 1;
        value += s->m->c[(size_t)(nk + i) * (size_t)(n + 1)];
    }
    double key = mla_trace_product(s->MK, s->m->c, nk, nk, n);
    s->tau = key > 0 && value > 0 ? value / key : 1;
}

/* a[m][m] → √a into root, √a⁻¹ into inverse (leading dimension ld), times f and 1/f. */
int mla_square_root(const double *a, int m, double f, double *root, double *inverse, int ld,
                    struct err *e)
{
    size_t mm = (size_t)m * (size_t)m;
    double *u = mem_calloc(3 * mm + (size_t)m, sizeof *u);
    if (!u)
        return err_nomem(e, 3 * mm * sizeof *u, "a metric's square root");
    double *up = u + mm, *down = up + mm, *w = down + mm;
    memcpy(u, a, mm * sizeof *u);
    int rc = linalg_eigh(m, u, w, e);
    double top = rc ? 0 : w[m - 1];
    for (int i = 0; i < m && !rc; i++) {
        double lam = sqrt(fmax(w[i], SQRT_FLOOR * top));
        for (int j = 0; j < m; j++) {
            size_t at = (size_t)i * (size_t)m + (size_t)j;
            up[at] = top > 0 ? lam * f * u[at] : 0;
            down[at] = top > 0 ? u[at] / (lam * f) : 0;
        }
    }
    if (!rc) {
        mla_gemm(true, false, m, m, m, u, m, up, m, 0, root, ld);
        if (inverse)
            mla_gemm(true, false, m, m, m, u, m, down, m, 0, inverse, ld);
    }
    free(u);
    return rc;
}

static int build_weighting(struct solve *s, struct err *e)
{
    if (s->Q)
        return mla_affine_weighting(s, e);
    size_t n = (size_t)s->n;
    int rc = mla_square_root(s->MK, s->nk, sqrt(s->tau), s->W, s->Winv, s->n, e);
    for (int g = 0; g < s->G && !rc; g++) {
        size_t at = ((size_t)s->nk + (size_t)(g * s->d)) * (n + 1);
        rc = mla_square_root(s->LG + (size_t)g * (size_t)(s->d * s->d), s->d, 1, s->W + at,
                             s->Winv + at, s->n, e);
    }
    return rc;
}

/* Eigenpairs of W C Wᵀ into U (rows, descending) and val. */
int mla_eigen_descending(struct solve *s, const double *C, struct err *e)
{
    int n = s->w;
    size_t nn = (size_t)n;
    mla_gemm(false, false, n, n, n, s->W, n, C, n, 0, s->t1, n);
    mla_gemm(false, true, n, n, n, s->t1, n, s->W, n, 0, s->U, n);
    int rc = algebra_eigh(s->src->device, n, s->U, s->val, e);
    for (int i = 0; i < n / 2 && !rc; i++) {
        double *a = s->U + (size_t)i * nn, *b = s->U + (size_t)(n - 1 - i) * nn;
        for (int j = 0; j < n; j++) {
            double t = a[j];
            a[j] = b[j];
            b[j] = t;
        }
        double t = s->val[i];
        s->val[i] = s->val[n - 1 - i];
        s->val[n - 1 - i] = t;
    }
    return rc;
}

static int latent(struct solve *s, int r, struct err *e)
{
    if (s->Q)
        return mla_affine_latent(s, s->m->c, r, e);
    int n = s->n, rc = mla_eigen_descending(s, s->m->c, e);
    if (rc)
        return rc;
    mla_gemm(false, false, r, n, n, s->U, n, s->W, n, 0, s->A, n);
    mla_gemm(false, true, n, r, n, s->Winv, n, s->U, n, 0, s->X0, r);
    return OK;
}

/* TransMLA's latent (method: section 2): K in the basis of the components that lost their
 * rotation, scaled by the ratio of mean column norms (BKV; the slice of V skips R columns), plain
 * PCA of [K/ratio; V], shared up maps. Leaves A, X0 and the spectrum as `latent` does. */
static int latent_transmla(struct solve *s, const double *rest, const double *C, int r,
                           struct err *e)
{
    int n = s->n, nk = s->nk, R = 2 * s->rope.pairs, left = nk - R;
    size_t nn = (size_t)n;
    if (s->Q)
        return mla_affine_transmla(s, rest, C, r, e);
    /* W = blkdiag(rest / ratio, 1) as [n][n] with R zero rows at the end of the key block. */
    memset(s->W, 0, nn * nn * sizeof *s->W);
    memcpy(s->t2, rest, (size_t)left * (size_t)nk * sizeof *rest);
    mla_gemm(false, false, left, nk, nk, rest, nk, C, n, 0, s->t1, nk);
    double key = 0, value = 0;
    for (int i = 0; i < left; i++) {
        double sum = 0;
        for (int j = 0; j < nk; j++)
            sum += s->t1[(size_t)i * (size_t)nk + (size_t)j] *
                   rest[(size_t)i * (size_t)nk + (size_t)j];
        key += sqrt(fmax(sum, 0)) / left;
    }
    for (int i = nk + R; i < n; i++)
        value += sqrt(fmax(C[(size_t)i * (nn + 1)], 0)) / (nk - R);
    double ratio = left > 0 && value > 0 && key > 0 ? key / value : 1;
    for (int i = 0; i < left; i++)
        for (int j = 0; j < nk; j++)
            s->W[(size_t)i * nn + (size_t)j] = rest[(size_t)i * (size_t)nk + (size_t)j] / ratio;
    for (int i = nk; i < n; i++)
        s->W[(size_t)i * (nn + 1)] = 1;
    int rc = mla_eigen_descending(s, C, e);
    if (rc)
        return rc;
    mla_gemm(false, false, r, n, n, s->U, n, s->W, n, 0, s->A, n);
    /* Winv = pseudo-inverse: ratio·restᵀ on keys. */
    for (int i = 0; i < nk; i++)
        for (int j = 0; j < nk; j++)
            s->Winv[(size_t)i * nn + (size_t)j] =
                j < left ? ratio * rest[(size_t)j * (size_t)nk + (size_t)i] : 0;
    for (int i = nk; i < n; i++)
        s->Winv[(size_t)i * (nn + 1)] = 1;
    mla_gemm(false, true, n, r, n, s->Winv, n, s->U, n, 0, s->X0, r);
    return OK;
}

/* The coordinates themselves; a rank beyond them has nothing to hold. */
static void identity_latent(struct solve *s, int r)
{
    size_t w = (size_t)s->w;
    memset(s->A, 0, (size_t)r * w * sizeof *s->A);
    memset(s->X0, 0, (size_t)r * w * sizeof *s->X0);
    for (size_t i = 0; i < w; i++)
        s->A[i * (w + 1)] = s->X0[i * (size_t)r + i] = 1;
}

/* Beside the whole rope: key dims that never rotate, and the values, as they are. */
static void unrotated_latent(struct solve *s, int r)
{
    int row = 0, rope = s->src->shape.rope_dim;
    memset(s->A, 0, (size_t)r * (size_t)s->w * sizeof *s->A);
    memset(s->X0, 0, (size_t)r * (size_t)s->w * sizeof *s->X0);
    for (int i = 0; i < s->n; i++) {
        if (i < s->nk && i % s->d < rope)
            continue;
        s->A[(size_t)row * (size_t)s->w + (size_t)i] = 1;
        s->X0[(size_t)i * (size_t)r + (size_t)row++] = 1;
    }
}

/* The shared list, or the stock layout's: the fastest frequencies, or every so many-th. */
static int listed_rope(struct solve *s, const struct mla_options *o, struct err *e)
{
    int pairs = o->rope_dim / 2, *fastest = NULL, rc = OK;
    const int *index = o->shared;
    if (o->layout == LAYOUT_STOCK) {
        fastest = mem_calloc((size_t)pairs, sizeof *fastest);
        for (int i = 0; fastest && i < pairs; i++)
            fastest[i] = i * (o->stride > 1 ? o->stride : 1);
        index = fastest;
    }
    if (!index)
        rc = err_set(e, ERR_ARG, "no list of rope frequencies: the shared layout needs one");
    else
        rc = mla_rope_list(s->m, s->r2, index, o->rope_dim, &s->rope, e);
    free(fastest);
    return rc;
}

static int choose_rope(struct solve *s, const struct mla_options *o, double **rest, struct err *e)
{
    *rest = NULL;
    const struct moments_shape *p = &s->src->shape;
    if (p->still && o->method == METHOD_TRANSMLA)
        return err_set(e, ERR_UNSUPPORTED,
                       "transmla: this layer has no rotary part to fold; use the method mlathe");
    if (p->still && o->layout != LAYOUT_OWN) /* the engines' own frequencies would turn it */
        return mla_rope_none(s->m, o->rope_dim, &s->rope, e);
    if (o->method == METHOD_TRANSMLA)
        return mla_rope_transmla(s->m, o->rope_dim, o->freqfold, &s->rope, rest, e);
    if (o->without & STEP_ROPE)
        return mla_rope_transmla(s->m, o->rope_dim, o->freqfold, &s->rope, NULL, e);
    mla_shrink(s->m, o->without, s->shrink, s->r2);
    /* What never turns is explained without a loss, but worth its key's energy. */
    bool energy = p->still || o->without & STEP_BENEFIT;
    for (int i = 0; energy && i < s->H * (p->rope_dim / 2); i++)
        s->r2[i] = 0;
    if (o->layout != LAYOUT_OWN)
        return listed_rope(s, o, e);
    return mla_rope_own(s->m, s->r2, o->rope_dim, &s->rope, e);
}

static int fill_spectrum(struct solve *s, const struct mla_options *o, struct spectrum *out,
                         struct err *e)
{
    int n = s->n, nk = s->nk, rc = spectrum_init(out, n, nk, n - nk, e);
    if (rc)
        return rc;
    double total = 0;
    for (int i = 0; i < s->w; i++)
        total += fmax(s->val[i], 0);
    double unit = s->m->residual > 0 ? 1 / s->m->residual : total > 0 ? 1 / total : 1;
    out->calibrated = s->m->cko != NULL;
    out->sink = out->calibrated && s->m->sink > 0 ? s->m->sink : NAN; /* 0: older files */
    out->change = out->calibrated && s->m->change >= 0 ? s->m->change : NAN;
    out->rope_dim = o->rope_dim;
    for (int i = 0; i < s->w && i < n; i++) {
        double share = 0;
        for (int j = 0; j < nk && !s->Q; j++)
            share +=
                s->U[(size_t)i * (size_t)n + (size_t)j] * s->U[(size_t)i * (size_t)n + (size_t)j];
        out->joint[i] = unit * fmax(s->val[i], 0);
        out->key_share[i] = share;
    }
    if (s->Q)
        rc = mla_affine_key_share(s, out->key_share, e);
    /* Keys and values alone: the diagonal blocks of W C Wᵀ. */
    if (!s->Q) {
        mla_gemm(false, false, n, n, n, s->W, n, s->m->c, n, 0, s->t1, n);
        mla_gemm(false, true, n, n, n, s->t1, n, s->W, n, 0, s->t2, n);
    }
    for (int part = 0; part < 2 && !rc; part++) {
        int size = part ? n - nk : nk, at = part ? nk : 0;
        double *to = part ? out->value : out->key;
        if (s->Q)
            mla_affine_block(s, at, size, s->t1);
        for (int i = 0; i < size && !s->Q; i++)
            memcpy(s->t1 + (size_t)i * (size_t)size,
                   s->t2 + (size_t)(at + i) * (size_t)n + (size_t)at, (size_t)size * sizeof *to);
        rc = linalg_eigh(size, s->t1, s->val, e);
        for (int i = 0; i < size && !rc; i++)
            to[i] = unit * fmax(s->val[size - 1 - i], 0);
    }
    if (rc)
        spectrum_done(out);
    return rc;
}

/* Rope, forms and metric, and (latent) the r rows of A and X0 that lose least. */
int mla_solve_latent(struct solve *s, const struct mla_options *o, int r, bool wanted,
                     struct err *e)
{
    double *rest;
    int rc = choose_rope(s, o, &rest, e);
    if (!rc)
        rc = build_forms(s, o, e);
    if (rc || !wanted) {
        /* z itself, or all of it that does not turn, is the latent: nothing to solve */
    } else if (o->method == METHOD_TRANSMLA) {
        rc = latent_transmla(s, rest, o->c_second ? o->c_second : s->m->c, r, e);
    } else {
        rc = mla_output_metrics(s, e);
        if (!rc && o->without & STEP_WEIGHTS && s->src->shape.affine)
            rc = err_set(e, ERR_UNSUPPORTED,
                         "step \"weights\" cannot be left out where keys and values are wider than "
                         "the layer's input");
        else if (!rc && o->without & STEP_WEIGHTS)
            plain_metric(s);
        else if (!rc)
            key_metric(s, o);
        if (!rc)
            rc = build_weighting(s, e);
        if (!rc)
            rc = latent(s, r, e);
    }
    free(rest);
    return rc;
}

/* Whether a latent of r numbers holds all that does not turn. */
bool mla_holds_all(const struct solve *s, const struct mla_options *o, int r)
{
    return r >= s->w || (whole_rope(s, o) && r >= s->n - o->rope_dim);
}

/* The arrays of a result, and how many floats q, kv_a and kv_b have. */
static int result_init(struct mla_result *out, const struct mla_source *src, int r, int R,
                       size_t size[3], struct err *e)
{
    const struct moments_shape *p = &src->shape;
    size_t D = (size_t)p->D, H = (size_t)p->H, d = (size_t)p->d, pairs = (size_t)(R / 2);
    *out = (struct mla_result){.r = r, .R = R, .normed = src->q_norm != NULL};
    size[0] = out->normed ? H * (size_t)R * d : H * (d + (size_t)R) * D;
    size[1] = (size_t)(r + R) * (out->normed ? (size_t)moments_n(p) : D);
    size[2] = H * 2 * d * (size_t)r;
    out->freq = mem_calloc(pairs, sizeof *out->freq);
    out->q = mem_calloc(size[0], sizeof *out->q);
    out->kv_a = mem_calloc(size[1], sizeof *out->kv_a);
    out->kv_b = mem_calloc(size[2], sizeof *out->kv_b);
    bool ok = out->freq && out->q && out->kv_a && out->kv_b;
    if (src->freq_long)
        ok &= (out->freq_long = mem_calloc(pairs, sizeof *out->freq_long)) != NULL;
    if (src->bq && !out->normed)
        ok &= (out->q_bias = mem_calloc(H * (d + (size_t)R), sizeof *out->q_bias)) != NULL;
    if ((src->bk || src->bv) && !out->normed)
        ok &= (out->kv_a_bias = mem_calloc((size_t)(r + R), sizeof *out->kv_a_bias)) != NULL;
    if (ok)
        return OK;
    mla_result_done(out);
    return err_nomem(e, size[0] * sizeof *out->q, "a converted layer");
}

int mla_result_copy(struct mla_result *out, const struct mla_result *from,
                    const struct mla_source *src, struct err *e)
{
    size_t size[3], pairs = (size_t)(from->R / 2), width = (size_t)(src->shape.d + from->R);
    int rc = result_init(out, src, from->r, from->R, size, e);
    if (rc)
        return rc;
    memcpy(out->freq, from->freq, pairs * sizeof *out->freq);
    memcpy(out->q, from->q, size[0] * sizeof *out->q);
    memcpy(out->kv_a, from->kv_a, size[1] * sizeof *out->kv_a);
    memcpy(out->kv_b, from->kv_b, size[2] * sizeof *out->kv_b);
    if (out->freq_long)
        memcpy(out->freq_long, from->freq_long, pairs * sizeof *out->freq_long);
    if (out->q_bias)
        memcpy(out->q_bias, from->q_bias, (size_t)src->shape.H * width * sizeof *out->q_bias);
    if (out->kv_a_bias)
        memcpy(out->kv_a_bias, from->kv_a_bias,
               (size_t)(from->r + from->R) * sizeof *out->kv_a_bias);
    return OK;
}

int mla_solve_rank(struct solve *s, const struct mla_options *o, int r, struct mla_result *out,
                   struct err *e)
{
    bool fitted = o->method == METHOD_MLATHE && s->m->cko && !(o->without & STEP_HEADS) &&
                  !mla_holds_all(s, o, r);
    size_t size[3];
    int rc = result_init(out, s->src, r, o->rope_dim, size, e);
    if (!rc && r >= s->w)
        identity_latent(s, r);
    else if (!rc && mla_holds_all(s, o, r))
        unrotated_latent(s, r);
    if (!rc && fitted && o->rounds > 0)
        rc = mla_alternate(s, r, o->rounds, e);
    for (int a = 0; a < o->rope_dim / 2 && !rc; a++) {
        out->freq[a] = s->src->freq[s->rope.index[a]];
        if (out->freq_long)
            out->freq_long[a] = s->src->freq_long[s->rope.index[a]];
    }
    if (!rc)
        rc = mla_write_maps(s, out, e);
    if (!rc)
        rc = mla_up_maps(s, o, r, fitted, out->kv_b, e);
    if (rc)
        mla_result_done(out);
    return rc;
}

int mla_solve(const struct mla_source *src, const struct moments *m, const struct mla_options *o,
              struct mla_result *out, struct spectrum *spectrum, struct err *e)
{
    struct solve s;
    *out = (struct mla_result){0};
    int r = o->rank, rc = mla_solve_init(&s, src, m, r, e);
    if (!rc)
        rc = mla_solve_latent(&s, o, r, spectrum || !mla_holds_all(&s, o, r), e);
    if (!rc)
        rc = mla_solve_rank(&s, o, r, out, e);
    if (!rc && spectrum && (rc = fill_spectrum(&s, o, spectrum, e)) != OK)
        mla_result_done(out);
    mla_solve_done(&s);
    return rc;
}

void mla_result_done(struct mla_result *r)
{
    free(r->freq);
    free(r->freq_long);
    free(r->q_bias);
    free(r->kv_a_bias);
    free(r->q);
    free(r->kv_a);
    free(r->kv_b);
    *r = (struct mla_result){0};
}

int mla_spectrum(const struct mla_source *src, const struct moments *m, const struct mla_options *o,
                 struct spectrum *out, struct err *e)
{
    struct solve s;
    int rc = mla_solve_init(&s, src, m, 1, e);
    if (!rc)
        rc = mla_solve_latent(&s, o, 1, true, e);
    if (!rc)
        rc = fill_spectrum(&s, o, out, e);
    mla_solve_done(&s);
    return rc;
}
