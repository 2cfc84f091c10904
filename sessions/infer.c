/* Engines (weights on a backend) and timelines (KV caches). Refuses contexts beyond the model's. */
#include "sessions/infer.h"

#include <stdlib.h>
#include <string.h>

#include "core/kvmem.h"
#include "sessions/forward.h"
#include "sessions/window.h"

#define LOGIT_BLOCK 64 /* rows of logits at a time: [64][V] stays small */

static const struct tensor *slot_tensor(const struct model_layer *y, int slot)
{
    const struct tensor *all[W_COUNT] = {
        [W_Q] = &y->q,       [W_K] = &y->k,     [W_V] = &y->v,           [W_O] = &y->o,
        [W_GATE] = &y->gate, [W_UP] = &y->up,   [W_DOWN] = &y->down,     [W_KV_A] = &y->kv_a,
        [W_KV_B] = &y->kv_b, [W_Q_A] = &y->q_a, [W_ROUTER] = &y->router, [W_Q_ROPE] = &y->q_rope,
    };
    return all[slot];
}

static int load_weight(struct engine *g, const struct tensor *t, struct weight **out, struct err *e)
{
    struct matrix m = tensor_matrix(t);
    size_t owned = 0;
    int rc = g->backend->ops->weight_load(g->backend, &m, out, &owned, e);
    g->owned += owned;
    return rc;
}

static int load_norm(struct engine *g, const struct tensor *t, float **out, struct err *e)
{
    float *host;
    int rc = tensor_to_f32(t, &host, e);
    if (rc)
        return rc;
    size_t bytes = tensor_elements(t) * sizeof *host;
    *out = g->backend->ops->alloc(g->backend, bytes);
    if (*out)
        g->backend->ops->put(g->backend, *out, host, bytes);
    free(host);
    return *out ? OK : err_nomem(e, bytes, "a norm");
}

static int load_vectors(struct engine *g, int l, struct err *e)
{
    const struct model_layer *y = &g->model->layer[l];
    struct engine_layer *w = &g->layer[l];
    const struct tensor *all[V_COUNT] = {
        [V_Q_BIAS] = &y->q_bias,
        [V_K_BIAS] = &y->k_bias,
        [V_V_BIAS] = &y->v_bias,
        [V_O_BIAS] = &y->o_bias,
        [V_Q_NORM] = &y->q_norm,
        [V_K_NORM] = &y->k_norm,
        [V_Q_A_BIAS] = &y->q_a_bias,
        [V_Q_A_NORM] = &y->q_a_norm,
        [V_KV_A_BIAS] = &y->kv_a_bias,
        [V_KV_A_NORM] = &y->kv_a_norm,
        [V_POST_ATTN] = &y->post_attn_norm,
        [V_POST_FFN] = &y->post_ffn_norm,
        [V_GATE_BIAS] = &y->gate_bias,
        [V_UP_BIAS] = &y->up_bias,
        [V_DOWN_BIAS] = &y->down_bias,
    };
    int rc = OK;
    for (int i = 0; i < V_COUNT && !rc; i++)
        if (all[i]->data)
            rc = load_norm(g, all[i], &w->v[i], e);
    if (!rc && y->router_bias.data)
        rc = tensor_to_f32(&y->router_bias, &w->router_bias, e);
    return rc;
}

static int load_experts(struct engine *g, int l, struct err *e)
{
    const struct tensor *t = g->model->layer[l].expert;
    size_t n = (size_t)g->model->hp.moe.n * EXPERT_PARTS;
    int rc = OK;
    struct weight **w = g->layer[l].expert = mem_calloc(n, sizeof(struct weight *));
    if (!w)
        return err_nomem(e, n * sizeof *w, "experts");
    for (size_t i = 0; i < n && !rc; i++)
        rc = load_weight(g, &t[i], &w[i], e);
    return rc;
}

