/* Single-layer and all-layer KLs. Memory: hidden states of the text for each rank, and one layer's
 * conversion a thread and rank. Refuses a text without windows. */
#include "sessions/probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/sha256.h"
#include "kernels/algebra.h"
#include "kernels/pool.h"
#include "sessions/forward.h"

#define PROBE_ROWS 1024 /* rows that go through a layer together, in whole windows */
#define LOGIT_ROWS 64

struct probe {
    const struct engine *base;
    struct backend *b;
    const struct probe_text *text;
    const struct progress *p;
    size_t rows, bytes; /* of the text; of hidden states of all rows */
    int n;              /* ranks */
    float *now, *last;  /* backend [rows][D] of the original: entering the layer; at the end */
    float *alone[SENSITIVITY_POINTS];      /* backend: one layer converted, at each rank */
    float *all[SENSITIVITY_POINTS];        /* backend: every layer so far */
    struct layer_cache cache;              /* backend, of a group */
    struct scratch scratch, wide;          /* of the original; of a chunk's converted layers */
    float *logits, *other;                 /* backend [LOGIT_ROWS][V]; other, like divergence, */
    float *divergence;                     /* [LOGIT_ROWS], only where the backend compares */
    float *p_logits, *q_logits;            /* host, likewise: the original's, another's */
    float *share;                          /* host, likewise: softmax of p_logits */
    double zp[LOGIT_ROWS], kl[LOGIT_ROWS]; /* log Σ exp p_logits; KL of each row */
    double done, total;                    /* in layers of all rows */
};

static void probe_done(struct probe *t)
{
    const struct backend_ops *op = t->b->ops;
    float *all[] = {t->now, t->last, t->logits, t->other, t->divergence};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        op->free(t->b, all[i]);
    for (int k = 0; k < t->n; k++) {
        op->free(t->b, t->alone[k]);
        op->free(t->b, t->all[k]);
    }
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
    for (int k = 0; k < t->n && ok; k++) {
        t->alone[k] = op->alloc(t->b, t->bytes);
        t->all[k] = op->alloc(t->b, t->bytes);
        ok = t->alone[k] && t->all[k];
    }
    if (!ok)
        return err_nomem(e, t->bytes * (2 * (size_t)t->n + 3), "the probes' hidden states");
    for (size_t i = 0; i < t->rows; i += PROBE_ROWS)
        forward_embed(t->base, t->now + i * D, t->text->ids + i,
                      (int)(t->rows - i < PROBE_ROWS ? t->rows - i : PROBE_ROWS));
    copy_states(t, t->last, t->now);
    for (int k = 0; k < t->n; k++)
        copy_states(t, t->all[k], t->now);
    return scratch_reserve(&t->scratch, t->base, (int)group, e);
}

