/* Perplexity and KL, block by block: prefill, take the logits of a block from both models, reduce
 * every row on the backend's threads, go on. Refuses a text shorter than one window. */
#include "sessions/eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/metrics.h"
#include "kernels/pool.h"
#include "sessions/clock.h"

#define EVAL_MAX_TEXT ((size_t)1 << 30)
#define EVAL_BLOCK_MAX 256
#define EVAL_BLOCK_BYTES ((size_t)64 << 20) /* logits of one model kept at a time */

struct eval_run {
    const struct engine *engine[2]; /* model, original or NULL */
    struct infer *timeline[2];
    float *logits[2];          /* [block][V] */
    struct metrics_pair *pair; /* [block] */
    int vocab, block;
    const struct eval_options *o;
    const struct progress *progress;
    int window, windows;
    struct sample nll, nll_original, kl;
    long long same;
    int32_t target[EVAL_BLOCK_MAX]; /* of the block's rows; -1: the window's last */
};

/* The data set's rows joined by blank lines: see eval.h. Fresh memory. */
static char *join_rows(const char *text, size_t size, size_t *out_size)
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
        joined = join_rows(text, size, &size);
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

static int reduce_block(struct eval_run *r, int rows, struct err *e)
{
    pool_for(engine_backend(r->engine[0])->pool, rows, compare_row, r);
    for (int i = 0; i < rows; i++) {
        const struct metrics_pair *m = &r->pair[i];
        if (!isfinite(m->nll_q) || !isfinite(m->nll_p) || !isfinite(m->kl))
            return err_set(e, ERR_NUMERIC, "%s: logits of window %d are no numbers", r->o->file,
                           r->window + 1);
        bool ok = r->target[i] < 0 || sample_add(&r->nll, m->nll_q);
        if (r->engine[1]) {
            ok = ok && sample_add(&r->kl, m->kl);
            ok = ok && (r->target[i] < 0 || sample_add(&r->nll_original, m->nll_p));
            r->same += m->top_p == m->top_q;
        }
        if (!ok)
            return err_nomem(e, r->kl.n * sizeof(double), "the samples");
    }
    return OK;
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
    return rc || !scored ? rc : reduce_block(r, n, e);
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

static int run_windows(struct eval_run *r, const struct tokenizer *t, int32_t *ids, struct err *e)
{
    bool llamacpp = r->o->protocol == EVAL_LLAMACPP;
    int ctx = r->o->ctx, rc = OK;
    for (r->window = 0; r->window < r->windows && !rc; r->window++) {
        int32_t *w = ids + (size_t)r->window * (size_t)ctx;
        if (llamacpp && tokenizer_adds_bos(t))
            w[0] = tokenizer_bos(t);
        rc = run_window(r, w, llamacpp ? ctx / 2 : 0, llamacpp ? ctx - 1 : ctx, e);
        if (rc)
            break;
    }
    return rc;
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
    sample_free(&r->nll);
    sample_free(&r->nll_original);
    sample_free(&r->kl);
}

static void summarise(struct eval_run *r, struct eval_result *out)
{
    out->tokens = (long long)r->nll.n;
    out->windows = r->windows;
    out->ppl = exp(sample_mean(&r->nll));
    out->ppl_err = out->ppl * sample_stderr(&r->nll);
    out->compared = r->engine[1] != NULL;
    if (!out->compared)
        return;
    out->ppl_against = exp(sample_mean(&r->nll_original));
    out->kl_mean = sample_mean(&r->kl);
    out->kl_err = sample_stderr(&r->kl);
    out->kl_p99 = sample_percentile(&r->kl, 99);
    out->same_top1 = (double)r->same / (double)r->kl.n;
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
    return run_alloc(r, e);
}

int eval_ppl(const struct engine *model, const struct engine *against, const struct tokenizer *t,
             const struct eval_options *o, const struct progress *p, struct eval_result *out,
             struct err *e)
{
    struct eval_run r = {.engine = {model, against}, .o = o, .progress = p};
    struct ids ids = {0};
    double start = clock_now();
    *out = (struct eval_result){0};
    int rc = prepare(&r, t, &ids, e);
    if (!rc)
        rc = run_windows(&r, t, ids.v, e);
    if (!rc) {
        summarise(&r, out);
        out->seconds = clock_now() - start;
    }
    run_done(&r);
    ids_free(&ids);
    return rc;
}
