/* The Llama family: Llama 2 and 3.x, SmolLM2 and what else is published as "llama".
 *
 * Refuses by name: attention or MLP biases, sliding windows, experts (Mixtral travels as llama in
 * GGUF), scaled embeddings or logits (Granite), activations other than SiLU, quantised
 * safetensors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/family.h"
#include "core/gguf.h"

#define SIZE_LIMIT (1 << 28) /* of a number in a configuration; family_check_hparams is stricter   \
                              */

#define G(field) offsetof(struct model, field)
#define L(field) offsetof(struct model_layer, field)
static const struct family_slot global_slots[] = {
    {"token_embd.weight", "model.embed_tokens.weight", G(embed), DIM_VOCAB, DIM_HIDDEN, 0},
    {"output_norm.weight", "model.norm.weight", G(final_norm), DIM_HIDDEN, DIM_NONE, 0},
    {"output.weight", "lm_head.weight", G(head), DIM_VOCAB, DIM_HIDDEN, SLOT_OPTIONAL},
    {0},
};
static const struct family_slot layer_slots[] = {
    {"attn_norm.weight", "input_layernorm.weight", L(attn_norm), DIM_HIDDEN, DIM_NONE, 0},
    {"attn_q.weight", "self_attn.q_proj.weight", L(q), DIM_Q, DIM_HIDDEN, SLOT_ROPE_ROWS},
    {"attn_k.weight", "self_attn.k_proj.weight", L(k), DIM_KV, DIM_HIDDEN, SLOT_ROPE_ROWS},
    {"attn_v.weight", "self_attn.v_proj.weight", L(v), DIM_KV, DIM_HIDDEN, 0},
    {"attn_output.weight", "self_attn.o_proj.weight", L(o), DIM_HIDDEN, DIM_Q, 0},
    {"ffn_norm.weight", "post_attention_layernorm.weight", L(ffn_norm), DIM_HIDDEN, DIM_NONE, 0},
    {"ffn_gate.weight", "mlp.gate_proj.weight", L(gate), DIM_FFN, DIM_HIDDEN, 0},
    {"ffn_up.weight", "mlp.up_proj.weight", L(up), DIM_FFN, DIM_HIDDEN, 0},
    {"ffn_down.weight", "mlp.down_proj.weight", L(down), DIM_HIDDEN, DIM_FFN, 0},
    {0},
};
#undef G
#undef L

/* Tables that old exports carry along; rope_freqs has been read by then. */
static const char *const ignored[] = {"rotary_emb.inv_freq", "rope_freqs.weight", NULL};

static const struct family_map map = {
    .global = global_slots,
    .layer = layer_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = ignored,
};

static int hf_sizes(struct model_hparams *hp, const cJSON *config, const char *where, struct err *e)
{
    long long layers = 0, hidden = 0, heads = 0, kv = 0, d = 0, ffn = 0, vocab = 0, context = 2048;
    int rc = json_int(config, "num_hidden_layers", 1, SIZE_LIMIT, &layers, where, e);
    if (!rc)
        rc = json_int(config, "hidden_size", 1, SIZE_LIMIT, &hidden, where, e);
    if (!rc)
        rc = json_int(config, "num_attention_heads", 1, SIZE_LIMIT, &heads, where, e);
    kv = heads; /* Llama 2 7B and 13B do not say */
    if (!rc)
        rc = json_int_opt(config, "num_key_value_heads", 1, SIZE_LIMIT, &kv, where, e);
    if (!rc)
        rc = json_int_opt(config, "head_dim", 1, SIZE_LIMIT, &d, where, e);
    if (!rc)
        rc = json_int(config, "intermediate_size", 1, SIZE_LIMIT, &ffn, where, e);
    if (!rc)
        rc = json_int(config, "vocab_size", 1, SIZE_LIMIT, &vocab, where, e);
    if (!rc)
        rc = json_int_opt(config, "max_position_embeddings", 1, SIZE_LIMIT, &context, where, e);
    if (!rc && !d && hidden % heads)
        rc = err_set(e, ERR_FORMAT,
                     "%s: %lld heads do not divide hidden size %lld, and no "
                     "head_dim is given",
                     where, heads, hidden);
    if (rc)
        return rc;
    hp->n_layer = (int)layers;
    hp->hidden = (int)hidden;
    hp->n_head = (int)heads;
    hp->n_kv_head = (int)kv;
    hp->head_dim = (int)(d ? d : hidden / heads);
    hp->ffn = (int)ffn;
    hp->vocab = (int)vocab;
    hp->context = (int)context;
    return OK;
}

/* What a config.json may switch on and we do not compute. */
static int hf_refuse(const cJSON *config, const char *where, struct err *e)
{
    bool attention_bias = false, mlp_bias = false;
    int rc = json_bool_opt(config, "attention_bias", &attention_bias, where, e);
    if (!rc)
        rc = json_bool_opt(config, "mlp_bias", &mlp_bias, where, e);
    if (rc)
        return rc;
    if (attention_bias || mlp_bias)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: %s is true; Llama models with biases cannot be "
                       "run yet",
                       where, attention_bias ? "attention_bias" : "mlp_bias");
    const char *act = json_str_or(config, "hidden_act", "silu");
    if (strcmp(act, "silu") && strcmp(act, "swish"))
        return err_set(e, ERR_UNSUPPORTED, "%s: activation \"%.40s\"; silu can be computed", where,
                       act);
    const cJSON *quant = json_get(config, "quantization_config");
    if (quant)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: weights quantised by \"%.40s\"; take the model in "
                       "BF16 or F16, or a GGUF file",
                       where, json_str_or(quant, "quant_method", "an unnamed method"));
    return OK;
}

