/* Plans as files: saved and loaded by name, or put away when another model's takes their place. */
#include "ui/app_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

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

void plan_ask_save(struct app *a)
{
    char text[1024];
    char *dir = path_join(a->paths.data, "plans");
    char *path = dir ? path_free(dir, a->ranks.plan.model.name, ".plan.json") : NULL;
    ask_open(a, REQ_SAVE_PLAN, "save the plan as", path ? app_path_text(path, text) : "", true);
    free(path);
    free(dir);
}

bool plan_answer_save(struct app *a, const char *text)
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
    return ok || ask_refuse(a, &e);
}

bool plan_answer_load(struct app *a, const char *text)
{
    struct err e = {0};
    struct rankplan next = {0};
    char *path = ask_expand_home(text);
    int rc = path ? rankplan_load(&next, &a->ranks.plan.model, path, &e) : ERR_NOMEM;
    free(path);
    if (rc)
        return ask_refuse(a, &e);
    if (plan_remember(a))
        plan_set(a, &next);
    else
        rankplan_done(&next);
    app_message(a, ROLE_GOOD, "plan loaded (z undoes)");
    return true;
}

char *plan_put_away(struct app *a, const struct rankplan *p)
{
    cJSON *json = NULL;
    char *dir = path_join(a->paths.data, "plans");
    char *path = dir ? path_free(dir, p->model.name, ".plan.json") : NULL;
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
    char *path = dir ? path_free(dir, json_str_or(model, "name", "model"), ".plan.json") : NULL;
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
