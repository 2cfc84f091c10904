/* One converted layer forward, filling its tape, and backward. Trusts shapes checked when the net
 * was made. */
#include "sessions/heal_net.h"

#include <string.h>

static void *number(const struct heal_net *n, const void *p, size_t i)
{
    return (char *)(uintptr_t)p + i * n->op->size;
}

/* y[rows][out] (+)= x[rows][in] · wᵀ */
static void linear(const struct heal_net *n, void *y, const void *x, const void *w, int out, int in,
                   bool add)
{
    n->op->gemm(n->pool, false, true, n->n, out, in, 1, x, in, w, in, add, y, out);
}

/* dx[rows][in] (+)= dy[rows][out] · w */
static void linear_back(const struct heal_net *n, void *dx, const void *dy, const void *w, int out,
                        int in, bool add)
{
    n->op->gemm(n->pool, false, false, n->n, in, out, 1, dy, out, w, in, add, dx, in);
}

/* The same with a matrix that stays as it is. */
static void fixed(const struct heal_net *n, const struct heal_layer *y, enum heal_fixed slot,
                  void *out, const void *x, int rows, int in, bool add)
{
    if (y->frozen[slot].b)
        heal_frozen_apply(&y->frozen[slot], out, x, n->n, add);
    else
        linear(n, out, x, y->f[slot], rows, in, add);
}

static void fixed_back(const struct heal_net *n, const struct heal_layer *y, enum heal_fixed slot,
                       void *dx, const void *dy, int out, int in, bool add)
{
    if (y->frozen[slot].b)
        heal_frozen_back(&y->frozen[slot], dx, dy, n->n, add);
    else
        linear_back(n, dx, dy, y->f[slot], out, in, add);
}

/* g[out][in] += dyᵀ · x, where the tensor is trained. */
static void weight_back(const struct heal_net *n, const struct heal_tensor *t, const void *dy,
                        int ld_dy, const void *x, int ld_x)
{
    if (t->trained)
        n->op->gemm(n->pool, true, false, (int)t->rows, (int)t->cols, n->n, 1, dy, ld_dy, x, ld_x,
                    1, t->g, (int)t->cols);
}

static int query_width(const struct heal_net *n, const struct heal_layer *y)
{
    return n->model->hp.n_head * (y->P + y->R);
}

static void turn(const struct heal_net *n, const struct heal_layer *y, void *q, void *ckr,
                 bool back)
{
    int H = n->model->hp.n_head, dk = y->P + y->R, width = y->r + y->R;
    for (int s = 0; s < n->n_seq; s++) {
        size_t row = (size_t)n->start[s];
        int rows = n->start[s + 1] - n->start[s];
        n->op->rope(n->pool, number(n, q, row * (size_t)(H * dk) + (size_t)y->P), H * dk, H, dk,
                    y->R, y->cos, y->sin, rows, back);
        n->op->rope(n->pool, number(n, ckr, row * (size_t)width + (size_t)y->r), width, 1, 0, y->R,
                    y->cos, y->sin, rows, back);
    }
}

static struct grad_attn attention(const struct heal_net *n, const struct heal_layer *y,
                                  const struct heal_tape *t)
{
    return (struct grad_attn){.H = n->model->hp.n_head,
                              .P = y->P,
                              .R = y->R,
                              .V = y->V,
                              .scale = y->y->attn_scale,
                              .softcap = n->model->hp.attn_softcap,
                              .window = y->y->window,
                              .start = n->start,
                              .n_seq = n->n_seq,
                              .q = t->q,
                              .kv = n->kv,
                              .kr = number(n, t->ckr, (size_t)y->r),
                              .kr_ld = y->r + y->R,
                              .out = t->att,
                              .scratch = n->scratch,
                              .dout = n->datt,
                              .dq = n->dq,
                              .dkv = n->dkv,
                              .dkr = number(n, n->dckr, (size_t)y->r),
                              .dkr_heads = n->dkr};
}

