/* The whole converted model of every family: gradients of its attention tensors against central
 * finite differences in fp64, tapes kept and made again, fp32 against fp64, and the same logits as
 * the engine that runs conversions. */
#include "kernels/linalg.h"
#include "sessions/calibrate.h"
#include "sessions/conversion.h"
#include "sessions/heal_net.h"
#include "tests/support.h"

static const char *const families[] = {
    "llama2_mha",   "llama_gqa_tied", "llama3_rope", "mistral_swa",     "qwen2_bias",
    "qwen3_qknorm", "mixtral_moe",    "gemma2",      "gemma3_text",     "phi3_partial",
    "phi4",         "phi4mini_short", "mimo_mtp",    "gemma3_v5layout", "llama3_v5layout",
};

enum { T = 30, ROWS = 2 * T - 7, WINDOWS = 12 };
static const int start[] = {0, T, ROWS};

struct subject {
    struct backend *b;
    struct model *m;
    struct engine *g;
    struct stats *stats;
    struct conversion *c;
    float **outputs; /* [L] made-up layer outputs to match */
    int32_t ids[ROWS], next[ROWS];
};

static void calibrate(struct subject *s)
{
    struct err e = {0};
    int window = s->m->hp.context < 32 ? s->m->hp.context : 32;
    struct calib_text text = {
        .windows = WINDOWS, .window = window, .n_long = 4, .long_len = window};
    size_t n = (size_t)((WINDOWS + 4) * window);
    uint64_t seed = 9;
    text.ids = calloc(n, sizeof *text.ids);
    for (size_t i = 0; i < n; i++)
        text.ids[i] = (int32_t)(s->m->hp.vocab * test_uniform(&seed));
    struct stats_form form = {0};
    CHECK_OK(stats_new(&s->stats, s->m, &form, true, NULL, window, &e), e);
    CHECK_OK(calibrate_run(s->g, &text, s->stats, NULL, NULL, NULL, &e), e);
    calib_text_done(&text);
}

static bool subject_open(struct subject *s, const char *name)
{
    struct err e = {0};
    char path[128];
    struct backend_options opt = {.threads = 2, .exact = true};
    snprintf(path, sizeof path, "arch/%s", name);
    *s = (struct subject){0};
    CHECK_OK(model_open(&s->m, test_path(path), &e), e);
    CHECK_OK(backend_open(&s->b, "cpu", &opt, &e), e);
    if (!s->m || !s->b || engine_new(&s->g, s->m, s->b, NULL, &e))
        return false;
    const struct model_hparams *hp = &s->m->hp;
    struct plan_model pm = {.n_layer = hp->n_layer,
                            .n_head = hp->n_head,
                            .n_kv_head = hp->n_kv_head,
                            .head_dim = hp->head_dim};
    struct rankplan plan;
    struct conversion_input in = {.base = s->m, .stats = s->stats, .pool = s->b->pool};
    calibrate(s);
    in.stats = s->stats;
    CHECK_OK(rankplan_init(&plan, &pm, &e), e);
    for (int l = 0; l < hp->n_layer; l++)
        plan.layer[l] = (struct plan_layer){hp->n_kv_head * hp->head_dim / 2 + l, 6 + 2 * (l % 2)};
    CHECK_OK(conversion_solve(&s->c, &in, &plan, NULL, NULL, &e), e);
    rankplan_done(&plan);
    s->outputs = calloc((size_t)hp->n_layer, sizeof *s->outputs);
    uint64_t seed = 77;
    for (int l = 0; l < hp->n_layer; l++) {
        s->outputs[l] = calloc((size_t)(ROWS * hp->hidden), sizeof **s->outputs);
        for (int i = 0; i < ROWS * hp->hidden; i++)
            s->outputs[l][i] = (float)test_normal(&seed);
    }
    for (int i = 0; i < ROWS; i++) {
        s->ids[i] = (i * 29 + 7) % hp->vocab;
        s->next[i] = i == T - 1 || i == ROWS - 1 ? -1 : (i * 29 + 36) % hp->vocab;
    }
    return s->c != NULL;
}

