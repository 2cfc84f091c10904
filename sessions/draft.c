/* Speculative decoding with one prediction layer. Refuses nothing: a model without one is decoded
 * token by token. The layer has a timeline of its own; its row p comes from the state behind token
 * p and the embedding of token p+1, so it follows the model's own timeline one row behind. */
#include "sessions/draft.h"

#include <stdlib.h>
#include <string.h>

#include "core/mtp.h"
#include "sessions/forward.h"

struct draft {
    const struct model_mtp *mtp;
    struct backend *b;
    struct infer *t;       /* the model's */
    struct engine *engine; /* of the layer */
    struct infer *own;
    struct weight *eh_proj;
    float *enorm, *hnorm; /* [D] */
    /* States whose tokens' rows are still to be made: of positions infer_pos(own) on. */
    float *held; /* [2][D] */
    int n_held;
    int32_t next[2];     /* the token behind each, as far as it is known */
    float *embed, *both; /* [INFER_BLOCK][D], [INFER_BLOCK][2·D], */
    float *joined;       /* [INFER_BLOCK][D] */
    float *logits;       /* host [2][V] */
    bool stepping;       /* the pass that is watched is a step's */
    bool waiting;        /* the guess lies in the timeline, its logits in the second row */
    int32_t guess;
    struct draft_count count;
};

static size_t width(const struct draft *d)
{
    return (size_t)d->mtp->model.hp.hidden;
}

static void copy_rows(struct draft *d, float *to, const float *from, int n)
{
    int D = (int)width(d);
    d->b->ops->store(d->b, to, DTYPE_F32, D, from, D, D, n);
}

/* Rows of the layer from states x[n][D] at its next positions and the ids behind them; logits of
 * the last one, or NULL. */
static int feed(struct draft *d, const float *x, const int32_t *ids, int n, float *logits,
                struct err *e)
{
    const struct backend_ops *op = d->b->ops;
    int D = (int)width(d);
    float eps = (float)d->mtp->model.hp.rms_eps;
    const struct weight *const w[] = {d->eh_proj};
    forward_embed(d->engine, d->embed, ids, n);
    op->rms_norm(d->b, d->joined, d->embed, d->enorm, eps, n, D);
    op->store(d->b, d->both, DTYPE_F32, 2 * D, d->joined, D, D, n);
    if (!infer_pos(d->own)) { /* as the engines do: the first row reads no embedding */
        float zero[64] = {0};
        for (int i = 0; i < D; i += 64)
            op->put(d->b, d->both + i, zero, sizeof *zero * (size_t)(D - i < 64 ? D - i : 64));
    }
    op->rms_norm(d->b, d->joined, x, d->hnorm, eps, n, D);
    op->store(d->b, d->both + D, DTYPE_F32, 2 * D, d->joined, D, D, n);
    op->linear(d->b, 1, w, (float *const[]){d->joined}, d->both, n, false);
    return infer_rows(d->own, d->joined, n, logits, e);
}

/* A stretch of text was read: the layer's rows up to the last state, whose next token is not known.
 * Where the timeline was taken back and its state is gone, zeros stand for it: guesses may be
 * worse, never the text. */
static void read_text(struct draft *d, const float *x, const int32_t *ids, int first, int n)
{
    int rc = OK;
    if (first > 0) {
        if (infer_pos(d->own) + d->n_held != first || !d->n_held) {
            infer_rewind(d->own, first - 1);
            float *zero = mem_calloc(width(d), sizeof *zero);
            if (zero)
                d->b->ops->put(d->b, d->held, zero, width(d) * sizeof *zero);
            free(zero);
            d->n_held = 1;
        }
        d->next[d->n_held - 1] = ids[0];
        if (infer_pos(d->own) + d->n_held == first)
            rc = feed(d, d->held, d->next, d->n_held, NULL, NULL);
    } else {
        infer_rewind(d->own, 0);
    }
    if (!rc && n > 1 && infer_pos(d->own) == first)
        feed(d, x, ids + 1, n - 1, NULL, NULL);
    copy_rows(d, d->held, x + (size_t)(n - 1) * width(d), 1);
    d->n_held = 1;
}

static void watch(void *user, const float *x, const int32_t *ids, int first, int n)
{
    struct draft *d = user;
    if (!d->stepping) {
        read_text(d, x, ids, first, n);
        return;
    }
    copy_rows(d, d->held, x, n); /* of the token and the guess */
    d->n_held = n;
}

static int load_vector(struct draft *d, const struct tensor *t, float **to, struct err *e)
{
    float *host;
    size_t bytes = width(d) * sizeof *host;
    int rc = tensor_to_f32(t, &host, e);
    if (rc)
        return rc;
    *to = d->b->ops->alloc(d->b, bytes);
    if (*to)
        d->b->ops->put(d->b, *to, host, bytes);
    free(host);
    return *to ? OK : err_nomem(e, bytes, "a norm");
}

