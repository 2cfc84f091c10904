/* What every family reads from its configuration in the same way, in both formats. Refuses by
 * name: biases, safetensors quantised other than in FP8 blocks, other activations, scaled
 * embeddings, residuals and logits, and whatever else of GGUF the family has not said that it
 * handles. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/family.h"
#include "core/gguf.h"

#define SIZE_LIMIT (1 << 28) /* of a number; family_check_hparams is stricter */
#define KEY_SIZE 128

const struct family_slot family_global_slots[] = {
    {"token_embd.weight", "model.embed_tokens.weight", GLOBAL_AT(embed), DIM_VOCAB, DIM_HIDDEN, 0},
    {"output_norm.weight", "model.norm.weight", GLOBAL_AT(final_norm), DIM_HIDDEN, DIM_NONE, 0},
    {"output.weight", "lm_head.weight", GLOBAL_AT(head), DIM_VOCAB, DIM_HIDDEN, SLOT_OPTIONAL},
    {0},
};

/* Tables that old exports carry along; rope_freqs has been read by then. */
const char *const family_ignored[] = {"rotary_emb.inv_freq", "rope_freqs.weight", NULL};

/* --- config.json --- */

int family_hf_biases(const cJSON *config, unsigned *biases, const char *where, struct err *e)
{
    bool attention = false, mlp = false;
    int rc = json_bool_opt(config, "attention_bias", &attention, where, e);
    if (!rc)
        rc = json_bool_opt(config, "mlp_bias", &mlp, where, e);
    *biases = (attention ? SLOT_ATTN_BIAS : 0u) | (mlp ? SLOT_MLP_BIAS : 0u);
    return rc;
}

static int hf_sizes(struct model_hparams *hp, const cJSON *config, bool own_heads,
                    const char *where, struct err *e)
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
    if (!rc && !own_heads && !d && hidden % heads)
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

static int hf_refuse(const cJSON *config, const struct family_defaults *d, const char *where,
                     struct err *e)
{
    unsigned biases;
    int rc = family_hf_biases(config, &biases, where, e);
    if (rc)
        return rc;
    bool attention = (biases & SLOT_ATTN_BIAS) && !d->biases;
    if (attention || ((biases & SLOT_MLP_BIAS) && !d->mlp_biases))
        return err_set(e, ERR_UNSUPPORTED, "%s: %s is true; biases there cannot be computed yet",
                       where, attention ? "attention_bias" : "mlp_bias");
    const char *act = json_str_or(config, d->act_key, d->act);
    if (strcmp(act, d->act) && !(!strcmp(d->act, "silu") && !strcmp(act, "swish")))
        return err_set(e, ERR_UNSUPPORTED, "%s: activation \"%.40s\"; %s can be computed", where,
                       act, d->act);
    return OK;
}

/* DeepSeek's FP8: blocks of E4M3 numbers under one scale each. Anything else is refused by name. */
static int read_quantisation(struct model *m, const cJSON *config, const char *where, struct err *e)
{
    const cJSON *quant = json_get(config, "quantization_config"), *item;
    int *block = ((struct model_owner *)m->owner)->fp8_block, n = 0;
    const char *method = json_str_or(quant, "quant_method", "an unnamed method");
    if (!quant)
        return OK;
    item = json_get(quant, "weight_block_size");
    for (item = cJSON_IsArray(item) ? item->child : NULL; item; item = item->next, n++)
        if (n < 2 && cJSON_IsNumber(item) && item->valuedouble >= 1 && item->valuedouble <= 65536)
            block[n] = (int)item->valuedouble;
    if (!strcmp(method, "fp8") && !strcmp(json_str_or(quant, "fmt", "e4m3"), "e4m3") && n == 2 &&
        block[0] && block[1])
        return OK;
    return err_set(
        e, ERR_UNSUPPORTED,
        "%s: weights quantised by \"%.40s\"; FP8 in E4M3 with a weight_block_size can be "
        "read, else take the model in BF16 or F16, or a GGUF file",
        where, method);
}

int family_hf_base(struct model *m, const cJSON *config, const struct family_defaults *d,
                   const char *where, struct err *e)
{
    struct model_hparams *hp = &m->hp;
    int rc = hf_refuse(config, d, where, e);
    if (!rc)
        rc = read_quantisation(m, config, where, e);
    if (!rc)
        rc = hf_sizes(hp, config, d->own_heads, where, e);
    hp->rms_eps = d->eps;
    if (!rc)
        rc = json_num_opt(config, "rms_norm_eps", &hp->rms_eps, where, e);
    hp->tied = d->tied;
    if (!rc)
        rc = json_bool_opt(config, "tie_word_embeddings", &hp->tied, where, e);
    if (!rc)
        hp->attn_scale = 1 / sqrt(hp->head_dim);
    hp->act = strcmp(d->act, "silu") ? GLU_GELU_TANH : GLU_SILU;
    return rc;
}

int family_hf_window(const cJSON *config, int fallback, int *out, const char *where, struct err *e)
{
    long long window = fallback;
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, "sliding_window");
    if (cJSON_IsNull(item))
        window = 0;
    int rc = json_int_opt(config, "sliding_window", 1, SIZE_LIMIT, &window, where, e);
    *out = (int)window;
    return rc;
}

