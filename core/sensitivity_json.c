/* Measured sensitivities as JSON. Refuses files whose shape is not the plan's. */
#include "core/sensitivity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

#define SENSITIVITY_VERSION 1
#define SENSITIVITY_MAX_BYTES ((size_t)64 << 20)

static cJSON *to_json(const struct sensitivity *s)
{
    cJSON *root = cJSON_CreateObject(), *list, *item;
    bool ok = root && cJSON_AddNumberToObject(root, "mlathe_sensitivity", SENSITIVITY_VERSION) &&
              cJSON_AddNumberToObject(root, "tokens", (double)s->tokens) &&
              cJSON_AddNumberToObject(root, "refit", s->refit) &&
              cJSON_AddItemToObject(root, "rope", cJSON_CreateIntArray(s->rope_dim, s->n_layer));
    list = ok ? cJSON_AddArrayToObject(root, "energy") : NULL;
    ok = list != NULL;
    for (int l = 0; l < s->n_layer && ok; l++)
        ok = cJSON_AddItemToArray(
            list, cJSON_CreateDoubleArray(s->energy + (size_t)l * (SENSITIVITY_GRID + 1),
                                          SENSITIVITY_GRID + 1));
    list = ok ? cJSON_AddArrayToObject(root, "points") : NULL;
    ok = list != NULL;
    for (int i = 0; i < s->n_point && ok; i++) {
        const struct sensitivity_point *p = &s->point[i];
        item = cJSON_CreateObject();
        ok = cJSON_AddItemToArray(list, item) && cJSON_AddNumberToObject(item, "rank", p->rank) &&
             cJSON_AddNumberToObject(item, "total", p->total) &&
             cJSON_AddItemToObject(item, "layers", cJSON_CreateDoubleArray(p->kl, s->n_layer));
    }
    if (!ok) {
        cJSON_Delete(root);
        return NULL;
    }
    return root;
}

int sensitivity_save(const struct sensitivity *s, const char *path, struct err *e)
{
    cJSON *json = to_json(s);
    char *text = json ? json_text(json, false) : NULL;
    cJSON_Delete(json);
    int rc = text ? file_save(path, text, strlen(text), e)
                  : err_nomem(e, (size_t)s->n_layer * 1024, "sensitivities");
    free(text);
    return rc;
}

/* obj[key], or obj itself (key NULL): n finite numbers ≥ 0. */
static int read_list(const cJSON *obj, const char *key, double *out, int n, const char *where,
                     struct err *e)
{
    const cJSON *item = key ? json_get(obj, key) : obj;
    int i = 0;
    if (cJSON_IsArray(item))
        for (item = item->child; item && i < n && cJSON_IsNumber(item) &&
                                 isfinite(item->valuedouble) && item->valuedouble >= 0;
             item = item->next)
            out[i++] = item->valuedouble;
    if (item || i < n)
        return err_set(e, ERR_FORMAT, "%s: \"%s\" is no list of %d numbers", where,
                       key ? key : "energy", n);
    return OK;
}

static int read_point(struct sensitivity *s, const cJSON *item, const char *where, struct err *e)
{
    long long rank;
    double total;
    int rc = json_int(item, "rank", 1, s->n, &rank, where, e);
    if (!rc)
        rc = json_num(item, "total", &total, where, e);
    if (!rc && !(total >= 0))
        rc = err_set(e, ERR_FORMAT, "%s: a total of %g", where, total);
    if (rc)
        return rc;
    struct sensitivity_point *p = sensitivity_point(s, (int)rank);
    if (!p)
        return err_set(e, ERR_FORMAT, "%s: too many points", where);
    p->total = total;
    return read_list(item, "layers", p->kl, s->n_layer, where, e);
}

static int read_all(struct sensitivity *s, const cJSON *root, const char *where, struct err *e)
{
    long long version;
    const cJSON *list = json_get(root, "energy"), *item;
    int l = 0, rc = json_int(root, "mlathe_sensitivity", SENSITIVITY_VERSION, SENSITIVITY_VERSION,
                             &version, where, e);
    if (!rc)
        rc = json_int(root, "tokens", 1, 1LL << 40, &s->tokens, where, e);
    if (!rc)
        rc = json_num_opt(root, "refit", &s->refit, where, e);
    if (!rc && !(s->refit >= 0 && s->refit < 10))
        rc = err_set(e, ERR_FORMAT, "%s: \"refit\" is %g", where, s->refit);
    if (!rc && cJSON_GetArraySize(list) != s->n_layer)
        rc = err_set(e, ERR_MISMATCH, "%s: measured for another model", where);
    for (item = rc ? NULL : list->child; item && !rc; item = item->next, l++)
        rc = read_list(item, NULL, s->energy + (size_t)l * (SENSITIVITY_GRID + 1),
                       SENSITIVITY_GRID + 1, where, e);
    if (rc)
        return rc;
    double *rope = mem_calloc((size_t)s->n_layer, sizeof *rope);
    rc = rope ? read_list(root, "rope", rope, s->n_layer, where, e)
              : err_nomem(e, (size_t)s->n_layer * sizeof *rope, "sensitivities");
    for (l = 0; l < s->n_layer && !rc; l++)
        if (rope[l] != s->rope_dim[l])
            rc = err_set(e, ERR_MISMATCH, "%s: measured for other rope widths", where);
    free(rope);
    list = json_get(root, "points");
    for (item = cJSON_IsArray(list) ? list->child : NULL; item && !rc; item = item->next)
        rc = read_point(s, item, where, e);
    return rc;
}

int sensitivity_load(struct sensitivity *s, const struct rankplan *plan, const char *path,
                     struct err *e)
{
    cJSON *json;
    int rc = json_read_file(&json, path, SENSITIVITY_MAX_BYTES, e);
    *s = (struct sensitivity){0};
    if (rc)
        return rc;
    rc = sensitivity_init(s, plan, e);
    if (!rc)
        rc = read_all(s, json, path, e);
    if (rc)
        sensitivity_done(s);
    cJSON_Delete(json);
    return rc;
}
