/* The plan on screen 2: its spectra, undo, the layer that is looked at, and what keys ask of it. */
#include "ui/app_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAST_MAX 200

void plan_drop(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    for (int l = 0; r->curve && r->has_plan && l < r->plan.model.n_layer; l++) {
        spectrum_done(&r->curve[l].spectrum);
        spectrum_done(&r->curve[l].weights);
    }
    free(r->curve);
    compare_drop(a);
    if (r->has_plan)
        rankplan_done(&r->plan);
    for (size_t i = 0; i < r->n_past; i++)
        rankplan_done(&r->past[i]);
    free(r->past);
    if (r->has_sensitivity)
        sensitivity_done(&r->sensitivity);
    *r = (struct ranks_state){0};
}

int plan_step(const struct app *a)
{
    int step = rankplan_max_rank(&a->ranks.plan.model) / 16;
    return step > 16 ? 16 : step < 1 ? 1 : step;
}

bool plan_curve_fits(const struct app *a, int layer)
{
    const struct layer_curve *c = &a->ranks.curve[layer];
    return c->there && c->layout == a->ranks.plan.layout &&
           c->rope_dim == a->ranks.plan.layer[layer].qk_rope_head_dim;
}

int plan_curves(const struct app *a, bool *calibrated)
{
    int n = 0, measured = 0;
    if (!a->ranks.has_plan)
        return 0;
    for (int l = 0; l < a->ranks.plan.model.n_layer; l++)
        if (plan_curve_fits(a, l)) {
            n++;
            measured += a->ranks.curve[l].spectrum.calibrated;
        }
    if (calibrated)
        *calibrated = measured == n && n > 0;
    return n;
}

void plan_keep(struct app *a)
{
    cJSON *json = NULL;
    if (a->ranks.has_plan && rankplan_to_json(&a->ranks.plan, &json, NULL) == OK) {
        cJSON_Delete(a->j.plan);
        a->j.plan = json;
    }
    compare_keep(a);
}

void plan_want_spectra(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    int n = r->plan.model.n_layer, *rope = mem_calloc((size_t)n, sizeof *rope);
    worker_cancel_kind(a->worker, &job_spectra);
    for (int l = 0; rope && l < n; l++)
        rope[l] = r->plan.layer[l].qk_rope_head_dim;
    if (rope)
        worker_submit(a->worker, &job_spectra,
                      spectra_args(r->plan.layout, rope, n, r->layer, false));
    if (rope && r->weights && a->calibrated)
        worker_submit(a->worker, &job_spectra,
                      spectra_args(r->plan.layout, rope, n, r->layer, true));
    free(rope);
}

/* A copy of the plan goes onto the undo stack; what had been undone is forgotten. */
bool plan_remember(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    while (r->n_past > r->at_past)
        rankplan_done(&r->past[--r->n_past]);
    if (r->n_past >= PAST_MAX) {
        rankplan_done(&r->past[0]);
        memmove(r->past, r->past + 1, --r->n_past * sizeof *r->past);
    }
    if (!mem_grow((void **)&r->past, &r->cap_past, r->n_past + 2, sizeof *r->past) ||
        rankplan_copy(&r->past[r->n_past], &r->plan, NULL))
        return false;
    r->at_past = ++r->n_past;
    return true;
}

static bool same_shape(const struct rankplan *a, const struct rankplan *b)
{
    bool same = a->layout == b->layout;
    for (int l = 0; l < a->model.n_layer; l++)
        same = same && a->layer[l].qk_rope_head_dim == b->layer[l].qk_rope_head_dim;
    return same;
}

/* Replaces the plan (taken over) and asks for new spectra when widths or layout moved. */
void plan_set(struct app *a, struct rankplan *next)
{
    bool spectra = !same_shape(&a->ranks.plan, next);
    rankplan_done(&a->ranks.plan);
    a->ranks.plan = *next;
    if (spectra)
        plan_want_spectra(a);
    sensitivity_fetch(a);
    app_changed(a);
}

bool plan_replace(struct app *a, struct rankplan *next)
{
    if (!plan_remember(a)) {
        rankplan_done(next);
        app_message(a, ROLE_BAD, "out of memory");
        return false;
    }
    a->ranks.energy_pending = false;
    plan_set(a, next);
    return true;
}