/* Keys and values of all heads from the latent. */
static void rebuild_kv(struct heal_net *n, const struct heal_layer *y, const struct heal_tape *t)
{
    int out = n->model->hp.n_head * (y->P + y->V), width = y->r + y->R;
    n->op->gemm(n->pool, false, true, n->n, out, y->r, 1, t->ckr, width, y->t[HEAL_KV_B]->w, y->r,
                0, n->kv, out);
}

/* Queries and latents from the normed input n->x. */
static void project(struct heal_net *n, const struct heal_layer *y, struct heal_tape *t)
{
    const struct grad_ops *op = n->op;
    int D = n->model->hp.hidden, wide = query_width(n, y), width = y->r + y->R;
    linear(n, t->q, n->x, y->t[HEAL_Q]->w, wide, D, false);
    linear(n, t->ckr, n->x, y->t[HEAL_KV_A]->w, width, D, false);
    if (y->v[N_Q_BIAS])
        op->add_bias(n->pool, t->q, y->v[N_Q_BIAS], n->n, wide);
    if (y->v[N_KV_A_BIAS])
        op->add_bias(n->pool, t->ckr, y->v[N_KV_A_BIAS], n->n, width);
}

/* The same over normed heads: q = [norm(Wq x) | rope rows of it], latent from z = [norm(k); v]. */
static void project_normed(struct heal_net *n, const struct heal_layer *y, struct heal_tape *t)
{
    const struct grad_ops *op = n->op;
    const struct model_hparams *hp = &n->model->hp;
    int D = hp->hidden, H = hp->n_head, G = hp->n_kv_head, d = hp->head_dim, dk = y->P + y->R;
    int kd = G * d, rows = n->n;
    linear(n, t->q0, n->x, y->f[F_WQ], H * d, D, false);
    linear(n, t->k0, n->x, y->f[F_WK], kd, D, false);
    linear(n, n->wide2, n->x, y->f[F_WV], kd, D, false);
    op->move(n->pool, number(n, t->z, (size_t)kd), 2 * kd, n->wide2, kd, kd, rows, false);
    op->norm(n->pool, n->wide2, t->k0, y->v[N_K], hp->rms_eps, rows * G, d);
    op->move(n->pool, t->z, 2 * kd, n->wide2, kd, kd, rows, false);
    op->norm(n->pool, n->wide2, t->q0, y->v[N_Q], hp->rms_eps, rows * H, d);
    op->move(n->pool, t->q, dk, n->wide2, d, d, rows * H, false);
    for (int h = 0; h < H && y->R; h++) {
        void *q = number(n, t->q, (size_t)(h * dk));
        op->gemm(n->pool, false, true, rows, y->R, d, 1, q, H * dk,
                 number(n, y->t[HEAL_Q]->w, (size_t)h * (size_t)(y->R * d)), d, 0,
                 number(n, q, (size_t)d), H * dk);
    }
    linear(n, t->ckr, t->z, y->t[HEAL_KV_A]->w, y->r + y->R, 2 * kd, false);
}

/* h += norm(kept), for blocks whose output is normed before it is added. */
static void add_normed(struct heal_net *n, const void *gamma, const void *kept)
{
    int D = n->model->hp.hidden;
    n->op->norm(n->pool, n->dx, kept, gamma, n->model->hp.rms_eps, n->n, D);
    n->op->move(n->pool, n->h, D, n->dx, D, D, n->n, true);
}

static void feed_forward(struct heal_net *n, int l, struct heal_tape *t, bool inner)
{
    const struct heal_layer *y = &n->layer[l];
    const struct model_hparams *hp = &n->model->hp;
    int D = hp->hidden;
    n->op->norm(n->pool, n->x, n->h, y->v[N_FFN], hp->rms_eps, n->n, D);
    if (y->expert)
        heal_experts_forward(n, l, t, inner);
    if (!y->ffn)
        return;
    fixed(n, y, F_GATE, t->gate, n->x, y->ffn, D, false);
    fixed(n, y, F_UP, t->up, n->x, y->ffn, D, false);
    if (inner && !y->v[N_POST_FFN])
        return;
    n->op->glu(n->pool, n->wide, t->gate, t->up, hp->act, (size_t)n->n * (size_t)y->ffn);
    const void *gamma = y->v[N_POST_FFN];
    fixed(n, y, F_DOWN, gamma ? t->y_ffn : n->h, n->wide, D, y->ffn, !gamma);
    if (gamma)
        add_normed(n, gamma, t->y_ffn);
}

