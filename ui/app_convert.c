/* Conversion as the screens see it: start (calibrating first when nothing is known), the layers as
 * they finish, and the result, which replaces the old one only when all of it is there. */
#include "ui/app_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/clock.h"

static void end_run(struct convert_state *c)
{
    if (c->phase != CONVERT_NONE)
        rankplan_done(&c->plan);
    free(c->report);
    free(c->reported);
    c->report = NULL;
    c->reported = NULL;
    c->n_layer = c->n_reported = c->top = 0;
    c->trouble[0] = 0;
    c->phase = CONVERT_NONE;
}

/* Plans that will not have their turn are kept as files; on leaving, in the journal. */
static void drop_queue(struct app *a)
{
    struct convert_state *c = &a->convert;
    size_t n = c->n_queue;
    for (size_t i = 0; i < n; i++) {
        if (a->saver) {
            free(plan_put_away(a, &c->queue[i]));
            saver_flush(a->saver); /* the next one's name is free when this one's is taken */
        }
        rankplan_done(&c->queue[i]);
    }
    free(c->queue);
    c->queue = NULL;
    c->n_queue = c->cap_queue = 0;
    if (n)
        app_message(a, ROLE_NORMAL, "the %zu plan%s that waited: o on screen 2 loads %s", n,
                    n > 1 ? "s" : "", n > 1 ? "them again" : "it again");
}

void convert_drop(struct app *a)
{
    struct convert_state *c = &a->convert;
    end_run(c);
    drop_queue(a);
    if (c->has_result) {
        rankplan_done(&c->result_plan);
        conversion_report_done(&c->result);
    }
    *c = (struct convert_state){0};
}

/* Takes plan and report over. */
void convert_adopt(struct app *a, struct rankplan *plan, struct conversion_report *r)
{
    struct convert_state *c = &a->convert;
    if (c->has_result) {
        rankplan_done(&c->result_plan);
        conversion_report_done(&c->result);
    }
    c->result_plan = *plan;
    c->result = *r;
    c->has_result = true;
    *plan = (struct rankplan){0};
    *r = (struct conversion_report){0};
}

static bool running(const struct app *a)
{
    return a->convert.phase == CONVERT_WAITING || a->convert.phase == CONVERT_RUNNING;
}

static void submit(struct app *a)
{
    char *dir = a->lock >= 0 ? path_join(a->paths.data, "conversions") : NULL;
    worker_submit(a->worker, &job_convert, convert_args(&a->convert.plan, dir));
    free(dir);
}

/* Takes plan over. */
static void begin(struct app *a, struct rankplan *plan)
{
    struct convert_state *c = &a->convert;
    end_run(c);
    int n = plan->model.n_layer;
    c->plan = *plan;
    c->phase = CONVERT_WAITING;
    c->report = mem_calloc((size_t)n, sizeof *c->report);
    c->reported = mem_calloc((size_t)n, sizeof *c->reported);
    c->n_layer = c->report && c->reported ? n : 0;
    c->started_sec = clock_now();
    c->calibrate_first = !a->calibrated;
    if (c->calibrate_first && worker_count(a->worker, &job_calibrate) == 0)
        calibrate_again(a, &c->plan);
    if (!c->calibrate_first)
        submit(a);
    app_changed(a);
}

static bool push(struct convert_state *c, struct rankplan *plan)
{
    if (!mem_grow((void **)&c->queue, &c->cap_queue, c->n_queue + 1, sizeof *c->queue)) {
        rankplan_done(plan);
        return false;
    }
    c->queue[c->n_queue++] = *plan;
    return true;
}

void convert_keep(struct app *a)
{
    const struct convert_state *c = &a->convert;
    cJSON *list = a->queue_found ? cJSON_Duplicate(a->queue_found, true) : cJSON_CreateArray();
    cJSON *plan = NULL;
    if (running(a) && rankplan_to_json(&c->plan, &plan, NULL) == OK)
        cJSON_AddItemToArray(list, plan);
    for (size_t i = 0; i < c->n_queue; i++)
        if (rankplan_to_json(&c->queue[i], &plan, NULL) == OK)
            cJSON_AddItemToArray(list, plan);
    cJSON_Delete(a->j.queue);
    a->j.queue = NULL;
    if (cJSON_GetArraySize(list))
        a->j.queue = list;
    else
        cJSON_Delete(list);
}

/* They wait until the user says so: a start alone should not load the machine. */
void convert_restore(struct app *a)
{
    struct convert_state *c = &a->convert;
    cJSON *found = a->queue_found;
    if (!found || !a->info.convertible)
        return;
    a->queue_found = NULL;
    for (cJSON *item; (item = cJSON_DetachItemFromArray(found, 0)) != NULL;) {
        struct rankplan plan;
        struct err why = {0};
        if (rankplan_from_json(&plan, &a->info.plan_model, item, "a waiting plan", &why) == OK) {
            push(c, &plan);
            cJSON_Delete(item);
        } else {
            plan_keep_foreign(a, &item, why.text);
            saver_flush(a->saver);
        }
    }
    cJSON_Delete(found);
    if (c->n_queue)
        app_message(a, ROLE_WARN, "%zu plan%s to be converted: screen 3, c begins, Esc lets go",
                    c->n_queue, c->n_queue > 1 ? "s wait" : " waits");
    app_changed(a);
}

