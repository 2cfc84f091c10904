/* Streams calibration windows through the model layer by layer and accumulates moments. */
#include "sessions/calibrate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mla.h"
#include "core/moments_device.h"
#include "kernels/algebra.h"
#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "sessions/conversion.h"
#include "sessions/states.h"

#define PHASE_STEP 32 /* every 32nd query of a long window */

/* What the pass needs beside the model: the text's hidden states, host copies of a group. */
struct stream {
    struct states at;
    struct backend *b;
    const struct calib_text *text;
    float *x, *q, *k, *v; /* host, one group */
    float *energy;        /* [rows] |h|² of what enters the layer at hand */
    size_t x_width, q_width, k_width, v_width;
    size_t done, total;            /* progress in rows × layers */
    struct moments_device *device; /* adds a layer's windows where they are; NULL: the host does */
    bool want_x;  /* the group's x is wanted on the host although the device adds */
    float *dots;  /* backend, one group; NULL without its algebra */
    double until; /* layers settle at so small a change; 0: never */
};

double calibrate_hidden_bytes(const struct model *m, const struct calib_text *t)
{
    return sizeof(float) * (double)states_rows(t) * m->hp.hidden;
}

double calibrate_bytes(const struct model *m, const struct calib_text *t,
                       const struct stats_form *form, int threads)
{
    const struct model_hparams *hp = &m->hp;
    double group = states_group_rows(t), D = hp->hidden, most = 0;
    double heads = (double)hp->head_dim * (hp->n_head + 2.0 * hp->n_kv_head);
    double longs = form->candidates ? (double)t->n_long * t->long_len * heads : 0;
    /* A group at the backend and on the host, and the feed-forward's three. */
    double pass = group * (4 * D + 3 * heads + 3.0 * hp->ffn) + longs;
    for (int l = 0; l < hp->n_layer; l++) {
        struct moments_shape s = stats_shape(m, l, form);
        double sums =
            moments_accum_bytes(&s, threads, states_group_rows(t), t->window, t->long_len);
        most = sums > most ? sums : most;
    }
    return calibrate_hidden_bytes(m, t) + sizeof(float) * pass + most +
           stats_bytes(m, form, t->window) / hp->n_layer;
}

static void stream_done(struct stream *s)
{
    s->b->ops->free(s->b, s->dots);
    states_done(&s->at);
    free(s->energy);
    free(s->x);
    free(s->q);
    free(s->k);
    free(s->v);
}

static int stream_init(struct stream *s, const struct engine *g, const struct calib_text *text,
                       struct err *e)
{
    const struct model_hparams *hp = &g->model->hp;
    const struct model_layer *y = &g->model->layer[0];
    size_t rows = states_rows(text), group = (size_t)states_group_rows(text);
    bool mla = y->attn == ATTN_MLA;
    *s = (struct stream){.b = g->backend, .text = text, .x_width = (size_t)hp->hidden};
    s->q_width = (size_t)hp->n_head * (size_t)hp->head_dim;
    s->v_width = mla ? 0 : (size_t)hp->n_kv_head * (size_t)hp->head_dim;
    s->k_width = mla ? (size_t)(y->kv_lora_rank + y->qk_rope_head_dim) : s->v_width;
    s->total = rows * (size_t)hp->n_layer;
    s->x = mem_aligned(group * s->x_width, sizeof(float));
    s->q = mem_aligned(group * s->q_width, sizeof(float));
    s->k = mem_aligned(group * s->k_width, sizeof(float));
    s->v = mem_aligned(group * (s->v_width ? s->v_width : 1), sizeof(float));
    s->energy = mem_calloc(rows, sizeof *s->energy);
    if (!s->energy || !s->x || !s->q || !s->k || !s->v)
        return err_nomem(
            e, group * (s->x_width + s->q_width + s->k_width + s->v_width) * sizeof(float),
            "a group's activations");
    if (s->b->algebra)
        s->dots = s->b->ops->alloc(s->b, group * sizeof(float));
    return states_init(&s->at, g, text, e);
}

