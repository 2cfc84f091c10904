/* Exports of the tiny checkpoints of every family: read back they compute what the conversion
 * computes; their configurations hold what the engines' own checks ask for; what cannot be loaded
 * is refused in one sentence before anything is written. Real engines: test_export_engines.sh. */
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/fp8.h"
#include "core/gguf.h"
#include "core/safetensors.h"
#include "sessions/export.h"
#include "tests/support.h"

/* F32 logits of the conversion and of the export differ by rounding: 1e-11 to 1e-9 were seen, as
 * random models amplify it; a wrong row order, scale or epsilon gives 0.1 to 2. */
#define SAME 1e-7

static struct workspace *calibrated(const char *name, struct rankplan *plan)
{
    struct err e = {0};
    struct workspace_options o = {.device = "cpu", .threads = 2, .exact = true};
    struct calib_options calib = {.tokens = 768, .seed = 5};
    struct workspace *w = NULL;
    struct model_info info;
    char path[128];
    snprintf(path, sizeof path, "arch/%s", name);
    CHECK_OK(workspace_new(&w, &o, &e), e);
    CHECK_OK(workspace_open(w, test_path(path), NULL, &e), e);
    CHECK_OK(workspace_calibrate(w, &calib, NULL, NULL, NULL, &e), e);
    workspace_info(w, &info);
    CHECK_OK(rankplan_init(plan, &info.plan_model, &e), e);
    return w;
}

static struct workspace *converted(const char *name, enum plan_layout layout, int share)
{
    struct err e = {0};
    struct rankplan plan;
    struct model_info info;
    struct workspace *w = calibrated(name, &plan);
    workspace_info(w, &info);
    plan.layout = layout;
    struct stock_facts facts;
    stock_facts_of(workspace_model(w, SIDE_ORIGINAL), &facts);
    int rope = facts.rope_dim;
    if (layout == LAYOUT_STOCK && facts.grid_pairs > 0 && 2 * facts.grid_pairs < rope)
        rope = 2 * facts.grid_pairs; /* the frequencies that scaling left alone */
    int all = 2 * info.n_kv_head * info.head_dim;
    for (int l = 0; l < info.n_layer; l++) {
        plan.layer[l].kv_lora_rank = all / share;
        plan.layer[l].qk_rope_head_dim = layout == LAYOUT_OWN    ? info.n_kv_head * rope
                                         : share > 2 && rope > 4 ? rope / 4 * 2
                                                                 : rope;
    }
    if (share > 1 && info.n_layer > 1) /* a layer of its own size: zeros fill it */
        plan.layer[1].kv_lora_rank -= 2;
    CHECK_OK(workspace_convert(w, &plan, NULL, NULL, NULL, &e), e);
    rankplan_done(&plan);
    return w;
}

static const char *target(const char *name)
{
    static char path[600];
    static int serial;
    snprintf(path, sizeof path, "%s/%s-%d", test_tmpdir(), path_base(name), serial++);
    return path;
}

static int entries(const char *dir)
{
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *entry; d && (entry = readdir(d));)
        n += entry->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

static cJSON *config_of(const char *dir)
{
    struct err e = {0};
    cJSON *json = NULL;
    char *path = path_join(dir, "config.json");
    CHECK_OK(json_read_file(&json, path, 1 << 20, &e), e);
    free(path);
    return json;
}

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = json_get(o, key);
    return cJSON_IsNumber(v) ? v->valuedouble : NAN;
}

