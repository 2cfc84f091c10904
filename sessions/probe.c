/* Single-layer and all-layer KLs. Memory: hidden states of the text for each rank and
 * each probe of a chunk of layers, and the chunk's conversions at each rank. Refuses a text without
 * windows. */
#include "sessions/probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/sha256.h"
#include "kernels/algebra.h"
#include "kernels/divergence.h"
#include "kernels/pool.h"
#include "sessions/forward.h"

#define PROBE_ROWS 1024 /* rows that go through a layer together, in whole windows */
#define LOGIT_ROWS 64
#define CHUNK 4 /* layers at least that meet the original's logits together */

struct probe {
    const struct engine *base;
    struct backend *b;
    const struct probe_text *text;
    const struct progress *p;
    size_t rows, bytes; /* of the text; of hidden states of all rows */
    int n;              /* ranks */
    float *now, *last;  /* backend [rows][D] of the original: entering the layer; at the end */
    float *all[SENSITIVITY_POINTS]; /* backend: every layer so far converted, at each rank */
    float **alone; /* backend [n_alone]: one layer converted: a chunk's layers at probed ranks */
    int n_alone;
    bool between;                 /* ranks between the lowest and the full one are not probed */
    int part;                     /* windows that the full rank is probed on then */
    struct layer_cache cache;     /* backend, of a group */
    struct scratch scratch, wide; /* of the original; of a chunk's converted layers */
    float *logits, *other;        /* backend [LOGIT_ROWS][V]; other, like divergence, */
    float *divergence;            /* [LOGIT_ROWS], only where the backend compares */
    float *p_logits, *q_logits;   /* host, likewise: the original's, another's */
    float *share;                 /* host, likewise: softmax of p_logits */
    double zp[LOGIT_ROWS], kl[LOGIT_ROWS]; /* log Σ exp p_logits; KL of each row */
    double done, total;                    /* in layers of all rows */
};

static void probe_done(struct probe *t)
{
    const struct backend_ops *op = t->b->ops;
    float *all[] = {t->now, t->last, t->logits, t->other, t->divergence};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        op->free(t->b, all[i]);
    for (int k = 0; k < t->n; k++)
        op->free(t->b, t->all[k]);
    for (int k = 0; k < t->n_alone && t->alone; k++)
        op->free(t->b, t->alone[k]);
    free(t->alone);
    op->free(t->b, t->cache.a);
    op->free(t->b, t->cache.b);
    scratch_done(&t->scratch);
    scratch_done(&t->wide);
    free(t->p_logits);
    free(t->q_logits);
    free(t->share);
}

static int group_windows(const struct probe *t)
{
    int n = PROBE_ROWS / t->text->window;
    return n < 1 ? 1 : n > t->text->windows ? t->text->windows : n;
}

/* to = from, hidden states of all rows. */
static void copy_states(struct probe *t, float *to, const float *from)
{
    int D = t->base->model->hp.hidden;
    t->b->ops->store(t->b, to, DTYPE_F32, D, from, D, D, (int)t->rows);
}

static int probe_init(struct probe *t, struct err *e)
{
    const struct backend_ops *op = t->b->ops;
    const struct model_hparams *hp = &t->base->model->hp;
    size_t D = (size_t)hp->hidden, V = (size_t)hp->vocab;
    size_t group = (size_t)group_windows(t) * (size_t)t->text->window;
    /* Wide enough for a latent and any rope beside it. */
    size_t width = 3 * (size_t)hp->n_kv_head * (size_t)hp->head_dim;
    t->rows = (size_t)t->text->windows * (size_t)t->text->window;
    t->bytes = t->rows * D * sizeof(float);
    t->now = op->alloc(t->b, t->bytes);
    t->last = op->alloc(t->b, t->bytes);
    t->logits = op->alloc(t->b, LOGIT_ROWS * V * sizeof(float));
    t->cache.a = op->alloc(t->b, group * width * sizeof(float));
    t->cache.b = op->alloc(t->b, group * width * sizeof(float));
    if (t->b->algebra) {
        t->other = op->alloc(t->b, LOGIT_ROWS * V * sizeof(float));
        t->divergence = op->alloc(t->b, LOGIT_ROWS * sizeof(float));
    }
    t->p_logits = mem_aligned(LOGIT_ROWS * V, sizeof(float));
    t->q_logits = mem_aligned(LOGIT_ROWS * V, sizeof(float));
    t->share = mem_aligned(LOGIT_ROWS * V, sizeof(float));
    bool ok = t->now && t->last && t->logits && t->cache.a && t->cache.b && t->p_logits &&
              t->q_logits && t->share && (!t->b->algebra || (t->other && t->divergence));
    for (int k = 0; k < t->n && ok; k++)
        ok = (t->all[k] = op->alloc(t->b, t->bytes)) != NULL;
    if (t->n_alone)
        ok = ok && (t->alone = mem_calloc((size_t)t->n_alone, sizeof *t->alone));
    for (int k = 0; k < t->n_alone && ok; k++)
        ok = (t->alone[k] = op->alloc(t->b, t->bytes)) != NULL;
    if (!ok)
        return err_nomem(e, t->bytes * (size_t)(t->n + t->n_alone + 3),
                         "the probes' hidden states");
    for (size_t i = 0; i < t->rows; i += PROBE_ROWS)
        forward_embed(t->base, t->now + i * D, t->text->ids + i,
                      (int)(t->rows - i < PROBE_ROWS ? t->rows - i : PROBE_ROWS));
    copy_states(t, t->last, t->now);
    for (int k = 0; k < t->n; k++)
        copy_states(t, t->all[k], t->now);
    return scratch_reserve(&t->scratch, t->base, (int)group, e);
}

