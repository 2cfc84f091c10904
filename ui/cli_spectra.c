/* spectra: what a rank would keep in each layer. */
#include <stdlib.h>

#include "ui/cli_plan.h"
#include "ui/figures.h"

int cli_all_spectra(struct cli *c, struct workspace *w, const struct rankplan *p,
                    struct spectrum **out, struct err *e)
{
    int n_layer = p->model.n_layer;
    *out = mem_calloc((size_t)n_layer, sizeof **out);
    int rc = *out ? OK : err_nomem(e, (size_t)n_layer * sizeof **out, "spectra");
    enum { BATCH = 4 };
    for (int l = 0; l < n_layer && !rc; l += BATCH) {
        int layer[BATCH], ropes[BATCH], n = 0;
        for (; n < BATCH && l + n < n_layer; n++) {
            layer[n] = l + n;
            ropes[n] = p->layer[l + n].qk_rope_head_dim;
        }
        rc = workspace_spectra(w, n, layer, p->layout, ropes, *out + l, e);
        if (!rc && !progress_report(&c->progress, "spectra", l + n, n_layer))
            rc = err_set(e, ERR_CANCELLED, "stopped");
    }
    cli_progress_end(c);
    return rc;
}

void cli_free_spectra(struct spectrum *s, int n_layer)
{
    for (int l = 0; s && l < n_layer; l++)
        spectrum_done(&s[l]);
    free(s);
}

static cJSON *layer_json(int index, const struct spectrum *s)
{
    cJSON *o = cJSON_CreateObject(), *energy;
    double total = spectrum_dropped(s, 0), sum = 0;
    cJSON_AddNumberToObject(o, "index", index);
    cJSON_AddItemToObject(o, "joint", cJSON_CreateDoubleArray(s->joint, s->n));
    cJSON_AddItemToObject(o, "key", cJSON_CreateDoubleArray(s->key, s->n_key));
    cJSON_AddItemToObject(o, "value", cJSON_CreateDoubleArray(s->value, s->n_value));
    energy = cJSON_AddArrayToObject(o, "energy"); /* of the first 1, 2, … components */
    for (int i = 0; i < s->n; i++) {
        sum += s->joint[i];
        cJSON_AddItemToArray(energy, cJSON_CreateNumber(total > 0 ? sum / total : 1));
    }
    cJSON_AddItemToObject(o, "key_share", cJSON_CreateDoubleArray(s->key_share, s->n));
    return o;
}

static int print_spectra(struct cli *c, const struct spectrum *s, int n, int rope, struct err *e)
{
    if (!c->o.json) {
        printf("rank that keeps a share of the energy (%s, rope %d):\n",
               s[0].calibrated ? "calibrated" : "weights only", rope);
        printf("layer    90 %%    95 %%    99 %%  99.9 %%   of\n");
        for (int l = 0; l < n; l++)
            printf("%5d %7d %7d %7d %7d %4d\n", l, figure_rank_for(&s[l], 0.9),
                   figure_rank_for(&s[l], 0.95), figure_rank_for(&s[l], 0.99),
                   figure_rank_for(&s[l], 0.999), s[l].n);
        return OK;
    }
    cJSON *root = cJSON_CreateObject();
    cJSON_AddBoolToObject(root, "calibrated", s[0].calibrated);
    cJSON_AddNumberToObject(root, "rope", rope);
    cJSON *list = cJSON_AddArrayToObject(root, "layers");
    for (int l = 0; l < n; l++)
        cJSON_AddItemToArray(list, layer_json(l, &s[l]));
    return cli_print_json(root, e);
}

static int draw_spectra(struct cli *c, const struct spectrum *s, int n, struct err *e)
{
    struct markup m = {0};
    figure_spectra(&m, false, s, n, NULL);
    return cli_save_svg(c, &m, e);
}

int cli_spectra(struct cli *c, struct err *e)
{
    struct workspace *w;
    struct model_info info;
    struct rankplan choice = {0}, at = {0};
    struct spectrum *s = NULL;
    if (c->o.weights_only && c->o.calib.n)
        return cli_usage(e, "--weights-only and --calib exclude each other");
    int rc = cli_choose_method(c, &choice, e);
    if (rc)
        return rc;
    rc = cli_open(c, c->arg[0], CLI_FAST, &w, e);
    if (rc)
        return rc;
    workspace_info(w, &info);
    int rope =
        c->o.rope ? (int)c->o.rope : rankplan_auto_rope(&info.plan_model, choice.layout, 0.25);
    if (rope % 2 || rope > info.head_dim * (choice.layout == LAYOUT_STOCK ? 1 : info.n_kv_head))
        rc = cli_usage(e, "--rope %d: give an even number up to %d", rope,
                       info.head_dim * (choice.layout == LAYOUT_STOCK ? 1 : info.n_kv_head));
    if (!rc && !c->o.weights_only)
        rc = cli_calibrate(c, w, e);
    if (!rc)
        rc = rankplan_init(&at, &info.plan_model, e);
    at.layout = choice.layout;
    if (!rc)
        rc = rankplan_uniform(&at, 1, rope, e);
    if (!rc)
        rc = cli_all_spectra(c, w, &at, &s, e);
    if (!rc && c->o.svg)
        rc = draw_spectra(c, s, info.n_layer, e);
    if (!rc)
        rc = print_spectra(c, s, info.n_layer, rope, e);
    cli_free_spectra(s, info.n_layer);
    rankplan_done(&at);
    workspace_free(w);
    return rc;
}
