/* Qwen3-MoE: Qwen 3 with experts in all layers but those that config.json counts or lists out (in
 * GGUF: that have a plain gate). Softmax over all experts; the weights of the chosen ones are renormalised where
 * norm_topk_prob says so, in GGUF always, as llama.cpp does.
 *
 * Refuses biases, windows of GGUF, and what family_config.c and family_rope.c refuse. */
#include <stdio.h>

#include "core/family.h"
#include "core/gguf.h"

#define EXPERT(gguf, hf, part, rows, cols)                                                         \
    {                                                                                              \
        gguf, hf, part, rows, cols, SLOT_MOE | SLOT_EXPERTS                                        \
    }

static const struct family_slot layer_slots[] = {
    {"attn_norm.weight", "input_layernorm.weight", LAYER_AT(attn_norm), DIM_HIDDEN, DIM_NONE, 0},
    {"attn_q.weight", "self_attn.q_proj.weight", LAYER_AT(q), DIM_Q, DIM_HIDDEN, 0},
    {"attn_k.weight", "self_attn.k_proj.weight", LAYER_AT(k), DIM_KV, DIM_HIDDEN, 0},
    {"attn_v.weight", "self_attn.v_proj.weight", LAYER_AT(v), DIM_KV, DIM_HIDDEN, 0},
    {"attn_output.weight", "self_attn.o_proj.weight", LAYER_AT(o), DIM_HIDDEN, DIM_Q, 0},
    {"attn_q_norm.weight", "self_attn.q_norm.weight", LAYER_AT(q_norm), DIM_HEAD, DIM_NONE, 0},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", LAYER_AT(k_norm), DIM_HEAD, DIM_NONE, 0},
    {"ffn_norm.weight", "post_attention_layernorm.weight", LAYER_AT(ffn_norm), DIM_HIDDEN, DIM_NONE,
     0},
    {"ffn_gate.weight", "mlp.gate_proj.weight", LAYER_AT(gate), DIM_FFN, DIM_HIDDEN, SLOT_DENSE},
    {"ffn_up.weight", "mlp.up_proj.weight", LAYER_AT(up), DIM_FFN, DIM_HIDDEN, SLOT_DENSE},
    {"ffn_down.weight", "mlp.down_proj.weight", LAYER_AT(down), DIM_HIDDEN, DIM_FFN, SLOT_DENSE},
    {"ffn_gate_inp.weight", "mlp.gate.weight", LAYER_AT(router), DIM_EXPERTS, DIM_HIDDEN, SLOT_MOE},
    EXPERT("ffn_gate_exps.weight", "mlp.experts.#.gate_proj.weight", EXPERT_GATE, DIM_EXPERT_FFN,
           DIM_HIDDEN),
    EXPERT("ffn_up_exps.weight", "mlp.experts.#.up_proj.weight", EXPERT_UP, DIM_EXPERT_FFN,
           DIM_HIDDEN),
    EXPERT("ffn_down_exps.weight", "mlp.experts.#.down_proj.weight", EXPERT_DOWN, DIM_HIDDEN,
           DIM_EXPERT_FFN),
    {0},
};

static const struct family_map map = {
    .global = family_global_slots,
    .layer = layer_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
};

/* A layer has experts when (l + 1) divides by decoder_sparse_step and mlp_only_layers does not name
 * it. */
static int mark_dense(struct model_moe *moe, const cJSON *config, const char *where, struct err *e)
{
    const cJSON *list = json_get(config, "mlp_only_layers"), *item;
    long long step = 1;
    int rc = json_int_opt(config, "decoder_sparse_step", 1, 1 << 20, &step, where, e);
    for (int l = 0; !rc && l < MODEL_MAX_LAYERS; l++)
        moe->dense[l] = (l + 1) % step != 0;
    for (item = list ? list->child : NULL; !rc && item; item = item->next) {
        double v = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(v >= 0 && v < 1e6))
            return err_set(e, ERR_FORMAT, "%s: \"mlp_only_layers\" must hold numbers of layers",
                           where);
        if (v < MODEL_MAX_LAYERS)
            moe->dense[(int)v] = true;
    }
    return rc;
}

static int read_experts(struct model_hparams *hp, const cJSON *config, const char *where,
                        struct err *e)
{
    long long n = 128, used = 8, ffn = 768;
    struct model_moe *moe = &hp->moe;
    int rc = json_int_opt(config, "num_local_experts", 1, MODEL_MAX_EXPERTS, &n, where, e);
    if (!rc)
        rc = json_int_opt(config, "num_experts", 1, MODEL_MAX_EXPERTS, &n, where, e);
    if (!rc)
        rc = json_int_opt(config, "num_experts_per_tok", 1, n, &used, where, e);
    if (!rc)
        rc = json_int_opt(config, "moe_intermediate_size", 1, 1 << 20, &ffn, where, e);
    *moe = (struct model_moe){.n = (int)n, .used = (int)used, .ffn = (int)ffn, .scale = 1};
    if (!rc)
        rc = json_bool_opt(config, "norm_topk_prob", &moe->renormalise, where, e);
    return rc ? rc : mark_dense(moe, config, where, e);
}

static int qwen3_moe_hf(struct model *m, const struct cJSON *config, const char *where,
                        const struct safetensors *st, struct err *e)
{
    static const struct family_defaults defaults = {
        .theta = 10000, .eps = 1e-6, .act = "silu", .act_key = "hidden_act"};
    struct rope_spec rope;
    bool slides = false;
    int window = 0, rc = family_hf_base(m, config, &defaults, where, e);
    if (!rc)
        rc = read_experts(&m->hp, config, where, e);
    if (!rc)
        rc = json_bool_opt(config, "use_sliding_window", &slides, where, e);
    if (!rc && slides)
        rc = family_hf_window(config, 4096, &window, where, e);
    if (!rc)
        rc = family_rope_hf(config, defaults.theta, &rope, where, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    rc = family_bind(m, &(struct family_source){.where = where, .st = st}, &map, &rope, e);
    for (int l = 0; !rc && l < m->hp.n_layer; l++)
        m->layer[l].window = window;
    return rc;
}

static int qwen3_moe_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    static const char arch[] = "qwen3moe";
    struct rope_spec rope;
    struct model_moe *moe = &m->hp.moe;
    int rc = family_gguf_base(m, g, arch, GGUF_EXPERTS, e);
    *moe = (struct model_moe){.renormalise = true, .scale = 1};
    if (!rc)
        rc = family_gguf_int(g, arch, "expert_count", 1, MODEL_MAX_EXPERTS, -1, &moe->n, e);
    if (!rc)
        rc = family_gguf_int(g, arch, "expert_used_count", 1, moe->n, -1, &moe->used, e);
    if (!rc)
        rc = family_gguf_int(g, arch, "expert_feed_forward_length", 1, 1 << 20, -1, &moe->ffn, e);
    for (int l = 0; l < MODEL_MAX_LAYERS; l++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%d.ffn_gate.weight", l);
        moe->dense[l] = gguf_has_tensor(g, name);
    }
    if (!rc)
        rc = family_rope_gguf(g, arch, &rope, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    return family_bind(m, &(struct family_source){.where = gguf_path(g), .gguf = g}, &map, &rope,
                       e);
}

const struct family family_qwen3_moe = {
    .name = "qwen3moe",
    .hf_model_types = (const char *const[]){"qwen3_moe", NULL},
    .gguf_archs = (const char *const[]){"qwen3moe", NULL},
    .open_hf = qwen3_moe_hf,
    .open_gguf = qwen3_moe_gguf,
};
