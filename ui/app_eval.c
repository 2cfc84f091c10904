/* Screen 5's state: what to measure, the run, and the results of this and other conversions. What
 * is asked is remembered; results are kept with the conversion and survive a failed or stopped run.
 */
#include "ui/app_parts.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/clock.h"
#include "ui/eval_text.h"

static void forget_known(struct app *a)
{
    eval_siblings_free(a->eval.known.s, a->eval.known.n);
    a->eval.known = (struct eval_results){.own = -1};
}

void eval_drop(struct app *a)
{
    eval_list_free(&a->eval.list);
    forget_known(a);
    a->eval = (struct eval_state){.kl_curve = a->eval.kl_curve, .known = {.own = -1}};
}

static const char *conversion_folder(const struct app *a)
{
    const struct convert_state *c = &a->convert;
    return c->has_result && c->result.path[0] ? c->result.path : NULL;
}

static void look_up(struct app *a)
{
    char *parent = path_join(a->paths.data, "conversions");
    worker_submit(a->worker, &job_results,
                  results_args(conversion_folder(a), parent, a->info.plan_model.fingerprint));
    free(parent);
}

void eval_model_changed(struct app *a)
{
    eval_drop(a);
    a->eval.running = worker_count(a->worker, &job_eval) > 0; /* asked for while it was opening */
    a->eval.started_sec = clock_now();
    look_up(a);
}

const struct eval_record *eval_shown(const struct app *a)
{
    const struct eval_state *v = &a->eval;
    if (v->running)
        return v->has_live ? &v->live : NULL;
    return v->list.n ? &v->list.r[v->at] : NULL;
}

/* Puts a record at the end of the list, in place of an older one of the same measurement. */
static void put(struct eval_list *l, const struct eval_record *r)
{
    void *grown = l->r;
    for (size_t i = 0; i < l->n; i++)
        if (eval_record_same(&l->r[i], r)) {
            memmove(&l->r[i], &l->r[i + 1], (l->n - i - 1) * sizeof *l->r);
            l->n--;
            break;
        }
    bool ok = mem_grow(&grown, &l->cap, l->n + 1, sizeof *l->r);
    l->r = grown;
    if (ok)
        l->r[l->n++] = *r;
}

/* ---- what comes from the worker ---- */

static void take_news(struct app *a, const struct eval_news *n)
{
    struct eval_state *v = &a->eval;
    char shown[1024], brief[64];
    v->live = n->record;
    v->has_live = true;
    if (!n->final)
        return;
    put(&v->list, &n->record);
    v->at = v->list.n ? (int)v->list.n - 1 : 0;
    v->running = v->has_live = false;
    eval_text_brief(&n->record, brief);
    if (n->kept_in[0])
        app_message(a, ROLE_GOOD, "%s; kept in %s", brief, app_path_text(n->kept_in, shown));
    else if (n->trouble[0])
        app_message(a, ROLE_BAD, "%s; not kept: %s", brief, n->trouble);
    else
        app_message(a, ROLE_WARN, "%s; not kept: there is no saved conversion (w writes a file)",
                    brief);
    look_up(a);
}

static void take_results(struct app *a, struct eval_results *r)
{
    struct eval_state *v = &a->eval;
    forget_known(a);
    v->known = *r;
    *r = (struct eval_results){0};
    if (v->known.own < 0 || v->list.n)
        return; /* what was measured here is newer */
    const struct eval_list *kept = &v->known.s[v->known.own].list;
    for (size_t i = 0; i < kept->n; i++)
        put(&v->list, &kept->r[i]);
    v->at = v->list.n ? (int)v->list.n - 1 : 0;
}

void eval_event(struct app *a, struct event *v)
{
    if (v->kind == EVENT_EVAL)
        take_news(a, v->data);
    else
        take_results(a, v->data);
}

void eval_job_done(struct app *a, const struct event *v)
{
    struct eval_state *s = &a->eval;
    if (v->status == OK)
        return;
    s->running = s->has_live = false;
    if (v->status == ERR_CANCELLED) {
        app_message(a, ROLE_NORMAL, "stopped: nothing is kept of it");
    } else {
        snprintf(s->trouble, sizeof s->trouble, "%.500s", v->text ? v->text : "out of memory");
        app_message(a, ROLE_BAD, "not measured: %s", s->trouble);
    }
}

