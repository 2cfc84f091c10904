/* plan: the choice of ranks that the options ask for. Refuses contradicting budgets and what this
 * version does not do. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/kvmem.h"
#include "sessions/search.h"
#include "ui/cli_plan.h"
#include "ui/figures.h"

int cli_choose_method(const struct cli *c, struct rankplan *p, struct err *e)
{
    const char *method = c->o.method, *layout = c->o.layout;
    if (method && strcmp(method, "mlathe") && strcmp(method, "transmla"))
        return cli_usage(e, "--method takes mlathe or transmla, not \"%s\"", method);
    int choice = LAYOUT_OWN;
    while (layout && choice <= LAYOUT_STOCK && strcmp(layout, plan_layout_name(choice)))
        choice++;
    if (choice > LAYOUT_STOCK)
        return cli_usage(e, "--layout takes own, shared or stock, not \"%s\"", layout);
    p->method = method && !strcmp(method, "transmla") ? METHOD_TRANSMLA : METHOD_MLATHE;
    p->layout = (enum plan_layout)choice;
    p->freqfold = (int)c->o.freqfold;
    p->rounds = (int)c->o.rounds;
    p->stride = (int)c->o.stride;
    p->refit_ffn = c->o.refit_ffn;
    p->balance = c->o.balance;
    p->damping = c->o.damping;
    if (p->stride > 1 && p->layout != LAYOUT_STOCK)
        return cli_usage(e, "--stride thins the grid of --layout stock");
    if (c->o.without && plan_steps_parse(c->o.without, &p->without, e))
        return CLI_USAGE;
    return OK;
}

/* *numbers a token over all layers, 0 when --rank says it. */
static int choose_budget(const struct cli *c, const struct plan_model *m, long long *numbers,
                         struct err *e)
{
    const struct cli_options *o = &c->o;
    char bytes[64];
    int given = !!o->kept + !!o->bytes_per_token + !!o->fit + (o->rank > 0);
    *numbers = 0;
    if (given != 1)
        return cli_usage(e, "give one of --kept, --bytes-per-token, --fit and --rank");
    if (o->rank)
        return OK;
    if (o->bytes_per_token) {
        /* A bare number is bytes, also below 2. */
        size_t n = strlen(o->bytes_per_token);
        bool bare = n && strspn(o->bytes_per_token, "0123456789.") == n;
        snprintf(bytes, sizeof bytes, "%.60s%s", o->bytes_per_token, bare ? "B" : "");
    }
    if (o->kept && !strchr(o->kept, '%') && strtod(o->kept, NULL) > 1)
        return cli_usage(e, "--kept takes a share: %.20s%% or a number up to 1", o->kept);
    const char *text = o->kept ? o->kept : o->fit ? o->fit : bytes;
    return rankplan_budget(m, text, (int)dtype_bytes(DTYPE_F16, 1), numbers, e) ? CLI_USAGE : OK;
}

/* At the rope widths of p's layers. */
static int allocate_by_energy(struct cli *c, struct workspace *w, struct rankplan *p,
                              long long numbers, struct err *e)
{
    struct spectrum *s = NULL;
    int max = rankplan_max_rank(&p->model), step = max >= 1024 ? 16 : max >= 256 ? 8 : 2;
    int rc = c->o.weights_only || workspace_calibrated(w) ? OK : cli_calibrate(c, w, e);
    if (!rc)
        rc = cli_all_spectra(c, w, p, &s, e);
    if (!rc)
        rc = rankplan_allocate(p, s, numbers, step, max, step, NULL, e);
    cli_free_spectra(s, p->model.n_layer);
    return rc;
}

static int mean_rank(const struct rankplan *p)
{
    long long sum = 0;
    for (int l = 0; l < p->model.n_layer; l++)
        sum += p->layer[l].kv_lora_rank;
    return (int)(sum / p->model.n_layer);
}

/* Spends the budget where it takes most off the measured KL; p holds even ranks, and keeps them
 * when measuring was nobody's explicit wish and cannot be done. */
