/* Sensitivities: curves through measured points, allocation against brute force, files; and on a
 * tiny model, probes against a direct measurement with only that layer converted. */
#include "core/file.h"
#include "core/metrics.h"
#include "sessions/calibrate.h"
#include "sessions/probe.h"
#include "sessions/search.h"
#include "tests/support.h"
#include "tests/support_models.h"

static const struct plan_model four = {"t", "llama", "abc", 4, 2, 1, 16};

/* A made-up measurement of four layers of full rank 32. */
static void fill(struct sensitivity *s, const struct rankplan *p, uint64_t *state)
{
    struct err e;
    struct spectrum x;
    CHECK_OK(sensitivity_init(s, p, &e), e);
    CHECK_OK(spectrum_init(&x, 32, 16, 16, &e), e);
    s->tokens = 100;
    for (int l = 0; l < 4; l++) {
        double v = 1;
        for (int i = 0; i < 32; i++)
            x.joint[i] = v *= 0.6 + 0.4 * test_uniform(state);
        sensitivity_set_energy(s, l, &x);
    }
    static const int rank[] = {4, 8, 16, 32};
    for (int k = 0; k < 4; k++) {
        struct sensitivity_point *q = sensitivity_point(s, rank[k]);
        double sum = 0;
        for (int l = 0; l < 4; l++) /* falls with rank, as measured ones do, with noise */
            sum += q->kl[l] =
                (0.01 * (l + 1) + 1.0 / (rank[k] * (l + 2.0))) * (1 + 0.1 * test_uniform(state));
        q->total = 0.8 * sum + sum * sum;
    }
    spectrum_done(&x);
}

/* Least cost[l][r] over all ranks, by trying them all. */
static double brute(double cost[][33], int n, long long budget, int min, int max, int step)
{
    double best = INFINITY;
    if (n == 0)
        return 0;
    for (int r = (min + step - 1) / step * step; r <= max && r <= budget; r += step)
        best = fmin(best, cost[0][r] + brute(cost + 1, n - 1, budget - r, min, max, step));
    return best;
}

/* The lower hull by its definition: the least over all chords. */
static void hull(double cost[33])
{
    double low[33];
    for (int r = 0; r <= 32; r++) {
        low[r] = cost[r];
        for (int a = 0; a < r; a++)
            for (int b = r + 1; b <= 32; b++)
                low[r] = fmin(low[r], cost[a] + (cost[b] - cost[a]) * (r - a) / (b - a));
    }
    memcpy(cost, low, sizeof low);
}

static void test_allocate(void)
{
    struct sensitivity s;
    struct rankplan p;
    struct err e;
    uint64_t state = 5;
    CHECK_OK(rankplan_init(&p, &four, &e), e);
    CHECK_OK(rankplan_uniform(&p, 8, 4, &e), e);
    for (int round = 0; round < 40; round++) {
        double cost[4][33], got = 0, price;
        int step = 1 + round % 3, min = 2, max = 24 + round % 9,
            low = (min + step - 1) / step * step;
        long long budget = 4 * low + (long long)(test_uniform(&state) * 60), spent = 0;
        fill(&s, &p, &state);
        for (int l = 0; l < 4; l++) {
            for (int r = 0; r <= 32; r++)
                cost[l][r] = sensitivity_layer(&s, l, r);
            hull(cost[l]);
        }
        CHECK_OK(sensitivity_allocate(&s, &p, budget + 16, min, max, step, &price, &e), e);
        for (int l = 0; l < 4; l++) {
            int r = p.layer[l].kv_lora_rank;
            CHECK(r >= min && r <= max && r % step == 0, "rank %d", r);
            got += cost[l][r];
            spent += r;
        }
        double best = brute(cost, 4, budget, min, max, step);
        CHECK(spent <= budget && price >= 0);
        /* sums of the same few doubles in another order */
        CHECK(got <= best + 1e-12, "round %d: %g, best %g", round, got, best);
        sensitivity_done(&s);
    }
    rankplan_done(&p);
}

