/* Two plans on screen 2: the one being worked on (A) and one held beside it (B). B is as safe as A:
 * it is in the journal, and goes to a file when another model is opened. Refuses nothing. */
#include "ui/app_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/kvmem.h"

void compare_drop(struct app *a)
{
    if (a->ranks.has_other)
        rankplan_done(&a->ranks.other);
    a->ranks.has_other = false;
}

/* Holds the plan as it is now; the same plan again lets go. */
static void hold(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    struct rankplan copy;
    if (r->has_other && rankplan_equal(&r->plan, &r->other)) {
        compare_drop(a);
        app_message(a, ROLE_NORMAL, "plan B let go");
        app_changed(a);
        return;
    }
    if (rankplan_copy(&copy, &r->plan, NULL)) {
        app_message(a, ROLE_BAD, "out of memory");
        return;
    }
    compare_drop(a);
    r->other = copy;
    r->has_other = true;
    app_message(a, ROLE_NORMAL, "held as plan B: go on with A, v swaps, B again lets go of it");
    app_changed(a);
}

static void swap(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    struct rankplan was, next;
    if (!r->has_other) {
        app_message(a, ROLE_DIM, "no plan B: B holds this one, to compare others with");
        return;
    }
    if (rankplan_copy(&was, &r->plan, NULL)) {
        app_message(a, ROLE_BAD, "out of memory");
        return;
    }
    next = r->other;
    r->has_other = false; /* taken over, whatever happens */
    if (!plan_replace(a, &next)) {
        rankplan_done(&was);
        return;
    }
    r->other = was;
    r->has_other = true;
    app_message(a, ROLE_NORMAL, "plans A and B are swapped");
    app_changed(a);
}

bool compare_request(struct app *a, enum request r)
{
    if (r == REQ_HOLD)
        hold(a);
    else if (r == REQ_SWAP)
        swap(a);
    return r == REQ_HOLD || r == REQ_SWAP;
}

void compare_keep(struct app *a)
{
    cJSON *json = NULL;
    if (!a->ranks.has_plan) /* what another model's journal says stays until it is taken over */
        return;
    if (a->ranks.has_other && rankplan_to_json(&a->ranks.other, &json, NULL))
        return;
    cJSON_Delete(a->j.plan_b);
    a->j.plan_b = json;
}

bool compare_loaded(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    r->has_other = a->j.plan_b && rankplan_from_json(&r->other, &a->info.plan_model, a->j.plan_b,
                                                     "plan B", NULL) == OK;
    return r->has_other || !a->j.plan_b;
}

bool compare_layer(const struct app *a, int l, int *numbers, double *kl)
{
    const struct ranks_state *r = &a->ranks;
    const struct sensitivity *m = sensitivity_now(a);
    if (!r->has_other)
        return false;
    const struct plan_layer *x = &r->plan.layer[l], *y = &r->other.layer[l];
    *numbers = kvmem_mla_numbers(x->kv_lora_rank, x->qk_rope_head_dim) -
               kvmem_mla_numbers(y->kv_lora_rank, y->qk_rope_head_dim);
    /* Costs are measured for the widths of A alone. */
    *kl = m && x->qk_rope_head_dim == y->qk_rope_head_dim && r->plan.layout == r->other.layout &&
                  r->plan.method == r->other.method
              ? sensitivity_layer(m, l, x->kv_lora_rank) - sensitivity_layer(m, l, y->kv_lora_rank)
              : NAN;
    return true;
}

static double token_bytes(const struct rankplan *p, enum dtype type)
{
    double sum = 0;
    for (int l = 0; l < p->model.n_layer; l++)
        sum += (double)kvmem_row(
            kvmem_mla_numbers(p->layer[l].kv_lora_rank, p->layer[l].qk_rope_head_dim), type);
    return sum;
}

bool compare_text(const struct app *a, char *text, size_t size)
{
    const struct ranks_state *r = &a->ranks;
    char bytes[32], kl[64] = "";
    if (!r->has_other)
        return false;
    enum dtype type = app_cache_type(a);
    double more = token_bytes(&r->plan, type) - token_bytes(&r->other, type);
    double all = (double)a->j.context * (double)a->j.batch * fabs(more);
    kvmem_text(all, bytes, sizeof bytes);
    double x = r->plan.predicted_kl, y = r->other.predicted_kl;
    if (isfinite(x) && isfinite(y))
        snprintf(kl, sizeof kl, "  KL %.3f, B %.3f (%+.3f)", x, y, x - y);
    snprintf(text, size, "A − B: KV/token %+.0f B (B keeps %.0f%%), %s%s at %lld×%lld%s  (v swaps)",
             more, 100 * rankplan_kept(&r->other), more < 0 ? "-" : "+", bytes, a->j.context,
             a->j.batch, kl);
    return true;
}
