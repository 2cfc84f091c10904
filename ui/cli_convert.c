/* convert: plan, calibrate, solve, save. Refuses, before any work, an output that is something else
 * than a conversion folder or cannot be written. */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/kvmem.h"
#include "ui/cli_plan.h"
#include "sessions/clock.h"

static bool is_empty_dir(const char *path)
{
    DIR *d = opendir(path);
    int entries = 0;
    if (!d)
        return false;
    while (entries < 3 && readdir(d))
        entries++;
    closedir(d);
    return entries <= 2; /* . and .. */
}

/* The nearest folder that exists must be writable. */
static int check_writable(const char *path, struct err *e)
{
    char *dir = mem_strdup(path);
    int rc = dir ? OK : err_nomem(e, strlen(path), "a path");
    while (!rc && !file_exists(dir)) {
        char *slash = strrchr(dir, '/');
        if (!slash || slash == dir) {
            strcpy(dir, slash ? "/" : ".");
            break;
        }
        *slash = 0;
    }
    if (!rc && !file_is_dir(dir))
        rc = err_set(e, ERR_IO, "%s: %s is no folder", path, dir);
    if (!rc && access(dir, W_OK))
        rc = err_errno(e, "%s: cannot write into %s", path, dir);
    free(dir);
    return rc;
}

int cli_check_folder(const char *path, struct err *e)
{
    char *mark = path_join(path, "mlathe.json");
    if (!mark)
        return err_nomem(e, strlen(path), "a path");
    bool conversion = file_exists(mark);
    free(mark);
    if (!path[0])
        return cli_usage(e, "-o needs a folder's name");
    if (file_exists(path) && !file_is_dir(path))
        return err_set(e, ERR_IO, "%s is a file: give a folder's name", path);
    if (file_is_dir(path) && !conversion && !is_empty_dir(path))
        return err_set(e, ERR_IO,
                       "%s is a folder that mlathe did not write: give another name (nothing was "
                       "changed)",
                       path);
    return check_writable(path, e);
}

static int get_plan(struct cli *c, struct workspace *w, struct rankplan *plan, struct err *e)
{
    const struct cli_options *o = &c->o;
    struct model_info info;
    if (!o->plan)
        return cli_make_plan(c, w, plan, e);
    if (o->kept || o->bytes_per_token || o->fit || o->rank || o->rope || o->method || o->layout ||
        o->alloc || o->preset || cli_recipe_given(o))
        return cli_usage(e, "--plan says ranks, rope, method and layout: leave those options out");
    workspace_info(w, &info);
    int rc = rankplan_load(plan, &info.plan_model, o->plan, e);
    if (rc)
        return rc;
    rc = cli_check_engine(c, &info, plan, e);
    if (rc)
        rankplan_done(plan);
    return rc;
}

static void on_layer(void *user, int layer, const struct layer_report *r)
{
    struct cli *c = user;
    if (c->log)
        fprintf(c->log, "layer %d: rank %d rope %d error %.4g\n", layer, r->kv_lora_rank,
                r->qk_rope_head_dim, r->error);
}