static int load_layer(struct engine *g, const struct engine *share, int l, struct err *e)
{
    const struct model_layer *y = &g->model->layer[l];
    struct engine_layer *w = &g->layer[l];
    int rc = load_norm(g, &y->attn_norm, &w->attn_norm, e);
    if (!rc)
        rc = load_norm(g, &y->ffn_norm, &w->ffn_norm, e);
    if (!rc)
        rc = load_vectors(g, l, e);
    if (!rc && y->expert)
        rc = load_experts(g, l, e);
    for (int i = 0; i < W_COUNT && !rc; i++) {
        const struct tensor *t = slot_tensor(y, i);
        if (!t->data)
            continue;
        if (share && slot_tensor(&share->model->layer[l], i)->data == t->data) {
            w->w[i] = share->layer[l].w[i];
            w->borrowed[i] = true;
        } else {
            rc = load_weight(g, t, &w->w[i], e);
        }
    }
    return rc;
}

int engine_replace(struct engine *g, int layer, int slot, const struct tensor *t, struct err *e)
{
    struct engine_layer *y = &g->layer[layer];
    struct weight *fresh;
    int rc = load_weight(g, t, &fresh, e);
    if (rc)
        return rc;
    if (y->w[slot] && !y->borrowed[slot])
        g->backend->ops->weight_free(g->backend, y->w[slot]);
    y->w[slot] = fresh;
    y->borrowed[slot] = false;
    return OK;
}

int engine_new(struct engine **out, const struct model *m, struct backend *b,
               const struct engine *share, struct err *e)
{
    *out = NULL;
    struct engine *g = mem_calloc(1, sizeof *g);
    int rc = OK;
    if (!g || !(g->layer = mem_calloc((size_t)m->hp.n_layer, sizeof *g->layer))) {
        free(g);
        return err_nomem(e, sizeof *g, "an engine");
    }
    g->model = m;
    g->backend = b;
    bool near = share && share->backend == b;
    bool same = near && share->model->hp.n_layer == m->hp.n_layer;
    for (int l = 0; l < m->hp.n_layer && !rc; l++)
        rc = load_layer(g, same ? share : NULL, l, e);
    if (!rc)
        rc = load_norm(g, &m->final_norm, &g->final_norm, e);
    g->embed_borrowed = near && share->model->embed.data == m->embed.data;
    if (!rc && g->embed_borrowed)
        g->embed = share->embed;
    else if (!rc)
        rc = load_weight(g, &m->embed, &g->embed, e);
    g->head_borrowed =
        m->head.data == m->embed.data || (near && share->model->head.data == m->head.data);
    if (!rc && g->head_borrowed)
        g->head = m->head.data == m->embed.data ? g->embed : share->head;
    else if (!rc)
        rc = load_weight(g, &m->head, &g->head, e);
    if (rc) {
        engine_free(g);
        return rc;
    }
    *out = g;
    return OK;
}

static void free_extras(const struct engine *g, struct engine_layer *w)
{
    const struct backend_ops *op = g->backend->ops;
    for (int i = 0; i < V_COUNT; i++)
        op->free(g->backend, w->v[i]);
    for (int i = 0; w->expert && i < g->model->hp.moe.n * EXPERT_PARTS; i++)
        op->weight_free(g->backend, w->expert[i]);
    free(w->expert);
    free(w->router_bias);
}

void engine_free(struct engine *g)
{
    if (!g)
        return;
    const struct backend_ops *op = g->backend->ops;
    for (int l = 0; l < g->model->hp.n_layer; l++) {
        struct engine_layer *w = &g->layer[l];
        op->free(g->backend, w->attn_norm);
        op->free(g->backend, w->ffn_norm);
        free_extras(g, w);
        for (int i = 0; i < W_COUNT; i++)
            if (w->w[i] && !w->borrowed[i])
                op->weight_free(g->backend, w->w[i]);
    }
    op->free(g->backend, g->final_norm);
    if (g->head && !g->head_borrowed)
        op->weight_free(g->backend, g->head);
    if (g->embed && !g->embed_borrowed)
        op->weight_free(g->backend, g->embed);
    free(g->layer);
    free(g);
}

size_t engine_bytes(const struct engine *g)
{
    return g->owned;
}

const struct model *engine_model(const struct engine *g)
{
    return g->model;
}

