/* bench: speed of one model, beside what memory gives and beside another program; or of solving a
 * plan. Refuses depths
 * that are no numbers. */
#include <errno.h>
#include <stdlib.h>

#include "sessions/bench.h"
#include "sessions/peer.h"
#include "ui/cli.h"

#define BENCH_MAX_DEPTHS 32

static int parse_depths(const char *text, int *depth, int *n, struct err *e)
{
    for (const char *s = text; *s; s += *s == ',') {
        char *end;
        errno = 0;
        long v = strtol(s, &end, 10);
        if (end == s || errno || v < 0 || v > 10000000 || (*end && *end != ',') ||
            *n == BENCH_MAX_DEPTHS)
            return cli_usage(e, "--depth takes up to %d numbers like 0,4096, not \"%s\"",
                             BENCH_MAX_DEPTHS, text);
        depth[(*n)++] = (int)v;
        s = end;
    }
    return *n ? OK : cli_usage(e, "--depth: give a number");
}

/* What is printed: rows, and the bytes a second that memory gives (0: not measured). */
struct results {
    const struct bench_row *row;
    int n;
    double bandwidth;
    bool peer;
};

/* Of the bandwidth, how much a decode test used, in percent; 0: unknown. */
static double share(const struct results *r, const struct bench_row *row)
{
    return r->bandwidth > 0 ? 100 * row->tokens_per_sec * (double)row->read_bytes / r->bandwidth
                            : 0;
}

static void print_row(const struct results *r, const struct bench_row *row, bool markdown)
{
    const char *bar = markdown ? " |" : "";
    double used = share(r, row);
    printf("%s%-8s%s %8d%s %12.2f%s %8.2f%s %12zu%s", markdown ? "| " : "", row->test, bar,
           row->depth, bar, row->tokens_per_sec, bar, row->sd, bar, row->kv_bytes, bar);
    if (used > 0)
        printf(" %9.1f%s", used, bar);
    else
        printf(" %9s%s", "-", bar);
    if (r->peer)
        printf(" %12.2f%s %7.2f%s", row->peer_tokens_per_sec, bar, row->ratio, bar);
    putchar('\n');
}

static void print_table(const struct results *r, bool markdown)
{
    const char *bar = markdown ? " |" : "";
    printf("%s%-8s%s %8s%s %12s%s %8s%s %12s%s %9s%s", markdown ? "| " : "", "test", bar, "depth",
           bar, "tokens/s", bar, "sd", bar, "KV bytes", bar, "% memory", bar);
    if (r->peer)
        printf(" %12s%s %7s%s", "peer", bar, "ratio", bar);
    putchar('\n');
    if (markdown)
        printf("|:--|--:|--:|--:|--:|--:|%s\n", r->peer ? "--:|--:|" : "");
    for (int i = 0; i < r->n; i++)
        print_row(r, &r->row[i], markdown);
    if (r->bandwidth > 0)
        printf("%smemory gives %.1f GB/s in all; %% memory: weights and cache that a token "
               "needs, of that\n",
               markdown ? "\n" : "", r->bandwidth * 1e-9);
}

static cJSON *row_json(const struct results *r, const struct bench_row *row)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "test", row->test);
    cJSON_AddNumberToObject(o, "depth", row->depth);
    cli_json_add(o, "tokens_per_sec", row->tokens_per_sec);
    cli_json_add(o, "sd", row->sd);
    cli_json_add(o, "min", row->min);
    cli_json_add(o, "max", row->max);
    cJSON_AddNumberToObject(o, "kv_bytes", (double)row->kv_bytes);
    if (row->read_bytes)
        cJSON_AddNumberToObject(o, "bytes_per_token", (double)row->read_bytes);
    if (share(r, row) > 0)
        cli_json_add(o, "percent_of_bandwidth", share(r, row));
    if (r->peer) {
        cli_json_add(o, "peer_tokens_per_sec", row->peer_tokens_per_sec);
        cli_json_add(o, "ratio", row->ratio);
        cli_json_add(o, "ratio_min", row->ratio_min);
        cli_json_add(o, "ratio_max", row->ratio_max);
    }
    return o;
}

static int print_results(const struct cli *c, const struct results *r, struct err *e)
{
    if (!c->o.json) {
        print_table(r, c->o.markdown);
        return OK;
    }
    cJSON *root = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(root, "rows");
    if (r->bandwidth > 0)
        cJSON_AddNumberToObject(root, "bytes_per_sec", r->bandwidth);
    for (int i = 0; i < r->n; i++)
        cJSON_AddItemToArray(list, row_json(r, &r->row[i]));
    return cli_print_json(root, e);
}

struct peer {
    const char *command;
    struct peer_test test;
};

static int ask_peer(void *user, int depth, int n, bool prefill, double *rate, struct err *e)
{
    struct peer *p = user;
    p->test.depth = depth;
    p->test.n = n;
    p->test.prefill = prefill;
    return peer_run(p->command, &p->test, rate, e);
}

int cli_bench(struct cli *c, struct err *e)
{
    int depth[BENCH_MAX_DEPTHS], n_depth = 0;
    struct bench_row *rows = NULL;
    struct results r = {.peer = c->o.peer != NULL};
    struct workspace *w = NULL;
    enum dtype kv = DTYPE_F16;
    int rc = !c->o.plan && c->o.calib.n ? cli_usage(e, "--calib: only with --plan")
                                        : parse_depths(c->o.depth, depth, &n_depth, e);
    if (!rc)
        rc = cli_cache_type(c, &kv, e);
    if (!rc)
        rc = cli_open(c, c->arg[0], CLI_FAST, &w, e);
    if (!rc && c->o.plan) {
        rc = cli_bench_solve(c, w, e);
        workspace_free(w);
        return rc;
    }
    if (!rc) {
        const struct engine *g = workspace_engine(w, cli_side(c, w));
        struct peer peer = {c->o.peer,
                            {.model = engine_model(g)->path, .threads = bench_threads(g)}};
        const struct bench_peer ask = {ask_peer, &peer};
        struct bench_options o = {
            (int)c->o.bench_prompt, (int)c->o.bench_generate, (int)c->o.repeat, depth, n_depth, kv,
            r.peer ? &ask : NULL};
        rc = bench_run(g, &o, &c->progress, &rows, &r.n, e);
        r.row = rows;
        r.bandwidth = rc ? 0 : bench_bandwidth(g);
    }
    cli_progress_end(c);
    if (!rc)
        rc = print_results(c, &r, e);
    free(rows);
    workspace_free(w);
    return rc;
}
