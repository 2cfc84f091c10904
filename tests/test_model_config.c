/* What configurations may say: one key changed at a time in a good tiny model, in both formats.
 * Each change is either understood (and changes what it should) or refused in a sentence. */
#include <unistd.h>

#include "core/file.h"
#include "core/json.h"
#include "core/model.h"
#include "core/safetensors.h"
#include "tests/support.h"
#include "tests/support_gguf.h"
#include "tests/support_models.h"

static char folder[300], file[300];

/* The folder's config.json with these members (JSON text) put over it; NULL value removes. */
static int open_changed(struct model **m, const char *changes, struct err *e)
{
    char path[400];
    cJSON *config = NULL, *patch = NULL;
    struct test_model_spec spec = test_model_small();
    CHECK(test_model_write_hf(folder, &spec) == 0);
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK_OK(json_read_file(&config, path, 1 << 20, e), *e);
    CHECK_OK(json_parse(&patch, changes, strlen(changes), "patch", e), *e);
    for (cJSON *item = patch ? patch->child : NULL, *next; item; item = next) {
        next = item->next;
        cJSON_DeleteItemFromObjectCaseSensitive(config, item->string);
        char *name = mem_strdup(item->string);
        item = cJSON_DetachItemViaPointer(patch, item);
        if (cJSON_IsNull(item))
            cJSON_Delete(item);
        else
            cJSON_AddItemToObject(config, name, item);
        free(name);
    }
    char *text = json_text(config, true);
    CHECK_OK(file_save(path, text, strlen(text), e), *e);
    free(text);
    cJSON_Delete(config);
    cJSON_Delete(patch);
    *e = (struct err){0};
    return model_open(m, folder, e);
}

