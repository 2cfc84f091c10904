/* A layer solved up to its rank, so that another rank costs the heads' refits alone. Holds the
 * latent at full width and the rope; the nope forms are rebuilt from these, which is cheaper than
 * keeping them. Of the refits it holds, as far as wanted, the moments in the latent: the rows of
 * ranks that were completed before. */
#include <stdlib.h>
#include <string.h>

#include "core/mla_solve.h"

struct mla_prepared {
    struct mla_options o; /* its pointers are not followed again */
    struct rope_choice rope;
    struct phase_fit fit;
    int w, half, most;     /* columns of a rope row: G·half */
    double *A, *X0, *val;  /* [most][w] rows descending, [w][most] columns likewise, [w] */
    int kept;              /* ranks up to this one use term; 0: none */
    struct mla_term *term; /* [2·H] */
    int terms;
};

void mla_prepared_free(struct mla_prepared *p)
{
    if (!p)
        return;
    rope_choice_done(&p->rope);
    phase_fit_done(&p->fit);
    free(p->A);
    free(p->X0);
    free(p->val);
    mla_terms_free(p->term, p->terms);
    free(p);
}

int mla_prepare(struct mla_prepared **out, const struct mla_source *src, const struct moments *m,
                const struct mla_options *o, int most, int kept, struct err *e)
{
    struct solve s = {0};
    struct mla_prepared *p = mem_calloc(1, sizeof *p);
    int w = moments_width(&m->shape);
    most = most < w ? most : w;
    *out = NULL;
    int rc = p ? mla_solve_init(&s, src, m, most, e) : err_nomem(e, sizeof *p, "a prepared layer");
    if (!rc)
        rc = mla_solve_latent(&s, o, most, true, e);
    if (rc) {
        mla_solve_done(&s);
        mla_prepared_free(p);
        return rc;
    }
    *p = (struct mla_prepared){.o = *o,
                               .rope = s.rope,
                               .fit = s.fit,
                               .w = w,
                               .half = src->shape.rope_dim / 2,
                               .most = most,
                               .A = s.A,
                               .X0 = s.X0,
                               .val = s.val,
                               .terms = 2 * src->shape.H};
    s.rope = (struct rope_choice){0}; /* now p's */
    s.fit = (struct phase_fit){0};
    s.A = s.X0 = s.val = NULL;
    for (int i = 0; i < w; i++)
        p->val[i] = p->val[i] > 0 ? p->val[i] : 0; /* as a spectrum has it */
    mla_solve_done(&s);
    if (kept && !o->rounds) { /* alternating moves the latent at every rank its own way */
        p->kept = kept;
        p->term = mem_calloc((size_t)p->terms, sizeof *p->term);
        if (!p->term) {
            mla_prepared_free(p);
            return err_nomem(e, (size_t)(2 * src->shape.H) * sizeof *p->term, "a prepared layer");
        }
    }
    *out = p;
    return OK;
}

double mla_prepared_bytes(const struct moments_shape *s, int most, int kept)
{
    double groups = moments_groups(s), heads = s->H / groups;
    double term = kept ? mla_term_numbers(kept, (int)heads * s->d) : 0;
    return sizeof(double) * (2.0 * moments_width(s) * most + 2 * groups * term);
}

double mla_prepared_energy(const struct mla_prepared *p, int r)
{
    return spectrum_energy(&(struct spectrum){.n = p->w, .joint = p->val}, r);
}

static void *copy(const void *from, size_t n, size_t size)
{
    void *to = mem_calloc(n, size);
    if (to)
        memcpy(to, from, n * size);
    return to;
}

/* Rope and fit into a solve of its own. */
static int take_rope(struct solve *s, const struct mla_prepared *p, struct err *e)
{
    size_t pairs = (size_t)p->rope.pairs, half = (size_t)p->half, H = (size_t)s->H;
    size_t row = pairs * (size_t)s->G * half;
    s->rope = (struct rope_choice){p->rope.pairs, copy(p->rope.T, row, sizeof *p->rope.T),
                                   copy(p->rope.P, row, sizeof *p->rope.P),
                                   copy(p->rope.index, pairs, sizeof *p->rope.index)};
    s->fit = (struct phase_fit){copy(p->fit.own, H * half, sizeof *p->fit.own),
                                copy(p->fit.roped, H * pairs, sizeof *p->fit.roped),
                                copy(p->fit.gain, H * pairs, sizeof *p->fit.gain)};
    return s->rope.T && s->rope.P && s->rope.index && s->fit.own && s->fit.roped && s->fit.gain
               ? OK
               : err_nomem(e, 2 * row * sizeof *p->rope.T, "a rope choice");
}

int mla_complete(struct mla_prepared *p, const struct mla_source *src, const struct moments *m,
                 int r, struct mla_result *out, struct err *e)
{
    struct solve s;
    size_t w = (size_t)p->w, most = (size_t)p->most, rows = r < p->most ? (size_t)r : most;
    *out = (struct mla_result){0};
    int rc = mla_solve_init(&s, src, m, r, e);
    if (!rc)
        rc = take_rope(&s, p, e);
    if (!rc && r > p->most && !mla_holds_all(&s, &p->o, r))
        rc = err_set(e, ERR_ARG, "rank %d of a layer that is prepared up to %d", r, p->most);
    if (!rc && p->o.rounds > 0)
        rc = mla_output_metrics(&s, e);
    s.kept = r <= p->kept ? p->term : NULL;
    if (!rc) {
        mla_nope_forms(&s);
        memcpy(s.A, p->A, rows * w * sizeof *s.A);
        for (size_t i = 0; i < w; i++)
            memcpy(s.X0 + i * (size_t)r, p->X0 + i * most, rows * sizeof *s.X0);
        rc = mla_solve_rank(&s, &p->o, r, out, e);
    }
    mla_solve_done(&s);
    return rc;
}
