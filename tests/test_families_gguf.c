/* GGUF files of the families that tests/arch has none of: written here from the folders under
 * families/ and arch/, as converters to GGUF write them, opened again and compared with the
 * folder's golden logits. With a folder as argument the files stay there, for other engines to
 * read. */
#include "core/file.h"
#include "core/model.h"
#include "core/ropefreq.h"
#include "sessions/infer.h"
#include "tests/support.h"
#include "tests/support_golden.h"
#include "tests/support_gguf.h"

static const char *out_dir;

struct writer {
    struct bytes keys, info, data;
    const char *arch;
    uint64_t n_keys, n_tensors;
};

static const char *key_of(const struct writer *w, const char *name)
{
    static char key[128];
    snprintf(key, sizeof key, "%s.%s", w->arch, name);
    return key;
}

static void key_int(struct writer *w, const char *name, int v)
{
    put_key_u32(&w->keys, key_of(w, name), (uint32_t)v);
    w->n_keys++;
}

static void key_num(struct writer *w, const char *name, double v)
{
    put_key_f32(&w->keys, key_of(w, name), (float)v);
    w->n_keys++;
}

static void key_text(struct writer *w, const char *name, const char *v)
{
    put_key_string(&w->keys, strchr(name, '.') == NULL ? key_of(w, name) : name, v);
    w->n_keys++;
}

/* x in fp32; dim outermost first. */
static void put_f32(struct writer *w, const char *name, const float *x, int rank, const size_t *dim)
{
    size_t n = 1;
    put_string(&w->info, name);
    put_u32(&w->info, (uint32_t)rank);
    for (int i = rank - 1; i >= 0; i--) {
        put_u64(&w->info, dim[i]);
        n *= dim[i];
    }
    put_u32(&w->info, 0);
    put_u64(&w->info, w->data.n);
    put_bytes(&w->data, x, n * sizeof *x);
    put_padding(&w->data, 32);
    w->n_tensors++;
}

/* Of every head's rows those from `from` on: halves to interleaved pairs. head 0: as they are. */
static void put_rows(struct writer *w, const char *name, const struct tensor *t, size_t head,
                     size_t from)
{
    struct err e;
    float *x = NULL;
    size_t cols = t->rank == 1 ? 1 : t->dim[1], half = head ? (head - from) / 2 : 0;
    CHECK_OK(tensor_to_f32(t, &x, &e), e);
    float *y = malloc(tensor_elements(t) * sizeof *y);
    for (size_t i = 0; i < t->dim[0]; i++) {
        size_t j = head ? i % head : 0, start = i - j + from, to = i;
        if (head && j >= from)
            to = j - from < half ? start + 2 * (j - from) : start + 2 * (j - from - half) + 1;
        memcpy(y + to * cols, x + i * cols, cols * sizeof *x);
    }
    put_f32(w, name, y, t->rank, t->dim);
    free(x);
    free(y);
}

static void put_layer(struct writer *w, int l, const char *name, const struct tensor *t,
                      size_t head, size_t from)
{
    char full[96];
    snprintf(full, sizeof full, "blk.%d.%s", l, name);
    if (t->data)
        put_rows(w, full, t, head, from);
}

static void put_experts(struct writer *w, const struct model *m, int l, const char *part, int index,
                        bool loose)
{
    const struct tensor *first = &m->layer[l].expert[index];
    size_t n = (size_t)m->hp.moe.n, size = tensor_elements(first);
    float *all = malloc(n * size * sizeof *all), *x;
    struct err e;
    char name[96];
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = &m->layer[l].expert[i * EXPERT_PARTS + (size_t)index];
        CHECK_OK(tensor_to_f32(t, &x, &e), e);
        memcpy(all + i * size, x, size * sizeof *x);
        free(x);
        snprintf(name, sizeof name, "blk.%d.ffn_%s.%zu.weight", l, part, i);
        if (loose)
            put_f32(w, name, all + i * size, 2, t->dim);
    }
    snprintf(name, sizeof name, "blk.%d.ffn_%s_exps.weight", l, part);
    if (!loose)
        put_f32(w, name, all, 3, (const size_t[]){n, first->dim[0], first->dim[1]});
    free(all);
}

