/* The net: weights in the precision of training, memory for one batch, the passes over all layers,
 * and the loss in blocks of rows. Refuses models whose attention is not converted. */
#include "sessions/forward.h"
#include "sessions/heal_net.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/pool.h"

#define FROZEN_BYTES 2.2 /* a number of the way back: a Q8_0 block, and the same packed */
#define LOGIT_NUMBERS ((size_t)12 << 20) /* of a block of logits: 48 MiB in fp32, twice */

const char *const heal_part_names[HEAL_PARTS] = {"q", "kv_a", "kv_b", "o"};

int heal_parts_parse(const char *list, unsigned *parts, struct err *e)
{
    *parts = 0;
    for (const char *s = list; *s;) {
        size_t n = strcspn(s, ",");
        int part = 0;
        while (part < HEAL_PARTS &&
               (strlen(heal_part_names[part]) != n || strncmp(heal_part_names[part], s, n)))
            part++;
        if (part == HEAL_PARTS)
            return err_set(e, ERR_ARG, "train takes some of kv_b,q,o,kv_a, not \"%.40s\"", s);
        *parts |= 1u << part;
        s += n + (s[n] == ',');
    }
    return *parts ? OK : err_set(e, ERR_ARG, "train takes some of kv_b,q,o,kv_a");
}

static const struct tensor *part_tensor(const struct model_layer *y, enum heal_part part)
{
    const struct tensor *all[HEAL_PARTS] = {y->q_rope.data ? &y->q_rope : &y->q, &y->kv_a, &y->kv_b,
                                            &y->o};
    return all[part];
}

/* --- weights ------------------------------------------------------------------------------ */

/* The tensor's numbers in op's precision; absent: NULL. */
static int load(const struct grad_ops *op, const struct tensor *t, void **out, struct err *e)
{
    float *f;
    *out = NULL;
    if (!t->data)
        return OK;
    size_t n = tensor_elements(t);
    int rc = tensor_to_f32(t, &f, e);
    if (rc)
        return rc;
    if (op->size == sizeof *f) {
        *out = f;
        return OK;
    }
    *out = mem_aligned(n, op->size);
    if (*out)
        op->from_f32(*out, f, n);
    free(f);
    return *out ? OK : err_nomem(e, n * op->size, "weights to heal");
}

static int load_trained(struct heal_net *n, int l, unsigned parts, struct err *e)
{
    struct heal_layer *y = &n->layer[l];
    int rc = OK;
    for (int part = 0; part < HEAL_PARTS && !rc; part++) {
        struct heal_tensor *t = &n->tensor[l * HEAL_PARTS + part];
        const struct tensor *from = part_tensor(y->y, part);
        y->t[part] = t;
        *t = (struct heal_tensor){.layer = l,
                                  .part = part,
                                  .rows = from->dim[0],
                                  .cols = from->dim[1],
                                  .trained = parts >> part & 1};
        rc = load(n->op, from, &t->w, e);
        if (!rc && t->trained && !(t->g = mem_aligned(t->rows * t->cols, n->op->size)))
            rc = err_nomem(e, t->rows * t->cols * n->op->size, "gradients");
    }
    return rc;
}

static int load_experts(struct heal_net *n, struct heal_layer *y, struct err *e)
{
    size_t parts = (size_t)n->model->hp.moe.n * EXPERT_PARTS;
    int rc = OK;
    y->expert = mem_calloc(parts, sizeof *y->expert);
    if (!y->expert)
        return err_nomem(e, parts * sizeof *y->expert, "experts");
    for (size_t i = 0; i < parts && !rc; i++)
        rc = load(n->op, &y->y->expert[i], &y->expert[i], e);
    if (!rc && y->y->router_bias.data)
        rc = tensor_to_f32(&y->y->router_bias, &y->router_bias, e);
    return rc;
}

