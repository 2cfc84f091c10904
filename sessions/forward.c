/* One transformer layer over a batch, for GQA and absorbed MLA, in terms of backend operations. */
#include "sessions/forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FFN_ROWS 256 /* whose numbers inside a feed-forward stay in a core's cache */

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* Widest rows any layer needs, so that one scratch serves all layers. */
struct widths {
    int q, k, v, z, att, lat, rope, pairs, q_a, ffn;
};

static struct widths model_widths(const struct model *m)
{
    const struct model_hparams *hp = &m->hp;
    struct widths w = {.q_a = hp->q_lora_rank,
                       .ffn = max_int(hp->ffn, max_int(hp->moe.ffn, hp->moe.shared_ffn))};
    for (int l = 0; l < hp->n_layer; l++) {
        const struct model_layer *y = &m->layer[l];
        w.pairs = max_int(w.pairs, y->rope_dim / 2);
        if (y->attn == ATTN_MLA) {
            w.q = max_int(w.q, hp->n_head * (y->qk_nope_head_dim + y->qk_rope_head_dim));
            w.k = max_int(w.k, y->kv_lora_rank + y->qk_rope_head_dim);
            w.att = max_int(w.att, hp->n_head * y->v_head_dim);
            w.lat = max_int(w.lat, hp->n_head * y->kv_lora_rank);
            w.rope = max_int(w.rope, hp->n_head * y->qk_rope_head_dim);
            if (y->q_norm.data)
                w.z = max_int(w.z, 4 * hp->n_kv_head * hp->head_dim);
        } else {
            w.q = max_int(w.q, hp->n_head * hp->head_dim);
            w.k = max_int(w.k, hp->n_kv_head * hp->head_dim);
            w.v = max_int(w.v, hp->n_kv_head * hp->head_dim);
            w.att = max_int(w.att, hp->n_head * hp->head_dim);
        }
    }
    return w;
}

static bool grow(struct scratch *s, float **p, int rows, int width)
{
    s->backend->ops->free(s->backend, *p);
    *p = NULL;
    size_t n;
    if (!width)
        return true;
    if (!size_mul((size_t)rows, (size_t)width * sizeof(float), &n))
        return false;
    *p = s->backend->ops->alloc(s->backend, n);
    return *p != NULL;
}

int scratch_reserve(struct scratch *s, const struct engine *g, int rows, struct err *e)
{
    s->backend = g->backend;
    if (rows <= s->rows)
        return OK;
    const struct model_hparams *hp = &g->model->hp;
    struct widths w = model_widths(g->model);
    bool ok = grow(s, &s->x, rows, hp->hidden) && grow(s, &s->q, rows, w.q) &&
              grow(s, &s->k, rows, w.k) && grow(s, &s->v, rows, w.v) &&
              grow(s, &s->att, rows, w.att) && grow(s, &s->lat, rows, 2 * w.lat) &&
              grow(s, &s->q_rope, rows, w.rope) && grow(s, &s->gate, rows, w.ffn) &&
              grow(s, &s->up, rows, w.ffn) && grow(s, &s->q_a, rows, w.q_a) &&
              grow(s, &s->z, rows, w.z) && grow(s, &s->scores, rows, hp->moe.n) &&
              grow(s, &s->expert_in, rows, hp->moe.n ? hp->hidden : 0) &&
              grow(s, &s->expert_out, rows, hp->moe.n ? hp->hidden : 0);
    free(s->cos);
    free(s->sin);
    s->cos = mem_aligned((size_t)rows * (size_t)max_int(w.pairs, 1), sizeof(float));
    s->sin = mem_aligned((size_t)rows * (size_t)max_int(w.pairs, 1), sizeof(float));
    s->table_freq = NULL;
    s->rows = 0;
    if (!ok || !s->cos || !s->sin)
        return err_nomem(e, (size_t)rows * (size_t)(hp->hidden + 2 * w.ffn) * sizeof(float),
                         "activations");
    moe_plan_free(s->plan);
    s->plan = NULL;
    int rc = hp->moe.n ? moe_plan_new(&s->plan, &hp->moe, rows, e) : OK;
    s->rows = rc ? 0 : rows;
    return rc;
}