struct backend *engine_backend(const struct engine *g)
{
    return g->backend;
}

struct infer {
    const struct engine *g;
    int n_ctx, pos;
    enum dtype kv;
    int *numbers; /* [L] cached numbers a token */
    char *cache;  /* one block: layer after layer */
    struct layer_cache *layer;
    struct scratch scratch;
    float *h;      /* [rows][D] */
    float *logits; /* [LOGIT_BLOCK][V] */
    int h_rows;
    struct infer_watch watch;
    struct step *step; /* the backend's record of one token's operations */
};

static int layer_numbers(const struct model *m, int l)
{
    const struct model_layer *y = &m->layer[l];
    return y->attn == ATTN_MLA ? kvmem_mla_numbers(y->kv_lora_rank, y->qk_rope_head_dim)
                               : kvmem_gqa_numbers(m->hp.n_kv_head, m->hp.head_dim);
}

static void place_caches(struct infer *t)
{
    const struct model *m = t->g->model;
    char *at = t->cache;
    for (int l = 0; l < m->hp.n_layer; l++) {
        struct layer_cache *c = &t->layer[l];
        size_t bytes = kvmem_row(t->numbers[l], t->kv) * (size_t)c->rows;
        c->a = at;
        c->b = m->layer[l].attn == ATTN_MLA ? NULL : at + bytes / 2;
        at += bytes;
    }
}

/* What the backend has no kernels for is refused, and heads that would share a block. */
static int check_cache_type(const struct engine *g, enum dtype kv, struct err *e)
{
    const struct model_hparams *hp = &g->model->hp;
    const char *name = dtype_traits(kv)->name;
    if (!(g->backend->ops->caches >> kv & 1))
        return err_set(e, ERR_UNSUPPORTED,
                       "a KV cache in %s: the backend \"%s\" has no attention for it; use F16",
                       name, g->backend->ops->name);
    for (int l = 0; l < hp->n_layer && hp->head_dim % dtype_traits(kv)->block; l++)
        if (g->model->layer[l].attn != ATTN_MLA)
            return err_set(
                e, ERR_UNSUPPORTED,
                "a KV cache in %s: it has blocks of %d numbers, and the heads of %s have "
                "%d; use F16",
                name, dtype_traits(kv)->block, hp->name, hp->head_dim);
    return OK;
}

int infer_new(struct infer **out, const struct engine *g, int n_ctx, enum dtype kv, struct err *e)
{
    const struct model_hparams *hp = &g->model->hp;
    *out = NULL;
    if (n_ctx < 1 || n_ctx > hp->context)
        return err_set(e, ERR_ARG, "a context of %d tokens: %s takes 1 to %d", n_ctx, hp->name,
                       hp->context);
    int rc = check_cache_type(g, kv, e);
    if (rc)
        return rc;
    struct infer *t = mem_calloc(1, sizeof *t);
    size_t L = (size_t)hp->n_layer;
    if (!t || !(t->numbers = mem_calloc(L, sizeof *t->numbers)) ||
        !(t->layer = mem_calloc(L, sizeof *t->layer))) {
        if (t)
            free(t->numbers);
        free(t);
        return err_nomem(e, L * sizeof *t->layer, "a timeline");
    }
    t->g = g;
    t->n_ctx = n_ctx;
    t->kv = kv;
    for (int l = 0; l < hp->n_layer; l++)
        t->numbers[l] = layer_numbers(g->model, l);
    for (int l = 0; l < hp->n_layer; l++)
        window_plan(&t->layer[l], g->model->layer[l].window, n_ctx);
    size_t bytes = infer_kv_bytes(t);
    t->cache = bytes < SIZE_MAX ? g->backend->ops->alloc(g->backend, bytes) : NULL;
    if (!t->cache) {
        infer_free(t);
        return err_nomem(e, bytes, "the KV cache: choose a shorter context");
    }
    place_caches(t);
    *out = t;
    return OK;
}

static void forget_step(struct infer *t)
{
    if (t->step)
        t->g->backend->ops->step_free(t->g->backend, t->step);
    t->step = NULL;
}

