/* A plan as JSON. Writing starts from the document that was read, so keys of other programs, at
 * any level that we write, survive. Refuses a plan whose model differs, naming the field. */
#include "core/rankplan.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/kvmem.h"

#define PLAN_VERSION 1
#define PLAN_MAX_BYTES ((size_t)64 << 20)
#define PLAN_MAX_WHOLE (1LL << 53) /* the largest whole number that JSON carries exactly */

static const char *const method_names[] = {"mlathe", "transmla"};
static const char *const layout_names[] = {"own", "shared", "stock"};

const char *plan_layout_name(enum plan_layout layout)
{
    return layout_names[layout];
}

/* Sets or replaces obj[key]; takes item. false: out of memory. */
static bool put(cJSON *obj, const char *key, cJSON *item)
{
    bool ok = item && (cJSON_GetObjectItemCaseSensitive(obj, key)
                           ? cJSON_ReplaceItemInObjectCaseSensitive(obj, key, item)
                           : cJSON_AddItemToObject(obj, key, item));
    if (!ok)
        cJSON_Delete(item);
    return ok;
}

static bool put_text(cJSON *obj, const char *key, const char *text)
{
    return put(obj, key, cJSON_CreateString(text));
}

static bool put_number(cJSON *obj, const char *key, double v)
{
    return put(obj, key, isfinite(v) ? cJSON_CreateNumber(v) : cJSON_CreateNull());
}

/* obj[key] as an object, made when it is something else. */
static cJSON *sub_object(cJSON *obj, const char *key)
{
    cJSON *item = cJSON_GetObjectItemCaseSensitive(obj, key);
    if (cJSON_IsObject(item))
        return item;
    item = cJSON_CreateObject();
    return put(obj, key, item) ? item : NULL;
}

static bool write_model(cJSON *root, const struct plan_model *m)
{
    cJSON *o = sub_object(root, "model");
    return o && put_text(o, "name", m->name) && put_text(o, "family", m->family) &&
           put_text(o, "fingerprint", m->fingerprint) && put_number(o, "layers", m->n_layer) &&
           put_number(o, "q_heads", m->n_head) && put_number(o, "kv_heads", m->n_kv_head) &&
           put_number(o, "head_dim", m->head_dim);
}

/* Only where something is left out, so that an ordinary plan stays plain. */
static bool write_steps(cJSON *method, unsigned without)
{
    cJSON_DeleteItemFromObjectCaseSensitive(method, "without");
    if (!without)
        return true;
    cJSON *list = cJSON_AddArrayToObject(method, "without");
    for (int i = 0; list && i < PLAN_STEPS; i++)
        if (without & 1u << i)
            cJSON_AddItemToArray(list, cJSON_CreateString(plan_step_name(i)));
    return list != NULL;
}

static bool write_knob(cJSON *method, const char *key, double v)
{
    cJSON_DeleteItemFromObjectCaseSensitive(method, key);
    return v == 0 || put_number(method, key, v);
}

static int read_steps(const cJSON *method, unsigned *without, const char *where, struct err *e)
{
    const cJSON *list = json_get(method, "without");
    if (list && !cJSON_IsArray(list))
        return err_set(e, ERR_FORMAT, "%s: method.without must be a list", where);
    for (const cJSON *v = list ? list->child : NULL; v; v = v->next) {
        unsigned one;
        int rc = plan_steps_parse(cJSON_IsString(v) ? v->valuestring : "?", &one, e);
        if (rc)
            return err_set(e, ERR_UNSUPPORTED, "%s: method.without names an unknown step", where);
        *without |= one;
    }
    return OK;
}

static bool write_method(cJSON *root, const struct rankplan *p)
{
    cJSON *o = sub_object(root, "method");
    if (!o || !put_text(o, "name", method_names[p->method]) ||
        !put_text(o, "layout", layout_names[p->layout]))
        return false;
    return write_steps(o, p->without) && write_knob(o, "rounds", p->rounds) &&
           write_knob(o, "stride", p->stride) && write_knob(o, "balance", p->balance) &&
           write_knob(o, "damping", p->damping) && write_knob(o, "refit_ffn", p->refit_ffn) &&
           (p->freqfold > 0 ? put_number(o, "freqfold", p->freqfold)
                            : put_text(o, "freqfold", "auto"));
}

