/* Inference against golden logits, and its own properties: step = prefill, rewind = fresh, batch =
 * alone, predicted KV bytes = allocated bytes. */
#include "core/kvmem.h"
#include "kernels/backend.h"
#include "sessions/infer.h"
#include "tests/support.h"
#include "tests/support_golden.h"

static const char *const models[][2] = {
    /* model, golden */
    {"arch/llama2_mha", "arch/llama2_mha/golden.json"},
    {"arch/llama_gqa_tied", "arch/llama_gqa_tied/golden.json"},
    {"arch/llama3_rope", "arch/llama3_rope/golden.json"},
    {"arch/llama3_v5layout", "arch/llama3_v5layout/golden.json"},
    {"arch/mistral_swa", "arch/mistral_swa/golden.json"},
    {"arch/qwen2_bias", "arch/qwen2_bias/golden.json"},
    {"arch/qwen3_qknorm", "arch/qwen3_qknorm/golden.json"},
    {"arch/mimo_mtp", "arch/mimo_mtp/golden.json"},
    {"arch/phi4", "arch/phi4/golden.json"},
    {"arch/phi3_partial", "arch/phi3_partial/golden.json"},
    {"arch/phi4mini_long", "arch/phi4mini_long/golden.json"},
    {"arch/phi4mini_short", "arch/phi4mini_short/golden.json"},
    {"arch/gemma2", "arch/gemma2/golden.json"},
    {"arch/gemma3_text", "arch/gemma3_text/golden.json"},
    {"arch/gemma3_v5layout", "arch/gemma3_v5layout/golden.json"},
    {"arch/mixtral_moe", "arch/mixtral_moe/golden.json"},
    {"arch/dsv2_dense", "arch/dsv2_dense/golden.json"},
    {"arch/dsv3_dense", "arch/dsv3_dense/golden.json"},
    {"arch/dsv3_qlora_bias", "arch/dsv3_qlora_bias/golden.json"},
    {"arch/dsv3_moe", "arch/dsv3_moe/golden.json"},
    {"families/llama_yarn", "families/llama_yarn/golden.json"},
    {"families/qwen2_yarn", "families/qwen2_yarn/golden.json"},
    {"families/llama_dynamic", "families/llama_dynamic/golden.json"},
    {"families/llama_bias", "families/llama_bias/golden.json"},
    {"families/nemo", "families/nemo/golden.json"},
    {"families/smollm3", "families/smollm3/golden.json"},
    {"families/qwen3_moe", "families/qwen3_moe/golden.json"},
    {"families/dsv3_yarn", "families/dsv3_yarn/golden.json"},
    {"families/llama_fp8", "families/llama_fp8/golden.json"},
    {"arch/gguf/qwen2_bias.gguf", "arch/qwen2_bias/golden.json"},
    {"arch/gguf/qwen3_qknorm.gguf", "arch/qwen3_qknorm/golden.json"},
    {"arch/gguf/gemma2.gguf", "arch/gemma2/golden.json"},
    {"arch/gguf/mixtral_moe.gguf", "arch/mixtral_moe/golden.json"},
    {"arch/gguf/llama_gqa_tied.gguf", "arch/llama_gqa_tied/golden.json"},
    {"arch/gguf/llama3_rope.gguf", "arch/llama3_rope/golden.json"},
    {"arch/gguf/llama_mixed_quant.gguf", "arch/gguf/llama_mixed_quant.golden.json"},
};

static int argmax(const float *v, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = v[i] > v[best] ? i : best;
    return best;
}