void infer_free(struct infer *t)
{
    if (!t)
        return;
    const struct backend_ops *op = t->g->backend->ops;
    forget_step(t);
    op->free(t->g->backend, t->cache);
    op->free(t->g->backend, t->h);
    op->free(t->g->backend, t->logits);
    scratch_done(&t->scratch);
    free(t->layer);
    free(t->numbers);
    free(t);
}

int infer_pos(const struct infer *t)
{
    return t->pos;
}

int infer_context(const struct infer *t)
{
    return t->n_ctx;
}

/* Of what every layer has room for, or holds. */
static size_t cache_bytes(const struct infer *t, bool used)
{
    int L = t->g->model->hp.n_layer, tokens[MODEL_MAX_LAYERS];
    for (int l = 0; l < L; l++)
        tokens[l] = used ? t->pos - t->layer[l].first : t->layer[l].rows;
    return kvmem_bytes_each(t->numbers, tokens, L, t->kv);
}

size_t infer_kv_bytes(const struct infer *t)
{
    return cache_bytes(t, false);
}

size_t infer_kv_bytes_used(const struct infer *t)
{
    return cache_bytes(t, true);
}

void infer_rewind(struct infer *t, int pos)
{
    int L = t->g->model->hp.n_layer;
    if (pos < 0 || pos >= t->pos)
        return;
    for (int l = 0; l < L; l++)
        if (!window_reaches(&t->layer[l], t->g->model->layer[l].window, pos))
            pos = 0;
    t->pos = pos;
    for (int l = 0; l < L && !pos; l++)
        t->layer[l].first = 0;
}

/* Room for n more rows in every layer. */
static void make_room(struct infer *t, int n)
{
    const struct model *m = t->g->model;
    for (int l = 0; l < m->hp.n_layer; l++) {
        size_t row = kvmem_row(t->numbers[l], t->kv);
        window_slide(&t->layer[l], t->g->backend, m->layer[l].attn == ATTN_MLA ? row : row / 2,
                     t->pos, n);
    }
}

static int reserve(struct infer *t, int rows, bool logits, struct err *e)
{
    struct backend *b = t->g->backend;
    const struct model_hparams *hp = &t->g->model->hp;
    if (rows > t->h_rows || (logits && !t->logits))
        forget_step(t); /* its pointers are about to change */
    int rc = scratch_reserve(&t->scratch, t->g, rows, e);
    if (rc)
        return rc;
    if (rows > t->h_rows) {
        b->ops->free(b, t->h);
        t->h_rows = 0;
        t->h = b->ops->alloc(b, (size_t)rows * (size_t)hp->hidden * sizeof(float));
        if (!t->h)
            return err_nomem(e, (size_t)rows * (size_t)hp->hidden * sizeof(float), "hidden states");
        t->h_rows = rows;
    }
    if (logits && !t->logits) {
        size_t bytes = (size_t)LOGIT_BLOCK * (size_t)hp->vocab * sizeof(float);
        t->logits = b->ops->alloc(b, bytes);
        if (!t->logits)
            return err_nomem(e, bytes, "logits");
    }
    return OK;
}

/* Final norm and head of rows [first, first+n) of h into out [n][V] on the host. */
static void head_rows(struct infer *t, int first, int n, float *out)
{
    struct backend *b = t->g->backend;
    const struct model_hparams *hp = &t->g->model->hp;
    size_t V = (size_t)hp->vocab, D = (size_t)hp->hidden;
    for (int i = 0; i < n; i += LOGIT_BLOCK) {
        int rows = n - i < LOGIT_BLOCK ? n - i : LOGIT_BLOCK;
        forward_head(t->g, t->logits, t->h + (size_t)(first + i) * D, rows, &t->scratch);
        b->ops->get(b, out + (size_t)i * V, t->logits, (size_t)rows * V * sizeof(float));
    }
}

