/* eval: perplexity of a model, and KL against another one, which is the model's own base when the
 * paths agree (then the two share their weights). */
#include <stdlib.h>
#include <string.h>

#include "sessions/eval.h"
#include "sessions/models.h"
#include "ui/cli.h"

static int choose_protocol(const struct cli *c, struct eval_options *o, struct err *e)
{
    const char *name = c->o.protocol ? c->o.protocol : "hf";
    if (strcmp(name, "hf") && strcmp(name, "llamacpp"))
        return cli_usage(e, "--protocol takes hf or llamacpp, not \"%s\"", name);
    o->protocol = strcmp(name, "hf") ? EVAL_LLAMACPP : EVAL_HF;
    o->ctx = c->o.context ? (int)c->o.context : o->protocol == EVAL_HF ? 2048 : 512;
    o->windows = (int)c->o.windows;
    o->file = c->o.ppl;
    return cli_cache_type(c, &o->kv, e);
}

static bool same_file(const char *a, const char *b)
{
    char *x = realpath(a, NULL), *y = realpath(b, NULL);
    bool same = x && y && !strcmp(x, y);
    free(x);
    free(y);
    return same;
}

/* The engine to compare with; *other: a workspace of its own if it needed one. */
static int open_against(struct cli *c, const struct workspace *w, struct workspace **other,
                        const struct engine **against, struct err *e)
{
    struct model_info info;
    char *path;
    int rc = models_resolve(c->o.against, &path, e);
    if (rc)
        return rc;
    workspace_info(w, &info);
    if (same_file(path, info.path)) {
        *against = workspace_engine(w, SIDE_ORIGINAL);
    } else {
        rc = cli_open(c, path, CLI_EXACT, other, e);
        if (!rc)
            *against = workspace_engine(*other, workspace_has_conversion(*other) ? SIDE_CONVERTED
                                                                                 : SIDE_ORIGINAL);
    }
    free(path);
    return rc;
}

static int print_result(struct cli *c, const struct eval_options *o, const struct eval_result *r,
                        struct err *e)
{
    const char *protocol = o->protocol == EVAL_HF ? "hf" : "llamacpp";
    if (!c->o.json) {
        printf("perplexity %.4f ± %.4f (%s, %d windows of %d, %lld tokens scored, %.1f s)\n",
               r->ppl, r->ppl_err, protocol, r->windows, o->ctx, r->tokens, r->seconds);
        if (r->compared)
            printf("original   %.4f\nKL         %.5f ± %.5f nats a token, 99 %% below %.4f\n"
                   "same top   %.2f %%\n",
                   r->ppl_against, r->kl_mean, r->kl_err, r->kl_p99, 100 * r->same_top1);
        return OK;
    }
    cJSON *j = cJSON_CreateObject();
    cli_json_add(j, "ppl", r->ppl);
    cli_json_add(j, "ppl_err", r->ppl_err);
    cJSON_AddNumberToObject(j, "tokens", (double)r->tokens);
    cJSON_AddNumberToObject(j, "windows", r->windows);
    cJSON_AddStringToObject(j, "protocol", protocol);
    cJSON_AddNumberToObject(j, "ctx", o->ctx);
    cJSON_AddStringToObject(j, "file", o->file);
    if (r->compared) {
        cli_json_add(j, "ppl_against", r->ppl_against);
        cli_json_add(j, "kl_mean", r->kl_mean);
        cli_json_add(j, "kl_err", r->kl_err);
        cli_json_add(j, "kl_p99", r->kl_p99);
        cli_json_add(j, "same_top1", r->same_top1);
    }
    cli_json_add(j, "seconds", r->seconds);
    return cli_print_json(j, e);
}

int cli_eval(struct cli *c, struct err *e)
{
    struct workspace *w = NULL, *other = NULL;
    const struct engine *against = NULL;
    const struct tokenizer *t = NULL;
    struct eval_options o = {0};
    struct eval_result r;
    if (c->o.task)
        return err_set(e, ERR_UNSUPPORTED, "multiple-choice tasks are not in this version");
    if (!c->o.ppl)
        return cli_usage(e, "give --ppl FILE, the text to measure on");
    int rc = choose_protocol(c, &o, e);
    if (!rc)
        rc = cli_open(c, c->arg[0], CLI_EXACT, &w, e);
    if (!rc && c->o.against)
        rc = open_against(c, w, &other, &against, e);
    if (!rc && !(t = workspace_tokenizer(w, e)))
        rc = e->status;
    if (!rc)
        rc = eval_ppl(workspace_engine(w, cli_side(c, w)), against, t, &o, &c->progress, &r, e);
    cli_progress_end(c);
    if (!rc)
        rc = print_result(c, &o, &r, e);
    workspace_free(other);
    workspace_free(w);
    return rc;
}
