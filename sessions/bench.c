/* llama-bench's protocol. Tokens are random and seeded: speed does not depend on what they say.
 * Refuses nothing to measure, and lengths that no cache could hold. */
#include "sessions/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/metrics.h"
#include "core/sampler.h"
#include "kernels/pool.h"
#include "sessions/clock.h"

#define BENCH_MAX_TOKENS (1 << 24)

#define SWEEP_BYTES ((size_t)256 << 20)
#define SWEEP_PIECE ((size_t)1 << 20)
#define SWEEPS 5

struct sweep {
    const uint64_t *data;
    uint64_t sum[SWEEP_BYTES / SWEEP_PIECE];
};

static void sweep_piece(void *arg, int i, int thread)
{
    struct sweep *s = arg;
    const size_t n = SWEEP_PIECE / sizeof *s->data;
    const uint64_t *p = s->data + (size_t)i * n;
    uint64_t sum[16] = {0};
    (void)thread;
    for (size_t k = 0; k < n; k += 16) {
        __builtin_prefetch(p + k + 512);
        __builtin_prefetch(p + k + 520);
        for (size_t l = 0; l < 16; l++)
            sum[l] += p[k + l];
    }
    for (size_t l = 1; l < 16; l++)
        sum[0] += sum[l];
    s->sum[i] = sum[0]; /* kept, or nothing would be read */
}

/* A device's own memory: what a copy within it reads and writes. */
static double copy_rate(struct backend *b)
{
    enum { ROWS = 64, COPIES = 20 };
    const int n = (int)(SWEEP_BYTES / ROWS / sizeof(float));
    float *from = b->ops->alloc(b, SWEEP_BYTES), *to = b->ops->alloc(b, SWEEP_BYTES);
    double best = 0;
    for (int i = 0; from && to && i < SWEEPS && !b->ops->sync(b, NULL); i++) {
        double start = clock_now();
        for (int k = 0; k < COPIES; k++)
            b->ops->store(b, to, DTYPE_F32, n, from, n, n, ROWS);
        if (!b->ops->sync(b, NULL))
            best = fmax(best, 2.0 * COPIES * (double)SWEEP_BYTES / fmax(clock_now() - start, 1e-9));
    }
    b->ops->free(b, from);
    b->ops->free(b, to);
    return best;
}

double bench_bandwidth(const struct engine *g)
{
    double best = 0;
    if (!strncmp(engine_backend(g)->ops->name, "cuda", 4))
        return copy_rate(engine_backend(g));
    struct sweep s = {0};
    struct pool *p = engine_backend(g)->pool;
    bool host = !strcmp(engine_backend(g)->ops->name, "cpu");
    uint64_t *data = host ? malloc(SWEEP_BYTES) : NULL;
    if (!data)
        return 0;
    memset(data, 1, SWEEP_BYTES); /* pages of their own */
    s.data = data;
    for (int i = 0; i < SWEEPS; i++) {
        double start = clock_now();
        pool_for(p, (int)(SWEEP_BYTES / SWEEP_PIECE), sweep_piece, &s);
        best = fmax(best, (double)SWEEP_BYTES / fmax(clock_now() - start, 1e-9));
    }
    free(data);
    return best;
}

int bench_threads(const struct engine *g)
{
    return pool_threads(engine_backend(g)->pool);
}

static size_t layer_bytes(const struct model *m, const struct model_layer *y)
{
    const struct tensor *all[] = {&y->q,    &y->k,  &y->v,    &y->kv_a,   &y->kv_b, &y->o,
                                  &y->gate, &y->up, &y->down, &y->q_rope, &y->q_a,  &y->router};
    size_t bytes = 0, experts = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bytes += all[i]->data ? tensor_bytes(all[i]) : 0;
    for (int i = 0; y->expert && i < m->hp.moe.n * EXPERT_PARTS; i++)
        experts += tensor_bytes(&y->expert[i]);
    return bytes + (y->expert ? experts / (size_t)m->hp.moe.n * (size_t)m->hp.moe.used : 0);
}