/* Broken weights must not pass as an answer: a NaN or infinity anywhere in the logits is said. */
static int check_logits(const struct infer *t, const float *logits, size_t n, struct err *e)
{
    float sum[8] = {0}; /* x·0 is 0, or NaN for what is not finite */
    for (size_t i = 0; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++)
            sum[j] += logits[i + j] * 0;
    for (size_t i = n - n % 8; i < n; i++)
        sum[0] += logits[i] * 0;
    for (size_t j = 1; j < 8; j++)
        sum[0] += sum[j];
    if (sum[0] == 0)
        return OK;
    return err_set(e, ERR_NUMERIC,
                   "%s: the logits are not finite: weights of this file are NaN or infinite (the "
                   "file is broken, or was made with a broken tool)",
                   t->g->model->hp.name);
}

static int check_ids(const struct infer *t, const int32_t *ids, int n, struct err *e)
{
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= t->g->model->hp.vocab)
            return err_set(e, ERR_ARG, "token id %d is outside the vocabulary of %d", ids[i],
                           t->g->model->hp.vocab);
    return OK;
}

static int check_room(const struct infer *t, int n, struct err *e)
{
    if (n > t->n_ctx - t->pos)
        return err_set(e, ERR_LIMIT, "context full: %d of %d tokens used, %d more do not fit",
                       t->pos, t->n_ctx, n);
    return OK;
}

/* Rotated keys stay in the cache, so a timeline decides when it begins which frequencies it uses.
 */
static bool long_rope(const struct infer *t)
{
    const struct model_hparams *hp = &t->g->model->hp;
    return hp->rope_original && t->n_ctx > hp->rope_original;
}

/* Rows of this timeline through all layers, from h in place, in n_seg segments of n rows. */
static void run_layers(struct infer *t, int n_seg, int n)
{
    struct segment seg[INFER_FEW];
    scratch_new_batch(&t->scratch);
    make_room(t, n_seg * n);
    for (int l = 0; l < t->g->model->hp.n_layer; l++) {
        for (int i = 0; i < n_seg; i++)
            seg[i] = (struct segment){.row = i * n,
                                      .n = n,
                                      .past = t->pos + i * n,
                                      .cache = t->layer[l],
                                      .long_rope = long_rope(t)};
        forward_layer(t->g, l, t->h, n_seg * n, seg, n_seg, t->kv, &t->scratch, NULL);
    }
    t->pos += n_seg * n;
}

static void run_block(struct infer *t, const int32_t *ids, int n_seg, int rows)
{
    const struct engine *g = t->g;
    int n = n_seg * rows;
    forward_embed(g, t->h, ids, n);
    run_layers(t, n_seg, rows);
    if (!t->watch.rows)
        return;
    g->backend->ops->rms_norm(g->backend, t->scratch.x, t->h, g->final_norm,
                              (float)g->model->hp.rms_eps, n, g->model->hp.hidden);
    t->watch.rows(t->watch.user, t->scratch.x, ids, t->pos - n, n);
}

static void step_once(struct infer *t, int32_t id)
{
    forward_embed(t->g, t->h, &id, 1);
    run_layers(t, 1, 1);
    forward_head(t->g, t->logits, t->h, 1, &t->scratch);
}

/* One token through everything, its logits into out [V]: as a recorded step where the backend has
 * them, that is one launch for all. */
static void run_step(struct infer *t, int32_t id, float *out)
{
    struct backend *b = t->g->backend;
    const struct backend_ops *op = b->ops;
    int pos = t->pos;
    make_room(t, 1); /* moves caches by way of the host, which no record holds */
    op->step_begin(b, &t->step);
    step_once(t, id);
    if (!op->step_end(b)) {
        t->pos = pos;
        step_once(t, id);
    }
    op->get(b, out, t->logits, (size_t)t->g->model->hp.vocab * sizeof *out);
}

void infer_watch(struct infer *t, struct infer_watch watch)
{
    t->watch = watch;
}

int infer_rows(struct infer *t, const float *h, int n, float *logits, struct err *e)
{
    struct backend *b = t->g->backend;
    int D = t->g->model->hp.hidden, rc = check_room(t, n, e);
    if (!rc)
        rc = reserve(t, n, logits != NULL, e);
    if (rc)
        return rc;
    b->ops->store(b, t->h, DTYPE_F32, D, h, D, D, n);
    run_layers(t, 1, n);
    if (logits)
        head_rows(t, n - 1, 1, logits);
    return b->ops->sync(b, e);
}

