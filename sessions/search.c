/* Rope width against rank, by measurement. Conversions are solved without refitting the output
 * projections: that costs ten times a trial and helps every width alike. */
#include "sessions/search.h"

#include <stdlib.h>

struct search {
    const struct engine *base;
    struct conversion_input in;
    const struct rankplan *plan;
    const struct probe_text *text;
    const struct progress *p;
    int even, widest;
};

/* KL of the model converted at rope width R. */
static int measure(const struct search *s, int R, double *kl, struct err *e)
{
    struct conversion_input in = s->in;
    struct rankplan plan = {0};
    struct conversion *c = NULL;
    struct engine *g = NULL;
    int *list = NULL;
    int rc = rankplan_copy(&plan, s->plan, e);
    if (!rc)
        rc = rankplan_uniform(&plan, s->even - R, R, e);
    if (!rc && plan.layout == LAYOUT_SHARED) {
        in.shared = list = mem_calloc((size_t)R, sizeof *list);
        rc = list ? conversion_shared_list(engine_model(s->base), in.stats, R, list, e)
                  : err_nomem(e, (size_t)R * sizeof *list, "a shared rope list");
    }
    if (!rc)
        rc = conversion_solve(&c, &in, &plan, NULL, s->p, e);
    if (!rc)
        rc = engine_new(&g, &c->model, engine_backend(s->base), s->base, e);
    if (!rc)
        rc = probe_kl(s->base, g, s->text, kl, s->p, e);
    engine_free(g);
    conversion_free(c);
    rankplan_done(&plan);
    free(list);
    return rc;
}

/* One more trial, unless the width cannot be or was tried already. */
static int try_width(const struct search *s, struct search_result *out, int R, struct err *e)
{
    R -= R % 2;
    if (R < 2 || R > s->widest || R >= s->even || out->n == SEARCH_MAX)
        return OK;
    for (int i = 0; i < out->n; i++)
        if (out->trial[i].rope_dim == R)
            return OK;
    struct search_trial *t = &out->trial[out->n];
    *t = (struct search_trial){.rope_dim = R, .rank = s->even - R};
    int rc = measure(s, R, &t->kl, e);
    if (rc)
        return rc;
    if (t->kl < out->trial[out->best].kl)
        out->best = out->n;
    out->n++;
    return OK;
}

/* From the best so far in one direction, as long as it gets better. */
static int walk(const struct search *s, struct search_result *out, int step, struct err *e)
{
    int best = -1, rc = OK;
    while (!rc && out->n && best != out->best) {
        best = out->best;
        rc = try_width(s, out, out->trial[best].rope_dim + step, e);
    }
    return rc;
}

int search_rope(struct search_result *out, const struct engine *base,
                const struct conversion_input *in, const struct rankplan *plan, int even,
                const struct probe_text *text, const struct progress *p, struct err *e)
{
    struct search s = {base, *in, plan, text, p, even, 0};
    int d = plan->model.head_dim, most = rankplan_max_rank(&plan->model), rc = OK;
    *out = (struct search_result){0};
    s.widest = plan->layout == LAYOUT_STOCK ? d : most / 2;
    if (plan->method != METHOD_MLATHE)
        return err_set(e, ERR_UNSUPPORTED, "rope widths are searched for method mlathe only");
    if (text->windows < 1)
        return err_set(e, ERR_ARG, "the calibration text has nothing to hold back: give more text");
    s.even = even > most ? most : even;
    int usual = (even + d / 2) / d; /* a quarter of the cache, in quarters of a head */
    for (int i = usual < 1 ? 1 : usual; i >= 1 && !rc && !out->n; i--)
        rc = try_width(&s, out, i * d / 4, e);
    for (int side = 1; side >= -1 && !rc; side -= 2)
        rc = walk(&s, out, side * d / 4, e);
    int centre = out->trial[out->best].rope_dim;
    for (int side = -1; side <= 1 && !rc && out->n; side += 2)
        rc = try_width(&s, out, centre + side * d / 8, e);
    if (rc == ERR_CANCELLED && out->n)
        rc = OK;
    if (!rc && !out->n)
        rc = err_set(e, ERR_ARG, "%d numbers a layer leave no room for a rope and a latent", even);
    return rc;
}
