/* Output projections refitted in sequence: nothing to mend changes nothing, what is lost shrinks,
 * the refitted maps are saved and come back, and stopping leaves what was there. */
#include "core/safetensors.h"
#include "sessions/calibrate.h"
#include "sessions/refit_sums.h"
#include "tests/support.h"
#include "tests/support_models.h"

enum { T = 256, SEQUENCES = 4, TOKENS = 16384 };

static struct workspace *open_workspace(const char *path)
{
    struct err e = {0};
    struct workspace *w = NULL;
    struct workspace_options o = {.device = "cpu", .threads = 2, .exact = true};
    CHECK_OK(workspace_new(&w, &o, &e), e);
    CHECK_OK(workspace_open(w, path, NULL, &e), e);
    return w;
}

/* Text of one kind; `seed` picks another stretch of it. */
static const char *text_file(const char *name, uint64_t seed)
{
    static char path[2][512];
    char *p = path[seed % 2];
    snprintf(p, 512, "%s/%s", test_tmpdir(), name);
    FILE *f = fopen(p, "w");
    for (int i = 0; i < 40000; i++)
        fputc(i % 60 == 59 ? '\n' : 'a' + (int)(26 * test_uniform(&seed) * test_uniform(&seed)), f);
    fclose(f);
    return p;
}

/* Logits [SEQUENCES·T][V] of another stretch of the text. */
static float *logits(struct workspace *w, enum side side)
{
    struct err e = {0};
    struct infer *t = NULL;
    struct calib_text text;
    const struct engine *g = workspace_engine(w, side);
    const char *file = text_file("other.txt", 4);
    int V = engine_model(g)->hp.vocab;
    float *out = calloc((size_t)(SEQUENCES * T * V), sizeof *out);
    struct calib_options o = {
        .files = &file, .n_files = 1, .tokens = SEQUENCES * T, .seed = CALIB_SEED};
    CHECK_OK(calib_text_files(&text, workspace_tokenizer(w, &e), &o, T, &e), e);
    CHECK_OK(infer_new(&t, g, T, DTYPE_F32, &e), e);
    for (int s = 0; s < SEQUENCES; s++) {
        infer_rewind(t, 0);
        CHECK_OK(
            infer_prefill(t, text.ids + s * T, T, INFER_ALL, out + (size_t)(s * T * V), NULL, &e),
            e);
    }
    infer_free(t);
    calib_text_done(&text);
    return out;
}

static double convert(struct workspace *w, unsigned without, bool ffn, int r, int R)
{
    struct err e = {0};
    struct model_info info;
    struct rankplan plan;
    workspace_info(w, &info);
    CHECK_OK(rankplan_init(&plan, &info.plan_model, &e), e);
    plan.without = without;
    plan.refit_ffn = ffn;
    CHECK_OK(rankplan_uniform(&plan, r, R, &e), e);
    CHECK_OK(workspace_convert(w, &plan, NULL, NULL, NULL, &e), e);
    float *a = logits(w, SIDE_ORIGINAL), *b = logits(w, SIDE_CONVERTED);
    double nmse = test_nmse(b, a, (size_t)(SEQUENCES * T * info.vocab));
    free(a);
    free(b);
    rankplan_done(&plan);
    return nmse;
}

static void check_reload(struct workspace *w, bool ffn)
{
    struct err e = {0};
    struct model_info info;
    struct safetensors *s = NULL;
    char dir[512], file[600];
    workspace_info(w, &info);
    snprintf(dir, sizeof dir, "%s/conv%d", test_tmpdir(), ffn);
    snprintf(file, sizeof file, "%s/attention.safetensors", dir);
    CHECK_OK(workspace_save(w, dir, &e), e);
    CHECK_OK(safetensors_open(&s, file, &e), e);
    CHECK(safetensors_has(s, "model.layers.0.self_attn.o_proj.weight"), "o is not in the file");
    CHECK(safetensors_has(s, "model.layers.0.mlp.down_proj.weight") == ffn, "down in the file");
    safetensors_close(s);
    struct workspace *again = open_workspace(dir);
    float *a = logits(w, SIDE_CONVERTED), *b = logits(again, SIDE_CONVERTED);
    CHECK(!memcmp(a, b, (size_t)(SEQUENCES * T * info.vocab) * sizeof *a),
          "reloaded logits differ");
    free(a);
    free(b);
    workspace_free(again);
}

static bool stop_in_refit(void *user, const char *phase, double done, double total)
{
    (void)user;
    (void)done;
    (void)total;
    return !strstr(phase, "refitting");
}

