/* Big models in little memory: a wide MHA model is converted within a limit that whole statistics
 * would break; streamed statistics and spilled results are those that stay in memory; what cannot
 * fit is refused before work starts. */
#include <sys/resource.h>
#include <unistd.h>

#include "core/file.h"
#include "kernels/linalg.h"
#include "sessions/conversion.h"
#include "sessions/memory.h"
#include "tests/support.h"
#include "tests/support_models.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

#define MIB ((size_t)1 << 20)
enum { WINDOW = 64, T = 40 };

static const char *write_model(const char *name, const struct test_model_spec *spec)
{
    static char path[2][600];
    static int which;
    char *out = path[which++ % 2];
    snprintf(out, sizeof path[0], "%s/%s", test_tmpdir(), name);
    CHECK(test_model_write_hf(out, spec) == 0, "writing a model");
    return out;
}

/* n = 2·16·32 = 1024 numbers a token of a hidden size of 96. */
static struct test_model_spec wide(void)
{
    struct test_model_spec spec = test_model_small();
    spec.L = 4, spec.D = 96, spec.H = spec.G = 16, spec.d = 32;
    return spec;
}

/* What the statistics of z for each query head alone and all phases would take. */
static double whole_bytes(const struct test_model_spec *s)
{
    double n = 2.0 * s->G * s->d, f = 4.0 * s->G * s->d / 2;
    return sizeof(float) * s->L * s->H * (n * (n + 1) + f * (f + 1) / 2);
}

/* Private memory of this process so far, with the one work buffer that BLAS gives its only caller:
 * it would wait for ever for one that a limit denies. */
static size_t memory_now(void)
{
    static float a[128 * 128], b[128 * 128];
    char line[256];
    size_t kib = 0;
    linalg_init();
    linalg_sgemm(NULL, false, false, 128, 128, 128, 1, a, 128, a, 128, 0, b, 128);
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmData: %zu", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib << 10;
}

static void check_limited(void)
{
    struct test_model_spec spec = wide();
    const char *model = write_model("limited", &spec);
    size_t limit = 192 * MIB;
    struct rlimit old, now;
    struct err e = {0};
    struct workspace *w = NULL;
    struct workspace_options o = {.device = "cpu", .threads = 1, .exact = true, .memory = limit};
    CHECK(whole_bytes(&spec) > 1.5 * (double)limit, "the model is not wide enough to need this");
    CHECK(getrlimit(RLIMIT_DATA, &old) == 0, "getrlimit");
    size_t before = memory_now();
    now = (struct rlimit){before + limit, old.rlim_max};
#ifdef SANITIZED
    printf("skipped: the limit itself, which a sanitizer's own memory breaks\n");
    now = old;
#endif
    CHECK(setrlimit(RLIMIT_DATA, &now) == 0, "setrlimit");
    CHECK_OK(workspace_new(&w, &o, &e), e);
    CHECK_OK(workspace_open(w, model, NULL, &e), e);
    char cache[600];
    snprintf(cache, sizeof cache, "%s/cache", test_tmpdir());
    struct calib_options c = {.tokens = 1024, .seed = 4};
    CHECK_OK(workspace_calibrate(w, &c, cache, NULL, NULL, &e), e);
    struct model_info info;
    struct rankplan plan;
    struct conversion_report r = {0};
    workspace_info(w, &info);
    CHECK_OK(rankplan_init(&plan, &info.plan_model, &e), e);
    CHECK_OK(rankplan_uniform(&plan, 64, 32, &e), e);
    CHECK_OK(workspace_convert(w, &plan, NULL, NULL, &r, &e), e);
    CHECK(r.layer && r.layer[0].error < 0.5, "layer error %g", r.layer ? r.layer[0].error : NAN);
    printf("wide MHA in %zu MiB: whole statistics %.0f MiB; layer 0 error %.3f\n", limit / MIB,
           whole_bytes(&spec) / MIB, r.layer ? r.layer[0].error : NAN);
    conversion_report_done(&r);
    rankplan_done(&plan);
    workspace_free(w);
    CHECK(setrlimit(RLIMIT_DATA, &old) == 0, "setrlimit");
}

struct subject {
    struct backend *b;
    struct model *m;
    struct engine *g;
    struct calib_text text;
};

static void subject_open(struct subject *s, const char *path)
{
    struct err e = {0};
    struct backend_options opt = {.threads = 2, .exact = true};
    *s = (struct subject){0};
    CHECK_OK(model_open(&s->m, path, &e), e);
    CHECK_OK(backend_open(&s->b, "cpu", &opt, &e), e);
    CHECK_OK(engine_new(&s->g, s->m, s->b, NULL, &e), e);
    s->text = (struct calib_text){.windows = 12, .window = WINDOW, .n_long = 4, .long_len = WINDOW};
    size_t n = (size_t)(16 * WINDOW);
    uint64_t seed = 5;
    s->text.ids = calloc(n, sizeof *s->text.ids);
    for (size_t i = 0; i < n; i++)
        s->text.ids[i] = (int32_t)(s->m->hp.vocab * test_uniform(&seed));
}