static void test_curves(void)
{
    struct sensitivity s, t;
    struct rankplan p;
    struct err e;
    uint64_t state = 9;
    int rank[SENSITIVITY_POINTS];
    CHECK_OK(rankplan_init(&p, &four, &e), e);
    CHECK_OK(rankplan_uniform(&p, 8, 4, &e), e);
    fill(&s, &p, &state);
    for (int l = 0; l < 4; l++) {
        for (int k = 0; k < s.n_point; k++) /* through the points, and falling between them */
            CHECK(fabs(sensitivity_layer(&s, l, s.point[k].rank) / s.point[k].kl[l] - 1) < 1e-9,
                  "layer %d, rank %d", l, s.point[k].rank);
        for (int r = 0; r < 32; r++)
            CHECK(sensitivity_layer(&s, l, r) >= sensitivity_layer(&s, l, r + 1) &&
                      sensitivity_layer(&s, l, r) >= sensitivity_rope(&s, l),
                  "layer %d, rank %d", l, r);
        CHECK(sensitivity_gain(&s, &p, l, 4) > 0);
    }
    p.without = STEP_OUTPUT;
    for (int k = 0; k < s.n_point; k++) { /* at the measured ranks the total is the measured one */
        CHECK_OK(rankplan_uniform(&p, s.point[k].rank, 4, &e), e);
        CHECK(fabs(sensitivity_predict(&s, &p) / s.point[k].total - 1) < 1e-9);
    }
    double plain = sensitivity_predict(&s, &p);
    CHECK(!sensitivity_learn(&s, &p, 1), "nothing was refitted");
    p.without = 0;
    CHECK(sensitivity_predict(&s, &p) <= plain, "refitting helps or does nothing");
    CHECK(sensitivity_learn(&s, &p, 0.6 * plain) && !sensitivity_learn(&s, &p, NAN));
    CHECK(fabs(sensitivity_predict(&s, &p) / plain - 0.6) < 1e-12);
    CHECK(sensitivity_wanted(&s, 8, rank) == 0, "5 and 13 have 4 and 16 beside them");
    CHECK(sensitivity_wanted(&s, 20, rank) == 1 && rank[0] == 12, "32 is the whole");
    CHECK_OK(sensitivity_copy(&t, &s, &e), e);
    CHECK(t.n_point == 4 && t.point[2].kl != s.point[2].kl && t.point[2].kl[3] == s.point[2].kl[3]);
    sensitivity_done(&t);
    char file[512];
    snprintf(file, sizeof file, "%s/s.json", test_tmpdir());
    CHECK_OK(sensitivity_save(&s, file, &e), e);
    CHECK_OK(sensitivity_load(&t, &p, file, &e), e);
    CHECK(t.n_point == 4 && t.tokens == 100 && t.refit == s.refit);
    for (int r = 1; r <= 32; r++)
        CHECK(sensitivity_layer(&t, 2, r) == sensitivity_layer(&s, 2, r));
    sensitivity_done(&t);
    CHECK_OK(rankplan_uniform(&p, 8, 6, &e), e);
    CHECK(isnan(sensitivity_predict(&s, &p)), "measured at rope 4");
    CHECK(sensitivity_load(&t, &p, file, &e) == ERR_MISMATCH);
    static const char *const bad[] = {
        "",
        "{}",
        "[]",
        "{\"mlathe_sensitivity\":1}",
        "{\"mlathe_sensitivity\":1,\"tokens\":1,\"energy\":[1,2,3,4],\"rope\":[6,6,6,6]}",
        "{\"mlathe_sensitivity\":1,\"tokens\":1,\"energy\":[[],[],[],[]],\"rope\":[6,6,6,6]}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_OK(file_save(file, bad[i], strlen(bad[i]), &e), e);
        CHECK(sensitivity_load(&t, &p, file, &e) < 0, "took \"%s\"", bad[i]);
    }
    sensitivity_done(&s);
    rankplan_done(&p);
}

/* --- on a tiny model ----------------------------------------------------------------------- */

struct bench {
    struct workspace *w;
    const struct engine *g;
    struct calib_text text;
    struct stats *stats;
    struct conversion_input in;
    struct rankplan plan;
    struct probe_text held;
};