static void subject_done(struct subject *s)
{
    for (int l = 0; s->m && l < s->m->hp.n_layer; l++) {
        if (s->outputs)
            free(s->outputs[l]);
    }
    free(s->outputs);
    stats_free(s->stats);
    conversion_free(s->c);
    engine_free(s->g);
    backend_close(s->b);
    model_free(s->m);
}

/* A teacher that never saw a text. */
static int made_up(void *user, int first, int n, float *out, struct err *e)
{
    const struct subject *s = user;
    int V = s->m->hp.vocab;
    (void)e;
    for (int i = 0; i < n * V; i++)
        out[i] = (float)(3 * sin(0.37 * (first * V + i) + 1e-3 * (first * V + i) * (i % 7)));
    return OK;
}

static double loss(struct subject *s, struct heal_net *n)
{
    struct err e = {0};
    struct heal_target t = {.logits = made_up,
                            .user = s,
                            .next = s->next,
                            .mix = 0.2,
                            .weight = 1.0 / ROWS,
                            .outputs = (const float *const *)s->outputs,
                            .match = 0.1};
    struct heal_loss sum = {0};
    heal_net_zero(n);
    CHECK_OK(heal_net_forward(n, s->ids, start, 2, &e), e);
    CHECK_OK(heal_net_loss(n, &t, true, &sum, &e), e);
    return sum.objective;
}

static struct heal_net *net(struct subject *s, const struct grad_ops *op, size_t tape_bytes,
                            const struct engine *engine)
{
    struct err e = {0};
    struct heal_net *n = NULL;
    struct heal_net_options o = {.op = op,
                                 .pool = s->b->pool,
                                 .parts = HEAL_ALL,
                                 .rows = ROWS,
                                 .longest = T,
                                 .tape_bytes = tape_bytes,
                                 .engine = engine};
    CHECK_OK(heal_net_new(&n, &s->c->model, &o, &e), e);
    return n;
}

/* Along a random direction in each tensor, and along single numbers: relative to the gradient.
 * Truncation of these differences is of order step⁴, rounding 1e-16 / step: near 1e-9 of a typical
 * gradient. */
static double differences(struct subject *s, struct heal_net *n)
{
    double worst = 0;
    uint64_t seed = 3;
    loss(s, n);
    int count = heal_net_count(n);
    double **g = calloc((size_t)count, sizeof *g), *d = NULL;
    for (int i = 0; i < count; i++) {
        size_t size = n->tensor[i].rows * n->tensor[i].cols;
        g[i] = malloc(size * sizeof **g);
        memcpy(g[i], n->tensor[i].g, size * sizeof **g);
    }
    for (int i = 0; i < count; i++) {
        size_t size = n->tensor[i].rows * n->tensor[i].cols;
        double *w = n->tensor[i].w, norm = 0, rms = 0;
        for (size_t j = 0; j < size; j++) {
            norm += g[i][j] * g[i][j];
            rms += w[j] * w[j] / (double)size;
        }
        CHECK(norm > 0, "layer %d %s has no gradient", n->tensor[i].layer,
              heal_part_names[n->tensor[i].part]);
        d = realloc(d, size * sizeof *d);
        for (int k = 0; k < 4; k++) {
            double along = 0, h = 1e-5 * sqrt(rms);
            size_t one = (size_t)(test_uniform(&seed) * (double)size);
            for (size_t j = 0; j < size; j++)
                d[j] = k == 0   ? test_normal(&seed) + g[i][j] / sqrt(norm / (double)size)
                       : k == 1 ? g[i][j] / sqrt(norm / (double)size)
                                : (j == one ? 10 : 0);
            double f[5];
            for (size_t j = 0; j < size; j++)
                along += d[j] * g[i][j];
            for (int x = -2; x <= 2; x++) {
                for (size_t j = 0; j < size; j++)
                    w[j] += x * h * d[j];
                f[x + 2] = x ? loss(s, n) : 0;
                for (size_t j = 0; j < size; j++)
                    w[j] -= x * h * d[j];
            }
            double slope = (8 * (f[3] - f[1]) - (f[4] - f[0])) / (12 * h);
            double scale = k < 2 ? fabs(along) : fmax(fabs(along), 10 * sqrt(norm / (double)size));
            worst = fmax(worst, fabs(slope - along) / scale);
        }
    }
    for (int i = 0; i < count; i++)
        free(g[i]);
    free(g);
    free(d);
    return worst;
}