/* Tokens may go as recorded steps: nobody looks on the way, and experts are not chosen there. */
static bool steps(const struct infer *t)
{
    return t->g->backend->ops->step_begin && !t->watch.rows && !t->g->model->hp.moe.n;
}

int infer_prefill(struct infer *t, const int32_t *ids, int n, enum infer_out want, float *out,
                  const struct progress *p, struct err *e)
{
    int start = t->pos, block = n < INFER_BLOCK ? n : INFER_BLOCK;
    size_t V = (size_t)t->g->model->hp.vocab;
    int rc = check_room(t, n, e);
    if (!rc)
        rc = check_ids(t, ids, n, e);
    if (!rc && n > 0)
        rc = reserve(t, block, want != INFER_NONE, e);
    for (int i = 0; i < n && !rc; i += block) {
        int rows = n - i < block ? n - i : block;
        if (!progress_report(p, "reading the prompt", i, n)) {
            rc = err_set(e, ERR_CANCELLED, "stopped");
            break;
        }
        bool last = want == INFER_LAST && i + rows == n;
        float *to = want == INFER_ALL ? out + (size_t)i * V : out;
        int first = last ? rows - 1 : 0, wanted = want == INFER_ALL ? rows : last;
        if (n == 1 && wanted && steps(t)) {
            run_step(t, ids[i], to);
        } else {
            run_block(t, ids + i, 1, rows);
            head_rows(t, first, wanted, to);
        }
        rc = t->g->backend->ops->sync(t->g->backend, e);
        if (!rc)
            rc = check_logits(t, to, (size_t)wanted * V, e);
    }
    if (rc)
        infer_rewind(t, start);
    return rc;
}

int infer_few(struct infer *t, const int32_t *ids, int n, float *logits, struct err *e)
{
    int rc = n > INFER_FEW ? err_set(e, ERR_ARG, "%d tokens at once", n) : check_room(t, n, e);
    if (!rc)
        rc = check_ids(t, ids, n, e);
    if (!rc)
        rc = reserve(t, n, true, e);
    if (rc)
        return rc;
    run_block(t, ids, n, 1);
    head_rows(t, 0, n, logits);
    rc = t->g->backend->ops->sync(t->g->backend, e);
    if (!rc)
        rc = check_logits(t, logits, (size_t)n * (size_t)t->g->model->hp.vocab, e);
    if (rc)
        t->pos -= n;
    return rc;
}

int infer_step(struct infer *t, int32_t id, float *logits, struct err *e)
{
    return infer_prefill(t, &id, 1, INFER_LAST, logits, NULL, e);
}

int infer_step_many(struct infer *const *t, const int32_t *ids, int n, float *logits, struct err *e)
{
    if (n < 1)
        return OK;
    const struct engine *g = t[0]->g;
    struct backend *b = g->backend;
    int rc = reserve(t[0], n, true, e);
    for (int i = 0; i < n && !rc; i++) {
        rc = t[i]->g == g ? check_room(t[i], 1, e)
                          : err_set(e, ERR_ARG, "timelines of different engines");
        if (!rc)
            rc = check_ids(t[i], ids + i, 1, e);
    }
    struct segment *seg = rc ? NULL : mem_calloc((size_t)n, sizeof *seg);
    if (rc || !seg)
        return rc ? rc : err_nomem(e, (size_t)n * sizeof *seg, "a batch");
    scratch_new_batch(&t[0]->scratch);
    for (int i = 0; i < n; i++)
        make_room(t[i], 1);
    forward_embed(g, t[0]->h, ids, n);
    for (int l = 0; l < g->model->hp.n_layer; l++) {
        for (int i = 0; i < n; i++)
            seg[i] = (struct segment){i, 1, t[i]->pos, t[i]->layer[l], long_rope(t[i])};
        forward_layer(g, l, t[0]->h, n, seg, n, t[0]->kv, &t[0]->scratch, NULL);
    }
    head_rows(t[0], 0, n, logits);
    for (int i = 0; i < n; i++)
        t[i]->pos++;
    free(seg);
    rc = b->ops->sync(b, e);
    return rc ? rc : check_logits(t[0], logits, (size_t)n * (size_t)g->model->hp.vocab, e);
}

