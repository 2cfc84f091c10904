/* One transformer layer over a batch, for GQA and absorbed MLA, in terms of backend operations. */
#include "sessions/forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* Widest rows any layer needs, so that one scratch serves all layers. */
struct widths {
    int q, k, v, att, lat, rope, pairs;
};

static struct widths model_widths(const struct model *m)
{
    const struct model_hparams *hp = &m->hp;
    struct widths w = {0};
    for (int l = 0; l < hp->n_layer; l++) {
        const struct model_layer *y = &m->layer[l];
        w.pairs = max_int(w.pairs, y->rope_dim / 2);
        if (y->attn == ATTN_MLA) {
            w.q = max_int(w.q, hp->n_head * (y->qk_nope_head_dim + y->qk_rope_head_dim));
            w.k = max_int(w.k, y->kv_lora_rank + y->qk_rope_head_dim);
            w.att = max_int(w.att, hp->n_head * y->v_head_dim);
            w.lat = max_int(w.lat, hp->n_head * y->kv_lora_rank);
            w.rope = max_int(w.rope, hp->n_head * y->qk_rope_head_dim);
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
              grow(s, &s->q_rope, rows, w.rope) && grow(s, &s->gate, rows, hp->ffn) &&
              grow(s, &s->up, rows, hp->ffn);
    free(s->cos);
    free(s->sin);
    s->cos = mem_aligned((size_t)rows * (size_t)max_int(w.pairs, 1), sizeof(float));
    s->sin = mem_aligned((size_t)rows * (size_t)max_int(w.pairs, 1), sizeof(float));
    s->table_freq = NULL;
    s->rows = 0;
    if (!ok || !s->cos || !s->sin)
        return err_nomem(e, (size_t)rows * (size_t)(hp->hidden + 2 * hp->ffn) * sizeof(float),
                         "activations");
    s->rows = rows;
    return OK;
}

void scratch_done(struct scratch *s)
{
    float **all[] = {&s->x, &s->q, &s->k, &s->v, &s->att, &s->lat, &s->q_rope, &s->gate, &s->up};
    for (size_t i = 0; s->backend && i < sizeof all / sizeof *all; i++)
        s->backend->ops->free(s->backend, *all[i]);
    free(s->cos);
    free(s->sin);
    *s = (struct scratch){0};
}

void scratch_new_batch(struct scratch *s)
{
    s->table_freq = NULL;
}

/* cos and sin of position × frequency, angles in double: fp32 angles lose digits at long context.
 */
static void rope_table(struct scratch *s, const struct model_layer *y, const struct segment *seg,
                       int n_seg)
{
    int pairs = y->rope_dim / 2;
    if (s->table_freq == y->rope_freq && s->table_pairs == pairs)
        return;
    for (int i = 0; i < n_seg; i++) {
        for (int t = 0; t < seg[i].n; t++) {
            size_t at = (size_t)(seg[i].row + t) * (size_t)pairs;
            for (int j = 0; j < pairs; j++) {
                double a = (seg[i].past + t) * y->rope_freq[j];
                s->cos[at + (size_t)j] = (float)cos(a);
                s->sin[at + (size_t)j] = (float)sin(a);
            }
        }
    }
    s->table_freq = y->rope_freq;
    s->table_pairs = pairs;
}

static char *cache_row(void *base, enum dtype kv, size_t row, int width)
{
    return (char *)base + dtype_bytes(kv, row * (size_t)width);
}

static void attention_gqa(const struct engine *g, int layer, int rows, const struct segment *seg,
                          int n_seg, enum dtype kv, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    const struct model_layer *y = &g->model->layer[layer];
    int H = hp->n_head, G = hp->n_kv_head, d = hp->head_dim, kd = G * d;
    if (y->rope_dim) {
        rope_table(s, y, seg, n_seg);
        op->rope(g->backend, s->q, H * d, H, d, y->rope_dim, s->cos, s->sin, rows);
        op->rope(g->backend, s->k, kd, G, d, y->rope_dim, s->cos, s->sin, rows);
    }
    for (int i = 0; i < n_seg; i++) {
        const struct segment *c = &seg[i];
        size_t row = (size_t)c->row;
        op->store(g->backend, cache_row(c->cache.a, kv, (size_t)c->past, kd), kv, kd,
                  s->k + row * (size_t)kd, kd, kd, c->n);
        op->store(g->backend, cache_row(c->cache.b, kv, (size_t)c->past, kd), kv, kd,
                  s->v + row * (size_t)kd, kd, kd, c->n);
        struct attn_gqa_args a = {.out = s->att + row * (size_t)(H * d),
                                  .q = s->q + row * (size_t)(H * d),
                                  .k = c->cache.a,
                                  .v = c->cache.b,
                                  .kv = kv,
                                  .T = c->n,
                                  .past = c->past,
                                  .H = H,
                                  .G = G,
                                  .d = d,
                                  .scale = (float)y->attn_scale};
        op->attn_gqa(g->backend, &a);
    }
}

static void attention_mla(const struct engine *g, int layer, int rows, const struct segment *seg,
                          int n_seg, enum dtype kv, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_layer *y = &g->model->layer[layer];
    const struct weight *kv_b = g->layer[layer].w[W_KV_B];
    int H = g->model->hp.n_head, r = y->kv_lora_rank, R = y->qk_rope_head_dim;
    int P = y->qk_nope_head_dim, Vd = y->v_head_dim, head = P + R, width = r + R;
    if (R) {
        rope_table(s, y, seg, n_seg);
        op->rope(g->backend, s->q + P, H * head, H, head, R, s->cos, s->sin, rows);
        op->rope(g->backend, s->k + r, width, 1, 0, R, s->cos, s->sin, rows);
        op->store(g->backend, s->q_rope, DTYPE_F32, R, s->q + P, head, R, rows * H);
    }
    float *q_lat = s->lat, *lat = s->lat + (size_t)rows * (size_t)(H * r);
    op->mla_absorb(g->backend, q_lat, s->q, H * head, head, kv_b, H, P, Vd, r, rows);
    for (int i = 0; i < n_seg; i++) {
        const struct segment *c = &seg[i];
        size_t row = (size_t)c->row;
        op->store(g->backend, cache_row(c->cache.a, kv, (size_t)c->past, width), kv, width,
                  s->k + row * (size_t)width, width, width, c->n);
        struct attn_mla_args a = {.out = lat + row * (size_t)(H * r),
                                  .q_lat = q_lat + row * (size_t)(H * r),
                                  .q_rope = s->q_rope ? s->q_rope + row * (size_t)(H * R) : NULL,
                                  .cache = c->cache.a,
                                  .kv = kv,
                                  .T = c->n,
                                  .past = c->past,
                                  .H = H,
                                  .r = r,
                                  .R = R,
                                  .scale = (float)y->attn_scale};
        op->attn_mla(g->backend, &a);
    }
    op->mla_expand(g->backend, s->att, lat, kv_b, H, P, Vd, r, rows);
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
    g->backend->ops->linear(g->backend, mla ? 2 : 3, mla ? mla_w : gqa_w, y, x, rows, false);
    if (tap && tap->attention)
        tap->attention(tap->user, layer, x, s->q, s->k, mla ? NULL : s->v, rows);
    if (mla)
        attention_mla(g, layer, rows, seg, n_seg, kv, s);
    else
        attention_gqa(g, layer, rows, seg, n_seg, kv, s);
}

static void feed_forward(const struct engine *g, int layer, float *h, int rows, struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    const struct engine_layer *w = &g->layer[layer];
    op->rms_norm(g->backend, s->x, h, w->ffn_norm, (float)hp->rms_eps, rows, hp->hidden);
    const struct weight *in[] = {w->w[W_GATE], w->w[W_UP]};
    float *y[] = {s->gate, s->up};
    op->linear(g->backend, 2, in, y, s->x, rows, false);
    op->glu(g->backend, s->gate, s->gate, s->up, GLU_SILU, (size_t)rows * (size_t)hp->ffn);
    op->linear(g->backend, 1, (const struct weight *const[]){w->w[W_DOWN]}, (float *const[]){h},
               s->gate, rows, true);
}

void forward_layer(const struct engine *g, int layer, float *h, int rows, const struct segment *seg,
                   int n_seg, enum dtype kv, struct scratch *s, const struct forward_tap *tap)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    const struct engine_layer *w = &g->layer[layer];
    op->rms_norm(g->backend, s->x, h, w->attn_norm, (float)hp->rms_eps, rows, hp->hidden);
    forward_attention(g, layer, s->x, rows, seg, n_seg, kv, s, tap);
    op->linear(g->backend, 1, (const struct weight *const[]){w->w[W_O]}, (float *const[]){h},
               s->att, rows, true);
    feed_forward(g, layer, h, rows, s);
}
