/* Evaluation and benchmark: perplexity against token-by-token decoding, the text of each protocol,
 * KL of a model with itself, rows of a benchmark, cancellation. */
#include "core/file.h"
#include "core/metrics.h"
#include "sessions/bench.h"
#include "sessions/peer.h"
#include "sessions/eval.h"
#include "sessions/workspace.h"
#include "tests/support.h"
#include "tests/support_models.h"

static struct workspace *open_tiny(bool exact)
{
    struct workspace_options o = {.device = "cpu", .threads = 2, .exact = exact};
    struct test_model_spec spec = test_model_small();
    struct workspace *w;
    struct err e;
    char path[512];
    snprintf(path, sizeof path, "%s/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0);
    CHECK_OK(workspace_new(&w, &o, &e), e);
    CHECK_OK(workspace_open(w, path, NULL, &e), e);
    return w;
}

static const char *write_text(const char *name, const char *text)
{
    static char path[512];
    struct err e;
    snprintf(path, sizeof path, "%s/%s", test_tmpdir(), name);
    CHECK_OK(file_save(path, text, strlen(text), &e), e);
    return path;
}

static char *long_text(void)
{
    static char text[8192];
    size_t n = 0;
    for (int i = 0; n < sizeof text - 64; i++)
        n += (size_t)snprintf(text + n, 64, "%s Row %d of some text %d.\n", i % 3 ? "" : " =", i,
                              i * 7919 % 997);
    return text;
}

/* The same number by decoding one token at a time. */
static double slow_nll(const struct engine *g, const int32_t *ids, int ctx, int first)
{
    int vocab = engine_model(g)->hp.vocab;
    float *logits = mem_aligned((size_t)vocab, sizeof *logits);
    struct infer *t;
    struct err e;
    double sum = 0;
    CHECK_OK(infer_new(&t, g, ctx, DTYPE_F32, &e), e);
    for (int i = 0; i + 1 < ctx; i++) {
        CHECK_OK(infer_step(t, ids[i], logits, &e), e);
        if (i >= first)
            sum += metrics_nll(logits, vocab, ids[i + 1]);
    }
    infer_free(t);
    free(logits);
    return sum;
}

static void test_ppl(struct workspace *w, enum eval_protocol protocol)
{
    enum { CTX = 48, WINDOWS = 3 };
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    struct err e;
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    const char *file = write_text("text.txt", long_text());
    struct eval_options o = {.file = file, .protocol = protocol, .ctx = CTX, .windows = WINDOWS};
    struct eval_result r;
    struct ids ids = {0};
    double sum = 0;
    bool half = protocol == EVAL_LLAMACPP;
    CHECK_OK(eval_ppl(g, g, t, &o, NULL, &r, &e), e);
    CHECK_OK(eval_text_ids(t, file, protocol, &ids, &e), e);
    for (int i = 0; i < WINDOWS; i++) {
        if (half && tokenizer_adds_bos(t))
            ids.v[i * CTX] = tokenizer_bos(t);
        sum += slow_nll(g, ids.v + i * CTX, CTX, half ? CTX / 2 : 0);
    }
    long long scored = (long long)WINDOWS * (half ? CTX / 2 - 1 : CTX - 1);
    CHECK(r.tokens == scored, "%lld", r.tokens);
    /* Prefill and decoding sum in another order: fp32 noise, far below this. */
    CHECK(fabs(log(r.ppl) - sum / (double)scored) < 1e-5, "%.8f %.8f", log(r.ppl),
          sum / (double)scored);
    CHECK(r.ppl_against == r.ppl && r.kl_mean == 0 && r.same_top1 == 1 && r.compared);
    o.windows = 100000; /* more than there are: all of them */
    CHECK_OK(eval_ppl(g, NULL, t, &o, NULL, &r, &e), e);
    CHECK(r.windows == (int)(ids.n / CTX) && !r.compared);
    ids_free(&ids);
}

static void test_rows(struct workspace *w)
{
    struct err e;
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    static const char file[] = " \n = A = \n \n x y\n\nlast";
    /* the rows: "", " = A = \n", "", " x y\n", "", "last" */
    static const char joined[] = "\n\n = A = \n\n\n\n\n x y\n\n\n\n\nlast";
    struct ids got = {0}, want = {0};
    CHECK_OK(eval_text_ids(t, write_text("rows.txt", file), EVAL_HF, &got, &e), e);
    CHECK_OK(tokenizer_encode(t, joined, strlen(joined), 0, &want, &e), e);
    CHECK(got.n == want.n && !memcmp(got.v, want.v, want.n * sizeof *want.v));
    ids_free(&got);
    ids_free(&want);
    CHECK_OK(eval_text_ids(t, write_text("none.txt", ""), EVAL_HF, &got, &e), e);
    CHECK(got.n == 0);
    ids_free(&got);
}

/* The count that everybody's Llama-2 script prints for WikiText-2, without its BOS. */
static void test_published_count(void)
{
    char vocab[600];
    struct tokenizer *t;
    struct ids ids = {0};
    struct err e;
    const char *path = test_data("tok/llama2.tokenizer.json");
    snprintf(vocab, sizeof vocab, "%s", path ? path : "");
    const char *text = test_data("lm/wiki.test.raw");
    if (!path || !text) {
        printf("skipped: WikiText-2 token count (no test data)\n");
        return;
    }
    CHECK_OK(tokenizer_open(&t, vocab, &e), e);
    CHECK_OK(eval_text_ids(t, text, EVAL_HF, &ids, &e), e);
    CHECK(ids.n == 341468, "%zu", ids.n);
    ids_free(&ids);
    tokenizer_free(t);
}

static bool count_down(void *user, const char *phase, double done, double total)
{
    int *left = user;
    CHECK(phase[0] && done >= 0 && done <= total, "%s %g/%g", phase, done, total);
    return (*left)-- > 0;
}

static void test_refusals(struct workspace *w)
{
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    struct err e;
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    struct eval_options o = {.file = write_text("text.txt", long_text()), .ctx = 64};
    struct eval_result r;
    int left = 3;
    struct progress p = {count_down, &left};
    CHECK(eval_ppl(g, NULL, t, &o, &p, &r, &e) == ERR_CANCELLED && r.tokens == 0);
    o.ctx = 1;
    CHECK(eval_ppl(g, NULL, t, &o, NULL, &r, &e) == ERR_ARG);
    o.ctx = 1 << 20;
    CHECK(eval_ppl(g, NULL, t, &o, NULL, &r, &e) == ERR_ARG && strstr(e.text, "window"));
    o.file = "/nonexistent";
    CHECK(eval_ppl(g, NULL, t, &o, NULL, &r, &e) == ERR_IO);
}

/* A peer is any command that prints rates; a command without braces gets llama-bench's options. */
static void test_peer(void)
{
    struct peer_test t = {.model = "a model.gguf", .threads = 2, .depth = 64, .n = 8};
    double rate = 0;
    struct err e;
    CHECK_OK(peer_run("printf '[{\"n_prompt\":0,\"n_gen\":{generate},\"avg_ts\":%s.5}]' {depth}",
                      &t, &rate, &e),
             e);
    CHECK(rate == 64.5, "%g", rate);
    t.prefill = true;
    CHECK_OK(peer_run("echo '{\"rows\":[{\"test\":\"pp{prompt}\",\"tokens_per_sec\":{threads}}]}'",
                      &t, &rate, &e),
             e);
    CHECK(rate == 2, "%g", rate);
    t.n = 9;
    CHECK(peer_run("echo '{\"rows\":[{\"test\":\"pp8\",\"tokens_per_sec\":1}]} {threads}'", &t,
                   &rate, &e) == ERR_FORMAT);
    CHECK(peer_run("/nonexistent/llama-bench", &t, &rate, &e) == ERR_IO);
    CHECK(peer_run("false", &t, &rate, &e) == ERR_IO && strstr(e.text, "status 1"), "%s", e.text);
    CHECK(peer_run("'unended {model}", &t, &rate, &e) == ERR_IO);
}

static int half_as_fast(void *user, int depth, int n, bool prefill, double *rate, struct err *e)
{
    (void)depth, (void)n, (void)e;
    ++*(int *)user;
    *rate = prefill ? 1 : 0.5;
    return OK;
}

static void test_bench(struct workspace *w)
{
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    const int depth[] = {0, 24, 8};
    struct bench_options o = {8, 4, 2, depth, 3, DTYPE_F16, NULL};
    struct bench_row *rows;
    struct err e;
    int n, left = 5;
    struct progress p = {count_down, &left};
    CHECK_OK(bench_run(g, &o, NULL, &rows, &n, &e), e);
    CHECK(n == 6);
    for (int i = 0; i < n; i++) {
        int length = i % 2 ? 4 : 8;
        CHECK(rows[i].depth == depth[i / 2] && !strcmp(rows[i].test, i % 2 ? "tg4" : "pp8"));
        CHECK(rows[i].tokens_per_sec > 0 && rows[i].sd >= 0 && rows[i].min <= rows[i].max);
        /* L 2, 2·G·d = 64 numbers of 2 bytes */
        CHECK(rows[i].kv_bytes == (size_t)(depth[i / 2] + length) * 256, "%zu", rows[i].kv_bytes);
    }
    free(rows);
    CHECK(bench_run(g, &o, &p, &rows, &n, &e) == ERR_CANCELLED && !rows && n == 0);
    int asked = 0;
    struct bench_peer peer = {half_as_fast, &asked};
    o.n_depth = 1;
    o.peer = &peer;
    CHECK_OK(bench_run(g, &o, NULL, &rows, &n, &e), e);
    CHECK(n == 2 && asked == 4); /* two tests of two repetitions; the warm-up asks nobody */
    CHECK(rows[0].peer_tokens_per_sec == 1 && rows[1].peer_tokens_per_sec == 0.5);
    CHECK(rows[0].ratio >= rows[0].min * 0.999 && rows[0].ratio <= rows[0].max * 1.001);
    /* half-way through 4 tokens: 2 of 256 bytes; and weights */
    CHECK(rows[1].read_bytes == bench_weight_bytes(engine_model(g)) + 2 * 256);
    free(rows);
    o.peer = NULL;
    o.prompt = o.generate = 0;
    CHECK(bench_run(g, &o, NULL, &rows, &n, &e) == ERR_ARG);
}

int main(void)
{
    struct workspace *w = open_tiny(true);
    test_ppl(w, EVAL_HF);
    test_ppl(w, EVAL_LLAMACPP);
    test_rows(w);
    test_refusals(w);
    test_bench(w);
    test_peer();
    workspace_free(w);
    test_published_count();
    return test_end("eval");
}
