/* The Llama family and its nearest relatives: Llama 2 and 3.x, SmolLM2 and what else is published
 * as "llama"; Mistral with its sliding window; Mixtral with its experts, which travels as llama in
 * GGUF.
 *
 * Refuses by name what family_config.c and family_rope.c refuse. */
#include <math.h>
#include <stdio.h>

#include "core/family.h"
#include "core/gguf.h"

const struct family_slot family_llama_slots[] = {
    {"attn_norm.weight", "input_layernorm.weight", LAYER_AT(attn_norm), DIM_HIDDEN, DIM_NONE, 0},
    {"attn_q.weight", "self_attn.q_proj.weight", LAYER_AT(q), DIM_Q, DIM_HIDDEN, SLOT_ROPE_ROWS},
    {"attn_k.weight", "self_attn.k_proj.weight", LAYER_AT(k), DIM_KV, DIM_HIDDEN, SLOT_ROPE_ROWS},
    {"attn_v.weight", "self_attn.v_proj.weight", LAYER_AT(v), DIM_KV, DIM_HIDDEN, 0},
    {"attn_output.weight", "self_attn.o_proj.weight", LAYER_AT(o), DIM_HIDDEN, DIM_Q, 0},
    {"ffn_norm.weight", "post_attention_layernorm.weight", LAYER_AT(ffn_norm), DIM_HIDDEN, DIM_NONE,
     0},
    {"ffn_gate.weight", "mlp.gate_proj.weight", LAYER_AT(gate), DIM_FFN, DIM_HIDDEN, SLOT_DENSE},
    {"ffn_up.weight", "mlp.up_proj.weight", LAYER_AT(up), DIM_FFN, DIM_HIDDEN, SLOT_DENSE},
    {"ffn_down.weight", "mlp.down_proj.weight", LAYER_AT(down), DIM_HIDDEN, DIM_FFN, SLOT_DENSE},
    {"attn_q.bias", "self_attn.q_proj.bias", LAYER_AT(q_bias), DIM_Q, DIM_NONE,
     SLOT_ROPE_ROWS | SLOT_ATTN_BIAS},
    {"attn_k.bias", "self_attn.k_proj.bias", LAYER_AT(k_bias), DIM_KV, DIM_NONE,
     SLOT_ROPE_ROWS | SLOT_ATTN_BIAS},
    {"attn_v.bias", "self_attn.v_proj.bias", LAYER_AT(v_bias), DIM_KV, DIM_NONE, SLOT_ATTN_BIAS},
    {"attn_output.bias", "self_attn.o_proj.bias", LAYER_AT(o_bias), DIM_HIDDEN, DIM_NONE,
     SLOT_ATTN_BIAS},
    {"ffn_gate.bias", "mlp.gate_proj.bias", LAYER_AT(gate_bias), DIM_FFN, DIM_NONE,
     SLOT_DENSE | SLOT_MLP_BIAS},
    {"ffn_up.bias", "mlp.up_proj.bias", LAYER_AT(up_bias), DIM_FFN, DIM_NONE,
     SLOT_DENSE | SLOT_MLP_BIAS},
    {"ffn_down.bias", "mlp.down_proj.bias", LAYER_AT(down_bias), DIM_HIDDEN, DIM_NONE,
     SLOT_DENSE | SLOT_MLP_BIAS},
    {"ffn_gate_inp.weight", "block_sparse_moe.gate.weight", LAYER_AT(router), DIM_EXPERTS,
     DIM_HIDDEN, SLOT_MOE},
    {"ffn_gate_exps.weight", "block_sparse_moe.experts.#.w1.weight", EXPERT_GATE, DIM_EXPERT_FFN,
     DIM_HIDDEN, SLOT_MOE | SLOT_EXPERTS},
    {"ffn_up_exps.weight", "block_sparse_moe.experts.#.w3.weight", EXPERT_UP, DIM_EXPERT_FFN,
     DIM_HIDDEN, SLOT_MOE | SLOT_EXPERTS},
    {"ffn_down_exps.weight", "block_sparse_moe.experts.#.w2.weight", EXPERT_DOWN, DIM_HIDDEN,
     DIM_EXPERT_FFN, SLOT_MOE | SLOT_EXPERTS},
    {0},
};

static const struct family_map map = {
    .global = family_global_slots,
    .layer = family_llama_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
};

