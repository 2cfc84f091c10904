/* Perplexity and KL, block by block: prefill, take the logits of a block from both models, reduce
 * every row on the backend's threads, go on. Refuses a text shorter than one window. */
#include "sessions/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/metrics.h"
#include "kernels/pool.h"
#include "sessions/clock.h"

#define EVAL_MAX_TEXT ((size_t)1 << 30)
#define EVAL_BLOCK_MAX 256
#define EVAL_BLOCK_BYTES ((size_t)64 << 20) /* logits of one model kept at a time */

struct bin_sum {
    long long tokens, rows;
    double nll, nll_against, kl;
};
struct eval_run {
    const struct engine *engine[2]; /* model, original or NULL */
    struct infer *timeline[2];
    float *logits[2];          /* [block][V] */
    struct metrics_pair *pair; /* [block] */
    int vocab, block;
    const struct eval_options *o;
    const struct progress *progress;
    int window, windows;
    struct sample nll, nll_original, diff, kl;
    struct sample window_nll, window_diff; /* means of whole windows */
    size_t window_start;                   /* samples before the window in work */
    struct bin_sum bin[EVAL_BINS];
    int n_bin;
    long long same;
    double start_sec;
    struct file_writer *csv;
    int32_t target[EVAL_BLOCK_MAX]; /* of the block's rows; -1: the window's last */
};

static const char *const protocols[EVAL_PROTOCOLS] = {"hf", "llamacpp", "plain"};

const char *eval_protocol_name(enum eval_protocol p)
{
    return protocols[p];
}

bool eval_protocol_find(const char *name, enum eval_protocol *out)
{
    for (int i = 0; i < EVAL_PROTOCOLS; i++) {
        if (strcmp(name, protocols[i]))
            continue;
        *out = (enum eval_protocol)i;
        return true;
    }
    return false;
}

/* The data set's rows joined by blank lines: see eval.h. Fresh memory. */
char *eval_join_rows(const char *text, size_t size, size_t *out_size)
{
    size_t lines = 1, n = 0;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    char *out = malloc(size + 2 * lines + 1);
    if (!out)
        return NULL;
    for (size_t at = 0; at < size;) {
        const char *nl = memchr(text + at, '\n', size - at);
        size_t end = nl ? (size_t)(nl - text) + 1 : size, blank = at;
        if (at) {
            out[n++] = '\n';
            out[n++] = '\n';
        }
        while (blank < end && memchr(" \t\r\n", text[blank], 4))
            blank++;
        if (blank < end) {
            memcpy(out + n, text + at, end - at);
            n += end - at;
        }
        at = end;
    }
    *out_size = n;
    return out;
}

int eval_text_ids(const struct tokenizer *t, const char *file, enum eval_protocol protocol,
                  struct ids *out, struct err *e)
{
    char *text, *joined = NULL;
    size_t size;
    int rc = file_read(file, EVAL_MAX_TEXT, &text, &size, e);
    if (rc)
        return rc;
    if (protocol == EVAL_HF) {
        joined = eval_join_rows(text, size, &size);
        if (!joined)
            rc = err_nomem(e, size, file);
    }
    if (!rc)
        rc = tokenizer_encode(t, joined ? joined : text, size,
                              protocol == EVAL_LLAMACPP ? TOKENIZE_BOS : 0, out, e);
    free(joined);
    free(text);
    return rc;
}

static void compare_row(void *arg, int i, int thread)
{
    struct eval_run *r = arg;
    const float *model = r->logits[0] + (size_t)i * (size_t)r->vocab;
    (void)thread;
    if (r->engine[1]) {
        const float *original = r->logits[1] + (size_t)i * (size_t)r->vocab;
        r->pair[i] = metrics_compare(original, model, r->vocab, r->target[i]);
    } else {
        r->pair[i] = (struct metrics_pair){0};
        if (r->target[i] >= 0)
            r->pair[i].nll_q = metrics_nll(model, r->vocab, r->target[i]);
    }
}

