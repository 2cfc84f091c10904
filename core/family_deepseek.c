/* DeepSeek V2 and V3, and Mistral 4, which is V3 with another router and stacked experts (from
 * safetensors; GGUF is family_deepseek_gguf.c): attention that is MLA from
 * the start, with a norm on the latent (whose epsilon is fixed, whatever rms_norm_eps says), an
 * optional narrow query with a norm of its own, rotated rows in interleaved pairs; experts beside a
 * shared one after the first dense layers. One multi-token prediction layer is read (family_mtp.c),
 * others are left out and counted.
 *
 * Refuses rope scaling that family_rope.c does not know, routers it does not know, an
 * attention_bias that the tensors contradict, and FP8 weights. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/family.h"

#define LATENT_EPS 1e-6

const struct family_slot family_deepseek_slots[] = {
    {"attn_norm.weight", "input_layernorm.weight", LAYER_AT(attn_norm), DIM_HIDDEN, DIM_NONE, 0},
    {"attn_q.weight", "self_attn.q_proj.weight", LAYER_AT(q), DIM_MLA_Q, DIM_HIDDEN,
     SLOT_MLA_ROPE | SLOT_Q_FULL},
    {"attn_q_a.weight", "self_attn.q_a_proj.weight", LAYER_AT(q_a), DIM_Q_LORA, DIM_HIDDEN,
     SLOT_Q_LORA},
    {NULL, "self_attn.q_a_proj.bias", LAYER_AT(q_a_bias), DIM_Q_LORA, DIM_NONE,
     SLOT_Q_LORA | SLOT_OPTIONAL},
    {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight", LAYER_AT(q_a_norm), DIM_Q_LORA,
     DIM_NONE, SLOT_Q_LORA},
    {"attn_q_b.weight", "self_attn.q_b_proj.weight", LAYER_AT(q), DIM_MLA_Q, DIM_Q_LORA,
     SLOT_MLA_ROPE | SLOT_Q_LORA},
    {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight", LAYER_AT(kv_a), DIM_KV_A,
     DIM_HIDDEN, SLOT_MLA_ROPE},
    {NULL, "self_attn.kv_a_proj_with_mqa.bias", LAYER_AT(kv_a_bias), DIM_KV_A, DIM_NONE,
     SLOT_MLA_ROPE | SLOT_OPTIONAL},
    {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight", LAYER_AT(kv_a_norm), DIM_LATENT,
     DIM_NONE, 0},
    {"attn_kv_b.weight", "self_attn.kv_b_proj.weight", LAYER_AT(kv_b), DIM_KV_B, DIM_LATENT,
     SLOT_KV_WHOLE},
    /* A head's key rows transposed, and its value rows; they become kv_b. */
    {"attn_k_b.weight", NULL, LAYER_AT(k), DIM_LATENT, DIM_NOPE, SLOT_KV_SPLIT},
    {"attn_v_b.weight", NULL, LAYER_AT(v), DIM_VALUE, DIM_LATENT, SLOT_KV_SPLIT},
    {"attn_output.weight", "self_attn.o_proj.weight", LAYER_AT(o), DIM_HIDDEN, DIM_MLA_OUT, 0},
    {NULL, "self_attn.o_proj.bias", LAYER_AT(o_bias), DIM_HIDDEN, DIM_NONE, SLOT_OPTIONAL},
    {"ffn_norm.weight", "post_attention_layernorm.weight", LAYER_AT(ffn_norm), DIM_HIDDEN, DIM_NONE,
     0},
    {"ffn_gate.weight", "mlp.gate_proj.weight", LAYER_AT(gate), DIM_FFN, DIM_HIDDEN, SLOT_DENSE},
    {"ffn_up.weight", "mlp.up_proj.weight", LAYER_AT(up), DIM_FFN, DIM_HIDDEN, SLOT_DENSE},
    {"ffn_down.weight", "mlp.down_proj.weight", LAYER_AT(down), DIM_HIDDEN, DIM_FFN, SLOT_DENSE},
    {"ffn_gate_inp.weight", "mlp.gate.weight", LAYER_AT(router), DIM_EXPERTS, DIM_HIDDEN, SLOT_MOE},
    {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias", LAYER_AT(router_bias), DIM_EXPERTS,
     DIM_NONE, SLOT_MOE | SLOT_OPTIONAL},
    {"ffn_gate_exps.weight", "mlp.experts.#.gate_proj.weight", EXPERT_GATE, DIM_EXPERT_FFN,
     DIM_HIDDEN, SLOT_MOE | SLOT_EXPERTS},
    {"ffn_up_exps.weight", "mlp.experts.#.up_proj.weight", EXPERT_UP, DIM_EXPERT_FFN, DIM_HIDDEN,
     SLOT_MOE | SLOT_EXPERTS},
    {"ffn_down_exps.weight", "mlp.experts.#.down_proj.weight", EXPERT_DOWN, DIM_HIDDEN,
     DIM_EXPERT_FFN, SLOT_MOE | SLOT_EXPERTS},
    {NULL, "mlp.experts.gate_up_proj", EXPERT_GATE, DIM_EXPERT_GATE_UP, DIM_HIDDEN,
     SLOT_MOE | SLOT_EXPERTS | SLOT_STACKED | SLOT_GATE_UP},
    {NULL, "mlp.experts.down_proj", EXPERT_DOWN, DIM_HIDDEN, DIM_EXPERT_FFN,
     SLOT_MOE | SLOT_EXPERTS | SLOT_STACKED},
    {"ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight", LAYER_AT(gate), DIM_SHARED_FFN,
     DIM_HIDDEN, SLOT_MOE | SLOT_SHARED},
    {"ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight", LAYER_AT(up), DIM_SHARED_FFN,
     DIM_HIDDEN, SLOT_MOE | SLOT_SHARED},
    {"ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight", LAYER_AT(down), DIM_HIDDEN,
     DIM_SHARED_FFN, SLOT_MOE | SLOT_SHARED},
    {0},
};

