/* The numbers of an export's tensors: rope rows from halves to interleaved pairs, the softmax scale
 * in the queries, latents scaled for their norm, zeros where a layer is narrower than the model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/stock_export.h"

#define COPY_NUMBERS ((size_t)1 << 20) /* at a time */

/* Place of the engine's rope number i (interleaved pairs) among R numbers in halves; -1: a zero. */
static int rope_place(const struct stock_export *x, int i, int R)
{
    int pair = i / 2 / x->stride;
    return i / 2 % x->stride == 0 && pair < R / 2 ? pair + (i % 2) * (R / 2) : -1;
}

static void scaled_row(const struct tensor *t, size_t row, double factor, float *out)
{
    size_t n = t->dim[t->rank - 1];
    tensor_row_f32(t, row, out);
    for (size_t j = 0; factor != 1 && j < n; j++)
        out[j] = (float)(factor * (double)out[j]);
}

/* Layer l's own attention scale, as the engine will apply (P+R)^-1/2; the magnitude of cos and sin
 * counts twice where both sides are rotated. */
static int query(const struct stock_export *x, int l, float *out, struct err *e)
{
    const struct model_layer *y = &x->m->layer[l];
    int H = x->m->hp.n_head, P = x->P, R = y->qk_rope_head_dim, head = P + R;
    size_t D = (size_t)x->m->hp.hidden, cols = x->q_lora ? (size_t)x->q_lora : D;
    double scale = y->attn_scale * sqrt(x->P + x->R) * (x->q_lora ? x->left : 1);
    double turn = x->m->hp.rope_magnitude > 0 ? x->m->hp.rope_magnitude : 1;
    struct tensor q = y->q;
    if (x->narrow_rank)
        q = (struct tensor){
            .data = x->narrow[l].b, .dtype = DTYPE_F32, .rank = 2, .dim = {y->q.dim[0], cols}};
    float *bias = NULL;
    int rc = y->q_bias.data && !x->narrow_rank ? tensor_to_f32(&y->q_bias, &bias, e) : OK;
    for (int i = 0; i < H * (x->P + x->R) && !rc; i++) {
        int h = i / (x->P + x->R), j = i % (x->P + x->R);
        int at = j < P ? j : rope_place(x, j - P, R);
        float *row = out + (size_t)i * cols;
        if (at < 0)
            continue;
        int from = h * head + (j < P ? at : P + at);
        double f = j < P ? scale : scale * turn * turn;
        scaled_row(&q, (size_t)from, f, row);
        if (x->q_lora && bias)
            row[D] = (float)(f * (double)bias[from]);
    }
    free(bias);
    return rc;
}

/* What a latent of layer l is multiplied by before its norm. */
static double latent_factor(const struct stock_export *x, int l)
{
    return ldexp(1, x->level[l] - x->shift);
}

static void latent(const struct stock_export *x, int l, float *out)
{
    const struct model_layer *y = &x->m->layer[l];
    int r = y->kv_lora_rank, R = y->qk_rope_head_dim;
    size_t D = (size_t)x->m->hp.hidden;
    for (int i = 0; i < r; i++)
        scaled_row(&y->kv_a, (size_t)i, latent_factor(x, l), out + (size_t)i * D);
    for (int i = 0; i < x->R; i++)
        if (rope_place(x, i, R) >= 0)
            tensor_row_f32(&y->kv_a, (size_t)(r + rope_place(x, i, R)),
                           out + (size_t)(x->c + i) * D);
}

static int latent_bias(const struct stock_export *x, int l, float *out, struct err *e)
{
    const struct model_layer *y = &x->m->layer[l];
    int r = y->kv_lora_rank, R = y->qk_rope_head_dim;
    float *bias;
    if (!y->kv_a_bias.data)
        return OK;
    int rc = tensor_to_f32(&y->kv_a_bias, &bias, e);
    if (rc)
        return rc;
    for (int i = 0; i < r; i++)
        out[i] = (float)(latent_factor(x, l) * (double)bias[i]);
    for (int i = 0; i < x->R; i++)
        if (rope_place(x, i, R) >= 0)
            out[x->c + i] = bias[r + rope_place(x, i, R)];
    free(bias);
    return OK;
}

