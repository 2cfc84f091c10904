/* One layer's preparation. Refuses second-pass moments as a key: they are of one plan only. */
#include "sessions/prepared.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void prepared_done(struct prepared_layer *p)
{
    free(p->list);
    mla_prepared_free(p->solve);
    free(p->y);
    free(p->q);
    *p = (struct prepared_layer){.rich = p->rich};
}

/* The rank up to which heads' moments are kept: higher ones are seldom asked for, and the moments
 * grow with the square. */
static int kept_rank(const struct moments *m, bool rich)
{
    return rich ? moments_width(&m->shape) / 2 : 0;
}

double prepared_bytes(const struct moments *m, bool rich)
{
    const struct moments_shape *s = &m->shape;
    double queries = rich ? s->H * (s->d + s->G * s->d) : 0; /* the widest rope turns all keys */
    return mla_prepared_bytes(s, moments_width(s), kept_rank(m, rich)) +
           sizeof(float) * m->sample_rows * (s->D + queries);
}

static bool same(const struct prepared_layer *p, const struct mla_options *o)
{
    const struct mla_options *k = &p->key;
    size_t list = (size_t)(o->rope_dim / 2) * sizeof(int);
    return p->solve && !o->c_second && k->method == o->method && k->layout == o->layout &&
           k->rope_dim == o->rope_dim && k->freqfold == o->freqfold && k->without == o->without &&
           k->rounds == o->rounds && k->stride == o->stride && k->balance == o->balance &&
           k->damping == o->damping && !p->list == !o->shared &&
           (!o->shared || !memcmp(p->list, o->shared, list));
}

/* The error of nothing lost but rotations; the queries on the way. */
static int rope_error(struct prepared_layer *p, const struct mla_source *src,
                      const struct moments *m, struct err *e)
{
    struct mla_result whole;
    int rc = mla_complete(p->solve, src, m, moments_width(&m->shape), &whole, e);
    if (rc)
        return rc;
    size_t size = (size_t)m->sample_rows * (size_t)(m->shape.H * (m->shape.d + whole.R));
    if (p->rich && !(p->q = mem_calloc(size, sizeof *p->q)))
        rc = err_nomem(e, size * sizeof *p->q, "measuring a layer");
    if (!rc && p->q)
        rc = mla_queries(src, m->sample, m->sample_rows, m->sample_window, &whole, p->q, e);
    if (!rc)
        rc = mla_measure(src, m->sample, p->q, p->y, m->sample_rows, m->sample_window, &whole,
                         &p->loss_rope, e);
    mla_result_done(&whole);
    return rc;
}

/* The losses of the kept samples; of the layout: against the best that a free choice does. */
static int losses(struct prepared_layer *p, const struct mla_source *src, const struct moments *m,
                  const struct mla_options *o, struct err *e)
{
    size_t size = (size_t)m->sample_rows * (size_t)m->shape.D;
    double free_rope;
    p->y = mem_calloc(size, sizeof *p->y);
    if (!p->y)
        return err_nomem(e, size * sizeof *p->y, "measuring a layer");
    int rc = mla_original(src, m->sample, m->sample_rows, m->sample_window, p->y, e);
    if (!rc)
        rc = rope_error(p, src, m, e);
    if (rc || o->method != METHOD_MLATHE || o->layout == LAYOUT_OWN)
        return rc;
    struct mla_options own = *o;
    struct mla_result best = {0};
    own.layout = LAYOUT_OWN;
    own.shared = NULL;
    own.rank = moments_width(&m->shape);
    rc = mla_solve(src, m, &own, &best, NULL, e);
    if (!rc)
        rc = mla_measure(src, m->sample, NULL, p->y, m->sample_rows, m->sample_window, &best,
                         &free_rope, e);
    mla_result_done(&best);
    p->loss_layout = rc ? 0 : p->loss_rope - free_rope;
    return rc;
}

int prepared_fill(struct prepared_layer *p, const struct mla_source *src, const struct moments *m,
                  const struct mla_options *o, int most, struct err *e)
{
    if (same(p, o))
        return OK;
    size_t list = o->shared ? (size_t)(o->rope_dim / 2) : 0;
    prepared_done(p);
    p->key = *o;
    p->key.shared = NULL;
    p->key.c_second = NULL;
    if (list && !(p->list = mem_calloc(list, sizeof *p->list)))
        return err_nomem(e, list * sizeof *p->list, "a list of frequencies");
    if (list)
        memcpy(p->list, o->shared, list * sizeof *p->list);
    int rc = mla_prepare(&p->solve, src, m, o, most, kept_rank(m, p->rich), e);
    if (!rc && m->sample)
        rc = losses(p, src, m, o, e);
    if (rc)
        prepared_done(p);
    return rc;
}