void scratch_done(struct scratch *s)
{
    float **all[] = {&s->x,    &s->q,  &s->k,   &s->v, &s->att,    &s->lat,       &s->q_rope,
                     &s->gate, &s->up, &s->q_a, &s->z, &s->scores, &s->expert_in, &s->expert_out};
    for (size_t i = 0; s->backend && i < sizeof all / sizeof *all; i++)
        s->backend->ops->free(s->backend, *all[i]);
    free(s->cos);
    free(s->sin);
    moe_plan_free(s->plan);
    *s = (struct scratch){0};
}

void scratch_new_batch(struct scratch *s)
{
    s->table_freq = NULL;
}

/* cos and sin of position × frequency, angles in double: fp32 angles lose digits at long context.
 */
static void rope_table(struct scratch *s, const struct model_layer *y, const struct segment *seg,
                       int n_seg, double magnitude)
{
    int pairs = y->rope_dim / 2;
    if (magnitude == 0 || y->no_rope)
        magnitude = 1;
    if (s->table_freq == y->rope_freq && s->table_pairs == pairs)
        return;
    for (int i = 0; i < n_seg; i++) {
        const double *freq = seg[i].long_rope ? y->rope_freq_long : y->rope_freq;
        for (int t = 0; t < seg[i].n; t++) {
            size_t at = (size_t)(seg[i].row + t) * (size_t)pairs;
            for (int j = 0; j < pairs; j++) {
                double a = (seg[i].past + t) * freq[j];
                s->cos[at + (size_t)j] = (float)(magnitude * cos(a));
                s->sin[at + (size_t)j] = (float)(magnitude * sin(a));
            }
        }
    }
    s->table_freq = y->rope_freq;
    s->table_pairs = pairs;
}

/* Rows of width numbers to the cache from row `first` on. */
static void store_rows(const struct engine *g, void *cache, enum dtype kv, int first,
                       const float *src, int width, int n)
{
    int padded = (int)dtype_padded(kv, (size_t)width);
    char *to = (char *)cache + dtype_bytes(kv, (size_t)first * (size_t)padded);
    g->backend->ops->store(g->backend, to, kv, padded, src, width, width, n);
}

/* Placing writes number by number. */
static bool places(const struct engine *g, enum dtype kv)
{
    return g->backend->ops->place && dtype_traits(kv)->block == 1;
}

/* A segment's tables, and where its rows go. */
static struct place_args place_rows(const struct segment *c, int pairs, const struct scratch *s)
{
    size_t at = (size_t)c->row * (size_t)pairs;
    return (struct place_args){.T = c->n,
                               .past = c->past - c->cache.first,
                               .cos = s->cos + at,
                               .sin = s->sin + at,
                               .pairs = pairs};
}

/* Rotates queries where they are, and keys on their way to the cache, where values go too. */
static void place_gqa(const struct engine *g, const struct segment *c, int R, enum dtype kv,
                      const struct scratch *s)
{
    const struct model_hparams *hp = &g->model->hp;
    int H = hp->n_head, G = hp->n_kv_head, d = hp->head_dim, kd = G * d;
    size_t row = (size_t)c->row;
    float *q = s->q + row * (size_t)(H * d);
    const float *k = s->k + row * (size_t)kd, *v = s->v + row * (size_t)kd;
    struct place_args a = place_rows(c, R / 2, s);
    a.part[0] = (struct place_part){k, c->cache.a, kv, kd, d, kd, d, G, d, 0, R, 1};
    a.part[1] = (struct place_part){v, c->cache.b, kv, kd, kd, kd, kd, 1, kd, 0, 0, 1};
    a.part[2] = (struct place_part){q, q, DTYPE_F32, H * d, d, H * d, d, H, R, 0, R, 0};
    a.parts = R ? 3 : 2;
    g->backend->ops->place(g->backend, &a);
}

/* The latent and its rope key to the cache; each head's rope query to its place, where it lies
 * already in models whose heads are normed. */
