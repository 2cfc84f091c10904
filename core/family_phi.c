/* Phi 3, Phi 3.5, Phi 4 and Phi 4 mini from safetensors: q, k and v in one matrix, gate and up in
 * another; a rotation of part of each head; longrope, whose short and long frequencies are chosen
 * by the length of the context when a timeline begins.
 *
 * Refuses longrope lists of the wrong length, and what family_config.c and family_rope.c refuse. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/family.h"

static const struct family_slot layer_slots[] = {
    {NULL, "input_layernorm.weight", LAYER_AT(attn_norm), DIM_HIDDEN, DIM_NONE, 0},
    {NULL, "self_attn.qkv_proj.weight", LAYER_AT(q), DIM_QKV, DIM_HIDDEN, SLOT_QKV},
    {NULL, "self_attn.o_proj.weight", LAYER_AT(o), DIM_HIDDEN, DIM_Q, 0},
    {NULL, "post_attention_layernorm.weight", LAYER_AT(ffn_norm), DIM_HIDDEN, DIM_NONE, 0},
    {NULL, "mlp.gate_up_proj.weight", LAYER_AT(gate), DIM_GATE_UP, DIM_HIDDEN, SLOT_GATE_UP},
    {NULL, "mlp.down_proj.weight", LAYER_AT(down), DIM_HIDDEN, DIM_FFN, 0},
    {0},
};

static const struct family_map map = {
    .global = family_global_slots,
    .layer = layer_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
};

static bool is_longrope(const cJSON *set)
{
    const char *kind = json_str_or(set, "rope_type", json_str_or(set, "type", "default"));
    return !strcmp(kind, "longrope") || !strcmp(kind, "su");
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
    for (int i = 0; i < n; i++, item = item->next) {
        v[i] = cJSON_IsNumber(item) ? item->valuedouble : 0;
        if (!(v[i] > 0 && v[i] <= 1e6))
            return err_set(e, ERR_FORMAT, "%s: number %d of \"%s\" must be positive", where, i,
                           key);
    }
    return OK;
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

/* The second list of frequencies, for contexts beyond the original one. */
static int set_long(struct model *m, const struct rope_spec *rope, const double *divisor,
                    const char *where, struct err *e)
{
    struct rope_spec spec = *rope;
    double *freq = family_own(m, (size_t)rope->dim / 2, sizeof *freq);
    if (!freq)
        return err_nomem(e, (size_t)rope->dim / 2 * sizeof *freq, "rope frequencies");
    spec.divisor = divisor;
    ropefreq_fill(&spec, spec.dim, freq);
    for (int l = 0; l < m->hp.n_layer; l++)
        m->layer[l].rope_freq_long = freq;
    return ropefreq_usable(freq, spec.dim / 2, where, e);
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
        rc = set_long(m, &rope, divisor[1], where, e);
    for (int l = 0; !rc && l < m->hp.n_layer; l++)
        m->layer[l].window = window;
    return rc;
}

const struct family family_phi3 = {
    .name = "phi3",
    .hf_model_types = (const char *const[]){"phi3", NULL},
    .gguf_archs = (const char *const[]){NULL},
    .open_hf = phi3_hf,
};
