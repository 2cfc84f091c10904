/* bench --plan: how long a plan takes to solve from statistics that are there: the first time,
 * again with every layer's rank changed, and again with one. The medians of all repetitions. */
#include <stdlib.h>
#include <string.h>

#include "sessions/clock.h"
#include "ui/cli_plan.h"

enum { SOLVE_STEP = 4 }; /* ranks go to and fro by so much */

struct solve_row {
    const char *test;
    double solve,
        all; /* seconds: layers from their statistics; until both models can be compared */
};

/* One conversion; the first in a workspace has nothing to begin with. */
static int convert_once(struct cli *c, struct workspace *w, const struct rankplan *plan,
                        double *solve, double *all, struct err *e)
{
    struct conversion_report report = {0};
    double start = clock_now();
    int rc = workspace_convert(w, plan, NULL, &c->progress, &report, e);
    *all = clock_now() - start;
    *solve = report.seconds_solve;
    conversion_report_done(&report);
    return rc;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_size);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static void change(struct rankplan *p, int layer, bool lower)
{
    p->layer[layer].kv_lora_rank += lower ? -SOLVE_STEP : SOLVE_STEP;
}

/* repeat conversions, `layers` layers' ranks changed before each; v[2·repeat] work space. */
static int solve_again(struct cli *c, struct workspace *w, struct rankplan *plan, int layers,
                       struct solve_row *row, double *v, struct err *e)
{
    int n = (int)c->o.repeat, rc = OK;
    for (int i = 0; i < n && !rc; i++) {
        for (int l = 0; l < layers; l++)
            change(plan, l, i % 2 == 0);
        rc = convert_once(c, w, plan, &v[i], &v[n + i], e);
    }
    for (int l = 0; l < layers && n % 2; l++)
        change(plan, l, false);
    if (!rc) {
        row->solve = median(v, n);
        row->all = median(v + n, n);
    }
    return rc;
}

static int print_rows(const struct cli *c, const struct solve_row *row, int n, struct err *e)
{
    cJSON *root = c->o.json ? cJSON_CreateObject() : NULL;
    cJSON *list = root ? cJSON_AddArrayToObject(root, "solves") : NULL;
    if (!c->o.json)
        printf("test               solve, s   in all, s\n");
    for (int i = 0; i < n; i++) {
        if (!c->o.json) {
            printf("%-16s %10.3f  %10.3f\n", row[i].test, row[i].solve, row[i].all);
            continue;
        }
        cJSON *o = cJSON_CreateObject();
        cJSON_AddStringToObject(o, "test", row[i].test);
        cJSON_AddNumberToObject(o, "seconds_solve", row[i].solve);
        cJSON_AddNumberToObject(o, "seconds", row[i].all);
        cJSON_AddItemToArray(list, o);
    }
    if (c->o.json)
        return cli_print_json(root, e);
    printf(
        "solve: all layers from their statistics; in all: until the converted model runs and its "
        "KL on held text is known\n");
    return OK;
}

int cli_bench_solve(struct cli *c, struct workspace *w, struct err *e)
{
    struct rankplan plan;
    struct model_info info;
    struct solve_row row[] = {{"first", 0, 0}, {"every rank", 0, 0}, {"one rank", 0, 0}};
    double *v = mem_calloc(2 * (size_t)c->o.repeat, sizeof *v);
    workspace_info(w, &info);
    if (!v)
        return err_nomem(e, 2 * (size_t)c->o.repeat * sizeof *v, "times");
    int rc = rankplan_load(&plan, &info.plan_model, c->o.plan, e);
    if (rc) {
        free(v);
        return rc;
    }
    plan.without |= STEP_OUTPUT; /* the refit is a pass over the text, whatever changed */
    for (int l = 0; l < info.n_layer && !rc; l++)
        if (plan.layer[l].kv_lora_rank <= SOLVE_STEP)
            rc = err_set(e, ERR_ARG,
                         "%s: layer %d: rank %d leaves nothing to change: give a plan with more",
                         c->o.plan, l, plan.layer[l].kv_lora_rank);
    if (!rc && !workspace_calibrated(w))
        rc = cli_calibrate(c, w, e);
    if (!rc)
        rc = convert_once(c, w, &plan, &row[0].solve, &row[0].all, e);
    if (!rc)
        rc = solve_again(c, w, &plan, info.n_layer, &row[1], v, e);
    if (!rc)
        rc = solve_again(c, w, &plan, 1, &row[2], v, e);
    cli_progress_end(c);
    if (!rc)
        rc = print_rows(c, row, sizeof row / sizeof *row, e);
    rankplan_done(&plan);
    free(v);
    return rc;
}