static void place_mla(const struct engine *g, int layer, const struct segment *c, enum dtype kv,
                      const struct scratch *s)
{
    const struct model_layer *y = &g->model->layer[layer];
    int H = g->model->hp.n_head, R = y->qk_rope_head_dim, width = y->kv_lora_rank + R;
    int head = y->qk_nope_head_dim + R;
    bool there = g->layer[layer].w[W_Q_ROPE];
    size_t row = (size_t)c->row;
    const float *k = s->k + row * (size_t)width;
    struct place_args a = place_rows(c, R / 2, s);
    a.part[0] = (struct place_part){k,     c->cache.a, kv,    width,     width, width,
                                    width, 1,          width, width - R, R,     1};
    a.parts = 1;
    if (R) {
        float *to = s->q_rope + row * (size_t)(H * R);
        const float *q = there ? to : s->q + row * (size_t)(H * head) + y->qk_nope_head_dim;
        int stride = there ? R : head;
        a.part[a.parts++] =
            (struct place_part){q, to, DTYPE_F32, H * stride, stride, H * R, R, H, R, 0, R, 0};
    }
    g->backend->ops->place(g->backend, &a);
}

static void attention_gqa(const struct engine *g, int layer, int rows, const struct segment *seg,
                          int n_seg, enum dtype kv, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    const struct model_layer *y = &g->model->layer[layer];
    int H = hp->n_head, G = hp->n_kv_head, d = hp->head_dim, kd = G * d;
    int R = y->no_rope ? 0 : y->rope_dim;
    if (R)
        rope_table(s, y, seg, n_seg, hp->rope_magnitude);
    if (R && !places(g, kv)) {
        op->rope(g->backend, s->q, H * d, H, d, R, s->cos, s->sin, rows);
        op->rope(g->backend, s->k, kd, G, d, R, s->cos, s->sin, rows);
    }
    for (int i = 0; i < n_seg; i++) {
        const struct segment *c = &seg[i];
        size_t row = (size_t)c->row;
        int past = c->past - c->cache.first;
        if (places(g, kv))
            place_gqa(g, c, R, kv, s);
        else {
            store_rows(g, c->cache.a, kv, past, s->k + row * (size_t)kd, kd, c->n);
            store_rows(g, c->cache.b, kv, past, s->v + row * (size_t)kd, kd, c->n);
        }
        struct attn_gqa_args a = {.out = s->att + row * (size_t)(H * d),
                                  .q = s->q + row * (size_t)(H * d),
                                  .k = c->cache.a,
                                  .v = c->cache.b,
                                  .kv = kv,
                                  .T = c->n,
                                  .past = past,
                                  .H = H,
                                  .G = G,
                                  .d = d,
                                  .scale = (float)y->attn_scale,
                                  .softcap = (float)hp->attn_softcap,
                                  .window = y->window};
        op->attn_gqa(g->backend, &a);
    }
}

static struct attn_mla_args mla_args(const struct engine *g, int layer, const struct segment *c,
                                     int rows, enum dtype kv, const struct scratch *s)
{
    const struct model_layer *y = &g->model->layer[layer];
    size_t H = (size_t)g->model->hp.n_head, r = (size_t)y->kv_lora_rank, row = (size_t)c->row;
    return (struct attn_mla_args){
        .out = s->lat + ((size_t)rows + row) * H * r,
        .q_lat = s->lat + row * H * r,
        .q_rope = s->q_rope ? s->q_rope + row * H * (size_t)y->qk_rope_head_dim : NULL,
        .cache = c->cache.a,
        .kv = kv,
        .T = c->n,
        .past = c->past - c->cache.first,
        .H = (int)H,
        .r = (int)r,
        .R = y->qk_rope_head_dim,
        .scale = (float)y->attn_scale,
        .softcap = (float)g->model->hp.attn_softcap,
        .window = y->window};
}

/* One token in one go, where the backend does that here. */
static bool step_mla(const struct engine *g, int layer, const struct attn_mla_args *attn,
                     struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_layer *y = &g->model->layer[layer];
    const struct weight *q_rope = g->layer[layer].w[W_Q_ROPE];
    struct mla_step_args a = {.attn = *attn,
                              .out = s->att,
                              .q_lat_out = s->lat,
                              .q_rope_out = s->q_rope,
                              .q = s->q,
                              .stride = y->qk_nope_head_dim + (q_rope ? 0 : attn->R),
                              .P = y->qk_nope_head_dim,
                              .Vd = y->v_head_dim,
                              .kv_b = g->layer[layer].w[W_KV_B],
                              .q_rope = q_rope,
                              .cos = s->cos,
                              .sin = s->sin};
    return op->mla_step && op->mla_step(g->backend, &a);
}

