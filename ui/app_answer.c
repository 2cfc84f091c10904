/* What is answered to screen 2's questions, and who takes the answers to the others'. A refused
 * answer stays in its line, with the reason above it. */
#include "ui/app_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/file.h"

bool ask_refuse(struct app *a, const struct err *e)
{
    snprintf(a->ask.error, sizeof a->ask.error, "%.500s", e->text);
    return false;
}

static bool answer_budget(struct app *a, const char *text)
{
    struct ranks_state *r = &a->ranks;
    struct err e = {0};
    long long numbers;
    struct rankplan next;
    if (rankplan_budget(&r->plan.model, text, PLAN_KV_BYTES, &numbers, &e))
        return ask_refuse(a, &e);
    double kept = (double)numbers / (double)rankplan_numbers_gqa(&r->plan.model);
    if (rankplan_copy(&next, &r->plan, &e))
        return ask_refuse(a, &e);
    /* The rope width that suits the budget, and even ranks: what measured best. */
    if (plan_set_rope(&next, rankplan_auto_rope(&next.model, next.layout, kept), &e) ||
        rankplan_spread(&next, numbers, &e)) {
        rankplan_done(&next);
        return ask_refuse(a, &e);
    }
    next.budget_kept = kept;
    next.predicted_kl = NAN;
    text_set(&a->j.budget, text);
    if (plan_remember(a))
        plan_set(a, &next);
    else
        rankplan_done(&next);
    app_message(a, ROLE_GOOD, "ranks spend %s evenly", text);
    return true;
}

static bool answer_rope(struct app *a, const char *text)
{
    struct err e = {0};
    struct rankplan next;
    char *end;
    long width = strtol(text, &end, 10);
    while (*end == ' ')
        end++;
    if (*end || width < 0 || width > 1 << 20) {
        err_set(&e, ERR_ARG, "give an even number, such as 32");
        return ask_refuse(a, &e);
    }
    if (rankplan_copy(&next, &a->ranks.plan, &e))
        return ask_refuse(a, &e);
    if (plan_set_rope(&next, (int)width, &e) || !plan_remember(a)) {
        rankplan_done(&next);
        return ask_refuse(a, &e);
    }
    next.predicted_kl = NAN;
    plan_set(a, &next);
    return true;
}

static bool answer_whatif(struct app *a, const char *text)
{
    long long context = 0, batch = 1;
    double memory = 0;
    char unit[8] = "";
    struct err e = {0};
    int n = sscanf(text, " %lld x %lld %lf %7s", &context, &batch, &memory, unit);
    double scale = unit[0] == 'T' || unit[0] == 't'   ? 0x1p40
                   : unit[0] == 'M' || unit[0] == 'm' ? 0x1p20
                                                      : 0x1p30;
    if (n < 2 || context < 1 || batch < 1 || context > 1LL << 30 || batch > 1 << 20 ||
        (n >= 3 && !(memory * scale >= 1 && memory * scale < 0x1p60))) {
        err_set(&e, ERR_ARG, "give context x batch and a memory, such as 8192x1 24GiB");
        return ask_refuse(a, &e);
    }
    a->j.context = context;
    a->j.batch = batch;
    if (n >= 3)
        a->j.memory_bytes = memory * scale;
    app_changed(a);
    return true;
}

static bool answer(struct app *a, enum request what, const char *text)
{
    switch (what) {
    case REQ_BUDGET: return answer_budget(a, text);
    case REQ_ROPE: return answer_rope(a, text);
    case REQ_WHATIF: return answer_whatif(a, text);
    case REQ_SAVE_PLAN: return plan_answer_save(a, text);
    case REQ_LOAD_PLAN: return plan_answer_load(a, text);
    case REQ_CALIBRATE: return calibrate_answer(a, text);
    case REQ_RECIPE: return recipe_answer(a, text);
    case REQ_EXPORT_PATH:
    case REQ_EXPORT_QUERIES: return export_answer(a, what, text);
    case REQ_HEAL: return heal_answer(a, text);
    case REQ_FIND: find_answer(a, text); return true;
    case REQ_PATH: {
        char *path = ask_expand_home(text);
        if (path && path[0])
            app_open(a, path, NULL);
        free(path);
        return true;
    }
    default: return eval_answer(a, what, text);
    }
}

/* Another model may have come while the question was open, one without a plan. */
static bool without_plan(const struct app *a, enum request what)
{
    return !a->ranks.has_plan &&
           (what == REQ_BUDGET || what == REQ_ROPE || what == REQ_SAVE_PLAN ||
            what == REQ_LOAD_PLAN || what == REQ_CALIBRATE || what == REQ_RECIPE);
}

bool plan_answer(struct app *a, enum request what, const char *text)
{
    if (without_plan(a, what)) {
        struct err e = {0};
        err_set(&e, ERR_ARG, "the model that is open now has no plan: screen 1 says why");
        return ask_refuse(a, &e);
    }
    bool taken = answer(a, what, text);
    sensitivity_refresh(a);
    return taken;
}