static int load_layer(struct heal_net *n, int l, unsigned parts, const struct engine *engine,
                      struct err *e)
{
    const struct model_layer *m = &n->model->layer[l];
    const struct model_hparams *hp = &n->model->hp;
    struct heal_layer *y = &n->layer[l];
    if (m->attn != ATTN_MLA || m->q_a.data || m->kv_a_norm.data)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: layer %d was not converted by this program: convert first", hp->name,
                       l);
    if (m->gate_bias.data || m->up_bias.data || m->down_bias.data)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: layer %d has feed-forward biases, which healing does not know",
                       hp->name, l);
    *y = (struct heal_layer){.y = m,
                             .P = m->qk_nope_head_dim,
                             .R = m->qk_rope_head_dim,
                             .V = m->v_head_dim,
                             .r = m->kv_lora_rank,
                             .normed = m->q_rope.data != NULL,
                             .ffn = !m->gate.data ? 0
                                    : m->expert   ? hp->moe.shared_ffn
                                                  : hp->ffn};
    const struct tensor *v[N_VECTORS] = {
        [N_ATTN] = &m->attn_norm,
        [N_FFN] = &m->ffn_norm,
        [N_POST_ATTN] = &m->post_attn_norm,
        [N_POST_FFN] = &m->post_ffn_norm,
        [N_Q] = &m->q_norm,
        [N_K] = &m->k_norm,
        [N_Q_BIAS] = &m->q_bias,
        [N_KV_A_BIAS] = &m->kv_a_bias,
        [N_O_BIAS] = &m->o_bias,
    };
    static const struct tensor none;
    const struct tensor *f[F_COUNT] = {&m->gate,
                                       &m->up,
                                       &m->down,
                                       &m->router,
                                       y->normed ? &m->q : &none,
                                       y->normed ? &m->k : &none,
                                       y->normed ? &m->v : &none};
    bool own_down = engine && m->down.data != engine->model->layer[l].down.data;
    int rc = load_trained(n, l, parts, e);
    for (int i = 0; i < N_VECTORS && !rc; i++)
        rc = load(n->op, v[i], &y->v[i], e);
    static const int slot[F_COUNT] = {W_GATE, W_UP, W_DOWN, W_COUNT, W_COUNT, W_COUNT, W_COUNT};
    for (int i = 0; i < F_COUNT && !rc; i++)
        rc = slot[i] < W_COUNT && engine && heal_frozen_can(f[i])
                 ? heal_frozen_init(&y->frozen[i], engine->backend,
                                    i == F_DOWN && own_down ? NULL : engine->layer[l].w[slot[i]],
                                    f[i], e)
                 : load(n->op, f[i], &y->f[i], e);
    if (!rc && m->expert)
        rc = load_experts(n, y, e);
    return rc;
}

/* Turns of every position: the same for every sequence. */
static int rope_tables(struct heal_net *n, struct heal_layer *y, struct err *e)
{
    int half = y->R / 2;
    const struct model_hparams *hp = &n->model->hp;
    double magnitude = hp->rope_magnitude > 0 && !y->y->no_rope ? hp->rope_magnitude : 1;
    size_t size = (size_t)n->longest * (size_t)(half ? half : 1);
    y->cos = mem_aligned(size, n->op->size);
    y->sin = mem_aligned(size, n->op->size);
    if (!y->cos || !y->sin)
        return err_nomem(e, size * n->op->size, "rope tables");
    for (int t = 0; t < n->longest; t++)
        for (int j = 0; j < half; j++) {
            double a = t * y->y->rope_freq[j];
            n->op->set(y->cos, (size_t)(t * half + j), magnitude * cos(a));
            n->op->set(y->sin, (size_t)(t * half + j), magnitude * sin(a));
        }
    return OK;
}

/* --- memory of a batch -------------------------------------------------------------------- */

/* Numbers a row that a layer's tape holds; *shared: without its input. */
struct tape_width {
    size_t h, q, ckr, att, y_att, y_ffn, gate, q0, z, k0, scores, experts;
};

static struct tape_width tape_width(const struct model *m, int l)
{
    const struct model_hparams *hp = &m->hp;
    const struct model_layer *y = &m->layer[l];
    size_t H = (size_t)hp->n_head, D = (size_t)hp->hidden;
    size_t kd = (size_t)hp->n_kv_head * (size_t)hp->head_dim;
    bool normed = y->q_rope.data;
    return (struct tape_width){
        .h = D,
        .q = H * (size_t)(y->qk_nope_head_dim + y->qk_rope_head_dim),
        .ckr = (size_t)(y->kv_lora_rank + y->qk_rope_head_dim),
        .att = H * (size_t)y->v_head_dim,
        .y_att = y->post_attn_norm.data ? D : 0,
        .y_ffn = y->post_ffn_norm.data ? D : 0,
        .gate = !y->gate.data ? 0 : (size_t)(y->expert ? hp->moe.shared_ffn : hp->ffn),
        .q0 = normed ? H * (size_t)hp->head_dim : 0,
        .z = normed ? 2 * kd : 0,
        .k0 = normed ? kd : 0,
        .scores = y->expert ? (size_t)hp->moe.n : 0,
        .experts = y->expert ? (size_t)hp->moe.used * (size_t)hp->moe.ffn : 0,
    };
}