static int allocate_by_sensitivity(struct cli *c, struct workspace *w, struct rankplan *p,
                                   long long numbers, struct err *e)
{
    struct sensitivity s;
    double price = 0;
    int max = rankplan_max_rank(&p->model), step = max >= 1024 ? 16 : max >= 256 ? 8 : 2;
    int rc = workspace_calibrated(w) ? OK : cli_calibrate(c, w, e);
    if (rc)
        return rc;
    char *cache = cli_statistics_dir();
    rc = workspace_sensitivity(w, p, mean_rank(p), true, cache, &s, &c->progress, e);
    cli_progress_end(c);
    free(cache);
    if (rc == ERR_ARG && !c->o.alloc) {
        cli_say(c, "even ranks: %s", e->text);
        return OK;
    }
    if (rc)
        return rc;
    double even = sensitivity_predict(&s, p);
    rc = sensitivity_allocate(&s, p, numbers, step, max, step, &price, e);
    if (!rc) {
        p->predicted_kl = sensitivity_predict(&s, p);
        cli_say(c, "ranks by sensitivity: predicted KL %.3f (even ranks %.3f), %.2g a number more",
                p->predicted_kl, even, price);
    }
    sensitivity_done(&s);
    return rc;
}

/* Asked for, or the best there is where statistics are made anyway. One rank for all layers is what
 * engines that load the stock layout want. */
static bool by_sensitivity(const struct cli *c, const struct rankplan *p)
{
    if (c->o.alloc)
        return !strcmp(c->o.alloc, "sensitivity");
    return p->method == METHOD_MLATHE && p->layout == LAYOUT_OWN &&
           (c->o.calib.n || !strcmp(c->command->name, "convert"));
}

static int check_alloc(const struct cli *c, struct err *e)
{
    const char *alloc = c->o.alloc;
    if (alloc && strcmp(alloc, "uniform") && strcmp(alloc, "energy") &&
        strcmp(alloc, "sensitivity"))
        return cli_usage(e, "--alloc takes uniform, energy or sensitivity, not \"%s\"", alloc);
    if (alloc && strcmp(alloc, "uniform") && c->o.rank)
        return cli_usage(e, "--rank gives every layer the same rank: --alloc %s needs a budget",
                         alloc);
    bool folds = c->o.method && !strcmp(c->o.method, "transmla");
    if (c->o.search && (c->o.rank || c->o.weights_only || (folds ? c->o.freqfold : c->o.rope)))
        return cli_usage(e,
                         "--search chooses %s for a budget by measuring: leave --rank, %s and "
                         "--weights-only out",
                         folds ? "foldings" : "rope widths", folds ? "--freqfold" : "--rope");
    if (alloc && !strcmp(alloc, "sensitivity") && c->o.weights_only)
        return cli_usage(e, "--alloc sensitivity measures: leave --weights-only out");
    return OK;
}

/* The best rope widths for the budget, and the rank that each layer is left with beside its own. */
static int search_widths(struct cli *c, struct workspace *w, struct rankplan *p, long long numbers,
                         bool *searched, struct err *e)
{
    struct search_result found = {0};
    int even = (int)(numbers / p->model.n_layer);
    int rc = workspace_calibrated(w) ? OK : cli_calibrate(c, w, e);
    if (!rc)
        rc = workspace_search(w, p, even, &found, &c->progress, e);
    cli_progress_end(c);
    if (rc == ERR_ARG && !c->o.search) { /* nothing to measure on: the usual width stands */
        cli_say(c, "usual rope width: %s", e->text);
        return OK;
    }
    for (int i = 0; i < found.n && !rc; i++) {
        char text[64];
        search_trial_text(&found, i, text, sizeof text);
        cli_say(c, "%s: KL %.4f%s", text, found.trial[i].kl, i == found.best ? "  best" : "");
    }
    search_result_done(&found);
    *searched = !rc;
    return rc;
}

