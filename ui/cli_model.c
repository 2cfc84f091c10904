/* models, inspect, paths: what is here. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/kvmem.h"
#include "sessions/models.h"
#include "sessions/paths.h"
#include "ui/cli.h"
#include "ui/settings.h"

static cJSON *entry_json(const struct model_entry *m)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "name", m->name);
    cJSON_AddStringToObject(o, "path", m->path);
    cJSON_AddStringToObject(o, "source", m->source);
    cJSON_AddStringToObject(o, "format", m->format);
    cJSON_AddStringToObject(o, "family", m->family);
    cJSON_AddStringToObject(o, "dtype", m->dtype);
    cJSON_AddNumberToObject(o, "parameters", (double)m->parameters);
    cJSON_AddNumberToObject(o, "bytes", (double)m->bytes);
    cJSON_AddNumberToObject(o, "layers", m->n_layer);
    cJSON_AddNumberToObject(o, "q_heads", m->n_head);
    cJSON_AddNumberToObject(o, "kv_heads", m->n_kv_head);
    cJSON_AddNumberToObject(o, "head_dim", m->head_dim);
    cJSON_AddNumberToObject(o, "context", m->context);
    cJSON_AddNumberToObject(o, "kv_bytes_per_token", (double)m->kv_bytes_per_token);
    cJSON_AddBoolToObject(o, "usable", m->usable);
    cJSON_AddStringToObject(o, "reason", m->reason);
    return o;
}

/* Columns are padded by bytes: names outside ASCII shift the line a little, nothing more. */
static void print_entry(const struct model_entry *m)
{
    char name[256], path[2048], size[32], reason[1024];
    cli_clean(m->name, name, sizeof name);
    cli_clean(m->path, path, sizeof path);
    cli_clean(m->reason, reason, sizeof reason);
    kvmem_text((double)m->bytes, size, sizeof size);
    printf("%-40s %-10s %-8s %-5s %8s  %s\n", name, m->format, m->family, m->dtype, size, path);
    if (!m->usable)
        printf("  cannot be used: %s\n", reason);
    else if (m->reason[0])
        printf("  %s\n", reason);
}

int cli_models(struct cli *c, struct err *e)
{
    struct model_entry *m;
    size_t n;
    int rc = models_scan(&m, &n, NULL, 0, e);
    if (rc)
        return rc;
    if (c->o.json) {
        cJSON *root = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(root, "models");
        for (size_t i = 0; i < n; i++)
            cJSON_AddItemToArray(list, entry_json(&m[i]));
        rc = cli_print_json(root, e);
    } else {
        for (size_t i = 0; i < n; i++)
            print_entry(&m[i]);
        if (!n)
            cli_say(c, "no models found; ./run fetches the default one");
    }
    models_free(m, n);
    return rc;
}

static void add_conversion(cJSON *o, const struct rankplan *p)
{
    cJSON *v = cJSON_AddObjectToObject(o, "conversion");
    cJSON *layers = cJSON_AddArrayToObject(v, "layers");
    cli_json_add(v, "kept", rankplan_kept(p));
    cli_json_add(v, "kv_bytes_per_token", (double)rankplan_numbers(p) * 2);
    for (int l = 0; l < p->model.n_layer; l++) {
        cJSON *layer = cJSON_CreateObject();
        cJSON_AddNumberToObject(layer, "rank", p->layer[l].kv_lora_rank);
        cJSON_AddNumberToObject(layer, "rope", p->layer[l].qk_rope_head_dim);
        cJSON_AddItemToArray(layers, layer);
    }
}

/* The plan of a conversion, or one such as --layout stock would make: what the model itself allows.
 */
static bool stock_plan(const struct model_info *i, const struct rankplan *of, struct rankplan *p)
{
    struct err ignored;
    if (!i->convertible)
        return false;
    if (of)
        return rankplan_copy(p, of, &ignored) == OK;
    if (rankplan_init(p, &i->plan_model, &ignored))
        return false;
    p->layout = LAYOUT_STOCK;
    int rope = rankplan_auto_rope(&i->plan_model, LAYOUT_STOCK, 0.5);
    if (rankplan_uniform(p, 1, rope, &ignored) == OK &&
        rankplan_spread(p, rankplan_numbers_gqa(&i->plan_model) / 2, &ignored) == OK)
        return true;
    rankplan_done(p);
    return false;
}

