/* Gemma 2 and Gemma 3 (text). Embeddings times sqrt(hidden), norms that multiply by 1 + w (GGUF
 * stores the sum), a norm after attention and after the feed-forward as well as before, GELU,
 * windows in some layers. Gemma 2 caps attention scores and logits; Gemma 3 norms the heads of q
 * and k and rotates its sliding layers with a base of their own.
 *
 * Refuses by name what family_config.c and family_rope.c refuse. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/family.h"
#include "core/gguf.h"

static const struct family_slot global_slots[] = {
    {"token_embd.weight", "model.embed_tokens.weight", GLOBAL_AT(embed), DIM_VOCAB, DIM_HIDDEN, 0},
    {"output_norm.weight", "model.norm.weight", GLOBAL_AT(final_norm), DIM_HIDDEN, DIM_NONE,
     SLOT_ADD_ONE},
    {"output.weight", "lm_head.weight", GLOBAL_AT(head), DIM_VOCAB, DIM_HIDDEN, SLOT_OPTIONAL},
    {0},
};

/* Gemma 2's table ends before the last two norms. */
#define GEMMA_LAYER                                                                                \
    {"attn_norm.weight", "input_layernorm.weight", LAYER_AT(attn_norm), DIM_HIDDEN, DIM_NONE,      \
     SLOT_ADD_ONE},                                                                                \
        {"attn_q.weight", "self_attn.q_proj.weight", LAYER_AT(q), DIM_Q, DIM_HIDDEN, 0},           \
        {"attn_k.weight", "self_attn.k_proj.weight", LAYER_AT(k), DIM_KV, DIM_HIDDEN, 0},          \
        {"attn_v.weight", "self_attn.v_proj.weight", LAYER_AT(v), DIM_KV, DIM_HIDDEN, 0},          \
        {"attn_output.weight", "self_attn.o_proj.weight", LAYER_AT(o), DIM_HIDDEN, DIM_Q, 0},      \
        {"post_attention_norm.weight",                                                             \
         "post_attention_layernorm.weight",                                                        \
         LAYER_AT(post_attn_norm),                                                                 \
         DIM_HIDDEN,                                                                               \
         DIM_NONE,                                                                                 \
         SLOT_ADD_ONE},                                                                            \
        {"ffn_norm.weight",  "pre_feedforward_layernorm.weight",                                   \
         LAYER_AT(ffn_norm), DIM_HIDDEN,                                                           \
         DIM_NONE,           SLOT_ADD_ONE},                                                        \
        {"ffn_gate.weight", "mlp.gate_proj.weight", LAYER_AT(gate), DIM_FFN, DIM_HIDDEN, 0},       \
        {"ffn_up.weight", "mlp.up_proj.weight", LAYER_AT(up), DIM_FFN, DIM_HIDDEN, 0},             \
        {"ffn_down.weight", "mlp.down_proj.weight", LAYER_AT(down), DIM_HIDDEN, DIM_FFN, 0},       \
    {                                                                                              \
        "post_ffw_norm.weight", "post_feedforward_layernorm.weight", LAYER_AT(post_ffn_norm),      \
            DIM_HIDDEN, DIM_NONE, SLOT_ADD_ONE                                                     \
    }

static const struct family_slot gemma2_slots[] = {GEMMA_LAYER, {0}};
static const struct family_slot gemma3_slots[] = {
    GEMMA_LAYER,
    {"attn_q_norm.weight", "self_attn.q_norm.weight", LAYER_AT(q_norm), DIM_HEAD, DIM_NONE,
     SLOT_ADD_ONE},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", LAYER_AT(k_norm), DIM_HEAD, DIM_NONE,
     SLOT_ADD_ONE},
    {0},
};

static const struct family_map gemma2_map = {
    .global = global_slots,
    .layer = gemma2_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
};
static const struct family_map gemma3_map = {
    .global = global_slots,
    .layer = gemma3_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
};

/* A cap of null, or none at all, caps nothing. */
static int read_cap(const cJSON *config, const char *key, double fallback, double *cap,
                    const char *where, struct err *e)
{
    *cap = cJSON_HasObjectItem(config, key) ? 0 : fallback;
    return json_num_opt(config, key, cap, where, e);
}

