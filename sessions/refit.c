/* Sequential least squares of output projections. Sums run in fp32 inside a group of windows and
 * in fp64 across groups; the solve is fp64. */
#include "sessions/refit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "sessions/refit_device.h"
#include "sessions/states.h"

/* λ over the mean diagonal of E[ã ãᵀ], for as many unknowns a row as tokens: few tokens pull
 * towards the map that was there. */
#define REFIT_RIDGE 1.3

struct refit {
    struct conversion *c;
    struct engine *engine; /* of c; its output projections are replaced on the way */
    struct states original, converted;
    struct refit_device *device; /* does the sums, or NULL: the four arrays below do */
    int D, width;                /* width = H·d */
    float *heads;                /* host: heads' outputs of the converted layer, all rows */
    float *y, *h;  /* host, one group: targets; the converted stream, or the original's heads */
    float *block;  /* a group's products */
    double *S, *X; /* Σ ã ãᵀ [width][width] (its upper triangle), Σ ã yᵀ [width][D] */
};

static int refit_init(struct refit *r, struct conversion *c, const struct engine *base,
                      const struct calib_text *text, struct err *e)
{
    const struct model_hparams *hp = &base->model->hp;
    size_t n = (size_t)states_group_rows(text);
    *r = (struct refit){.c = c, .D = hp->hidden, .width = hp->n_head * hp->head_dim};
    size_t D = (size_t)r->D, W = (size_t)r->width;
    int failed =
        refit_device_new(&r->device, base->backend, states_rows(text), (int)n, r->width, r->D, e);
    if (failed)
        return failed;
    size_t host = !r->device;
    r->heads = mem_aligned(host * states_rows(text) * W, sizeof(float));
    r->y = mem_aligned(host * n * D, sizeof(float));
    r->h = mem_aligned(host * n * (W > D ? W : D), sizeof(float));
    r->block = mem_aligned(host * W * (W > D ? W : D), sizeof(float));
    r->S = mem_calloc(W * W, sizeof *r->S);
    r->X = mem_calloc(W * D, sizeof *r->X);
    if (!r->heads || !r->y || !r->h || !r->block || !r->S || !r->X)
        return err_nomem(e, states_rows(text) * W * sizeof(float),
                         "refitting output projections: use fewer tokens (--tokens)");
    int rc = engine_new(&r->engine, &c->model, base->backend, base, e);
    if (!rc)
        rc = states_init(&r->original, base, text, e);
    return rc ? rc : states_init(&r->converted, r->engine, text, e);
}

static void refit_done(struct refit *r)
{
    states_done(&r->original);
    states_done(&r->converted);
    engine_free(r->engine);
    refit_device_free(r->device);
    free(r->heads);
    free(r->y);
    free(r->h);
    free(r->block);
    free(r->S);
    free(r->X);
}

static void add(double *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] += (double)from[i];
}

/* What the converted block shall add to the stream, into y; the original's states go on to the next
 * layer. */
static void target(struct refit *r, int l, const struct states_group *group, const float *wo,
                   const float *bias)
{
    struct backend *b = r->engine->backend;
    int n = group->n, D = r->D, W = r->width;
    size_t nd = (size_t)n * (size_t)D, at = group->first * (size_t)D;
    bool normed = r->engine->layer[l].v[V_POST_ATTN];
    states_attention(&r->original, l, group, NULL);
    if (normed && r->device) {
        refit_device_product(r->device, r->original.scratch.att, n);
    } else if (normed) {
        b->ops->get(b, r->h, r->original.scratch.att, (size_t)n * (size_t)W * sizeof(float));
        linalg_sgemm(b->pool, false, true, n, D, W, 1, r->h, W, wo, W, 0, r->y, D);
    }
    states_output(&r->original, l, group);
    if (!normed && r->device) {
        refit_device_gap(r->device, r->original.h + at, r->converted.h + at, n);
    } else if (!normed) {
        b->ops->get(b, r->y, r->original.h + at, nd * sizeof(float));
        b->ops->get(b, r->h, r->converted.h + at, nd * sizeof(float));
        for (size_t i = 0; i < nd; i++)
            r->y[i] -= r->h[i] + (bias ? bias[i % (size_t)D] : 0);
    }
    if (l + 1 < r->c->report.n_layer)
        states_ffn(&r->original, l, group);
}

/* Both models' attention over a group. */
static void add_group(struct refit *r, int l, const struct states_group *group, const float *wo,
                      const float *bias)
{
    struct backend *b = r->engine->backend;
    int n = group->n, D = r->D, W = r->width;
    target(r, l, group, wo, bias);
    states_attention(&r->converted, l, group, NULL);
    if (r->device) {
        refit_device_add(r->device, group->first, r->converted.scratch.att, n);
        return;
    }
    float *heads = r->heads + group->first * (size_t)W;
    b->ops->get(b, heads, r->converted.scratch.att, (size_t)n * (size_t)W * sizeof(float));
    memset(r->block, 0, (size_t)W * (size_t)W * sizeof(float));
    linalg_ssyrk_add(b->pool, W, n, heads, W, r->block, W);
    add(r->S, r->block, (size_t)W * (size_t)W);
    linalg_sgemm(b->pool, true, false, W, D, n, 1, heads, W, r->y, D, 0, r->block, D);
    add(r->X, r->block, (size_t)W * (size_t)D);
}

