/* The recipe's knobs on screen 2, typed as words: "rounds 2 balance 1.5 without joint". What is not
 * named has its usual value again. Refuses words, values and steps that do not exist. */
#include "ui/app_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Everything a plan may turn, and what turns nothing. */
enum { ROUNDS, BALANCE, DAMPING, STRIDE, FOLD, FFN, KNOBS };
static const struct knob {
    const char *name;
    double usual, most;
    bool whole;
} knobs[KNOBS] = {
    [ROUNDS] = {"rounds", 0, PLAN_MAX_ROUNDS, true},
    [BALANCE] = {"balance", 1, 1e9, false},
    [DAMPING] = {"damping", 1, 1e9, false},
    [STRIDE] = {"stride", 1, 1024, true},
    [FOLD] = {"fold", 0, 1024, true},
    [FFN] = {"ffn", 0, 1, true}, /* feed-forwards' output maps refitted as well */
};

static void read_plan(const struct rankplan *p, double v[KNOBS])
{
    v[ROUNDS] = p->rounds;
    v[BALANCE] = p->balance > 0 ? p->balance : 1;
    v[DAMPING] = p->damping > 0 ? p->damping : 1;
    v[STRIDE] = p->stride > 0 ? p->stride : 1;
    v[FOLD] = p->freqfold;
    v[FFN] = p->refit_ffn;
}

static void write_plan(struct rankplan *p, const double v[KNOBS])
{
    p->rounds = (int)v[ROUNDS];
    p->balance = v[BALANCE] == 1 ? 0 : v[BALANCE];
    p->damping = v[DAMPING] == 1 ? 0 : v[DAMPING];
    p->stride = v[STRIDE] == 1 ? 0 : (int)v[STRIDE];
    p->freqfold = (int)v[FOLD];
    p->refit_ffn = v[FFN] != 0;
}

void recipe_text(const struct rankplan *p, bool all, char *text, size_t size)
{
    double v[KNOBS];
    size_t n = 0;
    text[0] = 0;
    read_plan(p, v);
    for (int k = 0; k < KNOBS && n < size; k++)
        if (all || v[k] != knobs[k].usual)
            n += (size_t)snprintf(text + n, size - n, "%s%s %g", n ? " " : "", knobs[k].name, v[k]);
    const char *before = n ? " without " : "without ";
    for (int bit = 0; bit < PLAN_STEPS && n < size; bit++)
        if (p->without & 1u << bit) {
            n += (size_t)snprintf(text + n, size - n, "%s%s", before, plan_step_name(bit));
            before = ",";
        }
}

/* One word and its value at *text, which moves on. */
static int read_knob(struct rankplan *p, double v[KNOBS], char **at, struct err *e)
{
    char *name = strsep(at, " "), *value = *at ? strsep(at, " ") : NULL, *end;
    if (!value || !*value)
        return err_set(e, ERR_ARG, "%s needs a value: %s", name,
                       strcasecmp(name, "without") ? "rounds 2" : "without joint,output");
    if (!strcasecmp(name, "without"))
        return plan_steps_parse(value, &p->without, e);
    for (int k = 0; k < KNOBS; k++) {
        if (strcasecmp(name, knobs[k].name))
            continue;
        v[k] = strtod(value, &end);
        if (*end || !(v[k] >= 0 && v[k] <= knobs[k].most) ||
            (knobs[k].whole ? v[k] != floor(v[k]) : v[k] == 0))
            return err_set(e, ERR_ARG, "%s takes %s up to %g, not %s", name,
                           knobs[k].whole ? "a whole number" : "a number above 0", knobs[k].most,
                           value);
        return OK;
    }
    return err_set(e, ERR_ARG,
                   "no knob is called %s: rounds, balance, damping, stride, fold, ffn, without",
                   name);
}

int recipe_parse(struct rankplan *p, const char *text, struct err *e)
{
    double v[KNOBS];
    char *copy = mem_strdup(text), *at = copy;
    int rc = copy ? OK : err_nomem(e, strlen(text), "a recipe");
    for (int k = 0; k < KNOBS; k++)
        v[k] = knobs[k].usual;
    p->without = 0;
    while (!rc && at && *(at += strspn(at, " ")))
        rc = read_knob(p, v, &at, e);
    free(copy);
    if (!rc && v[STRIDE] > 1 && p->layout != LAYOUT_STOCK)
        rc = err_set(e, ERR_ARG, "stride thins the frequencies of the stock layout (f)");
    if (!rc && v[FOLD] > 0 && p->method != METHOD_TRANSMLA)
        rc = err_set(e, ERR_ARG, "fold is for the method transmla (m)");
    if (!rc)
        write_plan(p, v);
    return rc;
}

void recipe_ask(struct app *a)
{
    char text[256];
    recipe_text(&a->ranks.plan, true, text, sizeof text);
    ask_hinted(
        a, REQ_RECIPE, "recipe", text, false,
        "knobs and values, what is not named is as usual: rounds balance damping stride fold "
        "ffn, and without rope,joint,… leaves steps out");
}

bool recipe_answer(struct app *a, const char *text)
{
    struct err e = {0};
    struct rankplan next = {0};
    char now[256];
    int rc = rankplan_copy(&next, &a->ranks.plan, &e);
    if (!rc)
        rc = recipe_parse(&next, text, &e);
    if (rc) {
        rankplan_done(&next);
        return ask_refuse(a, &e);
    }
    next.predicted_kl = NAN;
    recipe_text(&next, false, now, sizeof now);
    if (plan_replace(a, &next))
        app_message(a, ROLE_GOOD, "the recipe: %s", now[0] ? now : "as usual");
    return true;
}
