/* Calibration text: windows spread over files, or sequences sampled from the model itself. Refuses
 * text too short for one window. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/sampler.h"
#include "core/sha256.h"
#include "sessions/calibrate.h"
#include "sessions/eval.h"

#define SELF_BATCH 16 /* sequences that the model writes at a time */

void calib_text_done(struct calib_text *t)
{
    free(t->ids);
    free(t->held);
    *t = (struct calib_text){0};
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Room for the windows; the long ones, when asked for, follow. */
static int text_init(struct calib_text *t, long long tokens, int n_long, int context, struct err *e)
{
    *t = (struct calib_text){.window = least(CALIB_WINDOW, context),
                             .n_long = n_long,
                             .long_len = least(CALIB_LONG, context)};
    if (tokens < t->window || tokens > (1 << 28))
        return err_set(e, ERR_ARG, "calibration on %lld tokens: at least one window of %d", tokens,
                       t->window);
    t->windows = (int)(tokens / t->window);
    size_t n = (size_t)t->windows * (size_t)t->window + (size_t)n_long * (size_t)t->long_len;
    t->ids = mem_calloc(n, sizeof *t->ids);
    t->tokens = (long long)t->windows * t->window;
    return t->ids ? OK : err_nomem(e, n * sizeof *t->ids, "calibration text");
}

static void text_hash(struct calib_text *t)
{
    struct sha256 s;
    size_t n = (size_t)t->windows * (size_t)t->window + (size_t)t->n_long * (size_t)t->long_len;
    sha256_init(&s);
    sha256_add(&s, t->ids, n * sizeof *t->ids);
    sha256_hex(&s, t->sha256);
}

/* Windows of one kind in one file: count of len tokens each over n. */
struct placing {
    size_t n;
    int count, len;
    uint64_t seed;
};

/* In [0, 1), from the seed and a number (the finaliser of splitmix64). */
static double draw(uint64_t seed, uint64_t i)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + (i + 1) * 0xd1342543de82ef95u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

/* Where window i lies: evenly from the first to the last with the usual seed, somewhere in its
 * share of the file with any other. */
static size_t window_at(const struct placing *p, int i)
{
    size_t slack = p->n - (size_t)p->len;
    if (p->seed != CALIB_SEED)
        return (size_t)((double)slack * (i + draw(p->seed, (uint64_t)i)) / p->count);
    return p->count > 1 ? slack * (size_t)i / (size_t)(p->count - 1) : slack / 2;
}

static void spread(const int32_t *ids, const struct placing *p, int32_t *out)
{
    for (int i = 0; i < p->count; i++)
        memcpy(out + (size_t)i * (size_t)p->len, ids + window_at(p, i),
               (size_t)p->len * sizeof *out);
}

/* Windows of one file that something is fitted to: both kinds. */
struct fitted {
    struct placing kind[2];
};

static bool is_free(const struct fitted *f, size_t at, int len)
{
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < f->kind[k].count; i++) {
            size_t start = window_at(&f->kind[k], i);
            if (at < start + (size_t)f->kind[k].len && start < at + (size_t)len)
                return false;
        }
    return true;
}

/* Window i of count, held_len tokens: the first free one of its share of the file. */
static void hold_back(struct calib_text *t, const int32_t *ids, const struct fitted *f, int i,
                      int count)
{
    size_t n = f->kind[0].n, end = n * (size_t)(i + 1) / (size_t)count;
    size_t len = (size_t)t->held_len;
    /* From the middle of the share on: its ends are where windows of the pass lie. */
    size_t at = n * (size_t)(2 * i + 1) / (size_t)(2 * count);
    while (at + len <= end && !is_free(f, at, t->held_len))
        at++;
    if (at + len <= end)
        memcpy(t->held + (size_t)t->n_held++ * len, ids + at, len * sizeof *ids);
}

/* Of all, what falls to the files before file i: by their shares, or equally. */
static int before(int all, int i, const struct calib_options *o)
{
    double part = 0, sum = 0;
    if (!o->shares)
        return (int)((long long)all * i / o->n_files);
    for (int k = 0; k < o->n_files; k++) {
        part += k < i ? o->shares[k] : 0;
        sum += o->shares[k];
    }
    return (int)(all * part / sum);
}

static int share(int all, int i, const struct calib_options *o)
{
    return before(all, i + 1, o) - before(all, i, o);
}

static void name_source(struct calib_text *t, const char *const *files, int n)
{
    size_t at = 0;
    for (int i = 0; i < n && at < sizeof t->source; i++) {
        int put = snprintf(t->source + at, sizeof t->source - at, "%s%s", i ? ", " : "",
                           path_base(files[i]));
        at += put > 0 ? (size_t)put : 0;
    }
}