static void subject_done(struct subject *s)
{
    calib_text_done(&s->text);
    engine_free(s->g);
    backend_close(s->b);
    model_free(s->m);
}

static struct conversion *solve(struct subject *s, const struct stats *stats, const char *spill,
                                int at_once)
{
    struct err e = {0};
    const struct model_hparams *hp = &s->m->hp;
    struct plan_model pm = {.n_layer = hp->n_layer,
                            .n_head = hp->n_head,
                            .n_kv_head = hp->n_kv_head,
                            .head_dim = hp->head_dim};
    struct conversion_input in = {.base = s->m,
                                  .stats = stats,
                                  .pool = s->b->pool,
                                  .measure = true,
                                  .at_once = at_once,
                                  .spill = spill};
    struct rankplan plan;
    struct conversion *c = NULL;
    CHECK_OK(rankplan_init(&plan, &pm, &e), e);
    for (int l = 0; l < hp->n_layer; l++)
        plan.layer[l] = (struct plan_layer){24 + 8 * (l % 2), 16};
    CHECK_OK(conversion_solve(&c, &in, &plan, NULL, NULL, &e), e);
    rankplan_done(&plan);
    return c;
}

static bool same_tensors(const struct conversion *a, const struct conversion *b)
{
    for (int l = 0; l < a->model.hp.n_layer; l++) {
        const struct model_layer *x = &a->model.layer[l], *y = &b->model.layer[l];
        const struct tensor *t[][2] = {{&x->q, &y->q}, {&x->kv_a, &y->kv_a}, {&x->kv_b, &y->kv_b}};
        for (int i = 0; i < 3; i++)
            if (memcmp(t[i][0]->data, t[i][1]->data, tensor_elements(t[i][0]) * sizeof(float)) != 0)
                return false;
    }
    return true;
}

/* One form of statistics, in memory from a file and streamed from it; heaps and spilled results. */
static void check_streamed(const struct test_model_spec *spec, const char *name, int groups)
{
    struct err e = {0};
    struct subject s;
    struct stats *resident = NULL, *streamed = NULL, *again = NULL, *wrong = NULL;
    char prefix[600];
    subject_open(&s, write_model(name, spec));
    struct stats_form form = {.groups = groups, .candidates = s.m->layer[0].rope_dim};
    struct stats_form other = {.groups = 1, .candidates = form.candidates};
    CHECK_OK(stats_check_groups(s.m, groups, &e), e);
    snprintf(prefix, sizeof prefix, "%s/%s-stats", test_tmpdir(), name);
    CHECK(stats_new(&streamed, s.m, &form, false, "/proc/nowhere", WINDOW, &e) < 0,
          "statistics streamed to nowhere");
    CHECK_OK(stats_new(&streamed, s.m, &form, false, prefix, WINDOW, &e), e);
    CHECK_OK(calibrate_run(s.g, &s.text, streamed, NULL, NULL, NULL, &e), e);
    CHECK(stats_streamed(streamed), "a set that is not resident comes from its file");
    CHECK_OK(stats_open(&resident, prefix, s.m, &form, true, &e), e);
    CHECK_OK(stats_open(&again, prefix, s.m, &form, false, &e), e);
    CHECK(stats_open(&wrong, prefix, s.m, &other, true, &e) < 0, "a set in another form was taken");
    struct conversion *a = solve(&s, resident, NULL, 0);
    struct conversion *b = solve(&s, streamed, test_tmpdir(), 1);
    struct conversion *c = solve(&s, again, NULL, 2);
    CHECK(a && b && same_tensors(a, b), "%s: streamed and spilled differs", name);
    CHECK(a && c && same_tensors(a, c), "%s: reopened differs", name);
    CHECK(a && a->report.layer[0].error < 1, "layer error %g", a ? a->report.layer[0].error : NAN);
    conversion_free(a);
    conversion_free(b);
    conversion_free(c);
    stats_free(resident);
    stats_free(streamed);
    stats_free(again);
    /* A cache of another version counts as none. */
    char note[700];
    const char *text = "{\"mlathe_stats\": 3, \"layers\": 2, \"window\": 64}\n";
    snprintf(note, sizeof note, "%s.json", prefix);
    CHECK_OK(file_save(note, text, strlen(text), &e), e);
    CHECK(stats_open(&wrong, prefix, s.m, &form, true, &e) < 0, "an old set was taken");
    subject_done(&s);
}