static const struct family_defaults defaults = {
    .theta = 10000, .eps = 1e-6, .act = "silu", .act_key = "hidden_act"};

static int bind_hf(struct model *m, const cJSON *config, double theta, unsigned biases,
                   const char *where, const struct safetensors *st, struct err *e)
{
    struct rope_spec rope;
    struct family_map with = map;
    int rc = family_rope_hf(config, theta, &rope, where, e);
    if (rc)
        return rc;
    with.biases = biases;
    m->hp.rope_theta = rope.theta;
    return family_bind(m, &(struct family_source){.where = where, .st = st}, &with, &rope, e);
}

static int llama_hf(struct model *m, const struct cJSON *config, const char *where,
                    const struct safetensors *st, struct err *e)
{
    struct family_defaults biased = defaults;
    unsigned biases = 0;
    biased.biases = biased.mlp_biases = true;
    int rc = family_hf_base(m, config, &biased, where, e);
    if (!rc)
        rc = family_hf_biases(config, &biases, where, e);
    return rc ? rc : bind_hf(m, config, defaults.theta, biases, where, st, e);
}

static void slide(struct model *m, int window)
{
    for (int l = 0; l < m->hp.n_layer; l++)
        m->layer[l].window = window;
}

static int mistral_hf(struct model *m, const struct cJSON *config, const char *where,
                      const struct safetensors *st, struct err *e)
{
    int window = 0, rc = family_hf_base(m, config, &defaults, where, e);
    if (!rc)
        rc = family_hf_window(config, 4096, &window, where, e);
    if (!rc)
        rc = bind_hf(m, config, defaults.theta, 0, where, st, e);
    if (!rc)
        slide(m, window);
    return rc;
}

/* Softmax over all experts, the best ones taken and their weights renormalised. */
static void set_experts(struct model_hparams *hp, int n, int used)
{
    hp->moe =
        (struct model_moe){.n = n, .used = used, .ffn = hp->ffn, .renormalise = true, .scale = 1};
}

static int mixtral_hf(struct model *m, const struct cJSON *config, const char *where,
                      const struct safetensors *st, struct err *e)
{
    long long n = 8, used = 2;
    int window = 0, rc = family_hf_base(m, config, &defaults, where, e);
    if (!rc)
        rc = json_int_opt(config, "num_local_experts", 1, MODEL_MAX_EXPERTS, &n, where, e);
    if (!rc)
        rc = json_int_opt(config, "num_experts_per_tok", 1, n, &used, where, e);
    if (!rc)
        rc = family_hf_window(config, 0, &window, where, e);
    if (rc)
        return rc;
    set_experts(&m->hp, (int)n, (int)used);
    rc = bind_hf(m, config, 1e6, 0, where, st, e);
    if (!rc)
        slide(m, window);
    return rc;
}

static int llama_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    struct rope_spec rope;
    int experts = 0, used = 0, rc = family_gguf_base(m, g, "llama", GGUF_EXPERTS, e);
    if (!rc)
        rc = family_gguf_int(g, "llama", "expert_count", 0, MODEL_MAX_EXPERTS, 0, &experts, e);
    if (!rc && experts)
        rc = family_gguf_int(g, "llama", "expert_used_count", 1, experts, -1, &used, e);
    if (!rc)
        rc = family_rope_gguf(g, "llama", &rope, e);
    if (rc)
        return rc;
    if (experts)
        set_experts(&m->hp, experts, used);
    m->hp.rope_theta = rope.theta;
    return family_bind(m, &(struct family_source){.where = gguf_path(g), .gguf = g}, &map, &rope,
                       e);
}

const struct family family_llama = {
    .name = "llama",
    .hf_model_types = (const char *const[]){"llama", NULL},
    .gguf_archs = (const char *const[]){"llama", NULL},
    .open_hf = llama_hf,
    .open_gguf = llama_gguf,
};

const struct family family_mistral = {
    .name = "mistral",
    .hf_model_types = (const char *const[]){"mistral", NULL},
    .gguf_archs = (const char *const[]){NULL},
    .open_hf = mistral_hf,
};

const struct family family_mixtral = {
    .name = "mixtral",
    .hf_model_types = (const char *const[]){"mixtral", NULL},
    .gguf_archs = (const char *const[]){NULL},
    .open_hf = mixtral_hf,
};
