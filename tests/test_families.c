/* What the configurations of the families beyond Llama may say: one change at a time in the tiny
 * checkpoints of tests/arch, understood or refused in a sentence. */
#include "core/file.h"
#include "core/fp8.h"
#include "core/json.h"
#include "core/model.h"
#include "sessions/infer.h"
#include "tests/support.h"
#include "tests/support_gguf.h"

/* The folder's weights under a config.json with these members put over it; a value of "-" removes
 * the member, null stays null. */
static int open_changed(struct model **m, const char *arch, const char *changes, struct err *e)
{
    char from[600], to[600], dir[300];
    cJSON *config = NULL, *patch = NULL;
    struct file_map map;
    snprintf(dir, sizeof dir, "%s/model", test_tmpdir());
    CHECK_OK(file_mkdirs(dir, e), *e);
    snprintf(from, sizeof from, "%s/model.safetensors", test_path(arch));
    snprintf(to, sizeof to, "%s/model.safetensors", dir);
    CHECK_OK(file_map_open(&map, from, e), *e);
    CHECK_OK(file_save(to, map.data, map.size, e), *e);
    file_map_close(&map);
    snprintf(from, sizeof from, "%s/config.json", test_path(arch));
    snprintf(to, sizeof to, "%s/config.json", dir);
    CHECK_OK(json_read_file(&config, from, 1 << 20, e), *e);
    CHECK_OK(json_parse(&patch, changes, strlen(changes), "patch", e), *e);
    const cJSON *item;
    cJSON_ArrayForEach(item, patch)
    {
        cJSON_DeleteItemFromObjectCaseSensitive(config, item->string);
        if (!cJSON_IsString(item) || strcmp(item->valuestring, "-"))
            cJSON_AddItemToObject(config, item->string, cJSON_Duplicate(item, true));
    }
    char *text = json_text(config, true);
    CHECK_OK(file_save(to, text, strlen(text), e), *e);
    free(text);
    cJSON_Delete(config);
    cJSON_Delete(patch);
    *e = (struct err){0};
    return model_open(m, dir, e);
}