enum class { DEEPSEEK_V2, DEEPSEEK_V3, MISTRAL_4 };

struct number {
    const char *key;
    int *out;
    long long min, fallback; /* fallback < 0: must be there */
};

static int read_numbers(const cJSON *config, const struct number *list, size_t n, const char *where,
                        struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        long long v = list[i].fallback;
        int rc = v < 0 ? json_int(config, list[i].key, list[i].min, 1 << 24, &v, where, e)
                       : json_int_opt(config, list[i].key, list[i].min, 1 << 24, &v, where, e);
        if (rc)
            return rc;
        *list[i].out = (int)v;
    }
    return OK;
}

static int read_sizes(struct model_hparams *hp, const cJSON *config, const char *where,
                      struct err *e)
{
    const struct number sizes[] = {
        {"kv_lora_rank", &hp->kv_lora_rank, 1, -1},
        {"q_lora_rank", &hp->q_lora_rank, 0, 0},
        {"qk_rope_head_dim", &hp->qk_rope_head_dim, 2, -1},
        {"qk_nope_head_dim", &hp->qk_nope_head_dim, 1, -1},
        {"v_head_dim", &hp->v_head_dim, 1, -1},
        {"num_nextn_predict_layers", &hp->skipped_layers, 0, 0},
    };
    int rc = read_numbers(config, sizes, sizeof sizes / sizeof *sizes, where, e);
    if (rc)
        return rc;
    hp->n_kv_head = hp->n_head; /* every head has keys of its own once expanded */
    hp->head_dim = hp->qk_nope_head_dim + hp->qk_rope_head_dim;
    hp->attn_scale = 1 / sqrt(hp->head_dim);
    return OK;
}

/* V3: sigmoid scores, a bias for the choice only. V2: softmax, never renormalised; Mistral 4:
 * softmax, renormalised. */
static int read_router(struct model_moe *moe, const cJSON *config, enum class class,
                       const char *where, struct err *e)
{
    bool v3 = class == DEEPSEEK_V3;
    const char *method = json_str_or(config, "topk_method", v3 ? "noaux_tc" : "greedy");
    moe->sigmoid = v3;
    moe->renormalise = class != DEEPSEEK_V2;
    moe->scale = 1;
    int rc = json_num_opt(config, "routed_scaling_factor", &moe->scale, where, e);
    /* transformers' V2 never renormalises, whatever the key says; vLLM's does. */
    const char *made_for = json_str_or(json_get(config, "mlathe"), "made_for", "hf");
    if (!rc && (class != DEEPSEEK_V2 || strcmp(made_for, "hf")))
        rc = json_bool_opt(config, "norm_topk_prob", &moe->renormalise, where, e);
    if (!rc && class == MISTRAL_4 && moe->groups > 1)
        return err_set(e, ERR_UNSUPPORTED, "%s: experts in %d groups", where, moe->groups);
    if (!rc && strcmp(method, v3 ? "noaux_tc" : "greedy") &&
        (v3 || strcmp(method, "group_limited_greedy")))
        rc = err_set(e, ERR_UNSUPPORTED, "%s: experts chosen by \"%.40s\"", where, method);
    if (!v3 && !strcmp(method, "greedy"))
        moe->groups = moe->groups_used = 0;
    return rc;
}

