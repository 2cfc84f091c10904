/* Sizes, frequencies and scales of an export, and the list of its tensors in the names of
 * transformers. Refuses what stock_check refuses, half precision for the latent, and frequencies
 * that the engine has no way to be told. */
#include "core/stock_export.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fp8.h"

#define HF_LATENT_EPS 1e-6 /* fixed in the classes, whatever rms_norm_eps says */
#define SHIFT 32           /* squares near 1e-19 beside ε; from 24 on nothing changes */
/* For numbers of half precision's range the two together are what counts: 2^16 against latents near
 * one leaves an error of 1e-5; more residual would bring its outliers near half's largest number.
 */
#define HALF_SHIFT 8
#define HALF_RESIDUAL 8
#define SAME_FREQUENCY 1e-9

/* --- frequencies -------------------------------------------------------------------------- */

static bool same_list(const double *a, const double *b, int n)
{
    if (!a || !b)
        return a == b;
    for (int i = 0; i < n; i++)
        if (fabs(a[i] - b[i]) > SAME_FREQUENCY * fabs(a[i]))
            return false;
    return true;
}

/* theta of a grid of width R that has the n frequencies at every stride-th place, and how far off
 * it is. Spread out like this, a narrow rope in a wide grid keeps a theta that programs accept. */
static double fit_theta(const double *freq, int n, int stride, int R, double *error)
{
    double best = 10000;
    *error = n > 1 ? INFINITY : fabs(freq[0] - 1);
    for (int k = 1; k < n;
         k++) { /* the grid through each of them; the one that is nearest to all */
        double theta = pow(freq[k], -R / (2.0 * k * stride)), off = 0;
        for (int i = 0; i < n; i++)
            off = fmax(off, fabs(freq[i] - pow(theta, -2.0 * i * stride / R)));
        if (off < *error) {
            *error = off;
            best = theta;
        }
    }
    return best;
}

/* The widest of the layers that rotate; NULL when none does. */
static const struct model_layer *widest_rope(const struct model *m)
{
    const struct model_layer *widest = NULL;
    for (int l = 0; l < m->hp.n_layer; l++)
        if (!m->layer[l].no_rope && (!widest || m->layer[l].rope_dim > widest->rope_dim))
            widest = &m->layer[l];
    return widest;
}

static int set_frequencies(struct stock_export *x, struct err *e)
{
    const struct model *m = x->m;
    const struct model_layer *widest = widest_rope(m);
    x->pairs = x->R / 2;
    x->stride = 1;
    x->theta = 10000;
    if (!widest)
        return OK;
    x->pairs = widest->rope_dim / 2;
    for (int l = 0; l < m->hp.n_layer; l++) {
        const struct model_layer *y = &m->layer[l];
        if (y->no_rope) /* its rope rows are zeros */
            continue;
        if (!same_list(y->rope_freq, widest->rope_freq, y->rope_dim / 2) ||
            !same_list(y->rope_freq_long, widest->rope_freq_long, y->rope_dim / 2))
            return err_set(e, ERR_UNSUPPORTED,
                           "layer %d has rope frequencies of its own: convert with --layout stock",
                           l);
    }
    x->stride = x->R / (2 * x->pairs);
    x->theta = fit_theta(widest->rope_freq, x->pairs, x->stride, x->R, &x->freq_error);
    /* A millionth of a radian a token is fp32's rounding of the fastest frequencies. */
    if (x->engine == STOCK_HF && (x->freq_error > 1e-6 || widest->rope_freq_long)) {
        x->freq = widest->rope_freq;
        x->freq_long = widest->rope_freq_long;
        x->freq_error = 0;
        x->stride = 1;
        x->theta = 10000;
    }
    return OK;
}

/* --- scales ------------------------------------------------------------------------------- */

/* The power of two that brings the latents of layer l, for inputs of the norm's own size, near one.
 */