static void copy_group(void *user, int layer, const float *x, const float *q, const float *k,
                       const float *v, int rows)
{
    struct stream *s = user;
    size_t n = (size_t)rows * sizeof(float);
    (void)layer;
    if (s->device)
        moments_device_add(s->device, x, q, k, v, rows / s->text->window);
    if (!s->device || s->want_x)
        s->b->ops->get(s->b, s->x, x, n * s->x_width);
    if (s->device)
        return;
    if (v) {
        s->b->ops->get(s->b, s->q, q, n * s->q_width);
        s->b->ops->get(s->b, s->v, v, n * s->v_width);
    }
    s->b->ops->get(s->b, s->k, k, n * s->k_width);
}

/* |h|² of a group's rows, before a layer changes them; x is borrowed for the copy. */
static void residual_energy(struct stream *s, const struct states_group *group)
{
    size_t D = s->x_width;
    if (s->dots) {
        const float *h = s->at.h + group->first * D;
        s->b->algebra->row_dots(s->b, s->dots, h, (int)D, h, (int)D, (int)D, group->n);
        s->b->ops->get(s->b, s->energy + group->first, s->dots,
                       (size_t)group->n * sizeof *s->energy);
        return;
    }
    s->b->ops->get(s->b, s->x, s->at.h + group->first * D, (size_t)group->n * D * sizeof(float));
    for (int t = 0; t < group->n; t++) {
        const float *row = s->x + (size_t)t * D;
        double sum = 0;
        for (size_t i = 0; i < D; i++)
            sum += (double)row[i] * row[i];
        s->energy[group->first + (size_t)t] = (float)sum;
    }
}

static int by_size(const void *x, const void *y)
{
    float a = *(const float *)x, b = *(const float *)y;
    return (a > b) - (a < b);
}

/* The median, not the mean: a few attention sinks carry most of the residual stream's energy. */
static double median_energy(struct stream *s)
{
    size_t n = states_rows(s->text);
    qsort(s->energy, n, sizeof *s->energy, by_size);
    return s->energy[n / 2];
}

/* Runs one group through a layer; the tap leaves the group's x, q, k, v on the host. */
static int run_group(struct stream *s, int layer, const struct states_group *group,
                     const char *what, const struct progress *p, struct err *e)
{
    char phase[96];
    snprintf(phase, sizeof phase, "%s: layer %d of %d", what, layer + 1,
             s->at.g->model->hp.n_layer);
    if (!progress_report(p, phase, (double)s->done, (double)s->total))
        return err_set(e, ERR_CANCELLED, "calibration stopped");
    states_layer(&s->at, layer, group, &(struct forward_tap){copy_group, s});
    s->done += (size_t)group->n;
    return s->b->ops->sync(s->b, e);
}

/* Keeps the first rows of a group's layer input as measuring sample number `which` of two. */
static int keep_sample(struct stream *s, float **sample, int which, int rows, struct err *e)
{
    size_t n = (size_t)rows * s->x_width;
    if (!*sample)
        *sample = mem_calloc(2 * n, sizeof **sample);
    if (!*sample)
        return err_nomem(e, 2 * n * sizeof **sample, "a sample of layer inputs");
    memcpy(*sample + (size_t)which * n, s->x, n * sizeof **sample);
    return OK;
}

/* The rope choices that a conversion may make, from the statistics so far. */
static int choose_candidates(struct moments_accum *a, const struct moments_shape *shape,
                             struct err *e)
{
    struct moments m;
    struct rope_choice rope = {0};
    size_t pairs = (size_t)shape->H * (size_t)(shape->rope_dim / 2);
    double complex *c = mem_calloc(pairs, sizeof *c);
    double *r2 = mem_calloc(pairs, sizeof *r2);
    int rc = c && r2 ? moments_so_far(a, &m, e) : err_nomem(e, pairs * sizeof *c, "shrinks");
    if (!rc) {
        mla_shrink(&m, 0, c, r2);
        rc = mla_rope_candidates(&m, r2, shape->candidates, &rope, e);
        moments_done(&m);
    }
    if (!rc)
        rc = moments_candidates_set(a, rope.index, rope.T, rope.P, e);
    rope_choice_done(&rope);
    free(c);
    free(r2);
    return rc;
}

