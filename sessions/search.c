/* Rope width against rank, by measurement. Conversions are solved without refitting the output
 * projections: that costs ten times a trial and helps every width alike. */
#include "sessions/search.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct search {
    const struct engine *base;
    struct conversion_input in;
    const struct rankplan *plan;
    struct probe *probe;
    const struct progress *p;
    int even, widest;
    double *error; /* [SEARCH_MAX + 1][L] what each layer's output loses */
};

void search_result_done(struct search_result *r)
{
    free(r->layer);
    *r = (struct search_result){0};
}

void search_trial_text(const struct search_result *r, int trial, char *text, size_t size)
{
    const struct search_trial *t = &r->trial[trial];
    int lo = INT32_MAX, hi = 0;
    if (t->freqfold) {
        snprintf(text, size, "freqfold %d", t->freqfold);
        return;
    }
    if (t->rope_dim) {
        snprintf(text, size, "rope %d, rank %d", t->rope_dim, t->rank);
        return;
    }
    for (int i = 0; i < r->n; i++) {
        int R = r->trial[i].rope_dim;
        lo = R && R < lo ? R : lo;
        hi = R > hi ? R : hi;
    }
    for (int l = 0, first = 1; trial == r->best && l < r->n_layer; l++, first = 0) {
        int R = r->layer[l].qk_rope_head_dim;
        lo = first || R < lo ? R : lo;
        hi = first || R > hi ? R : hi;
    }
    snprintf(text, size, "rope %d to %d by layer", lo, hi);
}

/* KL of the model converted by plan's layers, and what each layer loses. */
static int measure(const struct search *s, const struct rankplan *plan, double *kl, double *error,
                   struct err *e)
{
    struct conversion_input in = s->in;
    struct conversion *c = NULL;
    const struct model *m;
    struct engine *g = NULL;
    int *list = NULL, rc = OK, R = plan->layer[0].qk_rope_head_dim;
    in.measure = in.brief = true;
    if (plan->layout == LAYOUT_SHARED) {
        in.shared = list = mem_calloc((size_t)R, sizeof *list);
        rc = list ? conversion_shared_list(engine_model(s->base), in.stats, R, list, e)
                  : err_nomem(e, (size_t)R * sizeof *list, "a shared rope list");
    }
    if (!rc)
        rc = conversion_solve(&c, &in, plan, NULL, s->p, e);
    for (int l = 0; l < plan->model.n_layer && !rc; l++)
        error[l] = c->report.layer[l].error;
    if (!rc)
        rc = conversion_runtime(c, in.rounded, &m, e);
    if (!rc)
        rc = engine_new(&g, m, engine_backend(s->base), s->base, e);
    if (!rc)
        rc = probe_kl(s->probe, g, kl, e);
    engine_free(g);
    conversion_free(c);
    free(list);
    return rc;
}

/* Plan as trial t of out, which becomes the best if it is. */
static int try_plan(const struct search *s, struct search_result *out, struct search_trial t,
                    const struct rankplan *plan, struct err *e)
{
    size_t L = (size_t)plan->model.n_layer;
    int rc = measure(s, plan, &t.kl, s->error + (size_t)out->n * L, e);
    if (rc)
        return rc;
    out->trial[out->n] = t;
    if (!out->n || t.kl < out->trial[out->best].kl) {
        out->best = out->n;
        memcpy(out->layer, plan->layer, L * sizeof *plan->layer);
    }
    out->n++;
    return OK;
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
    struct rankplan plan = {0};
    int rc = rankplan_copy(&plan, s->plan, e);
    if (!rc)
        rc = rankplan_uniform(&plan, s->even - R, R, e);
    if (!rc)
        rc = try_plan(s, out, (struct search_trial){.rope_dim = R, .rank = s->even - R}, &plan, e);
    rankplan_done(&plan);
    return rc;
}

/* Last, the width that each layer loses least with. Errors of one layer compare between widths, as
 * those of different layers do not. */
