/* What each head reads from the latent: its key and value map, fitted by least squares under the
 * moments of its own attention (method: step 6), or straight from the latent. */
#include <stdlib.h>
#include <string.h>

#include "core/mla_solve.h"
#include "kernels/linalg.h"

#define REFIT_RIDGE 1e-4 /* relative to the mean diagonal */

/* What the refits under one moment share. */
struct refit {
    double *CA, *K;        /* [w][r] C Aᵀ, [r][r] A C Aᵀ */
    double *factor, *rhs;  /* [r][r], [d][r] scratch */
    double *prior, *solve; /* [d][r], [r][d] scratch */
    double ridge, damping;
    bool plain; /* under the plain second moments, one for all heads */
    int of;     /* group of heads that CA and K are of; -1: none */
};

/* part 0: keys, 1: values. */
static int refit_init(struct refit *f, const struct solve *s, int r, const struct mla_options *o,
                      int part, struct err *e)
{
    size_t rr = (size_t)r * (size_t)r, dr = (size_t)s->d * (size_t)r;
    size_t size = (size_t)s->w * (size_t)r + 2 * rr + 3 * dr;
    *f = (struct refit){.of = -1, .damping = mla_damping(o)};
    f->plain = o->without & (part ? STEP_VALUES : STEP_KEYS);
    f->CA = mem_calloc(size, sizeof *f->CA);
    if (!f->CA)
        return err_nomem(e, size * sizeof *f->CA, "a refit");
    f->K = f->CA + (size_t)s->w * (size_t)r;
    f->factor = f->K + rr;
    f->rhs = f->factor + rr;
    f->prior = f->rhs + dr;
    f->solve = f->prior + dr;
    return OK;
}

/* Brings the moment of head h (of packed cko or cv) into f. */
static void refit_moment(struct solve *s, struct refit *f, const float *packed, int h, int r)
{
    int w = s->w, group = f->plain ? 0 : h / (s->H / moments_groups(&s->m->shape));
    if (f->of == group)
        return;
    f->of = group;
    if (!f->plain)
        moments_of_head(s->m, packed, h, s->t1);
    mla_gemm(false, true, w, r, w, f->plain ? s->m->c : s->t1, w, s->A, w, 0, f->CA, r);
    mla_gemm(false, false, r, r, w, s->A, w, f->CA, r, 0, f->K, r);
    f->ridge = mla_ridge(f->K, r, f->damping * REFIT_RIDGE, f->factor);
}

/* out[d][r] = (S C Aᵀ + ε S X0)(A C Aᵀ + ε)⁻¹ with S [d][w] given as rows (cols from at): least
 * squares under the moment C, pulled towards the unfitted map. S [d][ns]. */
static int refit(struct solve *s, struct refit *f, const double *S, int ns, int at, int r,
                 double *out, struct err *e)
{
    int d = s->d;
    size_t rr = (size_t)r * (size_t)r;
    mla_gemm(false, false, d, r, ns, S, ns, f->CA + (size_t)at * (size_t)r, r, 0, f->rhs, r);
    mla_gemm(false, false, d, r, ns, S, ns, s->X0 + (size_t)at * (size_t)r, r, 0, f->prior, r);
    if (!(f->ridge > 0)) { /* nothing ever flowed here: keep the unfitted map */
        memcpy(out, f->prior, (size_t)d * (size_t)r * sizeof *out);
        return OK;
    }
    memcpy(f->factor, f->K, rr * sizeof *f->K);
    for (int i = 0; i < r; i++) {
        f->factor[(size_t)i * (size_t)(r + 1)] += f->ridge;
        for (int j = 0; j < d; j++) /* transposed right-hand side [r][d] */
            f->solve[(size_t)i * (size_t)d + (size_t)j] =
                f->rhs[(size_t)j * (size_t)r + (size_t)i] +
                f->ridge * f->prior[(size_t)j * (size_t)r + (size_t)i];
    }
    int rc = linalg_solve_spd(r, d, f->factor, f->solve, e);
    for (int j = 0; j < d && !rc; j++)
        for (int i = 0; i < r; i++)
            out[(size_t)j * (size_t)r + (size_t)i] = f->solve[(size_t)i * (size_t)d + (size_t)j];
    return rc;
}

/* Key and value map of head h into k and v [d][r]; fit[2] or NULL: straight from X0. pick: the
 * identity [d][d], which selects the head's own values from z. */
static int up_map(struct solve *s, int h, int r, struct refit *fit, const double *pick, double *k,
                  double *v, struct err *e)
{
    int d = s->d, w = s->w, wide = s->Q ? w : s->nk; /* columns of a key map */
    int row = s->nk + h / (s->H / s->G) * d, at = s->Q ? 0 : row, ns = s->Q ? w : d;
    const double *B = (s->Q ? s->BQ : s->B) + (size_t)h * (size_t)d * (size_t)wide;
    const double *V = s->Q ? s->Q + (size_t)row * (size_t)w : pick;
    if (!fit) {
        mla_gemm(false, false, d, r, wide, B, wide, s->X0, r, 0, k, r);
        mla_gemm(false, false, d, r, ns, V, ns, s->X0 + (size_t)at * (size_t)r, r, 0, v, r);
        return OK;
    }
    refit_moment(s, &fit[0], s->m->cko, h, r);
    int rc = refit(s, &fit[0], B, wide, 0, r, k, e);
    if (rc)
        return rc;
    refit_moment(s, &fit[1], s->m->cv, h, r);
    return refit(s, &fit[1], V, ns, at, r, v, e);
}

/* kv_b of every head: refitted (mlathe), or straight from X0 (rank n, transmla, no statistics). */
int mla_up_maps(struct solve *s, const struct mla_options *o, int r, bool fitted, float *kv_b,
                struct err *e)
{
    int d = s->d;
    size_t dr = (size_t)d * (size_t)r, dd = (size_t)d * (size_t)d;
    struct refit fit[2] = {{0}, {0}};
    double *work = mem_calloc(2 * dr + dd, sizeof *work), *out = work, *pick = work + 2 * dr;
    int rc = work ? OK : err_nomem(e, 2 * dr * sizeof *work, "a refit");
    for (int i = 0; i < 2 && fitted && !rc; i++)
        rc = refit_init(&fit[i], s, r, o, i, e);
    for (int i = 0; i < d && !rc; i++)
        pick[i * (d + 1)] = 1;
    for (int h = 0; h < s->H && !rc; h++) {
        rc = up_map(s, h, r, fitted ? fit : NULL, pick, out, out + dr, e);
        if (!rc)
            mla_store(out, kv_b + (size_t)h * 2 * dr, 2 * dr);
    }
    free(fit[0].CA);
    free(fit[1].CA);
    free(work);
    return rc;
}