static int open_hf(struct model *m, const struct cJSON *config, const char *where,
                   const struct safetensors *st, struct err *e)
{
    struct model_hparams *hp = &m->hp;
    struct rope_spec rope;
    bool tied = false;
    int rc = hf_refuse(config, where, e);
    if (!rc)
        rc = hf_sizes(hp, config, where, e);
    if (!rc)
        rc = family_rope_hf(config, 10000, &rope, where, e);
    hp->rms_eps = 1e-6;
    if (!rc)
        rc = json_num_opt(config, "rms_norm_eps", &hp->rms_eps, where, e);
    if (!rc)
        rc = json_bool_opt(config, "tie_word_embeddings", &tied, where, e);
    if (rc)
        return rc;
    hp->rope_theta = rope.theta;
    hp->attn_scale = 1 / sqrt(hp->head_dim);
    hp->tied = tied;
    return family_bind(m, &(struct family_source){.where = where, .st = st}, &map, &rope, e);
}

/* Keys that other models of architecture "llama" carry, and the value that changes nothing. */
static int gguf_refuse(const struct gguf *g, struct err *e)
{
    static const struct {
        const char *key;
        double neutral;
        const char *what;
    } switches[] = {
        {"llama.expert_count", 0, "experts (a Mixtral model)"},
        {"llama.attention.sliding_window", 0, "a sliding window"},
        {"llama.embedding_scale", 1, "scaled embeddings"},
        {"llama.residual_scale", 1, "a scaled residual"},
        {"llama.logit_scale", 1, "scaled logits"},
        {"llama.rope.scaling.attn_factor", 1, "a rope magnitude"},
        {"llama.attn_logit_softcapping", 0, "a soft cap"},
        {"llama.final_logit_softcapping", 0, "a soft cap"},
    };
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        double v = switches[i].neutral;
        int rc = gguf_has(g, switches[i].key) ? gguf_num(g, switches[i].key, &v, e) : OK;
        if (rc)
            return rc;
        if (v != switches[i].neutral)
            return err_set(e, ERR_UNSUPPORTED,
                           "%s: \"%s\" is %g: a Llama model with %s cannot be "
                           "run yet",
                           gguf_path(g), switches[i].key, v, switches[i].what);
    }
    return OK;
}

/* Rows of the embedding, which some files have more of than the tokenizer has tokens. */
static int gguf_vocab(const struct gguf *g, int *vocab, struct err *e)
{
    struct tensor t;
    int rc = gguf_tensor(g, "token_embd.weight", &t, e);
    if (rc)
        return rc;
    if (t.rank != 2 || t.dim[0] > SIZE_LIMIT)
        return err_set(e, ERR_FORMAT, "%s: tensor token_embd.weight is no table", gguf_path(g));
    *vocab = (int)t.dim[0];
    return OK;
}

static int gguf_sizes(struct model_hparams *hp, const struct gguf *g, struct err *e)
{
    int key = 0, value = 0, rotary = 0;
    const struct {
        const char *name;
        int *out;
        const int *fallback; /* NULL: required */
    } sizes[] = {
        {"block_count", &hp->n_layer, NULL},
        {"embedding_length", &hp->hidden, NULL},
        {"feed_forward_length", &hp->ffn, NULL},
        {"context_length", &hp->context, NULL},
        {"attention.head_count", &hp->n_head, NULL},
        {"attention.head_count_kv", &hp->n_kv_head, &hp->n_head},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int rc = family_gguf_int(g, "llama", sizes[i].name, 1, SIZE_LIMIT,
                                 sizes[i].fallback ? *sizes[i].fallback : -1, sizes[i].out, e);
        if (rc)
            return rc;
    }
    int usual = hp->hidden / hp->n_head;
    if (hp->hidden % hp->n_head && !gguf_has(g, "llama.attention.key_length"))
        return err_set(e, ERR_FORMAT, "%s: %d heads do not divide embedding length %d",
                       gguf_path(g), hp->n_head, hp->hidden);
    int rc = family_gguf_int(g, "llama", "attention.key_length", 1, SIZE_LIMIT, usual, &key, e);
    if (!rc)
        rc = family_gguf_int(g, "llama", "attention.value_length", 1, SIZE_LIMIT, key, &value, e);
    if (!rc)
        rc = family_gguf_int(g, "llama", "rope.dimension_count", 1, SIZE_LIMIT, key, &rotary, e);
    if (!rc && (value != key || rotary != key))
        rc = err_set(e, ERR_UNSUPPORTED,
                     "%s: keys of %d, values of %d and a rotary part of %d "
                     "numbers a head; they must be equal",
                     gguf_path(g), key, value, rotary);
    hp->head_dim = key;
    return rc ? rc : gguf_vocab(g, &hp->vocab, e);
}

static int open_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    struct model_hparams *hp = &m->hp;
    struct rope_spec rope;
    int rc = gguf_refuse(g, e);
    if (!rc)
        rc = gguf_sizes(hp, g, e);
    if (!rc)
        rc = gguf_num(g, "llama.attention.layer_norm_rms_epsilon", &hp->rms_eps, e);
    if (!rc)
        rc = family_rope_gguf(g, "llama", &rope, e);
    if (rc)
        return rc;
    hp->rope_theta = rope.theta;
    hp->attn_scale = gguf_num_or(g, "llama.attention.scale", 0);
    if (hp->attn_scale == 0)
        hp->attn_scale = 1 / sqrt(hp->head_dim);
    return family_bind(m, &(struct family_source){.where = gguf_path(g), .gguf = g}, &map, &rope,
                       e);
}

const struct family family_llama = {
    .name = "llama",
    .hf_model_types = (const char *const[]){"llama", NULL},
    .gguf_archs = (const char *const[]){"llama", NULL},
    .open_hf = open_hf,
    .open_gguf = open_gguf,
};
