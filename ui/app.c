/* The app: start and end, keys to requests, results to state, saving. Refuses nothing a user may
 * do; what cannot be done says why in the last line. */
#include "ui/app_parts.h"

#include <stdarg.h>
#include <stdio.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "sessions/clock.h"
#include "ui/settings.h"

#define SAVE_AFTER_SEC 0.4
#define SAVE_STREAM_SEC 2.0

/* Paths below the home folder read shorter as "~/…". */
static void shorten_home(char *text)
{
    const char *home = getenv("HOME");
    size_t n = home ? strlen(home) : 0;
    for (char *at = text; n > 1 && (at = strstr(at, home)) != NULL; at++)
        if (at[n] == '/') {
            at[0] = '~';
            memmove(at + 1, at + n, strlen(at + n) + 1);
        }
}

void app_message(struct app *a, enum role role, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(a->message, sizeof a->message, fmt, args);
    va_end(args);
    shorten_home(a->message);
    a->message_role = role;
}

void app_changed(struct app *a)
{
    if (a->save_due_sec == 0)
        a->save_due_sec = clock_now() + (a->chat.answering ? SAVE_STREAM_SEC : SAVE_AFTER_SEC);
}

const char *app_seconds(const struct app *a, double sec, char text[32])
{
    long s = sec > 0 && sec < 1e9 ? (long)(sec + 0.5) : 0;
    if (a->clock_off)
        snprintf(text, 32, "-:--");
    else if (s >= 3600)
        snprintf(text, 32, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, 32, "%ld:%02ld", s / 60, s % 60);
    return text;
}

const char *app_rate(const struct app *a, double per_sec, char text[32])
{
    if (a->clock_off)
        snprintf(text, 32, "-- tok/s");
    else
        snprintf(text, 32, per_sec < 99.95 ? "%.1f tok/s" : "%.0f tok/s", per_sec);
    return text;
}

const char *app_path_text(const char *path, char text[1024])
{
    const char *home = getenv("HOME");
    size_t n = home ? strlen(home) : 0;
    if (n > 1 && strncmp(path, home, n) == 0 && (path[n] == '/' || path[n] == 0))
        snprintf(text, 1024, "~%s", path + n);
    else
        snprintf(text, 1024, "%s", path);
    return text;
}

static void saved(void *user, const char *path, bool quiet, int status, const char *text)
{
    struct worker *w = user;
    char *copy = quiet && status == OK ? NULL : mem_strdup(path);
    if (copy)
        worker_post(w, EVENT_SAVED, status, text, copy, free);
}

static int open_journal(struct app *a, struct err *e)
{
    struct err why = {0};
    char *note = NULL, *lock = path_join(a->paths.state, "workspace.lock");
    a->journal_path = path_join(a->paths.state, "workspace.json");
    if (!lock || !a->journal_path) {
        free(lock);
        return err_nomem(e, 64, "path");
    }
    if (file_mkdirs(a->paths.state, &why) == OK)
        a->lock = journal_lock(lock, &why);
    free(lock);
    if (a->lock < 0) {
        app_message(a, ROLE_WARN, "%s", why.text);
    } else { /* what died while it wrote */
        file_sweep_folder(a->paths.state, 0);
        file_sweep_folder(a->paths.data, 2);
        file_sweep_folder(a->paths.cache, 1);
    }
    if (journal_load(&a->j, a->journal_path, &note, &why)) {
        /* Unreadable, perhaps for a passing reason: never write over it. */
        journal_unlock(a->lock);
        a->lock = -1;
        app_message(a, ROLE_BAD, "%s: nothing will be saved by itself", why.text);
    }
    if (note)
        app_message(a, ROLE_WARN, "%s", note);
    free(note);
    a->queue_found = a->j.queue;
    a->j.queue = NULL;
    return OK;
}

/* What to open at the start: the model asked for, else what was open last, else the default. */
static void open_first(struct app *a)
{
    const char *wish = a->options.model;
    char *path = NULL;
    worker_submit(a->worker, &job_scan, scan_args(&a->j.recent));
    if (wish && models_resolve(wish, &path, NULL) == OK && a->j.model) {
        char *full = path_absolute(path);
        if (full && strcmp(full, a->j.model) == 0)
            wish = NULL; /* the same model again: with its conversion */
        free(full);
    }
    free(path);
    if (wish)
        app_open(a, wish, NULL);
    else if (a->j.conversion && file_is_dir(a->j.conversion))
        app_open(a, a->j.conversion, a->j.model);
    else if (a->j.model)
        app_open(a, a->j.model, NULL);
    else if (models_resolve(NULL, &path, NULL) == OK) {
        app_open(a, path, NULL);
        free(path);
    }
}

