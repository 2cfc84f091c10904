/* config.json and generation_config.json of an export: the keys that the engines' classes read, and
 * no leftovers of the original's, which some of them would obey. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fp8.h"
#include "core/stock_export.h"

struct key {
    const char *name;
    double value;
};

static void add_numbers(cJSON *o, const struct key *keys, size_t n)
{
    for (size_t i = 0; i < n; i++)
        cJSON_AddNumberToObject(o, keys[i].name, keys[i].value);
}

/* The shortest number that is the same in single precision, as configurations are read: a value
 * that came through a GGUF reads 1e-05 again, not 9.99999974737875e-06. */
static double shortest(double v)
{
    char text[32];
    for (int digits = 6; digits < 10; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if ((float)strtod(text, NULL) == (float)v)
            break;
    }
    return strtod(text, NULL);
}

/* With a point in it: newer readers refuse a 1 where they expect a 1.0. */
static void add_float(cJSON *o, const char *key, double v)
{
    char text[40];
    snprintf(text, sizeof text, "%.17g", shortest(v));
    for (int digits = 1; digits < 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, shortest(v));
        if (strtod(text, NULL) == shortest(v))
            break;
    }
    if (!strpbrk(text, ".en"))
        strcat(text, ".0");
    cJSON_AddRawToObject(o, key, text);
}

/* Divisors of the grid theta^(-2i/R) that give the frequencies; where the engine's list is longer
 * than the model's the rows are zeros and any frequency will do. */
static cJSON *divisors(const struct stock_export *x, const double *freq)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < x->R / 2; i++) {
        double grid = pow(x->theta, -2.0 * i / x->R);
        cJSON_AddItemToArray(list, cJSON_CreateNumber(i < x->pairs ? grid / freq[i] : 1));
    }
    return list;
}

/* magnitudes are folded into the queries, so every factor on cos and sin is one. */
static void add_rope(const struct stock_export *x, cJSON *o)
{
    const struct model_hparams *hp = &x->m->hp;
    bool mistral = x->engine == STOCK_HF && hp->moe.n;
    double original = hp->rope_original ? hp->rope_original : hp->context;
    cJSON *rope = NULL;
    if (mistral)
        rope = cJSON_AddObjectToObject(o, "rope_parameters");
    else if (x->freq)
        rope = cJSON_AddObjectToObject(o, "rope_scaling");
    else
        cJSON_AddNullToObject(o, "rope_scaling");
    add_float(mistral ? rope : o, "rope_theta", x->theta);
    if (rope)
        cJSON_AddStringToObject(rope, "rope_type", x->freq ? "longrope" : "default");
    if (mistral) {
        add_float(rope, "llama_4_scaling_beta", 0);
        add_float(rope, "partial_rotary_factor", 1); /* of head_dim, below */
    }
    if (rope)
        cJSON_AddNumberToObject(rope, "original_max_position_embeddings", original);
    if (x->freq) {
        add_float(rope, "factor", 1);
        add_float(rope, "attention_factor", 1);
        cJSON_AddItemToObject(rope, "short_factor", divisors(x, x->freq));
        cJSON_AddItemToObject(rope, "long_factor",
                              divisors(x, x->freq_long ? x->freq_long : x->freq));
    }
}

/* All-dense models keep an integer n_routed_experts: vLLM adds to it. */
static void add_experts(const struct stock_export *x, cJSON *o)
{
    const struct model_hparams *hp = &x->m->hp;
    bool moe = hp->moe.n > 0;
    const struct key keys[] = {
        {"first_k_dense_replace", moe ? 0 : hp->n_layer + x->mtp},
        {"n_routed_experts", moe ? hp->moe.n : 8},
        {"num_experts_per_tok", moe ? hp->moe.used : 2},
        {"moe_intermediate_size", moe ? hp->moe.ffn : hp->ffn},
        {"n_group", 1},
        {"topk_group", 1},
        {"moe_layer_freq", 1},
        {"num_nextn_predict_layers", x->mtp},
    };
    add_numbers(o, keys, sizeof keys / sizeof *keys);
    add_float(o, "routed_scaling_factor", 1);
    if (moe && x->engine == STOCK_VLLM)
        cJSON_AddNullToObject(o, "n_shared_experts");
    else
        cJSON_AddNumberToObject(o, "n_shared_experts", 1);
    cJSON_AddStringToObject(o, "topk_method", "greedy");
    cJSON_AddStringToObject(o, "scoring_func", "softmax");
    cJSON_AddBoolToObject(o, "norm_topk_prob", true);
}

static void add_ids(const struct model_hparams *hp, cJSON *o)
{
    if (hp->bos >= 0)
        cJSON_AddNumberToObject(o, "bos_token_id", hp->bos);
    else
        cJSON_AddNullToObject(o, "bos_token_id");
    if (hp->n_eos == 0)
        cJSON_AddNullToObject(o, "eos_token_id");
    else if (hp->n_eos == 1)
        cJSON_AddNumberToObject(o, "eos_token_id", hp->eos[0]);
    else
        cJSON_AddItemToObject(o, "eos_token_id", cJSON_CreateIntArray(hp->eos, hp->n_eos));
}

