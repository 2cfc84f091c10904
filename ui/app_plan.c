/* The plan on screen 2: edits with undo, budgets, spectra, and what other engines would say.
 * Refuses ranks and widths that the layout cannot have, by asking core/rankplan. */
#include "ui/app_parts.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/kvmem.h"

#define PAST_MAX 200
#define KV_BYTES 2 /* F16 cache */

void plan_drop(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    for (int l = 0; r->curve && r->has_plan && l < r->plan.model.n_layer; l++)
        spectrum_done(&r->curve[l].spectrum);
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
        worker_submit(a->worker, &job_spectra, spectra_args(r->plan.layout, rope, n, r->layer));
    free(rope);
}

/* A copy of the plan goes onto the undo stack; what had been undone is forgotten. */
static bool remember(struct app *a)
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
static void set_plan(struct app *a, struct rankplan *next)
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
    if (!remember(a)) {
        rankplan_done(next);
        app_message(a, ROLE_BAD, "out of memory");
        return false;
    }
    a->ranks.energy_pending = false;
    set_plan(a, next);
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
        if (!remember(a))
            return;
        r->at_past--;
    }
    r->at_past += direction < 0 ? (size_t)-1 : 1;
    if (rankplan_copy(&next, &r->past[r->at_past], NULL) == OK) {
        r->energy_pending = false;
        set_plan(a, &next);
    }
}

void plan_range(const struct app *a, int *first, int *last)
{
    int at = a->ranks.layer, mark = a->ranks.mark ? a->ranks.mark - 1 : at;
    *first = mark < at ? mark : at;
    *last = mark < at ? at : mark;
}

/* The next multiple of the step in that direction. */
static int stepped(const struct app *a, int old, int steps)
{
    int step = plan_step(a), max = rankplan_max_rank(&a->ranks.plan.model);
    int rank = steps > 0 ? (old / step + steps) * step : ((old + step - 1) / step + steps) * step;
    return rank < 1 ? (step > 1 && old > step ? step : 1) : rank > max ? max : rank;
}

static void change_rank(struct app *a, int steps)
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
    if (!remember(a))
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
    int rc = rankplan_budget(&r->plan.model, a->j.budget, KV_BYTES, &numbers, &e);
    if (rc == OK)
        rc = rankplan_copy(&next, &r->plan, &e);
    if (rc == OK)
        rc = all ? allocate_between(&next, all, numbers, plan_step(a), &e)
                 : rankplan_spread(&next, numbers, &e);
    if (rc || !remember(a)) {
        rankplan_done(&next);
        app_message(a, ROLE_BAD, "%s", rc ? e.text : "out of memory");
        return;
    }
    r->energy_pending = false;
    next.budget_kept = (double)numbers / (double)rankplan_numbers_gqa(&next.model);
    next.predicted_kl = NAN;
    set_plan(a, &next);
    app_message(a, ROLE_GOOD,
                all ? "ranks spend %s where it keeps most energy" : "ranks spend %s evenly",
                a->j.budget);
}

void plan_spend_evenly(struct app *a)
{
    spend(a, NULL);
}

static void spend_by_energy(struct app *a)
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