/* The rope key rotated and the latent row stored, where the backend does not place them. */
static void store_latents(const struct engine *g, int layer, int rows, const struct segment *seg,
                          int n_seg, enum dtype kv, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_layer *y = &g->model->layer[layer];
    int r = y->kv_lora_rank, R = y->qk_rope_head_dim, width = r + R;
    if (R)
        op->rope(g->backend, s->k + r, width, 1, 0, R, s->cos, s->sin, rows);
    for (int i = 0; i < n_seg; i++) {
        int past = seg[i].past - seg[i].cache.first;
        store_rows(g, seg[i].cache.a, kv, past, s->k + (size_t)seg[i].row * (size_t)width, width,
                   seg[i].n);
    }
}

static void attention_mla(const struct engine *g, int layer, int rows, const struct segment *seg,
                          int n_seg, enum dtype kv, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_layer *y = &g->model->layer[layer];
    const struct weight *kv_b = g->layer[layer].w[W_KV_B], *q_rope = g->layer[layer].w[W_Q_ROPE];
    int H = g->model->hp.n_head, r = y->kv_lora_rank, R = y->qk_rope_head_dim;
    int P = y->qk_nope_head_dim, Vd = y->v_head_dim, head = q_rope ? P : P + R;
    struct attn_mla_args first = mla_args(g, layer, &seg[0], rows, kv, s);
    if (R)
        rope_table(s, y, seg, n_seg, g->model->hp.rope_magnitude);
    if (!places(g, kv))
        store_latents(g, layer, rows, seg, n_seg, kv, s);
    if (rows == 1 && step_mla(g, layer, &first, s))
        return;
    if (R && q_rope) /* each head through its own [R][P], as values are expanded */
        op->mla_expand(g->backend, s->q_rope, s->q, q_rope, H, 0, R, P, rows);
    else if (R && !places(g, kv))
        op->store(g->backend, s->q_rope, DTYPE_F32, R, s->q + P, head, R, rows * H);
    if (R && !places(g, kv))
        op->rope(g->backend, s->q_rope, H * R, H, R, R, s->cos, s->sin, rows);
    op->mla_absorb(g->backend, s->lat, s->q, H * head, head, kv_b, H, P, Vd, r, rows);
    for (int i = 0; i < n_seg; i++) {
        struct attn_mla_args a = mla_args(g, layer, &seg[i], rows, kv, s);
        if (places(g, kv))
            place_mla(g, layer, &seg[i], kv, s);
        op->attn_mla(g->backend, &a);
    }
    op->mla_expand(g->backend, s->att, s->lat + (size_t)rows * (size_t)(H * r), kv_b, H, P, Vd, r,
                   rows);
}

/* The query through a matrix of low rank, with a norm in the middle. */
static void narrow_query(const struct engine *g, int layer, const float *x, int rows,
                         struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct engine_layer *w = &g->layer[layer];
    const struct weight *in[] = {w->w[W_Q_A], w->w[W_KV_A]}, *out[] = {w->w[W_Q]};
    int rank = g->model->hp.q_lora_rank;
    op->linear(g->backend, 2, in, (float *const[]){s->q_a, s->k}, x, rows, false);
    if (w->v[V_Q_A_BIAS])
        op->add_bias(g->backend, s->q_a, w->v[V_Q_A_BIAS], rows, rank);
    op->rms_norm(g->backend, s->q_a, s->q_a, w->v[V_Q_A_NORM],
                 (float)g->model->layer[layer].latent_eps, rows, rank);
    op->linear(g->backend, 1, out, (float *const[]){s->q}, s->q_a, rows, false);
}