/* What the classes of vLLM and SGLang and transformers' strict configurations read and refuse. */
static void check_config(const char *dir, enum stock_engine engine, bool moe)
{
    struct err e = {0};
    struct safetensors *st = NULL;
    cJSON *c = config_of(dir);
    double R = number(c, "qk_rope_head_dim"), L = number(c, "num_hidden_layers");
    static const char *const whole[] = {"n_group",        "topk_group",
                                        "moe_layer_freq", "num_experts_per_tok",
                                        "kv_lora_rank",   "moe_intermediate_size",
                                        "v_head_dim",     "n_routed_experts"};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        CHECK(number(c, whole[i]) >= 1, "%s of %s", whole[i], dir);
    CHECK(number(c, "num_key_value_heads") == number(c, "num_attention_heads"), "%s", dir);
    CHECK(number(c, "head_dim") == R, "%s: head_dim builds the rope", dir);
    CHECK(number(c, "first_k_dense_replace") == (moe ? 0 : L), "%s: dense layers", dir);
    CHECK(number(c, "routed_scaling_factor") == 1, "%s", dir);
    CHECK(number(c, "num_nextn_predict_layers") == 0, "%s", dir);
    CHECK(!strcmp(json_str_or(c, "topk_method", ""), "greedy"), "%s", dir);
    CHECK(!strcmp(json_str_or(c, "hidden_act", ""), "silu"), "%s", dir);
    CHECK(cJSON_IsFalse(json_get(c, "tie_word_embeddings")), "%s: engines do not tie", dir);
    CHECK(!json_get(c, "sliding_window") && !json_get(c, "query_pre_attn_scalar") &&
              !json_get(c, "auto_map"),
          "%s: leftovers", dir);
    CHECK_OK(safetensors_open(&st, dir, &e), e);
    CHECK(st && safetensors_has(st, "lm_head.weight"), "%s: the head must be there", dir);
    if (engine != STOCK_HF) {
        double size = number(c, "kv_lora_rank") + R;
        CHECK(size == 320 || size == 576, "%s: cache rows of %g numbers", dir, size);
        CHECK(!json_get(c, "rope_scaling"), "%s: scaling would be taken for yarn", dir);
        CHECK(cJSON_IsFalse(json_get(c, "attention_bias")), "%s", dir);
        CHECK(moe && engine == STOCK_VLLM ? cJSON_HasObjectItem(c, "n_shared_experts")
                                          : number(c, "n_shared_experts") == 1,
              "%s: shared experts", dir);
        for (size_t i = 0; st && i < safetensors_count(st); i++)
            CHECK(!strstr(safetensors_name(st, i), ".bias"), "%s: a bias would be dropped: %s", dir,
                  safetensors_name(st, i));
    }
    safetensors_close(st);
    cJSON_Delete(c);
}

static void check_one(struct workspace *w, const char *name, enum stock_engine engine, bool moe)
{
    struct err e = {0};
    struct export_report r = {0};
    const char *path = target(name);
    struct export_options o = {.to = engine, .dtype = DTYPE_F32, .path = path};
    CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
    if (!r.check.name)
        return;
    printf("  %-12s %-7s NMSE %.1e, top-1 %d of %d %s\n", name, stock_key(engine), r.check.nmse,
           r.check.same_top1, r.check.tokens, r.verdict.text);
    CHECK(r.check.done && r.check.nmse <= SAME && r.check.same_top1 == r.check.tokens,
          "%s %s: %g, %d of %d", name, stock_key(engine), r.check.nmse, r.check.same_top1,
          r.check.tokens);
    if (engine != STOCK_GGUF)
        check_config(path, engine, moe);
    else
        CHECK(r.file[0].bytes == r.bytes && r.bytes > 0, "%s: bytes", name);
    export_report_done(&r);
}

static void check_refused(struct workspace *w, const char *name, enum stock_engine engine,
                          const char *word)
{
    struct err e = {0};
    struct export_report r = {0};
    const char *path = target(name);
    struct export_options o = {.to = engine, .dtype = DTYPE_BF16, .path = path};
    int rc = workspace_export(w, &o, NULL, &r, &e);
    CHECK(rc == ERR_UNSUPPORTED, "%s to %s: %d %s", name, stock_key(engine), rc, e.text);
    CHECK(strstr(e.text, word) && !strchr(e.text, '\n'), "%s: \"%s\" lacks \"%s\"", name, e.text,
          word);
    CHECK(!file_exists(path), "%s: something was written", name);
    export_report_done(&r);
}