/* Position at feeds the row and predicts the token after it. */
static bool add_row(struct eval_run *r, int at, const struct metrics_pair *m, bool scored)
{
    struct bin_sum *bin = &r->bin[(int)((long long)at * r->n_bin / r->o->ctx)];
    bool ok = true, two = r->engine[1] != NULL;
    bin->rows++;
    if (scored) {
        bin->tokens++;
        bin->nll += m->nll_q;
        ok = sample_add(&r->nll, m->nll_q);
    }
    if (scored && two) {
        bin->nll_against += m->nll_p;
        ok = ok && sample_add(&r->nll_original, m->nll_p) &&
             sample_add(&r->diff, m->nll_q - m->nll_p);
    }
    if (two) {
        bin->kl += m->kl;
        ok = ok && sample_add(&r->kl, m->kl);
        r->same += m->top_p == m->top_q;
    }
    return ok;
}

static int csv_row(struct eval_run *r, int at, const struct metrics_pair *m, int32_t id,
                   struct err *e)
{
    char line[200];
    int n = snprintf(line, sizeof line, "%d,%d,%d,%.6f", r->window, at + 1, id, m->nll_q);
    if (r->engine[1])
        n += snprintf(line + n, sizeof line - (size_t)n, ",%.6f,%.7g,%d", m->nll_p, m->kl,
                      m->top_p == m->top_q);
    line[n++] = '\n';
    return file_writer_write(r->csv, line, (size_t)n, e);
}

/* Rows of the window's positions at, at + 1, … */
static int reduce_block(struct eval_run *r, int at, int rows, struct err *e)
{
    int rc = OK;
    pool_for(engine_backend(r->engine[0])->pool, rows, compare_row, r);
    for (int i = 0; i < rows && !rc; i++) {
        const struct metrics_pair *m = &r->pair[i];
        bool scored = r->target[i] >= 0;
        if (!isfinite(m->nll_q) || !isfinite(m->nll_p) || !isfinite(m->kl))
            return err_set(e, ERR_NUMERIC, "%s: logits of window %d are no numbers", r->o->file,
                           r->window + 1);
        if (!add_row(r, at + i, m, scored))
            return err_nomem(e, r->kl.n * sizeof(double), "the samples");
        if (r->csv && scored)
            rc = csv_row(r, at + i, m, r->target[i], e);
    }
    return rc;
}

/* Progress of a prefill, told in tokens of the whole evaluation. */
struct relay {
    struct eval_run *run;
    int at;
};
static bool relay_report(void *user, const char *phase, double done, double total)
{
    const struct relay *s = user;
    const struct eval_run *r = s->run;
    (void)phase, (void)done, (void)total;
    return progress_report(r->progress, "evaluate (tokens)", (double)r->window * r->o->ctx + s->at,
                           (double)r->windows * r->o->ctx);
}

static double binomial_err(double p, size_t n)
{
    return n > 1 ? sqrt(p * (1 - p) / (double)(n - 1)) : NAN;
}

static void summarise_pair(struct eval_run *r, struct eval_result *out)
{
    out->ppl_against = exp(sample_mean(&r->nll_original));
    out->ppl_against_err = out->ppl_against * sample_stderr(&r->nll_original);
    out->nll_diff = sample_mean(&r->diff);
    out->nll_diff_err = sample_stderr(&r->diff);
    out->nll_diff_err_windows = sample_stderr(&r->window_diff);
    out->kl_mean = sample_mean(&r->kl);
    out->kl_err = sample_stderr(&r->kl);
    out->kl_p50 = sample_percentile(&r->kl, 50);
    out->kl_p90 = sample_percentile(&r->kl, 90);
    out->kl_p95 = sample_percentile(&r->kl, 95);
    out->kl_p99 = sample_percentile(&r->kl, 99);
    out->kl_max = sample_percentile(&r->kl, 100);
    out->same_top1 = (double)r->same / (double)r->kl.n;
    out->same_top1_err = binomial_err(out->same_top1, r->kl.n);
}

static void summarise_bins(const struct eval_run *r, struct eval_result *out)
{
    out->n_bin = r->n_bin;
    for (int i = 0; i < r->n_bin; i++) {
        const struct bin_sum *b = &r->bin[i];
        double n = b->tokens ? (double)b->tokens : NAN, rows = b->rows ? (double)b->rows : NAN;
        bool two = r->engine[1] != NULL;
        /* The first position whose bin is i, and of i + 1. */
        long long ctx = r->o->ctx, from = (i * ctx + r->n_bin - 1) / r->n_bin;
        long long to = ((i + 1) * ctx + r->n_bin - 1) / r->n_bin;
        out->bin[i] = (struct eval_bin){.from = (int)from + 1,
                                        .to = (int)to + 1,
                                        .tokens = b->tokens,
                                        .nll = b->nll / n,
                                        .nll_against = two ? b->nll_against / n : NAN,
                                        .kl = two ? b->kl / rows : NAN};
    }
}