int app_init(struct app *a, const struct ui_options *o, struct err *e)
{
    *a = (struct app){.options = *o, .lock = -1};
    const char *device = o->device ? o->device : "auto";
    a->shop.options = (struct workspace_options){.device = device,
                                                 .threads = o->threads,
                                                 .background = true,
                                                 .exact = true,
                                                 .keep = true,
                                                 .rounded = true};
    int rc = journal_init(&a->j, e);
    if (!rc)
        rc = paths_init(&a->paths, e);
    if (!rc)
        rc = textbuf_init(&a->ask.text, e);
    if (!rc)
        rc = open_journal(a, e);
    if (!rc)
        rc = chat_init(&a->chat, &a->j, e);
    if (!rc)
        rc = worker_new(&a->worker, &a->shop, e);
    if (!rc)
        worker_on_failure(a->worker, shop_failed);
    if (!rc)
        rc = saver_new(&a->saver, saved, a->worker, e);
    if (rc)
        return rc;
    if (o->note)
        app_message(a, ROLE_WARN, "%s", o->note);
    open_first(a);
    return OK;
}

static void found_done(struct app *a)
{
    models_free(a->found.entry, a->found.n);
    a->found = (struct found_models){0};
}

void app_done(struct app *a)
{
    if (a->saver && a->worker)
        app_save(a, true);
    saver_free(a->saver); /* posts to the worker: goes first */
    a->saver = NULL;
    worker_free(a->worker);
    a->worker = NULL; /* it has stopped everything */
    shop_done(&a->shop);
    convert_drop(a);
    heal_drop(a);
    eval_drop(a);
    export_drop(a);
    plan_drop(a);
    cJSON_Delete(a->queue_found);
    if (a->chat.prompt.text)
        chat_done(&a->chat);
    textbuf_done(&a->ask.text);
    found_done(a);
    journal_done(&a->j);
    journal_unlock(a->lock);
    free(a->journal_path);
    free(a->opening);
    paths_done(&a->paths);
    *a = (struct app){.lock = -1};
}

double app_save(struct app *a, bool now)
{
    if (a->save_due_sec == 0 || a->lock < 0)
        return -1;
    double left = a->save_due_sec - clock_now();
    if (left > 0 && !now)
        return left;
    a->save_due_sec = 0;
    plan_keep(a);
    convert_keep(a);
    text_set(&a->j.typed, a->chat.prompt.text);
    saver_put(a->saver, a->journal_path, journal_text(&a->j), true);
    return -1;
}

bool app_busy(const struct app *a)
{
    return worker_count(a->worker, NULL) > 0;
}

void app_open(struct app *a, const char *path, const char *fallback)
{
    char *full = file_exists(path) ? path_absolute(path) : mem_strdup(path); /* or a name */
    if (full)
        path = full; /* the next start may be from another folder */
    text_set(&a->opening, path);
    worker_cancel_kind(a->worker, &job_spectra);
    worker_cancel_kind(a->worker, &job_eval);
    worker_submit(a->worker, &job_load, load_args(path, fallback));
    free(full);
}

void app_go(struct app *a, int screen)
{
    if (a->j.screen == screen)
        return;
    a->j.screen = screen;
    app_changed(a);
}

/* ---- results ---- */

static void take_found(struct app *a, struct found_models *f)
{
    found_done(a);
    a->found = *f;
    *f = (struct found_models){0};
    a->scanned = true;
    if (a->found_selected >= (int)a->found.n)
        a->found_selected = a->found.n ? (int)a->found.n - 1 : 0;
}

