/* Sequential least squares. Trusts that c is made from base's model. */
#include "sessions/refit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/algebra.h"
#include "kernels/linalg.h"
#include "sessions/refit_sums.h"
#include "sessions/states.h"

/* λ over the mean diagonal of E[ã ãᵀ], for as many unknowns a row as tokens: few tokens pull
 * towards the map that was there. */
#define REFIT_RIDGE 1.3

struct refit {
    struct conversion *c;
    struct engine *engine; /* of c; its maps are replaced on the way */
    const struct refit_options *o;
    struct states original, converted;
    struct refit_sums *output, *ffn; /* ffn NULL: left alone */
    int D, width;                    /* width = H·d */
    float *heads;    /* backend [rows][width]: heads' outputs of the converted layer */
    float *kept, *y; /* backend [group][D]: the stream before a block; targets */
    float *diff;     /* backend [group][widest map]: a − ã of blocks with a norm behind */
};

static bool any_ffn(const struct model *m)
{
    for (int l = 0; l < m->hp.n_layer; l++)
        if (m->layer[l].down.data && !m->layer[l].expert)
            return true;
    return false;
}

static bool any_norm(const struct model *m)
{
    for (int l = 0; l < m->hp.n_layer; l++)
        if (m->layer[l].post_attn_norm.data || m->layer[l].post_ffn_norm.data)
            return true;
    return false;
}

static int refit_init(struct refit *r, const struct engine *base, const struct calib_text *text,
                      struct err *e)
{
    const struct model_hparams *hp = &base->model->hp;
    struct backend *b = base->backend;
    int group = states_group_rows(text), widest = r->width;
    size_t n = (size_t)group, D = (size_t)r->D, f = sizeof(float);
    int rc = refit_sums_new(&r->output, b, group, r->width, r->D, e);
    if (!rc && r->o->ffn && any_ffn(base->model)) {
        rc = refit_sums_new(&r->ffn, b, group, hp->ffn, r->D, e);
        widest = hp->ffn > widest ? hp->ffn : widest;
    }
    if (rc)
        return rc;
    r->heads = b->ops->alloc(b, states_rows(text) * (size_t)r->width * f);
    r->kept = b->ops->alloc(b, n * D * f);
    r->y = b->ops->alloc(b, n * D * f);
    bool norms = any_norm(base->model);
    if (norms)
        r->diff = b->ops->alloc(b, n * (size_t)widest * f);
    if (!r->heads || !r->kept || !r->y || (norms && !r->diff))
        return err_nomem(e, states_rows(text) * (size_t)r->width * f,
                         "refitting: use fewer tokens (--tokens)");
    const struct model *m;
    rc = conversion_runtime(r->c, r->o->rounded, &m, e);
    if (!rc)
        rc = engine_new(&r->engine, m, b, base, e);
    if (!rc)
        rc = states_init(&r->original, base, text, e);
    return rc ? rc : states_init(&r->converted, r->engine, text, e);
}

static void refit_done(struct refit *r, struct backend *b)
{
    float *const all[] = {r->heads, r->kept, r->y, r->diff};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        b->ops->free(b, all[i]);
    states_done(&r->original);
    states_done(&r->converted);
    engine_free(r->engine);
    refit_sums_free(r->output);
    refit_sums_free(r->ffn);
}

/* A block of a layer: how a group goes through it, and where its input is then. */
struct block {
    int slot, norm; /* W_O … and the norm behind it */
    void (*run)(struct states *s, int layer, const struct states_group *group);
    struct refit_sums *sums;
    int width;
    /* Targets are summed without what the map itself adds: its share is known from the sums of its
     * inputs, and the block need not run for it. */
    bool bare;
};

static struct block output_block(const struct refit *r, int l)
{
    float *const *v = r->engine->layer[l].v;
    return (struct block){.slot = W_O,
                          .norm = V_POST_ATTN,
                          .run = states_output,
                          .sums = r->output,
                          .width = r->width,
                          .bare = !v[V_POST_ATTN] && !v[V_O_BIAS]};
}

static struct block ffn_block(const struct refit *r)
{
    return (struct block){.slot = W_DOWN,
                          .norm = V_POST_FFN,
                          .run = states_ffn,
                          .sums = r->ffn,
                          .width = r->c->base->hp.ffn};
}

static float *input_of(const struct block *k, const struct states *s)
{
    return k->slot == W_O ? s->scratch.att : s->scratch.gate;
}

/* Adds a group to the block's sums. The original's states go through the block, the converted ones
 * stay before it. */
