/* Qwen 2 and 2.5 (biases on q, k and v), Qwen 3 (each head of q and k normed before the rotation),
 * and MiMo, which is a Qwen 2 with multi-token prediction layers: those are left out and counted.
 * Rows of heads are in half-split order in both formats.
 *
 * Refuses by name what family_config.c and family_rope.c refuse; tensors of experts are strangers.
 */
#include <stdio.h>

#include "core/family.h"
#include "core/gguf.h"

#define QWEN_ATTENTION                                                                             \
    {"attn_norm.weight", "input_layernorm.weight", LAYER_AT(attn_norm), DIM_HIDDEN, DIM_NONE, 0},  \
        {"attn_q.weight", "self_attn.q_proj.weight", LAYER_AT(q), DIM_Q, DIM_HIDDEN, 0},           \
        {"attn_k.weight", "self_attn.k_proj.weight", LAYER_AT(k), DIM_KV, DIM_HIDDEN, 0},          \
        {"attn_v.weight", "self_attn.v_proj.weight", LAYER_AT(v), DIM_KV, DIM_HIDDEN, 0},          \
    {                                                                                              \
        "attn_output.weight", "self_attn.o_proj.weight", LAYER_AT(o), DIM_HIDDEN, DIM_Q, 0         \
    }
#define QWEN_FEED_FORWARD                                                                          \
    {"ffn_norm.weight",  "post_attention_layernorm.weight",                                        \
     LAYER_AT(ffn_norm), DIM_HIDDEN,                                                               \
     DIM_NONE,           0},                                                                       \
        {"ffn_gate.weight", "mlp.gate_proj.weight", LAYER_AT(gate), DIM_FFN, DIM_HIDDEN, 0},       \
        {"ffn_up.weight", "mlp.up_proj.weight", LAYER_AT(up), DIM_FFN, DIM_HIDDEN, 0},             \
    {                                                                                              \
        "ffn_down.weight", "mlp.down_proj.weight", LAYER_AT(down), DIM_HIDDEN, DIM_FFN, 0          \
    }

static const struct family_slot qwen2_slots[] = {
    QWEN_ATTENTION,
    {"attn_q.bias", "self_attn.q_proj.bias", LAYER_AT(q_bias), DIM_Q, DIM_NONE, 0},
    {"attn_k.bias", "self_attn.k_proj.bias", LAYER_AT(k_bias), DIM_KV, DIM_NONE, 0},
    {"attn_v.bias", "self_attn.v_proj.bias", LAYER_AT(v_bias), DIM_KV, DIM_NONE, 0},
    QWEN_FEED_FORWARD,
    {0},
};
static const struct family_slot qwen3_slots[] = {
    QWEN_ATTENTION,
    {"attn_q_norm.weight", "self_attn.q_norm.weight", LAYER_AT(q_norm), DIM_HEAD, DIM_NONE, 0},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", LAYER_AT(k_norm), DIM_HEAD, DIM_NONE, 0},
    QWEN_FEED_FORWARD,
    {0},
};

static const struct family_map qwen2_map = {
    .global = family_global_slots,
    .layer = qwen2_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
};
static const struct family_map qwen3_map = {
    .global = family_global_slots,
    .layer = qwen3_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
};
static const struct family_map mimo_map = {
    .global = family_global_slots,
    .layer = qwen2_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
    .left_out = (const char *const[]){"model.mtp_layers.", NULL},
};

/* sliding_window is there in most configurations and means nothing until use_sliding_window is
 * true; then it holds from layer max_window_layers on. */
static int set_windows(struct model *m, const cJSON *config, const char *where, struct err *e)
{
    bool use = false, listed = false;
    long long from = 28;
    int window = 0, rc = json_bool_opt(config, "use_sliding_window", &use, where, e);
    if (rc || !use)
        return rc;
    rc = family_hf_window(config, 4096, &window, where, e);
    if (!rc)
        rc = family_hf_layer_types(m, config, window, &listed, where, e);
    if (!rc)
        rc = json_int_opt(config, "max_window_layers", 0, 1 << 20, &from, where, e);
    for (int l = 0; !rc && !listed && l < m->hp.n_layer; l++)
        m->layer[l].window = l >= from ? window : 0;
    return rc;
}

static int open_hf(struct model *m, const cJSON *config, const char *where,
                   const struct safetensors *st, const struct family_map *map, bool biases,
                   struct err *e)
{
    const struct family_defaults defaults = {
        .theta = 10000, .eps = 1e-6, .act = "silu", .act_key = "hidden_act", .biases = biases};
    struct rope_spec rope;
    int rc = family_hf_base(m, config, &defaults, where, e);
    if (!rc)
        rc = family_rope_hf(config, defaults.theta, &rope, where, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    rc = family_bind(m, &(struct family_source){.where = where, .st = st}, map, &rope, e);
    return rc ? rc : set_windows(m, config, where, e);
}

static int qwen2_hf(struct model *m, const struct cJSON *config, const char *where,
                    const struct safetensors *st, struct err *e)
{
    return open_hf(m, config, where, st, &qwen2_map, true, e);
}

static int qwen3_hf(struct model *m, const struct cJSON *config, const char *where,
                    const struct safetensors *st, struct err *e)
{
    return open_hf(m, config, where, st, &qwen3_map, false, e);
}

static int mimo_hf(struct model *m, const struct cJSON *config, const char *where,
                   const struct safetensors *st, struct err *e)
{
    long long skipped = 0;
    int rc = json_int_opt(config, "num_nextn_predict_layers", 0, 64, &skipped, where, e);
    if (!rc)
        rc = open_hf(m, config, where, st, &mimo_map, true, e);
    m->hp.skipped_layers = (int)skipped;
    return rc;
}

static int open_gguf(struct model *m, const struct gguf *g, const char *arch,
                     const struct family_map *map, struct err *e)
{
    struct rope_spec rope;
    int rc = family_gguf_base(m, g, arch, 0, e);
    if (!rc)
        rc = family_rope_gguf(g, arch, &rope, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    return family_bind(m, &(struct family_source){.where = gguf_path(g), .gguf = g}, map, &rope, e);
}

static int qwen2_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    return open_gguf(m, g, "qwen2", &qwen2_map, e);
}

static int qwen3_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    return open_gguf(m, g, "qwen3", &qwen3_map, e);
}

const struct family family_qwen2 = {
    .name = "qwen2",
    .hf_model_types = (const char *const[]){"qwen2", NULL},
    .gguf_archs = (const char *const[]){"qwen2", NULL},
    .open_hf = qwen2_hf,
    .open_gguf = qwen2_gguf,
};

const struct family family_qwen3 = {
    .name = "qwen3",
    .hf_model_types = (const char *const[]){"qwen3", NULL},
    .gguf_archs = (const char *const[]){"qwen3", NULL},
    .open_hf = qwen3_hf,
    .open_gguf = qwen3_gguf,
};

const struct family family_mimo = {
    .name = "mimo",
    .hf_model_types = (const char *const[]){"mimo", NULL},
    .gguf_archs = (const char *const[]){NULL},
    .open_hf = mimo_hf,
};
