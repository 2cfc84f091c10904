/* Searching the rope width for the budget, on screen 2. Refuses to search before calibration. */
#include <string.h>

#include "ui/app_parts.h"

#include "sessions/search.h"

void search_start(struct app *a)
{
    const struct rankplan *p = &a->ranks.plan;
    if (!a->calibrated) {
        app_message(a, ROLE_WARN, "calibrate first (t): widths are tried with its statistics");
    } else {
        worker_cancel_kind(a->worker, &job_search);
        worker_submit(a->worker, &job_search, search_args(p, plan_even_numbers(a)));
        app_message(a, ROLE_NORMAL, "trying %s; Esc takes the best so far",
                    p->method == METHOD_MLATHE ? "rope widths" : "foldings");
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
    struct rankplan next = {0};
    struct err e = {0};
    char text[64];
    if (!a->ranks.has_plan || found->n_layer != a->ranks.plan.model.n_layer)
        return;
    int rc = rankplan_copy(&next, &a->ranks.plan, &e);
    if (!rc && next.method == METHOD_TRANSMLA)
        next.freqfold = found->trial[found->best].freqfold;
    if (!rc)
        memcpy(next.layer, found->layer, (size_t)found->n_layer * sizeof *next.layer);
    if (rc) {
        rankplan_done(&next);
        app_message(a, ROLE_BAD, "%s", e.text);
    } else if (plan_replace(a, &next)) {
        search_trial_text(found, found->best, text, sizeof text);
        app_message(a, ROLE_GOOD, "%s: KL %.3f, the best of %d tried", text,
                    found->trial[found->best].kl, found->n);
    }
}