static void add_group(struct refit *r, const struct block *k, int l,
                      const struct states_group *group)
{
    struct backend *b = r->engine->backend;
    const struct backend_ops *op = b->ops;
    int n = group->n, D = r->D, W = k->width;
    size_t nd = (size_t)n * (size_t)D, at = group->first * (size_t)D;
    float *h = r->original.h + at, *there = r->converted.h + at;
    if (!k->bare) {
        op->store(b, r->kept, DTYPE_F32, D, there, D, D, n);
        k->run(&r->converted, l, group);
    }
    k->run(&r->original, l, group);
    const float *a = input_of(k, &r->converted);
    if (r->engine->layer[l].v[k->norm]) {
        op->store(b, r->diff, DTYPE_F32, W, a, W, W, n);
        op->scale(b, r->diff, -1, (size_t)n * (size_t)W);
        op->add(b, r->diff, input_of(k, &r->original), (size_t)n * (size_t)W);
        op->linear(b, 1, (const struct weight *const[]){r->engine->layer[l].w[k->slot]},
                   (float *const[]){r->y}, r->diff, n, false);
    } else {
        op->store(b, r->y, DTYPE_F32, D, there, D, D, n);
        op->scale(b, r->y, -1, nd);
        op->add(b, r->y, h, nd);
    }
    refit_sums_add(k->sums, a, r->y, n);
    if (!k->bare)
        op->store(b, there, DTYPE_F32, D, r->kept, D, D, n);
}

/* X becomes (S + ridge)⁻¹ X, the ridge in units of S's mean diagonal; S is destroyed. False:
 * nothing flows here. */
static bool solve(struct refit *r, int W, double ridge, double *S, double *X, int *rc,
                  struct err *e)
{
    size_t w = (size_t)W;
    double mean = 0;
    for (size_t i = 0; i < w; i++)
        mean += S[i * (w + 1)] / W;
    for (size_t i = 0; i < w; i++)
        S[i * (w + 1)] += ridge * mean;
    if (!(mean > 0))
        return false;
    *rc = algebra_solve_spd(r->engine->backend, W, r->D, S, X, e);
    return !*rc;
}

/* How much of Δ [W][D], fitted to other tokens, these believe: the factor that leaves the least of
 * their |f Δ ã − y|², tr(Δᵀ X) / tr(Δᵀ S Δ). */
static double believed(struct pool *p, const double *delta, const double *S, const double *X, int W,
                       int D, double *work)
{
    size_t n = (size_t)W * (size_t)D;
    double with = 0, square = 0;
    linalg_dgemm(p, false, false, W, D, W, 1, S, W, delta, D, 0, work, D);
    for (size_t i = 0; i < n; i++) {
        with += delta[i] * X[i];
        square += delta[i] * work[i];
    }
    return square > 0 ? fmin(fmax(with / square, 0), 1) : 0;
}

/* Δ [W][D] of both halves into X[0]. What one half's fit is worth on the other says how much of it
 * is noise; with all tokens there is half as much of that: f = s/(s + n) becomes s/(s + n/2). */
static int fit(struct refit *r, const struct block *k, double *S[2], double *X[2], bool *found,
               struct err *e)
{
    int W = k->width, rc = OK;
    size_t ww = (size_t)W * (size_t)W, wd = (size_t)W * (size_t)r->D;
    double ridge = REFIT_RIDGE * W / (double)states_rows(r->original.text), f = 0;
    double *s = mem_calloc(ww + 2 * wd, sizeof *s), *delta = s + ww, *work = delta + wd;
    *found = false;
    if (!s)
        return err_nomem(e, (ww + 2 * wd) * sizeof *s, "a refit");
    memcpy(s, S[0], ww * sizeof *s);
    memcpy(delta, X[0], wd * sizeof *delta);
    if (solve(r, W, 2 * ridge, s, delta, &rc, e))
        f = believed(r->engine->backend->pool, delta, S[1], X[1], W, r->D, work);
    for (size_t i = 0; i < ww; i++)
        S[0][i] += S[1][i];
    for (size_t i = 0; i < wd; i++)
        X[0][i] += X[1][i];
    if (!rc && f > 0)
        *found = solve(r, W, ridge, S[0], X[0], &rc, e);
    for (size_t i = 0; i < wd; i++)
        X[0][i] *= 2 * f / (1 + f);
    free(s);
    return rc;
}

/* Bare sums become those of y = h − h̃: Σ ã (h − h̃ + W ã)ᵀ less Σ ã ãᵀ Wᵀ, w as [D][width]. */
static int take_off_map(const struct refit *r, const struct block *k, const float *w,
                        double *const S[2], double *const X[2], struct err *e)
{
    size_t n = (size_t)k->width * (size_t)r->D;
    double *map = mem_calloc(n, sizeof *map);
    if (!map)
        return err_nomem(e, n * sizeof *map, "a refit");
    for (size_t i = 0; i < n; i++)
        map[i] = (double)w[i];
    for (int half = 0; half < 2; half++)
        linalg_dgemm(r->engine->backend->pool, false, true, k->width, r->D, k->width, -1, S[half],
                     k->width, map, k->width, 1, X[half], r->D);
    free(map);
    return OK;
}

