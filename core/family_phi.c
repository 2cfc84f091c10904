/* Phi 3, Phi 3.5, Phi 4 and Phi 4 mini: q, k and v in one matrix, gate and up in
 * another; a rotation of part of each head; longrope, whose short and long frequencies are chosen
 * by the length of the context when a timeline begins.
 *
 * Refuses longrope lists of the wrong length, and what family_config.c and family_rope.c refuse. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/family.h"
#include "core/gguf.h"

#define SHORT_FACTORS "rope_factors_short.weight" /* longrope in GGUF, read by the family */
#define LONG_FACTORS "rope_factors_long.weight"

static const struct family_slot layer_slots[] = {
    {"attn_norm.weight", "input_layernorm.weight", LAYER_AT(attn_norm), DIM_HIDDEN, DIM_NONE, 0},
    {"attn_qkv.weight", "self_attn.qkv_proj.weight", LAYER_AT(q), DIM_QKV, DIM_HIDDEN, SLOT_QKV},
    {"attn_output.weight", "self_attn.o_proj.weight", LAYER_AT(o), DIM_HIDDEN, DIM_Q, 0},
    {"ffn_norm.weight", "post_attention_layernorm.weight", LAYER_AT(ffn_norm), DIM_HIDDEN, DIM_NONE,
     0},
    {"ffn_up.weight", "mlp.gate_up_proj.weight", LAYER_AT(gate), DIM_GATE_UP, DIM_HIDDEN,
     SLOT_GATE_UP},
    {"ffn_down.weight", "mlp.down_proj.weight", LAYER_AT(down), DIM_HIDDEN, DIM_FFN, 0},
    {0},
};

static const struct family_map map = {
    .global = family_global_slots,
    .layer = layer_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = (const char *const[]){"rotary_emb.inv_freq", SHORT_FACTORS, LONG_FACTORS, NULL},
};

static bool is_longrope(const cJSON *set)
{
    const char *kind = json_str_or(set, "rope_type", json_str_or(set, "type", "default"));
    return !strcmp(kind, "longrope") || !strcmp(kind, "su");
}

static int check_divisors(const double *v, int n, const char *key, const char *where, struct err *e)
{
    for (int i = 0; i < n; i++)
        if (!(v[i] > 0 && v[i] <= 1e6))
            return err_set(e, ERR_FORMAT, "%s: number %d of \"%s\" must be positive", where, i,
                           key);
    return OK;
}

static int read_divisors(struct model *m, const cJSON *set, const char *key, int n, double **out,
                         const char *where, struct err *e)
{
    const cJSON *list = json_get(set, key), *item = list ? list->child : NULL;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != n)
        return err_set(e, ERR_FORMAT, "%s: \"%s\" must be a list of %d numbers", where, key, n);
    double *v = *out = family_own(m, (size_t)n, sizeof *v);
    if (!v)
        return err_nomem(e, (size_t)n * sizeof *v, "rope factors");
    for (int i = 0; i < n; i++, item = item->next)
        v[i] = cJSON_IsNumber(item) ? item->valuedouble : 0;
    return check_divisors(v, n, key, where, e);
}

/* Both lists, and the magnitude sqrt(1 + ln(context / original) / ln(original)) of cos and sin. */
static int read_longrope(struct model *m, const cJSON *config, const cJSON *set, int dim,
                         double *divisor[2], const char *where, struct err *e)
{
    struct model_hparams *hp = &m->hp;
    long long original = hp->context;
    double factor = 0, magnitude = 0;
    int rc = json_int_opt(set, "original_max_position_embeddings", 2, 1 << 28, &original, where, e);
    if (!rc)
        rc = json_int_opt(config, "original_max_position_embeddings", 2, 1 << 28, &original, where,
                          e);
    if (!rc)
        rc = json_num_opt(set, "factor", &factor, where, e);
    if (!rc)
        rc = json_num_opt(set, "attention_factor", &magnitude, where, e);
    if (!rc)
        rc = read_divisors(m, set, "short_factor", dim / 2, &divisor[0], where, e);
    if (!rc)
        rc = read_divisors(m, set, "long_factor", dim / 2, &divisor[1], where, e);
    if (rc)
        return rc;
    if (factor == 0)
        factor = (double)hp->context / (double)original;
    if (magnitude == 0)
        magnitude = factor <= 1 ? 1 : sqrt(1 + log(factor) / log((double)original));
    if (!(magnitude > 0 && magnitude <= 1e3))
        return err_set(e, ERR_FORMAT, "%s: a rope magnitude of %g", where, magnitude);
    hp->rope_original = (int)original;
    hp->rope_magnitude = magnitude;
    return OK;
}

