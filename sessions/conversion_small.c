/* A conversion's attention for running fast: fewer bytes a token than the matrices as solved. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "sessions/conversion.h"

/* The numbers f[n] as type in fresh memory, t's from now on. */
static int become(struct tensor *t, const float *f, enum dtype type, void **data, struct err *e)
{
    size_t n = tensor_elements(t);
    *data = mem_aligned(dtype_bytes(type, n), 1);
    if (!*data)
        return err_nomem(e, dtype_bytes(type, n), "rounded attention weights");
    dtype_from_f32(type, f, *data, n);
    t->data = *data;
    t->dtype = type;
    return OK;
}

/* t's numbers as type, owned by *data; t itself when its rows do not fit the type's blocks. */
static int round_tensor(struct tensor *t, enum dtype type, void **data, struct err *e)
{
    float *f;
    if (t->dim[t->rank - 1] % (size_t)dtype_traits(type)->block)
        return OK;
    int rc = tensor_to_f32(t, &f, e);
    if (rc)
        return rc;
    rc = become(t, f, type, data, e);
    free(f);
    return rc;
}

/* A layer's query [H·(d+R)][D] against the original's [H·d][D]. */
struct queries {
    float *made, *original;
    int H, d, R, D;
    double factor;            /* the nope rows are the original's, times this */
    float *rope;              /* [H·R][d] */
    double *W, *rows, *G, *X; /* of a head: original [d][D]; rope rows [R][D]; [d][d]; [d][R] */
};

static void queries_done(struct queries *q)
{
    free(q->made);
    free(q->original);
    free(q->rope);
    free(q->W);
}

static int queries_init(struct queries *q, const struct tensor *made, const struct tensor *original,
                        struct err *e)
{
    size_t d = (size_t)q->d, R = (size_t)q->R, D = (size_t)q->D;
    size_t n = d * D + R * D + d * d + d * R;
    int rc = tensor_to_f32(made, &q->made, e);
    if (!rc)
        rc = tensor_to_f32(original, &q->original, e);
    if (rc)
        return rc;
    q->rope = mem_calloc((size_t)q->H * R * d, sizeof *q->rope);
    q->W = mem_calloc(n, sizeof *q->W);
    if (!q->rope || !q->W)
        return err_nomem(e, n * sizeof *q->W, "queries");
    q->rows = q->W + d * D;
    q->G = q->rows + R * D;
    q->X = q->G + d * d;
    return OK;
}

/* Reads head h; whether its nope rows are the original's to fp32's rounding (healing changes them).
 */
static bool read_head(struct queries *q, int h)
{
    size_t n = (size_t)q->d * (size_t)q->D, m = (size_t)q->R * (size_t)q->D;
    const float *made = q->made + (size_t)h * (n + m), *original = q->original + (size_t)h * n;
    for (size_t i = 0; i < n; i++) {
        q->W[i] = q->factor * (double)original[i];
        if (fabs((double)made[i] - q->W[i]) > 1e-6 * fabs(q->W[i]))
            return false;
    }
    for (size_t i = 0; i < m; i++)
        q->rows[i] = (double)made[n + i];
    return true;
}

/* Of a row's largest number: what fp32 leaves of zeros when they are solved for, and far less than
 * F16 rounds off. Rope rows read two numbers of a head, and kernels make use of it. */
#define NOTHING 1e-4

/* X [R][d] for which the rope rows of the head that was read are X·W, by least squares; *left: what
 * is not, of their energy. */
static int rope_of_head(struct queries *q, int h, double *left, struct err *e)
{
    int d = q->d, R = q->R, D = q->D;
    linalg_dgemm(NULL, false, true, d, d, D, 1, q->W, D, q->W, D, 0, q->G, d);
    linalg_dgemm(NULL, false, true, d, R, D, 1, q->W, D, q->rows, D, 0, q->X, R);
    int rc = linalg_solve_spd(d, R, q->G, q->X, e);
    if (rc)
        return rc;
    float *to = q->rope + (size_t)h * (size_t)(R * d);
    for (int a = 0; a < R; a++) {
        double top = 0;
        for (int i = 0; i < d; i++)
            top = fmax(top, fabs(q->X[i * R + a]));
        for (int i = 0; i < d; i++) {
            q->X[i * R + a] = fabs(q->X[i * R + a]) > NOTHING * top ? q->X[i * R + a] : 0;
            to[a * d + i] = (float)q->X[i * R + a];
        }
    }
    double off = 0, all = 0;
    for (int i = 0; i < R * D; i++)
        all += q->rows[i] * q->rows[i];
    linalg_dgemm(NULL, true, false, R, D, d, -1, q->X, R, q->W, D, 1, q->rows, D);
    for (int i = 0; i < R * D; i++)
        off += q->rows[i] * q->rows[i];
    *left = all > 0 ? off / all : 0;
    return OK;
}

/* What fp32 leaves of rows that were made as X·W: (2⁻²⁴)² times the condition of W's rows, which a
 * trained model keeps far below this. */