static void test_windows(void)
{
    static const struct {
        const char *arch, *changes;
        int window[4];
    } cases[] = {
        {"arch/mistral_swa", "{}", {8, 8, 8}},
        {"arch/mistral_swa", "{\"sliding_window\":null}", {0, 0, 0}},
        {"arch/mistral_swa", "{\"sliding_window\":\"-\"}", {4096, 4096, 4096}},
        {"arch/qwen2_bias", "{}", {0, 0, 0}},
        {"arch/qwen2_bias", "{\"use_sliding_window\":true}", {8, 8, 8}},
        {"arch/qwen2_bias", "{\"use_sliding_window\":true,\"max_window_layers\":2}", {0, 0, 8}},
        {"arch/qwen2_bias",
         "{\"use_sliding_window\":true,\"layer_types\":[\"full_attention\",\"sliding_attention\","
         "\"full_attention\"]}",
         {0, 8, 0}},
        {"arch/gemma2", "{}", {6, 0, 6, 0}},
        {"arch/gemma2", "{\"sliding_window\":\"-\"}", {4096, 0, 4096, 0}},
        {"arch/gemma3_text", "{}", {6, 6, 0, 6}},
        {"arch/gemma3_text", "{\"sliding_window_pattern\":2}", {6, 0, 6, 0}},
        {"arch/gemma3_text", "{\"sliding_window_pattern\":\"-\"}", {6, 6, 6, 6}},
        {"arch/phi4", "{\"sliding_window\":20}", {20, 20, 20}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e;
        struct model *m;
        CHECK_OK(open_changed(&m, cases[i].arch, cases[i].changes, &e), e);
        for (int l = 0; m && l < m->hp.n_layer; l++)
            CHECK(m->layer[l].window == cases[i].window[l], "%s %s: layer %d has %d", cases[i].arch,
                  cases[i].changes, l, m->layer[l].window);
        model_free(m);
    }
}

static void test_refused(void)
{
    static const struct {
        const char *arch, *changes, *says;
    } cases[] = {
        {"arch/gemma2", "{\"layer_types\":[\"full_attention\"]}", "layer 1"},
        {"arch/gemma2", "{\"layer_types\":[\"chunked_attention\"]}", "chunked_attention"},
        {"arch/gemma2", "{\"hidden_activation\":\"gelu\"}", "\"gelu\""},
        {"arch/gemma2", "{\"query_pre_attn_scalar\":0}", "attention scale"},
        {"arch/gemma2", "{\"attn_logit_softcapping\":-1}", "soft caps"},
        {"arch/gemma2", "{\"sliding_window\":0}", "sliding_window"},
        {"arch/gemma3_text", "{\"sliding_window_pattern\":0}", "sliding_window_pattern"},
        {"arch/gemma3_text", "{\"use_bidirectional_attention\":true}", "bidirectional"},
        {"arch/gemma3_text", "{\"rope_local_base_freq\":0}", "rope base"},
        {"arch/qwen3_qknorm", "{\"attention_bias\":true}", "attention_bias"},
        {"arch/qwen3_qknorm", "{\"head_dim\":32}", "q_proj"},
        {"arch/phi4", "{\"num_key_value_heads\":4}", "qkv_proj"},
        {"arch/phi4", "{\"intermediate_size\":80}", "[160]"},
        {"arch/phi3_partial", "{\"partial_rotary_factor\":0}", "partial_rotary_factor"},
        {"arch/phi3_partial", "{\"partial_rotary_factor\":1.5}", "partial_rotary_factor"},
        {"arch/phi3_partial", "{\"partial_rotary_factor\":0.01}", "heads of 16"},
        {"arch/phi4mini_long", "{\"partial_rotary_factor\":0.5}", "list of 4 numbers"},
        {"arch/phi4mini_long", "{\"rope_scaling\":{\"type\":\"longrope\"}}", "short_factor"},
        {"arch/phi4mini_long",
         "{\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1,1,0]}}", "positive"},
        {"arch/phi4mini_long", "{\"rope_scaling\":{\"type\":\"mrope\"}}", "mrope"},
        {"arch/gemma3_text", "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}", "yarn"},
        {"families/llama_yarn", "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":-4}}",
         "factor -4"},
        {"families/llama_yarn",
         "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"beta_slow\":40}}", "beta_fast"},
        {"families/llama_yarn",
         "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"attention_factor\":-1}}",
         "magnitude"},
        {"families/llama_yarn",
         "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
         "\"original_max_position_embeddings\":-8}}",
         "original"},
        {"families/llama_dynamic", "{\"rope_scaling\":{\"type\":\"dynamic\",\"alpha\":9}}",
         "alpha"},
        {"families/llama_bias", "{\"mlp_bias\":false}", "mlp.down_proj.bias has no place"},
        {"families/llama_bias", "{\"attention_bias\":false}", "k_proj.bias has no place"},
        {"families/llama_fp8", "{\"quantization_config\":\"-\"}", "is in FP8"},
        {"families/llama_fp8", "{\"quantization_config\":{\"quant_method\":\"fp8\"}}", "\"fp8\""},
        {"families/llama_fp8",
         "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[64,128]}}",
         "q_proj.weight_scale_inv must be [3][2]"},
        {"families/llama_fp8",
         "{\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[-1,128]}}",
         "weight_block_size"},
        {"families/llama_fp8",
         "{\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\","
         "\"weight_block_size\":[128,128]}}",
         "E4M3"},
        {"families/llama_fp8", "{\"quantization_config\":{\"quant_method\":\"awq\"}}", "\"awq\""},
        {"families/nemo", "{\"attention_bias\":true}", "attention_bias"},
        {"families/nemo", "{\"head_dim\":\"-\"}", "q_proj.weight is [80][48]"},
        {"families/smollm3", "{\"no_rope_layers\":[1,1,1]}", "layer 3"},
        {"families/smollm3", "{\"no_rope_layers\":[1,1,1,2]}", "layer 3"},
        {"families/smollm3", "{\"no_rope_layers\":null,\"no_rope_layer_interval\":0}", "interval"},
        {"families/qwen3_moe", "{\"num_experts\":0}", "num_experts"},
        {"families/qwen3_moe", "{\"num_experts\":100000}", "num_experts"},
        {"families/qwen3_moe", "{\"num_experts\":9}", "[9][48]"},
        {"families/qwen3_moe", "{\"num_experts_per_tok\":9}", "num_experts_per_tok"},
        {"families/qwen3_moe", "{\"moe_intermediate_size\":-1}", "moe_intermediate_size"},
        {"families/qwen3_moe", "{\"decoder_sparse_step\":0}", "decoder_sparse_step"},
        {"families/qwen3_moe", "{\"mlp_only_layers\":[-1]}", "mlp_only_layers"},
        {"families/qwen3_moe", "{\"mlp_only_layers\":[]}", "layers.1.mlp.gate.weight"},
        {"arch/dsv3_dense", "{\"attention_bias\":true}", "attention_bias"},
        {"arch/dsv3_dense", "{\"kv_lora_rank\":\"-\"}", "kv_lora_rank"},
        {"arch/dsv3_dense", "{\"kv_lora_rank\":32}", "kv_a_proj_with_mqa"},
        {"arch/dsv3_dense", "{\"qk_rope_head_dim\":7}", "heads of 16 + 7"},
        {"arch/dsv3_dense", "{\"v_head_dim\":20}", "kv_b_proj"},
        {"arch/dsv3_dense", "{\"q_lora_rank\":8}", "q_a_proj"},
        {"arch/dsv3_dense", "{\"num_hidden_layers\":2}", "model.layers.2."},
        {"arch/dsv3_moe", "{\"n_routed_experts\":16}", "[16][64]"},
        {"arch/dsv3_moe", "{\"n_group\":3}", "of 3 groups"},
        {"arch/dsv3_moe", "{\"topk_group\":1}", "1 of 4 groups"},
        {"arch/dsv3_moe", "{\"num_experts_per_tok\":0}", "0 of 8 experts"},
        {"arch/dsv3_moe", "{\"first_k_dense_replace\":2}", "mlp."},
        {"arch/dsv3_moe", "{\"topk_method\":\"random\"}", "random"},
        {"arch/dsv3_moe", "{\"moe_layer_freq\":2}", "every 2th"},
        {"arch/dsv3_moe", "{\"n_shared_experts\":0}", "shared_experts"},
        {"arch/mimo_mtp", "{\"num_hidden_layers\":2}", "model.layers.2."},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e;
        struct model *m;
        int rc = open_changed(&m, cases[i].arch, cases[i].changes, &e);
        CHECK(rc < 0 && strstr(e.text, cases[i].says), "%s %s: %d %s", cases[i].arch,
              cases[i].changes, rc, e.text);
        model_free(m);
    }
}

