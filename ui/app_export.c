/* Screen 6's state: the chosen engine, the type of numbers, the run and what came of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/kvmem.h"
#include "sessions/clock.h"
#include "ui/app_parts.h"

static const enum dtype folder_numbers[] = {DTYPE_BF16, DTYPE_F32};
static const enum dtype gguf_numbers[] = {DTYPE_Q8_0, DTYPE_BF16, DTYPE_F16, DTYPE_F32,
                                          DTYPE_Q6_K, DTYPE_Q4_K, DTYPE_Q4_0};

enum dtype export_numbers(const struct app *a, enum stock_engine t)
{
    int i = a->export.numbers[t];
    return t == STOCK_GGUF ? gguf_numbers[i] : folder_numbers[i];
}

const struct rankplan *export_plan(const struct app *a)
{
    return a->convert.has_result ? &a->convert.result_plan
           : a->ranks.has_plan   ? &a->ranks.plan
                                 : NULL;
}

/* Which engines need it; transformers keeps biases. */
static bool folds(const struct app *a, enum stock_engine t)
{
    return a->export.fold_biases && a->info.stock.biases && t != STOCK_HF;
}

void export_verdict(const struct app *a, enum stock_engine t, struct stock_verdict *out)
{
    struct stock_facts facts = a->info.stock;
    facts.biases = facts.biases && !folds(a, t);
    stock_check(&facts, export_plan(a), t, out);
}

void export_drop(struct app *a)
{
    struct export_state *x = &a->export;
    if (x->has_report)
        export_report_done(&x->report);
    x->has_report = x->running = false;
    x->trouble[0] = 0;
}

static void start(struct app *a, const char *path, bool dry_run, bool force)
{
    struct export_state *x = &a->export;
    char *text = calibrate_file(a);
    struct export_options o = {.to = (enum stock_engine)x->at,
                               .dtype = export_numbers(a, (enum stock_engine)x->at),
                               .path = path,
                               .from = a->j.conversion,
                               .narrow_rank = x->narrow_rank,
                               .mtp = x->mtp,
                               .fold_biases = folds(a, (enum stock_engine)x->at),
                               .files = (const char *const *)&text,
                               .n_files = text != NULL,
                               .tokens = PLAN_TOKENS,
                               .force = force,
                               .dry_run = dry_run};
    if (worker_count(a->worker, &job_export)) {
        app_message(a, ROLE_WARN, "an export is running: Esc stops it");
    } else {
        export_drop(a);
        x->running = true;
        x->started_sec = clock_now();
        x->dry_run = dry_run;
        worker_submit(a->worker, &job_export, export_args(&o));
    }
    free(text);
}

/* The name that is offered: beside the program's other data, after the model and the engine. */
static char *offered_path(const struct app *a)
{
    enum stock_engine t = (enum stock_engine)a->export.at;
    char *dir = path_join(a->paths.data, "exports");
    char *name = mem_printf("%s-mla-%s", a->info.plan_model.name, stock_key(t));
    char *path = NULL;
    if (dir && name && file_mkdirs(dir, NULL) == OK)
        path = path_free(dir, name, t == STOCK_GGUF ? ".gguf" : "");
    free(dir);
    free(name);
    return path;
}

/* Why the selected engine would not take it; NULL when it would. */
static const char *refusal(const struct app *a, struct stock_verdict *v)
{
    if (!a->convert.has_result)
        return "nothing is converted yet: c on screen 2 converts";
    export_verdict(a, (enum stock_engine)a->export.at, v);
    return v->fit == STOCK_NO ? v->text : NULL;
}

static void want(struct app *a, bool dry_run)
{
    struct stock_verdict v;
    const char *why = refusal(a, &v);
    if (why) {
        app_message(a, ROLE_WARN, "%s: %s", stock_name((enum stock_engine)a->export.at), why);
        return;
    }
    char *path = offered_path(a);
    if (!path)
        app_message(a, ROLE_BAD, "there is no folder for exports");
    else if (dry_run)
        start(a, path, true, false);
    else
        ask_open(a, REQ_EXPORT_PATH, "write the export as", path, true);
    free(path);
}

static bool answer_queries(struct app *a, const char *text)
{
    char *end;
    long rank = strtol(text, &end, 10);
    while (*end == ' ')
        end++;
    if (end == text || *end || rank < 0 || rank > a->info.hidden) {
        snprintf(a->ask.error, sizeof a->ask.error,
                 "give a rank from 1 to %d, or 0 for queries as they are", a->info.hidden);
        return false;
    }
    a->export.narrow_rank = (int)rank;
    return true;
}