/* The block's map W [D][width] becomes W + Δ, in the conversion and in the engine. */
static int refit_map(struct refit *r, const struct block *k, int l, struct err *e)
{
    struct model_layer *y = &r->c->model.layer[l];
    struct tensor *t = k->slot == W_O ? &y->o : &y->down;
    size_t D = (size_t)r->D, W = (size_t)k->width;
    double *S[2], *X[2];
    float *w = NULL;
    bool found = false;
    int rc = refit_sums_collect(k->sums, S, X, e);
    if (!rc)
        rc = tensor_to_f32(t, &w, e);
    if (!rc && k->bare)
        rc = take_off_map(r, k, w, S, X, e);
    if (!rc)
        rc = fit(r, k, S, X, &found, e);
    if (rc || !found) { /* nothing flows here, or nothing is to be learnt: the map stays */
        free(w);
        return rc;
    }
    for (size_t i = 0; i < D; i++)
        for (size_t j = 0; j < W; j++)
            w[i * W + j] += (float)X[0][j * D + i];
    rc = conversion_take(r->c, t, w, e);
    if (!rc && r->o->rounded)
        rc = conversion_runtime_maps(r->c, l, e);
    const struct model_layer *run = &r->engine->model->layer[l];
    return rc ? rc
              : engine_replace(r->engine, l, k->slot, k->slot == W_O ? &run->o : &run->down, e);
}

static int refit_output(struct refit *r, int l, struct err *e)
{
    struct backend *b = r->engine->backend;
    const struct block k = output_block(r, l);
    struct states_group group;
    int rc = refit_sums_start(r->output, e);
    for (int i = 0; states_group(r->original.text, i, &group) && !rc; i++) {
        float *heads = r->heads + group.first * (size_t)r->width;
        states_attention(&r->original, l, &group, NULL);
        states_attention(&r->converted, l, &group, NULL);
        b->ops->store(b, heads, DTYPE_F32, r->width, r->converted.scratch.att, r->width, r->width,
                      group.n);
        add_group(r, &k, l, &group);
    }
    if (!rc)
        rc = refit_map(r, &k, l, e);
    for (int i = 0; states_group(r->original.text, i, &group) && !rc; i++) {
        const float *heads = r->heads + group.first * (size_t)r->width;
        b->ops->store(b, r->converted.scratch.att, DTYPE_F32, r->width, heads, r->width, r->width,
                      group.n);
        states_output(&r->converted, l, &group);
    }
    return rc;
}

static int refit_ffn(struct refit *r, int l, struct err *e)
{
    const struct model_layer *y = &r->c->base->layer[l];
    const struct block k = ffn_block(r);
    struct states_group group;
    bool fitted = r->ffn && y->down.data && !y->expert, last = l + 1 == r->c->report.n_layer;
    int rc = fitted ? refit_sums_start(r->ffn, e) : OK;
    for (int i = 0; states_group(r->original.text, i, &group) && !rc; i++) {
        if (fitted)
            add_group(r, &k, l, &group);
        else if (!last)
            states_ffn(&r->original, l, &group);
    }
    if (!rc && fitted)
        rc = refit_map(r, &k, l, e);
    for (int i = 0; !last && states_group(r->original.text, i, &group) && !rc; i++)
        states_ffn(&r->converted, l, &group);
    return rc;
}

double refit_bytes(const struct model *m, const struct calib_text *text, bool ffn)
{
    const struct model_hparams *hp = &m->hp;
    double D = hp->hidden, W = (double)hp->n_head * hp->head_dim, F = ffn ? hp->ffn : 0;
    int group = states_group_rows(text);
    double states = (double)states_rows(text) * (2 * D + W) + group * (2 * D + fmax(W, F));
    return sizeof(float) * (states + hp->n_layer * (W + F) * D) +
           refit_sums_bytes(group, (int)W, (int)D) +
           (ffn ? refit_sums_bytes(group, (int)F, (int)D) : 0);
}

int refit_run(struct conversion *c, const struct engine *base, const struct calib_text *text,
              const struct refit_options *o, const struct progress *p, struct err *e)
{
    const struct model_hparams *hp = &base->model->hp;
    struct refit r = {.c = c, .o = o, .D = hp->hidden, .width = hp->n_head * hp->head_dim};
    int rc = refit_init(&r, base, text, e);
    for (int l = 0; l < hp->n_layer && !rc; l++) {
        if (!progress_report(p, o->phase, l, hp->n_layer))
            rc = err_set(e, ERR_CANCELLED, "%s: stopped", o->phase);
        if (!rc)
            rc = refit_output(&r, l, e);
        if (!rc)
            rc = refit_ffn(&r, l, e);
    }
    refit_done(&r, base->backend);
    return rc;
}
