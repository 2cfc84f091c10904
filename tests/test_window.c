/* Caches of sliding windows: the same logits as a cache that keeps everything, in less memory,
 * after rewinding too. */
#include "core/kvmem.h"
#include "core/model.h"
#include "kernels/backend.h"
#include "sessions/infer.h"
#include "sessions/window.h"
#include "tests/support.h"

enum { N = 2600 }; /* slides more than once: 8 + 512 + 512 rows */

static int32_t ids[N];

/* Logits after token n, fed in blocks. */
static void feed(struct infer *t, int from, int n, int block, float *last)
{
    struct err e = {0};
    for (int i = from; i < n; i += block) {
        int rows = n - i < block ? n - i : block;
        CHECK_OK(infer_prefill(t, ids + i, rows, INFER_LAST, last, NULL, &e), e);
    }
}

static struct infer *timeline(const struct engine *g, int n_ctx)
{
    struct err e = {0};
    struct infer *t = NULL;
    CHECK_OK(infer_new(&t, g, n_ctx, DTYPE_F32, &e), e);
    return t;
}

/* Against a timeline that was planned without windows and so keeps everything, while attention
 * looks no farther than they allow. 1e-5: the kernels add the same numbers from other rows. */
static void check_model(const char *name, const char *backend)
{
    struct err e = {0};
    struct model *m = NULL;
    struct backend *b = NULL;
    struct engine *g = NULL;
    struct backend_options opt = {.threads = 1, .exact = true};
    CHECK_OK(model_open(&m, test_path(name), &e), e);
    CHECK_OK(backend_open(&b, backend, &opt, &e), e);
    m->hp.context = N; /* positions are only angles */
    CHECK_OK(engine_new(&g, m, b, NULL, &e), e);
    size_t V = (size_t)m->hp.vocab;
    float *want = malloc(V * sizeof *want), *got = malloc(V * sizeof *got);
    struct layer_cache plan;
    int *window = malloc((size_t)m->hp.n_layer * sizeof *window), slides = 0;
    for (int l = 0; l < m->hp.n_layer; l++)
        window[l] = m->layer[l].window;
    for (int l = 0; l < m->hp.n_layer; l++)
        m->layer[l].window = 0;
    struct infer *whole = timeline(g, N);
    for (int l = 0; l < m->hp.n_layer; l++) {
        m->layer[l].window = window[l];
        window_plan(&plan, window[l], N);
        slides += plan.keep > 0;
    }
    struct infer *t = timeline(g, N), *copy = timeline(g, N);
    CHECK(slides > 0 && infer_kv_bytes(t) < infer_kv_bytes(whole), "%s", name);
    feed(whole, 0, N, 512, want);
    feed(t, 0, N, 512, got);
    CHECK(test_rel_error(got, want, V) < 1e-5, "%s: in blocks %g", name,
          test_rel_error(got, want, V));
    printf("%-18s %-4s %zu of %zu KiB, %zu used\n", name, backend, infer_kv_bytes(t) >> 10,
           infer_kv_bytes(whole) >> 10, infer_kv_bytes_used(t) >> 10);
    CHECK(infer_kv_bytes_used(t) <= infer_kv_bytes(t));
    infer_rewind(t, N - 300); /* within the stretch: nothing is lost */
    CHECK(infer_pos(t) == N - 300, "%d", infer_pos(t));
    feed(t, N - 300, N, 1, got);
    CHECK(test_rel_error(got, want, V) < 1e-5, "%s: rewound %g", name,
          test_rel_error(got, want, V));
    CHECK_OK(infer_copy(copy, t, N - 5, &e), e);
    feed(copy, N - 5, N, 2, got);
    CHECK(test_rel_error(got, want, V) < 1e-5, "%s: copied", name);
    infer_rewind(t, 900); /* far: everything is forgotten, and said so */
    CHECK(infer_pos(t) == 0 && infer_kv_bytes_used(t) == 0);
    CHECK(infer_copy(t, copy, 900, &e) == ERR_ARG && strstr(e.text, "forgotten"), "%s", e.text);
    feed(t, 0, N, 100, got);
    CHECK(test_rel_error(got, want, V) < 1e-5, "%s: again", name);
    infer_free(whole);
    infer_free(t);
    infer_free(copy);
    free(want);
    free(got);
    free(window);
    engine_free(g);
    backend_close(b);
    model_free(m);
}

int main(void)
{
    uint64_t seed = 5;
    for (int i = 0; i < N; i++)
        ids[i] = (int32_t)(120 * test_uniform(&seed));
    check_model("arch/mistral_swa", "cpu"); /* every layer slides */
    check_model("arch/gemma3_text", "cpu"); /* two of three */
    return test_end("window");
}