static void put_feed_forward(struct writer *w, const struct model *m, int l, bool loose)
{
    const struct model_layer *y = &m->layer[l];
    const char *end = y->expert ? "_shexp.weight" : ".weight";
    const struct {
        const char *name;
        const struct tensor *t;
    } parts[] = {{"gate", &y->gate}, {"up", &y->up}, {"down", &y->down}};
    char name[64];
    put_layer(w, l, "ffn_norm.weight", &y->ffn_norm, 0, 0);
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "ffn_%s%s", parts[i].name, end);
        put_layer(w, l, name, parts[i].t, 0, 0);
        if (y->expert)
            put_experts(w, m, l, parts[i].name, i, loose);
    }
    put_layer(w, l, "ffn_gate.bias", &y->gate_bias, 0, 0);
    put_layer(w, l, "ffn_up.bias", &y->up_bias, 0, 0);
    put_layer(w, l, "ffn_down.bias", &y->down_bias, 0, 0);
    put_layer(w, l, "ffn_gate_inp.weight", &y->router, 0, 0);
    put_layer(w, l, "exp_probs_b.bias", &y->router_bias, 0, 0);
}

static void put_gqa(struct writer *w, const struct model *m, int l, bool pairs)
{
    const struct model_layer *y = &m->layer[l];
    size_t head = pairs ? (size_t)m->hp.head_dim : 0;
    put_layer(w, l, "attn_norm.weight", &y->attn_norm, 0, 0);
    put_layer(w, l, "attn_q.weight", &y->q, head, 0);
    put_layer(w, l, "attn_q.bias", &y->q_bias, head, 0);
    put_layer(w, l, "attn_k.weight", &y->k, head, 0);
    put_layer(w, l, "attn_k.bias", &y->k_bias, head, 0);
    put_layer(w, l, "attn_v.weight", &y->v, 0, 0);
    put_layer(w, l, "attn_v.bias", &y->v_bias, 0, 0);
    put_layer(w, l, "attn_output.weight", &y->o, 0, 0);
    put_layer(w, l, "attn_output.bias", &y->o_bias, 0, 0);
    put_layer(w, l, "attn_q_norm.weight", &y->q_norm, 0, 0);
    put_layer(w, l, "attn_k_norm.weight", &y->k_norm, 0, 0);
}

/* kv_b [H·(P+Vd)][r] as keys [H][r][P] and values [H][Vd][r]. */
static void put_split(struct writer *w, const struct model *m, int l)
{
    size_t H = (size_t)m->hp.n_head, P = (size_t)m->hp.qk_nope_head_dim;
    size_t V = (size_t)m->hp.v_head_dim, r = (size_t)m->hp.kv_lora_rank;
    float *x = NULL, *k = malloc(H * r * P * sizeof *k), *v = malloc(H * V * r * sizeof *v);
    struct err e;
    char name[64];
    CHECK_OK(tensor_to_f32(&m->layer[l].kv_b, &x, &e), e);
    for (size_t h = 0; h < H; h++) {
        const float *head = x + h * (P + V) * r;
        for (size_t p = 0; p < P; p++)
            for (size_t c = 0; c < r; c++)
                k[(h * r + c) * P + p] = head[p * r + c];
        memcpy(v + h * V * r, head + P * r, V * r * sizeof *v);
    }
    snprintf(name, sizeof name, "blk.%d.attn_k_b.weight", l);
    put_f32(w, name, k, 3, (const size_t[]){H, r, P});
    snprintf(name, sizeof name, "blk.%d.attn_v_b.weight", l);
    put_f32(w, name, v, 3, (const size_t[]){H, V, r});
    free(x);
    free(k);
    free(v);
}

