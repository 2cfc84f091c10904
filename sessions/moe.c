/* Experts: every token goes to a few of them, so rows are gathered expert by expert, run through it
 * together and added back by weight. The choice is made on the host. */
#include <stdlib.h>

#include "core/router.h"
#include "sessions/forward.h"

struct moe_plan {
    float *scores; /* [rows][experts] */
    int *choice;   /* [rows][used] */
    float *weight; /* [rows][used] */
    int32_t *rows; /* of one expert */
    float *factor;
};

void moe_plan_free(struct moe_plan *p)
{
    if (!p)
        return;
    free(p->scores);
    free(p->choice);
    free(p->weight);
    free(p->rows);
    free(p->factor);
    free(p);
}

int moe_plan_new(struct moe_plan **out, const struct model_moe *moe, int rows, struct err *e)
{
    struct moe_plan *p = mem_calloc(1, sizeof *p);
    size_t T = (size_t)rows, taken = T * (size_t)moe->used;
    if (p) {
        p->scores = mem_calloc(T * (size_t)moe->n, sizeof *p->scores);
        p->choice = mem_calloc(taken, sizeof *p->choice);
        p->weight = mem_calloc(taken, sizeof *p->weight);
        p->rows = mem_calloc(T, sizeof *p->rows);
        p->factor = mem_calloc(T, sizeof *p->factor);
    }
    *out = p;
    if (p && p->scores && p->choice && p->weight && p->rows && p->factor)
        return OK;
    moe_plan_free(p);
    *out = NULL;
    return err_nomem(e, taken * sizeof *p->weight, "a plan of experts");
}

static void choose(const struct engine *g, int layer, const float *x, int rows, struct scratch *s)
{
    const struct model_moe *moe = &g->model->hp.moe;
    const struct engine_layer *w = &g->layer[layer];
    const struct weight *const router[] = {w->w[W_ROUTER]};
    struct moe_plan *p = s->plan;
    g->backend->ops->linear(g->backend, 1, router, (float *const[]){s->scores}, x, rows, false);
    g->backend->ops->get(g->backend, p->scores, s->scores,
                         (size_t)rows * (size_t)moe->n * sizeof *p->scores);
    for (int t = 0; t < rows; t++)
        router_choose(moe, p->scores + (size_t)t * (size_t)moe->n, w->router_bias,
                      p->choice + (size_t)t * (size_t)moe->used,
                      p->weight + (size_t)t * (size_t)moe->used);
}

/* The rows that go to this expert, with their weights. */
static int gather(const struct model_moe *moe, struct moe_plan *p, int expert, int rows)
{
    int n = 0;
    for (int i = 0; i < rows * moe->used; i++)
        if (p->choice[i] == expert) {
            p->rows[n] = i / moe->used;
            p->factor[n++] = p->weight[i];
        }
    return n;
}

void forward_experts(const struct engine *g, int layer, float *h, const float *x, int rows,
                     struct scratch *s)
{
    const struct backend_ops *op = g->backend->ops;
    const struct model_hparams *hp = &g->model->hp;
    int D = hp->hidden;
    choose(g, layer, x, rows, s);
    for (int i = 0; i < hp->moe.n; i++) {
        struct weight *const *w = g->layer[layer].expert + (size_t)i * EXPERT_PARTS;
        const struct weight *in[] = {w[EXPERT_GATE], w[EXPERT_UP]}, *out[] = {w[EXPERT_DOWN]};
        int n = gather(&hp->moe, s->plan, i, rows);
        if (!n)
            continue;
        op->take_rows(g->backend, s->expert_in, x, s->plan->rows, n, D);
        op->linear(g->backend, 2, in, (float *const[]){s->gate, s->up}, s->expert_in, n, false);
        op->glu(g->backend, s->gate, s->gate, s->up, hp->act, (size_t)n * (size_t)hp->moe.ffn);
        op->linear(g->backend, 1, out, (float *const[]){s->expert_out}, s->gate, n, false);
        op->add_rows(g->backend, h, s->plan->rows, s->expert_out, s->plan->factor, n, D);
    }
}