static void take_loaded(struct app *a, struct loaded_model *m)
{
    const char *base = m->has_conversion ? NULL : m->info.path;
    /* Another model did not say what is in the transcript. */
    if (base && a->j.model && strcmp(base, a->j.model) != 0)
        chat_put_away(a);
    chat_model_changed(a);
    a->info = m->info;
    a->has_model = true;
    a->calibrated = m->calibrated;
    a->has_conversion = m->has_conversion;
    snprintf(a->device, sizeof a->device, "%s", m->device);
    snprintf(a->chat_reason, sizeof a->chat_reason, "%s", m->chat_reason);
    snprintf(a->chat_note, sizeof a->chat_note, "%s", m->chat_note);
    convert_drop(a);
    heal_drop(a);
    if (m->has_conversion) {
        text_set(&a->j.conversion, m->report.path[0] ? m->report.path : a->opening);
        if (strcmp(m->info.format, "conversion") != 0)
            text_set(&a->j.model, m->info.path);
    } else {
        text_set(&a->j.conversion, NULL);
        text_set(&a->j.model, m->info.path);
    }
    if (m->device_note[0] && !a->message[0])
        app_message(a, ROLE_WARN, "opened %s on the CPU: %s", a->info.name, m->device_note);
    else if (a->j.screen == SCREEN_MODEL && !a->message[0])
        app_message(a, ROLE_GOOD, "opened %s: 2 shows its ranks, 4 talks to it", a->info.name);
    if (a->chat_note[0])
        app_message(a, ROLE_WARN, "%s", a->chat_note);
    if (a->j.model && text_list_last(&a->j.recent, a->j.model, JOURNAL_RECENT))
        worker_submit(a->worker, &job_scan, scan_args(&a->j.recent));
    plan_loaded(a, m);
    if (m->has_conversion)
        convert_adopt(a, &m->plan, &m->report);
    convert_restore(a);
    eval_model_changed(a);
    export_drop(a);
    app_changed(a);
}

/* How far the spectra have settled is said where it is known. */
static void say_calibrated(struct app *a)
{
    double change = 0;
    for (int l = 0; l < a->info.n_layer && a->ranks.has_plan; l++)
        change += a->ranks.curve[l].there ? a->ranks.curve[l].spectrum.change : NAN;
    if (isfinite(change) && a->ranks.has_plan && a->info.n_layer)
        app_message(a, ROLE_GOOD,
                    "calibrated: half of the text would have given spectra within %.1f%%",
                    100 * change / a->info.n_layer);
    else
        app_message(a, ROLE_GOOD, "calibrated: the spectra are those of the text now");
}

static void job_ended(struct app *a, const struct event *v)
{
    if (v->job_kind == &job_calibrate && v->status == OK) {
        bool all = false;
        a->calibrated = true;
        say_calibrated(a);
        if (a->ranks.has_plan && (plan_curves(a, &all) < a->info.n_layer || !all))
            plan_want_spectra(a);
        sensitivity_fetch(a);
    }
    if (v->job_kind == &job_sensitivity)
        sensitivity_job_done(a);
    if (v->job_kind == &job_convert || v->job_kind == &job_calibrate)
        convert_job_done(a, v);
    if (v->job_kind == &job_heal)
        heal_job_done(a, v);
    if (v->job_kind == &job_chat)
        chat_job_done(a, v);
    if (v->job_kind == &job_eval)
        eval_job_done(a, v);
    if (v->job_kind == &job_export)
        export_job_done(a, v);
    if (v->job_kind == &job_load && v->status && v->status != ERR_CANCELLED)
        app_message(a, ROLE_BAD, "%s", v->text ? v->text : "not opened");
    else if (v->status && v->status != ERR_CANCELLED && v->job_kind != &job_chat &&
             v->job_kind != &job_convert && v->job_kind != &job_eval && v->job_kind != &job_export)
        app_message(a, ROLE_BAD, "%s: %s", v->job_kind->name, v->text ? v->text : "failed");
}

static void take_event(struct app *a, struct event *v)
{
    char shown[1024];
    switch (v->kind) {
    case EVENT_DONE: job_ended(a, v); break;
    case EVENT_MODELS: take_found(a, v->data); break;
    case EVENT_LOADED: take_loaded(a, v->data); break;
    case EVENT_SPECTRUM: plan_spectrum(a, v->data); break;
    case EVENT_SENSITIVITY: sensitivity_event(a, v->data); break;
    case EVENT_SEARCHED: search_event(a, v->data); break;
    case EVENT_LAYER:
    case EVENT_CONVERTED:
        if (v->job_kind == &job_unheal)
            heal_event(a, v);
        else
            convert_event(a, v);
        break;
    case EVENT_HEAL:
    case EVENT_HEALED: heal_event(a, v); break;
    case EVENT_ANSWERED: chat_answered(a, v->data); break;
    case EVENT_EVAL:
    case EVENT_RESULTS: eval_event(a, v); break;
    case EVENT_EXPORTED: export_event(a, v->data); break;
    case EVENT_SAVED:
        if (v->status)
            app_message(a, ROLE_BAD, "not saved: %s", v->text ? v->text : "");
        else
            app_message(a, ROLE_GOOD, "saved %s", app_path_text(v->data, shown));
        break;
    default: break;
    }
}