static void bench_open(struct bench *b)
{
    struct err e = {0};
    char path[512], calib[512];
    const char *file = calib;
    struct test_model_spec spec = test_model_small();
    struct workspace_options o = {.device = "cpu", .threads = 2, .exact = true};
    struct model_info info;
    spec.L = 3;
    snprintf(path, sizeof path, "%s/tiny.gguf", test_tmpdir());
    snprintf(calib, sizeof calib, "%s/calib.txt", test_tmpdir());
    test_model_write_gguf(path, &spec);
    FILE *f = fopen(calib, "w");
    uint64_t seed = 3;
    for (int i = 0; i < 40000; i++)
        fputc(i % 60 == 59 ? '\n' : 'a' + (int)(26 * test_uniform(&seed) * test_uniform(&seed)), f);
    fclose(f);
    CHECK_OK(workspace_new(&b->w, &o, &e), e);
    CHECK_OK(workspace_open(b->w, path, NULL, &e), e);
    workspace_info(b->w, &info);
    b->g = workspace_engine(b->w, SIDE_ORIGINAL);
    struct calib_options text = {.files = &file, .n_files = 1, .tokens = 4096, .seed = CALIB_SEED};
    CHECK_OK(calib_text_files(&b->text, workspace_tokenizer(b->w, &e), &text, info.context, &e), e);
    struct stats_form form = {0};
    CHECK_OK(stats_new(&b->stats, engine_model(b->g), &form, true, NULL, b->text.window, &e), e);
    CHECK_OK(calibrate_run(b->g, &b->text, b->stats, NULL, NULL, NULL, &e), e);
    b->in = (struct conversion_input){
        .base = engine_model(b->g), .stats = b->stats, .pool = engine_backend(b->g)->pool};
    CHECK_OK(rankplan_init(&b->plan, &info.plan_model, &e), e);
    CHECK_OK(rankplan_uniform(&b->plan, 16, 16, &e), e);
    CHECK(b->text.n_held > 0, "%d windows held back", b->text.n_held);
    b->held = (struct probe_text){b->text.held, b->text.n_held, b->text.held_len};
}

static void bench_close(struct bench *b)
{
    stats_free(b->stats);
    rankplan_done(&b->plan);
    calib_text_done(&b->text);
    workspace_free(b->w);
}

/* KL over the held windows, whole timelines, with `count` layers from `first` on converted. */
static double direct(struct bench *b, int first, int count)
{
    struct err e = {0};
    struct conversion *c;
    struct engine *g;
    int T = b->held.window, V = engine_model(b->g)->hp.vocab;
    float *p = calloc((size_t)(T * V), sizeof *p), *q = calloc((size_t)(T * V), sizeof *q);
    double sum = 0;
    b->in.first = first;
    b->in.count = count;
    CHECK_OK(conversion_solve(&c, &b->in, &b->plan, NULL, NULL, &e), e);
    CHECK_OK(engine_new(&g, &c->model, engine_backend(b->g), b->g, &e), e);
    for (int w = 0; w < b->held.windows; w++) {
        struct infer *s, *t;
        CHECK_OK(infer_new(&s, b->g, T, DTYPE_F32, &e), e);
        CHECK_OK(infer_new(&t, g, T, DTYPE_F32, &e), e);
        CHECK_OK(infer_prefill(s, b->held.ids + w * T, T, INFER_ALL, p, NULL, &e), e);
        CHECK_OK(infer_prefill(t, b->held.ids + w * T, T, INFER_ALL, q, NULL, &e), e);
        for (int i = 0; i < T; i++)
            sum += metrics_kl(p + (size_t)(i * V), q + (size_t)(i * V), V);
        infer_free(s);
        infer_free(t);
    }
    engine_free(g);
    conversion_free(c);
    free(p);
    free(q);
    b->in.first = b->in.count = 0;
    return sum / (b->held.windows * T);
}

static bool stop_soon(void *user, const char *phase, double done, double total)
{
    int *left = user;
    (void)phase;
    CHECK(done <= total * (1 + 1e-9) && done >= 0, "%g of %g", done, total);
    return (*left)-- > 0;
}

static void test_held(const struct bench *b)
{
    const struct calib_text *t = &b->text;
    size_t n = (size_t)t->windows * (size_t)t->window + (size_t)t->n_long * (size_t)t->long_len;
    /* A run of 24 ids of random text does not come twice by chance. */
    for (int w = 0; w < t->n_held; w++)
        for (int at = 0; at + 24 <= t->held_len; at += 24) {
            const int32_t *run = t->held + w * t->held_len + at;
            bool seen = false;
            for (size_t i = 0; i + 24 <= n; i++)
                seen = seen || !memcmp(t->ids + i, run, 24 * sizeof *run);
            CHECK(!seen, "held window %d was fitted to", w);
        }
}

/* A rank between the lowest and the full one follows from their probes and the layers' own errors;
 * asked for without the full one it is probed. The totals are measured either way. */
