/* Where a key goes: to the question, the help, the screen, or what all screens share; pastes and
 * clicks likewise. */
#include <string.h>

#include "ui/app_parts.h"
#include "ui/settings.h"

const struct keymap *app_keys(const struct app *a)
{
    return a->options.settings ? &a->options.settings->keys : NULL;
}

enum dtype app_cache_type(const struct app *a)
{
    return a->options.settings ? a->options.settings->cache : settings_default().cache;
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

#define WITHOUT_END ((1 << 20) + 1) /* of a list whose view knows where it ends */

bool list_move(enum request r, int n, int page, int *at)
{
    switch (r) {
    case REQ_UP: --*at; break;
    case REQ_DOWN: ++*at; break;
    case REQ_PAGE_UP: *at -= page; break;
    case REQ_PAGE_DOWN: *at += page; break;
    case REQ_FIRST: *at = 0; break;
    case REQ_LAST: *at = n - 1; break;
    default: return false;
    }
    *at = *at >= n ? n - 1 : *at;
    *at = *at < 0 ? 0 : *at;
    return true;
}

static void help_request(struct app *a, enum request r)
{
    int page = a->options.rows > 6 ? a->options.rows - 4 : 1;
    if (!list_move(r, WITHOUT_END, page, &a->help_top))
        a->help = false;
}

static bool list_request(struct app *a, enum request r)
{
    int n = (int)a->found.n, page = a->options.rows > 12 ? a->options.rows - 10 : 2;
    int *at = &a->found_selected;
    if (list_move(r, n, page, at))
        return true;
    switch (r) {
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
    return true;
}

static bool convert_request(struct app *a, enum request r)
{
    switch (r) {
    case REQ_START:
        heal_drop(a);
        convert_start(a);
        return true;
    case REQ_STOP: return convert_stop(a);
    default: return list_move(r, WITHOUT_END, 10, &a->convert.top);
    }
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