static double resident_bytes(void)
{
    long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f)
        return 0;
    if (fscanf(f, "%ld %ld", &pages, &resident) != 2)
        resident = 0;
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

void app_collect(struct app *a)
{
    struct worker_batch b;
    worker_take(a->worker, &b);
    a->status = b.status;
    if (a->convert.phase == CONVERT_WAITING && b.status.active && b.status.kind == &job_convert)
        a->convert.phase = CONVERT_RUNNING;
    chat_collect(a, &b); /* text first: the events may end the turn it belongs to */
    for (struct event *v = b.events; v; v = v->next)
        take_event(a, v);
    worker_batch_done(&b);
    double now = clock_now();
    if (now - a->memory_sec > 1) {
        a->memory_sec = now;
        a->memory_bytes = resident_bytes();
    }
}

/* ---- keys ---- */

const struct keymap *app_keys(const struct app *a)
{
    return a->options.settings ? &a->options.settings->keys : NULL;
}

enum context app_context(const struct app *a)
{
    if (a->ask.what)
        return IN_ASK;
    if (a->help)
        return IN_HELP;
    return app_help_context(a);
}

enum context app_help_context(const struct app *a)
{
    bool prompt = a->j.screen == SCREEN_CHAT && !a->chat.in_transcript;
    return prompt ? IN_PROMPT : view_of(a->j.screen)->context;
}

static void leave(struct app *a)
{
    /* Spectra and scans start again by themselves; longer work is worth a question. */
    const struct job_kind *long_job = worker_count(a->worker, &job_heal)        ? &job_heal
                                      : worker_count(a->worker, &job_convert)   ? &job_convert
                                      : worker_count(a->worker, &job_calibrate) ? &job_calibrate
                                      : worker_count(a->worker, &job_eval)      ? &job_eval
                                      : worker_count(a->worker, &job_export)    ? &job_export
                                                                                : NULL;
    if (long_job && !a->leave_warned) {
        a->leave_warned = 2;
        app_message(a, ROLE_WARN, "%s is running: the same key again stops it and leaves",
                    long_job->name);
        return;
    }
    a->quit = true;
}

static void help_request(struct app *a, enum request r)
{
    int page = a->options.rows > 6 ? a->options.rows - 4 : 1;
    switch (r) {
    case REQ_UP: a->help_top--; break;
    case REQ_DOWN: a->help_top++; break;
    case REQ_PAGE_UP: a->help_top -= page; break;
    case REQ_PAGE_DOWN: a->help_top += page; break;
    case REQ_FIRST: a->help_top = 0; break;
    case REQ_LAST: a->help_top = 1 << 20; break;
    default: a->help = false; break;
    }
}

static bool list_request(struct app *a, enum request r)
{
    int n = (int)a->found.n, page = a->options.rows > 12 ? a->options.rows - 10 : 2;
    int *at = &a->found_selected;
    switch (r) {
    case REQ_UP: --*at; break;
    case REQ_DOWN: ++*at; break;
    case REQ_PAGE_UP: *at -= page; break;
    case REQ_PAGE_DOWN: *at += page; break;
    case REQ_FIRST: *at = 0; break;
    case REQ_LAST: *at = n - 1; break;
    case REQ_OPEN:
        if (*at < n)
            app_open(a, a->found.entry[*at].path, NULL);
        else
            app_message(a, ROLE_WARN, "no model was found here: p types a path, r looks again");
        break;
    case REQ_PATH: ask_open(a, r, "open model (path or name)", "", true); break;
    case REQ_SCAN:
        worker_submit(a->worker, &job_scan, scan_args(&a->j.recent));
        app_message(a, ROLE_DIM, "looking for models again");
        break;
    default: return false;
    }
    *at = *at >= n ? n - 1 : *at;
    *at = *at < 0 ? 0 : *at;
    return true;
}