/* Behind the running one; the same plan does not wait twice. */
static void enqueue(struct app *a, struct rankplan *plan)
{
    struct convert_state *c = &a->convert;
    const struct rankplan *before = c->n_queue ? &c->queue[c->n_queue - 1] : &c->plan;
    if (rankplan_equal(before, plan)) {
        app_message(a, ROLE_WARN, "this plan is being converted already: Esc on screen 3 stops it");
        rankplan_done(plan);
    } else if (!push(c, plan)) {
        app_message(a, ROLE_BAD, "out of memory");
    } else {
        app_changed(a);
        app_message(a, ROLE_GOOD, "%zu plan%s wait%s behind the running conversion (screen 3)",
                    c->n_queue, c->n_queue > 1 ? "s" : "", c->n_queue > 1 ? "" : "s");
    }
}

static void begin_next(struct app *a)
{
    struct convert_state *c = &a->convert;
    if (!c->n_queue)
        return;
    struct rankplan next = c->queue[0];
    memmove(c->queue, c->queue + 1, --c->n_queue * sizeof *c->queue);
    begin(a, &next);
}

void convert_start(struct app *a)
{
    const struct convert_state *c = &a->convert;
    struct rankplan plan;
    if (!a->ranks.has_plan) {
        app_message(a, ROLE_WARN, "open a model that can be converted first (screen 1)");
        return;
    }
    /* What waits since the last start goes first, unless screen 2 asks for another plan. */
    if (!running(a) && c->n_queue &&
        (a->j.screen == SCREEN_CONVERT || rankplan_equal(&c->queue[0], &a->ranks.plan))) {
        begin_next(a);
        app_go(a, SCREEN_CONVERT);
        return;
    }
    if (rankplan_copy(&plan, &a->ranks.plan, NULL)) {
        app_message(a, ROLE_BAD, "out of memory");
        return;
    }
    if (running(a)) {
        enqueue(a, &plan);
        return;
    }
    begin(a, &plan);
    app_go(a, SCREEN_CONVERT);
}

bool convert_stop(struct app *a)
{
    if (!running(a)) {
        bool waits = a->convert.n_queue > 0;
        drop_queue(a);
        app_changed(a);
        return waits;
    }
    if (a->convert.calibrate_first)
        worker_cancel_kind(a->worker, &job_calibrate);
    worker_cancel_kind(a->worker, &job_convert);
    app_message(a, ROLE_NORMAL, "stopping…");
    drop_queue(a);
    return true;
}

static void layer_event(struct convert_state *c, const struct layer_done *d)
{
    if (d->layer < 0 || d->layer >= c->n_layer)
        return;
    c->report[d->layer] = d->report;
    c->n_reported += !c->reported[d->layer];
    c->reported[d->layer] = true;
}

void convert_event(struct app *a, struct event *v)
{
    struct convert_state *c = &a->convert;
    if (v->kind == EVENT_LAYER) {
        c->phase = c->phase == CONVERT_WAITING ? CONVERT_RUNNING : c->phase;
        layer_event(c, v->data);
        return;
    }
    struct converted_model *m = v->data;
    c->phase = CONVERT_DONE;
    c->ended_sec = clock_now();
    for (int l = 0; l < m->report.n_layer; l++)
        layer_event(c, &(struct layer_done){l, m->report.layer[l]});
    snprintf(c->trouble, sizeof c->trouble, "%s", m->save_error);
    convert_adopt(a, &m->plan, &m->report);
    a->has_conversion = true;
    if (c->result.path[0]) {
        text_set(&a->j.conversion, c->result.path);
        text_list_add(&a->j.conversions, c->result.path, 1000);
        worker_submit(a->worker, &job_scan, scan_args(&a->j.recent)); /* the list of screen 1 */
        app_message(a, ROLE_GOOD, "converted and saved; 4 talks with both");
    } else if (a->lock < 0) {
        app_message(a, ROLE_WARN, "converted; not saved, since another mlathe has the workspace");
    } else {
        app_message(a, ROLE_BAD, "converted, but not saved: %s", c->trouble);
    }
    chat_model_changed(a);
    eval_model_changed(a);
    app_changed(a);
}

static void ended(struct app *a, const struct event *v)
{
    struct convert_state *c = &a->convert;
    if (!running(a))
        return;
    if (v->job_kind == &job_calibrate && c->calibrate_first && v->status == OK) {
        c->calibrate_first = false;
        submit(a);
        return;
    }
    if (v->job_kind == &job_calibrate ? !c->calibrate_first : v->status == OK)
        return;
    c->ended_sec = clock_now();
    app_changed(a);
    c->phase = v->status == ERR_CANCELLED ? CONVERT_STOPPED : CONVERT_FAILED;
    if (v->status == ERR_CANCELLED) {
        app_message(a, ROLE_NORMAL, "stopped: everything is as before");
    } else {
        snprintf(c->trouble, sizeof c->trouble, "%.500s", v->text ? v->text : "out of memory");
        app_message(a, ROLE_BAD, "not converted: %s", c->trouble);
    }
}

void convert_job_done(struct app *a, const struct event *v)
{
    ended(a, v);
    if (!running(a))
        begin_next(a);
}
