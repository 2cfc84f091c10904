/* Tiny models for tests. One list of tensors serves both formats. */
#include "tests/support_models.h"

#include "core/file.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "tests/support.h"
#include "tests/support_gguf.h"

#define CONTEXT 2048
#define EPS 1e-5
#define LLAMA3_FACTOR 8.0
#define LLAMA3_LOW 1.0
#define LLAMA3_HIGH 4.0
#define LLAMA3_CONTEXT 64.0

static const char template[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}";
static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
static const char *const merges[TEST_MERGES][2] = {
    {"Ġ", "t"}, {"h", "e"}, {"Ġt", "he"}, {"i", "n"}, {"Ġ", "a"}, {"e", "r"},
    {"o", "n"}, {"r", "e"}, {"Ġ", "s"},   {"a", "t"}, {"e", "n"}, {"Ġ", "w"},
    {"o", "r"}, {"i", "s"}, {"Ġ", "o"},   {"l", "l"},
};

enum role { NORM, EMBED, HEAD, PLAIN, ROPE };

struct weight_spec {
    char gguf[64], hf[96];
    size_t rows, cols; /* rows 0: one dimension */
    enum role role;
    uint64_t index; /* its random numbers depend on this and the seed alone */
};

struct test_model_spec test_model_small(void)
{
    return (struct test_model_spec){2, 64, 4, 2, 16, 96, 320, DTYPE_F32, 1, false, 0, false, 0};
}

static struct test_model_spec complete(const struct test_model_spec *spec)
{
    struct test_model_spec s = *spec, d = test_model_small();
    s.L = s.L ? s.L : d.L;
    s.D = s.D ? s.D : d.D;
    s.H = s.H ? s.H : d.H;
    s.G = s.G ? s.G : d.G;
    s.d = s.d ? s.d : d.d;
    s.F = s.F ? s.F : d.F;
    s.V = s.V ? s.V : d.V;
    s.seed = s.seed ? s.seed : d.seed;
    s.rope_theta = s.rope_theta > 0 ? s.rope_theta : 10000;
    s.context = s.context ? s.context : CONTEXT;
    return s;
}

static void add_weight(struct weight_spec *w, size_t *n, int l, const char *gguf, const char *hf,
                       int rows, int cols, enum role role)
{
    struct weight_spec *x = &w[*n];
    if (l < 0) {
        snprintf(x->gguf, sizeof x->gguf, "%s.weight", gguf);
        snprintf(x->hf, sizeof x->hf, "%s.weight", hf);
    } else {
        snprintf(x->gguf, sizeof x->gguf, "blk.%d.%s.weight", l, gguf);
        snprintf(x->hf, sizeof x->hf, "model.layers.%d.%s.weight", l, hf);
    }
    x->rows = (size_t)rows;
    x->cols = (size_t)cols;
    x->role = role;
    x->index = (*n)++;
}

/* Every weight in file order; fresh memory. */
static struct weight_spec *list_weights(const struct test_model_spec *s, size_t *n)
{
    struct weight_spec *w = calloc((size_t)s->L * 9 + 3, sizeof *w);
    int Q = s->H * s->d, K = s->G * s->d;
    if (!w)
        abort();
    *n = 0;
    add_weight(w, n, -1, "token_embd", "model.embed_tokens", s->V, s->D, EMBED);
    for (int l = 0; l < s->L; l++) {
        add_weight(w, n, l, "attn_norm", "input_layernorm", 0, s->D, NORM);
        add_weight(w, n, l, "attn_q", "self_attn.q_proj", Q, s->D, ROPE);
        add_weight(w, n, l, "attn_k", "self_attn.k_proj", K, s->D, ROPE);
        add_weight(w, n, l, "attn_v", "self_attn.v_proj", K, s->D, PLAIN);
        add_weight(w, n, l, "attn_output", "self_attn.o_proj", s->D, Q, PLAIN);
        add_weight(w, n, l, "ffn_norm", "post_attention_layernorm", 0, s->D, NORM);
        add_weight(w, n, l, "ffn_gate", "mlp.gate_proj", s->F, s->D, PLAIN);
        add_weight(w, n, l, "ffn_up", "mlp.up_proj", s->F, s->D, PLAIN);
        add_weight(w, n, l, "ffn_down", "mlp.down_proj", s->D, s->F, PLAIN);
    }
    add_weight(w, n, -1, "output_norm", "model.norm", 0, s->D, NORM);
    if (s->untied)
        add_weight(w, n, -1, "output", "lm_head", s->V, s->D, HEAD);
    return w;
}