/* h of the first `all` windows through layers first … end−1 of g. */
static int run_windows(struct probe *t, const struct engine *g, int first, int end, float *h,
                       int all, const char *phase, struct err *e)
{
    int windows = group_windows(t), T = t->text->window;
    size_t D = (size_t)t->base->model->hp.hidden;
    const struct model_hparams *hp = &t->base->model->hp;
    size_t step = (size_t)T * (size_t)(3 * hp->n_kv_head * hp->head_dim) * sizeof(float);
    struct scratch *s = g == t->base ? &t->scratch : &t->wide;
    struct segment *seg = mem_calloc((size_t)windows, sizeof *seg);
    int rc = seg ? OK : err_nomem(e, (size_t)windows * sizeof *seg, "a batch");
    for (int w = 0; w < all && !rc; w += windows) {
        int n = all - w < windows ? all - w : windows;
        for (int i = 0; i < n; i++)
            seg[i] = (struct segment){.row = i * T,
                                      .n = T,
                                      .cache = {.a = (char *)t->cache.a + (size_t)i * step,
                                                .b = (char *)t->cache.b + (size_t)i * step}};
        /* Frequencies of an engine that is gone may have lain where this one's lie. */
        scratch_new_batch(s);
        for (int l = first; l < end && !rc; l++) {
            if (!progress_report(t->p, phase, t->done, t->total))
                rc = err_set(e, ERR_CANCELLED, "measuring stopped");
            else
                forward_layer(g, l, h + (size_t)(w * T) * D, n * T, seg, n, DTYPE_F32, s, NULL);
            t->done += (double)n / t->text->windows;
        }
    }
    free(seg);
    return rc ? rc : t->b->ops->sync(t->b, e);
}

static int run_layers(struct probe *t, const struct engine *g, int first, int end, float *h,
                      const char *phase, struct err *e)
{
    return run_windows(t, g, first, end, h, t->text->windows, phase, e);
}

static void original_row(void *arg, int i, int thread)
{
    struct probe *t = arg;
    size_t V = (size_t)t->base->model->hp.vocab, at = (size_t)i * V;
    (void)thread;
    t->zp[i] = divergence_share(t->share + at, t->p_logits + at, (int)V);
}

/* A divergence of nothing may come out below zero by roundings; NaN stays NaN. */
static double not_less(double kl)
{
    return kl < 0 ? 0 : kl;
}

static void compare_row(void *arg, int i, int thread)
{
    struct probe *t = arg;
    int V = t->base->model->hp.vocab;
    size_t at = (size_t)i * (size_t)V;
    (void)thread;
    t->kl[i] =
        not_less(divergence_row(t->share + at, t->p_logits + at, t->zp[i], t->q_logits + at, V));
}

/* Logits of n rows of h, on the host. */
static void host_logits(struct probe *t, float *to, const float *h, int n)
{
    size_t V = (size_t)t->base->model->hp.vocab;
    bool near = t->b->ops == &cpu_backend_ops; /* its memory is the host's */
    forward_head(t->base, near ? to : t->logits, h, n, &t->scratch);
    if (!near)
        t->b->ops->get(t->b, to, t->logits, (size_t)n * V * sizeof *to);
}

/* The original's logits of n rows of h, ready to be compared with. */
static void original_rows(struct probe *t, const float *h, int n)
{
    if (t->other) {
        forward_head(t->base, t->logits, h, n, &t->scratch);
        return;
    }
    host_logits(t, t->p_logits, h, n);
    pool_for(t->b->pool, n, original_row, t);
}