static int fill_plan(struct cli *c, struct workspace *w, struct rankplan *p, struct err *e)
{
    long long numbers, all = rankplan_numbers_gqa(&p->model);
    int rc = choose_budget(c, &p->model, &numbers, e);
    if (rc)
        return rc;
    /* With a rank alone, the rope gets the usual third of the whole. */
    double kept = numbers ? (double)numbers / (double)all
                          : 1.5 * (double)c->o.rank / rankplan_max_rank(&p->model);
    int rope = c->o.rope ? (int)c->o.rope : rankplan_auto_rope(&p->model, p->layout, kept);
    if (c->o.rank)
        return rankplan_uniform(p, c->o.rank > INT32_MAX ? 0 : (int)c->o.rank, rope, e);
    rc = rankplan_uniform(p, 1, rope, e);
    bool searched = false;
    if (!rc && (c->o.search || (!c->o.rope && !c->o.alloc && by_sensitivity(c, p))))
        rc = search_widths(c, w, p, numbers, &searched, e);
    if (!rc && c->o.alloc && !strcmp(c->o.alloc, "energy"))
        rc = allocate_by_energy(c, w, p, numbers, e);
    else if (!rc && !searched)
        rc = rankplan_spread(p, numbers, e);
    if (!rc && by_sensitivity(c, p))
        rc = allocate_by_sensitivity(c, w, p, numbers, e);
    p->budget_kept = kept;
    return rc;
}

bool cli_recipe_given(const struct cli_options *o)
{
    return o->without || o->freqfold || o->rounds || o->stride || o->balance > 0 ||
           o->damping > 0 || o->refit_ffn;
}

/* The same cache as MLA: exact, ready to be trained further. Which engines load it depends on the
 * model, so it is said. */
static int preset_plan(struct cli *c, const struct model_info *info, struct rankplan *p,
                       struct err *e)
{
    const struct cli_options *o = &c->o;
    struct stock_verdict v;
    if (strcmp(o->preset, "equal-cache"))
        return cli_usage(e, "--preset takes equal-cache, not \"%s\"", o->preset);
    if (o->kept || o->bytes_per_token || o->fit || o->rank || o->rope || o->alloc || o->search ||
        cli_recipe_given(o))
        return cli_usage(e, "--preset says ranks and rope: leave those options out");
    if (!o->layout) /* one list of frequencies, which an engine can be told, where there is one */
        p->layout = info->stock.two_ropes ? LAYOUT_OWN : LAYOUT_SHARED;
    int rc = rankplan_equal_cache(p, info->stock.rope_dim, e);
    for (int t = 0; t < STOCK_ENGINES && !rc; t++) {
        stock_check(&info->stock, p, (enum stock_engine)t, &v);
        cli_say(c, "%s %s it%s%s", stock_name((enum stock_engine)t),
                v.fit == STOCK_NO ? "does not load" : "loads", v.text[0] ? ": " : "", v.text);
    }
    p->budget_kept = 1;
    return rc;
}

/* Before the budget: an engine wants the stock layout, and its sizes where none are given. */
static int want_engine(struct cli *c, struct err *e)
{
    struct cli_options *o = &c->o;
    enum stock_engine t;
    if (!o->engine)
        return OK;
    if (!stock_find(o->engine, &t))
        return cli_usage(e, "--engine takes hf, vllm, sglang or gguf, not \"%s\"", o->engine);
    if (!o->layout && !o->preset && !(o->method && !strcmp(o->method, "transmla")))
        o->layout = "stock";
    return OK;
}

/* The sizes that an engine is built for, rank 512 and rope 64; half the cache of smaller models. */
static void engine_sizes(struct cli *c, const struct model_info *info)
{
    struct cli_options *o = &c->o;
    int all = rankplan_max_rank(&info->plan_model);
    if (!o->engine || o->preset || o->kept || o->bytes_per_token || o->fit || o->rank)
        return;
    if (!o->rope)
        o->rope = info->stock.rope_dim < 64 ? info->stock.rope_dim : 64;
    o->rank = all / 2 > 512 + o->rope ? 512 : all / 2 - o->rope;
    if (o->rank < 1)
        o->rank = 1;
}