/* MLA of the original's cache size: every layer computes what it did, and transformers loads it. */
static void check_equal_cache(const char *name)
{
    struct err e = {0};
    struct rankplan plan;
    struct stock_facts facts;
    struct conversion_report report;
    struct workspace *w = calibrated(name, &plan);
    stock_facts_of(workspace_model(w, SIDE_ORIGINAL), &facts);
    plan.layout = LAYOUT_STOCK;
    CHECK(rankplan_equal_cache(&plan, facts.rope_dim, &e) == ERR_ARG, "stock has no room for it");
    plan.layout = LAYOUT_SHARED;
    CHECK_OK(rankplan_equal_cache(&plan, facts.rope_dim, &e), e);
    CHECK(rankplan_numbers(&plan) == rankplan_numbers_gqa(&plan.model), "%s: cache size", name);
    CHECK_OK(workspace_convert(w, &plan, NULL, NULL, &report, &e), e);
    /* Maps are stored in fp32: squared rounding is 1e-14; a lost direction shows at 1e-6. */
    for (int l = 0; l < report.n_layer; l++)
        CHECK(report.layer[l].error < 1e-11, "%s: layer %d is off by %g", name, l,
              report.layer[l].error);
    conversion_report_done(&report);
    rankplan_done(&plan);
    check_one(w, name, STOCK_HF, false);
    /* Advice to another layout must say that the preset has to go with it. */
    check_refused(w, name, STOCK_VLLM, facts.biases ? "biases" : "equal-cache");
    workspace_free(w);
}

/* What the class of softmax experts says in its configuration and we cannot compute is refused. */
static void check_mistral_config(void)
{
    static const struct {
        const char *from, *to, *why;
    } edits[] = {{"\"llama_4_scaling_beta\":\t0.0", "\"llama_4_scaling_beta\":0.1", "grow"},
                 {"\"n_group\":\t1", "\"n_group\":2", "groups"},
                 {"\"partial_rotary_factor\":\t1.0", "\"partial_rotary_factor\":0.9", "partial"},
                 {"\"norm_topk_prob\":\ttrue", "\"norm_topk_prob\":3", "norm_topk_prob"}};
    struct err e = {0};
    struct export_report r = {0};
    struct workspace *w = converted("mixtral_moe", LAYOUT_STOCK, 2);
    struct export_options o = {.to = STOCK_HF, .dtype = DTYPE_F32, .path = target("mistral4")};
    CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
    export_report_done(&r);
    workspace_free(w);
    char *path = path_join(o.path, "config.json"), *text = NULL, edited[8192];
    size_t n;
    CHECK_OK(file_read(path, 1 << 20, &text, &n, &e), e);
    for (size_t i = 0; i < sizeof edits / sizeof *edits && text; i++) {
        struct model *m = NULL;
        char *at = strstr(text, edits[i].from);
        CHECK(at, "%s is not there", edits[i].from);
        if (!at)
            continue;
        n = (size_t)snprintf(edited, sizeof edited, "%.*s%s%s", (int)(at - text), text, edits[i].to,
                             at + strlen(edits[i].from));
        CHECK_OK(file_save(path, edited, n, &e), e);
        CHECK(model_open(&m, o.path, &e) != OK && strstr(e.text, edits[i].why), "%s: %s",
              edits[i].to, e.text);
        model_free(m);
    }
    free(text);
    free(path);
}

/* Queries of low rank: the export computes what they multiply out to, and the report tells what
 * they cost; with the whole rank they cost nothing. */