/* The class: V3 unless experts want another (softmax scores, renormalised). */
static void add_class(const struct stock_export *x, cJSON *o)
{
    bool moe = x->m->hp.moe.n > 0, hf = x->engine == STOCK_HF;
    const char *name = !moe ? "DeepseekV3ForCausalLM"
                       : hf ? "Mistral4ForCausalLM"
                            : "DeepseekV2ForCausalLM";
    const char *type = !moe ? "deepseek_v3" : hf ? "mistral4" : "deepseek_v2";
    cJSON_AddItemToObject(o, "architectures", cJSON_CreateStringArray(&name, 1));
    cJSON_AddStringToObject(o, "model_type", type);
}

/* DeepSeek's own block format, and the maps that stay as they are under both names in use. */
static void add_quantisation(const struct stock_export *x, cJSON *o)
{
    cJSON *q = cJSON_AddObjectToObject(o, "quantization_config"), *plain;
    const int block[2] = {(int)FP8_BLOCK, (int)FP8_BLOCK};
    cJSON_AddStringToObject(q, "quant_method", "fp8");
    cJSON_AddStringToObject(q, "fmt", "e4m3");
    cJSON_AddStringToObject(q, "activation_scheme", "dynamic");
    cJSON_AddItemToObject(q, "weight_block_size", cJSON_CreateIntArray(block, 2));
    plain = cJSON_AddArrayToObject(q, "modules_to_not_convert");
    cJSON_AddItemToArray(plain, cJSON_CreateString("lm_head"));
    for (size_t i = 0; i < x->n; i++) {
        const struct stock_tensor *t = &x->tensor[i];
        if (t->layer < 0 || t->rank != 2 || t->fp8)
            continue;
        char name[96];
        snprintf(name, sizeof name, "%s", t->name);
        char *end = strstr(name, ".weight");
        if (end)
            *end = 0;
        cJSON_AddItemToArray(plain, cJSON_CreateString(name));
    }
    cJSON_AddItemToObject(q, "ignored_layers", cJSON_Duplicate(plain, true));
}

int stock_config_json(const struct stock_export *x, cJSON **out, struct err *e)
{
    const struct model_hparams *hp = &x->m->hp;
    const struct key sizes[] = {
        {"vocab_size", (double)x->m->embed.dim[0]},
        {"hidden_size", hp->hidden},
        {"intermediate_size", hp->ffn},
        {"num_hidden_layers", hp->n_layer},
        {"num_attention_heads", hp->n_head},
        {"num_key_value_heads", hp->n_head}, /* every head has keys of its own */
        {"kv_lora_rank", x->c},
        {"qk_nope_head_dim", x->P},
        {"qk_rope_head_dim", x->R},
        {"v_head_dim", x->V},
        {"head_dim", x->R}, /* anything else builds the rope with another width */
        {"max_position_embeddings", hp->context},
    };
    cJSON *o = cJSON_CreateObject();
    if (!o)
        return err_nomem(e, 4096, "config.json");
    add_class(x, o);
    add_numbers(o, sizes, sizeof sizes / sizeof *sizes);
    add_float(o, "rms_norm_eps", x->rms_eps);
    add_float(o, "attention_dropout", 0);
    add_float(o, "initializer_range", 0.02);
    if (x->q_lora)
        cJSON_AddNumberToObject(o, "q_lora_rank", x->q_lora);
    else
        cJSON_AddNullToObject(o, "q_lora_rank");
    cJSON_AddStringToObject(o, "hidden_act", "silu");
    cJSON_AddBoolToObject(o, "attention_bias", x->biased);
    cJSON_AddBoolToObject(o, "rope_interleave", true);
    add_rope(x, o);
    add_experts(x, o);
    cJSON_AddBoolToObject(o, "tie_word_embeddings", false);
    cJSON_AddBoolToObject(o, "use_cache", true);
    add_ids(hp, o);
    cJSON_AddStringToObject(o, "torch_dtype", x->dtype == DTYPE_F32 ? "float32" : "bfloat16");
    cJSON_AddStringToObject(o, "transformers_version", "4.46.0");
    if (x->fp8)
        add_quantisation(x, o);
    /* Which epsilon the latent's norm weight was made for: the wrong one is garbage, so say it. */
    cJSON *note = cJSON_AddObjectToObject(o, "mlathe");
    cJSON_AddStringToObject(note, "made_for", stock_key(x->engine));
    cJSON_AddNumberToObject(note, "latent_norm_eps", x->latent_eps);
    *out = o;
    return OK;
}

int stock_generation_json(const struct stock_export *x, cJSON **out, struct err *e)
{
    *out = cJSON_CreateObject();
    if (!*out)
        return err_nomem(e, 256, "generation_config.json");
    add_ids(&x->m->hp, *out);
    return OK;
}
