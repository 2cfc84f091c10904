/* Measurements as JSON and CSV. Tables name every number once, for writing and reading. Refuses
 * documents of an unknown kind. */
#include "sessions/eval_record.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kinds[EVAL_KINDS] = {"perplexity", "multiple_choice", "speed"};

/* A double of a struct under its key. pair: only where two models are compared. */
struct field {
    const char *key;
    size_t at;
    bool pair;
};
#define PPL(name, pair)                                                                            \
    {                                                                                              \
#name, offsetof(struct eval_result, name), pair                                            \
    }
static const struct field ppl_fields[] = {PPL(ppl, false),
                                          PPL(ppl_err, false),
                                          PPL(ppl_err_windows, false),
                                          PPL(ppl_against, true),
                                          PPL(ppl_against_err, true),
                                          PPL(nll_diff, true),
                                          PPL(nll_diff_err, true),
                                          PPL(nll_diff_err_windows, true),
                                          PPL(kl_mean, true),
                                          PPL(kl_err, true),
                                          PPL(kl_p50, true),
                                          PPL(kl_p90, true),
                                          PPL(kl_p95, true),
                                          PPL(kl_p99, true),
                                          PPL(kl_max, true),
                                          PPL(same_top1, true),
                                          PPL(same_top1_err, true),
                                          PPL(seconds, false)};
#define N_PPL (sizeof ppl_fields / sizeof *ppl_fields)

#define RATE(key, name, rule, part, pair)                                                          \
    {                                                                                              \
        key,                                                                                       \
            offsetof(struct task_result, name) + (rule) * sizeof(struct task_rate) +               \
                offsetof(struct task_rate, part),                                                  \
            pair                                                                                   \
    }
#define SAME(key, rule)                                                                            \
    {                                                                                              \
        key, offsetof(struct task_result, same) + (rule) * sizeof(double), true                    \
    }
static const struct field task_fields[] = {
    RATE("acc", acc, TASK_SUM, mean, false),
    RATE("stderr", acc, TASK_SUM, err, false),
    RATE("acc_norm", acc, TASK_CHARACTER, mean, false),
    RATE("stderr_norm", acc, TASK_CHARACTER, err, false),
    RATE("acc_token", acc, TASK_TOKEN, mean, false),
    RATE("stderr_token", acc, TASK_TOKEN, err, false),
    RATE("acc_against", acc_against, TASK_SUM, mean, true),
    RATE("stderr_against", acc_against, TASK_SUM, err, true),
    RATE("acc_norm_against", acc_against, TASK_CHARACTER, mean, true),
    RATE("stderr_norm_against", acc_against, TASK_CHARACTER, err, true),
    RATE("acc_token_against", acc_against, TASK_TOKEN, mean, true),
    RATE("stderr_token_against", acc_against, TASK_TOKEN, err, true),
    RATE("diff", diff, TASK_SUM, mean, true),
    RATE("diff_err", diff, TASK_SUM, err, true),
    RATE("diff_norm", diff, TASK_CHARACTER, mean, true),
    RATE("diff_norm_err", diff, TASK_CHARACTER, err, true),
    RATE("diff_token", diff, TASK_TOKEN, mean, true),
    RATE("diff_token_err", diff, TASK_TOKEN, err, true),
    SAME("same_answer", TASK_SUM),
    SAME("same_answer_norm", TASK_CHARACTER),
    SAME("same_answer_token", TASK_TOKEN),
    {"seconds", offsetof(struct task_result, seconds), false},
};
#define N_TASK (sizeof task_fields / sizeof *task_fields)

#define SPEED(name, pair)                                                                          \
    {                                                                                              \
#name, offsetof(struct speed_row, name), pair                                              \
    }
static const struct field speed_fields[] = {
    SPEED(tokens_per_sec, false),        SPEED(sd, false),        SPEED(kv_bytes, false),
    SPEED(tokens_per_sec_against, true), SPEED(sd_against, true), SPEED(kv_bytes_against, true)};
#define N_SPEED (sizeof speed_fields / sizeof *speed_fields)

#define BIN(name, pair)                                                                            \
    {                                                                                              \
#name, offsetof(struct eval_bin, name), pair                                               \
    }
static const struct field bin_fields[] = {BIN(nll, false), BIN(nll_against, true), BIN(kl, true)};
#define N_BIN (sizeof bin_fields / sizeof *bin_fields)