/* kv_b rows of a head: `key` and `value` say which; transposed gives [c][P] of the keys. */
static int up(const struct stock_export *x, int l, bool key, bool value, bool transposed,
              float *out, struct err *e)
{
    const struct model_layer *y = &x->m->layer[l];
    int P = x->P, V = x->V, r = y->kv_lora_rank;
    size_t c = (size_t)x->c, rows = (size_t)((key ? P : 0) + (value ? V : 0));
    double factor = x->left * ldexp(1, -x->level[l]);
    float *row = mem_calloc((size_t)r, sizeof *row);
    if (!row)
        return err_nomem(e, (size_t)r * sizeof *row, "a row");
    for (int h = 0; h < x->m->hp.n_head; h++) {
        float *head = out + (size_t)h * rows * c;
        for (int i = key ? 0 : P, k = 0; i < P + (value ? V : 0); i++, k++) {
            scaled_row(&y->kv_b, (size_t)(h * (P + V) + i), factor, row);
            if (!transposed)
                memcpy(head + (size_t)k * c, row, (size_t)r * sizeof *row);
            for (int j = 0; transposed && j < r; j++)
                head[(size_t)(j * P + k)] = row[j];
        }
    }
    free(row);
    return OK;
}

static int compute(const struct stock_export *x, const struct stock_tensor *t, float *out, size_t n,
                   struct err *e)
{
    size_t D = (size_t)x->m->hp.hidden;
    double one = ldexp(1, -x->shift);
    switch (t->make) {
    case MAKE_FILL:
        for (size_t i = 0; i < n; i++)
            out[i] = (float)t->factor;
        return OK;
    case MAKE_IDENTITY:
        for (size_t i = 0; i < D; i++)
            out[i * (D + 1)] = (float)one;
        return OK;
    case MAKE_ONE_HOT: out[n - 1] = (float)one; return OK;
    case MAKE_NARROW:
    case MAKE_NARROW_BIAS: {
        const struct stock_queries *q = &x->narrow[t->layer];
        for (size_t i = 0; i < n; i++)
            out[i] = (float)(one * (double)(t->make == MAKE_NARROW ? q->a : q->bias)[i]);
        return OK;
    }
    case MAKE_QUERY: return query(x, t->layer, out, e);
    case MAKE_LATENT: latent(x, t->layer, out); return OK;
    case MAKE_LATENT_BIAS: return latent_bias(x, t->layer, out, e);
    case MAKE_UP: return up(x, t->layer, true, true, false, out, e);
    case MAKE_UP_KEY: return up(x, t->layer, true, false, true, out, e);
    case MAKE_JOIN:
        for (size_t i = 0; i < D; i++)
            out[i * 2 * D + i] = out[i * 2 * D + D + i] = 1;
        if (x->join)
            memcpy(out, x->join, n * sizeof *out);
        return OK;
    case MAKE_UP_VALUE: return up(x, t->layer, false, true, false, out, e);
    default: return err_set(e, ERR_ARG, "tensor %s is copied, not computed", t->name);
    }
}

/* Rows of one tensor of the model, a few at a time. */
static int copy_one(const struct tensor *from, double factor, float *buffer, size_t room,
                    stock_put put, void *user, struct err *e)
{
    size_t cols = from->dim[from->rank - 1], rows = tensor_elements(from) / cols;
    size_t step = room / cols;
    int rc = OK;
    for (size_t at = 0; at < rows && !rc; at += step) {
        size_t n = rows - at < step ? rows - at : step;
        for (size_t i = 0; i < n; i++)
            scaled_row(from, at + i, factor, buffer + i * cols);
        rc = put(user, buffer, n * cols, e);
    }
    return rc;
}

static int copy(const struct stock_tensor *t, stock_put put, void *user, struct err *e)
{
    size_t cols = t->dim[t->rank - 1], room = cols > COPY_NUMBERS ? cols : COPY_NUMBERS;
    float *buffer = mem_calloc(room, sizeof *buffer);
    int rc = buffer ? OK : err_nomem(e, room * sizeof *buffer, t->name);
    /* A stack of gate and up: the two follow each other in every expert. */
    size_t all = 1;
    for (int i = 0; i < t->rank; i++)
        all *= t->dim[i];
    for (int i = 0; i < t->count && !rc; i++) {
        const struct tensor *from = t->from + i * t->stride;
        rc = copy_one(from, t->factor, buffer, room, put, user, e);
        if (!rc && all > (size_t)t->count * tensor_elements(from))
            rc = copy_one(from + 1, t->factor, buffer, room, put, user, e);
    }
    free(buffer);
    return rc;
}

int stock_export_values(const struct stock_export *x, const struct stock_tensor *t, stock_put put,
                        void *user, struct err *e)
{
    size_t n = 1;
    if (t->make == MAKE_COPY)
        return copy(t, put, user, e);
    for (int i = 0; i < t->rank; i++)
        n *= t->dim[i];
    float *out = mem_calloc(n, sizeof *out);
    if (!out)
        return err_nomem(e, n * sizeof *out, t->name);
    int rc = compute(x, t, out, n, e);
    if (!rc)
        rc = put(user, out, n, e);
    free(out);
    return rc;
}