static void check_narrow(const char *name, enum stock_engine engine)
{
    struct err e = {0};
    struct workspace *w = converted(name, LAYOUT_STOCK, 2);
    int D = workspace_model(w, SIDE_ORIGINAL)->hp.hidden;
    double loss[3];
    for (int i = 0; i < 3; i++) {
        struct export_report r = {0};
        struct export_options o = {.to = engine,
                                   .dtype = DTYPE_F32,
                                   .path = target("narrow"),
                                   .narrow_rank = i == 0   ? D / 4
                                                  : i == 1 ? D / 2
                                                           : D};
        CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
        loss[i] = r.loss.nmse;
        printf("  %-12s %-5s queries of %2d: keep %.4f, NMSE %.1e; read back %.1e\n", name,
               stock_key(engine), o.narrow_rank, r.query_kept, loss[i], r.check.nmse);
        CHECK(r.loss.done && r.check.done && r.check.nmse <= SAME, "%s: read back %g", name,
              r.check.nmse);
        CHECK(r.query_kept > 0 && r.query_kept <= 1 + 1e-9, "share %g", r.query_kept);
        if (engine != STOCK_GGUF) {
            cJSON *c = config_of(o.path);
            CHECK(number(c, "q_lora_rank") == o.narrow_rank, "%s: q_lora_rank", name);
            cJSON_Delete(c);
        }
        export_report_done(&r);
    }

    CHECK(loss[0] > loss[1] && loss[1] > loss[2], "%g %g %g", loss[0], loss[1], loss[2]);
    if (!workspace_model(w, SIDE_CONVERTED)->layer[0].q_bias.data)
        CHECK(loss[2] <= SAME, "whole rank costs %g", loss[2]);
    workspace_free(w);
}

/* Every frequency of this one is scaled: what the engine would compute is measured, and not kept.
 */
static void check_too_far(struct workspace *w, const char *name, enum stock_engine engine)
{
    struct err e = {0};
    struct export_report r = {0};
    const char *path = target(name);
    struct export_options o = {.to = engine, .dtype = DTYPE_F32, .path = path};
    int rc = workspace_export(w, &o, NULL, &r, &e);
    CHECK(rc == ERR_NUMERIC && strstr(e.text, "frequencies"), "%s: %d %s", name, rc, e.text);
    CHECK(!file_exists(path), "%s: something was written", name);
    export_report_done(&r);
}

static void check_families(void)
{
    static const struct {
        const char *name;
        bool moe, served; /* loads in the engines that know neither biases nor longrope */
        const char *why;
    } families[] = {
        {"llama2_mha", false, true, NULL},       {"llama_gqa_tied", false, true, NULL},
        {"llama3_v5layout", false, false, NULL}, {"phi4", false, true, NULL},
        {"phi3_partial", false, true, NULL},     {"mixtral_moe", true, true, NULL},
        {"qwen2_bias", false, false, "biases"},  {"phi4mini_short", false, false, "longrope"},
    };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const char *name = families[i].name;
        bool moe = families[i].moe;
        struct workspace *full = converted(name, LAYOUT_OWN, 1);
        struct workspace *half = converted(name, LAYOUT_STOCK, 2);
        printf("%s\n", name);
        check_one(full, name, STOCK_HF, moe); /* nothing is lost: frequencies as a list */
        check_refused(full, name, STOCK_GGUF, families[i].why ? families[i].why : "--layout stock");
        check_one(half, name, STOCK_HF, moe);
        struct workspace *shared = converted(name, LAYOUT_SHARED, 2);
        check_one(shared, name, STOCK_HF, moe); /* its list of frequencies, through longrope */
        check_refused(shared, name, STOCK_VLLM,
                      families[i].why ? families[i].why : "--layout stock");
        workspace_free(shared);
        for (int t = STOCK_VLLM; t < STOCK_ENGINES; t++)
            if (families[i].served)
                check_one(half, name, (enum stock_engine)t, moe);
            else if (families[i].why)
                check_refused(half, name, (enum stock_engine)t, families[i].why);
            else
                check_too_far(half, name, (enum stock_engine)t);
        workspace_free(full);
        workspace_free(half);
    }
}

/* Biases for engines without: the export is exactly the folded model, and what folding cost is
 * told; queries can be narrowed on top. */
static void check_folded(enum stock_engine engine, int narrow)
{
    struct err e = {0};
    struct export_report r = {0};
    struct workspace *w = converted("qwen2_bias", LAYOUT_STOCK, 2);
    const char *path = target("folded");
    struct export_options o = {.to = engine,
                               .dtype = DTYPE_F32,
                               .path = path,
                               .fold_biases = true,
                               .tokens = 2048,
                               .narrow_rank = narrow};
    CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
    printf("  %-12s %-6s folded biases: one is off by %.2g, NMSE %.1e, top-1 %d of %d; read back "
           "%.1e\n",
           "qwen2_bias", stock_key(engine), r.bias_left, r.loss.nmse, r.loss.same_top1,
           r.loss.tokens, r.check.nmse);
    CHECK(r.check.done && r.check.nmse <= SAME, "read back %g", r.check.nmse);
    CHECK(r.loss.done && r.loss.nmse > 0, "%s", r.loss.text);
    CHECK(r.bias_left > 0 && r.bias_left < 1, "%g", r.bias_left);
    if (engine == STOCK_VLLM)
        check_config(path, engine, false);
    export_report_done(&r);
    workspace_free(w);
}