/* The finished plan held against the engine; what filling up with zeros costs is said. */
int cli_check_engine(struct cli *c, const struct model_info *info, const struct rankplan *p,
                     struct err *e)
{
    struct stock_verdict v;
    enum stock_engine t;
    if (!c->o.engine)
        return OK;
    if (!stock_find(c->o.engine, &t))
        return cli_usage(e, "--engine takes hf, vllm, sglang or gguf, not \"%s\"", c->o.engine);
    stock_check(&info->stock, p, t, &v);
    if (v.fit == STOCK_NO)
        return err_set(e, ERR_UNSUPPORTED, "%s could not load this: %s", stock_name(t), v.text);
    if (v.text[0])
        cli_say(c, "%s loads it %s", stock_name(t), v.text);
    if (v.kept > 1)
        cli_say(c, "that is more than the original's cache: choose another engine, or convert a "
                   "bigger model");
    return OK;
}

int cli_make_plan(struct cli *c, struct workspace *w, struct rankplan *plan, struct err *e)
{
    struct model_info info;
    workspace_info(w, &info);
    int rc = check_alloc(c, e);
    if (rc)
        return rc;
    if (!info.convertible)
        return err_set(e, ERR_UNSUPPORTED, "%s cannot be converted: %s", info.name, info.reason);
    rc = want_engine(c, e);
    if (rc)
        return rc;
    engine_sizes(c, &info);
    rc = rankplan_init(plan, &info.plan_model, e);
    if (!rc)
        rc = cli_choose_method(c, plan, e);
    if (!rc && c->o.preset)
        rc = preset_plan(c, &info, plan, e);
    else if (!rc)
        rc = fill_plan(c, w, plan, e);
    if (!rc)
        rc = cli_check_engine(c, &info, plan, e);
    if (!rc)
        workspace_stamp_plan(w, plan);
    else
        rankplan_done(plan);
    return rc;
}

/* --- plan --------------------------------------------------------------------------------- */

static void print_plan(const struct rankplan *p)
{
    char before[32], after[32];
    const struct plan_layer *l = p->layer;
    int n = p->model.n_layer, same = 1;
    while (same < n && l[same].kv_lora_rank == l[0].kv_lora_rank)
        same++;
    kvmem_text((double)rankplan_numbers_gqa(&p->model) * 2, before, sizeof before);
    kvmem_text((double)rankplan_numbers(p) * 2, after, sizeof after);
    printf("keeps %.1f %% of the KV cache: %s a token instead of %s (F16)\n",
           100 * rankplan_kept(p), after, before);
    if (same == n) {
        printf("every layer: rank %d, rope %d\n", l[0].kv_lora_rank, l[0].qk_rope_head_dim);
        return;
    }
    for (int i = 0; i < n; i++)
        printf("layer %3d: rank %4d, rope %3d\n", i, l[i].kv_lora_rank, l[i].qk_rope_head_dim);
}

static int draw_plan(struct cli *c, const struct rankplan *p, struct err *e)
{
    struct markup m = {0};
    figure_plan(&m, false, p);
    return cli_save_svg(c, &m, e);
}

int cli_plan(struct cli *c, struct err *e)
{
    struct workspace *w;
    struct rankplan p;
    cJSON *json;
    int rc = cli_open(c, c->arg[0], CLI_FAST, &w, e);
    if (rc)
        return rc;
    rc = cli_make_plan(c, w, &p, e);
    if (!rc) {
        if (c->o.output)
            rc = rankplan_save(&p, c->o.output, e);
        if (!rc && c->o.output)
            cli_say(c, "wrote %s", c->o.output);
        if (!rc && c->o.svg)
            rc = draw_plan(c, &p, e);
        if (!rc && (c->o.json || !c->o.output)) {
            rc = rankplan_to_json(&p, &json, e);
            if (!rc)
                rc = cli_print_json(json, e);
        } else if (!rc) {
            print_plan(&p);
        }
        rankplan_done(&p);
    }
    workspace_free(w);
    return rc;
}