static bool convert_request(struct app *a, enum request r)
{
    int *top = &a->convert.top;
    switch (r) {
    case REQ_START:
        heal_drop(a);
        convert_start(a);
        return true;
    case REQ_STOP: return convert_stop(a);
    case REQ_UP: --*top; break;
    case REQ_DOWN: ++*top; break;
    case REQ_PAGE_UP: *top -= 10; break;
    case REQ_PAGE_DOWN: *top += 10; break;
    case REQ_FIRST: *top = 0; break;
    case REQ_LAST: *top = 1 << 20; break;
    default: return false;
    }
    return true;
}

static bool screen_request(struct app *a, enum request r, int key)
{
    switch (a->j.screen) {
    case SCREEN_MODEL: return list_request(a, r);
    case SCREEN_RANKS: return plan_request(a, r);
    case SCREEN_CONVERT: return heal_request(a, r) || convert_request(a, r);
    case SCREEN_CHAT: return chat_request(a, r, key);
    case SCREEN_EVAL: return eval_request(a, r);
    default: return export_request(a, r);
    }
}

static bool global_request(struct app *a, enum request r)
{
    switch (r) {
    case REQ_MODEL:
    case REQ_RANKS:
    case REQ_CONVERT:
    case REQ_CHAT:
    case REQ_EVAL:
    case REQ_EXPORT:
        a->help = false;
        app_go(a, (int)(r - REQ_MODEL));
        return true;
    case REQ_HELP:
        a->help = !a->help;
        a->help_top = 0;
        return true;
    case REQ_QUIT: leave(a); return true;
    case REQ_FIND: find_ask(a); return true;
    case REQ_FIND_NEXT: find_next(a); return true;
    case REQ_REDRAW: a->redraw_all = true; return true;
    case REQ_SUSPEND: a->suspend = true; return true;
    default: return false;
    }
}

/* What a screen does not take itself. */
static bool leftover_request(struct app *a, enum request r)
{
    if (r == REQ_STOP) {
        if (search_stop(a) || sensitivity_stop(a))
            return true;
        if (worker_count(a->worker, &job_calibrate)) {
            worker_cancel_kind(a->worker, &job_calibrate);
            app_message(a, ROLE_NORMAL, "stopping the calibration…");
        } else {
            app_message(a, ROLE_DIM, "nothing runs that Esc could stop");
        }
        return true;
    }
    if (r == REQ_INTERRUPT) {
        if (a->leave_warned)
            a->quit = true;
        a->leave_warned = 2;
        app_message(a, ROLE_NORMAL, "Esc stops what runs; Ctrl-C again, or q, leaves mlathe");
        return true;
    }
    if (r == REQ_NONE || a->j.screen != SCREEN_RANKS)
        return false;
    app_message(a, ROLE_WARN,
                a->has_model ? "this model cannot be converted (screen 1 says why)"
                             : "no model is open: open one on screen 1");
    return true;
}

bool app_key(struct app *a, int key)
{
    enum request r = keys_lookup(app_keys(a), app_context(a), key);
    a->leave_warned -= a->leave_warned > 0;
    a->message[0] = 0;
    if (r != REQ_NONE && global_request(a, r))
        return true;
    if (a->ask.what)
        return ask_key(a, r, key);
    if (a->help) {
        if (r != REQ_NONE)
            help_request(a, r);
        return r != REQ_NONE;
    }
    return screen_request(a, r, key) || leftover_request(a, r);
}

void app_paste(struct app *a, const char *text, size_t n)
{
    enum context where = app_context(a);
    a->message[0] = 0;
    if (where == IN_ASK) {
        /* A question has one line: the first one. */
        textbuf_insert(&a->ask.text, text, strcspn(text, "\r\n") < n ? strcspn(text, "\r\n") : n);
    } else if (where == IN_PROMPT) {
        if (!textbuf_insert(&a->chat.prompt, text, n))
            app_message(a, ROLE_BAD, "too much text: at most %zu KiB", TEXTBUF_MAX >> 10);
        app_changed(a);
    } else {
        app_message(a, ROLE_DIM, "nothing here takes pasted text");
    }
}

void app_click(struct app *a, int row, int col)
{
    const struct rect *r = &a->rows;
    if (!a->ask.what && !a->help && row >= r->y && row < r->y + r->h && col >= r->x &&
        col < r->x + r->w)
        *a->rows_at = a->rows_top + row - r->y;
}
