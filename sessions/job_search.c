/* The job that finds the best rope width for a budget. It refuses to search without statistics;
 * stopped, it posts the best of what it tried. */
#include <stdlib.h>

#include "sessions/jobs.h"
#include "sessions/search.h"

struct search_job {
    struct rankplan plan;
    int even;
};

static void args_free(void *args)
{
    struct search_job *a = args;
    if (a)
        rankplan_done(&a->plan);
    free(a);
}

void *search_args(const struct rankplan *plan, int even)
{
    struct search_job *a = mem_calloc(1, sizeof *a);
    if (!a || rankplan_copy(&a->plan, plan, NULL)) {
        free(a);
        return NULL;
    }
    a->even = even;
    return a;
}

static void found_free(void *data)
{
    struct search_result *found = data;
    if (found)
        search_result_done(found);
    free(found);
}

static int run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct search_job *a = args;
    struct progress p = job_progress(j);
    if (!s->w || !workspace_is_open(s->w))
        return err_set(e, ERR_ARG, "no model is open: open one on screen 1");
    struct search_result *found = a ? mem_calloc(1, sizeof *found) : NULL;
    if (!found)
        return err_nomem(e, sizeof *a, "a search");
    int rc = workspace_search(s->w, &a->plan, a->even, found, &p, e);
    if (rc) {
        free(found);
        return rc;
    }
    job_post(j, EVENT_SEARCHED, found, found_free);
    return OK;
}

const struct job_kind job_search = {"search", run, args_free};