/* The long windows, which are the groups from `group` on: phase statistics. The compact form looks
 * at them twice. */
static int long_pass(struct stream *s, int layer, int group, struct moments_accum *a,
                     const struct moments_shape *shape, float **sample, const struct progress *p,
                     struct err *e)
{
    const struct calib_text *t = s->text;
    struct states_group one;
    size_t q = (size_t)t->long_len * s->q_width, k = (size_t)t->long_len * s->k_width;
    bool twice = shape->candidates && t->n_long;
    float *kept = twice ? mem_calloc((size_t)t->n_long * (q + k), sizeof *kept) : NULL;
    int rc = twice && !kept ? err_nomem(e, (size_t)t->n_long * (q + k) * sizeof *kept,
                                        "queries and keys of the long windows")
                            : OK;
    for (int i = 0; !rc && states_group(t, group + i, &one); i++) {
        residual_energy(s, &one);
        rc = run_group(s, layer, &one, "calibrating", p, e);
        if (!rc)
            rc = moments_add_phase(a, s->b->pool, s->q, s->k, t->long_len, PHASE_STEP, e);
        if (!rc && twice) {
            memcpy(kept + (size_t)i * (q + k), s->q, q * sizeof *kept);
            memcpy(kept + (size_t)i * (q + k) + q, s->k, k * sizeof *kept);
        }
        if (!rc && (i == 0 || i == t->n_long - 1))
            rc = keep_sample(s, sample, i != 0, t->window, e);
    }
    if (!rc && twice)
        rc = choose_candidates(a, shape, e);
    for (int i = 0; i < t->n_long && !rc && twice; i++) {
        const float *at = kept + (size_t)i * (q + k);
        rc = moments_add_phase(a, s->b->pool, at, at + q, t->long_len, PHASE_STEP, e);
    }
    free(kept);
    return rc;
}

/* At a quarter, half and all of the groups. Settled, a layer collects no more; its states go on. */
static int look_whether_settled(const struct stream *s, struct moments_accum *a, int done, int n,
                                bool *settled, struct err *e)
{
    double change = -1;
    bool quarter = s->until > 0 && done == (n + 3) / 4;
    if (n < 2 || (done != n && done != (n + 1) / 2 && !quarter))
        return OK;
    int rc = moments_look(a, &change, e);
    *settled = !rc && s->until > 0 && change >= 0 && change < s->until;
    return rc;
}

/* Groups are looked at all over the text, which may be files one by one: each so many after the
 * last one, around the end. By the golden ratio no stretch of visits is far from even; without a
 * common divisor all have their turn. */
static int group_step(int n)
{
    for (int step = (int)(0.618 * n); step > 1; step--) {
        int a = n, b = step;
        while (b) {
            int rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1)
            return step;
    }
    return 1;
}

static int layer_pass(struct stream *s, int layer, const struct moments_shape *shape,
                      struct moments_accum *a, float **sample, const struct progress *p,
                      struct err *e)
{
    const struct calib_text *t = s->text;
    struct states_group group;
    int i = 0, at = 0, n = states_window_groups(t), step = group_step(n);
    bool settled = false;
    int rc = moments_device_new(&s->device, s->b, a, STATES_GROUP * t->window, t->window, e);
    for (; i < n && !rc && states_group(t, at, &group); i++, at = (at + step) % n) {
        bool sampled = !t->n_long && (at == 0 || at == n - 1);
        s->want_x = sampled;
        residual_energy(s, &group);
        rc = run_group(s, layer, &group, "calibrating", p, e);
        if (!rc && !s->device && !settled)
            rc = moments_add(a, s->b->pool, s->x, s->q, s->k, s->v, group.n / group.T, group.T, e);
        if (!rc && sampled)
            rc = keep_sample(s, sample, at != 0, t->window, e);
        if (!rc && !s->device && !settled)
            rc = look_whether_settled(s, a, i + 1, n, &settled, e);
    }
    if (!rc && s->device)
        rc = moments_device_collect(s->device, e);
    moments_device_free(s->device);
    s->device = NULL; /* long windows are the host's */
    return rc ? rc : long_pass(s, layer, n, a, shape, sample, p, e);
}