static void test_understood(void)
{
    struct err e;
    struct model *m;
    CHECK_OK(
        open_changed(&m, "arch/phi4mini_long",
                     "{\"original_max_position_embeddings\":\"-\",\"rope_scaling\":{\"type\":"
                     "\"su\",\"original_max_position_embeddings\":128,\"attention_factor\":1.5,"
                     "\"short_factor\":[1,1,1,1,1,1],\"long_factor\":[2,2,2,2,2,2]}}",
                     &e),
        e);
    CHECK(m && m->hp.rope_original == 128 && m->hp.rope_magnitude == 1.5 &&
          m->layer[0].rope_dim == 12 && m->layer[2].rope_freq_long[0] == 0.5);
    model_free(m);
    CHECK_OK(open_changed(&m, "arch/gemma2",
                          "{\"attn_logit_softcapping\":null,\"final_logit_softcapping\":\"-\"}",
                          &e),
             e);
    CHECK(m && m->hp.attn_softcap == 0 && m->hp.logit_softcap == 30 && m->hp.tied);
    CHECK(m && m->hp.attn_scale == 0.125 && m->hp.embed_scale == 8);
    model_free(m);
    /* Layers beyond the last one are prediction layers only where the configuration says so. */
    CHECK_OK(open_changed(&m, "arch/dsv3_dense",
                          "{\"num_hidden_layers\":2,\"num_nextn_predict_layers\":1}", &e),
             e);
    CHECK(m && m->hp.skipped_layers == 1 && m->hp.n_layer == 2);
    model_free(m);
    /* Rows in half-split order need no copy: the view is the file's. */
    CHECK_OK(open_changed(&m, "arch/dsv3_dense", "{\"rope_interleave\":false}", &e), e);
    CHECK(m && m->layer[0].attn == ATTN_MLA && m->layer[0].latent_eps == 1e-6);
    CHECK(m && model_kv_numbers(&m->hp) == 3 * (24 + 8));
    model_free(m);
}

/* --- GGUF files of Gemma 3 and Phi 3, which tests/arch has none of, from the folders --- */

struct twin {
    struct bytes info, data;
    int n;
};

/* Everything in F32: norms are bound as 1 + w already, which is what GGUF stores. */
static void add_tensor(struct twin *w, const char *name, const struct tensor *t)
{
    struct err e;
    float *x = NULL;
    CHECK_OK(tensor_to_f32(t, &x, &e), e);
    put_tensor_info(&w->info, name, t->dim[t->rank - 1], t->rank == 2 ? t->dim[0] : 0, 0,
                    w->data.n);
    put_bytes(&w->data, x, tensor_elements(t) * sizeof *x);
    put_padding(&w->data, 32);
    free(x);
    w->n++;
}

struct part {
    const char *name;
    struct tensor t;
};

