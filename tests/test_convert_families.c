/* Conversion of every family on the tiny checkpoints: exact where nothing is dropped, better with
 * rank, the same after reload. Calibrated on random ids: these models have no tokenizer. */
#include "core/file.h"
#include "sessions/calibrate.h"
#include "sessions/conversion.h"
#include "sessions/refit.h"
#include "sessions/states.h"
#include "tests/support.h"

static const char *const families[] = {
    "arch/llama2_mha",     "arch/llama_gqa_tied", "arch/llama3_rope",     "arch/llama3_v5layout",
    "arch/mistral_swa",    "arch/qwen2_bias",     "arch/mixtral_moe",     "arch/gemma2",
    "arch/phi4",           "arch/phi3_partial",   "arch/phi4mini_short",  "arch/mimo_mtp",
    "arch/qwen3_qknorm",   "arch/gemma3_text",    "arch/gemma3_v5layout", "families/llama_yarn",
    "families/qwen2_yarn", "families/llama_bias", "families/nemo",        "families/llama_fp8",
    "families/smollm3",    "families/qwen3_moe",
};
static const char *const refused[] = {"arch/dsv2_dense", "arch/dsv3_qlora_bias",
                                      "families/dsv3_yarn"};

enum { T = 24, WINDOWS = 24 };

struct subject {
    struct backend *b;
    struct model *m;
    struct engine *g;
    struct stats *stats;
    struct plan_model pm;
    struct calib_text text;
    float *want; /* [T][V] the original's logits */
};