static size_t elements(const struct weight_spec *w)
{
    return (w->rows ? w->rows : 1) * w->cols;
}

/* Norms are multiples of 2⁻⁷ near 1, exact in every type. Matrices keep the size of activations;
 * the rows that make logits are three times larger. */
static float *fill(const struct weight_spec *w, const struct test_model_spec *s)
{
    size_t n = elements(w);
    float *x = malloc(n * sizeof *x);
    uint64_t state = (s->seed * 1000003 + w->index + 1) * 0x9e3779b97f4a7c15ull;
    double scale = 1 / sqrt((double)w->cols);
    if (w->role == HEAD || (w->role == EMBED && !s->untied))
        scale *= 3;
    else if (w->role == EMBED)
        scale = 1;
    if (!x)
        abort();
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(w->role == NORM ? round(128 + 16 * test_normal(&state)) / 128
                                       : scale * test_normal(&state));
    return x;
}

/* UTF-8 of byte b in the alphabet of byte-level BPE, and that alphabet's order. */
static int alphabet(int id, char text[4])
{
    int printable[256], n = 0, rest = 0, code[256];
    for (int b = 0; b < 256; b++)
        printable[b] = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    for (int b = 0; b < 256; b++)
        if (printable[b])
            code[n++] = b;
    for (int b = 0; b < 256; b++)
        if (!printable[b])
            code[n++] = 256 + rest++;
    int c = code[id];
    if (c < 128)
        snprintf(text, 4, "%c", c);
    else
        snprintf(text, 4, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
    return c;
}

static void token_text(int id, char text[64])
{
    if (id < TEST_BYTES)
        alphabet(id, text);
    else if (id < TEST_END_OF_TEXT)
        snprintf(text, 64, "%s%s", merges[id - TEST_BYTES][0], merges[id - TEST_BYTES][1]);
    else if (id <= TEST_IM_END)
        snprintf(text, 64, "%s", specials[id - TEST_END_OF_TEXT]);
    else
        snprintf(text, 64, "<unused%d>", id);
}

static int save_json(const char *dir, const char *name, cJSON *value)
{
    struct err e = {0};
    char *path = path_join(dir, name), *text = json_text(value, true);
    int rc = path && text ? file_save(path, text, strlen(text), &e) : -1;
    CHECK(rc == 0, "%s: %s", name, e.text);
    free(path);
    free(text);
    cJSON_Delete(value);
    return rc;
}

static cJSON *parsed(const char *text)
{
    struct err e = {0};
    cJSON *value = NULL;
    CHECK_OK(json_parse(&value, text, strlen(text), "support_models.c", &e), e);
    return value;
}

static int save_config(const char *dir, const struct test_model_spec *s)
{
    static const char *const torch[] = {"float32", "float16", "bfloat16"};
    cJSON *c = parsed("{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\","
                      "\"hidden_act\":\"silu\",\"attention_bias\":false,\"mlp_bias\":false}");
    cJSON_AddNumberToObject(c, "num_hidden_layers", s->L);
    cJSON_AddNumberToObject(c, "hidden_size", s->D);
    cJSON_AddNumberToObject(c, "num_attention_heads", s->H);
    cJSON_AddNumberToObject(c, "num_key_value_heads", s->G);
    cJSON_AddNumberToObject(c, "head_dim", s->d);
    cJSON_AddNumberToObject(c, "intermediate_size", s->F);
    cJSON_AddNumberToObject(c, "vocab_size", s->V);
    cJSON_AddNumberToObject(c, "max_position_embeddings", s->context);
    cJSON_AddNumberToObject(c, "rms_norm_eps", EPS);
    cJSON_AddNumberToObject(c, "rope_theta", s->rope_theta);
    cJSON_AddBoolToObject(c, "tie_word_embeddings", !s->untied);
    cJSON_AddNumberToObject(c, "bos_token_id", TEST_IM_START);
    cJSON_AddNumberToObject(c, "eos_token_id", TEST_IM_END);
    cJSON_AddStringToObject(c, "torch_dtype", torch[s->dtype]);
    if (s->rope_llama3) {
        cJSON *r = cJSON_AddObjectToObject(c, "rope_scaling");
        cJSON_AddStringToObject(r, "rope_type", "llama3");
        cJSON_AddNumberToObject(r, "factor", LLAMA3_FACTOR);
        cJSON_AddNumberToObject(r, "low_freq_factor", LLAMA3_LOW);
        cJSON_AddNumberToObject(r, "high_freq_factor", LLAMA3_HIGH);
        cJSON_AddNumberToObject(r, "original_max_position_embeddings", LLAMA3_CONTEXT);
    }
    int rc = save_json(dir, "config.json", c);
    cJSON *g = cJSON_CreateObject();
    cJSON *eos = cJSON_AddArrayToObject(g, "eos_token_id");
    cJSON_AddItemToArray(eos, cJSON_CreateNumber(TEST_IM_END));
    cJSON_AddItemToArray(eos, cJSON_CreateNumber(TEST_END_OF_TEXT));
    return rc ? rc : save_json(dir, "generation_config.json", g);
}

static int save_tokenizer(const char *dir, const struct test_model_spec *s)
{
    cJSON *t = parsed(
        "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],"
        "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
        "{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":\"ByteLevel\","
        "\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}]},"
        "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
        "\"trim_offsets\":true,\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"dropout\":null,"
        "\"unk_token\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
        "\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false}}");
    cJSON *model = cJSON_GetObjectItemCaseSensitive(t, "model");
    cJSON *added = cJSON_GetObjectItemCaseSensitive(t, "added_tokens");
    cJSON *vocab = cJSON_AddObjectToObject(model, "vocab");
    cJSON *list = cJSON_AddArrayToObject(model, "merges");
    char text[64];
    for (int id = 0; id < s->V; id++) {
        token_text(id, text);
        cJSON_AddNumberToObject(vocab, text, id);
    }
    for (int i = 0; i < TEST_MERGES; i++) {
        snprintf(text, sizeof text, "%s %s", merges[i][0], merges[i][1]);
        cJSON_AddItemToArray(list, cJSON_CreateString(text));
    }
    for (int id = TEST_END_OF_TEXT; id <= TEST_IM_END; id++) {
        cJSON *a = parsed("{\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                          "\"normalized\":false,\"special\":true}");
        cJSON_AddNumberToObject(a, "id", id);
        cJSON_AddStringToObject(a, "content", specials[id - TEST_END_OF_TEXT]);
        cJSON_AddItemToArray(added, a);
    }
    int rc = save_json(dir, "tokenizer.json", t);
    cJSON *c = parsed("{\"add_prefix_space\":false,\"bos_token\":\"<|im_start|>\","
                      "\"eos_token\":\"<|im_end|>\",\"pad_token\":\"<|im_end|>\","
                      "\"unk_token\":\"<|endoftext|>\",\"tokenizer_class\":\"GPT2Tokenizer\"}");
    cJSON_AddStringToObject(c, "chat_template", template);
    return rc ? rc : save_json(dir, "tokenizer_config.json", c);
}

static int save_weights(const char *dir, const struct test_model_spec *s)
{
    struct err e = {0};
    struct safetensors_writer *w = NULL;
    size_t n;
    struct weight_spec *list = list_weights(s, &n);
    char *path = path_join(dir, "model.safetensors");
    int rc = safetensors_writer_new(&w, path, &e);
    for (size_t i = 0; i < n && !rc; i++) {
        size_t dim[2] = {list[i].rows, list[i].cols};
        rc = safetensors_writer_declare(w, list[i].hf, s->dtype, list[i].rows ? 2 : 1,
                                        list[i].rows ? dim : dim + 1, &e);
    }
    for (size_t i = 0; i < n && !rc; i++) {
        float *x = fill(&list[i], s);
        rc = safetensors_writer_f32(w, x, elements(&list[i]), &e);
        free(x);
    }
    if (!rc)
        rc = safetensors_writer_commit(w, &e);
    else
        safetensors_writer_abort(w);
    CHECK(rc == 0, "%s", e.text);
    free(list);
    free(path);
    return rc;
}

int test_model_write_hf(const char *dir, const struct test_model_spec *spec)
{
    struct test_model_spec s = complete(spec);
    struct err e = {0};
    int rc = file_mkdirs(dir, &e);
    CHECK(rc == 0, "%s", e.text);
    CHECK(s.V >= TEST_VOCAB_MIN && dtype_traits(s.dtype)->block == 1, "specification");
    if (!rc)
        rc = save_config(dir, &s);
    if (!rc)
        rc = save_tokenizer(dir, &s);
    return rc ? rc : save_weights(dir, &s);
}

static void put_tokenizer(struct bytes *b, const struct test_model_spec *s)
{
    char text[64];
    put_key_string(b, "tokenizer.ggml.model", "gpt2");
    put_key_string(b, "tokenizer.ggml.pre", "smollm");
    put_key_array(b, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)s->V);
    for (int id = 0; id < s->V; id++) {
        token_text(id, text);
        put_string(b, text);
    }
    put_key_array(b, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)s->V);
    for (int id = 0; id < s->V; id++) /* 3: control, 1: normal */
        put_u32(b, id >= TEST_END_OF_TEXT && id <= TEST_IM_END ? 3 : 1);
    put_key_array(b, "tokenizer.ggml.merges", GGUF_STRING, TEST_MERGES);
    for (int i = 0; i < TEST_MERGES; i++) {
        snprintf(text, sizeof text, "%s %s", merges[i][0], merges[i][1]);
        put_string(b, text);
    }
    put_key_u32(b, "tokenizer.ggml.bos_token_id", TEST_IM_START);
    put_key_u32(b, "tokenizer.ggml.eos_token_id", TEST_IM_END);
    put_key_u32(b, "tokenizer.ggml.eot_token_id", TEST_END_OF_TEXT);
    put_key_u32(b, "tokenizer.ggml.unknown_token_id", TEST_END_OF_TEXT);
    put_key_u32(b, "tokenizer.ggml.padding_token_id", TEST_IM_END);
    put_key_bool(b, "tokenizer.ggml.add_bos_token", false);
    put_key_bool(b, "tokenizer.ggml.add_space_prefix", false);
    put_key_string(b, "tokenizer.chat_template", template);
}