/* Layers that do not rotate have zeros where the engines' rope turns: exact in the layouts that
 * keep one list, refused where such a layer keeps its own rows beside the latent. */
static void check_still_layers(void)
{
    const char *name = "../families/smollm3";
    struct workspace *half = converted(name, LAYOUT_STOCK, 2);
    check_one(half, name, STOCK_HF, false);
    workspace_free(half);
    struct workspace *shared = converted(name, LAYOUT_SHARED, 1);
    check_one(shared, name, STOCK_HF, false);
    check_refused(shared, name, STOCK_GGUF, "--layout stock");
    workspace_free(shared);
    struct workspace *own = converted(name, LAYOUT_OWN, 1);
    check_refused(own, name, STOCK_HF, "frequencies of its own");
    workspace_free(own);
}

static void check_no_engine(void)
{
    static const struct {
        const char *name, *why;
    } list[] = {{"gemma2", "soft cap"}, {"mistral_swa", "window"}, {"qwen3_qknorm", "normed"}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct workspace *w = converted(list[i].name, LAYOUT_STOCK, 2);
        for (int t = 0; t < STOCK_ENGINES; t++)
            check_refused(w, list[i].name, (enum stock_engine)t, list[i].why);
        workspace_free(w);
    }
    struct workspace *w = converted("llama_gqa_tied", LAYOUT_STOCK, 2);
    struct rankplan plan;
    struct err e = {0};
    CHECK(workspace_conversion(w, &plan, NULL, &e), "%s", e.text);
    struct stock_facts facts;
    struct stock_verdict v;
    stock_facts_of(workspace_model(w, SIDE_ORIGINAL), &facts);
    plan.layout = LAYOUT_OWN;
    stock_check(&facts, &plan, STOCK_HF, &v);
    CHECK(v.fit == STOCK_NO && strstr(v.text, "frequencies"), "%s", v.text);
    plan.layout = LAYOUT_STOCK;
    facts.grid_pairs = 3;
    stock_check(&facts, &plan, STOCK_GGUF, &v);
    CHECK(v.fit == STOCK_NEAR && strstr(v.text, "approximated"), "%s", v.text);
    plan.layer[0].kv_lora_rank = 513;
    stock_check(&facts, &plan, STOCK_VLLM, &v);
    CHECK(v.fit == STOCK_NO && strstr(v.text, "512"), "%s", v.text);
    rankplan_done(&plan);
    workspace_free(w);
}

static bool stop(void *user, const char *phase, double done, double total)
{
    (void)done;
    (void)total;
    return strcmp(phase, user) != 0;
}