static bool write_calibration(cJSON *root, const struct rankplan *p)
{
    if (!p->calibration.source[0])
        return true;
    cJSON *o = sub_object(root, "calibration");
    return o && put_text(o, "source", p->calibration.source) &&
           put_number(o, "tokens", (double)p->calibration.tokens) &&
           put_number(o, "seed", (double)p->calibration.seed) &&
           put_text(o, "sha256", p->calibration.sha256);
}

static bool write_layers(cJSON *root, const struct rankplan *p)
{
    cJSON *list = cJSON_GetObjectItemCaseSensitive(root, "layers"), *item;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != p->model.n_layer) {
        list = cJSON_CreateArray();
        if (!put(root, "layers", list))
            return false;
        for (int l = 0; l < p->model.n_layer; l++) {
            item = cJSON_CreateObject();
            if (!item || !cJSON_AddItemToArray(list, item)) {
                cJSON_Delete(item);
                return false;
            }
        }
    }
    item = list->child;
    for (int l = 0; l < p->model.n_layer; l++, item = item->next)
        if (!put_number(item, "kv_lora_rank", p->layer[l].kv_lora_rank) ||
            !put_number(item, "qk_rope_head_dim", p->layer[l].qk_rope_head_dim))
            return false;
    return true;
}

static bool write_outcome(cJSON *root, const struct rankplan *p)
{
    cJSON *budget = sub_object(root, "budget"), *prediction = sub_object(root, "prediction");
    if (!budget || !prediction)
        return false;
    /* The wish, or what an edited plan comes to. */
    double kept = p->budget_kept > 0 ? p->budget_kept : rankplan_kept(p);
    return put_number(budget, "kept", kept) && put_number(prediction, "kl", p->predicted_kl) &&
           put_number(prediction, "kept", rankplan_kept(p)) &&
           put_number(prediction, "kv_bytes_per_token",
                      (double)rankplan_numbers(p) * (double)dtype_bytes(DTYPE_F16, 1));
}

int rankplan_to_json(const struct rankplan *p, cJSON **out, struct err *e)
{
    cJSON *root = p->extra ? cJSON_Duplicate(p->extra, true) : cJSON_CreateObject();
    *out = NULL;
    if (!root || !put_number(root, "mlathe_plan", PLAN_VERSION) || !write_model(root, &p->model) ||
        !write_method(root, p) || !write_calibration(root, p) || !write_layers(root, p) ||
        !write_outcome(root, p)) {
        cJSON_Delete(root);
        return err_nomem(e, (size_t)p->model.n_layer * 128, "the plan's JSON");
    }
    *out = root;
    return OK;
}

static int differs(const char *where, const char *field, const char *plan, const char *model,
                   struct err *e)
{
    return err_set(e, ERR_MISMATCH,
                   "%s: this plan is for another model: %s is \"%.80s\", the model's is \"%.80s\" "
                   "(mlathe plan makes one for this)",
                   where, field, plan, model);
}

static int check_text(const cJSON *o, const char *key, const char *field, const char *mine,
                      const char *where, struct err *e)
{
    const char *text = json_str_or(o, key, "");
    return text[0] && mine[0] && strcmp(text, mine) ? differs(where, field, text, mine, e) : OK;
}

static int check_number(const cJSON *o, const char *key, const char *field, int mine,
                        const char *where, struct err *e)
{
    char a[32], b[32];
    long long v = mine;
    int rc = json_int_opt(o, key, 0, INT_MAX, &v, where, e);
    if (rc || v == mine)
        return rc;
    snprintf(a, sizeof a, "%lld", v);
    snprintf(b, sizeof b, "%d", mine);
    return differs(where, field, a, b, e);
}