/* h of all rows through layers first … end−1 of g. */
static int run_layers(struct probe *t, const struct engine *g, int first, int end, float *h,
                      const char *phase, struct err *e)
{
    int windows = group_windows(t), T = t->text->window;
    size_t D = (size_t)t->base->model->hp.hidden;
    const struct model_hparams *hp = &t->base->model->hp;
    size_t step = (size_t)T * (size_t)(3 * hp->n_kv_head * hp->head_dim) * sizeof(float);
    struct scratch *s = g == t->base ? &t->scratch : &t->wide;
    struct segment *seg = mem_calloc((size_t)windows, sizeof *seg);
    int rc = seg ? OK : err_nomem(e, (size_t)windows * sizeof *seg, "a batch");
    for (int w = 0; w < t->text->windows && !rc; w += windows) {
        int n = t->text->windows - w < windows ? t->text->windows - w : windows;
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

#define EXP_BLOCK 256
#define LANES 16 /* sums side by side, which compilers put into vectors */

static float add_lanes(const float lane[LANES])
{
    float sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += lane[i];
    return sum;
}

/* y ≤ 0, not below −87: of numbers with a sign the bits grow as they fall. A comparison of floats
 * would be a branch to a compiler that minds its exceptions, and the loop around it scalar. */
static float not_below(float y)
{
    const float least = -87;
    uint32_t bits, bound;
    memcpy(&bits, &y, sizeof bits);
    memcpy(&bound, &least, sizeof bound);
    bits = bits < bound ? bits : bound;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* out[n] = e^(x − top), x ≤ top, to 2e-7 of it; their sum. A plain loop that compilers turn into
 * vectors: the C library's expf takes most of a probe's time otherwise. */
static double exp_block(float *out, const float *x, float top, int n)
{
    int32_t scale[EXP_BLOCK];
    float factor[EXP_BLOCK], lane[LANES] = {0};
    for (int i = 0; i < n; i++) {
        float y = not_below(x[i] - top);
        int32_t k = (int32_t)(y * 1.44269504F - 0.5F);
        float r = (y - (float)k * 0.693359375F) + (float)k * 2.12194440e-4F;
        float e = 1.9875691500e-4F;
        e = e * r + 1.3981999507e-3F;
        e = e * r + 8.3334519073e-3F;
        e = e * r + 4.1665795894e-2F;
        e = e * r + 1.6666665459e-1F;
        e = e * r + 5.0000001201e-1F;
        out[i] = e * r * r + r + 1;
        scale[i] = (k + 127) << 23;
    }
    memcpy(factor, scale, (size_t)n * sizeof *factor);
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            lane[k] += out[i + k] *= factor[i + k];
    for (; i < n; i++)
        lane[0] += out[i] *= factor[i];
    return (double)add_lanes(lane);
}

/* Softmax of x[n] into p (NULL: not wanted); log Σ exp x is returned. */
static double softmax(float *p, const float *x, int n)
{
    float top = x[0], block[EXP_BLOCK];
    double sum = 0;
    for (int i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int i = 0; i < n; i += EXP_BLOCK)
        sum += exp_block(p ? p + i : block, x + i, top, n - i < EXP_BLOCK ? n - i : EXP_BLOCK);
    float scale = (float)(1 / sum);
    for (int i = 0; p && i < n; i++)
        p[i] *= scale;
    return (double)top + log(sum);
}

static void original_row(void *arg, int i, int thread)
{
    struct probe *t = arg;
    size_t V = (size_t)t->base->model->hp.vocab, at = (size_t)i * V;
    (void)thread;
    t->zp[i] = softmax(t->share + at, t->p_logits + at, (int)V);
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
    const float *p = t->share + at, *x = t->p_logits + at, *y = t->q_logits + at;
    double sum = 0;
    (void)thread;
    int j = 0;
    for (; j + EXP_BLOCK <= V; j += EXP_BLOCK) {
        float lane[LANES] = {0};
        for (int k = j; k < j + EXP_BLOCK; k += LANES)
            for (int l = 0; l < LANES; l++)
                lane[l] += p[k + l] * (x[k + l] - y[k + l]);
        sum += (double)add_lanes(lane);
    }
    for (; j < V; j++)
        sum += (double)(p[j] * (x[j] - y[j]));
    t->kl[i] = not_less(sum - (t->zp[i] - softmax(NULL, y, V)));
}

/* The original's logits of n rows of h, ready to be compared with. */
static void original_rows(struct probe *t, const float *h, int n)
{
    size_t V = (size_t)t->base->model->hp.vocab;
    forward_head(t->base, t->logits, h, n, &t->scratch);
    if (t->other)
        return;
    t->b->ops->get(t->b, t->p_logits, t->logits, (size_t)n * V * sizeof(float));
    pool_for(t->b->pool, n, original_row, t);
}

/* The divergence of n rows of h from them, into t->kl. */
static void compare_rows(struct probe *t, const float *h, int n)
{
    size_t V = (size_t)t->base->model->hp.vocab;
    float kl[LOGIT_ROWS];
    forward_head(t->base, t->other ? t->other : t->logits, h, n, &t->scratch);
    if (!t->other) {
        t->b->ops->get(t->b, t->q_logits, t->logits, (size_t)n * V * sizeof(float));
        pool_for(t->b->pool, n, compare_row, t);
        return;
    }
    t->b->algebra->divergence(t->b, t->divergence, t->logits, t->other, (int)V, n);
    t->b->ops->get(t->b, kl, t->divergence, (size_t)n * sizeof *kl);
    for (int r = 0; r < n; r++)
        t->kl[r] = not_less((double)kl[r]);
}

/* Mean KL of each of the states h[k] [rows][D] after the last layer against the original's. */
static int mean_kl(struct probe *t, float *const *h, double *mean, struct err *e)
{
    size_t D = (size_t)t->base->model->hp.hidden;
    memset(mean, 0, (size_t)t->n * sizeof *mean);
    for (size_t i = 0; i < t->rows; i += LOGIT_ROWS) {
        int n = (int)(t->rows - i < LOGIT_ROWS ? t->rows - i : LOGIT_ROWS);
        original_rows(t, t->last + i * D, n);
        for (int k = 0; k < t->n; k++) {
            compare_rows(t, h[k] + i * D, n);
            for (int r = 0; r < n; r++)
                mean[k] += t->kl[r] / (double)t->rows;
        }
    }
    for (int k = 0; k < t->n; k++)
        if (!isfinite(mean[k]))
            return err_set(e, ERR_NUMERIC, "a probe's logits are no numbers");
    return OK;
}

/* One layer: each rank alone, then what is converted so far, then the original moves on. */
static int probe_layer(struct probe *t, int layer, struct engine *const *g,
                       struct sensitivity_point *const *out, struct err *e)
{
    int L = t->base->model->hp.n_layer, rc = OK;
    char phase[96];
    snprintf(phase, sizeof phase, "measuring sensitivity: layer %d of %d", layer + 1, L);
    double kl[SENSITIVITY_POINTS];
    for (int k = 0; k < t->n && !rc; k++) {
        copy_states(t, t->alone[k], t->now);
        rc = run_layers(t, g[k], layer, layer + 1, t->alone[k], phase, e);
        if (!rc)
            rc = run_layers(t, t->base, layer + 1, L, t->alone[k], phase, e);
        if (!rc)
            rc = run_layers(t, g[k], layer, layer + 1, t->all[k], phase, e);
    }
    if (!rc)
        rc = mean_kl(t, t->alone, kl, e);
    for (int k = 0; k < t->n && !rc; k++)
        out[k]->kl[layer] = kl[k];
    return rc ? rc : run_layers(t, t->base, layer, layer + 1, t->now, phase, e);
}

/* `count` layers from `first` on, converted at every rank, then probed one by one. */
static int probe_chunk(struct probe *t, struct conversion_input in, struct rankplan *plan,
                       struct sensitivity_point *const *out, struct err *e)
{
    struct conversion *made[SENSITIVITY_POINTS] = {0};
    struct engine *g[SENSITIVITY_POINTS] = {0};
    int rc = OK;
    for (int k = 0; k < t->n && !rc; k++) {
        for (int l = 0; l < plan->model.n_layer; l++)
            plan->layer[l].kv_lora_rank = out[k]->rank;
        rc = conversion_solve(&made[k], &in, plan, NULL, NULL, e);
        if (!rc)
            rc = engine_new(&g[k], &made[k]->model, t->b, t->base, e);
    }
    /* The highest rank is the widest. */
    scratch_done(&t->wide);
    if (!rc)
        rc = scratch_reserve(&t->wide, g[t->n - 1], group_windows(t) * t->text->window, e);
    for (int l = in.first; l < in.first + in.count && !rc; l++)
        rc = probe_layer(t, l, g, out, e);
    for (int k = 0; k < t->n; k++) {
        engine_free(g[k]);
        conversion_free(made[k]);
    }
    return rc;
}

static int probe_all(struct probe *t, struct conversion_input in, const struct rankplan *plan,
                     struct sensitivity_point *const *out, struct err *e)
{
    int L = plan->model.n_layer, threads = in.at_once ? in.at_once : pool_threads(in.pool);
    struct rankplan one;
    double kl[SENSITIVITY_POINTS];
    int rc = rankplan_copy(&one, plan, e);
    if (rc)
        return rc;
    rc = run_layers(t, t->base, 0, L, t->last, "measuring sensitivity", e);
    in.measure = false;
    for (in.first = 0; in.first < L && !rc; in.first += in.count) {
        in.count = L - in.first < threads ? L - in.first : threads;
        rc = probe_chunk(t, in, &one, out, e);
    }
    if (!rc)
        rc = mean_kl(t, t->all, kl, e);
    for (int k = 0; k < t->n && !rc; k++)
        out[k]->total = kl[k];
    rankplan_done(&one);
    return rc;
}

int probe_run(struct sensitivity *s, const int *rank, int n, const struct engine *base,
              const struct conversion_input *in, const struct rankplan *plan,
              const struct probe_text *text, const struct progress *p, struct err *e)
{
    double L = plan->model.n_layer;
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
    t.total = L + L + n * (L + L * (L + 1) / 2);
    if (!rc)
        rc = probe_init(&t, e);
    if (!rc)
        rc = probe_all(&t, *in, plan, out, e);
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

int probe_kl(const struct engine *base, const struct engine *other, const struct probe_text *text,
             double *kl, const struct progress *p, struct err *e)
{
    int L = base->model->hp.n_layer;
    struct probe t = {.base = base, .b = base->backend, .text = text, .p = p, .n = 1};
    t.total = 2.0 * L;
    int rc = probe_init(&t, e);
    if (!rc)
        rc = scratch_reserve(&t.wide, other, group_windows(&t) * text->window, e);
    if (!rc)
        rc = run_layers(&t, base, 0, L, t.last, "measuring the conversion", e);
    if (!rc)
        rc = run_layers(&t, other, 0, L, t.all[0], "measuring the conversion", e);
    if (!rc)
        rc = mean_kl(&t, t.all, kl, e);
    probe_done(&t);
    return rc;
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