static int read_rope(struct model *m, const cJSON *config, struct rope_spec *rope,
                     double *divisor[2], const char *where, struct err *e)
{
    const cJSON *set = family_rope_parameters(config);
    bool longrope = is_longrope(set);
    double partial, theta = 10000;
    int rc = longrope ? json_num_opt(set, "rope_theta", &theta, where, e) : OK;
    if (!rc)
        rc = family_rope_set(config, longrope ? NULL : set, theta, rope, &partial, where, e);
    if (!rc && longrope)
        rc = json_num_opt(set, "partial_rotary_factor", &partial, where, e);
    if (rc)
        return rc;
    rope->dim = partial > 0 && partial <= 1 ? (int)(m->hp.head_dim * partial) : 0;
    if (rope->dim < 2)
        return err_set(e, ERR_FORMAT, "%s: partial_rotary_factor %g of heads of %d", where, partial,
                       m->hp.head_dim);
    m->hp.rope_theta = rope->theta;
    if (!longrope)
        return OK;
    rc = read_longrope(m, config, set, rope->dim, divisor, where, e);
    rope->divisor = divisor[0];
    return rc;
}

static int phi3_hf(struct model *m, const struct cJSON *config, const char *where,
                   const struct safetensors *st, struct err *e)
{
    static const struct family_defaults defaults = {
        .theta = 10000, .eps = 1e-5, .act = "silu", .act_key = "hidden_act"};
    struct rope_spec rope;
    double *divisor[2] = {NULL, NULL};
    int window = 0, rc = family_hf_base(m, config, &defaults, where, e);
    if (!rc)
        rc = family_check_hparams(&m->hp, where, e);
    if (!rc)
        rc = read_rope(m, config, &rope, divisor, where, e);
    if (!rc)
        rc = family_hf_window(config, 0, &window, where, e);
    if (!rc)
        rc = family_bind(m, &(struct family_source){.where = where, .st = st}, &map, &rope, e);
    if (!rc && divisor[1])
        rc = family_rope_long(m, &rope, rope.dim, divisor[1], where, e);
    for (int l = 0; !rc && l < m->hp.n_layer; l++)
        m->layer[l].window = window;
    return rc;
}

static int gguf_divisors(struct model *m, const struct gguf *g, const char *name, int n,
                         double **out, struct err *e)
{
    struct tensor t;
    float *x = NULL;
    int rc = gguf_tensor(g, name, &t, e);
    if (!rc && (t.rank != 1 || t.dim[0] != (size_t)n))
        rc =
            err_set(e, ERR_FORMAT, "%s: tensor %s does not hold %d numbers", gguf_path(g), name, n);
    if (!rc)
        rc = tensor_to_f32(&t, &x, e);
    if (rc)
        return rc;
    *out = family_own(m, (size_t)n, sizeof **out);
    for (int i = 0; *out && i < n; i++)
        (*out)[i] = (double)x[i];
    free(x);
    return *out ? check_divisors(*out, n, name, gguf_path(g), e)
                : err_nomem(e, (size_t)n * sizeof **out, "rope factors");
}

static int gguf_longrope(struct model *m, const struct gguf *g, struct rope_spec *rope,
                         double *divisor[2], struct err *e)
{
    struct model_hparams *hp = &m->hp;
    int n = rope->dim / 2;
    int rc = family_gguf_int(g, "phi3", "rope.scaling.original_context_length", 2, 1 << 28,
                             hp->context, &hp->rope_original, e);
    if (!rc)
        rc = gguf_divisors(m, g, SHORT_FACTORS, n, &divisor[0], e);
    if (!rc)
        rc = gguf_divisors(m, g, LONG_FACTORS, n, &divisor[1], e);
    rope->divisor = divisor[0];
    hp->rope_magnitude = gguf_num_or(g, "phi3.rope.scaling.attn_factor", 1);
    if (!rc && !(hp->rope_magnitude > 0 && hp->rope_magnitude <= 1e3))
        rc = err_set(e, ERR_FORMAT, "%s: a rope magnitude of %g", gguf_path(g), hp->rope_magnitude);
    return rc;
}

static int phi3_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    const char *where = gguf_path(g);
    struct rope_spec rope;
    double *divisor[2] = {NULL, NULL};
    int window = 0, rc = family_gguf_base(m, g, "phi3", GGUF_WINDOW | GGUF_PARTIAL, e);
    if (!rc)
        rc = family_check_hparams(&m->hp, where, e);
    if (!rc)
        rc = family_rope_gguf(g, "phi3", &rope, e);
    if (!rc)
        rc = family_gguf_int(g, "phi3", "rope.dimension_count", 2, m->hp.head_dim, m->hp.head_dim,
                             &rope.dim, e);
    if (!rc)
        rc = family_gguf_int(g, "phi3", "attention.sliding_window", 0, 1 << 28, 0, &window, e);
    if (!rc && gguf_has_tensor(g, LONG_FACTORS))
        rc = gguf_longrope(m, g, &rope, divisor, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    rc = family_bind(m, &(struct family_source){.where = where, .gguf = g}, &map, &rope, e);
    if (!rc && divisor[1])
        rc = family_rope_long(m, &rope, rope.dim, divisor[1], where, e);
    for (int l = 0; !rc && l < m->hp.n_layer; l++)
        m->layer[l].window = window;
    return rc;
}

const struct family family_phi3 = {
    .name = "phi3",
    .hf_model_types = (const char *const[]){"phi3", NULL},
    .gguf_archs = (const char *const[]){"phi3", NULL},
    .open_hf = phi3_hf,
    .open_gguf = phi3_gguf,
};