/* 14 keys. */
static void put_sizes(struct bytes *b, const struct test_model_spec *s)
{
    put_key_string(b, "general.architecture", "llama");
    put_key_string(b, "general.name", "Tiny test model");
    put_key_u32(b, "general.quantization_version", 2);
    put_key_u32(b, "llama.context_length", (uint32_t)s->context);
    put_key_u32(b, "llama.embedding_length", (uint32_t)s->D);
    put_key_u32(b, "llama.block_count", (uint32_t)s->L);
    put_key_u32(b, "llama.feed_forward_length", (uint32_t)s->F);
    put_key_u32(b, "llama.attention.head_count", (uint32_t)s->H);
    put_key_u32(b, "llama.attention.head_count_kv", (uint32_t)s->G);
    put_key_u32(b, "llama.attention.key_length", (uint32_t)s->d);
    put_key_u32(b, "llama.attention.value_length", (uint32_t)s->d);
    put_key_u32(b, "llama.rope.dimension_count", (uint32_t)s->d);
    put_key_f32(b, "llama.rope.freq_base", (float)s->rope_theta);
    put_key_f32(b, "llama.attention.layer_norm_rms_epsilon", (float)EPS);
}

static enum dtype gguf_dtype(const struct weight_spec *w, const struct test_model_spec *s)
{
    return w->role == NORM ? DTYPE_F32 : s->dtype;
}

