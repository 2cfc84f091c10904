/* The export job. Refuses to run without an open conversion. */
#include "sessions/job_export.h"

#include <stdlib.h>

#include "sessions/jobs.h"

struct export_args {
    struct export_options o;
    char *path, *from, *text;
    const char *file[1]; /* text */
};

static void export_args_free(void *args)
{
    struct export_args *a = args;
    if (a) {
        free(a->path);
        free(a->from);
        free(a->text);
    }
    free(a);
}

void *export_args(const struct export_options *o)
{
    struct export_args *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->o = *o;
    a->path = mem_strdup(o->path ? o->path : "");
    a->from = o->from ? mem_strdup(o->from) : NULL;
    a->text = o->n_files ? mem_strdup(o->files[0]) : NULL;
    a->o.path = a->path;
    a->o.from = a->from;
    a->file[0] = a->text;
    a->o.files = a->file;
    a->o.n_files = a->text != NULL;
    if (!a->path || (o->from && !a->from) || (o->n_files && !a->text)) {
        export_args_free(a);
        return NULL;
    }
    return a;
}

static void report_free(void *data)
{
    struct export_report *r = data;
    if (r)
        export_report_done(r);
    free(r);
}

static int export_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct export_args *a = args;
    struct progress p = job_progress(j);
    if (!s->w || !workspace_has_conversion(s->w))
        return err_set(e, ERR_ARG, "nothing is converted yet: c on screen 2 converts");
    struct export_report *r = a ? mem_calloc(1, sizeof *r) : NULL;
    if (!r)
        return err_nomem(e, sizeof *r, "an export");
    int rc = workspace_export(s->w, &a->o, &p, r, e);
    if (rc) {
        free(r);
        return rc;
    }
    job_post(j, EVENT_EXPORTED, r, report_free);
    return OK;
}

const struct job_kind job_export = {"export", export_run, export_args_free};