/* Shape first: it says most. A name decides only where no fingerprint does (files get renamed). */
static int check_model(const cJSON *root, const struct plan_model *m, const char *where,
                       struct err *e)
{
    const cJSON *o = json_get(root, "model");
    if (!cJSON_IsObject(o))
        return err_set(e, ERR_FORMAT, "%s: key \"model\" is missing or no object", where);
    int rc = check_text(o, "family", "model.family", m->family, where, e);
    if (!rc)
        rc = check_number(o, "layers", "model.layers", m->n_layer, where, e);
    if (!rc)
        rc = check_number(o, "q_heads", "model.q_heads", m->n_head, where, e);
    if (!rc)
        rc = check_number(o, "kv_heads", "model.kv_heads", m->n_kv_head, where, e);
    if (!rc)
        rc = check_number(o, "head_dim", "model.head_dim", m->head_dim, where, e);
    if (rc)
        return rc;
    if (json_str_or(o, "fingerprint", "")[0] && m->fingerprint[0])
        return check_text(o, "fingerprint", "model.fingerprint", m->fingerprint, where, e);
    return check_text(o, "name", "model.name", m->name, where, e);
}

/* *out = the place of obj[key] in names; left alone when absent. */
static int read_name(const cJSON *obj, const char *key, const char *const *names, int n, int *out,
                     const char *where, struct err *e)
{
    const char *text;
    char known[128] = "";
    if (!json_get(obj, key))
        return OK;
    int rc = json_str(obj, key, &text, where, e);
    if (rc)
        return rc;
    for (int i = 0; i < n; i++) {
        if (!strcmp(text, names[i])) {
            *out = i;
            return OK;
        }
        size_t at = strlen(known);
        snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", names[i]);
    }
    return err_set(e, ERR_UNSUPPORTED, "%s: %s \"%.40s\" is not known: it may be %s", where, key,
                   text, known);
}

static int read_knobs(struct rankplan *p, const cJSON *o, const char *where, struct err *e)
{
    long long rounds = 0, stride = 0, ffn = 0;
    int rc = json_int_opt(o, "rounds", 0, PLAN_MAX_ROUNDS, &rounds, where, e);
    if (!rc)
        rc = json_int_opt(o, "stride", 0, p->model.head_dim, &stride, where, e);
    if (!rc)
        rc = json_int_opt(o, "refit_ffn", 0, 1, &ffn, where, e);
    if (!rc)
        rc = json_num_opt(o, "balance", &p->balance, where, e);
    if (!rc)
        rc = json_num_opt(o, "damping", &p->damping, where, e);
    if (!rc && !(p->balance >= 0 && p->damping >= 0))
        rc = err_set(e, ERR_FORMAT, "%s: method.balance and damping must not be below 0", where);
    p->refit_ffn = ffn;
    p->rounds = (int)rounds;
    p->stride = (int)stride;
    return rc;
}

static int read_method(struct rankplan *p, const cJSON *root, const char *where, struct err *e)
{
    const cJSON *o = json_get(root, "method");
    int method = METHOD_MLATHE, layout = LAYOUT_OWN;
    long long fold = 0;
    if (o && !cJSON_IsObject(o))
        return err_set(e, ERR_FORMAT, "%s: \"method\" must be an object", where);
    int rc = read_name(o, "name", method_names, 2, &method, where, e);
    if (!rc)
        rc = read_name(o, "layout", layout_names, 3, &layout, where, e);
    if (!rc && strcmp(json_str_or(o, "freqfold", ""), "auto"))
        rc = json_int_opt(o, "freqfold", 0, p->model.head_dim, &fold, where, e);
    if (!rc)
        rc = read_steps(o, &p->without, where, e);
    if (!rc)
        rc = read_knobs(p, o, where, e);
    p->method = (enum plan_method)method;
    p->layout = (enum plan_layout)layout;
    p->freqfold = (int)fold;
    return rc;
}

static int read_notes(struct rankplan *p, const cJSON *root, const char *where, struct err *e)
{
    const cJSON *o = json_get(root, "calibration");
    snprintf(p->calibration.source, sizeof p->calibration.source, "%s",
             json_str_or(o, "source", ""));
    snprintf(p->calibration.sha256, sizeof p->calibration.sha256, "%s",
             json_str_or(o, "sha256", ""));
    int rc = json_int_opt(o, "tokens", 0, PLAN_MAX_WHOLE, &p->calibration.tokens, where, e);
    if (!rc)
        rc = json_int_opt(o, "seed", -PLAN_MAX_WHOLE, PLAN_MAX_WHOLE, &p->calibration.seed, where,
                          e);
    if (!rc)
        rc = json_num_opt(json_get(root, "budget"), "kept", &p->budget_kept, where, e);
    if (!rc)
        rc = json_num_opt(json_get(root, "prediction"), "kl", &p->predicted_kl, where, e);
    return rc;
}