static void put_number(cJSON *o, const char *key, double v)
{
    if (isfinite(v))
        cJSON_AddNumberToObject(o, key, v);
    else
        cJSON_AddNullToObject(o, key);
}

static void put_fields(cJSON *o, const struct field *f, size_t n, const void *from, bool pair)
{
    for (size_t i = 0; i < n; i++)
        if (pair || !f[i].pair)
            put_number(o, f[i].key, *(const double *)((const char *)from + f[i].at));
}

/* Absent or null is NaN: not known. */
static void get_fields(const cJSON *o, const struct field *f, size_t n, void *to)
{
    for (size_t i = 0; i < n; i++) {
        const cJSON *v = json_get(o, f[i].key);
        *(double *)((char *)to + f[i].at) = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    }
}

enum task_rule eval_headline(enum choice_task task)
{
    return task == CHOICE_WINOGRANDE || task == CHOICE_MMLU ? TASK_SUM : TASK_CHARACTER;
}

/* mean ± 1.96 errors as [low, high]. */
static void put_interval(cJSON *o, const char *key, double mean, double err)
{
    cJSON *a = cJSON_AddArrayToObject(o, key);
    for (int side = -1; side <= 1; side += 2) {
        double v = mean + side * EVAL_CI95 * err;
        cJSON_AddItemToArray(a, isfinite(v) ? cJSON_CreateNumber(v) : cJSON_CreateNull());
    }
}

static void put_ppl(cJSON *o, const struct eval_record *r)
{
    const struct eval_result *p = &r->ppl;
    cJSON_AddNumberToObject(o, "tokens", (double)p->tokens);
    cJSON_AddNumberToObject(o, "windows", p->windows);
    cJSON_AddNumberToObject(o, "windows_asked", r->windows);
    cJSON_AddStringToObject(o, "protocol", eval_protocol_name(r->protocol));
    cJSON_AddNumberToObject(o, "ctx", r->ctx);
    put_fields(o, ppl_fields, N_PPL, p, p->compared);
    if (p->compared)
        put_interval(o, "nll_diff_ci95", p->nll_diff, p->nll_diff_err);
    cJSON *list = cJSON_AddArrayToObject(o, "positions");
    for (int i = 0; i < p->n_bin; i++) {
        cJSON *b = cJSON_CreateObject();
        cJSON_AddNumberToObject(b, "from", p->bin[i].from);
        cJSON_AddNumberToObject(b, "to", p->bin[i].to);
        cJSON_AddNumberToObject(b, "tokens", (double)p->bin[i].tokens);
        put_fields(b, bin_fields, N_BIN, &p->bin[i], p->compared);
        cJSON_AddItemToArray(list, b);
    }
}

static void put_task(cJSON *o, const struct eval_record *r)
{
    static const char *const ci[TASK_RULES] = {"diff_ci95", "diff_norm_ci95", "diff_token_ci95"};
    const struct task_result *t = &r->task;
    cJSON_AddStringToObject(o, "task", choice_name(t->task));
    cJSON_AddNumberToObject(o, "n", t->n);
    cJSON_AddNumberToObject(o, "limit", (double)r->limit);
    cJSON_AddNumberToObject(o, "truncated", t->truncated);
    put_fields(o, task_fields, N_TASK, t, t->compared);
    for (int rule = 0; t->compared && rule < TASK_RULES; rule++)
        put_interval(o, ci[rule], t->diff[rule].mean, t->diff[rule].err);
    cJSON_AddNumberToObject(o, "tokens_read", (double)t->tokens);
    cJSON_AddNumberToObject(o, "tokens_unique", (double)t->tokens_unique);
}

static void put_speed(cJSON *o, const struct eval_record *r)
{
    cJSON *list = cJSON_AddArrayToObject(o, "rows");
    for (int i = 0; i < r->n_speed; i++) {
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "test", r->speed[i].test);
        cJSON_AddNumberToObject(row, "depth", r->speed[i].depth);
        put_fields(row, speed_fields, N_SPEED, &r->speed[i], r->compared);
        cJSON_AddItemToArray(list, row);
    }
}