/* ---- several timelines in one block ---- */

/* Rows of a block: pieces of runs, the first of them from offset `at` of run `i`. */
struct block {
    int rows, n_seg, n_kept;
    int i, at;            /* the run and offset where the next block begins */
    int32_t *ids, *kept;  /* [INFER_BLOCK] */
    struct segment *seg;  /* [INFER_BLOCK] */
    struct infer **owner; /* [INFER_BLOCK]: of each segment */
};

static void fill_block(struct block *k, const struct infer_run *run, int n)
{
    k->rows = k->n_seg = k->n_kept = 0;
    for (; k->i < n && k->rows < INFER_BLOCK; k->n_seg++) {
        const struct infer_run *r = &run[k->i];
        int left = r->n - k->at, room = INFER_BLOCK - k->rows, rows = left < room ? left : room;
        k->seg[k->n_seg] = (struct segment){
            .row = k->rows, .n = rows, .past = r->t->pos, .long_rope = long_rope(r->t)};
        k->owner[k->n_seg] = r->t;
        memcpy(k->ids + k->rows, r->ids + k->at, (size_t)rows * sizeof *k->ids);
        for (int j = 0; j < rows; j++)
            if (k->at + j >= r->n - r->keep)
                k->kept[k->n_kept++] = k->rows + j;
        k->rows += rows;
        k->at += rows;
        if (k->at == r->n) {
            k->i++;
            k->at = 0;
        }
    }
}

/* The logits of the block's kept rows to the taker; *done: kept rows so far. */
static int take_kept(struct infer *t, const struct block *k, const struct infer_rows *rows,
                     float *host, int *done, struct err *e)
{
    struct backend *b = t->g->backend;
    const struct model_hparams *hp = &t->g->model->hp;
    for (int i = 0; i < k->n_kept; i += LOGIT_BLOCK) {
        int n = k->n_kept - i < LOGIT_BLOCK ? k->n_kept - i : LOGIT_BLOCK;
        float *x = t->scratch.x;
        b->ops->take_rows(b, x, t->h, k->kept + i, n, hp->hidden);
        forward_head(t->g, t->logits, x, n, &t->scratch);
        b->ops->get(b, host, t->logits, (size_t)n * (size_t)hp->vocab * sizeof *host);
        int rc = b->ops->sync(b, e);
        if (!rc)
            rc = check_logits(t, host, (size_t)n * (size_t)hp->vocab, e);
        if (rc)
            return rc;
        rows->take(rows->user, *done, n, host);
        *done += n;
    }
    return b->ops->sync(b, e);
}

static void run_segments(struct infer *t, struct block *k)
{
    const struct engine *g = t->g;
    scratch_new_batch(&t->scratch);
    for (int s = 0; s < k->n_seg; s++)
        make_room(k->owner[s], k->seg[s].n);
    forward_embed(g, t->h, k->ids, k->rows);
    for (int l = 0; l < g->model->hp.n_layer; l++) {
        for (int s = 0; s < k->n_seg; s++)
            k->seg[s].cache = k->owner[s]->layer[l];
        forward_layer(g, l, t->h, k->rows, k->seg, k->n_seg, t->kv, &t->scratch, NULL);
    }
    for (int s = 0; s < k->n_seg; s++)
        k->owner[s]->pos += k->seg[s].n;
}

static int check_runs(const struct infer_run *run, int n, int *total, int *kept, struct err *e)
{
    *total = *kept = 0;
    for (int i = 0; i < n; i++) {
        const struct infer *t = run[i].t;
        int rc = check_room(t, run[i].n, e);
        if (!rc)
            rc = check_ids(t, run[i].ids, run[i].n, e);
        if (rc)
            return rc;
        if (t->g != run[0].t->g || t->kv != run[0].t->kv || run[i].n < 1 || run[i].keep > run[i].n)
            return err_set(e, ERR_ARG, "runs of different engines, or without tokens");
        *total += run[i].n;
        *kept += run[i].keep;
    }
    return OK;
}