static void put_mla(struct writer *w, const struct model *m, int l, bool split)
{
    const struct model_hparams *hp = &m->hp;
    const struct model_layer *y = &m->layer[l];
    size_t P = (size_t)hp->qk_nope_head_dim, R = (size_t)hp->qk_rope_head_dim;
    size_t r = (size_t)hp->kv_lora_rank;
    put_layer(w, l, "attn_norm.weight", &y->attn_norm, 0, 0);
    put_layer(w, l, hp->q_lora_rank ? "attn_q_b.weight" : "attn_q.weight", &y->q, P + R, P);
    put_layer(w, l, "attn_q_a.weight", &y->q_a, 0, 0);
    put_layer(w, l, "attn_q_a_norm.weight", &y->q_a_norm, 0, 0);
    put_layer(w, l, "attn_kv_a_mqa.weight", &y->kv_a, r + R, r);
    put_layer(w, l, "attn_kv_a_norm.weight", &y->kv_a_norm, 0, 0);
    put_layer(w, l, "attn_output.weight", &y->o, 0, 0);
    if (split)
        put_split(w, m, l);
    else
        put_layer(w, l, "attn_kv_b.weight", &y->kv_b, 0, 0);
}

/* How a twin differs from what its folder's sizes say. */
struct twin {
    const char *path, *arch;
    bool loose; /* experts one by one */
    bool split; /* kv_b by head, lengths of the cache */
    bool yarn;  /* factor 4 over 64 tokens */
};

static void put_mla_keys(struct writer *w, const struct model_hparams *hp, bool split)
{
    int key = hp->qk_nope_head_dim + hp->qk_rope_head_dim, r = hp->kv_lora_rank;
    key_int(w, "attention.head_count_kv", split ? 1 : hp->n_head);
    key_int(w, "attention.q_lora_rank", hp->q_lora_rank);
    key_int(w, "attention.kv_lora_rank", r);
    key_int(w, "attention.key_length", split ? r + hp->qk_rope_head_dim : key);
    key_int(w, "attention.value_length", split ? r : hp->v_head_dim);
    if (split) {
        key_int(w, "attention.key_length_mla", key);
        key_int(w, "attention.value_length_mla", hp->v_head_dim);
    }
    key_int(w, "rope.dimension_count", hp->qk_rope_head_dim);
    key_int(w, "leading_dense_block_count", hp->moe.n ? hp->moe.first_layer : hp->n_layer);
    key_int(w, "expert_shared_count", hp->moe.n ? hp->moe.shared_ffn / hp->moe.ffn : 0);
    if (!hp->moe.n) {
        key_int(w, "expert_feed_forward_length", hp->ffn);
        return;
    }
    key_int(w, "expert_group_count", hp->moe.groups);
    key_int(w, "expert_group_used_count", hp->moe.groups_used);
    key_int(w, "expert_gating_func", hp->moe.sigmoid ? 2 : 1);
    key_num(w, "expert_weights_scale", hp->moe.scale);
    put_key_bool(&w->keys, key_of(w, "expert_weights_norm"), hp->moe.renormalise);
    w->n_keys++;
}