cJSON *eval_record_json(const struct eval_record *r)
{
    cJSON *o = cJSON_CreateObject();
    if (!o)
        return NULL;
    cJSON_AddStringToObject(o, "kind", kinds[r->kind]);
    if (r->when_sec)
        cJSON_AddNumberToObject(o, "when_unix_sec", (double)r->when_sec);
    if (r->kind != EVAL_SPEED)
        cJSON_AddStringToObject(o, "file", r->file);
    cJSON_AddBoolToObject(o, "rounded_attention", r->rounded);
    if (r->kind == EVAL_PPL)
        put_ppl(o, r);
    else if (r->kind == EVAL_TASK)
        put_task(o, r);
    else
        put_speed(o, r);
    return o;
}

static int find_name(const char *name, const char *const *all, int n)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(name, all[i]))
            return i;
    return -1;
}

static int get_count(const cJSON *o, const char *key, int *to, const char *where, struct err *e)
{
    long long v = 0;
    int rc = json_int_opt(o, key, 0, INT32_MAX, &v, where, e);
    *to = (int)v;
    return rc;
}

static int get_ppl(struct eval_record *r, const cJSON *o, const char *where, struct err *e)
{
    struct eval_result *p = &r->ppl;
    const cJSON *list = json_get(o, "positions");
    int tokens = 0, rc;
    if (!eval_protocol_find(json_str_or(o, "protocol", ""), &r->protocol))
        return err_set(e, ERR_FORMAT, "%s: a perplexity of no known protocol", where);
    if ((rc = get_count(o, "ctx", &r->ctx, where, e)) ||
        (rc = get_count(o, "windows_asked", &r->windows, where, e)) ||
        (rc = get_count(o, "windows", &p->windows, where, e)) ||
        (rc = get_count(o, "tokens", &tokens, where, e)))
        return rc;
    p->tokens = tokens;
    p->windows_total = p->windows;
    p->compared = json_get(o, "kl_mean") != NULL;
    get_fields(o, ppl_fields, N_PPL, p);
    for (const cJSON *v = list ? list->child : NULL; v && p->n_bin < EVAL_BINS; v = v->next) {
        struct eval_bin *b = &p->bin[p->n_bin++];
        if ((rc = get_count(v, "from", &b->from, where, e)) ||
            (rc = get_count(v, "to", &b->to, where, e)) ||
            (rc = get_count(v, "tokens", &tokens, where, e)))
            return rc;
        b->tokens = tokens;
        get_fields(v, bin_fields, N_BIN, b);
    }
    return OK;
}

static int get_task(struct eval_record *r, const cJSON *o, const char *where, struct err *e)
{
    struct task_result *t = &r->task;
    int limit = 0, rc;
    if (!choice_find(json_str_or(o, "task", ""), &t->task))
        return err_set(e, ERR_FORMAT, "%s: an unknown task", where);
    if ((rc = get_count(o, "n", &t->n, where, e)) ||
        (rc = get_count(o, "limit", &limit, where, e)) ||
        (rc = get_count(o, "truncated", &t->truncated, where, e)))
        return rc;
    r->limit = limit;
    t->total = t->n;
    t->compared = json_get(o, "diff") != NULL;
    get_fields(o, task_fields, N_TASK, t);
    return OK;
}

static int get_speed(struct eval_record *r, const cJSON *o, const char *where, struct err *e)
{
    const cJSON *list = json_get(o, "rows");
    int rc = OK;
    for (const cJSON *v = list ? list->child : NULL; v && r->n_speed < EVAL_SPEED_ROWS && !rc;
         v = v->next) {
        struct speed_row *s = &r->speed[r->n_speed++];
        snprintf(s->test, sizeof s->test, "%s", json_str_or(v, "test", ""));
        rc = get_count(v, "depth", &s->depth, where, e);
        get_fields(v, speed_fields, N_SPEED, s);
        r->compared = r->compared || isfinite(s->tokens_per_sec_against);
    }
    return rc;
}

int eval_record_parse(struct eval_record *r, const cJSON *o, const char *where, struct err *e)
{
    int kind = find_name(json_str_or(o, "kind", ""), kinds, EVAL_KINDS), rc;
    *r = (struct eval_record){0};
    if (kind < 0)
        return err_set(e, ERR_UNSUPPORTED, "%s: a measurement of an unknown kind", where);
    r->kind = (enum eval_kind)kind;
    snprintf(r->file, sizeof r->file, "%s", json_str_or(o, "file", ""));
    if ((rc = json_int_opt(o, "when_unix_sec", 0, 1LL << 50, &r->when_sec, where, e)) ||
        (rc = json_bool_opt(o, "rounded_attention", &r->rounded, where, e)))
        return rc;
    return r->kind == EVAL_PPL    ? get_ppl(r, o, where, e)
           : r->kind == EVAL_TASK ? get_task(r, o, where, e)
                                  : get_speed(r, o, where, e);
}