static size_t tape_numbers(const struct model *m, int l)
{
    struct tape_width w = tape_width(m, l);
    return 2 * w.h + w.q + w.ckr + w.att + w.y_att + w.y_ffn + 2 * w.gate + w.q0 + w.z + w.k0 +
           w.scores + 2 * w.experts;
}

static double tapes_bytes(const struct model *m, const struct heal_net_options *o)
{
    double sum = 0;
    for (int l = 0; l < m->hp.n_layer; l++)
        sum += (double)tape_numbers(m, l);
    return sum * o->rows * (double)o->op->size;
}

static void *room(const struct heal_net *n, size_t width, bool *ok)
{
    size_t size;
    if (!width)
        return NULL;
    void *p = size_mul((size_t)n->rows, width, &size) ? mem_aligned(size, n->op->size) : NULL;
    *ok = *ok && p;
    return p;
}

/* Where tapes are not kept, all layers share the first one's memory beside their inputs. */
static bool tape_init(struct heal_net *n, int l)
{
    struct heal_tape *t = &n->tape[l];
    struct tape_width w = tape_width(n->model, l);
    bool ok = true;
    if (l && !n->keep)
        *t = n->tape[0];
    t->h_in = room(n, w.h, &ok);
    if (l && !n->keep)
        return ok;
    for (int k = 0; !n->keep && k < n->model->hp.n_layer; k++) { /* of the widest layer */
        struct tape_width o = tape_width(n->model, k);
        size_t *a = (size_t *)&w;
        const size_t *b = (const size_t *)&o;
        for (size_t i = 0; i < sizeof w / sizeof *a; i++)
            a[i] = a[i] > b[i] ? a[i] : b[i];
    }
    t->h_mid = room(n, w.h, &ok);
    t->q = room(n, w.q, &ok);
    t->ckr = room(n, w.ckr, &ok);
    t->att = room(n, w.att, &ok);
    t->y_att = room(n, w.y_att, &ok);
    t->y_ffn = room(n, w.y_ffn, &ok);
    t->gate = room(n, w.gate, &ok);
    t->up = room(n, w.gate, &ok);
    t->q0 = room(n, w.q0, &ok);
    t->z = room(n, w.z, &ok);
    t->k0 = room(n, w.k0, &ok);
    t->scores = room(n, w.scores, &ok);
    t->e_gate = room(n, w.experts, &ok);
    t->e_up = room(n, w.experts, &ok);
    if (w.experts)
        t->choice = mem_calloc((size_t)n->rows * (size_t)n->model->hp.moe.used, sizeof(int));
    return ok && (!w.experts || t->choice);
}

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Work space that all layers share, in numbers a row. */
struct work_width {
    size_t kv, q, ckr, dkr, att, wide;
};

static struct work_width work_width(const struct model *m)
{
    const struct model_hparams *hp = &m->hp;
    struct work_width x = {0};
    for (int l = 0; l < hp->n_layer; l++) {
        const struct model_layer *y = &m->layer[l];
        struct tape_width t = tape_width(m, l);
        size_t H = (size_t)hp->n_head;
        x.kv = largest(x.kv, H * (size_t)(y->qk_nope_head_dim + y->v_head_dim));
        x.q = largest(x.q, t.q);
        x.ckr = largest(x.ckr, t.ckr);
        x.dkr = largest(x.dkr, H * (size_t)y->qk_rope_head_dim);
        x.att = largest(x.att, t.att);
        x.wide = largest(x.wide, largest(largest(t.gate, t.experts), largest(t.q0, t.z)));
    }
    return x;
}