static void test_refused(void)
{
    static const struct {
        const char *changes, *says;
        int status;
    } cases[] = {
        {"{\"model_type\":\"olmo2\"}", "\"olmo2\"", ERR_UNSUPPORTED},
        {"{\"model_type\":null}", "model_type", ERR_FORMAT},
        {"{\"model_type\":7}", "model_type", ERR_FORMAT},
        {"{\"attention_bias\":true}", "q_proj.bias is missing", ERR_FORMAT},
        {"{\"mlp_bias\":true}", "gate_proj.bias is missing", ERR_FORMAT},
        {"{\"hidden_act\":\"gelu\"}", "gelu", ERR_UNSUPPORTED},
        {"{\"quantization_config\":{\"quant_method\":\"gptq\"}}", "gptq", ERR_UNSUPPORTED},
        {"{\"rope_scaling\":{\"type\":\"mrope\",\"factor\":2}}", "mrope", ERR_UNSUPPORTED},
        {"{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":0.5}}", "factor", ERR_FORMAT},
        {"{\"rope_parameters\":{\"rope_type\":\"longrope\"}}", "longrope", ERR_UNSUPPORTED},
        {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", "low_freq", ERR_FORMAT},
        {"{\"rope_scaling\":{\"rope_type\":\"linear\"}}", "factor", ERR_FORMAT},
        {"{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", "factor", ERR_FORMAT},
        {"{\"partial_rotary_factor\":0.5}", "partial", ERR_UNSUPPORTED},
        {"{\"rope_theta\":0}", "rope base", ERR_FORMAT},
        {"{\"rope_theta\":\"x\"}", "rope_theta", ERR_FORMAT},
        {"{\"num_key_value_heads\":3}", "do not divide", ERR_FORMAT},
        {"{\"num_attention_heads\":0}", "num_attention_heads", ERR_FORMAT},
        {"{\"num_attention_heads\":5,\"head_dim\":null}", "do not divide", ERR_FORMAT},
        {"{\"head_dim\":15}", "odd", ERR_FORMAT},
        {"{\"head_dim\":2048}", "head dimension", ERR_FORMAT},
        {"{\"head_dim\":32}", "q_proj", ERR_FORMAT},
        {"{\"num_hidden_layers\":3}", "model.layers.2.input_layernorm", ERR_FORMAT},
        {"{\"num_hidden_layers\":1}", "model.layers.1.", ERR_UNSUPPORTED},
        {"{\"num_hidden_layers\":1000}", "only 20 tensors", ERR_FORMAT},
        {"{\"num_hidden_layers\":null}", "num_hidden_layers", ERR_FORMAT},
        {"{\"hidden_size\":128}", "[320][64]", ERR_FORMAT},
        {"{\"intermediate_size\":95}", "[96][64]", ERR_FORMAT},
        {"{\"vocab_size\":321}", "[321][64]", ERR_FORMAT},
        {"{\"rms_norm_eps\":0}", "epsilon", ERR_FORMAT},
        {"{\"tie_word_embeddings\":false}", "lm_head.weight", ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e;
        struct model *m;
        int rc = open_changed(&m, cases[i].changes, &e);
        CHECK(rc == cases[i].status && strstr(e.text, cases[i].says), "%s: %d %s", cases[i].changes,
              rc, e.text);
        CHECK(strstr(e.text, folder), "%s", e.text);
        model_free(m);
    }
}

static void test_understood(void)
{
    struct err e;
    struct model *m;
    /* Llama 2: what its config.json leaves out. */
    CHECK_OK(open_changed(&m, "{\"head_dim\":null,\"rope_theta\":null}", &e), e);
    CHECK(m && m->hp.head_dim == 16 && m->hp.rope_theta == 10000);
    model_free(m);
    CHECK_OK(open_changed(&m, "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}", &e), e);
    CHECK(m && m->layer[1].rope_freq[0] == 0.25);
    model_free(m);
    CHECK_OK(open_changed(&m,
                          "{\"rope_theta\":null,\"rope_parameters\":{\"rope_type\":\"default\","
                          "\"rope_theta\":500000}}",
                          &e),
             e);
    CHECK(m && m->hp.rope_theta == 500000 && m->layer[0].rope_freq[0] == 1);
    model_free(m);
    /* config.json is asked only when generation_config.json says nothing. */
    char path[400];
    CHECK_OK(open_changed(&m, "{\"eos_token_id\":[5,6,5,-1,100000],\"bos_token_id\":null}", &e), e);
    CHECK(m && m->hp.n_eos == 2 && m->hp.eos[0] == TEST_IM_END && m->hp.bos == -1);
    model_free(m);
    snprintf(path, sizeof path, "%s/generation_config.json", folder);
    CHECK(unlink(path) == 0);
    CHECK_OK(model_open(&m, folder, &e), e);
    CHECK(m && m->hp.n_eos == 2 && m->hp.eos[0] == 5 && m->hp.eos[1] == 6);
    model_free(m);
}

/* Rewrites the folder's weights with a copy of the embedding under one more name. */
static void add_tensor(const char *extra)
{
    struct err e;
    struct safetensors *s = NULL;
    struct safetensors_writer *w = NULL;
    struct tensor t;
    const char *name[64];
    char path[400], all[400];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    snprintf(all, sizeof all, "%s/all.safetensors", folder);
    CHECK_OK(safetensors_open(&s, path, &e), e);
    CHECK_OK(safetensors_writer_new(&w, all, &e), e);
    size_t n = safetensors_count(s) + 1;
    for (size_t k = 0; k < n; k++) {
        name[k] = k + 1 < n ? safetensors_name(s, k) : "model.embed_tokens.weight";
        CHECK_OK(safetensors_get(s, name[k], &t, &e), e);
        CHECK_OK(
            safetensors_writer_declare(w, k + 1 < n ? name[k] : extra, t.dtype, t.rank, t.dim, &e),
            e);
    }
    for (size_t k = 0; k < n; k++) {
        float *x = NULL;
        CHECK_OK(safetensors_get(s, name[k], &t, &e), e);
        CHECK_OK(tensor_to_f32(&t, &x, &e), e);
        CHECK_OK(safetensors_writer_f32(w, x, tensor_elements(&t), &e), e);
        free(x);
    }
    CHECK_OK(safetensors_writer_commit(w, &e), e);
    safetensors_close(s);
    CHECK(rename(all, path) == 0);
}

/* A head in the file of a tied model is not used and not counted; a table of inverse frequencies
 * is no weight; anything else unknown is refused. */
static void test_extra_tensors(void)
{
    static const struct {
        const char *name, *says;
    } cases[] = {
        {"lm_head.weight", NULL},
        {"model.layers.0.self_attn.rotary_emb.inv_freq", NULL},
        {"model.layers.0.self_attn.q_proj.bias", "q_proj.bias"},
        {"model.layers.00.input_layernorm.weight", "layers.00"},
        {"model.layers.2.input_layernorm.weight", "layers.2"},
        {"model.layers.-1.input_layernorm.weight", "layers.-1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e;
        struct model *m;
        CHECK_OK(open_changed(&m, "{}", &e), e);
        size_t parameters = m ? m->parameters : 0;
        model_free(m);
        add_tensor(cases[i].name);
        int rc = model_open(&m, folder, &e);
        if (cases[i].says)
            CHECK(rc == ERR_UNSUPPORTED && strstr(e.text, cases[i].says), "%d %s", rc, e.text);
        else
            CHECK(rc == 0 && m->parameters == parameters && m->head.data == m->embed.data, "%s",
                  e.text);
        model_free(m);
    }
}

/* The GGUF file with one more key (its bytes) in front, or one u32 or f32 of it changed. Inserting
 * a multiple of 32 bytes leaves the data aligned. */
static int open_gguf_changed(struct model **m, const struct bytes *extra, const char *key,
                             uint32_t value, struct err *e)
{
    struct file_map map;
    struct bytes b = {0};
    struct test_model_spec spec = test_model_small();
    CHECK(test_model_write_gguf(file, &spec) == 0);
    CHECK_OK(file_map_open(&map, file, e), *e);
    put_bytes(&b, map.data, 24);
    if (extra) {
        static const char filler[64] = "................................................";
        size_t want = (extra->n + 21 + 31) & ~(size_t)31;
        put_bytes(&b, extra->data, extra->n);
        put_string(&b, "x");
        put_u32(&b, GGUF_STRING);
        put_u64(&b, want - extra->n - 21);
        put_bytes(&b, filler, want - extra->n - 21);
        b.data[16] = (uint8_t)(b.data[16] + 2);
    }
    put_bytes(&b, map.data + 24, map.size - 24);
    file_map_close(&map);
    if (key) {
        uint8_t *p = memmem(b.data, b.n, key, strlen(key));
        CHECK(p != NULL, "%s", key);
        if (p)
            memcpy(p + strlen(key) + 4, &value, 4);
    }
    CHECK_OK(file_save(file, b.data, b.n, e), *e);
    put_free(&b);
    *e = (struct err){0};
    return model_open(m, file, e);
}

static void test_gguf_refused(void)
{
    static const struct {
        const char *key;
        uint32_t value;
        const char *says;
    } changed[] = {
        {"llama.attention.key_length", 32, "values of 16"},
        {"llama.attention.value_length", 8, "values of 8"},
        {"llama.rope.dimension_count", 8, "rotary part of 8"},
        {"llama.attention.head_count_kv", 3, "do not divide"},
        {"llama.attention.head_count_kv", 0, "head_count_kv"},
        {"llama.attention.head_count_kv", 4, "attn_k.weight"},
        {"llama.block_count", 3, "blk.2.attn_norm"},
        {"llama.block_count", 1, "blk.1."},
        {"llama.block_count", 900, "only 20 tensors"},
        {"llama.block_count", ~0u, "block_count"},
        {"llama.embedding_length", 128, "token_embd.weight"},
        {"llama.feed_forward_length", 128, "ffn_gate.weight"},
        {"llama.context_length", 0, "context_length"},
        {"llama.rope.freq_base", 0x7fc00000, "rope base"},
        {"llama.attention.layer_norm_rms_epsilon", 0x7f800000, "epsilon"},
    };
    struct err e;
    struct model *m;
    CHECK_OK(open_gguf_changed(&m, NULL, NULL, 0, &e), e);
    model_free(m);
    for (size_t i = 0; i < sizeof changed / sizeof *changed; i++) {
        int rc = open_gguf_changed(&m, NULL, changed[i].key, changed[i].value, &e);
        CHECK(rc < 0 && strstr(e.text, changed[i].says) && strstr(e.text, file), "%s %u: %s",
              changed[i].key, changed[i].value, e.text);
        model_free(m);
    }
}

static void test_gguf_added(void)
{
    struct err e;
    struct model *m;
    static const struct {
        const char *key;
        float value;
        const char *says; /* NULL: fine */
    } added[] = {
        {"llama.attention.sliding_window", 4096, "sliding window"},
        {"llama.embedding_scale", 12, "scaled embeddings"},
        {"llama.logit_scale", 1, NULL},
        {"llama.rope.scale_linear", 4, NULL},
        {"llama.attention.scale", -1, "attention scale"},
        {"llama.attention.scale", 0.5f, NULL},
    };
    for (size_t i = 0; i < sizeof added / sizeof *added; i++) {
        struct bytes extra = {0};
        put_key_f32(&extra, added[i].key, added[i].value);
        int rc = open_gguf_changed(&m, &extra, NULL, 0, &e);
        CHECK((rc == 0) == !added[i].says, "%s: %s", added[i].key, e.text);
        CHECK(!added[i].says || strstr(e.text, added[i].says), "%s", e.text);
        if (m && !strcmp(added[i].key, "llama.rope.scale_linear"))
            CHECK(m->layer[0].rope_freq[0] == 0.25, "%g", m->layer[0].rope_freq[0]);
        if (m && !strcmp(added[i].key, "llama.attention.scale"))
            CHECK(m->layer[1].attn_scale == 0.5, "%g", m->layer[1].attn_scale);
        model_free(m);
        put_free(&extra);
    }
    for (uint32_t n = 0; n < 2; n++) { /* no experts, and experts that the tensors do not have */
        struct bytes extra = {0};
        put_key_u32(&extra, "llama.expert_count", 8 * n);
        int rc = open_gguf_changed(&m, &extra, NULL, 0, &e);
        CHECK((rc == 0) == (n == 0), "%s", e.text);
        CHECK(n == 0 || strstr(e.text, "llama.expert_used_count"), "%s", e.text);
        model_free(m);
        put_free(&extra);
    }
    struct bytes extra = {0};
    put_key_string(&extra, "llama.rope.scaling.type", "longrope");
    CHECK(open_gguf_changed(&m, &extra, NULL, 0, &e) == ERR_UNSUPPORTED, "%s", e.text);
    CHECK(strstr(e.text, "longrope"), "%s", e.text);
    put_free(&extra);
}

static void test_bad_paths(void)
{
    struct err e;
    struct model *m;
    char path[400];
    CHECK(model_open(&m, "/nowhere/model.gguf", &e) == ERR_IO && strstr(e.text, "/nowhere"), "%s",
          e.text);
    CHECK(model_open(&m, "", &e) == ERR_IO, "%s", e.text);
    CHECK(model_open(&m, test_tmpdir(), &e) == ERR_IO && strstr(e.text, "config.json"), "%s",
          e.text);
    snprintf(path, sizeof path, "%s/empty.gguf", test_tmpdir());
    CHECK_OK(file_save(path, "", 0, &e), e);
    CHECK(model_open(&m, path, &e) == ERR_FORMAT && strstr(e.text, "not a GGUF file"), "%s",
          e.text);
    CHECK(model_open(&m, "/some/model.safetensors", &e) == ERR_ARG, "%s", e.text);
    CHECK(model_open(&m, "/dev/zero", &e) == ERR_IO, "%s", e.text);
    CHECK(model_look(&m, "/nowhere", &e) == ERR_IO);
}

int main(void)
{
    snprintf(folder, sizeof folder, "%s/model", test_tmpdir());
    snprintf(file, sizeof file, "%s/model.gguf", test_tmpdir());
    test_refused();
    test_understood();
    test_extra_tensors();
    test_gguf_refused();
    test_gguf_added();
    test_bad_paths();
    return test_end("model_config");
}