/* The divergence of n rows of h from them, into t->kl. */
static void compare_rows(struct probe *t, const float *h, int n)
{
    int V = t->base->model->hp.vocab;
    float kl[LOGIT_ROWS];
    if (!t->other) {
        host_logits(t, t->q_logits, h, n);
        pool_for(t->b->pool, n, compare_row, t);
        return;
    }
    forward_head(t->base, t->other, h, n, &t->scratch);
    t->b->algebra->divergence(t->b, t->divergence, t->logits, t->other, V, n);
    t->b->ops->get(t->b, kl, t->divergence, (size_t)n * sizeof *kl);
    for (int r = 0; r < n; r++)
        t->kl[r] = not_less((double)kl[r]);
}

/* Adds the KLs of rows first … end−1 of each of the n states h[k] [rows][D] after the last layer
 * against the original's to sum. */
static int add_kl(struct probe *t, int n_states, float *const *h, size_t first, size_t end,
                  double *sum, struct err *e)
{
    size_t D = (size_t)t->base->model->hp.hidden;
    for (size_t i = first; i < end; i += LOGIT_ROWS) {
        int n = (int)(end - i < LOGIT_ROWS ? end - i : LOGIT_ROWS);
        original_rows(t, t->last + i * D, n);
        for (int k = 0; k < n_states; k++) {
            compare_rows(t, h[k] + i * D, n);
            for (int r = 0; r < n; r++)
                sum[k] += t->kl[r];
        }
    }
    for (int k = 0; k < n_states; k++)
        if (!isfinite(sum[k]))
            return err_set(e, ERR_NUMERIC, "a probe's logits are no numbers");
    return OK;
}

/* Mean KL of each over all rows. */
static int mean_kl(struct probe *t, int n_states, float *const *h, double *mean, struct err *e)
{
    memset(mean, 0, (size_t)n_states * sizeof *mean);
    int rc = add_kl(t, n_states, h, 0, t->rows, mean, e);
    for (int k = 0; k < n_states; k++)
        mean[k] /= (double)t->rows;
    return rc;
}

/* Of n layers: kl[k] at the lowest rank (h[k]) and kl[n + k] at the full one (h[n + k]), which has
 * been through a part of the windows: what all would give follows by the lowest rank's KLs. */
static int mean_kl_in_part(struct probe *t, int n, float *const *h, double *kl, struct err *e)
{
    size_t rows = (size_t)t->part * (size_t)t->text->window;
    memset(kl, 0, 2 * (size_t)n * sizeof *kl);
    int rc = add_kl(t, 2 * n, h, 0, rows, kl, e);
    for (int k = 0; k < n; k++)
        kl[n + k] = kl[k] > 0 ? kl[n + k] / kl[k] : 0;
    if (!rc)
        rc = add_kl(t, n, h, rows, t->rows, kl, e);
    for (int k = 0; k < n; k++) {
        kl[k] /= (double)t->rows;
        kl[n + k] *= kl[k];
    }
    return rc;
}

/* Ranks whose layers are probed alone: the lowest and the full one where both are asked for. What
 * those between them cost follows from them (derive). */
static bool probed(const struct probe *t, int k)
{
    return !t->between || k == 0 || k == t->n - 1;
}

/* The KLs of a layer at the ranks between: beyond the rope's part they go as the errors of the
 * layer's own output do. Beside probing them, 30 layers of SmolLM2-135M came out within 8 % at 1.6
 * of a quarter of the cache (standard deviation), no further off than another text takes them. */
static void derive(const struct probe *t, int layer, struct conversion *const *made,
                   struct sensitivity_point *const *out)
{
    int last = t->n - 1;
    double low = made[0]->report.layer[layer].error, full = made[last]->report.layer[layer].error;
    double rope = out[last]->kl[layer], cost = out[0]->kl[layer] - rope;
    for (int k = 1; k < last; k++) {
        double share = (made[k]->report.layer[layer].error - full) / (low - full);
        out[k]->kl[layer] = rope + (low > full ? cost * fmin(fmax(share, 0), 1) : cost);
    }
}

/* One layer: at each rank that is probed alone, into alone[0], alone[step] …; what is converted so
 * far at every rank; then the original moves on. */