size_t bench_weight_bytes(const struct model *m)
{
    size_t bytes = tensor_bytes(&m->head);
    for (int l = 0; l < m->hp.n_layer; l++)
        bytes += layer_bytes(m, &m->layer[l]);
    return bytes;
}

struct bench_job {
    const struct bench_options *o;
    const struct progress *progress;
    struct infer *timeline;
    int32_t *ids;    /* [longest depth + test] random tokens */
    float *logits;   /* [V] */
    int done, total; /* runs */
    size_t weight_bytes;
    char phase[48];
};

static bool relay_report(void *user, const char *phase, double done, double total)
{
    const struct bench_job *j = user;
    (void)phase, (void)done, (void)total;
    return progress_report(j->progress, j->phase, j->done, j->total);
}

/* Brings the timeline to exactly depth tokens. */
static int reach(struct bench_job *j, int depth, struct err *e)
{
    struct progress p = {relay_report, j};
    infer_rewind(j->timeline, depth);
    int pos = infer_pos(j->timeline); /* less where a window has forgotten what comes before */
    return pos < depth
               ? infer_prefill(j->timeline, j->ids + pos, depth - pos, INFER_NONE, NULL, &p, e)
               : OK;
}

/* One timed run from depth; *rate in tokens a second. */
static int run_once(struct bench_job *j, int depth, int n, bool prefill, double *rate,
                    struct err *e)
{
    struct progress p = {relay_report, j};
    const int32_t *ids = j->ids + depth;
    if (!relay_report(j, "", 0, 0))
        return err_set(e, ERR_CANCELLED, "benchmark stopped");
    int rc = reach(j, depth, e);
    if (rc)
        return rc;
    double start = clock_now();
    if (prefill)
        rc = infer_prefill(j->timeline, ids, n, INFER_LAST, j->logits, &p, e);
    for (int i = 0; i < n && !prefill && !rc; i++) {
        rc = infer_step(j->timeline, ids[i], j->logits, e);
        if (!rc && i % 16 == 15 && !relay_report(j, "", 0, 0))
            rc = err_set(e, ERR_CANCELLED, "benchmark stopped");
    }
    *rate = n / fmax(clock_now() - start, 1e-9);
    return rc;
}

/* What repetitions of one test gave. */
struct rates {
    struct sample own, peer, ratio;
};

static int add_run(struct bench_job *j, int depth, int n, bool prefill, double rate,
                   struct rates *s, struct err *e)
{
    const struct bench_peer *peer = j->o->peer;
    double other = 0;
    int rc = peer ? peer->run(peer->user, depth, n, prefill, &other, e) : OK;
    if (rc)
        return rc;
    bool ok = sample_add(&s->own, rate) &&
              (!peer || (sample_add(&s->peer, other) && sample_add(&s->ratio, rate / other)));
    return ok ? OK : err_nomem(e, sizeof rate, "the benchmark");
}

static void summarise(const struct bench_job *j, struct rates *s, struct bench_row *row)
{
    row->tokens_per_sec = sample_mean(&s->own);
    row->sd = s->own.n > 1 ? sample_stderr(&s->own) * sqrt((double)s->own.n) : 0;
    row->min = sample_percentile(&s->own, 0);
    row->max = sample_percentile(&s->own, 100);
    row->kv_bytes = infer_kv_bytes_used(j->timeline);
    if (!s->peer.n)
        return;
    row->peer_tokens_per_sec = sample_percentile(&s->peer, 50);
    row->ratio = sample_percentile(&s->ratio, 50);
    row->ratio_min = sample_percentile(&s->ratio, 0);
    row->ratio_max = sample_percentile(&s->ratio, 100);
}