/* ---- what the user asks ---- */

static enum eval_kind kind_of(const struct eval_setup *s)
{
    return s->what == EVAL_WHAT_PPL     ? EVAL_PPL
           : s->what == EVAL_WHAT_SPEED ? EVAL_SPEED
                                        : EVAL_TASK;
}

static void start(struct app *a)
{
    const struct eval_setup *s = &a->j.eval;
    enum eval_kind kind = kind_of(s);
    const char *file = kind == EVAL_PPL ? s->text : s->questions;
    if (!a->has_model) {
        app_message(a, ROLE_WARN, "no model is open: open one on screen 1");
        return;
    }
    if (worker_count(a->worker, &job_eval)) {
        app_message(a, ROLE_WARN, "a measurement is running: Esc stops it");
        return;
    }
    if (kind != EVAL_SPEED && !file) {
        app_message(a, ROLE_WARN,
                    kind == EVAL_PPL ? "choose a text first: f"
                                     : "choose a file of questions first: f");
        return;
    }
    struct eval_record *what = mem_calloc(1, sizeof *what);
    if (!what)
        return;
    what->kind = kind;
    what->protocol = s->protocol;
    what->ctx = (int)s->ctx;
    what->windows = (int)s->windows;
    what->limit = (long)s->limit;
    if (kind == EVAL_TASK)
        what->task.task = (enum choice_task)(s->what - EVAL_WHAT_TASK);
    if (kind != EVAL_SPEED)
        snprintf(what->file, sizeof what->file, "%s", file);
    a->eval.running = true;
    a->eval.has_live = a->eval.conversions = false;
    a->eval.trouble[0] = 0;
    a->eval.started_sec = clock_now();
    worker_submit(a->worker, &job_eval,
                  eval_args(what, a->lock >= 0 ? conversion_folder(a) : NULL));
    free(what);
}

static void next_what(struct app *a)
{
    struct eval_setup *s = &a->j.eval;
    s->what = (s->what + 1) % EVAL_WHATS;
    app_changed(a);
}

static void ask_file(struct app *a)
{
    const struct eval_setup *s = &a->j.eval;
    char shown[1024];
    const char *file = s->what == EVAL_WHAT_PPL ? s->text : s->questions;
    if (s->what == EVAL_WHAT_SPEED) {
        app_message(a, ROLE_WARN, "speed needs no file");
        return;
    }
    ask_open(a, REQ_EVAL_FILE, s->what == EVAL_WHAT_PPL ? "text file" : "file of questions",
             file ? app_path_text(file, shown) : "", true);
}

static void ask_number(struct app *a, enum request r)
{
    const struct eval_setup *s = &a->j.eval;
    char text[32];
    bool ctx = r == REQ_EVAL_CTX, task = kind_of(s) == EVAL_TASK;
    snprintf(text, sizeof text, "%lld", ctx ? s->ctx : task ? s->limit : s->windows);
    ask_open(a, r,
             ctx    ? "window length in tokens"
             : task ? "questions (0: all)"
                    : "windows (0: all)",
             text, false);
}

static void ask_write(struct app *a)
{
    const struct eval_record *r = eval_shown(a);
    char shown[1024];
    if (!r || a->eval.running) {
        app_message(a, ROLE_WARN, "there is no result yet");
        return;
    }
    char *dir = path_join(a->paths.data, "evaluations");
    char *path = dir ? path_free(dir, a->info.name, ".json") : NULL;
    ask_open(a, REQ_EVAL_WRITE, "write this result as (.json or .csv)",
             path ? app_path_text(path, shown) : "", true);
    free(path);
    free(dir);
}