/* The converted states through the rest of the layer. */
static void finish_group(struct refit *r, int l, const struct states_group *group)
{
    struct backend *b = r->engine->backend;
    size_t W = (size_t)r->width;
    if (r->device)
        refit_device_heads(r->device, group->first, r->converted.scratch.att, group->n);
    else
        b->ops->put(b, r->converted.scratch.att, r->heads + group->first * W,
                    (size_t)group->n * W * sizeof(float));
    states_output(&r->converted, l, group);
    states_ffn(&r->converted, l, group);
}

/* X becomes W_O'ᵀ [width][D]. */
static int solve(struct refit *r, const float *wo, struct err *e)
{
    size_t D = (size_t)r->D, W = (size_t)r->width;
    double mean = 0, share = (double)W / (double)states_rows(r->original.text);
    for (size_t i = 0; i < W; i++)
        for (size_t j = 0; j < i; j++)
            r->S[i * W + j] = r->S[j * W + i];
    for (size_t i = 0; i < W; i++)
        mean += r->S[i * (W + 1)] / (double)W;
    double ridge = REFIT_RIDGE * share * mean;
    for (size_t j = 0; j < W; j++) {
        r->S[j * (W + 1)] += ridge;
        for (size_t i = 0; i < D; i++)
            r->X[j * D + i] += ridge * (double)wo[i * W + j];
    }
    return algebra_solve_spd(r->engine->backend, r->width, r->D, r->S, r->X, e);
}

/* The solved map becomes layer l's output projection, in the conversion and in the engine. */
static int publish(struct refit *r, int l, struct err *e)
{
    size_t D = (size_t)r->D, W = (size_t)r->width;
    float *o = mem_calloc(D * W, sizeof *o);
    if (!o)
        return err_nomem(e, D * W * sizeof *o, "an output projection");
    for (size_t i = 0; i < D; i++)
        for (size_t j = 0; j < W; j++)
            o[i * W + j] = (float)r->X[j * D + i];
    struct tensor *t = &r->c->model.layer[l].o;
    r->c->made[l].o = o;
    *t = (struct tensor){.data = o, .dtype = DTYPE_F32, .rank = 2, .dim = {D, W}};
    return engine_replace(r->engine, l, W_O, t, e);
}

static int refit_layer(struct refit *r, int l, const struct progress *p, struct err *e)
{
    const struct calib_text *text = r->original.text;
    struct states_group group;
    int layers = r->c->report.n_layer;
    const struct model_layer *base = &r->c->base->layer[l];
    float *wo = NULL, *bias = NULL;
    int rc = tensor_to_f32(&base->o, &wo, e);
    if (!rc && base->o_bias.data)
        rc = tensor_to_f32(&base->o_bias, &bias, e);
    if (!rc && r->device)
        rc = refit_device_start(r->device, r->engine->layer[l].v[V_POST_ATTN] ? wo : NULL, bias, e);
    memset(r->S, 0, (size_t)r->width * (size_t)r->width * sizeof *r->S);
    memset(r->X, 0, (size_t)r->width * (size_t)r->D * sizeof *r->X);
    for (int i = 0; states_group(text, i, &group) && !rc; i++) {
        if (!progress_report(p, "refitting output projections", l, layers))
            rc = err_set(e, ERR_CANCELLED, "conversion stopped");
        else
            add_group(r, l, &group, wo, bias);
    }
    if (!rc && r->device)
        rc = refit_device_collect(r->device, r->S, r->X, e);
    if (!rc)
        rc = solve(r, wo, e);
    if (!rc)
        rc = publish(r, l, e);
    free(wo);
    free(bias);
    for (int i = 0; l + 1 < layers && states_group(text, i, &group) && !rc; i++)
        finish_group(r, l, &group);
    return rc;
}

double refit_bytes(const struct model *m, const struct calib_text *text)
{
    const struct model_hparams *hp = &m->hp;
    double D = hp->hidden, W = (double)hp->n_head * hp->head_dim, group = states_group_rows(text);
    double states = states_rows(text) * (2 * D + W) + group * (D + fmax(W, D));
    return sizeof(float) * (states + W * fmax(W, D) + hp->n_layer * W * D) +
           sizeof(double) * W * (W + D);
}

int refit_outputs(struct conversion *c, const struct engine *base, const struct calib_text *text,
                  const struct progress *p, struct err *e)
{
    struct refit r;
    int rc = refit_init(&r, c, base, text, e);
    for (int l = 0; l < c->report.n_layer && !rc; l++)
        rc = refit_layer(&r, l, p, e);
    refit_done(&r);
    return rc;
}