/* Shared statistics: fewer bytes with each step, and forms that the budget picks. */
static void check_choice(void)
{
    struct test_model_spec spec = wide();
    struct subject s;
    struct err e = {0};
    subject_open(&s, write_model("choice", &spec));
    struct stats_form whole = stats_choose(s.m, 0, 1e12, WINDOW);
    struct stats_form least = stats_choose(s.m, 0, 1, WINDOW);
    struct stats_form asked = stats_choose(s.m, 4, 1e12, WINDOW);
    CHECK(!whole.groups && !whole.candidates, "plenty of room, yet shared");
    CHECK(least.groups == 1 && asked.groups == 4, "%d, %d groups", least.groups, asked.groups);
    double top = stats_bytes(s.m, &whole, WINDOW), room = top / 3;
    struct stats_form fits = stats_choose(s.m, 0, room, WINDOW);
    CHECK(fits.groups && stats_bytes(s.m, &fits, WINDOW) <= room, "%d groups", fits.groups);
    CHECK(stats_check_groups(s.m, 5, &e) == ERR_ARG && strstr(e.text, "16"), "%s", e.text);
    subject_done(&s);
}

static void check_refusal(void)
{
    struct test_model_spec spec = wide();
    struct err e = {0};
    struct subject s;
    subject_open(&s, write_model("refusal", &spec));
    struct memory_plan p = memory_plan_for(s.m, 48.0 * MIB, 0, WINDOW, true);
    struct calib_text many = {.windows = 4000, .window = WINDOW};
    CHECK(memory_check(s.m, &p, &many, 2, 0, NULL, &e) == ERR_LIMIT, "a pass without room");
    CHECK(strstr(e.text, "--tokens") && strstr(e.text, "MiB"), "%s", e.text);
    printf("%s\n", e.text);
    p.limit = 4.0 * MIB;
    CHECK(memory_check(s.m, &p, &s.text, 2, 0, NULL, &e) == ERR_LIMIT && e.text[0],
          "no room at all");
    printf("%s\n", e.text);
    p = memory_plan_for(s.m, 1e10, 0, WINDOW, true);
    CHECK_OK(memory_check(s.m, &p, &s.text, 2, 0, NULL, &e), e);
    CHECK(memory_layers_at_once(s.m, 1, 8, 4) == 1 && memory_layers_at_once(s.m, 1e12, 8, 4) == 4,
          "layers at once");
    subject_done(&s);
}

static float *logits(const struct model *m, size_t copies, char *words, size_t size)
{
    struct err e = {0};
    struct backend_options opt = {.threads = 2, .exact = true, .copies = copies};
    struct backend *b;
    struct engine *g;
    struct infer *t;
    int32_t ids[T];
    float *out = calloc((size_t)(T * m->hp.vocab), sizeof *out);
    for (int i = 0; i < T; i++)
        ids[i] = (i * 29 + 7) % m->hp.vocab;
    CHECK_OK(backend_open(&b, "cpu", &opt, &e), e);
    CHECK_OK(engine_new(&g, m, b, NULL, &e), e);
    b->ops->describe(b, words, size);
    CHECK(!copies || engine_bytes(g) <= copies, "%zu bytes of copies", engine_bytes(g));
    CHECK_OK(infer_new(&t, g, T, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(t, ids, T, INFER_ALL, out, NULL, &e), e);
    infer_free(t);
    engine_free(g);
    backend_close(b);
    return out;
}

/* Quantised weights without room for their packed copies: the same numbers from the file. */
static void check_copies(void)
{
    struct test_model_spec spec = test_model_small();
    struct err e = {0};
    struct model *m;
    char path[600], all[256], some[256], none[256];
    spec.dtype = DTYPE_Q8_0;
    snprintf(path, sizeof path, "%s/q8.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0, "writing a model");
    CHECK_OK(model_open(&m, path, &e), e);
    float *a = logits(m, 0, all, sizeof all), *b = logits(m, 20000, some, sizeof some);
    float *c = logits(m, 1, none, sizeof none);
    size_t n = (size_t)(T * m->hp.vocab);
    printf("%s\n%s\n", all, none);
    CHECK(!strstr(all, "file") && strstr(none, "read from the file"), "%s; %s", all, none);
    /* fp32 sums in another order */
    CHECK(test_rel_error(b, a, n) < 1e-4 && test_rel_error(c, a, n) < 1e-4, "%g, %g",
          test_rel_error(b, a, n), test_rel_error(c, a, n));
    free(a);
    free(b);
    free(c);
    model_free(m);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct test_model_spec mha = wide(), gqa = test_model_small();
    check_limited();
    mha.L = 2, mha.H = mha.G = 8, mha.d = 16;
    check_streamed(&mha, "mha", 2);
    check_streamed(&gqa, "gqa", 2);
    check_choice();
    check_refusal();
    check_copies();
    return test_end("memory");
}