static void put_keys(struct writer *w, const struct model_hparams *hp, const struct twin *t)
{
    key_text(w, "general.architecture", t->arch);
    key_text(w, "tokenizer.ggml.model", "none");
    key_int(w, "vocab_size", hp->vocab);
    key_int(w, "block_count", hp->n_layer);
    key_int(w, "embedding_length", hp->hidden);
    key_int(w, "feed_forward_length", hp->ffn);
    key_int(w, "context_length", hp->context);
    key_int(w, "attention.head_count", hp->n_head);
    key_num(w, "rope.freq_base", hp->rope_theta);
    key_num(w, "attention.layer_norm_rms_epsilon", hp->rms_eps);
    if (t->yarn) {
        put_key_string(&w->keys, key_of(w, "rope.scaling.type"), "yarn");
        w->n_keys++;
        key_num(w, "rope.scaling.factor", 4);
        key_int(w, "rope.scaling.original_context_length", 64);
    }
    if (hp->moe.n) {
        key_int(w, "expert_count", hp->moe.n);
        key_int(w, "expert_used_count", hp->moe.used);
        key_int(w, "expert_feed_forward_length", hp->moe.ffn);
    }
    if (hp->kv_lora_rank) {
        put_mla_keys(w, hp, t->split);
        return;
    }
    key_int(w, "attention.head_count_kv", hp->n_kv_head);
    key_int(w, "attention.key_length", hp->head_dim);
    key_int(w, "attention.value_length", hp->head_dim);
    key_int(w, "rope.dimension_count", hp->head_dim);
}

static void write_twin(const struct model *m, const struct twin *t, const char *path)
{
    struct writer w = {.arch = t->arch};
    struct bytes file = {0};
    struct err e;
    bool pairs = !strcmp(t->arch, "llama") || !strcmp(t->arch, "smollm3");
    put_keys(&w, &m->hp, t);
    put_rows(&w, "token_embd.weight", &m->embed, 0, 0);
    put_rows(&w, "output_norm.weight", &m->final_norm, 0, 0);
    if (!m->hp.tied)
        put_rows(&w, "output.weight", &m->head, 0, 0);
    for (int l = 0; l < m->hp.n_layer; l++) {
        if (m->hp.kv_lora_rank)
            put_mla(&w, m, l, t->split);
        else
            put_gqa(&w, m, l, pairs);
        put_feed_forward(&w, m, l, t->loose);
    }
    put_header(&file, w.n_tensors, w.n_keys);
    put_bytes(&file, w.keys.data, w.keys.n);
    put_bytes(&file, w.info.data, w.info.n);
    put_padding(&file, 32);
    put_bytes(&file, w.data.data, w.data.n);
    CHECK_OK(file_save(path, file.data, file.n, &e), e);
    put_free(&file);
    put_free(&w.keys);
    put_free(&w.info);
    put_free(&w.data);
}

static void check_twin(const struct twin *t, struct backend *b)
{
    char path[600], golden[128], base[64];
    struct err e = {0};
    struct model *hf = NULL, *gguf = NULL;
    struct engine *g = NULL;
    struct infer *x = NULL;
    struct golden gold;
    struct model *seen = NULL;
    snprintf(base, sizeof base, "%s", strrchr(t->path, '/') + 1);
    snprintf(path, sizeof path, "%s/%s%s%s.gguf", out_dir, base, t->loose ? "_loose" : "",
             t->split ? "_split" : "");
    snprintf(golden, sizeof golden, "%s/golden.json", t->path);
    golden_load(&gold, test_path(golden));
    CHECK_OK(model_open(&hf, test_path(t->path), &e), e);
    write_twin(hf, t, path);
    CHECK_OK(model_look(&seen, path, &e), e);
    CHECK_OK(model_open(&gguf, path, &e), e);
    if (gguf && !engine_new(&g, gguf, b, NULL, &e) && !infer_new(&x, g, gold.n, DTYPE_F32, &e)) {
        float *all = malloc((size_t)gold.n * (size_t)gold.vocab * sizeof *all);
        CHECK_OK(infer_prefill(x, gold.tokens, gold.n, INFER_ALL, all, NULL, &e), e);
        double gap = golden_error(&gold, all);
        printf("%-9s %-34s error %.1e (tolerance %.0e)\n", t->arch, base, gap, gold.tolerance);
        CHECK(gap <= gold.tolerance, "%s as %s: %g", base, t->arch, gap);
        CHECK(seen && seen->parameters == gguf->parameters && gguf->parameters == hf->parameters,
              "%s", base);
        free(all);
    } else {
        CHECK(false, "%s", e.text);
    }
    model_free(seen);
    infer_free(x);
    engine_free(g);
    model_free(gguf);
    model_free(hf);
    golden_free(&gold);
}

