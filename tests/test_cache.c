/* Caches of every number type: the logits of an fp32 cache up to the type's rounding, in the bytes
 * that are said; blocks that rows do not fill; what is refused. */
#include "core/kvmem.h"
#include "core/model.h"
#include "kernels/backend.h"
#include "sessions/infer.h"
#include "tests/support.h"
#include "tests/support_models.h"

enum { N = 150 }; /* more than two tiles of keys */

static int32_t ids[N];

/* What rounding takes from a cached number, rms to rms: half a step at most and evenly spread, of
 * itself or (Q8_0) of its block's largest, some 2.3 of the block's rms. Logits of these models lose
 * up to 5 times that; 8 times it is too much. */
static const struct {
    enum dtype type;
    double unit;
} types[] = {{DTYPE_F16, 1.0 / 4096}, {DTYPE_BF16, 1.0 / 512}, {DTYPE_Q8_0, 1.0 / 190}};

static size_t row_bytes(const struct model_layer *y, const struct model_hparams *hp,
                        enum dtype type)
{
    size_t n = y->attn == ATTN_MLA ? (size_t)(y->kv_lora_rank + y->qk_rope_head_dim)
                                   : 2 * (size_t)hp->n_kv_head * (size_t)hp->head_dim;
    return type == DTYPE_Q8_0 ? (n + 31) / 32 * 34 : n * (type == DTYPE_F32 ? 4 : 2);
}

static void check_type(const struct engine *g, enum dtype type, double tolerance, const float *want,
                       const char *name)
{
    struct err e = {0};
    const struct model *m = engine_model(g);
    struct infer *t = NULL, *copy = NULL;
    size_t V = (size_t)m->hp.vocab, bytes = 0;
    float *all = malloc(N * V * sizeof *all), *one = malloc(V * sizeof *one);
    CHECK_OK(infer_new(&t, g, N, type, &e), e);
    CHECK_OK(infer_new(&copy, g, N, type, &e), e);
    CHECK_OK(infer_prefill(t, ids, N, INFER_ALL, all, NULL, &e), e);
    double gap = sqrt(test_nmse(all, want, N * V));
    printf("%s %s: error %.1e of %.1e\n", name, dtype_traits(type)->name, gap, tolerance);
    CHECK(gap > 0 && gap < tolerance, "%s %s: %g", name, dtype_traits(type)->name, gap);
    for (int l = 0; l < m->hp.n_layer; l++)
        bytes += N * row_bytes(&m->layer[l], &m->hp, type);
    CHECK(infer_kv_bytes(t) == bytes && infer_kv_bytes_used(t) == bytes, "%zu bytes, not %zu",
          infer_kv_bytes(t), bytes);
    /* Sums in another order may round a cached number the other way. */
    CHECK_OK(infer_copy(copy, t, N / 2, &e), e);
    infer_rewind(t, N / 3);
    for (int i = 0; i < 2; i++) {
        struct infer *x = i ? copy : t;
        for (int n = infer_pos(x); n < N; n++)
            CHECK_OK(infer_step(x, ids[n], one, &e), e);
        gap = sqrt(test_nmse(one, all + (N - 1) * V, V));
        CHECK(gap < tolerance, "%s %s, %s and step by step: %g", name, dtype_traits(type)->name,
              i ? "copied" : "rewound", gap);
    }
    infer_free(t);
    infer_free(copy);
    free(all);
    free(one);
}

static void check_model(const char *path, const char *backend, const char *isa)
{
    struct err e = {0};
    struct model *m = NULL;
    struct backend *b = NULL;
    struct engine *g = NULL;
    struct infer *t = NULL;
    struct backend_options opt = {.threads = 2, .exact = true, .isa = isa};
    CHECK_OK(model_open(&m, path, &e), e);
    CHECK_OK(backend_open(&b, backend, &opt, &e), e);
    CHECK_OK(engine_new(&g, m, b, NULL, &e), e);
    size_t V = (size_t)m->hp.vocab;
    float *want = malloc(N * V * sizeof *want);
    char name[160];
    snprintf(name, sizeof name, "%s %s %s", m->hp.name, backend, isa ? isa : "");
    CHECK_OK(infer_new(&t, g, N, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(t, ids, N, INFER_ALL, want, NULL, &e), e);
    infer_free(t);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        check_type(g, types[i].type, 8 * types[i].unit, want, name);
    CHECK(infer_new(&t, g, N, DTYPE_Q4_0, &e) == ERR_UNSUPPORTED && strstr(e.text, "Q4_0"), "%s",
          e.text);
    free(want);
    engine_free(g);
    backend_close(b);
    model_free(m);
}

/* Two heads in a block: their keys are rotated and read apart. */
static void check_refusal(const char *path)
{
    struct err e = {0};
    struct model *m = NULL;
    struct backend *b = NULL;
    struct engine *g = NULL;
    struct infer *t = NULL;
    struct backend_options opt = {.threads = 1};
    CHECK_OK(model_open(&m, path, &e), e);
    CHECK_OK(backend_open(&b, "cpu", &opt, &e), e);
    CHECK_OK(engine_new(&g, m, b, NULL, &e), e);
    CHECK(infer_new(&t, g, N, DTYPE_Q8_0, &e) == ERR_UNSUPPORTED && !t, "heads of 16 numbers");
    CHECK(strstr(e.text, "16") && strstr(e.text, "F16"), "%s", e.text);
    engine_free(g);
    backend_close(b);
    model_free(m);
}

int main(void)
{
    struct test_model_spec spec = test_model_small();
    char path[2][512];
    uint64_t seed = 3;
    for (int i = 0; i < N; i++)
        ids[i] = (int32_t)(120 * test_uniform(&seed));
    snprintf(path[0], sizeof path[0], "%s/narrow.gguf", test_tmpdir());
    snprintf(path[1], sizeof path[1], "%s/wide.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path[0], &spec) == 0, "a model");
    spec.d = 32;
    CHECK(test_model_write_gguf(path[1], &spec) == 0, "a model");
    check_refusal(path[0]);
    static const char *const isa[] = {"scalar", "avx2", NULL};
    for (int i = 0; i < 4; i++) {
        const char *backend = i < 3 ? "cpu" : "ref", *set = i < 3 ? isa[i] : NULL;
        check_model(path[1], backend, set);
        check_model(test_path("arch/dsv2_dense"), backend, set); /* rows of 40 numbers */
        check_model(test_path("arch/dsv3_dense"), backend, set); /* rows of 32 */
    }
    return test_end("cache");
}
