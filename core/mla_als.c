/* Alternating least squares on the latent (method: step 5): with every head's reading of the latent
 * at its best, the latent's rows are moved by a few steps of conjugate gradients to where they lose
 * least of the attention output, in the units of which keys and values both count:
 * Σ_h s² tr(M_h (B_h − k_h A) CKo_h (·)ᵀ) + tr(L_h (S_h − v_h A) CV_h (·)ᵀ). Refuses statistics
 * that never saw attention. */
#include "core/mla_solve.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"

#define ALS_STEPS 8 /* of conjugate gradients a round: more gain nothing before the maps move */
#define ALS_RIDGE                                                                                  \
    1e-4 /* of a head's map, relative to the mean diagonal: fp32 moments bear no less */
#define ALS_PLAIN 1e-8  /* of the unfitted map, likewise */
#define RIDGE_MAX 1 /* beyond it a moment is no moment */

struct als {
    struct solve *s;
    int r, groups;
    double *P; /* [2][groups][r][r] what a change of A costs: P A C summed over terms */
    double *rhs, *res, *dir, *out, *t; /* [r][w] */
    double *CA, *K, *EC;               /* [w][r], [r][r], [d][w] */
    double *mean;                      /* [w][w] of all moments */
    double *up, *seen; /* [r][d] a head's map, transposed; [d][r] metric times the map */
};

static int als_init(struct als *a, struct solve *s, int r, struct err *e)
{
    size_t w = (size_t)s->w, R = (size_t)r, d = (size_t)s->d;
    size_t groups = (size_t)moments_groups(&s->m->shape);
    size_t size = 2 * groups * R * R + 6 * R * w + R * R + d * w + 2 * d * R + w * w;
    *a = (struct als){.s = s, .r = r, .groups = (int)groups};
    a->P = mem_calloc(size, sizeof *a->P);
    if (!a->P)
        return err_nomem(e, size * sizeof *a->P, "alternating least squares");
    double **part[] = {&a->rhs, &a->res, &a->dir, &a->out, &a->t, &a->CA};
    double *at = a->P + 2 * groups * R * R;
    for (size_t i = 0; i < sizeof part / sizeof *part; i++, at += R * w)
        *part[i] = at;
    a->K = at;
    a->EC = a->K + R * R;
    a->up = a->EC + d * w;
    a->seen = a->up + d * R;
    a->mean = a->seen + d * R;
    return OK;
}

/* The moment of a term (part 0: keys, 1: values) in scratch. */
static const double *term_moment(struct als *a, int part, int group)
{
    const struct moments *m = a->s->m;
    moments_unpack(part ? m->cv : m->cko, a->s->w, group, a->s->t1);
    return a->s->t1;
}

/* A under the mean of all moments: no direction much longer than another. */
static int condition(struct als *a, struct err *e)
{
    struct solve *s = a->s;
    int r = a->r, w = s->w;
    size_t ww = (size_t)w * (size_t)w;
    memset(a->mean, 0, ww * sizeof *a->mean);
    for (int i = 0; i < 2 * a->groups; i++) {
        const double *C = term_moment(a, i / a->groups, i % a->groups);
        double trace = 0;
        for (int j = 0; j < w; j++)
            trace += C[(size_t)j * (size_t)(w + 1)];
        for (size_t j = 0; j < ww && trace > 0; j++)
            a->mean[j] += C[j] / trace;
    }
    mla_gemm(false, true, w, r, w, a->mean, w, s->A, w, 0, a->CA, r);
    mla_gemm(false, false, r, r, w, s->A, w, a->CA, r, 0, a->K, r);
    int rc = mla_square_root(a->K, r, 1, s->t2, a->P, r, e);
    if (!rc) {
        mla_gemm(false, false, r, w, r, a->P, r, s->A, w, 0, a->t, w);
        memcpy(s->A, a->t, (size_t)r * (size_t)w * sizeof *s->A);
    }
    return rc;
}

double mla_ridge(const double *K, int r, double share, double *try)
{
    size_t n = (size_t)r;
    double mean = 0;
    for (size_t i = 0; i < n; i++)
        mean += K[i * (n + 1)] / (double)n;
    for (; mean > 0 && share <= RIDGE_MAX; share *= 10) {
        memcpy(try, K, n * n * sizeof *try);
        for (size_t i = 0; i < n; i++)
            try[i * (n + 1)] += share * mean;
        if (!linalg_cholesky(r, try, NULL))
            return share * mean;
    }
    return 0;
}

/* False: nothing ever flowed there. */
static bool dampen(struct als *a, double share)
{
    double ridge = mla_ridge(a->K, a->r, share, a->s->t2);
    for (size_t i = 0; i < (size_t)a->r; i++)
        a->K[i * (size_t)(a->r + 1)] += ridge;
    return ridge > 0;
}

/* EC = E C of head h: what its map should give. */
static void head_target(struct als *a, int part, int h, const double *C)
{
    const struct solve *s = a->s;
    int d = s->d, w = s->w, wide = s->Q ? w : s->nk;
    int row = s->nk + h / (s->H / s->G) * d;
    size_t dw = (size_t)d * (size_t)w;
    if (part && !s->Q) {
        memcpy(a->EC, C + (size_t)row * (size_t)w, dw * sizeof *a->EC);
        return;
    }
    const double *E = part ? s->Q + (size_t)row * (size_t)w
                           : (s->Q ? s->BQ : s->B) + (size_t)h * (size_t)d * (size_t)wide;
    mla_gemm(false, false, d, w, part ? w : wide, E, part ? w : wide, C, w, 0, a->EC, w);
}