bool eval_record_same(const struct eval_record *a, const struct eval_record *b)
{
    if (a->kind != b->kind || (a->kind != EVAL_SPEED && strcmp(a->file, b->file) != 0))
        return false;
    if (a->kind == EVAL_PPL)
        return a->protocol == b->protocol && a->ctx == b->ctx && a->windows == b->windows;
    return a->kind == EVAL_SPEED || (a->task.task == b->task.task && a->limit == b->limit);
}

/* ---- CSV ---- */

struct text {
    char *s;
    size_t n, cap;
    bool failed;
};

static void add(struct text *t, const char *s)
{
    size_t k = strlen(s);
    void *grown = t->s;
    t->failed = t->failed || !mem_grow(&grown, &t->cap, t->n + k + 1, 1);
    t->s = grown;
    if (t->failed)
        return;
    memcpy(t->s + t->n, s, k + 1);
    t->n += k;
}

static void add_values(struct text *t, const struct field *f, size_t n, const void *from, bool pair)
{
    char number[40];
    for (size_t i = 0; i < n; i++) {
        double v = *(const double *)((const char *)from + f[i].at);
        snprintf(number, sizeof number, isfinite(v) ? ",%.9g" : ",", v);
        if (pair || !f[i].pair)
            add(t, number);
    }
}

static void add_heads(struct text *t, const struct field *f, size_t n, bool pair)
{
    for (size_t i = 0; i < n; i++)
        if (pair || !f[i].pair) {
            add(t, ",");
            add(t, f[i].key);
        }
    add(t, "\n");
}

static void csv_task(struct text *t, const struct task_result *r)
{
    static const char *const rule[TASK_RULES] = {"acc", "acc_norm", "acc_token"};
    char line[256];
    add(t, r->compared ? "task,n,rule,value,stderr,original,original_stderr,diff,diff_err,"
                         "same_answer\n"
                       : "task,n,rule,value,stderr\n");
    for (int i = 0; i < TASK_RULES; i++) {
        int n = snprintf(line, sizeof line, "%s,%d,%s,%.9g,%.9g", choice_name(r->task), r->n,
                         rule[i], r->acc[i].mean, r->acc[i].err);
        if (r->compared)
            snprintf(line + n, sizeof line - (size_t)n, ",%.9g,%.9g,%.9g,%.9g,%.9g",
                     r->acc_against[i].mean, r->acc_against[i].err, r->diff[i].mean, r->diff[i].err,
                     r->same[i]);
        add(t, line);
        add(t, "\n");
    }
}

char *eval_record_csv(const struct eval_record *r)
{
    struct text t = {0};
    char line[96];
    if (r->kind == EVAL_PPL) {
        add(&t, "from,to,tokens");
        add_heads(&t, bin_fields, N_BIN, r->ppl.compared);
    } else if (r->kind == EVAL_SPEED) {
        add(&t, "test,depth");
        add_heads(&t, speed_fields, N_SPEED, r->compared);
    } else {
        csv_task(&t, &r->task);
    }
    for (int i = 0; r->kind == EVAL_PPL && i < r->ppl.n_bin; i++) {
        const struct eval_bin *b = &r->ppl.bin[i];
        snprintf(line, sizeof line, "%d,%d,%lld", b->from, b->to, b->tokens);
        add(&t, line);
        add_values(&t, bin_fields, N_BIN, b, r->ppl.compared);
        add(&t, "\n");
    }
    for (int i = 0; r->kind == EVAL_SPEED && i < r->n_speed; i++) {
        snprintf(line, sizeof line, "%.15s,%d", r->speed[i].test, r->speed[i].depth);
        add(&t, line);
        add_values(&t, speed_fields, N_SPEED, &r->speed[i], r->compared);
        add(&t, "\n");
    }
    if (!t.failed)
        return t.s;
    free(t.s);
    return NULL;
}