static int work_init(struct heal_net *n, struct err *e)
{
    const struct model_hparams *hp = &n->model->hp;
    struct work_width w = work_width(n->model);
    size_t D = (size_t)hp->hidden, V = (size_t)hp->vocab, fit = LOGIT_NUMBERS / V;
    bool ok = true;
    void **rows[] = {&n->h, &n->dh, &n->x, &n->dx};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        *rows[i] = room(n, D, &ok);
    n->kv = room(n, w.kv, &ok);
    n->dkv = room(n, w.kv, &ok);
    n->dq = room(n, w.q, &ok);
    n->dckr = room(n, w.ckr, &ok);
    n->dkr = room(n, w.dkr, &ok);
    n->datt = room(n, w.att, &ok);
    n->wide = room(n, w.wide, &ok);
    n->wide2 = room(n, w.wide, &ok);
    n->wide3 = room(n, w.wide, &ok);
    n->block = fit < 16 ? 16 : fit > 256 ? 256 : (int)fit;
    n->block = n->block > n->rows ? n->rows : n->block;
    n->logits = mem_aligned((size_t)n->block * V, n->op->size);
    n->teacher = mem_aligned((size_t)n->block * V, sizeof *n->teacher);
    n->kl = mem_calloc((size_t)n->block, sizeof *n->kl);
    n->nll = mem_calloc((size_t)n->block, sizeof *n->nll);
    const int one[] = {0, n->longest};
    struct grad_attn a = {.start = one, .n_seq = 1};
    n->scratch =
        mem_aligned(grad_attn_scratch(&a, n->pool ? pool_threads(n->pool) : 1), n->op->size);
    for (int l = 0; l < hp->n_layer && ok; l++)
        ok = tape_init(n, l);
    if (ok && n->logits && n->teacher && n->kl && n->nll && n->scratch)
        return OK;
    return err_nomem(e, (size_t)n->rows * (D + 3 * w.wide) * n->op->size,
                     "healing's activations: fewer tokens a step take less");
}

double heal_net_bytes(const struct model *m, const struct heal_net_options *o)
{
    struct work_width w = work_width(m);
    double numbers = 0, tapes = tapes_bytes(m, o), size = (double)o->op->size, fixed;
    for (int l = 0; l < m->hp.n_layer; l++) {
        const struct model_layer *y = &m->layer[l];
        for (int i = 0; i < HEAL_PARTS; i++)
            numbers += (o->parts >> i & 1 ? 2.0 : 1.0) *
                       (double)tensor_elements(part_tensor(y, (enum heal_part)i));
        fixed = 3.0 * (double)(y->gate.data ? tensor_elements(&y->gate) : 0);
        numbers += o->engine ? fixed * FROZEN_BYTES / size : fixed;
        for (int i = 0; y->expert && i < m->hp.moe.n * EXPERT_PARTS; i++)
            numbers += (double)tensor_elements(&y->expert[i]);
    }
    fixed = (double)tensor_elements(&m->head);
    numbers += o->engine ? fixed * FROZEN_BYTES / size : fixed;
    numbers += (double)o->rows * (double)(4 * (size_t)m->hp.hidden + 2 * w.kv + w.q + w.ckr +
                                          w.dkr + w.att + 3 * w.wide);
    if (tapes > (double)o->tape_bytes)
        tapes = (double)o->rows * m->hp.hidden * m->hp.n_layer * size;
    return numbers * size + tapes + (double)LOGIT_NUMBERS * (size + sizeof(float));
}

int heal_net_new(struct heal_net **out, const struct model *m, const struct heal_net_options *o,
                 struct err *e)
{
    size_t L = (size_t)m->hp.n_layer;
    struct heal_net *n = mem_calloc(1, sizeof *n);
    *out = NULL;
    if (!n)
        return err_nomem(e, sizeof *n, "a net to heal");
    n->model = m;
    n->op = o->op;
    n->pool = o->pool;
    n->rows = o->rows;
    n->longest = o->longest;
    n->keep = tapes_bytes(m, o) <= (double)o->tape_bytes;
    n->layer = mem_calloc(L, sizeof *n->layer);
    n->tensor = mem_calloc(L * HEAL_PARTS, sizeof *n->tensor);
    n->tape = mem_calloc(L, sizeof *n->tape);
    int rc = n->layer && n->tensor && n->tape ? OK : err_nomem(e, L * sizeof *n->layer, "layers");
    for (int l = 0; l < (int)L && !rc; l++) {
        rc = load_layer(n, l, o->parts, o->engine, e);
        if (!rc)
            rc = rope_tables(n, &n->layer[l], e);
    }
    if (!rc)
        rc = load(n->op, &m->final_norm, &n->final_norm, e);
    if (!rc)
        rc = o->engine && heal_frozen_can(&m->head)
                 ? heal_frozen_init(&n->frozen_head, o->engine->backend, o->engine->head, &m->head,
                                    e)
                 : load(n->op, &m->head, &n->head, e);
    if (!rc)
        rc = work_init(n, e);
    if (rc) {
        heal_net_free(n);
        return rc;
    }
    *out = n;
    return OK;
}