/* Adds head h's share to its term's P and to the right-hand side. K: factor input, C of the term.
 */
static int add_head(struct als *a, int part, int h, const double *C, double *P, struct err *e)
{
    const struct solve *s = a->s;
    int d = s->d, w = s->w, r = a->r;
    size_t dd = (size_t)d * (size_t)d, rr = (size_t)r * (size_t)r;
    const double *metric = part ? s->L + (size_t)h * dd : s->m->m + (size_t)h * dd;
    double scale = part ? 1 : s->src->scale * s->src->scale;
    head_target(a, part, h, C);
    mla_gemm(false, true, r, d, w, s->A, w, a->EC, w, 0, a->up, d);
    memcpy(s->t2, a->K, rr * sizeof *a->K);
    int rc = linalg_solve_spd(r, d, s->t2, a->up, e); /* K⁻¹ A C Eᵀ */
    if (rc)
        return rc;
    mla_gemm(false, true, d, r, d, metric, d, a->up, d, 0, a->seen, r);
    for (size_t i = 0; i < (size_t)d * (size_t)r; i++)
        a->seen[i] *= scale;
    mla_gemm(false, false, r, r, d, a->up, d, a->seen, r, 1, P, r);
    mla_gemm(true, false, r, w, d, a->seen, r, a->EC, w, 1, a->rhs, w);
    return OK;
}

/* The heads' maps at this A, as P and rhs of the normal equations of the next one. */
static int set_terms(struct als *a, struct err *e)
{
    const struct solve *s = a->s;
    int r = a->r, w = s->w, per = s->H / a->groups, rc = OK;
    size_t rr = (size_t)r * (size_t)r;
    memset(a->P, 0, 2 * (size_t)a->groups * rr * sizeof *a->P);
    memset(a->rhs, 0, (size_t)r * (size_t)w * sizeof *a->rhs);
    for (int i = 0; i < 2 * a->groups && !rc; i++) {
        int part = i / a->groups, first = i % a->groups * per;
        const double *C = term_moment(a, part, i % a->groups);
        mla_gemm(false, true, w, r, w, C, w, s->A, w, 0, a->CA, r);
        mla_gemm(false, false, r, r, w, s->A, w, a->CA, r, 0, a->K, r);
        bool flows = dampen(a, ALS_RIDGE);
        for (int h = first; flows && h < first + per && !rc; h++)
            rc = add_head(a, part, h, C, a->P + (size_t)i * rr, e);
    }
    return rc;
}

/* out = Σ P X C */
static void apply(struct als *a, const double *X, double *out)
{
    int r = a->r, w = a->s->w;
    for (int i = 0; i < 2 * a->groups; i++) {
        const double *C = term_moment(a, i / a->groups, i % a->groups);
        const double *P = a->P + (size_t)i * (size_t)r * (size_t)r;
        mla_gemm(false, false, r, w, r, P, r, X, w, 0, a->t, w);
        mla_gemm(false, false, r, w, w, a->t, w, C, w, i > 0, out, w);
    }
}

static double dot(const double *x, const double *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* A few steps from A towards Σ P A C = rhs. */
static void move_latent(struct als *a)
{
    size_t n = (size_t)a->r * (size_t)a->s->w;
    double *A = a->s->A;
    apply(a, A, a->out);
    for (size_t i = 0; i < n; i++)
        a->dir[i] = a->res[i] = a->rhs[i] - a->out[i];
    double left = dot(a->res, a->res, n);
    for (int step = 0; step < ALS_STEPS && left > 0; step++) {
        apply(a, a->dir, a->out);
        double curve = dot(a->dir, a->out, n), f = left / curve;
        if (!(curve > 0))
            break;
        for (size_t i = 0; i < n; i++) {
            A[i] += f * a->dir[i];
            a->res[i] -= f * a->out[i];
        }
        double now = dot(a->res, a->res, n);
        for (size_t i = 0; i < n; i++)
            a->dir[i] = a->res[i] + now / left * a->dir[i];
        left = now;
    }
}

/* X0 = C Aᵀ (A C Aᵀ)⁻¹: the unfitted map of the latent that came out. */
static int unfitted_map(struct als *a, struct err *e)
{
    struct solve *s = a->s;
    int r = a->r, w = s->w;
    mla_gemm(false, false, r, w, w, s->A, w, s->m->c, w, 0, a->t, w);
    mla_gemm(false, true, r, r, w, a->t, w, s->A, w, 0, a->K, r);
    if (!dampen(a, ALS_PLAIN))
        return OK; /* a layer without keys and values keeps what it has */
    int rc = linalg_solve_spd(r, w, a->K, a->t, e);
    for (int i = 0; i < r && !rc; i++)
        for (int j = 0; j < w; j++)
            s->X0[(size_t)j * (size_t)r + (size_t)i] = a->t[(size_t)i * (size_t)w + (size_t)j];
    return rc;
}

int mla_alternate(struct solve *s, int r, int rounds, struct err *e)
{
    struct als a;
    if (!s->m->cko || rounds < 1)
        return OK;
    int rc = als_init(&a, s, r, e);
    for (int i = 0; i < rounds && !rc; i++) {
        rc = condition(&a, e);
        if (!rc)
            rc = set_terms(&a, e);
        if (!rc)
            move_latent(&a);
    }
    if (!rc)
        rc = unfitted_map(&a, e);
    free(a.P);
    return rc;
}