static void check_golden(const struct engine *g, const struct golden *gold, const char *name)
{
    struct err e = {0};
    struct infer *t = NULL;
    float *all = malloc((size_t)gold->n * (size_t)gold->vocab * sizeof *all);
    float *one = malloc((size_t)gold->vocab * sizeof *one);
    CHECK_OK(infer_new(&t, g, gold->n + gold->n_greedy, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(t, gold->tokens, gold->n, INFER_ALL, all, NULL, &e), e);
    double gap = golden_error(gold, all);
    printf("%-32s error %.1e (tolerance %.0e)\n", name, gap, gold->tolerance);
    CHECK(gap <= gold->tolerance, "%s: %g > %g", name, gap, gold->tolerance);
    int32_t id = argmax(all + (size_t)(gold->n - 1) * (size_t)gold->vocab, gold->vocab);
    for (int i = 0; i < gold->n_greedy; i++) {
        CHECK(id == gold->greedy[i], "%s: greedy token %d is %d, not %d", name, i, id,
              gold->greedy[i]);
        if (i + 1 < gold->n_greedy) {
            CHECK_OK(infer_step(t, id, one, &e), e);
            id = argmax(one, gold->vocab);
        }
    }
    infer_free(t);
    free(all);
    free(one);
}

static void check_properties(const struct engine *g, const struct golden *gold)
{
    struct err e = {0};
    struct infer *a = NULL, *b = NULL;
    size_t V = (size_t)gold->vocab;
    float *all = malloc((size_t)gold->n * V * sizeof *all), *one = malloc(2 * V * sizeof *one);
    CHECK_OK(infer_new(&a, g, gold->n, DTYPE_F32, &e), e);
    CHECK_OK(infer_new(&b, g, gold->n, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(a, gold->tokens, gold->n, INFER_ALL, all, NULL, &e), e);
    CHECK(infer_step(a, 0, one, &e) == ERR_LIMIT, "a full context must refuse");
    for (int i = 0; i < gold->n; i++) {
        CHECK_OK(infer_step(b, gold->tokens[i], one, &e), e);
        /* fp32 sums in another order: a few ulp of the largest logit */
        CHECK(test_rel_error(one, all + (size_t)i * V, V) < 1e-4, "step %d differs from prefill",
              i);
    }
    infer_rewind(a, 5);
    CHECK_OK(infer_prefill(a, gold->tokens + 5, gold->n - 5, INFER_LAST, one, NULL, &e), e);
    CHECK(test_rel_error(one, all + (size_t)(gold->n - 1) * V, V) < 1e-4, "rewind differs");
    infer_rewind(a, 3);
    infer_rewind(b, 7);
    int32_t ids[] = {gold->tokens[3], gold->tokens[7]};
    CHECK_OK(infer_step_many((struct infer *const[]){a, b}, ids, 2, one, &e), e);
    CHECK(test_rel_error(one, all + 3 * V, V) < 1e-4, "batch row 0 differs");
    CHECK(test_rel_error(one + V, all + 7 * V, V) < 1e-4, "batch row 1 differs");
    size_t want = (size_t)model_kv_numbers(&engine_model(g)->hp) * 4 * (size_t)gold->n;
    CHECK(infer_kv_bytes(a) == want, "KV bytes %zu, expected %zu", infer_kv_bytes(a), want);
    infer_free(a);
    infer_free(b);
    free(all);
    free(one);
}

static void run(const char *backend_name, size_t i)
{
    struct err e = {0};
    struct model *m = NULL;
    struct backend *b = NULL;
    struct engine *g = NULL;
    struct golden gold;
    struct backend_options opt = {.threads = 2, .exact = true};
    golden_load(&gold, test_path(models[i][1]));
    CHECK_OK(model_open(&m, test_path(models[i][0]), &e), e);
    CHECK_OK(backend_open(&b, backend_name, &opt, &e), e);
    if (m && b && engine_new(&g, m, b, NULL, &e) == OK) {
        check_golden(g, &gold, models[i][0]);
        check_properties(g, &gold);
    } else {
        CHECK(false, "%s", e.text);
    }
    engine_free(g);
    backend_close(b);
    model_free(m);
    golden_free(&gold);
}

static void run_device(const char *name, size_t i)
{
    struct err e = {0};
    struct backend *b = NULL;
    if (backend_open(&b, name, &(struct backend_options){.threads = 1}, &e))
        printf("skipped: %s\n", e.text);
    else
        run(name, i);
    backend_close(b);
}

int main(void)
{
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        run("ref", i);
        run("cpu", i);
        for (int k = 2; backend_table[k]; k++) /* a device may be absent: that is normal */
            run_device(backend_table[k]->name, i);
    }
    return test_end("infer");
}