static int latent_level(const struct model_layer *y, int *level, struct err *e)
{
    size_t D = y->kv_a.dim[1], r = (size_t)y->kv_lora_rank;
    float *gamma, *row = mem_calloc(D, sizeof *row);
    double most = 0;
    int rc = row ? tensor_to_f32(&y->attn_norm, &gamma, e) : err_nomem(e, D * sizeof *row, "a row");
    for (size_t i = 0; i < r && !rc; i++) {
        double sum = 0;
        tensor_row_f32(&y->kv_a, i, row);
        for (size_t j = 0; j < D; j++)
            sum += (double)row[j] * row[j] * gamma[j] * gamma[j];
        most = fmax(most, sum);
    }
    if (!rc)
        free(gamma);
    free(row);
    int exponent = 0;
    if (most > 0 && isfinite(most))
        frexp(sqrt(most), &exponent);
    *level = -exponent;
    return rc;
}

static int set_scales(struct stock_export *x, struct err *e)
{
    const struct model_hparams *hp = &x->m->hp;
    bool half = x->dtype != DTYPE_F32 && x->dtype != DTYPE_BF16;
    x->shift = half ? HALF_SHIFT : SHIFT;
    x->residual = half ? HALF_RESIDUAL : 0;
    double eps = x->engine == STOCK_GGUF ? (double)(float)hp->rms_eps : hp->rms_eps;
    x->rms_eps = ldexp(eps, 2 * x->residual);
    x->latent_eps = x->engine == STOCK_HF ? HF_LATENT_EPS : x->rms_eps;
    double want = ldexp(sqrt(x->latent_eps), x->shift);
    float rounded = bf16_to_f32(f32_to_bf16((float)want));
    x->norm_weight = (double)rounded;
    x->left = want / x->norm_weight;
    x->level = mem_calloc((size_t)hp->n_layer, sizeof *x->level);
    if (!x->level)
        return err_nomem(e, (size_t)hp->n_layer * sizeof *x->level, "scales");
    int rc = OK;
    for (int l = 0; l < hp->n_layer && !rc; l++)
        rc = latent_level(&x->m->layer[l], &x->level[l], e);
    return rc;
}

/* --- tensors ------------------------------------------------------------------------------ */

size_t stock_scales(const struct stock_tensor *t)
{
    return (t->dim[0] + FP8_BLOCK - 1) / FP8_BLOCK * ((t->dim[1] + FP8_BLOCK - 1) / FP8_BLOCK);
}

/* The maps of the feed-forward part, experts included, which are most of a model. Attention stays
 * in 16 bits: a conversion has already spent its precision there, and in FP8 it would cost as much
 * again as all the rest (half of the logits' error of a small model). */
static bool in_fp8(const struct stock_export *x, const struct stock_tensor *t)
{
    return x->fp8 && t->layer >= 0 && t->rank == 2 && strstr(t->name, ".mlp.") &&
           !strstr(t->name, "mlp.gate.weight");
}

int stock_add(struct stock_export *x, struct stock_tensor t, struct err *e)
{
    size_t n = 1, bytes;
    if (!mem_grow((void **)&x->tensor, &x->cap, x->n + 1, sizeof *x->tensor))
        return err_nomem(e, (x->n + 1) * sizeof t, "the list of tensors");
    for (int i = 0; i < t.rank; i++)
        if (!size_mul(n, t.dim[i], &n))
            return err_set(e, ERR_LIMIT, "tensor %s is too large", t.name);
    bytes = t.fp8 ? n + stock_scales(&t) * sizeof(float) : dtype_bytes(t.dtype, n);
    if (!size_add(x->bytes, bytes, &x->bytes))
        return err_set(e, ERR_LIMIT, "tensor %s is too large", t.name);
    if (t.factor == 0 && t.make == MAKE_COPY)
        t.factor = 1;
    if (!t.count)
        t.count = 1;
    x->tensor[x->n++] = t;
    return OK;
}