/* Views of neighbouring rows as the one matrix that the file has. */
static struct tensor joined(const struct tensor *a, size_t rows)
{
    struct tensor t = *a;
    t.dim[0] = rows;
    return t;
}

static void add_layer(struct twin *w, const struct model *m, int l)
{
    const struct model_layer *y = &m->layer[l];
    const struct part gemma[] = {
        {"attn_norm", y->attn_norm},
        {"attn_q", y->q},
        {"attn_k", y->k},
        {"attn_v", y->v},
        {"attn_output", y->o},
        {"attn_q_norm", y->q_norm},
        {"attn_k_norm", y->k_norm},
        {"post_attention_norm", y->post_attn_norm},
        {"ffn_norm", y->ffn_norm},
        {"ffn_gate", y->gate},
        {"ffn_up", y->up},
        {"ffn_down", y->down},
        {"post_ffw_norm", y->post_ffn_norm},
    };
    const struct part phi[] = {
        {"attn_norm", y->attn_norm},
        {"attn_qkv", joined(&y->q, y->q.dim[0] + 2 * y->k.dim[0])},
        {"attn_output", y->o},
        {"ffn_norm", y->ffn_norm},
        {"ffn_up", joined(&y->gate, 2 * y->gate.dim[0])},
        {"ffn_down", y->down},
    };
    bool is_phi = !strcmp(m->hp.family, "phi3");
    size_t n = is_phi ? sizeof phi / sizeof *phi : sizeof gemma / sizeof *gemma;
    for (size_t i = 0; i < n; i++) {
        const struct part *p = is_phi ? &phi[i] : &gemma[i];
        char name[64];
        snprintf(name, sizeof name, "blk.%d.%s.weight", l, p->name);
        add_tensor(w, name, &p->t);
    }
}

static void add_number(struct bytes *b, const char *arch, const char *name, double v, bool real)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    if (real)
        put_key_f32(b, key, (float)v);
    else
        put_key_u32(b, key, (uint32_t)v);
}

/* What longrope divides the frequencies by. */
static void add_factors(struct twin *w, const struct model *m, const char *name, const double *freq)
{
    float v[64];
    int n = m->layer[0].rope_dim / 2;
    for (int j = 0; j < n; j++)
        v[j] = (float)(pow(m->hp.rope_theta, -2.0 * j / (2 * n)) / freq[j]);
    add_tensor(w, name, &(struct tensor){v, DTYPE_F32, 1, {(size_t)n}});
}

static void write_twin(const struct model *m, const char *path)
{
    const struct model_hparams *hp = &m->hp;
    const struct {
        const char *name;
        double value;
        bool real;
    } numbers[] = {
        {"block_count", hp->n_layer, false},
        {"embedding_length", hp->hidden, false},
        {"feed_forward_length", hp->ffn, false},
        {"context_length", hp->context, false},
        {"attention.head_count", hp->n_head, false},
        {"attention.head_count_kv", hp->n_kv_head, false},
        {"attention.key_length", hp->head_dim, false},
        {"attention.value_length", hp->head_dim, false},
        {"attention.sliding_window", m->layer[0].window, false},
        {"rope.dimension_count", m->layer[0].rope_dim, false},
        {"rope.freq_base", hp->rope_theta, true},
        {"attention.layer_norm_rms_epsilon", hp->rms_eps, true},
        {"rope.scaling.attn_factor", hp->rope_magnitude, true},
        {"rope.scaling.original_context_length", hp->rope_original, false},
    };
    size_t n = sizeof numbers / sizeof *numbers - (hp->rope_original ? 0 : 2);
    struct err e;
    struct twin w = {0};
    struct bytes b = {0};
    add_tensor(&w, "token_embd.weight", &m->embed);
    add_tensor(&w, "output_norm.weight", &m->final_norm);
    if (hp->rope_original) {
        add_factors(&w, m, "rope_factors_short.weight", m->layer[0].rope_freq);
        add_factors(&w, m, "rope_factors_long.weight", m->layer[0].rope_freq_long);
    }
    for (int l = 0; l < hp->n_layer; l++)
        add_layer(&w, m, l);
    put_header(&b, (uint64_t)w.n, 1 + n);
    put_key_string(&b, "general.architecture", hp->family);
    for (size_t i = 0; i < n; i++)
        add_number(&b, hp->family, numbers[i].name, numbers[i].value, numbers[i].real);
    put_bytes(&b, w.info.data, w.info.n);
    put_padding(&b, 32);
    put_bytes(&b, w.data.data, w.data.n);
    CHECK_OK(file_save(path, b.data, b.n, &e), e);
    put_free(&b);
    put_free(&w.info);
    put_free(&w.data);
}