static int read_experts(struct model_hparams *hp, const cJSON *config, enum class class,
                        const char *where, struct err *e)
{
    struct model_moe *moe = &hp->moe;
    int shared = 0, every = 1;
    const struct number numbers[] = {
        {"n_routed_experts", &moe->n, 0, 0},
        {"num_experts_per_tok", &moe->used, 0, 0},
        {"moe_intermediate_size", &moe->ffn, 0, 0},
        {"n_shared_experts", &shared, 0, 0},
        {"first_k_dense_replace", &moe->first_layer, 0, 0},
        {"n_group", &moe->groups, 0, 0},
        {"topk_group", &moe->groups_used, 0, 0},
        {"moe_layer_freq", &every, 1, 1},
    };
    int rc = read_numbers(config, numbers, sizeof numbers / sizeof *numbers, where, e);
    if (rc)
        return rc;
    if (moe->n == 0 || moe->first_layer >= hp->n_layer) {
        *moe = (struct model_moe){0};
        return OK;
    }
    if (every != 1)
        return err_set(e, ERR_UNSUPPORTED, "%s: experts in every %dth layer", where, every);
    if (shared > MODEL_MAX_EXPERTS || moe->ffn > (1 << 20))
        return err_set(e, ERR_FORMAT, "%s: %d shared experts of width %d", where, shared, moe->ffn);
    moe->shared_ffn = shared * moe->ffn;
    return read_router(moe, config, class, where, e);
}

/* Frequencies as two lists of divisors of the grid (longrope), the magnitude one. */
static int read_divisors(struct model *m, const cJSON *set, const char *key, const double **out,
                         const char *where, struct err *e)
{
    const cJSON *list = json_get(set, key), *item = cJSON_IsArray(list) ? list->child : NULL;
    int n = m->hp.qk_rope_head_dim / 2;
    double *v = family_own(m, (size_t)n, sizeof *v);
    if (!v)
        return err_nomem(e, (size_t)n * sizeof *v, "rope factors");
    *out = v;
    for (; item && n && cJSON_IsNumber(item) && item->valuedouble > 0; item = item->next, n--)
        *v++ = item->valuedouble;
    return !item && !n ? OK
                       : err_set(e, ERR_FORMAT, "%s: %s must hold %d positive numbers", where, key,
                                 m->hp.qk_rope_head_dim / 2);
}

/* Mistral 4 says how much of a head rotates, in two ways, and lets queries grow with the position.
 */
static int read_mistral_rope(const struct model *m, const cJSON *config, struct rope_spec *rope,
                             const char *where, struct err *e)
{
    double partial, R = m->hp.qk_rope_head_dim;
    int rc =
        family_rope_set(config, family_rope_parameters(config), 10000, rope, &partial, where, e);
    if (!rc && partial != 1 && fabs(partial * m->hp.head_dim - R) > 1e-6 * R)
        rc = err_set(e, ERR_FORMAT, "%s: partial_rotary_factor %g, but qk_rope_head_dim %g", where,
                     partial, R);
    return rc;
}

static int check_mistral_scaling(const cJSON *set, const char *where, struct err *e)
{
    double beta = set ? 0 : 0.1;
    int rc = json_num_opt(set, "llama_4_scaling_beta", &beta, where, e);
    return !rc && beta != 0 ? err_set(e, ERR_UNSUPPORTED,
                                      "%s: queries that grow with the position "
                                      "(llama_4_scaling_beta %g)",
                                      where, beta)
                            : rc;
}

