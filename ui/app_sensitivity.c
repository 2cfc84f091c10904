/* Measured sensitivities on screen 2: fetching and measuring them, the plan's predicted KL, and
 * spending the budget by them. Refuses to measure before calibration. */
#include "ui/app_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

const struct sensitivity *sensitivity_now(const struct app *a)
{
    const struct ranks_state *r = &a->ranks;
    return r->has_plan && r->has_sensitivity && sensitivity_fits(&r->sensitivity, &r->plan)
               ? &r->sensitivity
               : NULL;
}

static long long budget_numbers(const struct app *a)
{
    const struct rankplan *p = &a->ranks.plan;
    long long numbers;
    return rankplan_budget(&p->model, a->j.budget, PLAN_KV_BYTES, &numbers, NULL)
               ? rankplan_numbers(p)
               : numbers;
}

int plan_even_numbers(const struct app *a)
{
    return (int)(budget_numbers(a) / a->ranks.plan.model.n_layer);
}

/* The budget's ranks if they were all the same; at least 1. */
static int even_rank(const struct app *a)
{
    const struct rankplan *p = &a->ranks.plan;
    long long numbers = budget_numbers(a);
    for (int l = 0; l < p->model.n_layer; l++)
        numbers -= p->layer[l].qk_rope_head_dim;
    long long even = numbers / p->model.n_layer;
    return even < 1 ? 1 : (int)even;
}

static void submit(struct app *a, bool measure)
{
    char *cache = path_join(a->paths.cache, "calibration");
    worker_cancel_kind(a->worker, &job_sensitivity);
    worker_submit(a->worker, &job_sensitivity,
                  sensitivity_args(&a->ranks.plan, even_rank(a), measure, cache));
    free(cache);
}

void sensitivity_fetch(struct app *a)
{
    if (a->ranks.has_plan && a->calibrated && a->ranks.plan.method == METHOD_MLATHE &&
        !sensitivity_now(a) && !a->ranks.sensitivity_pending)
        submit(a, false);
}

void sensitivity_measure(struct app *a)
{
    if (a->ranks.plan.method != METHOD_MLATHE) {
        app_message(a, ROLE_WARN, "layers are measured for method mlathe only (m)");
    } else if (!a->calibrated) {
        app_message(a, ROLE_WARN, "calibrate first (t): layers are measured with its statistics");
    } else {
        a->ranks.sensitivity_pending = true;
        submit(a, true);
        app_message(a, ROLE_NORMAL, "measuring what each layer's conversion costs; Esc stops");
    }
}

bool sensitivity_stop(struct app *a)
{
    if (!a->ranks.sensitivity_pending)
        return false;
    a->ranks.sensitivity_pending = false;
    worker_cancel_kind(a->worker, &job_sensitivity);
    app_message(a, ROLE_NORMAL, "stopping…");
    return true;
}

void sensitivity_refresh(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    /* A plan that was read keeps its own prediction as long as nothing better is known. */
    if (sensitivity_now(a))
        r->plan.predicted_kl = sensitivity_predict(&r->sensitivity, &r->plan);
}

bool sensitivity_spend(struct app *a)
{
    const struct sensitivity *s = sensitivity_now(a);
    struct rankplan next = {0};
    struct err e = {0};
    long long numbers = 0;
    int step = plan_step(a), max = rankplan_max_rank(&a->ranks.plan.model);
    if (!s)
        return false;
    int rc = rankplan_budget(&a->ranks.plan.model, a->j.budget, PLAN_KV_BYTES, &numbers, &e);
    if (!rc)
        rc = rankplan_copy(&next, &a->ranks.plan, &e);
    /* Half steps: more of what was measured comes through, and multiples of 8 are fast to run. */
    step = step >= 16 ? step / 2 : step;
    if (!rc)
        rc = sensitivity_allocate(s, &next, numbers, step, max, step, &a->ranks.price, &e);
    if (rc) {
        rankplan_done(&next);
        app_message(a, ROLE_BAD, "%s", e.text);
        return true;
    }
    next.budget_kept = (double)numbers / (double)rankplan_numbers_gqa(&next.model);
    if (plan_replace(a, &next))
        app_message(a, ROLE_GOOD, "ranks spend %s where it takes most off the KL", a->j.budget);
    return true;
}

void sensitivity_event(struct app *a, struct sensitivity *s)
{
    struct ranks_state *r = &a->ranks;
    bool wanted = r->sensitivity_pending;
    if (!r->has_plan || !sensitivity_fits(s, &r->plan))
        return; /* of a plan that has moved on */
    if (r->has_sensitivity)
        sensitivity_done(&r->sensitivity);
    r->sensitivity = *s;
    *s = (struct sensitivity){0};
    r->has_sensitivity = true;
    r->sensitivity_pending = false;
    if (wanted)
        sensitivity_spend(a);
    sensitivity_refresh(a);
}

void sensitivity_job_done(struct app *a)
{
    a->ranks.sensitivity_pending =
        worker_count(a->worker, &job_sensitivity) > 0 && a->ranks.sensitivity_pending;
}

void sensitivity_drag(struct app *a, int percent)
{
    struct rankplan *p = &a->ranks.plan;
    long long numbers;
    char text[32];
    double kept = rankplan_kept(p);
    if (strchr(a->j.budget, '%')) /* as it was said: small models round it */
        kept = strtod(a->j.budget, NULL) / 100;
    else if (!rankplan_budget(&p->model, a->j.budget, PLAN_KV_BYTES, &numbers, NULL))
        kept = (double)numbers / (double)rankplan_numbers_gqa(&p->model);
    double next = round(100 * kept) + percent;
    if (next < 1 || next > 100)
        return;
    snprintf(text, sizeof text, "%.0f%%", next);
    text_set(&a->j.budget, text);
    if (!sensitivity_spend(a))
        plan_spend_evenly(a);
}

/* The layers that gain most from 16 more numbers, best first: "3 −.004, 7 −.003". */
void sensitivity_wants(const struct app *a, char *text, size_t size)
{
    const struct sensitivity *s = sensitivity_now(a);
    int n = s ? s->n_layer : 0, best[3] = {-1, -1, -1};
    double gain[3] = {0, 0, 0};
    size_t at = 0;
    text[0] = 0;
    for (int l = 0; l < n; l++) {
        double g = sensitivity_gain(s, &a->ranks.plan, l, 16);
        for (int i = 0; i < 3; i++)
            if (g > gain[i]) {
                for (int k = 2; k > i; k--) {
                    gain[k] = gain[k - 1];
                    best[k] = best[k - 1];
                }
                gain[i] = g;
                best[i] = l;
                break;
            }
    }
    for (int i = 0; i < 3 && best[i] >= 0 && at < size; i++) {
        int put =
            snprintf(text + at, size - at, "%slayer %d −%.4f", i ? ", " : "", best[i], gain[i]);
        at += put > 0 ? (size_t)put : 0;
    }
}