static int try_by_layer(const struct search *s, struct search_result *out, struct err *e)
{
    struct rankplan plan = {0};
    int L = s->plan->model.n_layer, n = out->n, rc = rankplan_copy(&plan, s->plan, e);
    bool mixed = false;
    for (int l = 0; l < L && !rc; l++) {
        int least = out->best;
        for (int i = 0; i < n; i++)
            if (s->error[i * L + l] < s->error[least * L + l])
                least = i;
        const struct search_trial *t = &out->trial[least];
        plan.layer[l] = (struct plan_layer){t->rank, t->rope_dim};
        mixed |= least != out->best;
    }
    if (!rc && mixed)
        rc = try_plan(s, out, (struct search_trial){0}, &plan, e);
    rankplan_done(&plan);
    return rc;
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

/* Room for the trials, and what every search refuses. */
static int search_init(struct search *s, struct search_result *out, const struct probe_text *text,
                       struct err *e)
{
    size_t L = (size_t)s->plan->model.n_layer;
    int most = rankplan_max_rank(&s->plan->model);
    *out = (struct search_result){.n_layer = s->plan->model.n_layer};
    if (text->windows < 1)
        return err_set(e, ERR_ARG, "the calibration text has nothing to hold back: give more text");
    s->even = s->even > most ? most : s->even;
    out->layer = mem_calloc(L, sizeof *out->layer);
    s->error = mem_calloc((SEARCH_MAX + 1) * L, sizeof *s->error);
    if (!out->layer || !s->error)
        return err_nomem(e, (SEARCH_MAX + 1) * L * sizeof *s->error, "a search");
    return probe_open(&s->probe, s->base, text, s->p, e);
}

/* The best of what was tried stands, also when the rest was stopped. */
static int search_end(struct search *s, struct search_result *out, int rc, struct err *e)
{
    probe_close(s->probe);
    free(s->error);
    if (rc == ERR_CANCELLED && out->n)
        rc = OK;
    if (!rc && !out->n)
        rc = err_set(e, ERR_ARG, "%d numbers a layer leave no room for a rope and a latent",
                     s->even);
    if (rc)
        search_result_done(out);
    return rc;
}

int search_rope(struct search_result *out, const struct engine *base,
                const struct conversion_input *in, const struct rankplan *plan, int even,
                const struct probe_text *text, const struct progress *p, struct err *e)
{
    struct search s = {.base = base, .in = *in, .plan = plan, .p = p, .even = even};
    int d = plan->model.head_dim, rc = search_init(&s, out, text, e);
    s.widest = plan->layout == LAYOUT_STOCK ? d : rankplan_max_rank(&plan->model) / 2;
    int usual = (even + d / 2) / d; /* a quarter of the cache, in quarters of a head */
    for (int i = usual < 1 ? 1 : usual; i >= 1 && !rc && !out->n; i--)
        rc = try_width(&s, out, i * d / 4, e);
    for (int side = 1; side >= -1 && !rc; side -= 2)
        rc = walk(&s, out, side * d / 4, e);
    int centre = out->trial[out->best].rope_dim;
    for (int side = -1; side <= 1 && !rc && out->n; side += 2)
        rc = try_width(&s, out, centre + side * d / 8, e);
    if (!rc && out->n && plan->layout == LAYOUT_OWN)
        rc = try_by_layer(&s, out, e);
    return search_end(&s, out, rc, e);
}

int search_folds(struct search_result *out, const struct engine *base,
                 const struct conversion_input *in, const struct rankplan *plan, int even,
                 const struct probe_text *text, const struct progress *p, struct err *e)
{
    struct search s = {.base = base, .in = *in, .plan = plan, .p = p, .even = even};
    struct rankplan at = {0};
    int d = plan->model.head_dim, R = plan->layer[0].qk_rope_head_dim, half = d / 2;
    int rc = search_init(&s, out, text, e);
    if (!rc)
        rc = rankplan_copy(&at, plan, e);
    for (int fold = R < d ? d / R : 1; fold <= half && half % fold == 0 && !rc; fold *= 2) {
        struct search_trial t = {.rope_dim = R, .rank = s.even - R, .freqfold = fold};
        if (out->n == SEARCH_MAX || t.rank < 1)
            break;
        at.freqfold = fold;
        rc = rankplan_uniform(&at, t.rank, R, e);
        if (!rc)
            rc = try_plan(&s, out, t, &at, e);
    }
    rankplan_done(&at);
    return search_end(&s, out, rc, e);
}