/* Keys of yarn that folders of transformers cannot say: llama.cpp's own. */
static void test_yarn_keys(void)
{
    char path[400];
    static const struct {
        const char *arch;
        double log_mul, attn_factor, yarn_attn_factor;
        double magnitude, scale; /* of cos and sin; of the usual attention scale */
    } cases[] = {
        {"llama", 0, 1, 0, 1.1386294361, 1}, /* 1 + 0.1 ln 4 */
        {"llama", 1, 1, 0, 1.1386294361, 1}, /* of DeepSeek alone */
        {"llama", 0, 0.5, 0, 0.5693147181, 1},        {"llama", 0, 1, 1.3, 1.3, 1},
        {"deepseek2", 0.1, 1, 0, 1, 1.2964769929},    /* (1 + 0.1 ln 4)² */
        {"deepseek2", 0.0707, 1, 0, 1, 1.2056281810}, /* (1 + 0.0707 ln 4)² */
        {"deepseek2", 0, 0.8782488563, 0, 1, 1},      /* attn_factor undoes it all */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool mla = !strcmp(cases[i].arch, "deepseek2");
        struct twin t = {mla ? "arch/dsv3_dense" : "families/llama_yarn", cases[i].arch,
                         .yarn = true};
        struct err e = {0};
        struct model *hf = NULL, *m = NULL;
        struct writer w = {.arch = t.arch};
        struct bytes file = {0};
        snprintf(path, sizeof path, "%s/yarn_keys_%zu.gguf", out_dir, i);
        CHECK_OK(model_open(&hf, test_path(t.path), &e), e);
        put_keys(&w, &hf->hp, &t);
        key_num(&w, "rope.scaling.yarn_log_multiplier", cases[i].log_mul);
        key_num(&w, "rope.scaling.attn_factor", cases[i].attn_factor);
        key_num(&w, "rope.scaling.yarn_beta_fast", 6);
        if (cases[i].yarn_attn_factor > 0)
            key_num(&w, "rope.scaling.yarn_attn_factor", cases[i].yarn_attn_factor);
        put_rows(&w, "token_embd.weight", &hf->embed, 0, 0);
        put_rows(&w, "output_norm.weight", &hf->final_norm, 0, 0);
        put_rows(&w, "output.weight", &hf->head, 0, 0);
        for (int l = 0; l < hf->hp.n_layer; l++) {
            if (mla)
                put_mla(&w, hf, l, false);
            else
                put_gqa(&w, hf, l, true);
            put_feed_forward(&w, hf, l, false);
        }
        put_header(&file, w.n_tensors, w.n_keys);
        put_bytes(&file, w.keys.data, w.keys.n);
        put_bytes(&file, w.info.data, w.info.n);
        put_padding(&file, 32);
        put_bytes(&file, w.data.data, w.data.n);
        CHECK_OK(file_save(path, file.data, file.n, &e), e);
        CHECK_OK(model_open(&m, path, &e), e);
        if (m) {
            double freq[64], usual = 1 / sqrt(m->hp.head_dim);
            struct rope_spec spec = {.kind = ROPE_YARN,
                                     .theta = hf->hp.rope_theta,
                                     .factor = 4,
                                     .low = 1,
                                     .high = 6,
                                     .original_context = 64};
            ropefreq_fill(&spec, m->layer[0].rope_dim, freq);
            CHECK(fabs(m->hp.rope_magnitude / cases[i].magnitude - 1) < 1e-6,
                  "%zu: magnitude %.10g", i, m->hp.rope_magnitude);
            CHECK(fabs(m->layer[0].attn_scale / usual / cases[i].scale - 1) < 1e-6,
                  "%zu: scale %.10g", i, m->layer[0].attn_scale / usual);
            for (int j = 0; j < m->layer[0].rope_dim / 2; j++)
                CHECK(fabs(m->layer[0].rope_freq[j] / freq[j] - 1) < 1e-6, "%zu: pair %d", i, j);
        }
        model_free(m);
        model_free(hf);
        put_free(&file);
        put_free(&w.keys);
        put_free(&w.info);
        put_free(&w.data);
    }
}