static int probe_layer(struct probe *t, int layer, struct engine *const *g, float *const *alone,
                       int step, struct err *e)
{
    int L = t->base->model->hp.n_layer, rc = OK;
    char phase[96];
    snprintf(phase, sizeof phase, "measuring sensitivity: layer %d of %d", layer + 1, L);
    for (int k = 0; k < t->n && !rc; k++) {
        rc = run_layers(t, g[k], layer, layer + 1, t->all[k], phase, e);
        if (rc || !probed(t, k))
            continue;
        int windows = t->between && k > 0 ? t->part : t->text->windows;
        float *h = *alone;
        alone += step;
        copy_states(t, h, t->now);
        rc = run_windows(t, g[k], layer, layer + 1, h, windows, phase, e);
        if (!rc)
            rc = run_windows(t, t->base, layer + 1, L, h, windows, phase, e);
    }
    return rc ? rc : run_layers(t, t->base, layer, layer + 1, t->now, phase, e);
}

/* `count` layers from `first` on, converted at every rank, then probed one by one. */
static int probe_chunk(struct probe *t, struct conversion_input in, struct rankplan *plan,
                       struct sensitivity_point *const *out, struct err *e)
{
    struct conversion *made[SENSITIVITY_POINTS] = {0};
    struct engine *g[SENSITIVITY_POINTS] = {0};
    int rc = OK, each = t->between ? 2 : t->n;
    double *kl = mem_calloc((size_t)(in.count * each), sizeof *kl);
    if (!kl)
        rc = err_nomem(e, (size_t)(in.count * each) * sizeof *kl, "sensitivities");
    for (int k = 0; k < t->n && !rc; k++) {
        for (int l = 0; l < plan->model.n_layer; l++)
            plan->layer[l].kv_lora_rank = out[k]->rank;
        const struct model *m;
        rc = conversion_solve(&made[k], &in, plan, NULL, NULL, e);
        if (!rc)
            rc = conversion_runtime(made[k], in.rounded, &m, e);
        if (!rc)
            rc = engine_new(&g[k], m, t->b, t->base, e);
    }
    /* The highest rank is the widest. */
    scratch_done(&t->wide);
    if (!rc)
        rc = scratch_reserve(&t->wide, g[t->n - 1], group_windows(t) * t->text->window, e);
    for (int i = 0; i < in.count && !rc; i++)
        rc = probe_layer(t, in.first + i, g, t->alone + i, in.count, e);
    if (!rc)
        rc = t->between ? mean_kl_in_part(t, in.count, t->alone, kl, e)
                        : mean_kl(t, in.count * each, t->alone, kl, e);
    for (int i = 0; i < in.count && !rc; i++) {
        const double *next = kl + i;
        for (int k = 0; k < t->n; k++)
            if (probed(t, k)) {
                out[k]->kl[in.first + i] = *next;
                next += in.count;
            }
        if (t->between)
            derive(t, in.first + i, made, out);
    }
    for (int k = 0; k < t->n; k++) {
        engine_free(g[k]);
        conversion_free(made[k]);
    }
    free(kl);
    return rc;
}

static int probe_all(struct probe *t, struct conversion_input in, const struct rankplan *plan,
                     struct sensitivity_point *const *out, struct err *e)
{
    int L = plan->model.n_layer, most = in.count;
    struct rankplan one;
    double kl[SENSITIVITY_POINTS];
    int rc = rankplan_copy(&one, plan, e);
    if (rc)
        return rc;
    rc = run_layers(t, t->base, 0, L, t->last, "measuring sensitivity", e);
    in.measure = t->between;
    in.brief = !in.prepared;
    for (in.first = 0; in.first < L && !rc; in.first += in.count) {
        in.count = L - in.first < most ? L - in.first : most;
        rc = probe_chunk(t, in, &one, out, e);
    }
    if (!rc)
        rc = mean_kl(t, t->n, t->all, kl, e);
    for (int k = 0; k < t->n && !rc; k++)
        out[k]->total = kl[k];
    rankplan_done(&one);
    return rc;
}