static int read_rope(struct model *m, const cJSON *config, enum class class, struct rope_spec *rope,
                     const double **beyond, const char *where, struct err *e)
{
    const cJSON *set = family_rope_parameters(config);
    double partial, magnitude = 0;
    long long original = m->hp.context;
    *beyond = NULL;
    int rc = class == MISTRAL_4 ? check_mistral_scaling(set, where, e) : OK;
    if (!rc && strcmp(json_str_or(set, "rope_type", ""), "longrope"))
        return class == MISTRAL_4 ? read_mistral_rope(m, config, rope, where, e)
                                  : family_rope_hf(config, 10000, rope, where, e);
    if (!rc)
        rc = family_rope_set(config, NULL, 10000, rope, &partial, where, e);
    if (!rc)
        rc = json_num_opt(set, "rope_theta", &rope->theta, where, e);
    if (!rc)
        rc = json_num(set, "attention_factor", &magnitude, where, e);
    if (!rc && magnitude != 1)
        rc = err_set(e, ERR_UNSUPPORTED, "%s: a rope magnitude of %g", where, magnitude);
    if (!rc)
        rc = json_int_opt(set, "original_max_position_embeddings", 2, 1 << 28, &original, where, e);
    if (!rc)
        rc = read_divisors(m, set, "short_factor", &rope->divisor, where, e);
    if (!rc)
        rc = read_divisors(m, set, "long_factor", beyond, where, e);
    if (!rc &&
        !memcmp(rope->divisor, *beyond, (size_t)m->hp.qk_rope_head_dim / 2 * sizeof **beyond))
        *beyond = NULL;
    if (*beyond)
        m->hp.rope_original = (int)original;
    return rc;
}

/* attention_bias adds biases where a matrix meets the hidden states, but never to q_proj. */
static int check_biases(const struct model *m, bool biases, const char *where, struct err *e)
{
    for (int l = 0; l < m->hp.n_layer; l++) {
        const struct model_layer *y = &m->layer[l];
        if (!y->kv_a_bias.data != !biases || !y->o_bias.data != !biases ||
            (m->hp.q_lora_rank && !y->q_a_bias.data != !biases))
            return err_set(e, ERR_FORMAT,
                           "%s: attention_bias is %s, the tensors of layer %d differ", where,
                           biases ? "true" : "false", l);
    }
    return OK;
}

static int deepseek_hf(struct model *m, const struct cJSON *config, const char *where,
                       const struct safetensors *st, struct err *e)
{
    static const struct family_defaults defaults = {
        .eps = 1e-6, .act = "silu", .act_key = "hidden_act", .own_heads = true, .biases = true};
    struct family_map map = {.global = family_global_slots,
                             .layer = family_deepseek_slots,
                             .hf_layer = "model.layers.",
                             .ignored = family_ignored};
    struct rope_spec rope;
    const double *beyond = NULL;
    const char *type = json_str_or(config, "model_type", "");
    enum class class = !strcmp(type, "deepseek_v3") ? DEEPSEEK_V3
                       : !strcmp(type, "mistral4")  ? MISTRAL_4
                                                    : DEEPSEEK_V2;
    bool biases = false, interleaved = true;
    int rc = family_hf_base(m, config, &defaults, where, e);
    if (!rc)
        rc = read_sizes(&m->hp, config, where, e);
    if (!rc)
        rc = read_experts(&m->hp, config, class, where, e);
    if (!rc)
        rc = family_check_hparams(&m->hp, where, e);
    if (!rc)
        rc = read_rope(m, config, class, &rope, &beyond, where, e);
    if (!rc)
        rc = json_bool_opt(config, "attention_bias", &biases, where, e);
    if (!rc && class != DEEPSEEK_V2)
        rc = json_bool_opt(config, "rope_interleave", &interleaved, where, e);
    if (rc)
        return rc;
    map.half_split = !interleaved;
    map.stacked = class == MISTRAL_4;
    m->hp.rope_theta = rope.theta;
    if (rope.logit_scale > 0)
        m->hp.attn_scale *= rope.logit_scale;
    const struct family_source source = {.where = where, .st = st};
    rc = family_bind(m, &source, &map, &rope, e);
    /* Our own exports say which engine's epsilon they were made for. */
    double eps = LATENT_EPS;
    if (!rc)
        rc = json_num_opt(json_get(config, "mlathe"), "latent_norm_eps", &eps, where, e);
    if (!rc && !(eps > 0 && eps < 1))
        rc = err_set(e, ERR_FORMAT, "%s: latent_norm_eps %g", where, eps);
    if (!rc && beyond)
        rc = family_rope_long(m, &rope, m->hp.qk_rope_head_dim, beyond, where, e);
    for (int l = 0; !rc && l < m->hp.n_layer; l++)
        m->layer[l].latent_eps = eps;
    if (!rc)
        rc = check_biases(m, biases, where, e);
    return rc ? rc : family_mtp(m, &source, &map, e);
}

const struct family family_deepseek = {
    .name = "deepseek",
    .hf_model_types = (const char *const[]){"deepseek_v2", "deepseek_v3", "mistral4", NULL},
    .gguf_archs = (const char *const[]){"deepseek2", NULL},
    .open_hf = deepseek_hf,
    .open_gguf = family_deepseek_gguf,
};