/* Rows of a head from halves to interleaved pairs, as converters to GGUF leave them. */
static void interleave(float *x, const struct weight_spec *w, int d)
{
    float *copy = malloc(elements(w) * sizeof *copy);
    if (!copy)
        abort();
    memcpy(copy, x, elements(w) * sizeof *copy);
    for (size_t row = 0; row < w->rows; row++) {
        size_t j = row % (size_t)d, half = (size_t)d / 2;
        size_t to = row - j + (j < half ? 2 * j : 2 * (j - half) + 1);
        memcpy(x + to * w->cols, copy + row * w->cols, w->cols * sizeof *x);
    }
    free(copy);
}

static void put_weight(struct bytes *b, const struct weight_spec *w,
                       const struct test_model_spec *s)
{
    enum dtype dtype = gguf_dtype(w, s);
    size_t bytes = dtype_bytes(dtype, elements(w));
    float *x = fill(w, s);
    void *raw = malloc(bytes);
    if (!raw)
        abort();
    if (w->role == ROPE)
        interleave(x, w, s->d);
    dtype_from_f32(dtype, x, raw, elements(w));
    put_bytes(b, raw, bytes);
    put_padding(b, 32);
    free(raw);
    free(x);
}

/* llama3 scaling as GGUF has it: what each frequency is divided by. */
static void put_rope_freqs(struct bytes *b, const struct test_model_spec *s)
{
    for (int j = 0; j < s->d / 2; j++) {
        double wave = 6.283185307179586 * pow(s->rope_theta, 2.0 * j / s->d);
        double mix = (LLAMA3_CONTEXT / wave - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW);
        mix = fmin(fmax(mix, 0), 1);
        float divisor = (float)(1 / ((1 - mix) / LLAMA3_FACTOR + mix));
        put_bytes(b, &divisor, sizeof divisor);
    }
    put_padding(b, 32);
}