/* Gradients of two nets of the same model, as |a − b| / |b|. */
static double apart(const struct heal_net *a, const struct heal_net *b)
{
    double off = 0, size = 0;
    for (int i = 0; i < heal_net_count(a); i++)
        for (size_t j = 0; j < a->tensor[i].rows * a->tensor[i].cols; j++) {
            double x = a->op->get(a->tensor[i].g, j), y = b->op->get(b->tensor[i].g, j);
            off += (x - y) * (x - y);
            size += y * y;
        }
    return sqrt(off / size);
}

/* The net's logits are the engine's. */
static double engine_apart(struct subject *s, struct heal_net *n)
{
    struct err e = {0};
    struct engine *g = NULL;
    struct infer *t = NULL;
    int V = s->m->hp.vocab, D = s->m->hp.hidden;
    float *want = calloc((size_t)(T * V), sizeof *want), *got = calloc((size_t)(T * V), 4);
    double *x = calloc((size_t)(T * D), sizeof *x), *y = calloc((size_t)(T * V), sizeof *y);
    CHECK_OK(engine_new(&g, &s->c->model, s->b, s->g, &e), e);
    CHECK_OK(infer_new(&t, g, T, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(t, s->ids, T, INFER_ALL, want, NULL, &e), e);
    CHECK_OK(heal_net_forward(n, s->ids, start, 1, &e), e);
    n->op->norm(NULL, x, n->h, n->final_norm, s->m->hp.rms_eps, T, D);
    n->op->gemm(NULL, false, true, T, V, D, 1, x, D, n->head, D, 0, y, V);
    double cap = s->m->hp.logit_softcap;
    for (int i = 0; i < T * V; i++)
        got[i] = (float)(cap > 0 ? cap * tanh(y[i] / cap) : y[i]);
    double nmse = test_nmse(want, got, (size_t)(T * V));
    infer_free(t);
    engine_free(g);
    free(want);
    free(got);
    free(x);
    free(y);
    return sqrt(nmse);
}

static void check_family(const char *name)
{
    struct subject s;
    if (subject_open(&s, name)) {
        struct heal_net *kept = net(&s, &grad_f64, SIZE_MAX, NULL);
        struct heal_net *again = net(&s, &grad_f64, 0, NULL);
        struct heal_net *fast = net(&s, grad_fast(), SIZE_MAX, NULL);
        struct heal_net *frozen = net(&s, grad_fast(), SIZE_MAX, s.g);
        if (kept && again && fast && frozen) {
            double engine = engine_apart(&s, kept), worst = differences(&s, kept);
            loss(&s, kept);
            loss(&s, again);
            loss(&s, fast);
            loss(&s, frozen);
            double tapes = apart(again, kept), f32 = apart(fast, kept);
            double q8 = apart(frozen, kept);
            printf(
                "%-16s differences %.1e, engine %.1e, tapes again %.1e, fp32 %.1e, frozen %.1e\n",
                name, worst, engine, tapes, f32, q8);
            CHECK(worst <= 1e-6, "%s: gradients are off by %g", name, worst);
            CHECK(engine <= 1e-4, "%s: logits differ by %g", name, engine); /* an fp32 engine */
            CHECK(tapes <= 1e-13, "%s: made again, gradients differ by %g", name, tapes);
            CHECK(f32 <= 1e-4, "%s: fp32 gradients differ by %g", name, f32);
            /* A step of int8 is 1/127 of the largest of 32 numbers, some 3 times their rms:
             * rounding to it is 0.7 % of each number, and a gradient passes a handful of such
             * products. */
            CHECK(q8 <= 0.04, "%s: gradients by the engine's weights differ by %g", name, q8);
            CHECK(!heal_frozen_can(&s.m->head) || q8 > 1e-5, "%s: the engine is not used", name);
        }
        heal_net_free(kept);
        heal_net_free(again);
        heal_net_free(fast);
        heal_net_free(frozen);
    } else {
        CHECK(false, "%s does not open", name);
    }
    subject_done(&s);
}

int main(void)
{
    linalg_init();
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        check_family(families[i]);
    return test_end("heal_net");
}
