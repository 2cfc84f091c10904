/* Opening models: the tiny checkpoints of tests/arch in both formats, what they say about
 * themselves, and refusals that name the family. */
#include "core/file.h"
#include "core/model.h"
#include "core/ropefreq.h"
#include "core/sha256.h"
#include "tests/support.h"
#include "tests/support_models.h"

static struct model *open_ok(const char *name)
{
    struct err e = {0};
    struct model *m = NULL;
    CHECK_OK(model_open(&m, test_path(name), &e), e);
    if (!m)
        exit(test_end("model"));
    return m;
}

static void check_shape(const struct tensor *t, size_t rows, size_t cols, const char *what)
{
    bool ok =
        t->data && t->dim[0] == rows && t->rank == (cols ? 2 : 1) && (!cols || t->dim[1] == cols);
    CHECK(ok, "%s", what);
}

static void check_layers(const struct model *m)
{
    const struct model_hparams *hp = &m->hp;
    size_t D = (size_t)hp->hidden, Q = (size_t)(hp->n_head * hp->head_dim),
           K = (size_t)(hp->n_kv_head * hp->head_dim), F = (size_t)hp->ffn;
    for (int l = 0; l < hp->n_layer; l++) {
        const struct model_layer *x = &m->layer[l];
        check_shape(&x->attn_norm, D, 0, "attn_norm");
        check_shape(&x->q, Q, D, "q");
        check_shape(&x->k, K, D, "k");
        check_shape(&x->v, K, D, "v");
        check_shape(&x->o, D, Q, "o");
        check_shape(&x->ffn_norm, D, 0, "ffn_norm");
        check_shape(&x->gate, F, D, "gate");
        check_shape(&x->up, F, D, "up");
        check_shape(&x->down, D, F, "down");
        CHECK(!x->q_bias.data && !x->kv_a.data && x->attn == ATTN_GQA, "layer %d", l);
        CHECK(x->rope_dim == hp->head_dim && x->attn_scale == hp->attn_scale, "layer %d", l);
    }
    check_shape(&m->embed, (size_t)hp->vocab, D, "embed");
    check_shape(&m->head, (size_t)hp->vocab, D, "head");
    check_shape(&m->final_norm, D, 0, "final_norm");
    CHECK(hp->tied == (m->head.data == m->embed.data), "tied");
    size_t expect = (size_t)hp->n_layer * (2 * Q * D + 2 * K * D + 3 * F * D + 2 * D) + D +
                    (hp->tied ? 1 : 2) * (size_t)hp->vocab * D;
    CHECK(m->parameters == expect, "%zu parameters, expected %zu", m->parameters, expect);
}

