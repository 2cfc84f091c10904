/* Healing as screen 3 drives it: ask for how long, follow the steps, pause and go on, stop and
 * keep, undo. Refuses to begin without a conversion, or while one is made. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/clock.h"
#include "ui/app_parts.h"

static void clear_curve(struct heal_screen *h)
{
    free(h->train);
    free(h->held);
    h->train = h->held = NULL;
    h->n = h->cap = 0;
    h->kl_before = h->kl_best = NAN;
    h->end[0] = h->trouble[0] = 0;
}

void heal_drop(struct app *a)
{
    struct heal_screen *h = &a->heal;
    if (h->phase == HEAL_RUNNING && a->worker)
        worker_cancel_kind(a->worker, &job_heal);
    clear_curve(h);
    free(h->file);
    free(h->from);
    free(h->dir);
    *h = (struct heal_screen){0};
}

static void submit(struct app *a, bool again)
{
    struct heal_screen *h = &a->heal;
    struct heal_wish wish = {.options = h->how, .file = h->file, .from = again ? h->from : NULL};
    wish.options.dir = h->dir;
    clear_curve(h);
    h->phase = HEAL_RUNNING;
    h->pausing = false;
    h->started_sec = clock_now();
    worker_submit(a->worker, &job_heal, heal_args(&wish));
}

bool heal_answer(struct app *a, const char *text)
{
    struct heal_screen *h = &a->heal;
    struct heal_options how;
    struct err e = {0};
    char *file;
    if (heal_parse(&how, text, &file, &e))
        return ask_refuse(a, &e);
    h->how = how;
    free(h->file);
    free(h->from);
    free(h->dir);
    h->file = file ? file : calibrate_file(a);
    h->from = a->convert.result.path[0] ? mem_strdup(a->convert.result.path) : NULL;
    char *dir = a->lock >= 0 ? path_join(a->paths.data, "conversions") : NULL;
    char *name = dir ? mem_printf("%s-healed", a->info.name) : NULL;
    h->dir = name ? path_free(dir, name, "") : NULL;
    free(name);
    free(dir);
    submit(a, false);
    return true;
}

static void ask(struct app *a)
{
    if (!a->has_conversion || !a->convert.has_result)
        app_message(a, ROLE_WARN, "nothing to heal yet: c converts");
    else if (worker_count(a->worker, &job_convert))
        app_message(a, ROLE_WARN, "a conversion is being made: wait for it, or stop it with Esc");
    else
        ask_hinted(a, REQ_HEAL, "heal for", "10", true,
                   "10 (minutes), 50000 tokens, or kl 0.3; then what you like of: refit 4096 (0: "
                   "none), train kv_b,q,o,kv_a, lr 0.002, match 1, next-token 0.1, length 256, "
                   "batch 512, accumulate 1; then a text file");
}

/* Back to the folder that was healed. */
static void undo(struct app *a)
{
    struct heal_screen *h = &a->heal;
    if (h->phase != HEAL_DONE && h->phase != HEAL_PAUSED) {
        app_message(a, ROLE_WARN, "no healing to undo");
    } else if (!h->from) {
        app_message(a, ROLE_WARN, "the conversion before was not saved");
    } else {
        worker_submit(a->worker, &job_unheal, heal_dir_args(h->from));
        heal_drop(a);
    }
}

static void pause_or_go_on(struct app *a)
{
    struct heal_screen *h = &a->heal;
    if (h->phase == HEAL_RUNNING && h->dir && h->from) {
        h->pausing = true;
        worker_cancel_kind(a->worker, &job_heal);
        app_message(a, ROLE_NORMAL, "pausing…");
    } else if (h->phase == HEAL_RUNNING) {
        app_message(a, ROLE_WARN, "it cannot pause: nothing of it is saved");
    } else if (h->phase == HEAL_PAUSED) {
        submit(a, true);
    } else {
        app_message(a, ROLE_DIM, "no healing to pause: h begins one");
    }
}

