/* heal: distil the original into a conversion for some minutes, into another folder. Interrupted,
 * it keeps what was reached; the same command goes on from there. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/heal.h"
#include "ui/cli.h"

static void on_step(void *user, const struct heal_point *p)
{
    struct cli *c = user;
    if (!isnan(p->held_kl))
        cli_say(c, "step %lld, %lld tokens, %.0f s: held-out KL %.4f", p->step, p->tokens,
                p->seconds, p->held_kl);
    else if (c->log)
        fprintf(c->log, "step %lld tokens %lld seconds %.1f KL %.4f lr %.2e\n", p->step, p->tokens,
                p->seconds, p->train_kl, p->rate);
}

static void on_note(void *user, const char *text)
{
    cli_say(user, "%s", text);
}

static cJSON *report_json(const struct heal_report *r, const char *dir)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "path", dir);
    cJSON_AddNumberToObject(o, "steps", (double)r->steps);
    cJSON_AddNumberToObject(o, "tokens", (double)r->tokens);
    cli_json_add(o, "seconds", r->seconds);
    cli_json_add(o, "seconds_training", r->seconds_training);
    cli_json_add(o, "tokens_per_sec", r->tokens_per_sec);
    cli_json_add(o, "kl_before", r->kl_before);
    cli_json_add(o, "kl_after", r->kl_after);
    cJSON_AddStringToObject(o, "end", r->end);
    cJSON_AddBoolToObject(o, "resumed", r->resumed);
    cJSON *list = cJSON_AddArrayToObject(o, "curve");
    for (size_t i = 0; i < r->n; i++) {
        const struct heal_point *p = &r->curve[i];
        cJSON *v = cJSON_CreateObject();
        cJSON_AddNumberToObject(v, "step", (double)p->step);
        cJSON_AddNumberToObject(v, "tokens", (double)p->tokens);
        cli_json_add(v, "seconds", p->seconds);
        cli_json_add(v, "train_kl", p->train_kl);
        cli_json_add(v, "held_out_kl", p->held_kl);
        cli_json_add(v, "lr", p->rate);
        cJSON_AddItemToArray(list, v);
    }
    return o;
}

static void print_report(const struct heal_report *r, const char *dir)
{
    printf("   step     tokens  seconds  train KL  held-out KL\n");
    for (size_t i = 0; i < r->n; i++) {
        const struct heal_point *p = &r->curve[i];
        char train[16] = "";
        if (!isnan(p->train_kl))
            snprintf(train, sizeof train, "%.4f", p->train_kl);
        printf("%7lld %10lld %8.0f  %8s  %11.4f\n", p->step, p->tokens, p->seconds, train,
               p->held_kl);
    }
    printf("KL %.4f → %.4f (%.0f %%) in %lld tokens, %.0f s, %.0f tokens/s of training; %s\n",
           r->kl_before, r->kl_after, 100 * r->kl_after / r->kl_before, r->tokens, r->seconds,
           r->tokens_per_sec, r->end);
    printf("next: mlathe eval %s --against MODEL --ppl FILE, mlathe chat MODEL %s\n", dir, dir);
}

static int options(const struct cli *c, struct heal_options *o, struct err *e)
{
    *o = (struct heal_options){.tokens = c->o.tokens,
                               .seconds = 60 * c->o.minutes,
                               .until_kl = c->o.until_kl,
                               .rate = c->o.rate,
                               .seed = (uint64_t)c->o.seed,
                               .mix = c->o.next_token,
                               .match = c->o.match,
                               .refit_tokens = c->o.refit_tokens < 0    ? 0
                                               : c->o.refit_tokens == 0 ? -1
                                                                        : c->o.refit_tokens,
                               .length = (int)c->o.length,
                               .batch = (int)c->o.batch,
                               .accumulate = (int)c->o.accumulate,
                               .exact = c->o.exact,
                               .dir = c->o.output};
    struct err bad = {0};
    if (c->o.train && heal_parts_parse(c->o.train, &o->parts, &bad))
        return cli_usage(e, "--%s", bad.text);
    return OK;
}

int cli_heal(struct cli *c, struct err *e)
{
    struct heal_options o;
    struct heal_report report = {0};
    struct heal_sink sink = {on_step, on_note, c};
    struct workspace *w = NULL;
    bool self = !c->o.texts.n || (c->o.texts.n == 1 && !strcmp(c->o.texts.v[0], "self"));
    bool changed = false;
    if (!c->n_args)
        return cli_usage(e, "give the conversion folder to heal");
    if (!c->o.output)
        return cli_usage(e, "give -o DIR2, the folder of the healed conversion");
    int rc = options(c, &o, e);
    if (!rc)
        rc = cli_check_folder(c->o.output, e);
    if (!rc)
        rc = cli_open(c, c->arg[0], CLI_FAST, &w, e);
    if (rc)
        return rc;
    rc = workspace_heal(w, &o, c->o.texts.v, self ? 0 : c->o.texts.n, &sink, &c->progress, &report,
                        &changed, e);
    cli_progress_end(c);
    if (rc == ERR_CANCELLED && changed)
        cli_say(c, "%s holds the best so far (KL %.4f, %.4f before); the same command goes on",
                c->o.output, report.kl_after, report.kl_before);
    if (!rc && c->o.json)
        rc = cli_print_json(report_json(&report, c->o.output), e);
    else if (!rc)
        print_report(&report, c->o.output);
    heal_report_done(&report);
    workspace_free(w);
    return rc;
}
