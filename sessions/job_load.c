/* Jobs that look for models and open one. A model that cannot be opened leaves the open one as it
 * is: workspace_open promises that, and this file touches nothing before it succeeded. */
#include "sessions/journal.h"
#include "sessions/jobs.h"
#include "sessions/workspace_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void shop_done(struct shop *s)
{
    chat_free(s->chat);
    workspace_free(s->w);
    free(s->chat_system);
    s->chat = NULL;
    s->w = NULL;
    s->chat_system = NULL;
}

void shop_failed(void *shop, int status, struct err *e)
{
    struct shop *s = shop;
    struct err why = {0};
    if (status == ERR_CANCELLED || !s->w || !workspace_device_lost(s->w))
        return;
    chat_free(s->chat); /* its timelines are on the device; the transcript is the screen's */
    s->chat = NULL;
    if (workspace_leave_device(s->w, "the accelerator was lost", &why))
        err_set(e, ERR_DEVICE, "the accelerator was lost, and the CPU cannot take over: %s",
                why.text);
    else
        err_set(e, ERR_DEVICE,
                "the accelerator was lost: mlathe goes on with the CPU; start this again");
}

static void found_free(void *data)
{
    struct found_models *f = data;
    if (f)
        models_free(f->entry, f->n);
    free(f);
}

static void scan_free(void *args)
{
    struct text_list *recent = args;
    if (recent)
        text_list_done(recent);
    free(recent);
}

static int scan_run(struct job *j, void *shop, void *args, struct err *e)
{
    const struct text_list *recent = args;
    (void)shop;
    struct found_models *f = mem_calloc(1, sizeof *f);
    if (!f)
        return err_nomem(e, sizeof *f, "list of models");
    int rc = models_scan(&f->entry, &f->n, recent ? (const char *const *)recent->text : NULL,
                         recent ? recent->n : 0, e);
    if (rc) {
        found_free(f);
        return rc;
    }
    job_post(j, EVENT_MODELS, f, found_free);
    return OK;
}

const struct job_kind job_scan = {"scan", scan_run, scan_free};

void *scan_args(const struct text_list *recent)
{
    struct text_list *copy = mem_calloc(1, sizeof *copy); /* NULL: the scan does without */
    for (size_t i = 0; copy && i < recent->n; i++)
        text_list_add(copy, recent->text[i], recent->n);
    return copy;
}

struct load_args {
    char *path, *fallback;
};

static void load_args_free(void *args)
{
    struct load_args *a = args;
    if (!a)
        return;
    free(a->path);
    free(a->fallback);
    free(a);
}

void *load_args(const char *path, const char *fallback)
{
    struct load_args *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->path = path ? mem_strdup(path) : NULL;
    a->fallback = fallback ? mem_strdup(fallback) : NULL;
    return a;
}

static void loaded_free(void *data)
{
    struct loaded_model *m = data;
    if (m && m->has_conversion) {
        rankplan_done(&m->plan);
        conversion_report_done(&m->report);
    }
    free(m);
}

static int open_one(struct shop *s, const char *name, const struct progress *p, struct err *e)
{
    char *path = NULL;
    int rc = models_resolve(name, &path, e);
    if (rc == OK) {
        /* The chat borrows the engines that opening another model lets go. */
        chat_free(s->chat);
        s->chat = NULL;
        rc = workspace_open(s->w, path, p, e);
    }
    free(path);
    return rc;
}

static void describe(struct shop *s, struct loaded_model *m)
{
    struct err why = {0};
    workspace_info(s->w, &m->info);
    workspace_describe(s->w, m->device, sizeof m->device);
    snprintf(m->device_note, sizeof m->device_note, "%s", workspace_device_note(s->w));
    m->calibrated = workspace_calibrated(s->w);
    if (!workspace_tokenizer(s->w, &why) || !workspace_chatfmt(s->w, &why))
        snprintf(m->chat_reason, sizeof m->chat_reason, "%.250s", why.text);
    else if (chatfmt_note(workspace_chatfmt(s->w, &why)))
        snprintf(m->chat_note, sizeof m->chat_note, "%s",
                 chatfmt_note(workspace_chatfmt(s->w, &why)));
    if (workspace_has_conversion(s->w))
        m->has_conversion = workspace_conversion(s->w, &m->plan, &m->report, &why);
}

static int load_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct load_args *a = args;
    struct progress p = job_progress(j);
    if (!a)
        return err_nomem(e, sizeof *a, "load");
    if (!s->w) {
        int rc = workspace_new(&s->w, &s->options, e);
        if (rc)
            return rc;
    }
    int rc = open_one(s, a->path, &p, e);
    if (rc && rc != ERR_CANCELLED && a->fallback) {
        struct err second = {0};
        if (open_one(s, a->fallback, &p, &second) == OK)
            rc = OK;
    }
    if (rc)
        return rc;
    struct loaded_model *m = mem_calloc(1, sizeof *m);
    if (!m)
        return err_nomem(e, sizeof *m, "model description");
    describe(s, m);
    job_post(j, EVENT_LOADED, m, loaded_free);
    return OK;
}

const struct job_kind job_load = {"load", load_run, load_args_free};