struct lister {
    struct stock_export *x;
    int layer;
    int as; /* the number in the names, where another layer's copy is listed; else -1 */
    int rc;
    struct err *e;
};

static void add(struct lister *a, enum stock_make make, const struct tensor *from, double factor,
                size_t rows, size_t cols, const char *name)
{
    struct stock_tensor t = {.make = make,
                             .from = from,
                             .factor = factor,
                             .layer = a->layer,
                             .dtype = a->x->dtype,
                             .rank = cols ? 2 : 1,
                             .dim = {rows, cols}};
    if (a->rc)
        return;
    if (a->layer >= 0)
        snprintf(t.name, sizeof t.name, "model.layers.%d.%s", a->as < 0 ? a->layer : a->as, name);
    else
        snprintf(t.name, sizeof t.name, "%s", name);
    t.fp8 = in_fp8(a->x, &t);
    a->rc = stock_add(a->x, t, a->e);
}

static void copy(struct lister *a, const struct tensor *from, const char *name)
{
    if (from->data)
        add(a, MAKE_COPY, from, 1, from->dim[0], from->rank > 1 ? from->dim[1] : 0, name);
}

static void list_attention(struct lister *a)
{
    struct stock_export *x = a->x;
    size_t D = (size_t)x->m->hp.hidden, H = (size_t)x->m->hp.n_head, c = (size_t)x->c;
    size_t P = (size_t)x->P, R = (size_t)x->R, V = (size_t)x->V, q = (size_t)x->q_lora;
    if (q) {
        add(a, x->narrow_rank ? MAKE_NARROW : MAKE_IDENTITY, NULL, 0, q, D,
            "self_attn.q_a_proj.weight");
        if (x->biased)
            add(a, x->narrow_rank ? MAKE_NARROW_BIAS : MAKE_ONE_HOT, NULL, 0, q, 0,
                "self_attn.q_a_proj.bias");
        add(a, MAKE_FILL, NULL, x->norm_weight, q, 0, "self_attn.q_a_layernorm.weight");
        add(a, MAKE_QUERY, NULL, 0, H * (P + R), q, "self_attn.q_b_proj.weight");
    } else {
        add(a, MAKE_QUERY, NULL, 0, H * (P + R), D, "self_attn.q_proj.weight");
    }
    add(a, MAKE_LATENT, NULL, 0, c + R, D, "self_attn.kv_a_proj_with_mqa.weight");
    if (x->biased)
        add(a, MAKE_LATENT_BIAS, NULL, 0, c + R, 0, "self_attn.kv_a_proj_with_mqa.bias");
    add(a, MAKE_FILL, NULL, x->norm_weight, c, 0, "self_attn.kv_a_layernorm.weight");
    add(a, MAKE_UP, NULL, 0, H * (P + V), c, "self_attn.kv_b_proj.weight");
}

