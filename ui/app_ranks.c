/* What keys change of the plan on screen 2: ranks, the budget spent on them, widths, layouts,
 * methods. Refuses ranks and widths that the layout cannot have, by asking core/rankplan. */
#include "ui/app_parts.h"

#include <math.h>
#include <stdlib.h>

/* The next multiple of the step in that direction. */
static int stepped(const struct app *a, int old, int steps)
{
    int step = plan_step(a), max = rankplan_max_rank(&a->ranks.plan.model);
    int rank = steps > 0 ? (old / step + steps) * step : ((old + step - 1) / step + steps) * step;
    return rank < 1 ? (step > 1 && old > step ? step : 1) : rank > max ? max : rank;
}

void ranks_change(struct app *a, int steps)
{
    struct ranks_state *r = &a->ranks;
    int first, last, changed = 0;
    plan_range(a, &first, &last);
    for (int l = first; l <= last; l++)
        changed +=
            stepped(a, r->plan.layer[l].kv_lora_rank, steps) != r->plan.layer[l].kv_lora_rank;
    if (!changed) {
        app_message(a, ROLE_DIM, steps < 0 ? "no rank is lower" : "no rank is higher: all is kept");
        return;
    }
    if (!plan_remember(a))
        return;
    for (int l = first; l <= last; l++)
        r->plan.layer[l].kv_lora_rank = stepped(a, r->plan.layer[l].kv_lora_rank, steps);
    r->plan.budget_kept = 0;
    r->plan.predicted_kl = NAN;
    r->energy_pending = false;
    app_changed(a);
}

/* The spectra of all layers. False while they are not all there and of one kind. */
static bool gather(const struct app *a, struct spectrum *all)
{
    const struct ranks_state *r = &a->ranks;
    int n = r->plan.model.n_layer, measured = 0;
    if (plan_curves(a, NULL) < n)
        return false;
    for (int l = 0; l < n; l++)
        measured += r->curve[l].spectrum.calibrated;
    if (measured != 0 && measured != n)
        return false;
    for (int l = 0; l < n; l++) {
        if (spectrum_copy(&all[l], &r->curve[l].spectrum, NULL))
            return false;
    }
    return true;
}

/* Energy alone does not know how much a layer's damage matters, so that no layer may go below half
 * or beyond twice its even share. */
static int allocate_between(struct rankplan *p, const struct spectrum *all, long long numbers,
                            int step, struct err *e)
{
    int rc = rankplan_spread(p, numbers, e), even = p->layer[0].kv_lora_rank;
    int min = even / 2 / step * step, max = (2 * even + step - 1) / step * step;
    if (rc)
        return rc;
    return rankplan_allocate(p, all, numbers, min < step ? step : min, max, step, NULL, e);
}

/* Spends the budget, evenly (all NULL) or by energy. */
static void spend(struct app *a, const struct spectrum *all)
{
    struct ranks_state *r = &a->ranks;
    struct rankplan next = {0};
    struct err e = {0};
    long long numbers = 0;
    int rc = rankplan_budget(&r->plan.model, a->j.budget, PLAN_KV_BYTES, &numbers, &e);
    if (rc == OK)
        rc = rankplan_copy(&next, &r->plan, &e);
    if (rc == OK)
        rc = all ? allocate_between(&next, all, numbers, plan_step(a), &e)
                 : rankplan_spread(&next, numbers, &e);
    if (rc || !plan_remember(a)) {
        rankplan_done(&next);
        app_message(a, ROLE_BAD, "%s", rc ? e.text : "out of memory");
        return;
    }
    r->energy_pending = false;
    next.budget_kept = (double)numbers / (double)rankplan_numbers_gqa(&next.model);
    next.predicted_kl = NAN;
    plan_set(a, &next);
    app_message(a, ROLE_GOOD,
                all ? "ranks spend %s where it keeps most energy" : "ranks spend %s evenly",
                a->j.budget);
}

void plan_spend_evenly(struct app *a)
{
    spend(a, NULL);
}

void ranks_spend_by_energy(struct app *a)
{
    int n = a->ranks.plan.model.n_layer;
    struct spectrum *all = mem_calloc((size_t)n, sizeof *all);
    if (all && gather(a, all)) {
        spend(a, all);
    } else {
        a->ranks.energy_pending = true;
        app_message(a, ROLE_DIM, "by energy at %s as soon as all spectra are there", a->j.budget);
    }
    for (int l = 0; all && l < n; l++)
        spectrum_done(&all[l]);
    free(all);
}

void ranks_level(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    int rank = r->plan.layer[r->layer].kv_lora_rank, first = 0, last = r->plan.model.n_layer - 1;
    if (!plan_remember(a))
        return;
    if (r->mark)
        plan_range(a, &first, &last);
    for (int l = first; l <= last; l++)
        r->plan.layer[l].kv_lora_rank = rank;
    r->plan.budget_kept = 0;
    r->plan.predicted_kl = NAN;
    r->energy_pending = false;
    if (r->mark)
        app_message(a, ROLE_GOOD, "rank %d for layers %d to %d", rank, first, last);
    else
        app_message(a, ROLE_GOOD, "rank %d for all %d layers", rank, r->plan.model.n_layer);
    app_changed(a);
}

/* Sets the same rope width everywhere, ranks as they are. */
int plan_set_rope(struct rankplan *p, int rope_dim, struct err *e)
{
    struct rankplan probe;
    int rc = rankplan_copy(&probe, p, e);
    if (rc)
        return rc;
    rc = rankplan_uniform(&probe, 1, rope_dim, e);
    for (int l = 0; rc == OK && l < p->model.n_layer; l++)
        p->layer[l].qk_rope_head_dim = rope_dim;
    rankplan_done(&probe);
    return rc;
}

void ranks_layout(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    struct rankplan next;
    if (!plan_remember(a) || rankplan_copy(&next, &r->plan, NULL))
        return;
    next.layout = next.layout == LAYOUT_STOCK ? LAYOUT_OWN : next.layout + 1;
    if (next.layout != LAYOUT_OWN) { /* one width for all layers */
        int rope = next.layer[0].qk_rope_head_dim, most = next.model.head_dim;
        plan_set_rope(&next, next.layout == LAYOUT_STOCK && rope > most ? most : rope, NULL);
    }
    next.predicted_kl = NAN;
    plan_set(a, &next);
    app_message(a, ROLE_NORMAL, "%s",
                a->ranks.plan.layout == LAYOUT_STOCK
                    ? "stock layout: evenly spaced rope frequencies, as every engine has them"
                : a->ranks.plan.layout == LAYOUT_SHARED
                    ? "shared layout: one free list of rope frequencies for all layers"
                    : "own layout: runs here, and cannot be loaded elsewhere");
}

void ranks_method(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    if (!plan_remember(a))
        return;
    r->plan.method = r->plan.method == METHOD_MLATHE ? METHOD_TRANSMLA : METHOD_MLATHE;
    r->plan.predicted_kl = NAN;
    app_message(a, ROLE_NORMAL, "method %s",
                r->plan.method == METHOD_MLATHE ? "mlathe" : "transmla, as published");
    app_changed(a);
}