/* Targets that exist, folders that cannot be written, being stopped: nothing is lost or left. */
static void check_targets(void)
{
    struct err e = {0};
    struct export_report r = {0};
    struct workspace *w = converted("llama_gqa_tied", LAYOUT_STOCK, 2);
    char dir[600], path[700], other[700];
    snprintf(dir, sizeof dir, "%s/targets", test_tmpdir());
    snprintf(path, sizeof path, "%s/out", dir);
    snprintf(other, sizeof other, "%s/out.tmp-999999999", dir);
    CHECK_OK(file_mkdirs(dir, &e), e);
    struct export_options o = {
        .to = STOCK_HF, .dtype = DTYPE_F32, .path = path, .shard_bytes = 20000};
    static char phase[3][32] = {"writing tensors", "reading back", "never"};
    for (int i = 0; i < 2; i++) {
        struct progress p = {stop, phase[i]};
        CHECK(workspace_export(w, &o, &p, &r, &e) == ERR_CANCELLED, "%s", e.text);
        CHECK(entries(dir) == 0, "stopped while %s: something is left", phase[i]);
    }
    o.dry_run = true;
    CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
    CHECK(entries(dir) == 0 && r.n_file > 2 && r.bytes > 0, "a dry run writes nothing");
    export_report_done(&r);
    o.dry_run = false;
    CHECK_OK(file_mkdirs(other, &e), e); /* of a process that is gone */
    CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
    CHECK(entries(dir) == 1, "what a killed export left is swept up");
    CHECK(r.check.done && r.check.nmse <= SAME, "shards: %g", r.check.nmse);
    CHECK(!strcmp(r.file[0].name + 5, "-00001-of-00013.safetensors") || r.n_file > 5, "%s",
          r.file[0].name);
    export_report_done(&r);
    CHECK(workspace_export(w, &o, NULL, &r, &e) == ERR_IO && strstr(e.text, "--force"), "%s",
          e.text);
    o.force = true;
    CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
    CHECK(entries(dir) == 1, "the earlier export is gone");
    export_report_done(&r);
    o.path = dir; /* not ours */
    CHECK(workspace_export(w, &o, NULL, &r, &e) == ERR_IO && strstr(e.text, "not an export"), "%s",
          e.text);
    o.to = STOCK_GGUF;
    o.path = other;
    CHECK_OK(file_save(other, "weights", 7, &e), e); /* a file, and no export of ours */
    CHECK(workspace_export(w, &o, NULL, &r, &e) == ERR_IO && strstr(e.text, "not an export"), "%s",
          e.text);
    remove(other);
    for (int i = 0; i < 2; i++, export_report_done(&r)) /* the second over the first */
        CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
    remove(other);
    o.to = STOCK_HF;
    o.dtype = DTYPE_F16;
    CHECK(workspace_export(w, &o, NULL, &r, &e) == ERR_ARG && strstr(e.text, "half"), "%s", e.text);
    snprintf(other, sizeof other, "%s/not/there", dir);
    o.dtype = DTYPE_F32;
    CHECK(workspace_export(w, &o, NULL, &r, &e) == ERR_IO, "%s", e.text);
    workspace_free(w);
}

/* Types of numbers in GGUF: what the rounding costs, and that nothing underflows. */
static void check_types(void)
{
    /* Of random weights 64 wide: bf16 8 bits, f16 11 bits, q8_0 7 bits and a shared scale. */
    static const struct {
        enum dtype dtype;
        double most;
    } list[] = {{DTYPE_BF16, 2e-3}, {DTYPE_F16, 5e-5}, {DTYPE_Q8_0, 2e-2}};
    struct workspace *w = converted("llama2_mha", LAYOUT_STOCK, 2);
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct err e = {0};
        struct export_report r = {0};
        struct export_options o = {
            .to = STOCK_GGUF, .dtype = list[i].dtype, .path = target("types")};
        CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
        printf("  gguf %-5s NMSE %.1e\n", dtype_traits(list[i].dtype)->name, r.check.nmse);
        CHECK(r.check.done && r.check.nmse <= list[i].most, "%g", r.check.nmse);
        export_report_done(&r);
    }
    workspace_free(w);
}

/* The numbers of a file of ours, decoded here from the format's description alone. */
static double e4m3(uint8_t b)
{
    int exponent = b >> 3 & 15, m = b & 7;
    double v = exponent ? (1 + m / 8.0) * pow(2, exponent - 7) : m / 8.0 * pow(2, -6);
    return b & 0x80 ? -v : v;
}

static void check_fp8_numbers(void)
{
    for (int b = 0; b < 256; b++)
        if ((b & 0x7f) != 0x7f)
            CHECK(fp8_from_f32((float)e4m3((uint8_t)b)) == b, "code %d", b);
    uint64_t seed = 3;
    for (int i = 0; i < 20000; i++) { /* the nearest of all codes, the even one of two */
        float f = (float)(test_normal(&seed) * pow(2, 14 * test_uniform(&seed) - 8));
        double got = e4m3(fp8_from_f32(f)), best = 1e9;
        for (int b = 0; b < 256; b++)
            if ((b & 0x7f) != 0x7f)
                best = fmin(best, fabs(e4m3((uint8_t)b) - (double)f));
        CHECK(fabs(got - (double)f) == best, "%g became %g", (double)f, got);
    }
}

