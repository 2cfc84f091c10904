/* report: a conversion folder as an HTML page. The original is opened for its spectra only; a
 * report without it says so. Refuses a folder that is no conversion. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/paths.h"
#include "sessions/recall.h"
#include "ui/cli.h"
#include "ui/report.h"

#define MAX_DESCRIPTION ((size_t)64 << 20)
#define MAX_LAYERS 4096

static int read_description(const char *dir, cJSON **out, struct err *e)
{
    char *path = path_join(dir, "mlathe.json");
    long long version;
    if (!path)
        return err_nomem(e, 4096, "a path");
    int rc = file_exists(path) ? json_read_file(out, path, MAX_DESCRIPTION, e)
                               : err_set(e, ERR_ARG,
                                         "%s is no conversion folder: it has no "
                                         "mlathe.json; mlathe convert makes one",
                                         dir);
    if (!rc)
        rc = json_int(*out, "mlathe_conversion", 1, 1, &version, path, e);
    free(path);
    return rc;
}

/* The plan says what model it is for; the report is of the conversion as it stands. */
static int read_plan(struct report_source *s, struct err *e)
{
    const cJSON *json = json_get(s->description, "plan"), *m = json_get(json, "model");
    struct plan_model pm = {0};
    long long L = 0, H = 0, G = 0, d = 0;
    int rc = json_int(m, "layers", 1, MAX_LAYERS, &L, s->dir, e);
    if (!rc)
        rc = json_int(m, "q_heads", 1, 1 << 16, &H, s->dir, e);
    if (!rc)
        rc = json_int(m, "kv_heads", 1, 1 << 16, &G, s->dir, e);
    if (!rc)
        rc = json_int(m, "head_dim", 1, 1 << 16, &d, s->dir, e);
    if (rc)
        return rc;
    pm.n_layer = (int)L;
    pm.n_head = (int)H;
    pm.n_kv_head = (int)G;
    pm.head_dim = (int)d;
    snprintf(pm.name, sizeof pm.name, "%s", json_str_or(m, "name", "?"));
    snprintf(pm.family, sizeof pm.family, "%s", json_str_or(m, "family", "?"));
    snprintf(pm.fingerprint, sizeof pm.fingerprint, "%s", json_str_or(m, "fingerprint", ""));
    return rankplan_from_json(&s->plan, &pm, json, s->dir, e);
}

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = json_get(o, key);
    return cJSON_IsNumber(v) ? v->valuedouble : NAN;
}

static int read_layers(struct report_source *s, struct err *e)
{
    int n = s->plan.model.n_layer;
    const cJSON *list = json_get(json_get(s->description, "report"), "layers");
    const cJSON *v = list ? list->child : NULL;
    s->layer = mem_calloc((size_t)n, sizeof *s->layer);
    if (!s->layer)
        return err_nomem(e, (size_t)n * sizeof *s->layer, "the layers");
    for (int l = 0; l < n; l++, v = v ? v->next : NULL)
        s->layer[l] = (struct layer_report){.kv_lora_rank = s->plan.layer[l].kv_lora_rank,
                                            .qk_rope_head_dim = s->plan.layer[l].qk_rope_head_dim,
                                            .error = number(v, "error"),
                                            .loss_rope = number(v, "loss_rope"),
                                            .loss_layout = number(v, "loss_layout"),
                                            .loss_rank = number(v, "loss_rank"),
                                            .energy = number(v, "energy")};
    return OK;
}

static void free_spectra(struct report_source *s)
{
    for (int l = 0; s->spectra && l < s->plan.model.n_layer; l++)
        spectrum_done(&s->spectra[l]);
    free(s->spectra);
    s->spectra = NULL;
}

static int spectra_of(struct cli *c, struct workspace *w, struct report_source *s, struct err *e)
{
    struct model_info info;
    struct paths p = {0};
    int n = s->plan.model.n_layer;
    int *rope = mem_calloc((size_t)n, sizeof *rope);
    s->spectra = mem_calloc((size_t)n, sizeof *s->spectra);
    int rc = rope && s->spectra ? paths_init(&p, e) : err_nomem(e, 4096, "spectra");
    workspace_info(w, &info);
    if (!rc && strcmp(info.plan_model.fingerprint, s->plan.model.fingerprint) != 0)
        rc = err_set(e, ERR_MISMATCH, "%s is another model than the one that was converted",
                     info.path);
    /* Where the command line and where the screens keep them. */
    char *made = rc ? NULL : path_join(p.cache, "statistics");
    char *seen = rc ? NULL : path_join(p.cache, "calibration");
    const char *const dir[] = {made, seen};
    if (!rc && (!made || !seen))
        rc = err_nomem(e, 4096, "a path");
    for (int l = 0; !rc && l < n; l++)
        rope[l] = s->plan.layer[l].qk_rope_head_dim;
    if (!rc)
        rc = workspace_spectra_recalled(w, s->plan.calibration.sha256, dir, 2, s->plan.layout, rope,
                                        s->spectra, &c->progress, e);
    cli_progress_end(c);
    free(made);
    free(seen);
    free(rope);
    paths_done(&p);
    return rc;
}

/* Spectra need the original; without it the report goes on. Only being stopped stops it. */
static int read_spectra(struct cli *c, struct report_source *s, struct err *e)
{
    const char *path = json_str_or(json_get(s->description, "base"), "path", "");
    struct workspace *w = NULL;
    struct err why = {0};
    int rc = file_exists(path) ? cli_open(c, path, CLI_FAST, &w, &why)
                               : err_set(&why, ERR_IO, "the original model %s is not there", path);
    if (!rc)
        rc = spectra_of(c, w, s, &why);
    workspace_free(w);
    if (rc)
        free_spectra(s);
    if (rc == ERR_CANCELLED)
        return err_set(e, rc, "stopped");
    snprintf(s->no_spectra, sizeof s->no_spectra, "%.500s", why.text);
    return OK;
}

static cJSON *answer(const char *path, size_t bytes)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "file", path);
    cJSON_AddNumberToObject(o, "bytes", (double)bytes);
    return o;
}

int cli_report(struct cli *c, struct err *e)
{
    struct report_source s = {.dir = c->arg[0]};
    struct markup m = {0};
    cJSON *description = NULL;
    if (!c->arg[0] || !c->o.output)
        return cli_usage(e, "give a conversion folder and -o FILE, the page to write");
    int rc = read_description(s.dir, &description, e);
    s.description = description;
    if (!rc)
        rc = read_plan(&s, e);
    if (!rc)
        rc = read_layers(&s, e);
    if (!rc)
        rc = eval_list_load(&s.evaluations, s.dir, e);
    if (!rc)
        rc = read_spectra(c, &s, e);
    if (!rc) {
        report_html(&m, &s);
        rc = markup_save(&m, c->o.output, e);
    }
    if (!rc && c->o.json)
        rc = cli_print_json(answer(c->o.output, m.n), e);
    else if (!rc)
        cli_say(c, "wrote %s", c->o.output);
    markup_done(&m);
    free_spectra(&s);
    eval_list_free(&s.evaluations);
    free(s.layer);
    rankplan_done(&s.plan);
    cJSON_Delete(description);
    return rc;
}
