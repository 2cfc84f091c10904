/* export: a conversion as files for stock engines. Refuses before any work what the engine cannot
 * load, with the reason. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/kvmem.h"
#include "sessions/export.h"
#include "ui/cli.h"

static int choose(const struct cli *c, struct export_options *o, struct err *e)
{
    const char *to = c->o.to, *dtype = c->o.dtype ? c->o.dtype : "bf16";
    if (!to)
        return cli_usage(e, "give --to hf, vllm, sglang, gguf or plan");
    if (!stock_find(to, &o->to))
        return cli_usage(e, "--to takes hf, vllm, sglang, gguf or plan, not \"%s\"", to);
    if (!export_dtype(dtype, &o->dtype, &o->fp8))
        return cli_usage(e, "--dtype: \"%s\" is no type of numbers (bf16, f32, q8_0 …)", dtype);
    if (!c->o.output)
        return cli_usage(e, "give -o PATH, the %s to write",
                         o->to == STOCK_GGUF ? "file" : "folder");
    return OK;
}

static cJSON *check_json(const struct export_check *k)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "name", k->name);
    cJSON_AddBoolToObject(o, "done", k->done);
    cJSON_AddBoolToObject(o, "passed", k->passed);
    if (k->done) {
        cJSON_AddNumberToObject(o, "nmse", k->nmse);
        cJSON_AddNumberToObject(o, "tokens", k->tokens);
        cJSON_AddNumberToObject(o, "same_top1", k->tokens ? (double)k->same_top1 / k->tokens : 0);
    } else {
        cJSON_AddStringToObject(o, "reason", k->text);
    }
    return o;
}

static cJSON *report_json(const struct export_report *r, const struct export_options *o)
{
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "path", r->path);
    cJSON_AddStringToObject(root, "to", stock_key(o->to));
    cJSON_AddStringToObject(root, "dtype", o->fp8 ? "FP8" : dtype_traits(o->dtype)->name);
    cJSON_AddBoolToObject(root, "dry_run", o->dry_run);
    cJSON *files = cJSON_AddArrayToObject(root, "files");
    for (size_t i = 0; i < r->n_file; i++) {
        cJSON *f = cJSON_CreateObject();
        cJSON_AddStringToObject(f, "name", r->file[i].name);
        if (!o->dry_run)
            cJSON_AddNumberToObject(f, "bytes", (double)r->file[i].bytes);
        cJSON_AddItemToArray(files, f);
    }
    cJSON_AddNumberToObject(root, "bytes", (double)r->bytes);
    cJSON_AddNumberToObject(root, "free_bytes", (double)r->free_bytes);
    cJSON_AddNumberToObject(root, "kv_lora_rank", r->verdict.kv_lora_rank);
    cJSON_AddNumberToObject(root, "qk_rope_head_dim", r->verdict.qk_rope_head_dim);
    cJSON_AddNumberToObject(root, "kept", r->verdict.kept);
    cJSON_AddStringToObject(root, "note", r->verdict.text);
    cJSON_AddNumberToObject(root, "latent_norm_eps", r->latent_eps);
    cJSON_AddNumberToObject(root, "rope_freq_error", r->freq_error);
    if (o->narrow_rank) {
        cJSON_AddNumberToObject(root, "q_lora_rank", o->narrow_rank);
        cli_json_add(root, "query_energy_kept", o->dry_run ? NAN : r->query_kept);
        if (r->loss.name)
            cJSON_AddItemToObject(root, "query_loss", check_json(&r->loss));
    }
    cli_json_drafts(root, r->drafted, r->accepted);
    if (r->bias_left > 0) {
        cJSON_AddNumberToObject(root, "bias_left", r->bias_left);
        if (r->loss.name)
            cJSON_AddItemToObject(root, "bias_loss", check_json(&r->loss));
    }
    cJSON *checks = cJSON_AddArrayToObject(root, "checks");
    if (r->check.name)
        cJSON_AddItemToArray(checks, check_json(&r->check));
    return root;
}

static void print_report(const struct export_report *r, const struct export_options *o)
{
    char size[32], room[32];
    const struct export_check *k = &r->check;
    kvmem_text((double)r->bytes, size, sizeof size);
    kvmem_text((double)r->free_bytes, room, sizeof room);
    printf("%s %s for %s as %s: %s%s (%s free)\n", o->dry_run ? "would write" : "wrote", r->path,
           stock_name(o->to), o->fp8 ? "FP8" : dtype_traits(o->dtype)->name, size,
           o->dry_run ? " of tensors" : "", room);
    for (size_t i = 0; i < r->n_file; i++)
        printf("  %s\n", r->file[i].name);
    if (r->verdict.text[0])
        printf("note: %s\n", r->verdict.text);
    if (r->freq_error > 1e-6)
        printf("rope frequencies are off by at most %.2g radians a token\n", r->freq_error);
    if (o->narrow_rank && !o->dry_run)
        printf("queries of rank %d keep %.3f %% of their energy\n", o->narrow_rank,
               100 * r->query_kept);
    if (r->drafted)
        printf("prediction layer: %d of %d guesses right in a greedy text\n", r->accepted,
               r->drafted);
    if (r->bias_left > 0)
        printf("biases are folded: what stands for one is off by %.2g (squared) in the worst "
               "layer\n",
               r->bias_left);
    if (r->loss.done)
        printf("%s cost a normalised squared error of the logits of %.2g, same first choice %d of "
               "%d\n",
               r->loss.name, r->loss.nmse, r->loss.same_top1, r->loss.tokens);
    if (k->name && k->done)
        printf("%s: normalised squared error of the logits %.2g, same first choice %d of %d\n",
               k->name, k->nmse, k->same_top1, k->tokens);
    else if (k->name)
        printf("%s: not done: %s\n", k->name, k->text);
}

/* The plan that made the conversion, as a file that convert --plan takes. */
static int export_plan(struct cli *c, struct err *e)
{
    struct workspace *w;
    struct rankplan p;
    int rc = c->n_args && c->o.output ? cli_open(c, c->arg[0], CLI_EXACT, &w, e)
                                      : cli_usage(e, "give the conversion folder and -o FILE");
    if (rc)
        return rc;
    if (file_exists(c->o.output) && !c->o.force)
        rc = err_set(e, ERR_IO, "%s is there already: give another name, or --force to replace it",
                     c->o.output);
    else if (!workspace_conversion(w, &p, NULL, e))
        rc = err_set(e, ERR_ARG, "%s is no conversion: it has no plan", c->arg[0]);
    else {
        cJSON *o = cJSON_CreateObject();
        if (!c->o.dry_run)
            rc = rankplan_save(&p, c->o.output, e);
        rankplan_done(&p);
        cJSON_AddStringToObject(o, "path", c->o.output);
        cJSON_AddStringToObject(o, "to", "plan");
        cJSON_AddItemToObject(o, "files", cJSON_CreateStringArray(&c->o.output, 1));
        cJSON_AddArrayToObject(o, "checks");
        if (!rc && c->o.json) {
            rc = cli_print_json(o, e);
        } else {
            cJSON_Delete(o);
            if (!rc)
                printf("%s %s\n", c->o.dry_run ? "would write" : "wrote", c->o.output);
        }
    }
    workspace_free(w);
    return rc;
}

int cli_export(struct cli *c, struct err *e)
{
    struct export_options o = {.path = c->o.output,
                               .from = c->arg[0],
                               .dry_run = c->o.dry_run,
                               .force = c->o.force,
                               .no_check = c->o.no_check,
                               .narrow_rank = (int)c->o.narrow_rank,
                               .fold_biases = c->o.fold_biases,
                               .mtp = c->o.mtp,
                               .files = c->o.calib.v,
                               .n_files = c->o.calib.n,
                               .tokens = c->o.tokens};
    struct export_report r;
    struct workspace *w;
    if (c->o.to && !strcmp(c->o.to, "plan"))
        return export_plan(c, e);
    int rc = choose(c, &o, e);
    if (!rc && !c->n_args)
        rc = cli_usage(e, "give the conversion folder to export");
    if (!rc)
        rc = cli_open(c, c->arg[0], CLI_EXACT, &w, e);
    if (rc)
        return rc;
    rc = workspace_export(w, &o, &c->progress, &r, e);
    cli_progress_end(c);
    if (!rc && c->o.json)
        rc = cli_print_json(report_json(&r, &o), e);
    else if (!rc)
        print_report(&r, &o);
    export_report_done(&r);
    workspace_free(w);
    return rc;
}
