/* Experts for healing: the choice is taken as it falls, its weights have gradients. */
#include <math.h>
#include <stdlib.h>

#include "core/router.h"
#include "sessions/heal_net.h"

static void *number(const struct heal_net *n, const void *p, size_t i)
{
    return (char *)(uintptr_t)p + i * n->op->size;
}

/* Who goes to one expert: rows, their places in the list of choices, and weights. */
struct group {
    int *row, *place, n;
    void *factor, *x, *y; /* op's numbers: [rows], [rows][D] twice */
    double *weight;       /* [rows][used] */
};

static bool group_init(struct heal_net *n, struct group *g)
{
    size_t rows = (size_t)n->n, size = n->op->size, D = (size_t)n->model->hp.hidden;
    *g = (struct group){.row = mem_calloc(rows, sizeof *g->row),
                        .place = mem_calloc(rows, sizeof *g->place),
                        .factor = mem_calloc(rows, size),
                        .x = mem_calloc(rows * D, size),
                        .y = mem_calloc(rows * D, size),
                        .weight = mem_calloc(rows * (size_t)n->model->hp.moe.used, sizeof(double))};
    bool ok = g->row && g->place && g->factor && g->x && g->y && g->weight;
    n->failed |= !ok;
    return ok;
}

static void group_done(struct group *g)
{
    void *all[] = {g->row, g->place, g->factor, g->x, g->y, g->weight};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* The shares of all experts in a row's scores: their softmax or sigmoid, in fp64. */
static void shares(const struct heal_net *n, const struct heal_tape *t, int row, double *p)
{
    const struct model_moe *moe = &n->model->hp.moe;
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < moe->n; i++) {
        p[i] = n->op->get(t->scores, (size_t)row * (size_t)moe->n + (size_t)i);
        top = fmax(top, p[i]);
    }
    for (int i = 0; i < moe->n; i++)
        sum += p[i] = moe->sigmoid ? 1 / (1 + exp(-p[i])) : exp(p[i] - top);
    for (int i = 0; i < moe->n && !moe->sigmoid; i++)
        p[i] /= sum;
}

static double taken(const struct model_moe *moe, const int *choice, const double *p)
{
    double sum = 0;
    for (int k = 0; k < moe->used; k++)
        sum += p[choice[k]];
    return moe->renormalise ? sum + 1e-20 : 1; /* as router_choose */
}

static void row_weights(const struct heal_net *n, const struct heal_tape *t, int row, double *w)
{
    const struct model_moe *moe = &n->model->hp.moe;
    const int *choice = t->choice + (size_t)row * (size_t)moe->used;
    double p[MODEL_MAX_EXPERTS];
    shares(n, t, row, p);
    double all = taken(moe, choice, p);
    for (int k = 0; k < moe->used; k++)
        w[k] = p[choice[k]] / all * moe->scale;
}

static void choose(struct heal_net *n, const struct heal_layer *y, struct heal_tape *t)
{
    const struct model_moe *moe = &n->model->hp.moe;
    int D = n->model->hp.hidden;
    float scores[MODEL_MAX_EXPERTS], weight[MODEL_MAX_EXPERTS];
    n->op->gemm(n->pool, false, true, n->n, moe->n, D, 1, n->x, D, y->f[F_ROUTER], D, 0, t->scores,
                moe->n);
    for (int row = 0; row < n->n; row++) {
        n->op->to_f32(scores, number(n, t->scores, (size_t)row * (size_t)moe->n), (size_t)moe->n);
        router_choose(moe, scores, y->router_bias, t->choice + (size_t)row * (size_t)moe->used,
                      weight);
    }
}

static void gather(const struct heal_net *n, const struct heal_tape *t, int expert, struct group *g)
{
    int used = n->model->hp.moe.used;
    g->n = 0;
    for (int i = 0; i < n->n * used; i++)
        if (t->choice[i] == expert) {
            n->op->set(g->factor, (size_t)g->n, g->weight[i]);
            g->row[g->n] = i / used;
            g->place[g->n++] = i;
        }
}

