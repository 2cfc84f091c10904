/* What each head reads from the latent: its key and value map, fitted by least squares under the
 * moments of its own attention (method: step 6), or straight from the latent. */
#include <stdlib.h>
#include <string.h>

#include "core/mla_solve.h"
#include "kernels/linalg.h"

#define REFIT_RIDGE 1e-4 /* relative to the mean diagonal */
enum {
    ROW_BLOCK = 32, /* rows of A C Aᵀ made at once: what lies above its diagonal is nearly saved */
    ROOM_STEP = 32  /* a term grows by so many rows, or a few ranks more would copy it each time */
};

/* What the refits of one part share. part 0: keys, 1: values. */
struct refit {
    int part, r, groups;
    double damping;
    bool plain;            /* under the plain second moments, one for all heads */
    double *AC, *K;        /* [r][w], [r][r] lower triangle */
    double *factor;        /* [r][r] of K + ridge */
    double *solve, *prior; /* [r][d], [d][r] */
    double ridge;
    struct mla_term own; /* where the solve keeps none */
};

static int refit_init(struct refit *f, const struct solve *s, int r, const struct mla_options *o,
                      int part, struct err *e)
{
    size_t rr = (size_t)r * (size_t)r, dr = (size_t)s->d * (size_t)r;
    size_t size = (size_t)s->w * (size_t)r + 2 * rr + 2 * dr;
    *f = (struct refit){.part = part, .r = r, .damping = mla_damping(o)};
    f->plain = o->without & (part ? STEP_VALUES : STEP_KEYS);
    f->groups = f->plain ? 1 : moments_groups(&s->m->shape);
    f->AC = mem_calloc(size, sizeof *f->AC);
    if (!f->AC)
        return err_nomem(e, size * sizeof *f->AC, "a refit");
    f->K = f->AC + (size_t)s->w * (size_t)r;
    f->factor = f->K + rr;
    f->solve = f->factor + rr;
    f->prior = f->solve + dr;
    return OK;
}

static void refit_done(struct refit *f)
{
    free(f->AC);
    free(f->own.K);
}

void mla_terms_free(struct mla_term *t, int n)
{
    for (int i = 0; t && i < n; i++)
        free(t[i].K);
    free(t);
}

static size_t triangle(int r)
{
    return (size_t)r * ((size_t)r + 1) / 2;
}

double mla_term_numbers(int r, int width)
{
    return (double)triangle(r) + (double)r * width;
}

/* Room for r rows of targets of `width` numbers; what is there stays. */
static int term_reserve(struct mla_term *t, int r, int width, struct err *e)
{
    if (r <= t->room)
        return OK;
    int room = (r + ROOM_STEP - 1) / ROOM_STEP * ROOM_STEP;
    size_t size = triangle(room) + (size_t)room * (size_t)width;
    double *K = mem_calloc(size, sizeof *K), *target = K + triangle(room);
    if (!K)
        return err_nomem(e, size * sizeof *K, "a head's moments in the latent");
    if (t->r) {
        memcpy(K, t->K, triangle(t->r) * sizeof *K);
        memcpy(target, t->target, (size_t)t->r * (size_t)width * sizeof *K);
    }
    free(t->K);
    t->K = K;
    t->target = target;
    t->room = room;
    return OK;
}

/* S of head h: its map would give S z. NULL: the numbers of z from `at` on, themselves. */
static const double *wanted(const struct solve *s, int part, int h, int *at, int *columns)
{
    int d = s->d, row = s->nk + h / (s->H / s->G) * d;
    *at = part && !s->Q ? row : 0;
    *columns = s->Q ? s->w : part ? d : s->nk;
    if (part)
        return s->Q ? s->Q + (size_t)row * (size_t)s->w : NULL;
    return (s->Q ? s->BQ : s->B) + (size_t)h * (size_t)d * (size_t)*columns;
}