/* Biases and norms of the projections, where the layer has any. */
static void dress_projections(const struct engine *g, int layer, int rows, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    const struct model_layer *y = &g->model->layer[layer];
    float *const *v = g->layer[layer].v;
    int H = hp->n_head, G = hp->n_kv_head, d = hp->head_dim;
    int r = y->kv_lora_rank, width = r + y->qk_rope_head_dim;
    if (v[V_Q_BIAS])
        op->add_bias(g->backend, s->q, v[V_Q_BIAS], rows,
                     y->attn == ATTN_MLA ? H * (y->qk_nope_head_dim + y->qk_rope_head_dim) : H * d);
    if (v[V_K_BIAS])
        op->add_bias(g->backend, s->k, v[V_K_BIAS], rows, G * d);
    if (v[V_V_BIAS])
        op->add_bias(g->backend, s->v, v[V_V_BIAS], rows, G * d);
    if (v[V_KV_A_BIAS])
        op->add_bias(g->backend, s->k, v[V_KV_A_BIAS], rows, width);
    if (v[V_Q_NORM])
        op->head_norm(g->backend, s->q, H * d, H, d, v[V_Q_NORM], (float)hp->rms_eps, rows, d);
    if (v[V_K_NORM])
        op->head_norm(g->backend, s->k, G * d, G, d, v[V_K_NORM], (float)hp->rms_eps, rows, d);
    if (v[V_KV_A_NORM])
        op->head_norm(g->backend, s->k, width, 1, 0, v[V_KV_A_NORM], (float)y->latent_eps, rows, r);
}

/* Queries, keys and values as in GQA, normed a head; then the latent and rope key from z = [k; v].
 */
static void normed_latent(const struct engine *g, int layer, const float *x, int rows,
                          struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    const struct engine_layer *w = &g->layer[layer];
    int H = hp->n_head, d = hp->head_dim, kd = hp->n_kv_head * d;
    float *k = s->z, *v = k + (size_t)rows * (size_t)kd, *z = v + (size_t)rows * (size_t)kd;
    const struct weight *in[] = {w->w[W_Q], w->w[W_K], w->w[W_V]};
    op->linear(g->backend, 3, in, (float *const[]){s->q, k, v}, x, rows, false);
    op->head_norm(g->backend, s->q, H * d, H, d, w->v[V_Q_NORM], (float)hp->rms_eps, rows, d);
    op->head_norm(g->backend, k, kd, kd / d, d, w->v[V_K_NORM], (float)hp->rms_eps, rows, d);
    op->store(g->backend, z, DTYPE_F32, 2 * kd, k, kd, kd, rows);
    op->store(g->backend, z + kd, DTYPE_F32, 2 * kd, v, kd, kd, rows);
    op->linear(g->backend, 1, (const struct weight *const[]){w->w[W_KV_A]}, (float *const[]){s->k},
               z, rows, false);
}

void forward_attention(const struct engine *g, int layer, const float *x, int rows,
                       const struct segment *seg, int n_seg, enum dtype kv, struct scratch *s,
                       const struct forward_tap *tap)
{
    const struct engine_layer *w = &g->layer[layer];
    bool mla = g->model->layer[layer].attn == ATTN_MLA;
    const struct weight *gqa_w[] = {w->w[W_Q], w->w[W_K], w->w[W_V]};
    const struct weight *mla_w[] = {w->w[W_Q], w->w[W_KV_A]};
    float *y[] = {s->q, s->k, s->v};
    bool normed = mla && w->v[V_Q_NORM];
    if (normed)
        normed_latent(g, layer, x, rows, s);
    else if (w->w[W_Q_A])
        narrow_query(g, layer, x, rows, s);
    else
        g->backend->ops->linear(g->backend, mla ? 2 : 3, mla ? mla_w : gqa_w, y, x, rows, false);
    if (!normed)
        dress_projections(g, layer, rows, s);
    if (tap && tap->attention)
        tap->attention(tap->user, layer, x, s->q, s->k, mla ? NULL : s->v, rows);
    if (mla)
        attention_mla(g, layer, rows, seg, n_seg, kv, s);
    else
        attention_gqa(g, layer, rows, seg, n_seg, kv, s);
}

/* h += w · x, normed on the way where post is not NULL; s->x is free to use by then. */
static void add_back(const struct engine *g, const struct weight *w, const float *bias,
                     const float *post, float *h, const float *x, int rows, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    int D = g->model->hp.hidden;
    const struct weight *const one[] = {w};
    op->linear(g->backend, 1, one, (float *const[]){post ? s->x : h}, x, rows, !post);
    if (bias)
        op->add_bias(g->backend, post ? s->x : h, bias, rows, D);
    if (post) {
        op->rms_norm(g->backend, s->x, s->x, post, (float)g->model->hp.rms_eps, rows, D);
        op->add(g->backend, h, s->x, (size_t)rows * (size_t)D);
    }
}