static cJSON *report_json(const struct conversion_report *r, const struct rankplan *p,
                          const char *dir, double seconds)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "path", dir);
    cJSON_AddStringToObject(o, "method", p->method == METHOD_TRANSMLA ? "transmla" : "mlathe");
    cJSON_AddStringToObject(o, "layout", plan_layout_name(p->layout));
    cli_json_add(o, "kept", r->kept);
    cJSON_AddNumberToObject(o, "kv_bytes_per_token_before", (double)r->kv_bytes_before);
    cJSON_AddNumberToObject(o, "kv_bytes_per_token_after", (double)r->kv_bytes_after);
    cli_json_add(o, "seconds", seconds);
    cli_json_add(o, "seconds_calibrate", r->seconds_calibrate);
    cli_json_add(o, "seconds_solve", r->seconds_solve);
    cli_json_add(o, "seconds_refit", r->seconds_refit);
    cJSON *foretold = cJSON_AddObjectToObject(o, "prediction");
    cli_json_add(foretold, "kl", p->predicted_kl);
    cli_json_add(foretold, "kl_measured", r->kl_held); /* on text held back from calibration */
    cli_json_add(foretold, "error", p->predicted_kl / r->kl_held - 1);
    cJSON *list = cJSON_AddArrayToObject(o, "layers");
    for (int i = 0; i < r->n_layer; i++) {
        const struct layer_report *l = &r->layer[i];
        cJSON *layer = cJSON_CreateObject(), *loss;
        cJSON_AddNumberToObject(layer, "rank", l->kv_lora_rank);
        cJSON_AddNumberToObject(layer, "rope", l->qk_rope_head_dim);
        cli_json_add(layer, "error", l->error);
        cli_json_add(layer, "energy", l->energy);
        loss = cJSON_AddObjectToObject(layer, "loss");
        cli_json_add(loss, "rope", l->loss_rope);
        cli_json_add(loss, "layout", l->loss_layout); /* a part of rope */
        cli_json_add(loss, "rank", l->loss_rank);
        cJSON_AddItemToArray(list, layer);
    }
    return o;
}

static void print_report(const struct conversion_report *r, const struct rankplan *p,
                         const char *dir, double seconds)
{
    char before[32], after[32];
    kvmem_text((double)r->kv_bytes_before, before, sizeof before);
    kvmem_text((double)r->kv_bytes_after, after, sizeof after);
    printf("layer  rank  rope     error   of it rope   (layout)    and rank    energy\n");
    for (int i = 0; i < r->n_layer; i++) {
        const struct layer_report *l = &r->layer[i];
        printf("%5d %5d %5d  %8.5f     %8.5f   %8.5f    %8.5f  %7.3f %%\n", i, l->kv_lora_rank,
               l->qk_rope_head_dim, l->error, l->loss_rope, l->loss_layout, l->loss_rank,
               100 * l->energy);
    }
    printf("kept %.1f %% of the KV cache: %s a token instead of %s; %.0f s\n", 100 * r->kept, after,
           before, seconds);
    if (isfinite(r->kl_held) && isfinite(p->predicted_kl))
        printf("KL on text held back from calibration: %.3f, predicted %.3f (%+.0f %%)\n",
               r->kl_held, p->predicted_kl, 100 * (p->predicted_kl / r->kl_held - 1));
    else if (isfinite(r->kl_held))
        printf("KL on text held back from calibration: %.3f\n", r->kl_held);
    printf("next: mlathe chat MODEL %s, mlathe eval %s --against MODEL --ppl FILE\n", dir, dir);
}

int cli_convert(struct cli *c, struct err *e)
{
    struct workspace *w;
    struct rankplan plan = {0};
    struct conversion_report report = {0};
    struct convert_sink sink = {on_layer, c};
    double start = clock_now();
    if (!c->o.output)
        return cli_usage(e, "give -o DIR, the folder to write");
    int rc = cli_check_folder(c->o.output, e);
    if (rc)
        return rc;
    rc = cli_open(c, c->arg[0], CLI_FAST, &w, e);
    if (rc)
        return rc;
    rc = get_plan(c, w, &plan, e);
    if (!rc && !workspace_calibrated(w))
        rc = cli_calibrate(c, w, e);
    if (!rc)
        rc = workspace_convert(w, &plan, &sink, &c->progress, &report, e);
    cli_progress_end(c);
    if (!rc && cli_interrupted())
        rc = err_set(e, ERR_CANCELLED, "stopped");
    if (!rc)
        rc = workspace_save(w, c->o.output, e);
    double seconds = clock_now() - start;
    if (!rc && c->o.json)
        rc = cli_print_json(report_json(&report, &plan, c->o.output, seconds), e);
    else if (!rc)
        print_report(&report, &plan, c->o.output, seconds);
    conversion_report_done(&report);
    rankplan_done(&plan);
    workspace_free(w);
    return rc;
}
