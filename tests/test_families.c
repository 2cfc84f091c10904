/* What the configurations of the families beyond Llama may say: one change at a time in the tiny
 * checkpoints of tests/arch, understood or refused in a sentence. */
#include "core/file.h"
#include "core/json.h"
#include "core/model.h"
#include "tests/support.h"

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
        {"arch/phi4mini_long", "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}", "yarn"},
        {"arch/dsv3_dense", "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40}}", "yarn"},
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

int main(void)
{
    test_windows();
    test_refused();
    test_understood();
    return test_end("families");
}