static void step_past(struct app *a, int direction)
{
    struct ranks_state *r = &a->ranks;
    struct rankplan next;
    if (direction < 0 ? r->at_past == 0 : r->at_past + 1 >= r->n_past) {
        app_message(a, ROLE_DIM, direction < 0 ? "nothing to undo" : "nothing to redo");
        return;
    }
    if (direction < 0 && r->at_past == r->n_past) {
        /* The newest plan joins the list, so that redo can come back to it. */
        if (!plan_remember(a))
            return;
        r->at_past--;
    }
    r->at_past += direction < 0 ? (size_t)-1 : 1;
    if (rankplan_copy(&next, &r->past[r->at_past], NULL) == OK) {
        r->energy_pending = false;
        plan_set(a, &next);
    }
}

void plan_range(const struct app *a, int *first, int *last)
{
    int at = a->ranks.layer, mark = a->ranks.mark ? a->ranks.mark - 1 : at;
    *first = mark < at ? mark : at;
    *last = mark < at ? at : mark;
}

static void toggle_mark(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    r->mark = r->mark ? 0 : r->layer + 1;
    app_message(a, ROLE_NORMAL,
                r->mark
                    ? "a range begins at layer %d: move to its other end; ranks and u change all "
                      "of it, Esc lets go"
                    : "no range any more",
                r->layer);
}

static void toggle_weights(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    r->weights = !r->weights;
    if (r->weights && a->calibrated)
        plan_want_spectra(a);
    app_message(a, ROLE_NORMAL,
                !r->weights      ? "the spectrum alone"
                : !a->calibrated ? "these are of the weights alone; after calibrating (t) both show"
                                 : "dotted: what the weights alone would say, every input alike");
}

static bool request(struct app *a, enum request r)
{
    struct ranks_state *s = &a->ranks;
    char text[64];
    if (!s->has_plan)
        return false;
    int page = a->options.rows > 12 ? a->options.rows - 10 : 2;
    if (list_move(r, s->plan.model.n_layer, page, &s->layer) || compare_request(a, r))
        return true;
    switch (r) {
    case REQ_LESS: ranks_change(a, -1); return true;
    case REQ_MORE: ranks_change(a, 1); return true;
    case REQ_LESS_FAST: ranks_change(a, -4); return true;
    case REQ_MORE_FAST: ranks_change(a, 4); return true;
    case REQ_AUTO:
        if (s->plan.layout != LAYOUT_OWN || !sensitivity_spend(a)) /* engines want one rank */
            plan_spend_evenly(a);
        return true;
    case REQ_MARK: toggle_mark(a); return true;
    case REQ_STOP:
        if (!s->mark)
            return false;
        toggle_mark(a);
        return true;
    case REQ_ZOOM:
        s->zoom = (s->zoom + 1) % 4;
        app_message(a, ROLE_NORMAL,
                    s->zoom ? "the spectrum around its cut, %d times as near"
                            : "all of the spectrum",
                    1 << s->zoom);
        return true;
    case REQ_SCALE:
        s->linear = !s->linear;
        app_message(a, ROLE_NORMAL, s->linear ? "spectra by value" : "spectra in decades");
        return true;
    case REQ_PROBE: sensitivity_measure(a); return true;
    case REQ_SEARCH: search_start(a); return true;
    case REQ_BUDGET_LESS: sensitivity_drag(a, -1); return true;
    case REQ_BUDGET_MORE: sensitivity_drag(a, 1); return true;
    case REQ_ENERGY: ranks_spend_by_energy(a); return true;
    case REQ_UNIFORM: ranks_level(a); return true;
    case REQ_LAYOUT: ranks_layout(a); return true;
    case REQ_METHOD: ranks_method(a); return true;
    case REQ_UNDO: step_past(a, -1); return true;
    case REQ_REDO: step_past(a, 1); return true;
    case REQ_START: convert_start(a); return true;
    case REQ_SAVE_PLAN: plan_ask_save(a); return true;
    case REQ_LOAD_PLAN: ask_open(a, r, "load the plan", "", true); return true;
    case REQ_BUDGET:
        ask_hinted(
            a, r, "budget", a->j.budget, false,
            "a share of the cache (50%), bytes a token (11520B), or what shall fit a memory: "
            "24GiB,8192x16 is sixteen sequences of 8192 tokens");
        return true;
    case REQ_ROPE:
        snprintf(text, sizeof text, "%d", s->plan.layer[s->layer].qk_rope_head_dim);
        ask_open(a, r, "rope width R, for all layers", text, false);
        return true;
    case REQ_WHATIF: {
        char bytes[32];
        snprintf(bytes, sizeof bytes, "%gGiB", a->j.memory_bytes / 0x1p30);
        snprintf(text, sizeof text, "%lldx%lld %s", a->j.context, a->j.batch, bytes);
        ask_hinted(a, r, "what if", text, false,
                   "context x batch, and a memory to fill: 8192x1 24GiB");
        return true;
    }
    case REQ_CALIBRATE:
        ask_hinted(a, r, "calibrate on", a->j.calibration ? a->j.calibration : "", true,
                   "text files, each with its share if they are not equal, how many tokens, and "
                   "until when: wiki.txt 2 code.txt 1 32768 tokens until 2%. Nothing: the model's "
                   "own text");
        return true;
    case REQ_RECIPE: recipe_ask(a); return true;
    case REQ_CURVES:
        s->curves = (s->curves + 1) % 3;
        app_message(a, ROLE_NORMAL,
                    s->curves == 0   ? "keys and values together: what the latent is taken from"
                    : s->curves == 1 ? "keys alone"
                                     : "values alone");
        return true;
    case REQ_WEIGHTS: toggle_weights(a); return true;
    default: return false;
    }
}