/* What README.md of tests/arch and each config.json say. */
static void test_arch_folders(void)
{
    static const struct {
        const char *path;
        int L, D, H, G, d, F, V;
        double theta;
        bool tied;
        int n_eos;
        enum dtype dtype;
    } cases[] = {
        {"arch/llama2_mha", 3, 64, 4, 4, 16, 40, 128, 1e4, false, 1, DTYPE_F16},
        {"arch/llama_gqa_tied", 3, 84, 6, 2, 14, 40, 128, 1e5, true, 1, DTYPE_BF16},
        {"arch/llama3_rope", 3, 72, 6, 2, 16, 40, 128, 5e5, false, 2, DTYPE_BF16},
        {"arch/llama3_v5layout", 3, 64, 4, 2, 16, 40, 128, 5e5, true, 1, DTYPE_BF16},
        {"arch/gguf/llama_gqa_tied.gguf", 3, 84, 6, 2, 14, 40, 128, 1e5, true, 0, DTYPE_F16},
        {"arch/gguf/llama3_rope.gguf", 3, 72, 6, 2, 16, 40, 128, 5e5, false, 0, DTYPE_F16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model *m = open_ok(cases[i].path);
        const struct model_hparams *hp = &m->hp;
        const char *p = cases[i].path;
        CHECK(hp->n_layer == cases[i].L && hp->hidden == cases[i].D, "%s", p);
        CHECK(hp->n_head == cases[i].H && hp->n_kv_head == cases[i].G, "%s", p);
        CHECK(hp->head_dim == cases[i].d && hp->ffn == cases[i].F, "%s", p);
        CHECK(hp->vocab == cases[i].V && hp->rope_theta == cases[i].theta, "%s", p);
        CHECK(hp->tied == cases[i].tied && hp->n_eos == cases[i].n_eos, "%s", p);
        CHECK(hp->dtype == cases[i].dtype && !strcmp(hp->family, "llama"), "%s", p);
        CHECK(hp->context == 512 && fabs(hp->rms_eps - 1e-5) < 1e-12, "%s", p);
        CHECK(fabs(hp->attn_scale - 1 / sqrt(hp->head_dim)) < 1e-15, "%s", p);
        CHECK(strstr(p, hp->name) != NULL, "%s is called %s", p, hp->name);
        check_layers(m);
        struct err e = {0};
        CHECK_OK(model_check_finite(m, NULL, &e), e);
        struct model *seen;
        CHECK_OK(model_look(&seen, test_path(p), &e), e);
        CHECK(seen && seen->parameters == m->parameters && seen->file_bytes == m->file_bytes &&
                  seen->hp.n_layer == hp->n_layer && !strcmp(seen->hp.name, hp->name),
              "%s", p);
        model_free(seen);
        model_free(m);
    }
}

/* Every weight of b within tolerance of a. */
static void compare_weights(const struct model *a, const struct model *b, double tolerance,
                            const char *what)
{
    for (int l = 0; l < a->hp.n_layer; l++) {
        const struct model_layer *x = &a->layer[l], *y = &b->layer[l];
        const struct tensor *ts[][2] = {
            {&x->q, &y->q},
            {&x->k, &y->k},
            {&x->v, &y->v},
            {&x->o, &y->o},
            {&x->down, &y->down},
            {&x->up, &y->up},
            {&x->gate, &y->gate},
            {&a->embed, &b->embed},
            {&a->head, &b->head},
            {&x->attn_norm, &y->attn_norm},
            {&x->ffn_norm, &y->ffn_norm},
            {&a->final_norm, &b->final_norm},
        };
        for (size_t t = 0; t < sizeof ts / sizeof *ts; t++) {
            struct err e = {0};
            float *u = NULL, *v = NULL;
            double worst = 0;
            CHECK_OK(tensor_to_f32(ts[t][0], &u, &e), e);
            CHECK_OK(tensor_to_f32(ts[t][1], &v, &e), e);
            for (size_t i = 0; u && v && i < tensor_elements(ts[t][0]); i++)
                worst = fmax(worst, fabs((double)u[i] - v[i]));
            CHECK(worst <= tolerance, "%s layer %d tensor %zu: %g", what, l, t, worst);
            free(u);
            free(v);
        }
        for (int j = 0; j < x->rope_dim / 2; j++) /* the GGUF's divisors are fp32 */
            CHECK(fabs(x->rope_freq[j] / y->rope_freq[j] - 1) < 1e-6, "freq %d", j);
    }
}

/* The GGUF twins hold the same weights in another row order and in F16 for BF16, which is exact
 * down to its smallest step of 2⁻²⁴. */
static void test_twins(void)
{
    static const char *const pairs[][2] = {
        {"arch/llama_gqa_tied", "arch/gguf/llama_gqa_tied.gguf"},
        {"arch/llama3_rope", "arch/gguf/llama3_rope.gguf"},
    };
    for (size_t i = 0; i < 2; i++) {
        struct model *a = open_ok(pairs[i][0]), *b = open_ok(pairs[i][1]);
        compare_weights(a, b, 0x1p-25, pairs[i][0]);
        model_free(a);
        model_free(b);
    }
}

/* The generator's two formats agree after binding: exactly for plain types, up to the block's step
 * for quantised ones (Q4_0: an eighth of the block's largest number, which is under 4.8). */
static void test_generated(void)
{
    static const struct {
        enum dtype hf, gguf;
        double tolerance;
        bool untied, llama3;
    } cases[] = {
        {DTYPE_F32, DTYPE_F32, 0, false, false},   {DTYPE_F16, DTYPE_F16, 0, true, true},
        {DTYPE_BF16, DTYPE_BF16, 0, true, false},  {DTYPE_F32, DTYPE_Q8_0, 0.02, false, true},
        {DTYPE_F32, DTYPE_Q4_0, 0.6, true, false}, {DTYPE_F32, DTYPE_Q4_1, 0.3, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        char dir[300], file[300], fp[3][65];
        struct test_model_spec spec = test_model_small();
        spec.untied = cases[i].untied;
        spec.rope_llama3 = cases[i].llama3;
        snprintf(dir, sizeof dir, "%s/hf%zu", test_tmpdir(), i);
        snprintf(file, sizeof file, "%s/m%zu.gguf", test_tmpdir(), i);
        spec.dtype = cases[i].hf;
        CHECK(test_model_write_hf(dir, &spec) == 0, "%s", dir);
        spec.dtype = cases[i].gguf;
        CHECK(test_model_write_gguf(file, &spec) == 0, "%s", file);
        struct model *a = NULL, *b = NULL;
        CHECK_OK(model_open(&a, dir, &e), e);
        CHECK_OK(model_open(&b, file, &e), e);
        if (!a || !b)
            return;
        check_layers(a);
        check_layers(b);
        CHECK(a->hp.dtype == cases[i].hf && b->hp.dtype == cases[i].gguf, "%zu", i);
        CHECK(a->hp.bos == TEST_IM_START && b->hp.bos == TEST_IM_START, "%zu", i);
        CHECK(a->hp.n_eos == 2 && a->hp.eos[0] == TEST_IM_END && b->hp.n_eos == 2, "%zu", i);
        CHECK(b->hp.name[0] == 'm' && !strchr(b->hp.name, '.'), "%s", b->hp.name);
        compare_weights(a, b, cases[i].tolerance, dir);
        CHECK_OK(model_fingerprint(a, fp[0], &e), e);
        CHECK_OK(model_fingerprint(b, fp[1], &e), e);
        CHECK(cases[i].hf == cases[i].gguf || strcmp(fp[0], fp[1]), "%s", fp[0]);
        model_free(b);
        CHECK_OK(model_open(&b, file, &e), e);
        CHECK_OK(model_fingerprint(b, fp[2], &e), e);
        CHECK(!strcmp(fp[1], fp[2]), "%s %s", fp[1], fp[2]);
        model_free(a);
        model_free(b);
    }
}

/* Golden: transformers' formula by hand for factor 8, low 1, high 4, original context 16, theta
 * 500000, d 16. Wavelengths: 2π (<4: no; 6.28 lies between 4 and 16: mixed), then 32.4 (>16). */
static void test_ropefreq(void)
{
    struct err e = {0};
    struct rope_spec r = {.kind = ROPE_LLAMA3,
                          .theta = 500000,
                          .factor = 8,
                          .low = 1,
                          .high = 4,
                          .original_context = 16};
    double f[8], plain[8];
    CHECK_OK(ropefreq_check(&r, "test", &e), e);
    ropefreq_fill(&r, 16, f);
    ropefreq_fill(&(struct rope_spec){.theta = 500000, .factor = 1}, 16, plain);
    double smooth = (16 / 6.283185307179586 - 1) / 3;
    CHECK(fabs(f[0] - ((1 - smooth) / 8 + smooth)) < 1e-15, "%g", f[0]);
    CHECK(plain[0] == 1 && fabs(plain[1] - pow(500000, -0.125)) < 1e-15);
    for (int j = 1; j < 8; j++)
        CHECK(fabs(f[j] * 8 / plain[j] - 1) < 1e-14, "%d", j);
    ropefreq_fill(&(struct rope_spec){.kind = ROPE_LINEAR, .theta = 10000, .factor = 4}, 16, f);
    CHECK(f[0] == 0.25);
    r.high = 1;
    CHECK(ropefreq_check(&r, "test", &e) == ERR_FORMAT);
    r.theta = NAN;
    CHECK(ropefreq_check(&r, "test", &e) == ERR_FORMAT);
}

/* Every other family: which one it is taken for, and why it cannot be converted yet. */
static void test_families(void)
{
    static const struct {
        const char *path, *family, *why; /* NULL: it can */
    } cases[] = {
        {"arch/llama_gqa_tied", "llama", NULL},
        {"arch/mistral_swa", "mistral", NULL},
        {"arch/qwen2_bias", "qwen2", NULL},
        {"arch/qwen3_qknorm", "qwen3", NULL},
        {"arch/mixtral_moe", "mixtral", NULL},
        {"arch/gemma2", "gemma2", NULL},
        {"arch/gemma3_text", "gemma3", NULL},
        {"arch/gemma3_v5layout", "gemma3", NULL},
        {"arch/phi4", "phi3", NULL},
        {"arch/phi3_partial", "phi3", NULL},
        {"arch/phi4mini_long", "phi3", NULL},
        {"arch/mimo_mtp", "mimo", NULL},
        {"arch/dsv2_dense", "deepseek", "MLA already"},
        {"arch/dsv3_moe", "deepseek", "MLA already"},
        {"arch/gguf/gemma2.gguf", "gemma2", NULL},
        {"arch/gguf/mixtral_moe.gguf", "llama", NULL},
        {"arch/gguf/qwen2_bias.gguf", "qwen2", NULL},
        {"arch/gguf/llama_mixed_quant.gguf", "llama", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model *m = open_ok(cases[i].path);
        struct model *seen;
        struct err e = {0};
        const char *why = model_convertible(m);
        CHECK(!strcmp(m->hp.family, cases[i].family), "%s: %s", cases[i].path, m->hp.family);
        CHECK(!why == !cases[i].why && (!why || strstr(why, cases[i].why)), "%s: %s", cases[i].path,
              why ? why : "convertible");
        CHECK_OK(model_check_finite(m, NULL, &e), e);
        CHECK_OK(model_look(&seen, test_path(cases[i].path), &e), e);
        CHECK(seen && seen->parameters == m->parameters && seen->hp.n_layer == m->hp.n_layer, "%s",
              cases[i].path);
        model_free(seen);
        model_free(m);
    }
    struct model *m = open_ok("arch/mimo_mtp");
    CHECK(m->hp.skipped_layers == 1);
    model_free(m);
}

/* The product's own default model, where it has been downloaded. */
static void test_default_model(void)
{
    char path[1024];
    const char *home = getenv("HOME");
    snprintf(path, sizeof path, "%s/.local/share/mlathe/models/SmolLM2-135M-Instruct.Q4_1.gguf",
             home ? home : "");
    if (!file_exists(path)) {
        printf("skipped: %s is not there\n", path);
        return;
    }
    struct err e = {0};
    struct model *m = NULL;
    char hex[65];
    CHECK_OK(model_open(&m, path, &e), e);
    if (!m)
        return;
    CHECK(m->hp.n_layer == 30 && m->hp.hidden == 576 && m->hp.n_head == 9, "%s", m->hp.name);
    CHECK(m->hp.n_kv_head == 3 && m->hp.head_dim == 64 && m->hp.vocab == 49152);
    CHECK(m->parameters == 134515008, "%zu", m->parameters); /* as its model card counts */
    CHECK(m->hp.dtype == DTYPE_Q4_1 && m->hp.tied && m->hp.n_eos == 1 && m->hp.eos[0] == 2);
    CHECK_OK(model_check_finite(m, NULL, &e), e);
    CHECK_OK(model_fingerprint(m, hex, &e), e);
    model_free(m);
}

int main(void)
{
    char hex[65];
    struct sha256 s;
    sha256_init(&s);
    sha256_add(&s, "abc", 3);
    sha256_hex(&s, hex);
    CHECK(!strcmp(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    test_ropefreq();
    test_arch_folders();
    test_twins();
    test_generated();
    test_families();
    test_default_model();
    return test_end("model");
}
