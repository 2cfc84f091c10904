/* eval: perplexity or multiple choice of a model, alone or against another one, which is the
 * model's own base when the paths agree (then the two share their weights). */
#include <langinfo.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/file.h"
#include "sessions/eval_record.h"
#include "sessions/models.h"
#include "ui/cli.h"
#include "ui/eval_text.h"
#include "ui/figures.h"

static int choose_protocol(const struct cli *c, struct eval_options *o, struct err *e)
{
    const char *name = c->o.protocol ? c->o.protocol : "hf";
    if (!eval_protocol_find(name, &o->protocol))
        return cli_usage(e, "--protocol takes hf, llamacpp or plain, not \"%s\"", name);
    o->ctx = c->o.context ? (int)c->o.context : o->protocol == EVAL_LLAMACPP ? 512 : 2048;
    o->windows = (int)c->o.windows;
    o->file = c->o.ppl;
    o->csv = c->o.csv;
    return cli_cache_type(c, &o->kv, e);
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
    if (path_same(path, info.path)) {
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

static void print_line(void *user, int line, const char *text)
{
    (void)user, (void)line;
    puts(text);
}

static void print_text(const struct eval_record *r)
{
    char text[EVAL_TEXT];
    bool ascii = strcmp(nl_langinfo(CODESET), "UTF-8") != 0;
    eval_text_title(r, text);
    puts(text);
    for (int i = 0; eval_text_line(r, i, true, text); i++)
        puts(text);
    if (r->kind != EVAL_PPL || r->ppl.n_bin < 2)
        return;
    puts(r->ppl.compared ? "\nNLL by position, nats a token: both models"
                         : "\nNLL by position, nats a token");
    eval_text_plot(r, CURVE_NLL, 8, 72, ascii, print_line, NULL);
    if (!r->ppl.compared)
        return;
    puts("\nKL by position, nats a token");
    eval_text_plot(r, CURVE_KL, 8, 72, ascii, print_line, NULL);
}

static int choose_task(const struct cli *c, struct task_options *o, struct err *e)
{
    if (!choice_find(c->o.task, &o->task))
        return cli_usage(
            e, "--task takes arc, hellaswag, piqa, winogrande, obqa or mmlu, not \"%.40s\"",
            c->o.task);
    if (!c->o.file)
        return cli_usage(e, "--task needs --file, the questions");
    o->file = c->o.file;
    o->limit = (long)c->o.limit;
    o->csv = c->o.csv;
    return cli_cache_type(c, &o->kv, e);
}

/* What the options ask for, without running it. */
static int choose(const struct cli *c, struct eval_options *o, struct task_options *t,
                  struct eval_record *r, struct err *e)
{
    if (!c->o.ppl == !c->o.task)
        return cli_usage(e, "give --ppl FILE, the text to measure on, or --task T --file F");
    int rc = c->o.task ? choose_task(c, t, e) : choose_protocol(c, o, e);
    if (rc)
        return rc;
    r->kind = c->o.task ? EVAL_TASK : EVAL_PPL;
    r->protocol = o->protocol;
    r->ctx = o->ctx;
    r->windows = o->windows;
    r->limit = t->limit;
    r->rounded = c->o.fast;
    snprintf(r->file, sizeof r->file, "%s", c->o.task ? t->file : o->file);
    return OK;
}

/* Beside the conversion, as the screen does. */
static int store(struct cli *c, const struct workspace *w, struct eval_record *r, struct err *e)
{
    struct rankplan plan;
    struct conversion_report report;
    if (!workspace_has_conversion(w) || !c->o.against || c->o.original)
        return err_set(e, ERR_ARG,
                       "--store keeps what compares a conversion folder (MODEL) with "
                       "its original (--against)");
    if (!workspace_conversion(w, &plan, &report, e))
        return e->status;
    char *real = realpath(r->file, NULL);
    if (real)
        snprintf(r->file, sizeof r->file, "%s", real);
    free(real);
    r->when_sec = (long long)time(NULL);
    int rc = eval_store(report.path, r, e);
    rankplan_done(&plan);
    conversion_report_done(&report);
    return rc;
}

static int run(struct cli *c, const struct workspace *w, const struct engine *against,
               const struct eval_options *o, const struct task_options *task, struct eval_record *r,
               struct err *e)
{
    const struct engine *model = workspace_engine(w, cli_side(c, w));
    const struct tokenizer *t = workspace_tokenizer(w, e);
    if (!t)
        return e->status;
    return r->kind == EVAL_PPL ? eval_ppl(model, against, t, o, &c->progress, &r->ppl, e)
                               : eval_task(model, against, t, task, &c->progress, &r->task, e);
}

static int draw(struct cli *c, const struct eval_record *r, struct err *e)
{
    struct markup m = {0};
    figure_eval(&m, false, r);
    return cli_save_svg(c, &m, e);
}

/* What was learnt is no measure. */
static void warn_of_overlap(struct cli *c, const struct workspace *w, const char *file)
{
    double share = file && !c->o.original ? workspace_healed_on(w, file) : 0;
    if (share > 0.05)
        cli_say(c,
                "warning: about %.0f %% of the lines of %s are like those that this conversion was "
                "healed on: the figures flatter it",
                100 * share, file);
}

int cli_eval(struct cli *c, struct err *e)
{
    struct workspace *w = NULL, *other = NULL;
    const struct engine *against = NULL;
    struct eval_options o = {0};
    struct task_options task = {0};
    struct eval_record *r = mem_calloc(1, sizeof *r);
    int rc = r ? choose(c, &o, &task, r, e) : err_nomem(e, sizeof *r, "a result");
    if (!rc)
        rc = cli_open(c, c->arg[0], CLI_EXACT, &w, e);
    if (!rc)
        warn_of_overlap(c, w, c->o.task ? c->o.file : c->o.ppl);
    if (!rc && c->o.against)
        rc = open_against(c, w, &other, &against, e);
    if (!rc)
        rc = run(c, w, against, &o, &task, r, e);
    cli_progress_end(c);
    if (!rc && c->o.json)
        rc = cli_print_json(eval_record_json(r), e);
    else if (!rc)
        print_text(r);
    if (!rc && c->o.svg)
        rc = draw(c, r, e);
    if (!rc && c->o.store)
        rc = store(c, w, r, e);
    workspace_free(other);
    workspace_free(w);
    free(r);
    return rc;
}