int test_model_write_gguf(const char *path, const struct test_model_spec *spec)
{
    enum { KEYS = 14 + 13 };
    struct test_model_spec s = complete(spec);
    struct err e = {0};
    struct bytes b = {0};
    size_t n, offset = 0;
    int block = dtype_traits(s.dtype)->block;
    CHECK(s.V >= TEST_VOCAB_MIN, "V %d", s.V);
    CHECK(!(s.D % block || s.F % block || s.H * s.d % block), "blocks of %d", block);
    struct weight_spec *list = list_weights(&s, &n);
    put_header(&b, n + s.rope_llama3, KEYS);
    put_sizes(&b, &s);
    put_tokenizer(&b, &s);
    for (size_t i = 0; i < n; i++) {
        enum dtype dtype = gguf_dtype(&list[i], &s);
        put_tensor_info(&b, list[i].gguf, list[i].cols, list[i].rows,
                        (uint32_t)dtype_traits(dtype)->ggml, offset);
        offset += (dtype_bytes(dtype, elements(&list[i])) + 31) & ~(size_t)31;
    }
    if (s.rope_llama3)
        put_tensor_info(&b, "rope_freqs.weight", (uint64_t)s.d / 2, 0, 0, offset);
    put_padding(&b, 32);
    for (size_t i = 0; i < n; i++)
        put_weight(&b, &list[i], &s);
    if (s.rope_llama3)
        put_rope_freqs(&b, &s);
    CHECK_OK(file_save(path, b.data, b.n, &e), e);
    free(list);
    put_free(&b);
    return e.status ? -1 : 0;
}