static void check_between(struct bench *b, int full)
{
    struct err e = {0};
    struct sensitivity follows, probed;
    CHECK_OK(sensitivity_init(&follows, &b->plan, &e), e);
    CHECK_OK(sensitivity_init(&probed, &b->plan, &e), e);
    CHECK_OK(
        probe_run(&follows, (int[]){8, 16, full}, 3, b->g, &b->in, &b->plan, &b->held, NULL, &e),
        e);
    CHECK_OK(probe_run(&probed, (int[]){8, 16}, 2, b->g, &b->in, &b->plan, &b->held, NULL, &e), e);
    for (int l = 0; l < follows.n_layer; l++) {
        double low = follows.point[0].kl[l], rope = follows.point[2].kl[l];
        double kl = follows.point[1].kl[l], is = probed.point[1].kl[l];
        printf("layer %d: rank 8 %.6f, rank 16 %.6f, probed %.6f, rope %.6f\n", l, low, kl, is,
               rope);
        CHECK(low == probed.point[0].kl[l], "the lowest rank's probe differs");
        /* A random model's noise is loud: of the way between the two ends, a quarter. */
        CHECK(fabs(kl - is) < 0.25 * (low - rope), "layer %d: %g, probed %g", l, kl, is);
    }
    CHECK(follows.point[1].total == probed.point[1].total, "totals are not those measured");
    sensitivity_done(&follows);
    sensitivity_done(&probed);
}

static void test_probes(void)
{
    struct bench b = {0};
    struct err e = {0};
    struct sensitivity s;
    int n, left = 7;
    bench_open(&b);
    test_held(&b);
    n = rankplan_max_rank(&b.plan.model);
    CHECK_OK(sensitivity_init(&s, &b.plan, &e), e);
    struct progress stop = {stop_soon, &left};
    CHECK(probe_run(&s, (int[]){16, n}, 2, b.g, &b.in, &b.plan, &b.held, &stop, &e) ==
              ERR_CANCELLED,
          "%s", e.text);
    CHECK(s.n_point == 0, "a stopped run left something behind");
    left = 1 << 30;
    CHECK_OK(probe_run(&s, (int[]){16, n}, 2, b.g, &b.in, &b.plan, &b.held, &stop, &e), e);
    CHECK(s.n_point == 2 && s.tokens == b.held.windows * b.held.window);
    for (int l = 0; l < 3; l++) {
        double alone = direct(&b, l, 1);
        printf("layer %d: probe %.6f, direct %.6f, rope alone %.6f\n", l, s.point[0].kl[l], alone,
               s.point[1].kl[l]);
        /* fp32 sums in another order, and an exponential of seven digits */
        CHECK(fabs(s.point[0].kl[l] - alone) < 1e-3 * alone + 1e-7);
        CHECK(s.point[1].kl[l] < s.point[0].kl[l], "full rank costs more than rank 16");
    }
    double all = direct(&b, 0, 3);
    printf("together: probe %.6f, direct %.6f\n", s.point[0].total, all);
    CHECK(fabs(s.point[0].total - all) < 1e-3 * all + 1e-7);
    check_between(&b, n);
    struct probe_text none = {0};
    CHECK(probe_run(&s, (int[]){8}, 1, b.g, &b.in, &b.plan, &none, NULL, &e) == ERR_ARG);
    sensitivity_done(&s);
    bench_close(&b);
}

/* Widths at a fixed cache: what is taken is what was measured, and the best of it. */
static void test_search(void)
{
    struct bench b = {0};
    struct err e = {0};
    struct search_result found;
    enum { EVEN = 24 };
    int left = 1 << 30;
    struct progress stop = {stop_soon, &left};
    bench_open(&b);
    CHECK_OK(search_rope(&found, b.g, &b.in, &b.plan, EVEN, &b.held, NULL, &e), e);
    CHECK(found.n > 2 && found.n_layer == 3, "%d trials", found.n);
    for (int i = 0; i < found.n; i++) {
        const struct search_trial *t = &found.trial[i];
        printf("rope %d rank %d: KL %.6f%s\n", t->rope_dim, t->rank, t->kl,
               i == found.best ? "  best" : "");
        CHECK(t->kl >= found.trial[found.best].kl, "trial %d beats the best", i);
        CHECK(t->rope_dim ? t->rope_dim + t->rank == EVEN : i == found.n - 1, "trial %d", i);
    }
    for (int l = 0; l < 3; l++) {
        b.plan.layer[l] = found.layer[l];
        CHECK(found.layer[l].kv_lora_rank + found.layer[l].qk_rope_head_dim == EVEN, "layer %d", l);
    }
    double all = direct(&b, 0, 0);
    CHECK(fabs(found.trial[found.best].kl - all) < 1e-3 * all + 1e-7, "%g, directly %g",
          found.trial[found.best].kl, all);
    search_result_done(&found);
    left = 0;
    CHECK(search_rope(&found, b.g, &b.in, &b.plan, EVEN, &b.held, &stop, &e) == ERR_CANCELLED,
          "stopped before the first trial");
    CHECK(!found.layer, "a stopped search left something behind");
    bench_close(&b);
}

int main(void)
{
    test_search();
    test_allocate();
    test_curves();
    test_probes();
    return test_end("sensitivity");
}