static int run_test(struct bench_job *j, int depth, int n, bool prefill, struct bench_row *row,
                    struct err *e)
{
    struct rates s = {0};
    double rate = 0;
    *row = (struct bench_row){.depth = depth};
    snprintf(row->test, sizeof row->test, "%s%d", prefill ? "pp" : "tg", n);
    snprintf(j->phase, sizeof j->phase, "%s @ %d", row->test, depth);
    int rc = OK;
    for (int i = -1; i < j->o->repeat && !rc; i++) { /* −1: warm-up */
        rc = run_once(j, depth, n, prefill, &rate, e);
        j->done++;
        if (!rc && i >= 0)
            rc = add_run(j, depth, n, prefill, rate, &s, e);
    }
    if (!rc)
        summarise(j, &s, row);
    if (!rc && !prefill) /* the cache as it is in the middle of the test */
        row->read_bytes =
            j->weight_bytes + (size_t)((double)row->kv_bytes * (depth + n / 2.0) / (depth + n));
    sample_free(&s.own);
    sample_free(&s.peer);
    sample_free(&s.ratio);
    return rc;
}

static int run_all(struct bench_job *j, struct bench_row *rows, int *n, struct err *e)
{
    const struct bench_options *o = j->o;
    for (int d = 0; d < o->n_depth; d++) {
        for (int kind = 0; kind < 2; kind++) {
            int length = kind ? o->generate : o->prompt;
            if (!length)
                continue;
            snprintf(j->phase, sizeof j->phase, "fill to %d", o->depth[d]);
            int rc = reach(j, o->depth[d], e);
            if (!rc)
                rc = run_test(j, o->depth[d], length, kind == 0, &rows[*n], e);
            if (rc)
                return rc;
            ++*n;
        }
    }
    return OK;
}

static int check(const struct bench_options *o, int *longest, struct err *e)
{
    if (o->prompt < 0 || o->generate < 0 || o->prompt > BENCH_MAX_TOKENS ||
        o->generate > BENCH_MAX_TOKENS || (!o->prompt && !o->generate) || o->repeat < 1 ||
        o->n_depth < 1)
        return err_set(e, ERR_ARG, "benchmark of %d and %d tokens, %d times: nothing to measure",
                       o->prompt, o->generate, o->repeat);
    *longest = 0;
    for (int d = 0; d < o->n_depth; d++) {
        if (o->depth[d] < 0 || o->depth[d] > BENCH_MAX_TOKENS)
            return err_set(e, ERR_ARG, "depth %d: give 0 to %d", o->depth[d], BENCH_MAX_TOKENS);
        *longest = o->depth[d] > *longest ? o->depth[d] : *longest;
    }
    *longest += o->prompt > o->generate ? o->prompt : o->generate;
    return OK;
}

int bench_run(const struct engine *g, const struct bench_options *o, const struct progress *p,
              struct bench_row **rows, int *n, struct err *e)
{
    struct bench_job j = {
        .o = o, .progress = p, .weight_bytes = bench_weight_bytes(engine_model(g))};
    int vocab = engine_model(g)->hp.vocab, longest = 0;
    uint64_t state[4];
    *rows = NULL;
    *n = 0;
    int rc = check(o, &longest, e);
    if (rc)
        return rc;
    j.total = o->n_depth * ((o->prompt > 0) + (o->generate > 0)) * (o->repeat + 1);
    j.ids = mem_calloc((size_t)longest, sizeof *j.ids);
    j.logits = mem_aligned((size_t)vocab, sizeof *j.logits);
    *rows = mem_calloc((size_t)o->n_depth * 2, sizeof **rows);
    if (!j.ids || !j.logits || !*rows)
        rc = err_nomem(e, (size_t)longest * 4 + (size_t)vocab * 4, "the benchmark");
    random_seed(state, 1);
    for (int i = 0; !rc && i < longest; i++)
        j.ids[i] = (int32_t)(random_uniform(state) * vocab);
    if (!rc)
        rc = infer_new(&j.timeline, g, longest, o->kv, e);
    if (!rc)
        rc = run_all(&j, *rows, n, e);
    infer_free(j.timeline);
    free(j.ids);
    free(j.logits);
    if (rc) {
        free(*rows);
        *rows = NULL;
        *n = 0;
    }
    return rc;
}