static void summarise(struct eval_run *r, struct eval_result *out)
{
    *out = (struct eval_result){.tokens = (long long)r->nll.n,
                                .windows = r->window < r->windows ? r->window + 1 : r->windows,
                                .windows_total = r->windows,
                                .compared = r->engine[1] != NULL,
                                .seconds = clock_now() - r->start_sec};
    out->ppl = exp(sample_mean(&r->nll));
    out->ppl_err = out->ppl * sample_stderr(&r->nll);
    out->ppl_err_windows = out->ppl * sample_stderr(&r->window_nll);
    if (out->compared)
        summarise_pair(r, out);
    summarise_bins(r, out);
}

/* One block of n tokens on both models; scored: logits are wanted. */
static int run_block(struct eval_run *r, const int32_t *ids, int at, int n, bool scored,
                     struct err *e)
{
    struct relay s = {r, at};
    struct progress p = {relay_report, &s};
    int rc = OK;
    for (int m = 0; m < 2 && r->engine[m] && !rc; m++) {
        if (!relay_report(&s, "", 0, 0))
            return err_set(e, ERR_CANCELLED, "evaluation stopped");
        rc = infer_prefill(r->timeline[m], ids + at, n, scored ? INFER_ALL : INFER_NONE,
                           scored ? r->logits[m] : NULL, &p, e);
    }
    if (!rc && scored)
        rc = reduce_block(r, at, n, e);
    if (!rc && scored && r->o->partial) {
        struct eval_result now;
        summarise(r, &now);
        r->o->partial(r->o->user, &now);
    }
    return rc;
}

/* ids: the window's ctx tokens; position i predicts token i+1. Rows first … end−1 are looked at. */
static int run_window(struct eval_run *r, const int32_t *ids, int first, int end, struct err *e)
{
    for (int m = 0; m < 2 && r->engine[m]; m++)
        infer_rewind(r->timeline[m], 0);
    for (int at = 0, n; at < end; at += n) {
        int left = (at < first ? first : end) - at, pieces = (left + r->block - 1) / r->block;
        n = (left + pieces - 1) / pieces; /* even pieces: a short last one would waste a pass */
        for (int i = 0; i < n; i++)
            r->target[i] = at + i + 1 < r->o->ctx ? ids[at + i + 1] : -1;
        int rc = run_block(r, ids, at, n, at >= first, e);
        if (rc)
            return rc;
    }
    return OK;
}

/* The mean of v[from …), into a sample of means. */
static bool add_mean(struct sample *to, const struct sample *v, size_t from)
{
    struct sample part = {.v = v->v + from, .n = v->n - from};
    return part.n == 0 || sample_add(to, sample_mean(&part));
}

static int end_window(struct eval_run *r, struct err *e)
{
    bool ok = add_mean(&r->window_nll, &r->nll, r->window_start);
    if (r->engine[1])
        ok = ok && add_mean(&r->window_diff, &r->diff, r->window_start);
    r->window_start = r->nll.n;
    return ok ? OK : err_nomem(e, r->window_nll.n * sizeof(double), "the samples");
}

static int run_windows(struct eval_run *r, const struct tokenizer *t, int32_t *ids, struct err *e)
{
    bool llamacpp = r->o->protocol == EVAL_LLAMACPP;
    int ctx = r->o->ctx, rc = OK;
    for (r->window = 0; r->window < r->windows; r->window++) {
        int32_t *w = ids + (size_t)r->window * (size_t)ctx;
        if (llamacpp && tokenizer_adds_bos(t))
            w[0] = tokenizer_bos(t);
        rc = run_window(r, w, llamacpp ? ctx / 2 : 0, llamacpp ? ctx - 1 : ctx, e);
        if (!rc)
            rc = end_window(r, e);
        if (rc)
            break;
    }
    return rc;
}

