/* Jobs that measure quality and speed of the open model, with its conversion when there is one, and
 * the job that looks up kept results. They refuse to run without an open model. */
#include "sessions/job_eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sessions/clock.h"
#include "sessions/jobs.h"

#define NEWS_SEC 0.25 /* between two partial results */

struct eval_args {
    struct eval_record what;
    char *store;
};

static void eval_args_free(void *args)
{
    struct eval_args *a = args;
    if (a)
        free(a->store);
    free(a);
}

void *eval_args(const struct eval_record *what, const char *store)
{
    struct eval_args *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->what = *what;
    a->store = store ? mem_strdup(store) : NULL;
    return a;
}

struct measuring {
    struct job *job;
    struct eval_record record; /* as far as it has come */
    double told_sec;
};

static void post(struct measuring *m, bool final, const char *kept_in, const char *trouble)
{
    struct eval_news *n = mem_calloc(1, sizeof *n);
    if (!n)
        return;
    n->record = m->record;
    n->final = final;
    snprintf(n->kept_in, sizeof n->kept_in, "%s", kept_in ? kept_in : "");
    snprintf(n->trouble, sizeof n->trouble, "%.500s", trouble);
    job_post(m->job, EVENT_EVAL, n, free);
}

static void post_partial(struct measuring *m)
{
    double now = clock_now();
    if (now - m->told_sec < NEWS_SEC)
        return;
    m->told_sec = now;
    post(m, false, NULL, "");
}

static void ppl_partial(void *user, const struct eval_result *r)
{
    struct measuring *m = user;
    m->record.ppl = *r;
    post_partial(m);
}

static void task_partial(void *user, const struct task_result *r)
{
    struct measuring *m = user;
    m->record.task = *r;
    post_partial(m);
}

/* ---- speed ---- */

/* Progress of one of two benchmarks. */
struct half {
    const struct progress *p;
    int index, n;
};
static bool half_report(void *user, const char *phase, double done, double total)
{
    const struct half *h = user;
    return progress_report(h->p, phase, total * h->index + done, total * h->n);
}

static int measure_speed(struct measuring *m, const struct engine *const g[2],
                         const struct progress *p, struct err *e)
{
    static const int depths[] = {0, 1024, 4096};
    struct eval_record *r = &m->record;
    struct bench_options o = {.prompt = EVAL_SPEED_PROMPT,
                              .generate = EVAL_SPEED_GENERATE,
                              .repeat = EVAL_SPEED_REPEAT,
                              .depth = depths,
                              .kv = DTYPE_F16};
    int context = engine_model(g[0])->hp.context, rc = OK;
    o.prompt = o.prompt < context ? o.prompt : context;
    o.generate = o.generate < context ? o.generate : context;
    while (o.n_depth < 3 && (!o.n_depth || depths[o.n_depth] + o.prompt <= context))
        o.n_depth++;
    r->compared = g[1] != NULL;
    for (int side = 0; side < 2 && g[side] && !rc; side++) {
        struct half h = {p, side, g[1] ? 2 : 1};
        struct progress part = {half_report, &h};
        struct bench_row *row;
        int n;
        rc = bench_run(g[side], &o, &part, &row, &n, e);
        for (int i = 0; i < n && i < EVAL_SPEED_ROWS && !rc; i++) {
            struct speed_row *s = &r->speed[i];
            snprintf(s->test, sizeof s->test, "%s", row[i].test);
            s->depth = row[i].depth;
            *(side ? &s->tokens_per_sec_against : &s->tokens_per_sec) = row[i].tokens_per_sec;
            *(side ? &s->sd_against : &s->sd) = row[i].sd;
            *(side ? &s->kv_bytes_against : &s->kv_bytes) = (double)row[i].kv_bytes;
            r->n_speed = i + 1;
        }
        free(row);
    }
    return rc;
}

/* ---- any of them ---- */

static int measure(struct measuring *m, const struct workspace *w, const struct progress *p,
                   struct err *e)
{
    struct eval_record *r = &m->record;
    const struct tokenizer *t = r->kind == EVAL_SPEED ? NULL : workspace_tokenizer(w, e);
    const struct engine *g[2] = {workspace_engine(w, SIDE_ORIGINAL), NULL};
    if (!t && r->kind != EVAL_SPEED)
        return e->status;
    if (workspace_has_conversion(w)) {
        g[1] = g[0];
        g[0] = workspace_engine(w, SIDE_CONVERTED);
    }
    struct eval_options ppl = {.file = r->file,
                               .protocol = r->protocol,
                               .ctx = r->ctx,
                               .windows = r->windows,
                               .partial = ppl_partial,
                               .user = m};
    struct task_options task = {.file = r->file,
                                .task = r->task.task,
                                .limit = r->limit,
                                .partial = task_partial,
                                .user = m};
    return r->kind == EVAL_PPL    ? eval_ppl(g[0], g[1], t, &ppl, p, &r->ppl, e)
           : r->kind == EVAL_TASK ? eval_task(g[0], g[1], t, &task, p, &r->task, e)
                                  : measure_speed(m, g, p, e);
}

static int eval_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct eval_args *a = args;
    struct progress p = job_progress(j);
    struct err why = {0};
    if (!s->w || !workspace_is_open(s->w))
        return err_set(e, ERR_ARG, "no model is open: open one on screen 1");
    struct measuring *m = a ? mem_calloc(1, sizeof *m) : NULL;
    if (!m)
        return err_nomem(e, sizeof *m, "a measurement");
    *m = (struct measuring){.job = j, .record = a->what};
    int rc = measure(m, s->w, &p, e);
    m->record.rounded = s->options.rounded && workspace_has_conversion(s->w);
    if (!rc) {
        m->record.when_sec = (long long)time(NULL);
        bool kept = a->store && eval_store(a->store, &m->record, &why) == OK;
        post(m, true, kept ? a->store : NULL, a->store && !kept ? why.text : "");
    }
    free(m);
    return rc;
}

const struct job_kind job_eval = {"evaluate", eval_run, eval_args_free};

/* ---- what is known already ---- */

struct results_args {
    char *own, *parent;
    char fingerprint[65];
};

static void results_args_free(void *args)
{
    struct results_args *a = args;
    if (!a)
        return;
    free(a->own);
    free(a->parent);
    free(a);
}

void *results_args(const char *own, const char *parent, const char *fingerprint)
{
    struct results_args *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->own = own ? mem_strdup(own) : NULL;
    a->parent = parent ? mem_strdup(parent) : NULL;
    snprintf(a->fingerprint, sizeof a->fingerprint, "%s", fingerprint);
    return a;
}

static void results_free(void *data)
{
    struct eval_results *r = data;
    if (r)
        eval_siblings_free(r->s, r->n);
    free(r);
}

static int results_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct results_args *a = args;
    (void)shop;
    struct eval_results *r = a ? mem_calloc(1, sizeof *r) : NULL;
    if (!r)
        return err_nomem(e, sizeof *r, "results");
    r->own = -1;
    const char *const dir[] = {a->own};
    int rc = eval_siblings(&r->s, &r->n, dir, 1, a->parent, a->fingerprint, e);
    char *own = a->own ? realpath(a->own, NULL) : NULL;
    for (size_t i = 0; i < r->n && own; i++)
        if (!strcmp(r->s[i].dir, own))
            r->own = (int)i;
    free(own);
    if (rc)
        results_free(r);
    else
        job_post(j, EVENT_RESULTS, r, results_free);
    return rc;
}

const struct job_kind job_results = {"results", results_run, results_args_free};