static void uniform(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    int rank = r->plan.layer[r->layer].kv_lora_rank, first = 0, last = r->plan.model.n_layer - 1;
    if (!remember(a))
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
static int set_rope(struct rankplan *p, int rope_dim, struct err *e)
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

static void toggle_layout(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    struct rankplan next;
    if (!remember(a) || rankplan_copy(&next, &r->plan, NULL))
        return;
    next.layout = next.layout == LAYOUT_STOCK ? LAYOUT_OWN : next.layout + 1;
    if (next.layout != LAYOUT_OWN) { /* one width for all layers */
        int rope = next.layer[0].qk_rope_head_dim, most = next.model.head_dim;
        set_rope(&next, next.layout == LAYOUT_STOCK && rope > most ? most : rope, NULL);
    }
    next.predicted_kl = NAN;
    set_plan(a, &next);
    app_message(a, ROLE_NORMAL, "%s",
                a->ranks.plan.layout == LAYOUT_STOCK
                    ? "stock layout: evenly spaced rope frequencies, as every engine has them"
                : a->ranks.plan.layout == LAYOUT_SHARED
                    ? "shared layout: one free list of rope frequencies for all layers"
                    : "own layout: runs here, and cannot be loaded elsewhere");
}

static void toggle_method(struct app *a)
{
    struct ranks_state *r = &a->ranks;
    if (!remember(a))
        return;
    r->plan.method = r->plan.method == METHOD_MLATHE ? METHOD_TRANSMLA : METHOD_MLATHE;
    r->plan.predicted_kl = NAN;
    app_message(a, ROLE_NORMAL, "method %s",
                r->plan.method == METHOD_MLATHE ? "mlathe" : "transmla, as published");
    app_changed(a);
}

char *plan_free_path(const char *dir, const char *name, const char *suffix)
{
    char safe[96];
    size_t n = 0;
    for (const char *c = name; *c && n < sizeof safe - 1; c++)
        safe[n++] = isalnum((unsigned char)*c) || strchr("._-", *c) ? *c : '_';
    safe[n] = 0;
    for (int i = 1; i < 100000; i++) {
        char *path =
            mem_printf("%s/%s-%d%s", dir, safe[0] == '.' || !n ? "model" : safe, i, suffix);
        if (!path || !file_exists(path))
            return path;
        free(path);
    }
    return NULL;
}

static void ask_save(struct app *a)
{
    char text[1024];
    char *dir = path_join(a->paths.data, "plans");
    char *path = dir ? plan_free_path(dir, a->ranks.plan.model.name, ".plan.json") : NULL;
    ask_open(a, REQ_SAVE_PLAN, "save the plan as", path ? app_path_text(path, text) : "", true);
    free(path);
    free(dir);
}

static void choose_layer(struct app *a, enum request r)
{
    struct ranks_state *s = &a->ranks;
    int n = s->plan.model.n_layer, page = a->options.rows > 12 ? a->options.rows - 10 : 2;
    switch (r) {
    case REQ_UP: s->layer--; break;
    case REQ_DOWN: s->layer++; break;
    case REQ_PAGE_UP: s->layer -= page; break;
    case REQ_PAGE_DOWN: s->layer += page; break;
    case REQ_FIRST: s->layer = 0; break;
    default: s->layer = n - 1; break;
    }
    s->layer = s->layer < 0 ? 0 : s->layer >= n ? n - 1 : s->layer;
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

static bool request(struct app *a, enum request r)
{
    struct ranks_state *s = &a->ranks;
    char text[64];
    if (!s->has_plan)
        return false;
    if (r >= REQ_UP && r <= REQ_LAST) {
        choose_layer(a, r);
        return true;
    }
    if (compare_request(a, r))
        return true;
    switch (r) {
    case REQ_LESS: change_rank(a, -1); return true;
    case REQ_MORE: change_rank(a, 1); return true;
    case REQ_LESS_FAST: change_rank(a, -4); return true;
    case REQ_MORE_FAST: change_rank(a, 4); return true;
    case REQ_AUTO:
        if (s->plan.layout != LAYOUT_OWN || !sensitivity_spend(a)) /* engines want one rank */
            spend(a, NULL);
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
    case REQ_ENERGY: spend_by_energy(a); return true;
    case REQ_UNIFORM: uniform(a); return true;
    case REQ_LAYOUT: toggle_layout(a); return true;
    case REQ_METHOD: toggle_method(a); return true;
    case REQ_UNDO: step_past(a, -1); return true;
    case REQ_REDO: step_past(a, 1); return true;
    case REQ_START: convert_start(a); return true;
    case REQ_SAVE_PLAN: ask_save(a); return true;
    case REQ_LOAD_PLAN: ask_open(a, r, "load the plan", "", true); return true;
    case REQ_BUDGET:
        ask_open(a, r, "budget (50%, 11520B a token, 24GiB,8192x16)", a->j.budget, false);
        return true;
    case REQ_ROPE:
        snprintf(text, sizeof text, "%d", s->plan.layer[s->layer].qk_rope_head_dim);
        ask_open(a, r, "rope width R, for all layers", text, false);
        return true;
    case REQ_WHATIF: {
        char bytes[32];
        snprintf(bytes, sizeof bytes, "%gGiB", a->j.memory_bytes / 0x1p30);
        snprintf(text, sizeof text, "%lldx%lld %s", a->j.context, a->j.batch, bytes);
        ask_open(a, r, "context x batch, and a memory to fill", text, false);
        return true;
    }
    case REQ_CALIBRATE:
        ask_open(a, r, "calibrate on text file (empty: the model's own text)",
                 a->j.calibration ? a->j.calibration : "", true);
        return true;
    default: return false;
    }
}

bool plan_request(struct app *a, enum request r)
{
    bool taken = request(a, r);
    sensitivity_refresh(a);
    return taken;
}

char *ask_expand_home(const char *text)
{
    const char *home = getenv("HOME");
    while (*text == ' ')
        text++;
    char *path = text[0] == '~' && text[1] == '/' && home ? mem_printf("%s%s", home, text + 1)
                                                          : mem_strdup(text);
    for (size_t n = path ? strlen(path) : 0; n > 0 && path[n - 1] == ' ';)
        path[--n] = 0;
    return path;
}

static bool refuse(struct app *a, const struct err *e)
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
    if (rankplan_budget(&r->plan.model, text, KV_BYTES, &numbers, &e))
        return refuse(a, &e);
    double kept = (double)numbers / (double)rankplan_numbers_gqa(&r->plan.model);
    if (rankplan_copy(&next, &r->plan, &e))
        return refuse(a, &e);
    /* The rope width that suits the budget, and even ranks: what measured best. */
    if (set_rope(&next, rankplan_auto_rope(&next.model, next.layout, kept), &e) ||
        rankplan_spread(&next, numbers, &e)) {
        rankplan_done(&next);
        return refuse(a, &e);
    }
    next.budget_kept = kept;
    next.predicted_kl = NAN;
    text_set(&a->j.budget, text);
    if (remember(a))
        set_plan(a, &next);
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
        return refuse(a, &e);
    }
    if (rankplan_copy(&next, &a->ranks.plan, &e))
        return refuse(a, &e);
    if (set_rope(&next, (int)width, &e) || !remember(a)) {
        rankplan_done(&next);
        return refuse(a, &e);
    }
    next.predicted_kl = NAN;
    set_plan(a, &next);
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
        return refuse(a, &e);
    }
    a->j.context = context;
    a->j.batch = batch;
    if (n >= 3)
        a->j.memory_bytes = memory * scale;
    app_changed(a);
    return true;
}