static void add_engines(cJSON *o, const struct model_info *i, const struct rankplan *of)
{
    static const char *const fits[] = {"no", "nearly", "yes"};
    cJSON *list = cJSON_AddArrayToObject(o, "loads_in");
    struct rankplan p;
    if (!stock_plan(i, of, &p))
        return;
    for (int t = 0; t < STOCK_ENGINES; t++) {
        struct stock_verdict v;
        cJSON *e = cJSON_CreateObject();
        stock_check(&i->stock, &p, (enum stock_engine)t, &v);
        cJSON_AddStringToObject(e, "engine", stock_key((enum stock_engine)t));
        cJSON_AddStringToObject(e, "fit", fits[v.fit]);
        cJSON_AddStringToObject(e, "text", v.text);
        if (v.fit != STOCK_NO && of) {
            cJSON_AddNumberToObject(e, "kv_lora_rank", v.kv_lora_rank);
            cJSON_AddNumberToObject(e, "qk_rope_head_dim", v.qk_rope_head_dim);
            cli_json_add(e, "kept", v.kept);
        }
        cJSON_AddItemToArray(list, e);
    }
    rankplan_done(&p);
}

static void print_engines(const struct model_info *i, const struct rankplan *of)
{
    struct rankplan p;
    if (!stock_plan(i, of, &p))
        return;
    for (int t = 0; t < STOCK_ENGINES; t++) {
        struct stock_verdict v;
        stock_check(&i->stock, &p, (enum stock_engine)t, &v);
        /* Without a conversion the sizes are nobody's choice yet. */
        const char *text = v.fit == STOCK_NO || of ? v.text
                           : v.fit == STOCK_NEAR   ? "scaled frequencies approximated"
                                                   : "";
        printf("%-12s %-12s %s%s%s\n",
               t    ? ""
               : of ? "loads in"
                    : "could load in",
               stock_name((enum stock_engine)t), v.fit != STOCK_NO ? "yes" : "no",
               text[0] ? ": " : "", text);
    }
    rankplan_done(&p);
}

static cJSON *info_json(const struct model_info *i, const struct rankplan *p)
{
    cJSON *o = cJSON_CreateObject(), *reasons;
    cJSON_AddStringToObject(o, "name", i->name);
    cJSON_AddStringToObject(o, "path", i->path);
    cJSON_AddStringToObject(o, "format", i->format);
    cJSON_AddStringToObject(o, "family", i->family);
    cJSON_AddNumberToObject(o, "layers", i->n_layer);
    cJSON_AddNumberToObject(o, "hidden", i->hidden);
    cJSON_AddNumberToObject(o, "q_heads", i->n_head);
    cJSON_AddNumberToObject(o, "kv_heads", i->n_kv_head);
    cJSON_AddNumberToObject(o, "head_dim", i->head_dim);
    cJSON_AddNumberToObject(o, "ffn", i->ffn);
    cJSON_AddNumberToObject(o, "vocab", i->vocab);
    cJSON_AddNumberToObject(o, "context", i->context);
    cJSON_AddNumberToObject(o, "rope_theta", i->rope_theta);
    cJSON_AddStringToObject(o, "dtype", i->dtype);
    cJSON_AddNumberToObject(o, "parameters", (double)i->parameters);
    cJSON_AddNumberToObject(o, "file_bytes", (double)i->file_bytes);
    cJSON_AddNumberToObject(o, "kv_bytes_per_token", (double)i->kv_bytes_per_token);
    cJSON_AddStringToObject(o, "fingerprint", i->plan_model.fingerprint);
    cJSON_AddBoolToObject(o, "convertible", i->convertible);
    reasons = cJSON_AddArrayToObject(o, "reasons");
    if (i->reason[0])
        cJSON_AddItemToArray(reasons, cJSON_CreateString(i->reason));
    if (i->text_reason[0])
        cJSON_AddItemToArray(reasons, cJSON_CreateString(i->text_reason));
    if (i->skipped_layers)
        cJSON_AddNumberToObject(o, "skipped_layers", i->skipped_layers);
    add_engines(o, i, p);
    if (p)
        add_conversion(o, p);
    return o;
}

