/* The healing job: distil for a while, post every step, then what is in use. Stopped, the best so
 * far is taken all the same and the folder's checkpoint can go on. */
#include "sessions/job_heal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"

struct heal_job {
    struct heal_options options;
    char *file, *from, *dir;
};

static void heal_args_free(void *args)
{
    struct heal_job *a = args;
    if (!a)
        return;
    free(a->file);
    free(a->from);
    free(a->dir);
    free(a);
}

void *heal_args(const struct heal_wish *wish)
{
    struct heal_job *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->options = wish->options;
    a->options.seed = 42;
    a->file = wish->file ? mem_strdup(wish->file) : NULL;
    a->from = wish->from ? mem_strdup(wish->from) : NULL;
    a->dir = wish->options.dir ? mem_strdup(wish->options.dir) : NULL;
    return a;
}

void *heal_dir_args(const char *dir)
{
    return mem_strdup(dir);
}

static void stepped(void *user, const struct heal_point *p)
{
    struct heal_point *copy = mem_calloc(1, sizeof *copy);
    if (!copy)
        return;
    *copy = *p;
    job_post(user, EVENT_HEAL, copy, free);
}

static void converted_done(struct converted_model *m)
{
    rankplan_done(&m->plan);
    conversion_report_done(&m->report);
}

static void converted_free(void *data)
{
    struct converted_model *m = data;
    if (m)
        converted_done(m);
    free(m);
}

static void healed_free(void *data)
{
    struct healed_model *m = data;
    if (!m)
        return;
    converted_done(&m->now);
    heal_report_done(&m->heal);
    free(m);
}

/* The chat borrows the converted engine, which is about to change. */
static int begin(struct shop *s, struct err *e)
{
    if (!s->w || !workspace_has_conversion(s->w))
        return err_set(e, ERR_ARG, "nothing to heal: convert first (c)");
    chat_free(s->chat);
    s->chat = NULL;
    return OK;
}

static int heal_job_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct heal_job *a = args;
    struct progress p = job_progress(j);
    struct heal_sink sink = {.on_step = stepped, .user = j};
    const char *files[1] = {a ? a->file : NULL};
    bool changed = false;
    int rc = a ? begin(s, e) : err_nomem(e, sizeof *a, "healing");
    if (!rc && a->from)
        rc = workspace_take(s->w, a->from, e);
    struct healed_model *m = rc ? NULL : mem_calloc(1, sizeof *m);
    if (!rc && !m)
        rc = err_nomem(e, sizeof *m, "healing");
    if (rc)
        return rc;
    a->options.dir = a->dir;
    rc =
        workspace_heal(s->w, &a->options, files, a->file ? 1 : 0, &sink, &p, &m->heal, &changed, e);
    if (changed && workspace_conversion(s->w, &m->now.plan, &m->now.report, NULL))
        job_post(j, EVENT_HEALED, m, healed_free);
    else
        healed_free(m);
    return rc;
}

const struct job_kind job_heal = {"heal", heal_job_run, heal_args_free};

static int unheal_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    int rc = args ? begin(s, e) : err_nomem(e, 1, "a path");
    if (!rc)
        rc = workspace_take(s->w, args, e);
    struct converted_model *m = rc ? NULL : mem_calloc(1, sizeof *m);
    if (m && workspace_conversion(s->w, &m->plan, &m->report, e))
        job_post(j, EVENT_CONVERTED, m, converted_free);
    else
        free(m);
    return rc;
}

const struct job_kind job_unheal = {"undo", unheal_run, free};

static int forget_run(struct job *j, void *shop, void *args, struct err *e)
{
    (void)j, (void)shop, (void)e;
    if (args)
        heal_forget(args);
    return OK;
}

const struct job_kind job_heal_forget = {"tidy", forget_run, free};