static bool answer_save(struct app *a, const char *text)
{
    struct err e = {0};
    char *path = ask_expand_home(text), *out = NULL;
    cJSON *json = NULL;
    bool ok = false;
    if (!path || !path[0]) {
        err_set(&e, ERR_ARG, "give a file name");
    } else if (rankplan_to_json(&a->ranks.plan, &json, &e) == OK) {
        out = json_text(json, true);
        ok = out && saver_put(a->saver, path, out, false);
        if (!ok)
            err_nomem(&e, 0, "plan");
    }
    cJSON_Delete(json);
    free(path);
    return ok || refuse(a, &e);
}

static bool answer_load(struct app *a, const char *text)
{
    struct err e = {0};
    struct rankplan next = {0};
    char *path = ask_expand_home(text);
    int rc = path ? rankplan_load(&next, &a->ranks.plan.model, path, &e) : ERR_NOMEM;
    free(path);
    if (rc)
        return refuse(a, &e);
    if (remember(a))
        set_plan(a, &next);
    else
        rankplan_done(&next);
    app_message(a, ROLE_GOOD, "plan loaded (z undoes)");
    return true;
}

static bool answer_calibrate(struct app *a, const char *text)
{
    struct err e = {0};
    char *path = ask_expand_home(text), *cache = path_join(a->paths.cache, "calibration");
    bool self = !path || !path[0];
    if (!self && (!file_exists(path) || file_is_dir(path))) {
        err_set(&e, ERR_ARG, "%s: no such file", path);
        refuse(a, &e);
    } else {
        const struct rankplan *p = &a->ranks.plan;
        text_set(&a->j.calibration, self ? NULL : path);
        app_changed(a);
        worker_cancel_kind(a->worker, &job_calibrate);
        worker_submit(a->worker, &job_calibrate,
                      calibrate_args(self ? NULL : path, PLAN_TOKENS, cache, p->layout,
                                     p->layer[0].qk_rope_head_dim));
        app_message(a, ROLE_NORMAL,
                    "calibrating on %d tokens of %s: spectra are replaced layer by layer",
                    PLAN_TOKENS, self ? "the model's own text" : path_base(path));
    }
    free(path);
    free(cache);
    return e.status == 0;
}