#define ROWS_FOLLOW 1e-9

/* Where the queries are the original's and their rope rows follow from them head by head (as
 * solved, not healed), the original's own matrix and a small one a head take the place of q: the
 * form that layers with normed heads have. Leaves *y alone otherwise. */
static int use_original_queries(const struct conversion *c, int l, struct model_layer *y,
                                void **data, struct err *e)
{
    const struct model_layer *b = &c->base->layer[l];
    struct queries q = {.H = c->base->hp.n_head,
                        .d = y->qk_nope_head_dim,
                        .R = y->qk_rope_head_dim,
                        .D = c->base->hp.hidden,
                        .factor = b->attn_scale / y->attn_scale};
    struct tensor rope = {.dtype = DTYPE_F32, .rank = 2, .dim = {(size_t)(q.H * q.R), (size_t)q.d}};
    size_t whole = tensor_elements(&y->q), heads = rope.dim[0] * rope.dim[1];
    if (!q.R || y->q_bias.data || b->q_bias.data || y->q_a.data || q.d != c->base->hp.head_dim ||
        tensor_bytes(&b->q) + dtype_bytes(DTYPE_F16, heads) >=
            dtype_bytes(DTYPE_Q8_0, whole / 32 * 32))
        return OK;
    double left = 0;
    int rc = queries_init(&q, &y->q, &b->q, e);
    bool follows = !rc;
    for (int h = 0; h < q.H && follows; h++)
        follows = read_head(&q, h) && rope_of_head(&q, h, &left, NULL) == OK && left < ROWS_FOLLOW;
    if (follows) {
        rope.data = q.rope;
        rc = become(&rope, q.rope, DTYPE_F16, data, e);
        y->q = b->q;
        y->q_rope = rope;
        y->attn_scale = b->attn_scale;
    }
    queries_done(&q);
    return rc;
}

static int small_layer(const struct conversion *c, int l, struct model_layer *y, void **data,
                       struct err *e)
{
    int rc = OK;
    if (y->q_rope.data)
        rc = round_tensor(&y->q_rope, DTYPE_F16, &data[0], e);
    else
        rc = use_original_queries(c, l, y, &data[0], e);
    if (!rc && !y->q_rope.data)
        rc = round_tensor(&y->q, DTYPE_Q8_0, &data[0], e);
    if (!rc)
        rc = round_tensor(&y->kv_a, DTYPE_Q8_0, &data[1], e);
    if (!rc)
        rc = round_tensor(&y->kv_b, y->kv_b.dim[1] % 32 ? DTYPE_F16 : DTYPE_Q8_0, &data[2], e);
    return rc;
}

/* The maps that write to the stream, where they are the conversion's own. */
static int small_maps(const struct conversion *c, int l, struct model_layer *y, void **data,
                      struct err *e)
{
    int rc = OK;
    free(data[3]);
    free(data[4]);
    data[3] = data[4] = NULL;
    y->o = c->model.layer[l].o;
    y->down = c->model.layer[l].down;
    if (y->o.data != c->base->layer[l].o.data)
        rc = round_tensor(&y->o, DTYPE_Q6_0, &data[3], e);
    if (!rc && y->down.data != c->base->layer[l].down.data)
        rc = round_tensor(&y->down, DTYPE_Q8_0, &data[4], e);
    return rc;
}

int conversion_runtime(struct conversion *c, bool rounded, const struct model **out, struct err *e)
{
    size_t L = (size_t)c->model.hp.n_layer;
    int rc = OK;
    *out = rounded ? &c->small : &c->model;
    if (!rounded || c->small.layer)
        return OK;
    c->small = c->model;
    c->small.layer = mem_calloc(L, sizeof *c->small.layer);
    c->small_data = mem_calloc(CONVERSION_MATRICES * L, sizeof *c->small_data);
    if (!c->small.layer || !c->small_data)
        return err_nomem(e, L * sizeof *c->small.layer, "rounded attention weights");
    for (size_t l = 0; l < L && !rc; l++) {
        void **data = c->small_data + CONVERSION_MATRICES * l;
        c->small.layer[l] = c->model.layer[l];
        if (c->model.layer[l].attn != ATTN_MLA) /* left as it was */
            continue;
        rc = small_layer(c, (int)l, &c->small.layer[l], data, e);
        if (!rc)
            rc = small_maps(c, (int)l, &c->small.layer[l], data, e);
    }
    return rc;
}

int conversion_runtime_maps(struct conversion *c, int l, struct err *e)
{
    return c->small.layer ? small_maps(c, l, &c->small.layer[l],
                                       c->small_data + CONVERSION_MATRICES * (size_t)l, e)
                          : OK;
}

void conversion_runtime_drop(struct conversion *c)
{
    for (int i = 0; c->small_data && i < CONVERSION_MATRICES * c->model.hp.n_layer; i++)
        free(c->small_data[i]);
    free(c->small_data);
    free(c->small.layer);
    c->small_data = NULL;
    c->small.layer = NULL;
}