static void check_stop(struct workspace *w)
{
    struct err e = {0};
    struct model_info info;
    struct rankplan plan;
    struct progress p = {stop_in_refit, NULL};
    float *before = logits(w, SIDE_CONVERTED);
    workspace_info(w, &info);
    CHECK_OK(rankplan_init(&plan, &info.plan_model, &e), e);
    CHECK_OK(rankplan_uniform(&plan, 8, 8, &e), e);
    CHECK(workspace_convert(w, &plan, NULL, &p, NULL, &e) == ERR_CANCELLED, "not stopped");
    float *after = logits(w, SIDE_CONVERTED);
    CHECK(!memcmp(before, after, (size_t)(SEQUENCES * T * info.vocab) * sizeof *after),
          "a stopped conversion changed the one before it");
    free(before);
    free(after);
    rankplan_done(&plan);
}

enum { WIDE = 11, OUT = 7, ROWS = 23, GROUP = 16 };

/* The sums of rows in the backend's memory, in two groups, against loops. */
static void check_sums(struct backend *b)
{
    struct err e = {0};
    uint64_t seed = 9;
    enum { ALL = ROWS * (WIDE + OUT) };
    struct refit_sums *s = NULL;
    float host[ALL];
    const float *a = host, *y = host + ROWS * WIDE;
    double *half[2], *other[2], *S, *X, worst = 0; /* fp32 sums of 16 products of about 1 */
    for (int i = 0; i < ALL; i++)
        host[i] = (float)test_normal(&seed);
    float *there = b->ops->alloc(b, sizeof host);
    b->ops->put(b, there, host, sizeof host);
    CHECK_OK(refit_sums_new(&s, b, GROUP, WIDE, OUT, &e), e);
    for (int again = 0; s && again < 2; again++) { /* the second round forgets the first */
        CHECK_OK(refit_sums_start(s, &e), e);
        for (int first = 0; first < ROWS; first += GROUP)
            refit_sums_add(s, there + first * WIDE, there + (y - host) + first * OUT,
                           ROWS - first < GROUP ? ROWS - first : GROUP);
    }
    CHECK_OK(refit_sums_collect(s, half, other, &e), e);
    S = half[0];
    X = other[0];
    for (int i = 0; i < WIDE * WIDE; i++)
        S[i] += half[1][i];
    for (int i = 0; i < WIDE * OUT; i++)
        X[i] += other[1][i];
    for (int i = 0; i < WIDE; i++) {
        for (int j = 0; j < WIDE; j++)
            for (int t = 0; t < ROWS; t++)
                S[i * WIDE + j] -= (double)a[t * WIDE + i] * a[t * WIDE + j];
        for (int k = 0; k < OUT; k++)
            for (int t = 0; t < ROWS; t++)
                X[i * OUT + k] -= (double)a[t * WIDE + i] * y[t * OUT + k];
    }
    for (int i = 0; i < WIDE * WIDE; i++)
        worst = fmax(worst, fabs(S[i]));
    for (int i = 0; i < WIDE * OUT; i++)
        worst = fmax(worst, fabs(X[i]));
    CHECK(worst < 1e-4, "sums off by %g", worst);
    refit_sums_free(s);
    b->ops->free(b, there);
}

static void test_sums(void)
{
    struct err e = {0};
    struct backend *b = NULL;
    CHECK_OK(backend_open(&b, "ref", &(struct backend_options){.threads = 1}, &e), e);
    if (!b)
        return;
    check_sums(b); /* without an algebra the host does it */
    b->algebra = &ref_algebra_ops;
    check_sums(b);
    backend_close(b);
}

int main(void)
{
    test_sums();
    struct err e = {0};
    struct test_model_spec spec = test_model_small();
    char dir[512];
    snprintf(dir, sizeof dir, "%s/model", test_tmpdir());
    CHECK(test_model_write_hf(dir, &spec) == 0, "writing the model");
    struct workspace *w = open_workspace(dir);
    const char *file = text_file("calib.txt", 3);
    struct calib_options o = {.files = &file, .n_files = 1, .tokens = TOKENS};
    CHECK_OK(workspace_calibrate(w, &o, NULL, NULL, NULL, &e), e);
    struct model_info info;
    workspace_info(w, &info);
    int n = 2 * info.n_kv_head * info.head_dim;
    double exact = convert(w, 0, true, n, n / 2);
    /* fp32 sums of the least squares: the same bar as every exact conversion */
    CHECK(exact <= 1e-9, "nothing was lost, yet the refit leaves NMSE %g", exact);
    double plain = convert(w, STEP_OUTPUT, false, n / 4, info.head_dim / 2);
    double refit = convert(w, 0, false, n / 4, info.head_dim / 2);
    check_reload(w, false);
    double both = convert(w, 0, true, n / 4, info.head_dim / 2);
    printf("exact %.1e; a quarter of the rank: NMSE %.4f, refitted %.4f, feed-forwards too %.4f\n",
           exact, plain, refit, both);
    CHECK(refit < plain, "the refit made it worse: %g, %g", refit, plain);
    CHECK(both < refit, "feed-forwards' refit made it worse: %g, %g", both, refit);
    check_reload(w, true);
    check_stop(w);
    workspace_free(w);
    return test_end("refit");
}