/* inner: only the tape is wanted, not what the layer gives. */
void heal_layer_forward(struct heal_net *n, int l, bool inner)
{
    const struct heal_layer *y = &n->layer[l];
    const struct grad_ops *op = n->op;
    const struct model_hparams *hp = &n->model->hp;
    struct heal_tape *t = &n->tape[l];
    int D = hp->hidden;
    op->move(n->pool, inner ? n->h : t->h_in, D, inner ? t->h_in : n->h, D, D, n->n, false);
    op->norm(n->pool, n->x, n->h, y->v[N_ATTN], hp->rms_eps, n->n, D);
    if (y->normed)
        project_normed(n, y, t);
    else
        project(n, y, t);
    turn(n, y, t->q, t->ckr, false);
    rebuild_kv(n, y, t);
    struct grad_attn a = attention(n, y, t);
    op->attn(n->pool, &a);
    const void *gamma = y->v[N_POST_ATTN];
    void *out = gamma ? t->y_att : n->h;
    linear(n, out, t->att, y->t[HEAL_O]->w, D, hp->n_head * y->V, !gamma);
    if (y->v[N_O_BIAS])
        op->add_bias(n->pool, out, y->v[N_O_BIAS], n->n, D);
    if (gamma)
        add_normed(n, gamma, t->y_att);
    op->move(n->pool, t->h_mid, D, n->h, D, D, n->n, false);
    feed_forward(n, l, t, inner);
}

/* The gradient of what was added to h: dh itself, or through its norm into n->x. */
static const void *added_back(struct heal_net *n, const void *gamma, const void *kept)
{
    if (!gamma)
        return n->dh;
    n->op->norm_back(n->pool, n->x, n->dh, kept, gamma, n->model->hp.rms_eps, n->n,
                     n->model->hp.hidden, false);
    return n->x;
}

static void feed_forward_back(struct heal_net *n, int l, struct heal_tape *t)
{
    const struct heal_layer *y = &n->layer[l];
    const struct grad_ops *op = n->op;
    const struct model_hparams *hp = &n->model->hp;
    int D = hp->hidden;
    bool more = y->ffn > 0;
    if (more) {
        const void *dy = added_back(n, y->v[N_POST_FFN], t->y_ffn);
        fixed_back(n, y, F_DOWN, n->wide, dy, D, y->ffn, false);
        op->glu_back(n->pool, n->wide2, n->wide3, n->wide, t->gate, t->up, hp->act,
                     (size_t)n->n * (size_t)y->ffn);
        fixed_back(n, y, F_GATE, n->dx, n->wide2, y->ffn, D, false);
        fixed_back(n, y, F_UP, n->dx, n->wide3, y->ffn, D, true);
    }
    if (y->expert) {
        if (!more) /* start from nothing */
            memset(n->dx, 0, (size_t)n->n * (size_t)D * op->size);
        heal_experts_back(n, l, t);
    }
    op->norm_back(n->pool, n->dh, n->dx, t->h_mid, y->v[N_FFN], hp->rms_eps, n->n, D, true);
}

/* dq and dckr (before the rotation) → n->dx, and the gradients of q and kv_a. */
static void project_back(struct heal_net *n, const struct heal_layer *y, struct heal_tape *t)
{
    int D = n->model->hp.hidden, wide = query_width(n, y), width = y->r + y->R;
    n->op->norm(n->pool, n->x, t->h_in, y->v[N_ATTN], n->model->hp.rms_eps, n->n, D);
    weight_back(n, y->t[HEAL_Q], n->dq, wide, n->x, D);
    weight_back(n, y->t[HEAL_KV_A], n->dckr, width, n->x, D);
    linear_back(n, n->dx, n->dq, y->t[HEAL_Q]->w, wide, D, false);
    linear_back(n, n->dx, n->dckr, y->t[HEAL_KV_A]->w, width, D, true);
}