/* Rows from..r − 1 of the term of `heads` heads from first on. */
static int term_grow(struct solve *s, struct refit *f, struct mla_term *t, int first, int heads,
                     struct err *e)
{
    int d = s->d, w = s->w, r = f->r, from = t->r, width = heads * d;
    int rc = from < r ? term_reserve(t, r, width, e) : OK;
    if (rc || from >= r)
        return rc;
    const double *C = f->plain ? s->m->c : s->t1, *A = s->A + (size_t)from * (size_t)w;
    if (!f->plain)
        moments_of_head(s->m, f->part ? s->m->cv : s->m->cko, first, s->t1);
    mla_gemm(false, false, r - from, w, w, A, w, C, w, 0, f->AC, w);
    for (int i = from; i < r; i += ROW_BLOCK) {
        int rows = r - i < ROW_BLOCK ? r - i : ROW_BLOCK;
        mla_gemm(false, true, rows, i + rows, w, f->AC + (size_t)(i - from) * (size_t)w, w, s->A, w,
                 0, f->K, r);
        for (int k = 0; k < rows; k++)
            memcpy(t->K + triangle(i + k), f->K + (size_t)k * (size_t)r,
                   (size_t)(i + k + 1) * sizeof *t->K);
    }
    for (int h = first; h < first + heads; h++) {
        int at, n;
        const double *S = wanted(s, f->part, h, &at, &n);
        double *to = t->target + (size_t)from * (size_t)width + (h - first) * d;
        if (S)
            mla_gemm(false, true, r - from, d, n, f->AC, w, S, n, 0, to, width);
        for (int i = 0; i < r - from && !S; i++)
            memcpy(to + (size_t)i * (size_t)width, f->AC + (size_t)i * (size_t)w + at,
                   (size_t)d * sizeof *to);
    }
    t->r = r;
    return OK;
}

/* map[d][r]: the unfitted map of head h. */
static void unfitted(const struct solve *s, int part, int h, int r, double *map)
{
    int d = s->d, at, n;
    const double *S = wanted(s, part, h, &at, &n), *X0 = s->X0 + (size_t)at * (size_t)r;
    if (!S)
        memcpy(map, X0, (size_t)d * (size_t)r * sizeof *map);
    else if (s->Q)
        mla_gemm(false, false, d, r, n, S, n, X0, r, 0, map, r);
    else
        mla_sparse_gemm(d, r, n, S, n, X0, r, map, r); /* a nope form couples one frequency */
}

/* The map of head h: (S C Aᵀ + ε S X0)(A C Aᵀ + ε)⁻¹, least squares under the moment C, pulled
 * towards the unfitted map; column: of the head's target in its term. */
static void refit(const struct solve *s, struct refit *f, const struct mla_term *t, int h,
                  int column, int width, float *out)
{
    int d = s->d, r = f->r;
    size_t R = (size_t)r;
    unfitted(s, f->part, h, r, f->prior);
    if (!(f->ridge > 0)) { /* nothing ever flowed here: keep the unfitted map */
        mla_store(f->prior, out, (size_t)d * R);
        return;
    }
    for (int i = 0; i < r; i++) {
        const double *target = t->target + (size_t)i * (size_t)width + column;
        double *to = f->solve + (size_t)i * (size_t)d;
        for (int j = 0; j < d; j++)
            to[j] = target[j] + f->ridge * f->prior[(size_t)j * R + (size_t)i];
    }
    linalg_solve_factored(r, d, f->factor, f->solve);
    for (int j = 0; j < d; j++)
        for (int i = 0; i < r; i++)
            out[(size_t)j * R + (size_t)i] = (float)f->solve[(size_t)i * (size_t)d + (size_t)j];
}

/* The maps of the heads of one moment; kv_b of all heads. */
static int refit_group(struct solve *s, struct refit *f, int group, float *kv_b, struct err *e)
{
    int heads = s->H / f->groups, first = group * heads, r = f->r;
    size_t dr = (size_t)s->d * (size_t)r;
    struct mla_term *t = s->kept ? &s->kept[f->part * s->H + group] : &f->own;
    if (!s->kept)
        t->r = 0; /* another moment's */
    int rc = term_grow(s, f, t, first, heads, e);
    if (rc)
        return rc;
    for (int i = 0; i < r; i++)
        memcpy(f->K + (size_t)i * (size_t)r, t->K + triangle(i), (size_t)(i + 1) * sizeof *f->K);
    f->ridge = mla_ridge(f->K, r, f->damping * REFIT_RIDGE, f->factor);
    for (int h = first; h < first + heads; h++)
        refit(s, f, t, h, (h - first) * s->d, heads * s->d,
              kv_b + (2 * (size_t)h + (size_t)f->part) * dr);
    return OK;
}

int mla_up_maps(struct solve *s, const struct mla_options *o, int r, bool fitted, float *kv_b,
                struct err *e)
{
    size_t dr = (size_t)s->d * (size_t)r;
    int rc = OK;
    for (int part = 0; part < 2 && fitted && !rc; part++) {
        struct refit f;
        rc = refit_init(&f, s, r, o, part, e);
        for (int group = 0; !rc && group < f.groups; group++)
            rc = refit_group(s, &f, group, kv_b, e);
        refit_done(&f);
    }
    if (fitted)
        return rc;
    double *map = mem_calloc(dr, sizeof *map);
    if (!map)
        return err_nomem(e, dr * sizeof *map, "the heads' maps");
    for (int i = 0; i < 2 * s->H; i++) {
        unfitted(s, i % 2, i / 2, r, map);
        mla_store(map, kv_b + (size_t)i * dr, dr);
    }
    free(map);
    return OK;
}