static void check_fp8(void)
{
    struct err e = {0};
    struct export_report r = {0};
    struct workspace *w = converted("llama2_mha", LAYOUT_STOCK, 2);
    const char *path = target("fp8");
    struct export_options o = {.to = STOCK_VLLM, .dtype = DTYPE_BF16, .fp8 = true, .path = path};
    const char *name = "model.layers.0.mlp.down_proj.weight";
    check_fp8_numbers();
    CHECK_OK(workspace_export(w, &o, NULL, &r, &e), e);
    if (!r.check.name) {
        workspace_free(w);
        return;
    }
    printf("  fp8 NMSE %.1e\n", r.check.nmse);
    /* Three mantissa bits: relative steps of 1/16, errors near 3e-2 a weight, a few e-3 squared. */
    CHECK(r.check.done && r.check.nmse < 3e-2, "%g", r.check.nmse);
    struct safetensors *st = NULL;
    struct tensor q, scale;
    char scale_name[96];
    CHECK_OK(safetensors_open(&st, path, &e), e);
    snprintf(scale_name, sizeof scale_name, "%s_scale_inv", name);
    CHECK_OK(safetensors_get_raw(st, name, "F8_E4M3", &q, &e), e);
    CHECK_OK(safetensors_get(st, scale_name, &scale, &e), e);
    const struct tensor *down = &workspace_model(w, SIDE_CONVERTED)->layer[0].down;
    CHECK(scale.dim[0] == (q.dim[0] + 127) / 128 && scale.dim[1] == (q.dim[1] + 127) / 128,
          "shape");
    float *want = NULL, *back = calloc(q.dim[0] * q.dim[1], sizeof *back);
    struct fp8_matrix m;
    CHECK_OK(tensor_to_f32(down, &want, &e), e);
    CHECK_OK(fp8_find(&m, st, name, (const int[]){128, 128}, path, &e), e);
    fp8_read(&m, back);
    for (size_t i = 0; i < q.dim[0] * q.dim[1]; i++) {
        float s =
            ((const float *)scale.data)[i / q.dim[1] / 128 * scale.dim[1] + i % q.dim[1] / 128];
        float own = (float)e4m3(((const uint8_t *)q.data)[i]) * s;
        CHECK(own == back[i], "number %zu: %g and %g", i, (double)own, (double)back[i]);
        CHECK(fabsf(own - want[i]) <= fabsf(want[i]) / 16 + s / 512, "number %zu is far off", i);
    }
    CHECK(!strcmp(safetensors_dtype(st, "lm_head.weight"), "BF16") &&
              !strcmp(safetensors_dtype(st, "model.layers.0.input_layernorm.weight"), "BF16") &&
              !strcmp(safetensors_dtype(st, "model.layers.1.self_attn.kv_b_proj.weight"), "BF16") &&
              !strcmp(safetensors_dtype(st, "model.layers.1.mlp.up_proj.weight"), "F8_E4M3"),
          "what stays in 16 bits");
    free(want);
    free(back);
    safetensors_close(st);
    export_report_done(&r);
    workspace_free(w);
}

int main(void)
{
    check_families();
    check_equal_cache("llama_gqa_tied");
    check_equal_cache("phi3_partial");
    check_equal_cache("qwen2_bias");
    check_mistral_config();
    check_narrow("llama_gqa_tied", STOCK_HF);
    check_narrow("llama_gqa_tied", STOCK_GGUF);
    check_narrow("qwen2_bias", STOCK_HF);
    check_folded(STOCK_VLLM, 0);
    check_folded(STOCK_GGUF, 0);
    check_folded(STOCK_SGLANG, 32);
    check_still_layers();
    check_no_engine();
    check_targets();
    check_types();
    check_fp8();
    return test_end("export");
}