bool plan_request(struct app *a, enum request r)
{
    bool taken = request(a, r);
    sensitivity_refresh(a);
    return taken;
}

static int default_plan(const struct app *a, struct rankplan *p, struct err *e)
{
    const struct plan_model *m = &a->info.plan_model;
    long long half = rankplan_numbers_gqa(m) / 2;
    int rc = rankplan_init(p, m, e);
    if (rc == OK)
        rc = rankplan_uniform(p, 1, rankplan_auto_rope(m, p->layout, 0.5), e);
    if (rc == OK)
        rc = rankplan_spread(p, half, e);
    p->budget_kept = 0.5;
    return rc;
}

void plan_loaded(struct app *a, const struct loaded_model *m)
{
    struct ranks_state *r = &a->ranks;
    struct err e = {0};
    int rc = ERR_ARG;
    plan_drop(a);
    if (!a->info.convertible)
        return;
    if (a->j.plan) {
        rc = rankplan_from_json(&r->plan, &a->info.plan_model, a->j.plan, "plan", &e);
        if (rc)
            plan_keep_foreign(a, &a->j.plan, e.text);
    }
    if (rc && m->has_conversion)
        rc = rankplan_copy(&r->plan, &m->plan, &e);
    if (rc)
        rc = default_plan(a, &r->plan, &e);
    r->curve = rc ? NULL : mem_calloc((size_t)r->plan.model.n_layer, sizeof *r->curve);
    if (!r->curve) {
        rankplan_done(&r->plan);
        app_message(a, ROLE_BAD, "no plan: %s", e.text);
        return;
    }
    r->has_plan = true;
    if (!compare_loaded(a))
        plan_keep_foreign(a, &a->j.plan_b, "plan B was for another model");
    plan_want_spectra(a);
}

static void keep_weights(struct layer_curve *c, struct layer_spectrum *s)
{
    spectrum_done(&c->weights);
    c->weights = s->spectrum;
    c->weights_layout = s->layout;
    s->spectrum = (struct spectrum){0};
}

const struct spectrum *plan_weights(const struct app *a, int layer)
{
    const struct layer_curve *c = &a->ranks.curve[layer];
    bool fits = a->ranks.weights && c->there && c->spectrum.calibrated && c->weights.n > 0 &&
                c->weights_layout == a->ranks.plan.layout &&
                c->weights.rope_dim == a->ranks.plan.layer[layer].qk_rope_head_dim;
    return fits ? &c->weights : NULL;
}

void plan_spectrum(struct app *a, struct layer_spectrum *s)
{
    struct ranks_state *r = &a->ranks;
    if (!r->has_plan || s->layer < 0 || s->layer >= r->plan.model.n_layer)
        return;
    struct layer_curve *c = &r->curve[s->layer];
    if (!s->spectrum.calibrated && a->calibrated) {
        keep_weights(c, s);
        return;
    }
    bool fits =
        s->layout == r->plan.layout && s->rope_dim == r->plan.layer[s->layer].qk_rope_head_dim;
    if (c->there && !fits)
        return; /* of a plan that has moved on */
    if (c->there && !c->spectrum.calibrated && s->spectrum.calibrated) {
        spectrum_done(&c->weights); /* the first ones stay, to compare with */
        c->weights = c->spectrum;
        c->weights_layout = c->layout;
    } else {
        spectrum_done(&c->spectrum);
    }
    c->spectrum = s->spectrum;
    s->spectrum = (struct spectrum){0};
    c->there = true;
    c->layout = s->layout;
    c->rope_dim = s->rope_dim;
    bool measured = false;
    if (r->energy_pending && plan_curves(a, &measured) == r->plan.model.n_layer &&
        (measured || !a->calibrated))
        ranks_spend_by_energy(a);
}