static void list_experts(struct lister *a)
{
    const struct model *m = a->x->m;
    const struct tensor *expert = m->layer[a->layer].expert;
    size_t D = (size_t)m->hp.hidden, F = (size_t)m->hp.moe.ffn, E = (size_t)m->hp.moe.n;
    static const char *const part[EXPERT_PARTS] = {"gate_proj", "up_proj", "down_proj"};
    char name[64];
    copy(a, &m->layer[a->layer].router, "mlp.gate.weight");
    if (a->x->engine == STOCK_HF) { /* the class keeps its experts in two stacks */
        struct stock_tensor t = {.make = MAKE_COPY,
                                 .layer = a->layer,
                                 .dtype = a->x->dtype,
                                 .rank = 3,
                                 .from = expert,
                                 .count = (int)E};
        struct stock_tensor up = t, down = t;
        up.dim[0] = down.dim[0] = E;
        up.dim[1] = 2 * F;
        up.dim[2] = down.dim[1] = D;
        down.dim[2] = F;
        up.stride = down.stride = EXPERT_PARTS;
        down.from = expert + EXPERT_DOWN;
        snprintf(up.name, sizeof up.name, "model.layers.%d.mlp.experts.gate_up_proj", a->layer);
        snprintf(down.name, sizeof down.name, "model.layers.%d.mlp.experts.down_proj", a->layer);
        if (!a->rc)
            a->rc = stock_add(a->x, up, a->e);
        if (!a->rc)
            a->rc = stock_add(a->x, down, a->e);
    }
    for (size_t i = 0; i < E && a->x->engine != STOCK_HF; i++)
        for (int p = 0; p < EXPERT_PARTS; p++) {
            snprintf(name, sizeof name, "mlp.experts.%zu.%s.weight", i, part[p]);
            copy(a, &expert[i * EXPERT_PARTS + (size_t)p], name);
        }
    if (a->x->engine == STOCK_VLLM)
        return;
    for (int p = 0; p < EXPERT_PARTS; p++) { /* a shared expert must be there: one of zeros */
        snprintf(name, sizeof name, "mlp.shared_experts.%s.weight", part[p]);
        add(a, MAKE_FILL, NULL, 0, p == EXPERT_DOWN ? D : F, p == EXPERT_DOWN ? F : D, name);
    }
}

static void list_layer(struct lister *a)
{
    const struct model_layer *y = &a->x->m->layer[a->layer];
    copy(a, &y->attn_norm, "input_layernorm.weight");
    list_attention(a);
    copy(a, &y->o, "self_attn.o_proj.weight");
    if (a->x->biased && y->o_bias.data)
        copy(a, &y->o_bias, "self_attn.o_proj.bias");
    else if (a->x->biased)
        add(a, MAKE_FILL, NULL, 0, (size_t)a->x->m->hp.hidden, 0, "self_attn.o_proj.bias");
    copy(a, &y->ffn_norm, "post_attention_layernorm.weight");
    if (y->expert) {
        list_experts(a);
        return;
    }
    copy(a, &y->gate, "mlp.gate_proj.weight");
    copy(a, &y->up, "mlp.up_proj.weight");
    copy(a, &y->down, "mlp.down_proj.weight");
}

/* The prediction layer starts as the last one, with the head that all share; the engines want
 * embedding and head once more under its own names. */
static void list_prediction(struct lister *a)
{
    const struct model *m = a->x->m;
    size_t D = (size_t)m->hp.hidden;
    double embed = m->hp.embed_scale > 0 ? m->hp.embed_scale : 1;
    a->layer = m->hp.n_layer - 1;
    a->as = m->hp.n_layer;
    add(a, MAKE_COPY, &m->embed, embed, m->embed.dim[0], D, "embed_tokens.weight");
    add(a, MAKE_FILL, NULL, 1, D, 0, "enorm.weight");
    add(a, MAKE_FILL, NULL, 1, D, 0, "hnorm.weight");
    add(a, MAKE_JOIN, NULL, 0, D, 2 * D, "eh_proj.weight");
    list_layer(a);
    copy(a, &m->final_norm, "shared_head.norm.weight");
    copy(a, &m->head, "shared_head.head.weight");
}

int stock_list_hf(struct stock_export *x, struct err *e)
{
    struct lister a = {.x = x, .layer = -1, .as = -1, .e = e};
    const struct model *m = x->m;
    size_t D = (size_t)m->hp.hidden;
    double embed = m->hp.embed_scale > 0 ? m->hp.embed_scale : 1;
    add(&a, MAKE_COPY, &m->embed, embed, m->embed.dim[0], D, "model.embed_tokens.weight");
    for (a.layer = 0; a.layer < m->hp.n_layer; a.layer++)
        list_layer(&a);
    if (x->mtp)
        list_prediction(&a);
    a.layer = a.as = -1;
    copy(&a, &m->final_norm, "model.norm.weight");
    copy(&a, &m->head, "lm_head.weight");
    return a.rc;
}