bool eval_request(struct app *a, enum request r)
{
    struct eval_state *v = &a->eval;
    if (list_move(r, v->conversions ? (int)v->known.n : (int)v->list.n, 10,
                  v->conversions ? &v->top : &v->at))
        return true;
    switch (r) {
    case REQ_START: start(a); break;
    case REQ_STOP:
        if (!worker_count(a->worker, &job_eval))
            return false;
        worker_cancel_kind(a->worker, &job_eval);
        app_message(a, ROLE_NORMAL, "stopping…");
        break;
    case REQ_EVAL_WHAT: next_what(a); break;
    case REQ_EVAL_FILE: ask_file(a); break;
    case REQ_EVAL_PROTOCOL:
        a->j.eval.protocol = a->j.eval.protocol == EVAL_HF ? EVAL_LLAMACPP : EVAL_HF;
        app_message(a, ROLE_NORMAL, "perplexity by the protocol %s",
                    a->j.eval.protocol == EVAL_HF ? "hf: windows side by side, all of them scored"
                                                  : "llamacpp: the second half of each window");
        app_changed(a);
        break;
    case REQ_EVAL_CTX:
    case REQ_EVAL_COUNT: ask_number(a, r); break;
    case REQ_EVAL_CURVE:
        v->kl_curve = !v->kl_curve;
        app_message(a, ROLE_NORMAL,
                    v->kl_curve ? "the curve shows KL from the original"
                                : "the curve shows the loss of both");
        break;
    case REQ_EVAL_WRITE: ask_write(a); break;
    case REQ_FOCUS: v->conversions = !v->conversions; break;
    default: return false;
    }
    return true;
}

static bool __attribute__((format(printf, 2, 3))) refuse(struct app *a, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(a->ask.error, sizeof a->ask.error, fmt, args);
    va_end(args);
    return false;
}

static bool answer_file(struct app *a, const char *text)
{
    struct eval_setup *s = &a->j.eval;
    char *path = ask_expand_home(text), *real = path ? realpath(path, NULL) : NULL;
    bool csv_folder = s->what == EVAL_WHAT_TASK + CHOICE_MMLU, ok = false;
    enum choice_task task;
    if (!real)
        refuse(a, "%s: no such file (Tab completes names)", path ? path : "");
    else if (file_is_dir(real) && !csv_folder)
        refuse(a, "%s is a folder: name a file in it", real);
    else
        ok = true;
    if (ok && s->what == EVAL_WHAT_PPL) {
        text_set(&s->text, real);
    } else if (ok) {
        text_set(&s->questions, real);
        if (choice_guess(real, &task)) /* the name says which task it is */
            s->what = EVAL_WHAT_TASK + (int)task;
    }
    app_changed(a);
    free(path);
    free(real);
    return ok;
}

static bool answer_number(struct app *a, enum request what, const char *text)
{
    struct eval_setup *s = &a->j.eval;
    char *end;
    long long v = strtoll(text, &end, 10);
    bool ctx = what == REQ_EVAL_CTX;
    if (end == text || end[strspn(end, " ")] || v < (ctx ? 2 : 0) || v > 1 << 30)
        return refuse(a, ctx ? "give a number of tokens, 2 or more" : "give a number; 0 means all");
    *(ctx ? &s->ctx : kind_of(s) == EVAL_TASK ? &s->limit : &s->windows) = v;
    app_changed(a);
    return true;
}

static bool answer_write(struct app *a, const char *text)
{
    const struct eval_record *r = eval_shown(a);
    struct err e = {0};
    char *path = ask_expand_home(text), *out = NULL, *dir = NULL;
    size_t n = path ? strlen(path) : 0;
    bool csv = n > 4 && !strcmp(path + n - 4, ".csv");
    bool json = n > 5 && !strcmp(path + n - 5, ".json");
    if (!r || (!csv && !json)) {
        refuse(a, r ? "give a name that ends in .json or .csv" : "there is no result yet");
    } else {
        cJSON *doc = json ? eval_record_json(r) : NULL;
        dir = mem_printf("%.*s", (int)(path_base(path) - path), path);
        out = csv ? eval_record_csv(r) : doc ? json_text(doc, true) : NULL;
        cJSON_Delete(doc);
        if (!out || !dir)
            refuse(a, "out of memory");
        else if (dir[0] && file_mkdirs(dir, &e))
            refuse(a, "%s", e.text);
    }
    bool ok = out && !a->ask.error[0] && saver_put(a->saver, path, out, false);
    if (!ok && a->ask.error[0])
        free(out);
    free(path);
    free(dir);
    return ok;
}

bool eval_answer(struct app *a, enum request what, const char *text)
{
    switch (what) {
    case REQ_EVAL_FILE: return answer_file(a, text);
    case REQ_EVAL_CTX:
    case REQ_EVAL_COUNT: return answer_number(a, what, text);
    case REQ_EVAL_WRITE: return answer_write(a, text);
    default: return true;
    }
}