static int layer_moments(struct stream *s, int layer, const struct moments_shape *shape,
                         struct moments *out, const struct progress *p, struct err *e)
{
    const struct model_layer *y = &s->at.g->model->layer[layer];
    struct moments_accum *a = NULL;
    float *wo = NULL, *sample = NULL;
    int rc = tensor_to_f32(&y->o, &wo, e);
    if (!rc)
        rc = moments_accum_new(&a, shape, wo, y->rope_freq, y->attn_scale, pool_threads(s->b->pool),
                               e);
    free(wo);
    if (!rc)
        rc = layer_pass(s, layer, shape, a, &sample, p, e);
    if (!rc)
        rc = moments_finish(a, out, e);
    if (!rc) {
        out->residual = median_energy(s);
        out->sample = sample;
        out->sample_rows = 2 * s->text->window;
        out->sample_window = s->text->window;
        sample = NULL;
    }
    free(sample);
    moments_accum_free(a);
    return rc;
}

int calibrate_run(const struct engine *g, const struct calib_text *text, struct stats *into,
                  void (*on_layer)(void *user, int layer, const struct moments *m), void *user,
                  const struct progress *p, struct err *e)
{
    struct stream s;
    struct moments m;
    int rc = stream_init(&s, g, text, e);
    s.until = stats_until(into);
    for (int l = 0; l < g->model->hp.n_layer && !rc; l++) {
        struct moments_shape shape = stats_layer_shape(into, l);
        rc = layer_moments(&s, l, &shape, &m, p, e);
        if (!rc && on_layer)
            on_layer(user, l, &m);
        if (!rc)
            rc = stats_put(into, l, &m, e);
    }
    stream_done(&s);
    return rc ? rc : stats_finish(into, e);
}

static int second_layer(struct stream *s, int layer, int n, double **out, const struct progress *p,
                        struct err *e)
{
    struct states_group group;
    size_t nn = (size_t)n * (size_t)n;
    float *block = mem_calloc(nn, sizeof *block);
    double *c = mem_calloc(nn, sizeof *c);
    int rc = block && c ? OK : err_nomem(e, nn * sizeof *c, "second moments");
    for (int w = 0; !rc && states_group(s->text, w, &group); w++) {
        rc = run_group(s, layer, &group, "second pass", p, e);
        if (rc)
            break;
        memset(block, 0, nn * sizeof *block);
        linalg_ssyrk_add(NULL, n, group.n, s->k, (int)s->k_width, block, n);
        for (size_t i = 0; i < nn; i++)
            c[i] += (double)block[i] / (double)states_rows(s->text);
    }
    for (int i = 0; i < n && !rc; i++)
        for (int j = 0; j < i; j++)
            c[(size_t)i * (size_t)n + (size_t)j] = c[(size_t)j * (size_t)n + (size_t)i];
    free(block);
    if (rc)
        free(c);
    else
        *out = c;
    return rc;
}

int calibrate_second(const struct engine *partial, const struct calib_text *text, double **c,
                     const struct progress *p, struct err *e)
{
    struct stream s;
    struct calib_text windows = *text; /* long windows serve the phase statistics only */
    windows.n_long = 0;
    int L = partial->model->hp.n_layer;
    memset(c, 0, (size_t)L * sizeof *c);
    int rc = stream_init(&s, partial, &windows, e);
    for (int l = 0; l < L && !rc; l++)
        rc = second_layer(&s, l, partial->model->layer[l].kv_lora_rank, &c[l], p, e);
    stream_done(&s);
    for (int l = 0; rc && l < L; l++) {
        free(c[l]);
        c[l] = NULL;
    }
    return rc;
}