/* --- the whole ---------------------------------------------------------------------------- */

static int check_dtype(const struct stock_export *x, struct err *e)
{
    enum dtype t = x->dtype;
    if (x->engine != STOCK_GGUF && t == DTYPE_F16)
        return err_set(e, ERR_ARG,
                       "half precision cannot hold the scaled latent: export as bf16 or f32");
    if (x->engine != STOCK_GGUF && t != DTYPE_F32 && t != DTYPE_BF16)
        return err_set(e, ERR_ARG, "safetensors hold f32 or bf16 here, not %s",
                       dtype_traits(t)->name);
    if (x->fp8 && (x->engine == STOCK_GGUF || (x->engine == STOCK_HF && x->m->hp.moe.n)))
        return err_set(e, ERR_ARG, "%s does not take FP8 %s: export as bf16", stock_name(x->engine),
                       x->engine == STOCK_GGUF ? "in GGUF" : "in stacks of experts");
    if (x->mtp && x->engine == STOCK_SGLANG)
        return err_set(e, ERR_UNSUPPORTED,
                       "SGLang's prediction layer always routes to experts: export without --mtp");
    if (x->mtp && (x->engine == STOCK_GGUF || x->m->hp.moe.n))
        return err_set(e, ERR_UNSUPPORTED, "%s: export without --mtp",
                       x->m->hp.moe.n
                           ? "the prediction layer belongs to DeepSeek-V3's class, which "
                             "routes to experts in another way than this model"
                           : "llama.cpp's prediction layer wants experts and narrow "
                             "queries");
    if (!dtype_can_write(t))
        return err_set(e, ERR_ARG, "%s cannot be written", dtype_traits(t)->name);
    return OK;
}

int stock_export_init(struct stock_export *x, const struct model *m, const struct stock_facts *f,
                      const struct rankplan *plan, enum stock_engine engine, enum dtype dtype,
                      bool fp8, int narrow_rank, bool mtp, struct err *e)
{
    struct stock_verdict v;
    *x = (struct stock_export){.m = m,
                               .engine = engine,
                               .dtype = dtype,
                               .fp8 = fp8,
                               .narrow_rank = narrow_rank,
                               .mtp = mtp};
    stock_check(f, plan, engine, &v);
    if (v.fit == STOCK_NO)
        return err_set(e, ERR_UNSUPPORTED, "%s cannot load this: %s", stock_name(engine), v.text);
    x->c = v.kv_lora_rank;
    x->R = v.qk_rope_head_dim;
    x->P = m->layer[0].qk_nope_head_dim;
    x->V = m->layer[0].v_head_dim;
    x->biased = f->biases;
    for (int l = 0; l < m->hp.n_layer; l++)
        if (x->biased && m->layer[l].q_bias.data)
            x->q_lora = m->hp.hidden + 1;
    if (narrow_rank)
        x->q_lora = narrow_rank;
    int rc = check_dtype(x, e);
    if (!rc && (narrow_rank < 0 || narrow_rank > m->hp.hidden))
        rc = err_set(e, ERR_ARG, "queries of rank %d: this model's take 1 to %d", narrow_rank,
                     m->hp.hidden);
    if (!rc)
        rc = set_frequencies(x, e);
    if (!rc)
        rc = set_scales(x, e);
    if (!rc)
        rc = engine == STOCK_GGUF ? stock_list_gguf(x, e) : stock_list_hf(x, e);
    if (rc)
        stock_export_done(x);
    return rc;
}

void stock_export_done(struct stock_export *x)
{
    for (int l = 0; x->narrow && l < x->m->hp.n_layer; l++)
        stock_queries_done(&x->narrow[l]);
    free(x->narrow);
    free(x->join);
    free(x->tensor);
    free(x->level);
    *x = (struct stock_export){0};
}