/* One number of a good file changed to a bad one. */
static void test_hostile(const char *file)
{
    static const struct {
        const char *key;
        uint32_t value;
        const char *says;
    } cases[] = {
        {"deepseek2.block_count", 0, "block_count"},
        {"deepseek2.attention.kv_lora_rank", 0, "kv_lora_rank"},
        {"deepseek2.attention.kv_lora_rank", 9999, "attn_kv_a_mqa"},
        {"deepseek2.attention.key_length_mla", 8, "8 of them rotated"},
        {"deepseek2.attention.value_length_mla", 0xffffffff, "value_length_mla"},
        {"deepseek2.rope.dimension_count", 7, "heads of 17 + 7"},
        {"deepseek2.expert_count", 0x7fffffff, "expert_count"},
        {"deepseek2.expert_used_count", 0, "0 of 8 experts"},
        {"deepseek2.expert_group_count", 3, "of 3 groups"},
        {"deepseek2.expert_gating_func", 9, "expert_gating_func 9"},
        {"deepseek2.expert_shared_count", 900, "ffn_gate_shexp"},
        {"deepseek2.expert_weights_scale", 0x7fc00000, "scale nan"},
        {"deepseek2.leading_dense_block_count", 2, "blk.1."},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[600];
        struct err e = {0};
        struct file_map map;
        struct model *m = NULL;
        CHECK_OK(file_map_open(&map, file, &e), e);
        uint8_t *copy = malloc(map.size), *at;
        memcpy(copy, map.data, map.size);
        at = memmem(copy, map.size, cases[i].key, strlen(cases[i].key));
        CHECK(at != NULL, "%s", cases[i].key);
        if (at)
            memcpy(at + strlen(cases[i].key) + 4, &cases[i].value, 4);
        snprintf(path, sizeof path, "%s/hostile.gguf", test_tmpdir());
        CHECK_OK(file_save(path, copy, map.size, &e), e);
        int rc = model_open(&m, path, &e);
        CHECK(rc < 0 && strstr(e.text, cases[i].says) && strstr(e.text, path), "%s %u: %d %s",
              cases[i].key, cases[i].value, rc, e.text);
        model_free(m);
        file_map_close(&map);
        free(copy);
    }
}

int main(int argc, char **argv)
{
    static const struct twin twins[] = {
        {"families/smollm3", "smollm3", .yarn = true},
        {"families/llama_yarn", "llama", .yarn = true},
        {"families/llama_bias", "llama", false, false, false},
        {"families/nemo", "llama", false, false, false},
        {"families/qwen3_moe", "qwen3moe", false, false, false},
        {"arch/mixtral_moe", "llama", .loose = true},
        {"arch/mixtral_moe", "llama", false, false, false},
        {"arch/dsv3_dense", "deepseek2", false, false, false},
        {"arch/dsv3_dense", "deepseek2", .split = true},
        {"arch/dsv2_dense", "deepseek2", .split = true},
        {"arch/dsv3_moe", "deepseek2", .split = true},
    };
    struct err e = {0};
    struct backend *b = NULL;
    out_dir = argc > 1 ? argv[1] : test_tmpdir();
    CHECK_OK(backend_open(&b, "cpu", &(struct backend_options){.threads = 1, .exact = true}, &e),
             e);
    for (size_t i = 0; i < sizeof twins / sizeof *twins && b; i++)
        check_twin(&twins[i], b);
    test_yarn_keys();
    char path[600];
    snprintf(path, sizeof path, "%s/dsv3_moe_split.gguf", out_dir);
    test_hostile(path);
    backend_close(b);
    return test_end("families_gguf");
}