/* Experts keep gate and up in the order of experts, so that a group's rows lie together. */
void heal_experts_forward(struct heal_net *n, int l, struct heal_tape *t, bool inner)
{
    const struct heal_layer *y = &n->layer[l];
    const struct grad_ops *op = n->op;
    const struct model_hparams *hp = &n->model->hp;
    int D = hp->hidden, F = hp->moe.ffn;
    size_t at = 0;
    struct group g;
    choose(n, y, t);
    if (group_init(n, &g)) {
        for (int row = 0; row < n->n; row++)
            row_weights(n, t, row, g.weight + (size_t)row * (size_t)hp->moe.used);
        for (int i = 0; i < hp->moe.n; i++, at += (size_t)g.n * (size_t)F) {
            void *const *w = y->expert + (size_t)i * EXPERT_PARTS;
            void *gate = number(n, t->e_gate, at), *up = number(n, t->e_up, at);
            gather(n, t, i, &g);
            op->take(g.x, n->x, g.row, g.n, D);
            op->gemm(n->pool, false, true, g.n, F, D, 1, g.x, D, w[EXPERT_GATE], D, 0, gate, F);
            op->gemm(n->pool, false, true, g.n, F, D, 1, g.x, D, w[EXPERT_UP], D, 0, up, F);
            if (inner)
                continue;
            op->glu(n->pool, n->wide, gate, up, hp->act, (size_t)g.n * (size_t)F);
            op->gemm(n->pool, false, true, g.n, D, F, 1, n->wide, F, w[EXPERT_DOWN], F, 0, g.y, D);
            op->give(n->h, g.row, g.y, g.factor, g.n, D);
        }
    }
    group_done(&g);
}

/* dw[row][used] of the weights → scores of the row, in place of the tape's. */
static void scores_back(const struct heal_net *n, struct heal_tape *t, int row, const double *dw)
{
    const struct model_moe *moe = &n->model->hp.moe;
    const int *choice = t->choice + (size_t)row * (size_t)moe->used;
    double p[MODEL_MAX_EXPERTS], dp[MODEL_MAX_EXPERTS] = {0}, along = 0, mean = 0;
    shares(n, t, row, p);
    double all = taken(moe, choice, p);
    for (int k = 0; k < moe->used; k++)
        along += dw[k] * p[choice[k]];
    for (int k = 0; k < moe->used; k++)
        dp[choice[k]] = moe->scale * (dw[k] / all - (moe->renormalise ? along / (all * all) : 0));
    for (int i = 0; i < moe->n; i++)
        mean += dp[i] * p[i];
    for (int i = 0; i < moe->n; i++)
        n->op->set(t->scores, (size_t)row * (size_t)moe->n + (size_t)i,
                   moe->sigmoid ? dp[i] * p[i] * (1 - p[i]) : p[i] * (dp[i] - mean));
}

/* One expert: with u = dh·W_down, the weight's gradient is u·act and the activation's weight·u. */
static void expert_back(struct heal_net *n, void *const *w, struct group *g, void *gate, void *up,
                        double *dw)
{
    const struct grad_ops *op = n->op;
    const struct model_hparams *hp = &n->model->hp;
    int D = hp->hidden, F = hp->moe.ffn;
    size_t size = (size_t)g->n * (size_t)F;
    op->take(g->y, n->dh, g->row, g->n, D);
    op->gemm(n->pool, false, false, g->n, F, D, 1, g->y, D, w[EXPERT_DOWN], F, 0, n->wide, F);
    op->glu(n->pool, n->wide2, gate, up, hp->act, size);
    op->dots(g->x, n->wide, n->wide2, g->n, F);
    for (int i = 0; i < g->n; i++)
        dw[g->place[i]] = op->get(g->x, (size_t)i);
    op->stretch(n->wide, g->factor, g->n, F);
    op->glu_back(n->pool, n->wide2, n->wide3, n->wide, gate, up, hp->act, size);
    op->gemm(n->pool, false, false, g->n, D, F, 1, n->wide2, F, w[EXPERT_GATE], D, 0, g->x, D);
    op->gemm(n->pool, false, false, g->n, D, F, 1, n->wide3, F, w[EXPERT_UP], D, 1, g->x, D);
    for (int i = 0; i < g->n; i++)
        op->set(g->factor, (size_t)i, 1);
    op->give(n->dx, g->row, g->x, g->factor, g->n, D);
}

void heal_experts_back(struct heal_net *n, int l, struct heal_tape *t)
{
    const struct heal_layer *y = &n->layer[l];
    const struct model_hparams *hp = &n->model->hp;
    int D = hp->hidden, F = hp->moe.ffn, used = hp->moe.used;
    double *dw = mem_calloc((size_t)n->n * (size_t)used, sizeof *dw);
    size_t at = 0;
    struct group g;
    n->failed |= !dw;
    if (group_init(n, &g) && dw) {
        for (int row = 0; row < n->n; row++)
            row_weights(n, t, row, g.weight + (size_t)row * (size_t)used);
        for (int i = 0; i < hp->moe.n; i++, at += (size_t)g.n * (size_t)F) {
            gather(n, t, i, &g);
            if (g.n)
                expert_back(n, y->expert + (size_t)i * EXPERT_PARTS, &g, number(n, t->e_gate, at),
                            number(n, t->e_up, at), dw);
        }
        for (int row = 0; row < n->n; row++)
            scores_back(n, t, row, dw + (size_t)row * (size_t)used);
        n->op->gemm(n->pool, false, false, n->n, D, hp->moe.n, 1, t->scores, hp->moe.n,
                    y->f[F_ROUTER], D, 1, n->dx, D);
    }
    group_done(&g);
    free(dw);
}