int family_hf_layer_types(struct model *m, const cJSON *config, int window, bool *found,
                          const char *where, struct err *e)
{
    const cJSON *list = json_get(config, "layer_types"), *item = list ? list->child : NULL;
    *found = list != NULL;
    for (int l = 0; list && l < m->hp.n_layer; l++, item = item->next) {
        const char *type = cJSON_IsString(item) ? item->valuestring : "";
        bool slides = !strcmp(type, "sliding_attention");
        if (!slides && strcmp(type, "full_attention"))
            return err_set(e, ERR_FORMAT,
                           "%s: \"layer_types\" says \"%.40s\" for layer %d; sliding_attention and "
                           "full_attention can be computed",
                           where, type, l);
        m->layer[l].window = slides ? window : 0;
    }
    return OK;
}

/* --- GGUF --- */

static const char *key_of(char *to, const char *arch, const char *name)
{
    snprintf(to, KEY_SIZE, "%s.%s", arch, name);
    return to;
}

int family_gguf_int(const struct gguf *g, const char *arch, const char *name, long long min,
                    long long max, long long fallback, int *out, struct err *e)
{
    char key[128];
    long long v = fallback;
    snprintf(key, sizeof key, "%s.%s", arch, name);
    if (gguf_has(g, key) || fallback < 0) {
        int rc = gguf_int(g, key, &v, e);
        if (rc)
            return rc;
    }
    if (v < min || v > max)
        return err_set(e, ERR_FORMAT, "%s: \"%s\" is %lld; %lld to %lld can be", gguf_path(g), key,
                       v, min, max);
    *out = (int)v;
    return OK;
}

/* Keys that change what is computed, and the value that changes nothing. */
static int gguf_refuse(const struct gguf *g, const char *arch, unsigned handled, struct err *e)
{
    static const struct {
        const char *key;
        double neutral;
        const char *what;
        unsigned bit;
    } switches[] = {
        {"expert_count", 0, "experts", GGUF_EXPERTS},
        {"attention.sliding_window", 0, "a sliding window", GGUF_WINDOW},
        {"embedding_scale", 1, "scaled embeddings", 0},
        {"residual_scale", 1, "a scaled residual", 0},
        {"logit_scale", 1, "scaled logits", 0},
        {"attn_logit_softcapping", 0, "a soft cap", GGUF_SOFTCAP},
        {"final_logit_softcapping", 0, "a soft cap", GGUF_SOFTCAP},
    };
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        char key[KEY_SIZE];
        double v = switches[i].neutral;
        key_of(key, arch, switches[i].key);
        int rc = !(switches[i].bit & handled) && gguf_has(g, key) ? gguf_num(g, key, &v, e) : OK;
        if (rc)
            return rc;
        if (v != switches[i].neutral)
            return err_set(e, ERR_UNSUPPORTED,
                           "%s: \"%s\" is %g: a model of this family with %s cannot be run yet",
                           gguf_path(g), key, v, switches[i].what);
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

static int gguf_sizes(struct model_hparams *hp, const struct gguf *g, const char *arch,
                      unsigned handled, struct err *e)
{
    char name[KEY_SIZE];
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
        int rc = family_gguf_int(g, arch, sizes[i].name, 1, SIZE_LIMIT,
                                 sizes[i].fallback ? *sizes[i].fallback : -1, sizes[i].out, e);
        if (rc)
            return rc;
    }
    int usual = hp->hidden / hp->n_head;
    if (hp->hidden % hp->n_head && !gguf_has(g, key_of(name, arch, "attention.key_length")))
        return err_set(e, ERR_FORMAT, "%s: %d heads do not divide embedding length %d",
                       gguf_path(g), hp->n_head, hp->hidden);
    int rc = family_gguf_int(g, arch, "attention.key_length", 1, SIZE_LIMIT, usual, &key, e);
    if (!rc)
        rc = family_gguf_int(g, arch, "attention.value_length", 1, SIZE_LIMIT, key, &value, e);
    if (!rc)
        rc = family_gguf_int(g, arch, "rope.dimension_count", 1, SIZE_LIMIT, key, &rotary, e);
    if (!rc && !(handled & GGUF_MLA) &&
        (value != key || (rotary != key && !(handled & GGUF_PARTIAL))))
        rc = err_set(e, ERR_UNSUPPORTED,
                     "%s: keys of %d, values of %d and a rotary part of %d "
                     "numbers a head; they must be equal",
                     gguf_path(g), key, value, rotary);
    hp->head_dim = key;
    return rc ? rc : gguf_vocab(g, &hp->vocab, e);
}

int family_gguf_base(struct model *m, const struct gguf *g, const char *arch, unsigned handled,
                     struct err *e)
{
    struct model_hparams *hp = &m->hp;
    char key[KEY_SIZE];
    int rc = gguf_refuse(g, arch, handled, e);
    if (!rc)
        rc = gguf_sizes(hp, g, arch, handled, e);
    if (!rc)
        rc = gguf_num(g, key_of(key, arch, "attention.layer_norm_rms_epsilon"), &hp->rms_eps, e);
    if (rc)
        return rc;
    hp->attn_scale = gguf_num_or(g, key_of(key, arch, "attention.scale"), 0);
    if (hp->attn_scale == 0)
        hp->attn_scale = 1 / sqrt(hp->head_dim);
    return OK;
}