static void tape_done(struct heal_tape *t, bool input_only)
{
    void *all[] = {t->h_mid, t->q, t->ckr, t->att,    t->y_att,  t->y_ffn, t->gate,  t->up,
                   t->q0,    t->z, t->k0,  t->scores, t->e_gate, t->e_up,  t->choice};
    free(t->h_in);
    for (size_t i = 0; !input_only && i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void layer_done(const struct heal_net *n, struct heal_layer *y)
{
    for (int i = 0; i < N_VECTORS; i++)
        free(y->v[i]);
    for (int i = 0; i < F_COUNT; i++)
        free(y->f[i]);
    for (int i = 0; i < F_COUNT; i++)
        heal_frozen_done(&y->frozen[i]);
    for (int i = 0; y->expert && i < n->model->hp.moe.n * EXPERT_PARTS; i++)
        free(y->expert[i]);
    free(y->expert);
    free(y->router_bias);
    free(y->cos);
    free(y->sin);
}

void heal_net_free(struct heal_net *n)
{
    if (!n)
        return;
    for (int l = 0; l < n->model->hp.n_layer; l++) {
        if (n->layer)
            layer_done(n, &n->layer[l]);
        if (n->tape)
            tape_done(&n->tape[l], l && !n->keep);
        for (int i = 0; n->tensor && i < HEAL_PARTS; i++) {
            free(n->tensor[l * HEAL_PARTS + i].w);
            free(n->tensor[l * HEAL_PARTS + i].g);
        }
    }
    heal_frozen_done(&n->frozen_head);
    void *all[] = {n->layer,  n->tensor,  n->tape,    n->final_norm, n->head,  n->h,
                   n->dh,     n->x,       n->dx,      n->kv,         n->dkv,   n->dq,
                   n->dckr,   n->dkr,     n->datt,    n->wide,       n->wide2, n->wide3,
                   n->logits, n->scratch, n->teacher, n->kl,         n->nll};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(n);
}

int heal_net_count(const struct heal_net *n)
{
    return n->model->hp.n_layer * HEAL_PARTS;
}

void heal_net_zero(struct heal_net *n)
{
    for (int i = 0; i < heal_net_count(n); i++)
        if (n->tensor[i].g)
            memset(n->tensor[i].g, 0, n->tensor[i].rows * n->tensor[i].cols * n->op->size);
}

/* --- passes ------------------------------------------------------------------------------- */

static void *row_at(const struct heal_net *n, const void *p, int row)
{
    return (char *)(uintptr_t)p + (size_t)row * (size_t)n->model->hp.hidden * n->op->size;
}

static int embed(struct heal_net *n, const int32_t *ids, struct err *e)
{
    const struct model_hparams *hp = &n->model->hp;
    float *row = mem_calloc((size_t)hp->hidden, sizeof *row), scale = (float)hp->embed_scale;
    if (!row)
        return err_nomem(e, (size_t)hp->hidden * sizeof *row, "an embedding");
    for (int t = 0; t < n->n; t++) {
        if (ids[t] < 0 || ids[t] >= hp->vocab) {
            free(row);
            return err_set(e, ERR_ARG, "token id %d is outside the vocabulary of %d", ids[t],
                           hp->vocab);
        }
        tensor_row_f32(&n->model->embed, (size_t)ids[t], row);
        for (int i = 0; hp->embed_scale > 0 && i < hp->hidden; i++)
            row[i] *= scale;
        n->op->from_f32(row_at(n, n->h, t), row, (size_t)hp->hidden);
    }
    free(row);
    return OK;
}

static int check_memory(struct heal_net *n, struct err *e)
{
    return n->failed ? err_nomem(e, (size_t)n->n * sizeof(double), "experts to heal") : OK;
}

static int ask(const struct heal_net *n, struct err *e)
{
    return n->go_on && !n->go_on(n->go_on_user) ? err_set(e, ERR_CANCELLED, "healing stopped") : OK;
}

int heal_net_forward(struct heal_net *n, const int32_t *ids, const int *start, int n_seq,
                     struct err *e)
{
    n->start = start;
    n->n_seq = n_seq;
    n->n = start[n_seq];
    if (n->n < 1 || n->n > n->rows)
        return err_set(e, ERR_ARG, "%d rows for a net with room for %d", n->n, n->rows);
    for (int i = 0; i < n_seq; i++)
        if (start[i + 1] - start[i] > n->longest || start[i + 1] <= start[i])
            return err_set(e, ERR_ARG, "a sequence of %d tokens: 1 to %d", start[i + 1] - start[i],
                           n->longest);
    int rc = embed(n, ids, e);
    for (int l = 0; l < n->model->hp.n_layer && !rc; l++)
        if ((rc = ask(n, e)) == OK)
            heal_layer_forward(n, l, false);
    return rc ? rc : check_memory(n, e);
}

/* Rows first … first+rows−1: losses, and their gradient into dh. */
static int loss_block(struct heal_net *n, const struct heal_target *t, int first, int rows,
                      bool back, struct heal_loss *out, struct err *e)
{
    const struct model_hparams *hp = &n->model->hp;
    const struct grad_ops *op = n->op;
    int D = hp->hidden, V = hp->vocab;
    void *h = row_at(n, n->h, first);
    int rc = t->logits(t->user, first, rows, n->teacher, e);
    if (rc)
        return rc;
    op->norm(n->pool, n->x, h, n->final_norm, hp->rms_eps, rows, D);
    if (n->frozen_head.b)
        heal_frozen_apply(&n->frozen_head, n->logits, n->x, rows, false);
    else
        op->gemm(n->pool, false, true, rows, V, D, 1, n->x, D, n->head, D, 0, n->logits, V);
    struct grad_kl a = {.rows = rows,
                        .V = V,
                        .teacher = n->teacher,
                        .student = n->logits,
                        .softcap = hp->logit_softcap,
                        .mix = t->mix,
                        .weight = back ? t->weight : 0,
                        .target = t->next ? t->next + first : NULL,
                        .kl = n->kl,
                        .nll = n->nll};
    op->kl(n->pool, &a);
    for (int i = 0; i < rows; i++) {
        out->kl += n->kl[i];
        out->rows++;
        bool both = a.target && a.target[i] >= 0;
        out->objective +=
            t->weight * (both ? (1 - t->mix) * n->kl[i] + t->mix * n->nll[i] : n->kl[i]);
        if (both) {
            out->nll += n->nll[i];
            out->nll_rows++;
        }
    }
    if (!back)
        return OK;
    if (n->frozen_head.b)
        heal_frozen_back(&n->frozen_head, n->x, n->logits, rows, false);
    else
        op->gemm(n->pool, false, false, rows, D, V, 1, n->logits, V, n->head, D, 0, n->x, D);
    op->norm_back(n->pool, row_at(n, n->dh, first), n->x, h, n->final_norm, hp->rms_eps, rows, D,
                  false);
    return OK;
}

/* The output of layer l against the teacher's, relative to its size: the loss added is
 * match·|h − t|² / |t|² of the batch, averaged over layers and weighted as its rows are. */
static double match_layer(struct heal_net *n, const struct heal_target *t, int l)
{
    int L = n->model->hp.n_layer;
    size_t size = (size_t)n->n * (size_t)n->model->hp.hidden;
    double sum = 0;
    for (size_t i = 0; i < size; i++)
        sum += (double)t->outputs[l][i] * t->outputs[l][i];
    double weight = 2 * t->match * t->weight * n->n / (L * (sum > 0 ? sum : 1));
    return n->op->match(n->pool, n->dh, l + 1 < L ? n->tape[l + 1].h_in : n->h, t->outputs[l],
                        weight, size);
}

int heal_net_loss(struct heal_net *n, const struct heal_target *t, bool back, struct heal_loss *out,
                  struct err *e)
{
    int rc = OK;
    for (int first = 0; first < n->n && !rc; first += n->block) {
        int rows = n->n - first < n->block ? n->n - first : n->block;
        rc = ask(n, e);
        if (!rc)
            rc = loss_block(n, t, first, rows, back, out, e);
    }
    for (int l = n->model->hp.n_layer - 1; l >= 0 && back && !rc; l--) {
        if ((rc = ask(n, e)) != OK)
            break;
        if (t->outputs && t->match > 0)
            out->objective += match_layer(n, t, l);
        if (!n->keep)
            heal_layer_forward(n, l, true);
        heal_layer_back(n, l);
    }
    return rc ? rc : check_memory(n, e);
}
