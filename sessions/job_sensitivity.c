/* The job that measures what converting each layer costs, or fetches what was measured before. It
 * refuses to measure without statistics. */
#include <stdlib.h>

#include "sessions/jobs.h"

struct sensitivity_job {
    struct rankplan plan;
    int even;
    bool measure;
    char *cache_dir;
};

static void args_free(void *args)
{
    struct sensitivity_job *a = args;
    if (!a)
        return;
    rankplan_done(&a->plan);
    free(a->cache_dir);
    free(a);
}

void *sensitivity_args(const struct rankplan *plan, int even, bool measure, const char *cache_dir)
{
    struct sensitivity_job *a = mem_calloc(1, sizeof *a);
    if (!a || rankplan_copy(&a->plan, plan, NULL)) {
        free(a);
        return NULL;
    }
    a->even = even;
    a->measure = measure;
    a->cache_dir = cache_dir ? mem_strdup(cache_dir) : NULL;
    return a;
}

static void found_free(void *data)
{
    struct sensitivity *s = data;
    if (s)
        sensitivity_done(s);
    free(s);
}

static int run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct sensitivity_job *a = args;
    struct progress p = job_progress(j);
    if (!s->w || !workspace_is_open(s->w))
        return err_set(e, ERR_ARG, "no model is open: open one on screen 1");
    struct sensitivity *found = a ? mem_calloc(1, sizeof *found) : NULL;
    if (!found)
        return err_nomem(e, sizeof *a, "sensitivities");
    int rc = workspace_sensitivity(s->w, &a->plan, a->even, a->measure, a->cache_dir, found, &p, e);
    if (rc) {
        free(found);
        return a->measure ? rc : OK;
    }
    job_post(j, EVENT_SENSITIVITY, found, found_free);
    return OK;
}

const struct job_kind job_sensitivity = {"sensitivity", run, args_free};