static int read_layers(struct rankplan *p, const cJSON *root, const char *where, struct err *e)
{
    const cJSON *list = json_get(root, "layers"), *item;
    char place[512];
    int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : -1, l = 0;
    int max_rope = p->model.head_dim * (p->layout == LAYOUT_STOCK ? 1 : p->model.n_kv_head);
    if (n < 0)
        return err_set(e, ERR_FORMAT, "%s: key \"layers\" is missing or no list", where);
    if (n != p->model.n_layer)
        return err_set(
            e, ERR_MISMATCH,
            "%s: this plan is for another model: layers has %d entries, the model has %d "
            "layers (mlathe plan makes one for this)",
            where, n, p->model.n_layer);
    for (item = list->child; item; item = item->next, l++) {
        long long rank, rope;
        snprintf(place, sizeof place, "%.400s: layer %d", where, l);
        int rc = json_int(item, "kv_lora_rank", 1, rankplan_max_rank(&p->model), &rank, place, e);
        if (!rc)
            rc = json_int(item, "qk_rope_head_dim", 2, max_rope, &rope, place, e);
        if (rc)
            return rc;
        if (rope % 2)
            return err_set(e, ERR_FORMAT, "%s: \"qk_rope_head_dim\" must be even", place);
        p->layer[l] = (struct plan_layer){(int)rank, (int)rope};
    }
    return OK;
}

int rankplan_from_json(struct rankplan *p, const struct plan_model *m, const cJSON *json,
                       const char *where, struct err *e)
{
    long long version;
    int rc = rankplan_init(p, m, e);
    if (!rc && !cJSON_IsObject(json))
        rc = err_set(e, ERR_FORMAT, "%s: a plan is a JSON object", where);
    if (!rc)
        rc = json_int(json, "mlathe_plan", 1, INT_MAX, &version, where, e);
    if (!rc && version != PLAN_VERSION)
        rc = err_set(e, ERR_UNSUPPORTED, "%s: plan version %lld; this program reads version %d",
                     where, version, PLAN_VERSION);
    if (!rc)
        rc = check_model(json, m, where, e);
    if (!rc)
        rc = read_method(p, json, where, e);
    if (!rc)
        rc = read_layers(p, json, where, e);
    if (!rc)
        rc = read_notes(p, json, where, e);
    if (!rc && !(p->extra = cJSON_Duplicate(json, true)))
        rc = err_nomem(e, 4096, "the plan");
    if (rc)
        rankplan_done(p);
    return rc;
}

/* What stands at path may be replaced: nothing, an empty file, or a plan; never a model's weights.
 */
static int check_target(const char *path, struct err *e)
{
    struct file_map map;
    cJSON *json = NULL;
    if (!file_exists(path))
        return OK;
    int rc = file_map_open(&map, path, e);
    if (rc)
        return rc;
    bool ours = !map.size;
    file_map_close(&map);
    if (!ours && json_read_file(&json, path, PLAN_MAX_BYTES, NULL) == OK)
        ours = json_get(json, "mlathe_plan") != NULL;
    cJSON_Delete(json);
    return ours
               ? OK
               : err_set(e, ERR_ARG, "%s is there already and is no plan: give another name", path);
}

int rankplan_save(const struct rankplan *p, const char *path, struct err *e)
{
    cJSON *json;
    int rc = check_target(path, e);
    if (rc)
        return rc;
    rc = rankplan_to_json(p, &json, e);
    if (rc)
        return rc;
    char *text = json_text(json, true), *line = text ? mem_printf("%s\n", text) : NULL;
    cJSON_Delete(json);
    rc = line ? file_save(path, line, strlen(line), e) : err_nomem(e, 4096, "the plan's JSON");
    free(text);
    free(line);
    return rc;
}

int rankplan_load(struct rankplan *p, const struct plan_model *m, const char *path, struct err *e)
{
    cJSON *json;
    *p = (struct rankplan){0};
    int rc = json_read_file(&json, path, PLAN_MAX_BYTES, e);
    if (rc)
        return rc;
    rc = rankplan_from_json(p, m, json, path, e);
    cJSON_Delete(json);
    return rc;
}