static bool stop(struct app *a)
{
    struct heal_screen *h = &a->heal;
    if (h->phase == HEAL_PAUSED) { /* kept as it is, for good */
        worker_submit(a->worker, &job_heal_forget, heal_dir_args(h->dir));
        h->phase = HEAL_DONE;
        return true;
    }
    if (h->phase != HEAL_RUNNING)
        return false;
    h->pausing = false;
    worker_cancel_kind(a->worker, &job_heal);
    app_message(a, ROLE_NORMAL, "stopping; what was reached is kept…");
    return true;
}

bool heal_request(struct app *a, enum request r)
{
    switch (r) {
    case REQ_HEAL:
        if (a->heal.phase == HEAL_PAUSED || a->heal.phase == HEAL_RUNNING)
            pause_or_go_on(a);
        else
            ask(a);
        return true;
    case REQ_PAUSE: pause_or_go_on(a); return true;
    case REQ_UNDO: undo(a); return true;
    case REQ_STOP: return stop(a);
    default: return false;
    }
}

static void take_point(struct heal_screen *h, const struct heal_point *p)
{
    void *train = h->train, *held = h->held;
    size_t cap = h->cap;
    bool measured = !isnan(p->held_kl);
    if (measured) {
        h->kl_before = isnan(h->kl_before) ? p->held_kl : h->kl_before;
        h->kl_best = fmin(h->kl_best, p->held_kl); /* fmin(NAN, x) is x */
    }
    if (!mem_grow(&train, &cap, h->n + 1, sizeof *h->train))
        return;
    h->train = train;
    if (!mem_grow(&held, &h->cap, h->n + 1, sizeof *h->held))
        return;
    h->held = held;
    h->train[h->n] = measured && h->n ? h->train[h->n - 1] : p->train_kl;
    h->held[h->n] = measured ? p->held_kl : h->n ? h->held[h->n - 1] : NAN;
    h->n++;
    h->last = *p;
}

void heal_event(struct app *a, struct event *v)
{
    struct heal_screen *h = &a->heal;
    if (v->kind == EVENT_HEAL) {
        if (h->phase == HEAL_RUNNING)
            take_point(h, v->data);
        return;
    }
    if (v->kind == EVENT_CONVERTED) {
        struct converted_model *m = v->data;
        convert_adopt(a, &m->plan, &m->report);
        app_message(a, ROLE_GOOD, "the conversion is as it was before healing");
    } else {
        struct healed_model *m = v->data;
        convert_adopt(a, &m->now.plan, &m->now.report);
        h->kl_before = m->heal.kl_before;
        h->kl_best = m->heal.kl_after;
        snprintf(h->end, sizeof h->end, "%s", m->heal.end);
    }
    if (a->convert.result.path[0]) {
        text_set(&a->j.conversion, a->convert.result.path);
        text_list_add(&a->j.conversions, a->convert.result.path, 1000);
        worker_submit(a->worker, &job_scan, scan_args(&a->j.recent));
    }
    chat_model_changed(a);
    eval_model_changed(a);
    app_changed(a);
}

void heal_job_done(struct app *a, const struct event *v)
{
    struct heal_screen *h = &a->heal;
    if (h->phase != HEAL_RUNNING)
        return;
    bool stopped = v->status == ERR_CANCELLED, reached = h->end[0];
    h->phase = v->status == OK ? HEAL_DONE : HEAL_FAILED;
    if (stopped && reached)
        h->phase = h->pausing ? HEAL_PAUSED : HEAL_DONE;
    if (stopped && !reached)
        h->phase = HEAL_OFF; /* nothing was measured yet: nothing has changed */
    if (h->phase == HEAL_FAILED)
        snprintf(h->trouble, sizeof h->trouble, "%.500s", v->text ? v->text : "out of memory");
    else if (h->phase == HEAL_PAUSED)
        app_message(a, ROLE_NORMAL, "paused: p goes on; the best so far is in use");
    else if (h->phase == HEAL_DONE)
        app_message(a, ROLE_GOOD, "healed: KL %.3f → %.3f; z undoes", h->kl_before, h->kl_best);
    if (stopped && h->phase == HEAL_DONE && h->dir)
        worker_submit(a->worker, &job_heal_forget, heal_dir_args(h->dir));
}