void forward_output(const struct engine *g, int layer, float *h, const float *att, int rows,
                    struct scratch *s)
{
    const struct engine_layer *w = &g->layer[layer];
    add_back(g, w->w[W_O], w->v[V_O_BIAS], w->v[V_POST_ATTN], h, att, rows, s);
}

/* gate: [rows][width], where the rows that go into W_DOWN are left. */
static void ffn(const struct engine *g, int layer, float *h, int rows, struct scratch *s,
                float *gate)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    const struct engine_layer *w = &g->layer[layer];
    op->rms_norm(g->backend, s->x, h, w->ffn_norm, (float)hp->rms_eps, rows, hp->hidden);
    if (w->expert)
        forward_experts(g, layer, h, s->x, rows, s);
    if (!w->w[W_GATE])
        return;
    const struct weight *in[] = {w->w[W_GATE], w->w[W_UP]};
    float *y[] = {gate, s->up};
    int width = w->expert ? hp->moe.shared_ffn : hp->ffn;
    if (op->glu_linear && !w->v[V_GATE_BIAS] && !w->v[V_UP_BIAS]) {
        op->glu_linear(g->backend, gate, s->up, in[0], in[1], hp->act, s->x, rows);
    } else {
        op->linear(g->backend, 2, in, y, s->x, rows, false);
        if (w->v[V_GATE_BIAS])
            op->add_bias(g->backend, gate, w->v[V_GATE_BIAS], rows, width);
        if (w->v[V_UP_BIAS])
            op->add_bias(g->backend, s->up, w->v[V_UP_BIAS], rows, width);
        op->glu(g->backend, gate, gate, s->up, hp->act, (size_t)rows * (size_t)width);
    }
    add_back(g, w->w[W_DOWN], w->v[V_DOWN_BIAS], w->v[V_POST_FFN], h, gate, rows, s);
}

void forward_ffn(const struct engine *g, int layer, float *h, int rows, struct scratch *s)
{
    const struct model_hparams *hp = &g->model->hp;
    bool sliced = g->backend->ops == &cpu_backend_ops && !g->layer[layer].expert;
    int step = sliced ? FFN_ROWS : rows; /* experts want many tokens */
    for (int i = 0; i < rows; i += step)
        ffn(g, layer, h + (size_t)i * (size_t)hp->hidden, rows - i < step ? rows - i : step, s,
            s->gate + (size_t)i * (size_t)hp->ffn);
}

void forward_layer(const struct engine *g, int layer, float *h, int rows, const struct segment *seg,
                   int n_seg, enum dtype kv, struct scratch *s, const struct forward_tap *tap)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    op->rms_norm(g->backend, s->x, h, g->layer[layer].attn_norm, (float)hp->rms_eps, rows,
                 hp->hidden);
    forward_attention(g, layer, s->x, rows, seg, n_seg, kv, s, tap);
    forward_output(g, layer, h, s->att, rows, s);
    forward_ffn(g, layer, h, rows, s);
}

void forward_embed(const struct engine *g, float *h, const int32_t *ids, int n)
{
    const struct model_hparams *hp = &g->model->hp;
    g->backend->ops->embed(g->backend, h, g->embed, ids, n);
    if (hp->embed_scale > 0)
        g->backend->ops->scale(g->backend, h, (float)hp->embed_scale,
                               (size_t)n * (size_t)hp->hidden);
}

void forward_head(const struct engine *g, float *logits, const float *h, int n, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    op->rms_norm(g->backend, s->x, h, g->final_norm, (float)hp->rms_eps, n, hp->hidden);
    op->linear(g->backend, 1, (const struct weight *const[]){g->head}, (float *const[]){logits},
               s->x, n, false);
    if (hp->logit_softcap > 0)
        op->softcap(g->backend, logits, (float)hp->logit_softcap, (size_t)n * (size_t)hp->vocab);
}