/* The rope rows of each head and what they give back to it. */
static void rope_query_back(struct heal_net *n, const struct heal_layer *y, struct heal_tape *t)
{
    const struct heal_tensor *q = y->t[HEAL_Q];
    int H = n->model->hp.n_head, d = n->model->hp.head_dim, R = y->R, dk = y->P + R;
    for (int h = 0; h < H && R; h++) {
        void *dq = number(n, n->dq, (size_t)(h * dk));
        const void *dr = number(n, dq, (size_t)d);
        size_t part = (size_t)h * (size_t)(R * d);
        if (q->trained)
            n->op->gemm(n->pool, true, false, R, d, n->n, 1, dr, H * dk,
                        number(n, t->q, (size_t)(h * dk)), H * dk, 1, number(n, q->g, part), d);
        n->op->gemm(n->pool, false, false, n->n, d, R, 1, dr, H * dk, number(n, q->w, part), d, 1,
                    dq, H * dk);
    }
}

static void project_normed_back(struct heal_net *n, const struct heal_layer *y, struct heal_tape *t)
{
    const struct grad_ops *op = n->op;
    const struct model_hparams *hp = &n->model->hp;
    int D = hp->hidden, H = hp->n_head, G = hp->n_kv_head, d = hp->head_dim, kd = G * d;
    int width = y->r + y->R;
    rope_query_back(n, y, t);
    op->move(n->pool, n->wide2, d, n->dq, y->P + y->R, d, n->n * H, false);
    op->norm_back(n->pool, n->wide2, n->wide2, t->q0, y->v[N_Q], hp->rms_eps, n->n * H, d, false);
    linear_back(n, n->dx, n->wide2, y->f[F_WQ], H * d, D, false);
    weight_back(n, y->t[HEAL_KV_A], n->dckr, width, t->z, 2 * kd);
    linear_back(n, n->wide, n->dckr, y->t[HEAL_KV_A]->w, width, 2 * kd, false);
    op->move(n->pool, n->wide2, kd, n->wide, 2 * kd, kd, n->n, false);
    op->norm_back(n->pool, n->wide2, n->wide2, t->k0, y->v[N_K], hp->rms_eps, n->n * G, d, false);
    linear_back(n, n->dx, n->wide2, y->f[F_WK], kd, D, true);
    op->move(n->pool, n->wide2, kd, number(n, n->wide, (size_t)kd), 2 * kd, kd, n->n, false);
    linear_back(n, n->dx, n->wide2, y->f[F_WV], kd, D, true);
}

void heal_layer_back(struct heal_net *n, int l)
{
    const struct heal_layer *y = &n->layer[l];
    const struct grad_ops *op = n->op;
    const struct model_hparams *hp = &n->model->hp;
    struct heal_tape *t = &n->tape[l];
    int D = hp->hidden, HV = hp->n_head * y->V, kv = hp->n_head * (y->P + y->V);
    int width = y->r + y->R;
    feed_forward_back(n, l, t);
    const void *dy = added_back(n, y->v[N_POST_ATTN], t->y_att);
    weight_back(n, y->t[HEAL_O], dy, D, t->att, HV);
    linear_back(n, n->datt, dy, y->t[HEAL_O]->w, D, HV, false);
    rebuild_kv(n, y, t);
    struct grad_attn a = attention(n, y, t);
    op->attn_back(n->pool, &a);
    weight_back(n, y->t[HEAL_KV_B], n->dkv, kv, t->ckr, width);
    op->gemm(n->pool, false, false, n->n, y->r, kv, 1, n->dkv, kv, y->t[HEAL_KV_B]->w, y->r, 0,
             n->dckr, width);
    turn(n, y, n->dq, n->dckr, true);
    if (y->normed) /* its rope rows take the query as it was: nothing before them turns */
        project_normed_back(n, y, t);
    else
        project_back(n, y, t);
    op->norm_back(n->pool, n->dh, n->dx, t->h_in, y->v[N_ATTN], hp->rms_eps, n->n, D, true);
}