static void print_info(const struct model_info *i, const struct rankplan *p)
{
    char name[256], path[2048], bytes[32], kv[32];
    cli_clean(i->name, name, sizeof name);
    cli_clean(i->path, path, sizeof path);
    kvmem_text((double)i->file_bytes, bytes, sizeof bytes);
    kvmem_text((double)i->kv_bytes_per_token, kv, sizeof kv);
    printf("model        %s (%s, %s %s, %s)\n", name, i->family, i->format, i->dtype, bytes);
    printf("path         %s\n", path);
    printf("shape        %d layers, hidden %d, %d query and %d KV heads of %d, vocabulary %d\n",
           i->n_layer, i->hidden, i->n_head, i->n_kv_head, i->head_dim, i->vocab);
    printf("context      %d tokens, rope theta %g\n", i->context, i->rope_theta);
    printf("parameters   %.1f M\n", (double)i->parameters / 1e6);
    printf("KV cache     %s a token (F16)", kv);
    kvmem_text((double)i->kv_bytes_per_token * i->context, kv, sizeof kv);
    printf(", %s at %d tokens\n", kv, i->context);
    printf("convertible  %s%s%s\n", i->convertible ? "yes" : "no", i->reason[0] ? ": " : "",
           i->reason);
    if (i->text_reason[0])
        printf("text         none: %s\n", i->text_reason);
    if (i->skipped_layers)
        printf("left out     %d multi-token prediction layer%s of the file\n", i->skipped_layers,
               i->skipped_layers == 1 ? "" : "s");
    print_engines(i, p);
    if (!p)
        return;
    kvmem_text((double)rankplan_numbers(p) * 2, kv, sizeof kv);
    printf("converted    keeps %.1f %%: %s a token\n", 100 * rankplan_kept(p), kv);
}

static int print_unsupported(struct cli *c, struct err *e)
{
    char text[2048];
    if (!c->o.json) {
        cli_clean(e->text, text, sizeof text);
        printf("convertible  no: %s\n", text);
        return OK;
    }
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "path", c->arg[0] ? c->arg[0] : "");
    cJSON_AddBoolToObject(o, "usable", false);
    cJSON_AddBoolToObject(o, "convertible", false);
    cJSON_AddItemToArray(cJSON_AddArrayToObject(o, "reasons"), cJSON_CreateString(e->text));
    return cli_print_json(o, e);
}

int cli_inspect(struct cli *c, struct err *e)
{
    struct workspace *w;
    struct model_info info;
    struct rankplan plan;
    int rc = cli_open(c, c->arg[0], CLI_FAST, &w, e);
    if (rc ==
        ERR_UNSUPPORTED) /* a sound file of something that cannot be run: that is the answer */
        return print_unsupported(c, e);
    if (rc)
        return rc;
    workspace_info(w, &info);
    bool converted = workspace_conversion(w, &plan, NULL, e);
    if (c->o.json)
        rc = cli_print_json(info_json(&info, converted ? &plan : NULL), e);
    else
        print_info(&info, converted ? &plan : NULL);
    if (converted)
        rankplan_done(&plan);
    workspace_free(w);
    return rc;
}

int cli_paths(struct cli *c, struct err *e)
{
    struct paths p;
    int rc = paths_init(&p, e);
    if (rc)
        return rc;
    char *settings = settings_path(p.config);
    const char *const name[] = {"config", "data", "state", "cache", "settings"};
    const char *const value[] = {p.config, p.data, p.state, p.cache, settings ? settings : ""};
    cJSON *o = cJSON_CreateObject();
    for (int i = 0; i < 5; i++) {
        cJSON_AddStringToObject(o, name[i], value[i]);
        if (!c->o.json)
            printf("%-8s %s\n", name[i], value[i]);
    }
    if (c->o.json)
        rc = cli_print_json(o, e);
    else
        cJSON_Delete(o);
    free(settings);
    paths_done(&p);
    return rc;
}
