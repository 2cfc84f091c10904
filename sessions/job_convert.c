/* The conversion job: convert by a plan, then keep the result in a fresh folder. A conversion that
 * worked but could not be written is still there to talk to; the reason travels with the result. */
#include "sessions/jobs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

struct convert_args {
    struct rankplan plan;
    bool has_plan;
    char *dir;
};

static void convert_args_free(void *args)
{
    struct convert_args *a = args;
    if (!a)
        return;
    if (a->has_plan)
        rankplan_done(&a->plan);
    free(a->dir);
    free(a);
}

void *convert_args(const struct rankplan *plan, const char *dir)
{
    struct convert_args *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->has_plan = rankplan_copy(&a->plan, plan, NULL) == OK;
    a->dir = dir ? mem_strdup(dir) : NULL;
    if (!a->has_plan) {
        convert_args_free(a);
        return NULL;
    }
    return a;
}

static void layer_converted(void *user, int layer, const struct layer_report *r)
{
    struct layer_done *d = mem_calloc(1, sizeof *d);
    if (!d)
        return;
    d->layer = layer;
    d->report = *r;
    job_post(user, EVENT_LAYER, d, free);
}

static void save(struct shop *s, const struct convert_args *a, struct converted_model *m)
{
    struct err e = {0};
    char *path = path_free(a->dir, a->plan.model.name, "");
    int rc = path ? file_mkdirs(a->dir, &e) : err_set(&e, ERR_IO, "%s: no free name", a->dir);
    if (rc == OK)
        rc = workspace_save(s->w, path, &e);
    if (rc == OK)
        snprintf(m->report.path, sizeof m->report.path, "%s", path);
    else
        snprintf(m->save_error, sizeof m->save_error, "%.500s", e.text);
    free(path);
}

static void converted_free(void *data)
{
    struct converted_model *m = data;
    if (!m)
        return;
    rankplan_done(&m->plan);
    conversion_report_done(&m->report);
    free(m);
}

static int convert_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct convert_args *a = args;
    struct progress p = job_progress(j);
    struct convert_sink sink = {layer_converted, j};
    if (!s->w || !workspace_is_open(s->w))
        return err_set(e, ERR_ARG, "no model is open: open one on screen 1");
    struct converted_model *m = a ? mem_calloc(1, sizeof *m) : NULL;
    if (!m || rankplan_copy(&m->plan, &a->plan, e)) {
        free(m);
        return err_nomem(e, sizeof *m, "conversion");
    }
    workspace_stamp_plan(s->w, &m->plan);
    /* The converted engine is replaced when this succeeds, and the chat borrows it. */
    chat_free(s->chat);
    s->chat = NULL;
    int rc = workspace_convert(s->w, &m->plan, &sink, &p, &m->report, e);
    if (rc) {
        converted_free(m);
        return rc;
    }
    if (a->dir) {
        progress_report(&p, "save", 0, 1);
        save(s, a, m);
    }
    job_post(j, EVENT_CONVERTED, m, converted_free);
    return OK;
}

const struct job_kind job_convert = {"convert", convert_run, convert_args_free};