static int read_hf(struct model *m, const cJSON *config, double attn_cap, double logit_cap,
                   int *window, const char *where, struct err *e)
{
    static const struct family_defaults defaults = {
        .eps = 1e-6, .tied = true, .act = "gelu_pytorch_tanh", .act_key = "hidden_activation"};
    struct model_hparams *hp = &m->hp;
    double scalar = 256;
    int rc = family_hf_base(m, config, &defaults, where, e);
    if (!rc)
        rc = json_num_opt(config, "query_pre_attn_scalar", &scalar, where, e);
    if (!rc)
        rc = read_cap(config, "attn_logit_softcapping", attn_cap, &hp->attn_softcap, where, e);
    if (!rc)
        rc = read_cap(config, "final_logit_softcapping", logit_cap, &hp->logit_softcap, where, e);
    if (!rc)
        rc = family_hf_window(config, 4096, window, where, e);
    hp->attn_scale = 1 / sqrt(scalar);
    hp->embed_scale = sqrt(hp->hidden);
    return rc;
}

/* Layers slide but for the last one of each run of `pattern`. */
static void slide(struct model *m, long long pattern, int window)
{
    for (int l = 0; l < m->hp.n_layer; l++)
        m->layer[l].window = (l + 1) % pattern ? window : 0;
}

static int gemma2_hf(struct model *m, const struct cJSON *config, const char *where,
                     const struct safetensors *st, struct err *e)
{
    struct rope_spec rope;
    bool listed = false;
    int window = 0, rc = read_hf(m, config, 50, 30, &window, where, e);
    if (!rc)
        rc = family_rope_hf(config, 10000, &rope, where, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    rc = family_bind(m, &(struct family_source){.where = where, .st = st}, &gemma2_map, &rope, e);
    if (!rc)
        rc = family_hf_layer_types(m, config, window, &listed, where, e);
    if (!rc && !listed)
        slide(m, 2, window);
    return rc;
}

/* Sliding layers rotate by frequencies of their own. */
static int set_local_rope(struct model *m, const struct rope_spec *local, const char *where,
                          struct err *e)
{
    int dim = m->hp.head_dim;
    double *freq = family_own(m, (size_t)dim / 2, sizeof *freq);
    if (!freq)
        return err_nomem(e, (size_t)dim / 2 * sizeof *freq, "rope frequencies");
    ropefreq_fill(local, dim, freq);
    for (int l = 0; l < m->hp.n_layer; l++)
        if (m->layer[l].window)
            m->layer[l].rope_freq = freq;
    return ropefreq_usable(freq, dim / 2, where, e);
}

/* Two sets of rope parameters: rope_parameters by layer type, or rope_scaling for the global
 * layers and rope_local_base_freq for the others. */
static int gemma3_rope(const cJSON *config, struct rope_spec *global, struct rope_spec *local,
                       const char *where, struct err *e)
{
    const cJSON *both = json_get(config, "rope_parameters");
    const cJSON *full = json_get(both, "full_attention");
    const cJSON *near = json_get(both, "sliding_attention");
    double partial = 1, theta = 10000;
    int rc = family_rope_set(full ? NULL : config, full ? full : family_rope_parameters(config),
                             1e6, global, &partial, where, e);
    if (!rc && partial == 1)
        rc = json_num_opt(config, "rope_local_base_freq", &theta, where, e);
    if (!rc && partial == 1)
        rc = family_rope_set(NULL, near, theta, local, &partial, where, e);
    if (!rc && partial != 1)
        rc = err_set(e, ERR_UNSUPPORTED, "%s: partial rotary embedding (%g of a head)", where,
                     partial);
    /* One magnitude serves all layers. */
    return !rc && global->magnitude != local->magnitude ? family_rope_refuse("yarn", where, e) : rc;
}

static int gemma3_hf(struct model *m, const struct cJSON *config, const char *where,
                     const struct safetensors *st, struct err *e)
{
    struct rope_spec global, local;
    bool listed = false, both_ways = false;
    long long pattern = 6;
    int window = 0, rc = read_hf(m, config, 0, 0, &window, where, e);
    if (!rc)
        rc = json_bool_opt(config, "use_bidirectional_attention", &both_ways, where, e);
    if (!rc && both_ways)
        rc = err_set(e, ERR_UNSUPPORTED,
                     "%s: use_bidirectional_attention is true; this model "
                     "embeds texts, it does not write them",
                     where);
    if (!rc)
        rc = gemma3_rope(config, &global, &local, where, e);
    if (!rc)
        rc = json_int_opt(config, "_sliding_window_pattern", 1, 1024, &pattern, where, e);
    if (!rc)
        rc = json_int_opt(config, "sliding_window_pattern", 1, 1024, &pattern, where, e);
    if (rc)
        return rc;
    m->hp.rope_theta = global.theta;
    rc = family_bind(m, &(struct family_source){.where = where, .st = st}, &gemma3_map, &global, e);
    if (!rc)
        rc = family_hf_layer_types(m, config, window, &listed, where, e);
    if (!rc && !listed)
        slide(m, pattern, window);
    return rc ? rc : set_local_rope(m, &local, where, e);
}

/* GGUF has no key for query_pre_attn_scalar: the usual scale is 1/sqrt(head_dim), and the largest
 * models of both generations use hidden / heads, which is told by their number of layers. */
static void gguf_scale(struct model_hparams *hp, int largest)
{
    hp->embed_scale = sqrt(hp->hidden);
    hp->act = GLU_GELU_TANH;
    if (hp->n_layer == largest)
        hp->attn_scale = 1 / sqrt((double)hp->hidden / hp->n_head);
}

static int gemma2_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    struct rope_spec rope;
    int window = 0, rc = family_gguf_base(m, g, "gemma2", GGUF_WINDOW | GGUF_SOFTCAP, e);
    if (!rc)
        rc = family_gguf_int(g, "gemma2", "attention.sliding_window", 0, 1 << 28, 4096, &window, e);
    if (!rc)
        rc = family_rope_gguf(g, "gemma2", &rope, e);
    if (rc)
        return rc;
    gguf_scale(&m->hp, 46);
    m->hp.attn_softcap = gguf_num_or(g, "gemma2.attn_logit_softcapping", 50);
    m->hp.logit_softcap = gguf_num_or(g, "gemma2.final_logit_softcapping", 30);
    m->hp.rope_theta = rope.theta;
    rc = family_bind(m, &(struct family_source){.where = gguf_path(g), .gguf = g}, &gemma2_map,
                     &rope, e);
    if (!rc)
        slide(m, 2, window);
    return rc;
}