int probe_run(struct sensitivity *s, const int *rank, int n, const struct engine *base,
              const struct conversion_input *in, const struct rankplan *plan,
              const struct probe_text *text, const struct progress *p, struct err *e)
{
    int L = plan->model.n_layer, full = rankplan_max_rank(&plan->model);
    int threads = pool_threads(in->pool), most = threads < CHUNK ? CHUNK : threads;
    if (in->at_once && in->at_once < threads) /* memory is short */
        most = in->at_once;
    struct conversion_input chunk = *in;
    struct probe t = {.base = base, .b = base->backend, .text = text, .p = p};
    struct sensitivity_point *out[SENSITIVITY_POINTS];
    struct sensitivity fresh;
    if (text->windows < 1 || text->window < 2)
        return err_set(e, ERR_ARG,
                       "nothing of the calibration text could be held back for "
                       "measuring: give more text, or calibrate on fewer tokens");
    int rc = sensitivity_copy(&fresh, s, e);
    if (rc)
        return rc;
    for (int k = 0; k < n && !rc; k++)
        if (!sensitivity_point(&fresh, rank[k]))
            rc = err_set(e, ERR_LIMIT, "sensitivities at more than %d ranks", SENSITIVITY_POINTS);
    for (int k = 0; k < n && !rc; k++)
        out[k] = sensitivity_point(&fresh, rank[k]); /* again: they have moved */
    t.n = n;
    t.between = n > 2 && rank[n - 1] == full;
    chunk.count = L < most ? L : most;
    t.n_alone = chunk.count * (t.between ? 2 : n);
    t.part = (text->windows + 1) / 2;
    double alone = t.between ? 1 + (double)t.part / text->windows : n;
    t.total = 2.0 * L + n * L + alone * (L * (L + 1) / 2.0);
    if (!rc)
        rc = probe_init(&t, e);
    if (!rc)
        rc = probe_all(&t, chunk, plan, out, e);
    probe_done(&t);
    if (rc) {
        sensitivity_done(&fresh);
        return rc;
    }
    fresh.tokens = (long long)t.rows;
    sensitivity_done(s);
    *s = fresh;
    return OK;
}

int probe_open(struct probe **out, const struct engine *base, const struct probe_text *text,
               const struct progress *p, struct err *e)
{
    struct probe *t = *out = mem_calloc(1, sizeof *t);
    if (!t)
        return err_nomem(e, sizeof *t, "a measurement");
    *t = (struct probe){.base = base, .b = base->backend, .text = text, .p = p, .n = 1};
    t->total = base->model->hp.n_layer;
    int rc = probe_init(t, e);
    if (!rc)
        rc = run_layers(t, base, 0, base->model->hp.n_layer, t->last, "measuring the original", e);
    if (rc) {
        probe_close(t);
        *out = NULL;
    }
    return rc;
}

void probe_close(struct probe *t)
{
    if (t)
        probe_done(t);
    free(t);
}

int probe_kl(struct probe *t, const struct engine *other, double *kl, struct err *e)
{
    copy_states(t, t->all[0], t->now);
    scratch_done(&t->wide); /* the next may be wider */
    t->done = 0;
    int rc = scratch_reserve(&t->wide, other, group_windows(t) * t->text->window, e);
    if (!rc)
        rc = run_layers(t, other, 0, t->base->model->hp.n_layer, t->all[0],
                        "measuring the conversion", e);
    return rc ? rc : mean_kl(t, 1, t->all, kl, e);
}

int probe_energies(struct workspace *w, const struct rankplan *plan, struct sensitivity *s,
                   struct err *e)
{
    enum { BATCH = 4 };
    int rc = OK;
    for (int l = 0; l < s->n_layer && !rc; l += BATCH) {
        struct spectrum found[BATCH];
        int layer[BATCH], rope[BATCH], n = s->n_layer - l < BATCH ? s->n_layer - l : BATCH;
        for (int i = 0; i < n; i++) {
            layer[i] = l + i;
            rope[i] = plan->layer[l + i].qk_rope_head_dim;
        }
        rc = workspace_spectra(w, n, layer, plan->layout, rope, found, e);
        for (int i = 0; i < n && !rc; i++) {
            sensitivity_set_energy(s, l + i, &found[i]);
            spectrum_done(&found[i]);
        }
    }
    return rc;
}

char *probe_path(const char *dir, const struct rankplan *plan, const char *text)
{
    struct sha256 h;
    char key[65];
    sha256_init(&h);
    for (int l = 0; l < plan->model.n_layer; l++) {
        int32_t rope = plan->layer[l].qk_rope_head_dim;
        sha256_add(&h, &rope, sizeof rope);
    }
    const char *layout = plan_layout_name(plan->layout);
    sha256_add(&h, layout, strlen(layout));
    sha256_add(&h, &plan->without, sizeof plan->without);
    if (plan->rounds || plan->stride || plan->balance > 0 || plan->damping > 0 || plan->refit_ffn) {
        sha256_add(&h, &plan->rounds, sizeof plan->rounds);
        sha256_add(&h, &plan->stride, sizeof plan->stride);
        sha256_add(&h, &plan->balance, sizeof plan->balance);
        sha256_add(&h, &plan->damping, sizeof plan->damping);
        if (plan->refit_ffn) /* probes do not refit, but what was measured in the end teaches */
            sha256_add(&h, "ffn", 3);
    }
    sha256_hex(&h, key);
    return mem_printf("%s/sensitivity-%.12s-%.12s-%.12s.json", dir, plan->model.fingerprint, text,
                      key);
}
