/* The app: start and end, results to state, saving (keys: app_keys.c). Refuses nothing a user may
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
    a->loads += worker_submit(a->worker, &job_load, load_args(path, fallback)) != 0;
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
    /* Of one that another of its kind replaced nothing is said; a conversion that waited says more.
     */
    if ((v->job_kind == &job_calibrate || v->job_kind == &job_sensitivity) &&
        v->status == ERR_CANCELLED && !worker_count(a->worker, v->job_kind))
        app_message(a, ROLE_NORMAL, "%s: stopped", v->job_kind->name);
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
    a->loads -= v->job_kind == &job_load;
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