bool export_answer(struct app *a, enum request what, const char *text)
{
    if (what == REQ_EXPORT_QUERIES)
        return answer_queries(a, text);
    char *path = ask_expand_home(text);
    struct export_state *x = &a->export;
    bool named = path && path[0], there = named && file_exists(path);
    bool asked = there && !strcmp(x->replace, path);
    bool fine = named && (!there || asked);
    x->replace[0] = 0;
    if (fine)
        start(a, path, false, there);
    else
        snprintf(a->ask.error, sizeof a->ask.error, "%s",
                 named ? "that is there already: Enter again replaces it"
                       : "an export needs a name");
    if (there && !asked) /* the same answer once more is a yes */
        snprintf(x->replace, sizeof x->replace, "%s", path);
    free(path);
    return fine;
}

static void next_numbers(struct app *a)
{
    int *i = &a->export.numbers[a->export.at];
    size_t n = a->export.at == STOCK_GGUF ? sizeof gguf_numbers / sizeof *gguf_numbers
                                          : sizeof folder_numbers / sizeof *folder_numbers;
    *i = (*i + 1) % (int)n;
    app_message(a, ROLE_NORMAL, "numbers for %s: %s", stock_name((enum stock_engine)a->export.at),
                dtype_traits(export_numbers(a, (enum stock_engine)a->export.at))->name);
}

/* What only some engines or models can have. */
static void change_option(struct app *a, enum request r)
{
    struct export_state *x = &a->export;
    char preset[16] = "";
    if (r == REQ_EXPORT_QUERIES) {
        snprintf(preset, sizeof preset, "%d", x->narrow_rank);
        ask_open(a, r, "rank of the queries (0: as they are)", preset, false);
    } else if (r == REQ_EXPORT_MTP) {
        x->mtp = !x->mtp;
        app_message(a, ROLE_NORMAL,
                    x->mtp ? "with a prediction layer, fitted to the calibration text"
                           : "without a prediction layer");
    } else if (!a->has_model || !a->info.stock.biases) {
        app_message(a, ROLE_WARN,
                    a->has_model ? "this model has no biases to fold"
                                 : "no model is open: open one on screen 1");
    } else {
        x->fold_biases = !x->fold_biases;
        app_message(a, ROLE_NORMAL,
                    x->fold_biases ? "biases are folded for engines that have none"
                                   : "biases stay as they are");
    }
}

bool export_request(struct app *a, enum request r)
{
    if (list_move(r, STOCK_ENGINES, STOCK_ENGINES, &a->export.at))
        return true;
    switch (r) {
    case REQ_EXPORT_TYPE: next_numbers(a); break;
    case REQ_EXPORT_QUERIES:
    case REQ_EXPORT_MTP:
    case REQ_EXPORT_FOLD: change_option(a, r); break;
    case REQ_EXPORT_DRY: want(a, true); break;
    case REQ_EXPORT_PATH: want(a, false); break;
    case REQ_STOP:
        if (!worker_count(a->worker, &job_export))
            return false;
        worker_cancel_kind(a->worker, &job_export);
        app_message(a, ROLE_NORMAL, "stopping…");
        break;
    default: return false;
    }
    return true;
}

void export_event(struct app *a, struct export_report *r)
{
    struct export_state *x = &a->export;
    char size[32], shown[1024];
    export_drop(a);
    x->report = *r;
    *r = (struct export_report){0};
    x->has_report = true;
    x->report_dry = x->dry_run;
    kvmem_text((double)x->report.bytes, size, sizeof size);
    app_message(a, ROLE_GOOD, x->dry_run ? "would write %s: %s of tensors" : "wrote %s: %s",
                app_path_text(x->report.path, shown), size);
}

void export_job_done(struct app *a, const struct event *v)
{
    struct export_state *x = &a->export;
    x->running = false;
    if (v->status == ERR_CANCELLED) {
        app_message(a, ROLE_NORMAL, "stopped: nothing was written");
    } else if (v->status) {
        snprintf(x->trouble, sizeof x->trouble, "%s", v->text ? v->text : "out of memory");
        app_message(a, ROLE_BAD, "not exported: %s", x->trouble);
    }
}