static int open_csv(struct eval_run *r, struct err *e)
{
    const char *head = r->engine[1] ? "window,position,token,nll,original_nll,kl,same_top1\n"
                                    : "window,position,token,nll\n";
    int rc = file_writer_open(&r->csv, r->o->csv, e);
    return rc ? rc : file_writer_write(r->csv, head, strlen(head), e);
}

static int run_alloc(struct eval_run *r, struct err *e)
{
    size_t row = (size_t)r->vocab * sizeof(float);
    size_t fit = EVAL_BLOCK_BYTES / row;
    r->block = fit < 8 ? 8 : fit > EVAL_BLOCK_MAX ? EVAL_BLOCK_MAX : (int)fit;
    r->pair = mem_calloc((size_t)r->block, sizeof *r->pair);
    for (int m = 0; m < 2 && r->engine[m]; m++) {
        r->logits[m] = mem_aligned((size_t)r->block, row);
        if (!r->logits[m])
            return err_nomem(e, (size_t)r->block * row, "logits");
        int rc = infer_new(&r->timeline[m], r->engine[m], r->o->ctx, r->o->kv, e);
        if (rc)
            return rc;
    }
    return r->pair ? OK : err_nomem(e, (size_t)r->block * sizeof *r->pair, "an evaluation");
}

static void run_done(struct eval_run *r)
{
    for (int m = 0; m < 2; m++) {
        infer_free(r->timeline[m]);
        free(r->logits[m]);
    }
    free(r->pair);
    struct sample *all[] = {&r->nll, &r->nll_original, &r->diff,
                            &r->kl,  &r->window_nll,   &r->window_diff};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        sample_free(all[i]);
    if (r->csv)
        file_writer_abort(r->csv);
}

static int prepare(struct eval_run *r, const struct tokenizer *t, struct ids *ids, struct err *e)
{
    const struct eval_options *o = r->o;
    int least = o->protocol == EVAL_LLAMACPP ? 4 : 2;
    const struct model *m = engine_model(r->engine[0]);
    r->vocab = m->hp.vocab;
    if (o->ctx < least || o->windows < 0)
        return err_set(e, ERR_ARG, "evaluation of %d windows of %d tokens: give at least %d tokens",
                       o->windows, o->ctx, least);
    if (r->engine[1] && engine_model(r->engine[1])->hp.vocab != r->vocab)
        return err_set(
            e, ERR_MISMATCH,
            "vocabularies of %d and %d tokens: KL needs two models with the same tokenizer",
            r->vocab, engine_model(r->engine[1])->hp.vocab);
    int rc = eval_text_ids(t, o->file, o->protocol, ids, e);
    if (rc)
        return rc;
    size_t whole = ids->n / (size_t)o->ctx;
    if (!whole)
        return err_set(e, ERR_ARG, "%s: %zu tokens are less than one window of %d: give --ctx less",
                       o->file, ids->n, o->ctx);
    for (size_t i = 0; i < ids->n; i++)
        if (ids->v[i] < 0 || ids->v[i] >= r->vocab)
            return err_set(e, ERR_MISMATCH, "the tokenizer gives id %d, the model has %d tokens",
                           ids->v[i], r->vocab);
    r->windows = o->windows && (size_t)o->windows < whole ? o->windows : (int)whole;
    r->n_bin = o->ctx < EVAL_BINS ? o->ctx : EVAL_BINS;
    rc = run_alloc(r, e);
    return rc || !o->csv ? rc : open_csv(r, e);
}

int eval_ppl(const struct engine *model, const struct engine *against, const struct tokenizer *t,
             const struct eval_options *o, const struct progress *p, struct eval_result *out,
             struct err *e)
{
    struct eval_run r = {
        .engine = {model, against}, .o = o, .progress = p, .start_sec = clock_now()};
    struct ids ids = {0};
    *out = (struct eval_result){0};
    int rc = prepare(&r, t, &ids, e);
    if (!rc)
        rc = run_windows(&r, t, ids.v, e);
    if (!rc && r.csv) {
        rc = file_writer_commit(r.csv, e);
        r.csv = NULL;
    }
    if (!rc)
        summarise(&r, out);
    run_done(&r);
    ids_free(&ids);
    return rc;
}