static int load(struct draft *d, const struct engine *g, enum dtype kv, struct err *e)
{
    const struct model_mtp *x = d->mtp;
    struct matrix m = tensor_matrix(&x->eh_proj);
    size_t owned = 0, row = width(d) * sizeof(float), V = (size_t)x->model.hp.vocab;
    int rc = engine_new(&d->engine, &x->model, d->b, g, e);
    if (!rc)
        rc = infer_new(&d->own, d->engine, infer_context(d->t), kv, e);
    if (!rc)
        rc = d->b->ops->weight_load(d->b, &m, &d->eh_proj, &owned, e);
    if (!rc)
        rc = load_vector(d, &x->enorm, &d->enorm, e);
    if (!rc)
        rc = load_vector(d, &x->hnorm, &d->hnorm, e);
    if (rc)
        return rc;
    d->held = d->b->ops->alloc(d->b, 2 * row);
    d->embed = d->b->ops->alloc(d->b, INFER_BLOCK * row);
    d->joined = d->b->ops->alloc(d->b, INFER_BLOCK * row);
    d->both = d->b->ops->alloc(d->b, 2 * INFER_BLOCK * row);
    d->logits = mem_aligned(2 * V, sizeof *d->logits);
    bool got = d->held && d->embed && d->joined && d->both && d->logits;
    return got ? OK : err_nomem(e, INFER_BLOCK * row, "the prediction layer");
}

int draft_new(struct draft **out, const struct engine *g, struct infer *t, enum dtype kv,
              struct err *e)
{
    const struct model *m = engine_model(g);
    *out = NULL;
    if (!m->mtp)
        return OK;
    for (int l = 0; l < m->hp.n_layer; l++)
        if (m->layer[l].window)
            return OK;
    struct draft *d = mem_calloc(1, sizeof *d);
    if (!d)
        return err_nomem(e, sizeof *d, "the prediction layer");
    d->mtp = m->mtp;
    d->b = engine_backend(g);
    d->t = t;
    int rc = load(d, g, kv, e);
    if (rc) {
        draft_free(d);
        return rc;
    }
    infer_watch(t, (struct infer_watch){watch, d});
    *out = d;
    return OK;
}

void draft_free(struct draft *d)
{
    if (!d)
        return;
    float *all[] = {d->enorm, d->hnorm, d->held, d->embed, d->joined, d->both};
    infer_watch(d->t, (struct infer_watch){0});
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        d->b->ops->free(d->b, all[i]);
    if (d->eh_proj)
        d->b->ops->weight_free(d->b, d->eh_proj);
    infer_free(d->own);
    engine_free(d->engine);
    free(d->logits);
    free(d);
}

void draft_settle(struct draft *d)
{
    if (!d || !d->waiting)
        return;
    infer_rewind(d->t, infer_pos(d->t) - 1);
    d->n_held = 1;
    d->waiting = false;
}

int draft_pos(const struct draft *d, const struct infer *t)
{
    return infer_pos(t) - (d && d->waiting);
}

int32_t draft_guess(const struct draft *d)
{
    return d && d->waiting ? d->guess : -1;
}

struct draft_count draft_count(const struct draft *d)
{
    return d ? d->count : (struct draft_count){0};
}

static int32_t best(const float *logits, int limit)
{
    int32_t id = 0;
    for (int i = 1; i < limit; i++)
        if (logits[i] > logits[id])
            id = i;
    return id;
}

int draft_step(struct draft *d, struct infer *t, int32_t id, int limit, float *logits,
               struct err *e)
{
    if (!d)
        return infer_step(t, id, logits, e);
    size_t V = (size_t)d->mtp->model.hp.vocab;
    if (d->waiting) {
        d->count.made++;
        if (id == d->guess) {
            d->count.right++;
            d->waiting = false;
            memcpy(logits, d->logits + V, V * sizeof *logits);
            return OK;
        }
        draft_settle(d);
    }
    bool ready = d->n_held && infer_pos(d->own) + d->n_held == infer_pos(t);
    if (!ready || infer_pos(t) + 2 > infer_context(t))
        return infer_step(t, id, logits, e);
    d->next[d->n_held - 1] = id;
    int rc = feed(d, d->held, d->next, d->n_held, d->logits, e);
    if (rc)
        return rc;
    int32_t ids[2] = {id, best(d->logits, limit)};
    d->n_held = 0;
    d->stepping = true;
    rc = infer_few(t, ids, 2, d->logits, e);
    d->stepping = false;
    if (rc)
        return rc;
    d->guess = d->next[0] = ids[1];
    d->waiting = true;
    memcpy(logits, d->logits, V * sizeof *logits);
    return OK;
}