static struct fitted placings(const struct calib_text *t, size_t n, int i,
                              const struct calib_options *o)
{
    return (struct fitted){{{n, share(t->windows, i, o), t->window, t->seed},
                            {n, share(t->n_long, i, o), t->long_len, t->seed}}};
}

static int hold_all(struct calib_text *t, const struct ids *ids, const struct calib_options *o,
                    int len, struct err *e)
{
    t->held_len = len;
    t->held = mem_calloc((size_t)len * CALIB_HELD_COUNT, sizeof *t->held);
    if (!t->held)
        return err_nomem(e, (size_t)len * CALIB_HELD_COUNT * sizeof *t->held, "calibration text");
    /* The files in turn: half of the windows are of all kinds of text too. */
    for (int k = 0; k < CALIB_HELD_COUNT; k++)
        for (int i = 0; i < o->n_files; i++) {
            struct fitted f = placings(t, ids[i].n, i, o);
            int count = share(CALIB_HELD_COUNT, i, o);
            if (k < count)
                hold_back(t, ids[i].v, &f, k, count);
        }
    return OK;
}

int calib_text_files(struct calib_text *out, const struct tokenizer *t,
                     const struct calib_options *o, int context, struct err *e)
{
    int n_files = o->n_files;
    struct ids *ids = mem_calloc((size_t)n_files, sizeof *ids);
    int rc = ids ? text_init(out, o->tokens, CALIB_LONG_COUNT, context, e)
                 : err_nomem(e, sizeof *ids, "calibration text");
    if (rc) {
        free(ids);
        return rc;
    }
    out->seed = o->seed;
    for (int i = 0; i < n_files && !rc; i++) {
        rc = eval_text_ids(t, o->files[i], EVAL_HF, &ids[i], e);
        if (!rc && ids[i].n < (size_t)out->window)
            rc =
                err_set(e, ERR_ARG, "%s: %zu tokens, calibration needs at least %d: give more text",
                        o->files[i], ids[i].n, out->window);
        if (!rc && ids[i].n < (size_t)out->long_len)
            out->long_len = out->window; /* short text: short distances only */
    }
    int32_t *at = out->ids, *far = out->ids + (size_t)out->windows * (size_t)out->window;
    for (int i = 0; i < n_files && !rc; i++) {
        struct fitted f = placings(out, ids[i].n, i, o);
        spread(ids[i].v, &f.kind[0], at);
        spread(ids[i].v, &f.kind[1], far);
        at += (size_t)f.kind[0].count * (size_t)out->window;
        far += (size_t)f.kind[1].count * (size_t)out->long_len;
    }
    if (!rc)
        rc = hold_all(out, ids, o, least(CALIB_HELD, context), e);
    for (int i = 0; i < n_files; i++)
        ids_free(&ids[i]);
    free(ids);
    if (rc) {
        calib_text_done(out);
        return rc;
    }
    name_source(out, o->files, n_files);
    text_hash(out);
    return OK;
}

/* The ids that sequences start from, and lose: a quarter each of text starts and chat turns where
 * there are such tokens, else any token, so that what is written is about anything. */
static int32_t first_id(const struct tokenizer *t, const struct model_hparams *hp, int limit, int i,
                        uint64_t seed)
{
    int32_t turn = t ? tokenizer_find(t, "<|im_start|>", 12) : -1;
    int32_t start = t ? tokenizer_find(t, "<|endoftext|>", 13) : hp->bos;
    if (t && start < 0)
        start = tokenizer_bos(t);
    if (i % 4 == 0 && start >= 0)
        return start;
    if (i % 4 == 1 && turn >= 0)
        return turn;
    return (int32_t)((((uint64_t)i + 1) * 7919 + seed * 104729) % (uint64_t)limit);
}

struct writer {
    struct infer *line[SELF_BATCH];
    struct sampler *sampler[SELF_BATCH];
    float *logits;
};

static void writer_done(struct writer *w)
{
    for (int i = 0; i < SELF_BATCH; i++) {
        infer_free(w->line[i]);
        sampler_free(w->sampler[i]);
    }
    free(w->logits);
}

