/* The original's forward pass for healing. Trusts ids that heal_net_forward has checked. */
#include "sessions/heal_teacher.h"

#include <stdlib.h>

int heal_teacher_init(struct heal_teacher *t, const struct engine *g, int rows, int block,
                      bool outputs, struct err *e)
{
    const struct model_hparams *hp = &g->model->hp;
    const struct backend_ops *op = g->backend->ops;
    size_t D = (size_t)hp->hidden, kd = (size_t)(hp->n_kv_head * hp->head_dim);
    size_t R = (size_t)rows, B = (size_t)block;
    *t = (struct heal_teacher){.g = g, .rows = rows, .block = block};
    t->h = op->alloc(g->backend, R * D * sizeof(float));
    t->logits = op->alloc(g->backend, B * (size_t)hp->vocab * sizeof(float));
    t->cache.a = op->alloc(g->backend, R * kd * sizeof(float));
    t->cache.b = op->alloc(g->backend, R * kd * sizeof(float));
    if (!t->h || !t->logits || !t->cache.a || !t->cache.b)
        return err_nomem(e, R * (D + 2 * kd) * sizeof(float), "the original beside the conversion");
    if (outputs && !(t->outputs = mem_calloc((size_t)hp->n_layer, sizeof *t->outputs)))
        return err_nomem(e, sizeof *t->outputs, "layer outputs");
    for (int l = 0; outputs && l < hp->n_layer; l++)
        if (!(t->outputs[l] = mem_aligned(R * D, sizeof(float))))
            return err_nomem(e, R * D * sizeof(float), "layer outputs");
    return scratch_reserve(&t->scratch, g, rows > block ? rows : block, e);
}

void heal_teacher_done(struct heal_teacher *t)
{
    if (!t->g)
        return;
    const struct backend_ops *op = t->g->backend->ops;
    void *all[] = {t->h, t->logits, t->cache.a, t->cache.b};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        op->free(t->g->backend, all[i]);
    for (int l = 0; t->outputs && l < t->g->model->hp.n_layer; l++)
        free(t->outputs[l]);
    free(t->outputs);
    scratch_done(&t->scratch);
    *t = (struct heal_teacher){0};
}

int heal_teacher_run(struct heal_teacher *t, const int32_t *ids, const int *start, int n_seq,
                     struct err *e)
{
    const struct engine *g = t->g;
    const struct model_hparams *hp = &g->model->hp;
    size_t kd = (size_t)(hp->n_kv_head * hp->head_dim) * sizeof(float);
    int rows = start[n_seq];
    struct segment *seg = mem_calloc((size_t)n_seq, sizeof *seg);
    if (!seg)
        return err_nomem(e, (size_t)n_seq * sizeof *seg, "a batch");
    for (int i = 0; i < n_seq; i++) {
        size_t at = (size_t)start[i] * kd;
        seg[i] = (struct segment){.row = start[i], .n = start[i + 1] - start[i]};
        seg[i].cache.a = (char *)t->cache.a + at;
        seg[i].cache.b = (char *)t->cache.b + at;
    }
    scratch_new_batch(&t->scratch);
    forward_embed(g, t->h, ids, rows);
    for (int l = 0; l < hp->n_layer; l++) {
        forward_layer(g, l, t->h, rows, seg, n_seq, DTYPE_F32, &t->scratch, NULL);
        if (t->outputs)
            heal_teacher_get(t, t->outputs[l], rows);
    }
    free(seg);
    return g->backend->ops->sync(g->backend, e);
}

int heal_teacher_logits(void *user, int first, int n, float *out, struct err *e)
{
    struct heal_teacher *t = user;
    const struct engine *g = t->g;
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    size_t numbers = (size_t)n * (size_t)hp->vocab;
    if (n > t->block)
        return err_set(e, ERR_ARG, "%d rows of logits: at most %d", n, t->block);
    forward_head(g, t->logits, t->h + (size_t)first * (size_t)hp->hidden, n, &t->scratch);
    op->get(g->backend, out, t->logits, numbers * sizeof *out);
    return op->sync(g->backend, e);
}

void heal_teacher_get(struct heal_teacher *t, float *states, int rows)
{
    size_t bytes = (size_t)rows * (size_t)t->g->model->hp.hidden * sizeof *states;
    t->g->backend->ops->get(t->g->backend, states, t->h, bytes);
}

void heal_teacher_put(struct heal_teacher *t, const float *states, int rows)
{
    size_t bytes = (size_t)rows * (size_t)t->g->model->hp.hidden * sizeof *states;
    t->g->backend->ops->put(t->g->backend, t->h, states, bytes);
}