static int gemma3_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    struct rope_spec rope, local = {.factor = 1};
    int window = 0, rc = family_gguf_base(m, g, "gemma3", GGUF_WINDOW | GGUF_SOFTCAP, e);
    if (!rc)
        rc = family_gguf_int(g, "gemma3", "attention.sliding_window", 0, 1 << 28, 0, &window, e);
    if (!rc)
        rc = family_rope_gguf(g, "gemma3", &rope, e);
    if (rc)
        return rc;
    local.theta = gguf_num_or(g, "gemma3.rope.freq_base_swa", 10000);
    rc = ropefreq_check(&local, gguf_path(g), e);
    if (rc)
        return rc;
    gguf_scale(&m->hp, 62);
    m->hp.logit_softcap = gguf_num_or(g, "gemma3.final_logit_softcapping", 0);
    m->hp.rope_theta = rope.theta;
    rc = family_bind(m, &(struct family_source){.where = gguf_path(g), .gguf = g}, &gemma3_map,
                     &rope, e);
    if (!rc)
        slide(m, 6, window);
    return rc ? rc : set_local_rope(m, &local, gguf_path(g), e);
}

const struct family family_gemma2 = {
    .name = "gemma2",
    .hf_model_types = (const char *const[]){"gemma2", NULL},
    .gguf_archs = (const char *const[]){"gemma2", NULL},
    .open_hf = gemma2_hf,
    .open_gguf = gemma2_gguf,
};

const struct family family_gemma3 = {
    .name = "gemma3",
    .hf_model_types = (const char *const[]){"gemma3_text", NULL},
    .gguf_archs = (const char *const[]){"gemma3", NULL},
    .open_hf = gemma3_hf,
    .open_gguf = gemma3_gguf,
};