/* The last token's logits; the caller frees. */
static float *run(const struct model *m, struct backend *b)
{
    static const int32_t ids[] = {5, 17, 99, 3, 42, 8, 120, 77, 31, 64, 2, 90};
    const int n = sizeof ids / sizeof *ids; /* longer than the window */
    struct err e;
    struct engine *g = NULL;
    struct infer *t = NULL;
    float *out = calloc((size_t)m->hp.vocab, sizeof *out);
    CHECK_OK(engine_new(&g, m, b, NULL, &e), e);
    CHECK_OK(infer_new(&t, g, n, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(t, ids, n, INFER_LAST, out, NULL, &e), e);
    infer_free(t);
    engine_free(g);
    return out;
}

static void test_twin(const char *arch, const char *changes)
{
    struct err e;
    struct model *hf = NULL, *gguf = NULL;
    struct backend *b = NULL;
    char path[300];
    snprintf(path, sizeof path, "%s/twin.gguf", test_tmpdir());
    CHECK_OK(open_changed(&hf, arch, changes, &e), e);
    write_twin(hf, path);
    CHECK_OK(model_open(&gguf, path, &e), e);
    CHECK_OK(backend_open(&b, "cpu", &(struct backend_options){.threads = 1, .exact = true}, &e),
             e);
    if (hf && gguf && b) {
        const struct model_layer *x = &hf->layer[2], *y = &gguf->layer[2];
        CHECK(x->window == y->window && x->rope_dim == y->rope_dim, "%s", arch);
        CHECK(gguf->hp.act == hf->hp.act && gguf->hp.rope_original == hf->hp.rope_original);
        float *want = run(hf, b), *got = run(gguf, b);
        /* The same numbers in F32 instead of BF16, frequencies and magnitude rounded to fp32. */
        CHECK(test_rel_error(got, want, (size_t)hf->hp.vocab) < 2e-5, "%s: the twin differs", arch);
        free(want);
        free(got);
    }
    backend_close(b);
    model_free(hf);
    model_free(gguf);
}

/* E4M3 by its definition; a weight that is a product of the two numbers of its file. */
static void test_fp8(void)
{
    static const struct {
        uint8_t bits;
        float value;
    } known[] = {{0x00, 0},    {0x01, 0x1p-9f},     {0x07, 7 * 0x1p-9f}, {0x08, 0x1p-6f},
                 {0x38, 1},    {0x39, 1.125f},      {0xb8, -1},          {0x7e, 448},
                 {0xfe, -448}, {0x77, 1.875f * 128}};
    struct err e;
    struct model *m = NULL;
    struct safetensors *st = NULL;
    struct tensor q, scale;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        CHECK(fp8_e4m3(known[i].bits) == known[i].value, "%02x: %g", known[i].bits,
              (double)fp8_e4m3(known[i].bits));
    CHECK(isnan(fp8_e4m3(0x7f)) && isnan(fp8_e4m3(0xff)));
    const char *name = "model.layers.0.self_attn.q_proj.weight", *folder = "families/llama_fp8";
    CHECK_OK(model_open(&m, test_path(folder), &e), e);
    CHECK_OK(safetensors_open(&st, test_path(folder), &e), e);
    CHECK_OK(safetensors_get_raw(st, name, "F8_E4M3", &q, &e), e);
    CHECK_OK(safetensors_get(st, "model.layers.0.self_attn.q_proj.weight_scale_inv", &scale, &e),
             e);
    const float *w = m->layer[0].q.data, *s = scale.data;
    const uint8_t *bits = q.data;
    for (size_t i = 0; i < q.dim[0]; i++)
        for (size_t j = 0; j < q.dim[1]; j++) {
            size_t at = i * q.dim[1] + j;
            float want = fp8_e4m3(bits[at]) * s[i / 128 * scale.dim[1] + j / 128];
            if (w[at] != want) {
                CHECK(false, "[%zu][%zu] is %g, not %g", i, j, (double)w[at], (double)want);
                return;
            }
        }
    safetensors_close(st);
    model_free(m);
}

int main(void)
{
    test_fp8();
    test_windows();
    test_refused();
    test_understood();
    test_twin("arch/gemma3_text", "{\"sliding_window_pattern\":6}"); /* GGUF knows no other */
    test_twin("arch/phi3_partial", "{\"sliding_window\":7}");
    test_twin("arch/phi4mini_short", "{}");
    test_twin("arch/phi4mini_short", "{\"original_max_position_embeddings\":4}");
    return test_end("families");
}