static bool answer(struct app *a, enum request what, const char *text)
{
    switch (what) {
    case REQ_BUDGET: return answer_budget(a, text);
    case REQ_ROPE: return answer_rope(a, text);
    case REQ_WHATIF: return answer_whatif(a, text);
    case REQ_SAVE_PLAN: return answer_save(a, text);
    case REQ_LOAD_PLAN: return answer_load(a, text);
    case REQ_CALIBRATE: return answer_calibrate(a, text);
    case REQ_EXPORT_PATH:
    case REQ_EXPORT_QUERIES: return export_answer(a, what, text);
    case REQ_HEAL: return heal_answer(a, text);
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

bool plan_answer(struct app *a, enum request what, const char *text)
{
    bool taken = answer(a, what, text);
    sensitivity_refresh(a);
    return taken;
}

char *plan_put_away(struct app *a, const struct rankplan *p)
{
    cJSON *json = NULL;
    char *dir = path_join(a->paths.data, "plans");
    char *path = dir ? plan_free_path(dir, p->model.name, ".plan.json") : NULL;
    char *text = path && rankplan_to_json(p, &json, NULL) == OK ? json_text(json, true) : NULL;
    bool put = text && a->lock >= 0 && saver_put(a->saver, path, text, true);
    if (text && a->lock < 0)
        free(text);
    cJSON_Delete(json);
    free(dir);
    if (put)
        return path;
    free(path);
    return NULL;
}

/* A plan of another model is put into a file instead of being dropped. */
void plan_keep_foreign(struct app *a, cJSON **plan, const char *why)
{
    const cJSON *model = json_get(*plan, "model");
    char *dir = path_join(a->paths.data, "plans");
    char *path =
        dir ? plan_free_path(dir, json_str_or(model, "name", "model"), ".plan.json") : NULL;
    char *text = json_text(*plan, true), shown[1024];
    if (path && text && a->lock >= 0) {
        app_message(a, ROLE_NORMAL, "a new plan; the one before is in %s (%s)",
                    app_path_text(path, shown), why);
        saver_put(a->saver, path, text, true);
        text = NULL;
    }
    free(text);
    free(path);
    free(dir);
    cJSON_Delete(*plan);
    *plan = NULL;
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

void plan_spectrum(struct app *a, struct layer_spectrum *s)
{
    struct ranks_state *r = &a->ranks;
    if (!r->has_plan || s->layer < 0 || s->layer >= r->plan.model.n_layer)
        return;
    struct layer_curve *c = &r->curve[s->layer];
    bool fits =
        s->layout == r->plan.layout && s->rope_dim == r->plan.layer[s->layer].qk_rope_head_dim;
    if (c->there && !fits)
        return; /* of a plan that has moved on */
    spectrum_done(&c->spectrum);
    c->spectrum = s->spectrum;
    s->spectrum = (struct spectrum){0};
    c->there = true;
    c->layout = s->layout;
    c->rope_dim = s->rope_dim;
    bool measured = false;
    if (r->energy_pending && plan_curves(a, &measured) == r->plan.model.n_layer &&
        (measured || !a->calibrated))
        spend_by_energy(a);
}
