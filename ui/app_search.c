/* Searching the rope width for the budget, on screen 2. Refuses to search before calibration. */
#include "ui/app_parts.h"

#include "sessions/search.h"

void search_start(struct app *a)
{
    const struct rankplan *p = &a->ranks.plan;
    if (p->method != METHOD_MLATHE) {
        app_message(a, ROLE_WARN, "rope widths are searched for method mlathe only (m)");
    } else if (!a->calibrated) {
        app_message(a, ROLE_WARN, "calibrate first (k): widths are tried with its statistics");
    } else {
        worker_cancel_kind(a->worker, &job_search);
        worker_submit(a->worker, &job_search, search_args(p, plan_even_numbers(a)));
        app_message(a, ROLE_NORMAL, "trying rope widths; Esc takes the best so far");
    }
}

bool search_stop(struct app *a)
{
    if (!worker_count(a->worker, &job_search))
        return false;
    worker_cancel_kind(a->worker, &job_search);
    return true;
}

void search_event(struct app *a, const struct search_result *found)
{
    const struct search_trial *t = &found->trial[found->best];
    struct rankplan next = {0};
    struct err e = {0};
    if (!a->ranks.has_plan)
        return;
    int rc = rankplan_copy(&next, &a->ranks.plan, &e);
    if (!rc)
        rc = rankplan_uniform(&next, t->rank, t->rope_dim, &e);
    if (rc) {
        rankplan_done(&next);
        app_message(a, ROLE_BAD, "%s", e.text);
    } else if (plan_replace(a, &next)) {
        app_message(a, ROLE_GOOD, "rope %d and rank %d: KL %.3f, the best of %d widths tried",
                    t->rope_dim, t->rank, t->kl, found->n);
    }
}