static int writer_init(struct writer *w, const struct engine *g, int n, int length, uint64_t seed,
                       struct err *e)
{
    int vocab = engine_model(g)->hp.vocab, rc = OK;
    *w = (struct writer){.logits = mem_aligned((size_t)n * (size_t)vocab, sizeof(float))};
    if (!w->logits)
        rc = err_nomem(e, (size_t)n * (size_t)vocab * sizeof(float), "logits");
    for (int i = 0; i < n && !rc; i++) {
        struct sampler_options o = {
            .temperature = 1, .top_p = 1, .seed = seed * 1000003u + (uint64_t)i};
        rc = infer_new(&w->line[i], g, length, DTYPE_F16, e);
        if (!rc)
            rc = sampler_new(&w->sampler[i], &o, vocab, e);
    }
    return rc;
}

/* How far the writing of all windows is; asked every token, since a batch takes seconds. */
struct written {
    const struct progress *p;
    int windows, total;
};

static bool go_on(const struct written *done, int n, int at, int length)
{
    return progress_report(done->p, "the model writes its own calibration text",
                           done->windows + (double)n * at / length, done->total);
}

/* n sequences of length tokens each into out, row after row. */
static int write_batch(const struct engine *g, const struct tokenizer *t, int n, int length,
                       uint64_t seed, const struct written *done, int32_t *out, struct err *e)
{
    struct writer w;
    const struct model_hparams *hp = &engine_model(g)->hp;
    int vocab = hp->vocab, limit = t ? least(vocab, tokenizer_size(t)) : vocab;
    int lead = length < hp->context; /* a window begins anywhere in a text, not at its mark */
    int32_t now[SELF_BATCH];
    int rc = writer_init(&w, g, n, length + lead, seed, e);
    for (int i = 0; i < n; i++)
        out[(size_t)i * (size_t)length] = now[i] = first_id(t, hp, limit, i, seed);
    for (int at = 1 - lead; at < length && !rc; at++) {
        if (!go_on(done, n, at, length)) {
            rc = err_set(e, ERR_CANCELLED, "calibration stopped");
            break;
        }
        rc = infer_step_many(w.line, now, n, w.logits, e);
        for (int i = 0; i < n && !rc; i++) {
            now[i] = sampler_next(w.sampler[i], w.logits + (size_t)i * (size_t)vocab, limit);
            out[(size_t)i * (size_t)length + (size_t)at] = now[i];
        }
    }
    writer_done(&w);
    return rc;
}

int calib_text_self(struct calib_text *out, const struct engine *g, const struct tokenizer *t,
                    long long tokens, uint64_t seed, const struct progress *p, struct err *e)
{
    int rc = text_init(out, tokens, 0, engine_model(g)->hp.context, e);
    for (int w = 0; w < out->windows && !rc; w += SELF_BATCH) {
        const struct written done = {p, w, out->windows};
        rc = write_batch(g, t, least(SELF_BATCH, out->windows - w), out->window, seed + (uint64_t)w,
                         &done, out->ids + (size_t)w * (size_t)out->window, e);
    }
    if (rc) {
        calib_text_done(out);
        return rc;
    }
    /* Phase statistics from every second window again, as long windows. */
    int longs = out->windows < 2 ? 1 : out->windows / 2;
    size_t size = (size_t)out->window, have = (size_t)out->windows * size;
    int32_t *more = realloc(out->ids, (have + (size_t)longs * size) * sizeof *more);
    if (!more) {
        calib_text_done(out);
        return err_nomem(e, have * sizeof *more, "calibration text");
    }
    out->ids = more;
    out->n_long = longs;
    out->long_len = out->window;
    for (int i = 0; i < longs; i++)
        memcpy(more + have + (size_t)i * size, more + (size_t)(i * out->windows / longs) * size,
               size * sizeof *more);
    out->seed = seed;
    snprintf(out->source, sizeof out->source, "self");
    text_hash(out);
    return OK;
}

int calib_text_hold_self(struct calib_text *t, const struct engine *g, const struct tokenizer *tok,
                         const struct progress *p, struct err *e)
{
    int count = CALIB_HELD_COUNT * CALIB_HELD / t->window;
    count = count < SELF_BATCH ? count : SELF_BATCH;
    const struct written done = {p, 0, count};
    size_t n = (size_t)count * (size_t)t->window;
    int32_t *held = mem_calloc(n, sizeof *held);
    if (!held)
        return err_nomem(e, n * sizeof *held, "calibration text");
    /* Seeds beyond those of the pass. */
    int rc = write_batch(g, tok, count, t->window, t->seed + (uint64_t)t->windows + SELF_BATCH,
                         &done, held, e);
    if (rc) {
        free(held);
        return rc;
    }
    free(t->held);
    t->held = held;
    t->n_held = count;
    t->held_len = t->window;
    return OK;
}