int infer_prefill_many(const struct infer_run *run, int n, const struct infer_rows *rows,
                       const struct progress *p, struct err *e)
{
    int total, kept, done = 0, fed = 0, rc = check_runs(run, n, &total, &kept, e);
    if (rc || n < 1)
        return rc;
    struct infer *t = run[0].t;
    size_t V = (size_t)t->g->model->hp.vocab;
    struct block k = {.ids = mem_calloc(INFER_BLOCK, sizeof *k.ids),
                      .kept = mem_calloc(INFER_BLOCK, sizeof *k.kept),
                      .seg = mem_calloc(INFER_BLOCK, sizeof *k.seg),
                      .owner = mem_calloc(INFER_BLOCK, sizeof(struct infer *))};
    float *host = kept ? mem_aligned(LOGIT_BLOCK * V, sizeof *host) : NULL;
    int *start = mem_calloc((size_t)n, sizeof *start);
    if (!k.ids || !k.kept || !k.seg || !k.owner || !start || (kept && !host))
        rc = err_nomem(e, LOGIT_BLOCK * V * sizeof *host, "a batch");
    for (int i = 0; i < n && start; i++)
        start[i] = run[i].t->pos;
    if (!rc)
        rc = reserve(t, total < INFER_BLOCK ? total : INFER_BLOCK, kept > 0, e);
    while (!rc && k.i < n) {
        if (!progress_report(p, "reading", fed, total)) {
            rc = err_set(e, ERR_CANCELLED, "stopped");
            break;
        }
        fill_block(&k, run, n);
        run_segments(t, &k);
        rc = take_kept(t, &k, rows, host, &done, e);
        fed += k.rows;
    }
    for (int i = 0; i < n && rc && start; i++)
        infer_rewind(run[i].t, start[i]);
    free(k.ids);
    free(k.kept);
    free(k.seg);
    free(k.owner);
    free(host);
    free(start);
    return rc;
}

static void copy_rows(struct backend *b, void *to, const void *from, void *host, size_t bytes)
{
    b->ops->get(b, host, from, bytes);
    b->ops->put(b, to, host, bytes);
}

int infer_copy(struct infer *to, const struct infer *from, int pos, struct err *e)
{
    const struct engine *g = from->g;
    if (to->g != g || to->kv != from->kv || pos < 0 || pos > from->pos || pos > to->n_ctx)
        return err_set(e, ERR_ARG, "a copy of %d tokens between timelines that differ", pos);
    size_t most = 0;
    for (int l = 0; l < g->model->hp.n_layer; l++) {
        size_t row = kvmem_row(from->numbers[l], from->kv);
        most = row > most ? row : most;
        if (!window_reaches(&from->layer[l], g->model->layer[l].window, pos))
            return err_set(e, ERR_ARG, "a copy of %d tokens, which layer %d has forgotten", pos, l);
    }
    void *host = mem_calloc(most * (size_t)pos, 1);
    if (!host)
        return err_nomem(e, most * (size_t)pos, "a copy of the KV cache");
    for (int l = 0; l < g->model->hp.n_layer && pos; l++) {
        const struct layer_cache *s = &from->layer[l];
        struct layer_cache *d = &to->layer[l];
        size_t row = kvmem_row(from->numbers[l], from->kv) / (s->b ? 2 : 1);
        d->first = pos - s->first > d->rows ? pos - d->keep : s->first;
        size_t skip = (size_t)(d->first - s->first) * row, bytes = (size_t)(pos - d->first) * row;
        copy_rows(g->backend, d->a, (const char *)s->a + skip, host, bytes);
        if (s->b)
            copy_rows(g->backend, d->b, (const char *)s->b + skip, host, bytes);
    }
    free(host);
    to->pos = pos;
    return g->backend->ops->sync(g->backend, e);
}