static float *logits(const struct engine *g)
{
    struct err e = {0};
    struct infer *t = NULL;
    int V = engine_model(g)->hp.vocab;
    int32_t ids[T];
    for (int i = 0; i < T; i++)
        ids[i] = (i * 29 + 7) % V;
    float *out = calloc((size_t)(T * V), sizeof *out);
    CHECK_OK(infer_new(&t, g, T, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(t, ids, T, INFER_ALL, out, NULL, &e), e);
    infer_free(t);
    return out;
}

static void calibrate(struct subject *s)
{
    struct err e = {0};
    int window = s->m->hp.context < 32 ? s->m->hp.context : 32;
    s->text =
        (struct calib_text){.windows = WINDOWS, .window = window, .n_long = 8, .long_len = window};
    size_t n = (size_t)((WINDOWS + 8) * window);
    uint64_t seed = 9;
    s->text.ids = calloc(n, sizeof *s->text.ids);
    for (size_t i = 0; i < n; i++)
        s->text.ids[i] = (int32_t)(s->m->hp.vocab * test_uniform(&seed));
    struct stats_form form = {0};
    CHECK_OK(stats_new(&s->stats, s->m, &form, true, NULL, window, &e), e);
    CHECK_OK(calibrate_run(s->g, &s->text, s->stats, NULL, NULL, NULL, &e), e);
}

static struct conversion *convert(struct subject *s, enum plan_layout layout, int r, int R)
{
    struct err e = {0};
    struct rankplan plan;
    struct conversion *c = NULL;
    struct conversion_input in = {
        .base = s->m, .stats = s->stats, .pool = s->b->pool, .measure = true};
    CHECK_OK(rankplan_init(&plan, &s->pm, &e), e);
    plan.layout = layout;
    for (int l = 0; l < s->pm.n_layer; l++)
        plan.layer[l] = (struct plan_layer){r, R};
    CHECK_OK(conversion_solve(&c, &in, &plan, NULL, NULL, &e), e);
    rankplan_done(&plan);
    return c;
}

static double distance(struct subject *s, const struct model *m, float **keep)
{
    struct err e = {0};
    struct engine *g = NULL;
    CHECK_OK(engine_new(&g, m, s->b, s->g, &e), e);
    float *got = logits(g);
    double nmse = test_nmse(got, s->want, (size_t)(T * m->hp.vocab));
    engine_free(g);
    if (keep)
        *keep = got;
    else
        free(got);
    return nmse;
}

/* Of the last states of the text, the original's against m's. */
static double text_distance(struct subject *s, const struct model *m)
{
    struct err e = {0};
    struct engine *g = NULL;
    struct states a, b;
    struct states_group group;
    size_t n = states_rows(&s->text) * (size_t)m->hp.hidden;
    CHECK_OK(engine_new(&g, m, s->b, s->g, &e), e);
    CHECK_OK(states_init(&a, s->g, &s->text, &e), e);
    CHECK_OK(states_init(&b, g, &s->text, &e), e);
    for (int l = 0; l < m->hp.n_layer; l++)
        for (int i = 0; states_group(&s->text, i, &group); i++) {
            states_layer(&a, l, &group, NULL);
            states_layer(&b, l, &group, NULL);
        }
    double nmse = test_nmse(b.h, a.h, n); /* the CPU's memory is the host's */
    states_done(&a);
    states_done(&b);
    engine_free(g);
    return nmse;
}

/* Mean of the layers' attention errors: what the ranks did, before routers and depth amplify it. */
static double mean_error(const struct conversion *c)
{
    double sum = 0;
    for (int l = 0; l < c->report.n_layer; l++)
        sum += c->report.layer[l].error / c->report.n_layer;
    return sum;
}

static void check_reload(struct subject *s, struct conversion *c, const char *path)
{
    struct err e = {0};
    char dir[600];
    struct conversion *again = NULL;
    float *a, *b;
    snprintf(dir, sizeof dir, "%s/%s", test_tmpdir(), path_base(path));
    CHECK_OK(conversion_save(c, dir, path, &e), e);
    CHECK_OK(conversion_open(&again, dir, s->m, &s->pm, &e), e);
    if (!again)
        return;
    distance(s, &c->model, &a);
    distance(s, &again->model, &b);
    CHECK(!memcmp(a, b, (size_t)(T * s->m->hp.vocab) * sizeof *a), "%s: reload differs", path);
    free(a);
    free(b);
    conversion_free(again);
}

/* Output maps refitted, then the feed-forwards' too, in blocks with a norm behind them and without:
 * each is nearer to the original on the text that it was fitted to. */
static void check_refit(struct subject *s, const char *name, int r, int R)
{
    double off[3] = {0};
    bool ffn = false;
    for (int l = 0; l < s->m->hp.n_layer; l++)
        ffn |= s->m->layer[l].down.data && !s->m->layer[l].expert;
    for (int i = 0; i < 3; i++) {
        struct err e = {0};
        struct conversion *c = convert(s, LAYOUT_OWN, r, R);
        const struct refit_options o = {.ffn = i == 2, .rounded = true, .phase = "refitting"};
        if (i)
            CHECK_OK(refit_run(c, s->g, &s->text, &o, NULL, &e), e);
        off[i] = text_distance(s, &c->model);
        conversion_free(c);
    }
    printf("%-20s narrow: off by %.4f, refitted %.4f, feed-forwards too %.4f\n", name, off[0],
           off[1], off[2]);
    CHECK(off[1] < off[0], "%s: refitting makes it worse: %g, %g", name, off[1], off[0]);
    CHECK(ffn ? off[2] < off[1] : off[2] == off[1], "%s: feed-forwards: %g, %g", name, off[2],
          off[1]);
}

/* A layer without rope loses nothing to a narrow one, in the stock layout either. */
static void check_still(struct subject *s)
{
    int l = s->m->hp.n_layer - 1, n = 2 * s->m->hp.n_kv_head * s->m->hp.head_dim;
    struct conversion *c = s->m->layer[l].no_rope ? convert(s, LAYOUT_STOCK, n, 4) : NULL;
    if (c) {
        CHECK(c->report.layer[l].error <= 1e-9, "still layer %d: %g", l, c->report.layer[l].error);
        CHECK(c->report.layer[0].error > 1e-6, "a turning layer must lose something");
    }
    conversion_free(c);
}

static void check_family(const char *name)
{
    struct err e = {0};
    struct subject s = {0};
    struct backend_options opt = {.threads = 2, .exact = true};
    const char *path = test_path(name);
    CHECK_OK(model_open(&s.m, path, &e), e);
    CHECK_OK(backend_open(&s.b, "cpu", &opt, &e), e);
    if (!s.m || !s.b || engine_new(&s.g, s.m, s.b, NULL, &e)) {
        CHECK(false, "%s: %s", name, e.text);
        return;
    }
    const struct model_hparams *hp = &s.m->hp;
    s.pm = (struct plan_model){.n_layer = hp->n_layer,
                               .n_head = hp->n_head,
                               .n_kv_head = hp->n_kv_head,
                               .head_dim = hp->head_dim};
    s.want = logits(s.g);
    calibrate(&s);
    int n = 2 * hp->n_kv_head * hp->head_dim, rope = s.m->layer[0].rope_dim;
    struct conversion *full = convert(&s, LAYOUT_OWN, n, hp->n_kv_head * rope);
    struct conversion *half = convert(&s, LAYOUT_STOCK, n / 2, rope);
    struct conversion *few = convert(&s, LAYOUT_STOCK, n / 8, rope);
    if (full && half && few) {
        double exact = distance(&s, &full->model, NULL), end = distance(&s, &half->model, NULL);
        double some = mean_error(half), most = mean_error(few);
        printf("%-20s all kept %.1e   stock, half rank: logits %.3f, layers %.3f; eighth %.3f\n",
               name, exact, end, some, most);
        CHECK(exact <= 1e-9, "%s: nothing dropped, yet %g", name, exact);
        CHECK(end < 1, "%s: half rank destroys the model: %g", name, end);
        CHECK(some < most, "%s: half rank (%g) is no better than an eighth (%g)", name, some, most);
        CHECK(full->report.layer[0].error <= 1e-9, "%s: measured layer error %g", name,
              full->report.layer[0].error);
        check_reload(&s, half, path);
        check_still(&s);
        check_refit(&s, name, n / 8, rope / 4 * 2);
    }
    conversion_free(full);
    conversion_free(half);
    conversion_free(few);
    stats_free(s.stats);
    calib_text_done(&s.text);
    free(s.want);
    engine_free(s.g);
    backend_close(s.b);
    model_free(s.m);
}

int main(void)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        check_family(families[i]);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct err e = {0};
        struct model *m = NULL;
        CHECK_OK(model_open(&m, test_path(refused[i]), &e), e);
        CHECK(m && model_convertible(m), "%s must say why it cannot be converted", refused[i]);
        model_free(m);
    }
    return test_end("convert_families");
}
