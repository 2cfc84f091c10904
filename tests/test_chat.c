/* Chat: reuse of the cache changes nothing, both modes compare what they say they compare, stops
 * are clean, and a transcript survives undo, errors and restoring. */
#include "sessions/chat.h"
#include "tests/support.h"
#include "tests/support_models.h"

struct heard {
    char text[2][4096];
    size_t n[2];
    int tokens, stop_after; /* go_on says no after that many texts; −1: never */
    double lost;
    struct chat_stats stats[2];
    struct chat_compare compare;
};

static void on_text(void *user, int side, const char *bytes, size_t n, int token_index, double lost)
{
    struct heard *h = user;
    CHECK(side == 0 || side == 1);
    CHECK(token_index >= 0 && lost >= 0 && lost <= 1 && (lost == 0 || side == 1));
    if (h->n[side] + n < sizeof h->text[side]) {
        memcpy(h->text[side] + h->n[side], bytes, n);
        h->n[side] += n;
    }
    h->lost += lost;
    h->tokens++;
}

static void on_stats(void *user, const struct chat_stats stats[2], const struct chat_compare *c)
{
    struct heard *h = user;
    memcpy(h->stats, stats, sizeof h->stats);
    h->compare = *c;
}

static bool on_go(void *user)
{
    const struct heard *h = user;
    return h->stop_after < 0 || h->tokens < h->stop_after;
}

static const struct chat_settings settings = {.sampling = {0, 0, 1, 0, 1},
                                              .max_tokens = 12,
                                              .context = 512,
                                              .mode = CHAT_FREE,
                                              .kv = DTYPE_F16};

static int turn(struct chat *c, const char *prompt, struct heard *h, struct err *e)
{
    struct chat_sink sink = {on_text, on_stats, on_go, h};
    int stop_after = h->stop_after;
    *h = (struct heard){.stop_after = stop_after};
    return chat_turn(c, prompt, &sink, e);
}

static bool same_answer(const struct chat *a, const struct chat *b, int t, int side)
{
    int n, m;
    const int32_t *x = chat_answer_ids(a, t, side, &n), *y = chat_answer_ids(b, t, side, &m);
    return n == m && n > 0 && !memcmp(x, y, (size_t)n * sizeof *x);
}

/* Converts at full rank: nothing is lost, so both sides must say the same. */
static struct workspace *open_pair(int rank, int rope)
{
    struct workspace_options o = {.device = "cpu", .threads = 2, .exact = true};
    struct test_model_spec spec = test_model_small();
    struct calib_options calib = {.tokens = 512, .seed = 1};
    struct conversion_report report;
    struct model_info info;
    struct rankplan plan;
    struct workspace *w;
    struct err e;
    char path[512];
    snprintf(path, sizeof path, "%s/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0);
    CHECK_OK(workspace_new(&w, &o, &e), e);
    CHECK_OK(workspace_open(w, path, NULL, &e), e);
    workspace_info(w, &info);
    CHECK_OK(rankplan_init(&plan, &info.plan_model, &e), e);
    CHECK_OK(rankplan_uniform(&plan, rank, rope, &e), e);
    CHECK_OK(workspace_calibrate(w, &calib, NULL, NULL, NULL, &e), e);
    CHECK_OK(workspace_convert(w, &plan, NULL, NULL, &report, &e), e);
    conversion_report_done(&report);
    rankplan_done(&plan);
    return w;
}

static void test_reuse(struct workspace *w)
{
    struct chat *a, *b;
    struct heard h = {.stop_after = -1};
    struct err e;
    CHECK_OK(chat_new(&a, w, 2, SIDE_ORIGINAL, &settings, &e), e);
    CHECK_OK(chat_new(&b, w, 2, SIDE_ORIGINAL, &settings, &e), e);
    CHECK_OK(turn(a, "Hello you", &h, &e), e);
    CHECK(!strcmp(h.text[0], chat_answer(a, 0, 0)) && !strcmp(h.text[1], chat_answer(a, 0, 1)));
    CHECK_OK(turn(a, "And now?", &h, &e), e);
    CHECK(h.stats[0].context_used > 0 && h.stats[0].kv_bytes_used > 0);
    /* The same conversation, second turn from an empty cache. */
    CHECK_OK(chat_restore(b, "Hello you", chat_answer(a, 0, 0), chat_answer(a, 0, 1), &e), e);
    CHECK_OK(turn(b, "And now?", &h, &e), e);
    CHECK(same_answer(a, b, 1, 0) && same_answer(a, b, 1, 1));
    /* Undo and ask again: the same words. */
    chat_undo(b);
    CHECK(chat_turns(b) == 1 && !chat_prompt(b, 1));
    CHECK_OK(turn(b, "And now?", &h, &e), e);
    CHECK(same_answer(a, b, 1, 0));
    CHECK_OK(chat_system(b, "Be brief.", &e), e);
    chat_clear(b);
    CHECK(chat_turns(b) == 0 && !chat_answer(b, 0, 0));
    CHECK_OK(turn(b, "Hello you", &h, &e), e);
    chat_free(a);
    chat_free(b);
}

/* A conversion that loses nothing answers alike, up to the rounding of the F16 cache. */
static void test_lossless(struct workspace *w)
{
    struct chat *c;
    struct heard h = {.stop_after = -1};
    struct chat_settings s = settings;
    struct err e;
    s.mode = CHAT_FORCED;
    CHECK_OK(chat_new(&c, w, 2, SIDE_ORIGINAL, &s, &e), e);
    CHECK_OK(turn(c, "Hello you", &h, &e), e);
    CHECK(h.compare.compared >= h.stats[0].tokens && h.compare.kl_mean < 1e-3, "KL %g",
          h.compare.kl_mean);
    CHECK(h.lost / (h.stats[0].tokens + 1) < 0.02, "lost %g", h.lost);
    chat_free(c);
}

static void test_modes(struct workspace *w)
{
    struct chat *c;
    struct heard h = {.stop_after = -1};
    struct chat_settings s = settings;
    struct err e;
    CHECK_OK(chat_new(&c, w, 2, SIDE_ORIGINAL, &s, &e), e);
    CHECK_OK(turn(c, "Hello you", &h, &e), e);
    if (h.compare.first_difference >= 0) /* compared while the contexts were the same */
        CHECK(h.compare.compared == h.compare.first_difference + 1, "%d %d", h.compare.compared,
              h.compare.first_difference);
    s.mode = CHAT_FORCED;
    CHECK_OK(chat_set(c, &s, &e), e);
    CHECK_OK(turn(c, "And now?", &h, &e), e);
    CHECK(!chat_answer(c, 1, SIDE_CONVERTED) && chat_answer(c, 1, SIDE_ORIGINAL));
    CHECK(h.stats[0].tokens == h.stats[1].tokens && !strcmp(h.text[0], h.text[1]));
    CHECK(h.compare.compared >= h.stats[0].tokens && h.compare.kl_mean > 0);
    chat_free(c);
    CHECK_OK(chat_new(&c, w, 1, SIDE_CONVERTED, &settings, &e), e);
    CHECK_OK(turn(c, "Hello you", &h, &e), e);
    CHECK(h.n[0] == 0 && chat_answer(c, 0, SIDE_CONVERTED) && !chat_answer(c, 0, SIDE_ORIGINAL));
    CHECK(h.compare.compared == 0);
    chat_free(c);
}

static void test_stops(struct workspace *w)
{
    struct chat *c;
    struct heard h = {.stop_after = 5};
    struct chat_settings s = settings;
    struct err e;
    CHECK_OK(chat_new(&c, w, 2, SIDE_ORIGINAL, &s, &e), e);
    CHECK_OK(turn(c, "Hello you", &h, &e), e);
    CHECK(!strcmp(h.stats[0].stop, "cancelled") || !strcmp(h.stats[0].stop, "eos"), "%s",
          h.stats[0].stop);
    CHECK(chat_turns(c) == 1 && chat_answer(c, 0, 0)[0]);
    h.stop_after = 0;
    CHECK(turn(c, "Never mind", &h, &e) == ERR_CANCELLED || chat_turns(c) == 2);
    h.stop_after = -1;
    CHECK_OK(turn(c, "And now?", &h, &e), e); /* it goes on as if nothing had happened */
    s.max_tokens = 0;
    s.context = 80;
    CHECK_OK(chat_set(c, &s, &e), e);
    chat_clear(c);
    CHECK_OK(turn(c, "Hello you", &h, &e), e);
    CHECK(!strcmp(h.stats[0].stop, "context") || !strcmp(h.stats[0].stop, "eos"), "%s",
          h.stats[0].stop);
    CHECK(h.stats[0].context_used <= 80 && h.stats[0].context == 80);
    int turns = chat_turns(c);
    char longer[400];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    CHECK(turn(c, longer, &h, &e) == ERR_LIMIT && strstr(e.text, "context"));
    CHECK(chat_turns(c) == turns);
    s.context = 1;
    CHECK(chat_set(c, &s, &e) == ERR_ARG);
    s = settings;
    s.sampling.temperature = -1;
    CHECK(chat_set(c, &s, &e) == ERR_ARG);
    chat_free(c);
    CHECK(chat_new(&c, w, 1, SIDE_ORIGINAL, &s, &e) == ERR_ARG && !c);
}

static void test_sampling(struct workspace *w)
{
    struct chat *a, *b;
    struct heard h = {.stop_after = -1};
    struct chat_settings s = settings;
    struct err e;
    s.sampling.temperature = 1;
    CHECK_OK(chat_new(&a, w, 1, SIDE_ORIGINAL, &s, &e), e);
    CHECK_OK(chat_new(&b, w, 1, SIDE_ORIGINAL, &s, &e), e);
    CHECK_OK(turn(a, "Hello", &h, &e), e);
    CHECK_OK(turn(b, "Hello", &h, &e), e);
    CHECK(same_answer(a, b, 0, 0)); /* one seed, one answer */
    chat_free(a);
    chat_free(b);
}

int main(void)
{
    struct workspace *w = open_pair(8, 4);
    test_reuse(w);
    test_modes(w);
    test_stops(w);
    test_sampling(w);
    workspace_free(w);
    w = open_pair(64, 32); /* every number of the cache, every frequency of both heads */
    test_lossless(w);
    workspace_free(w);
    return test_end("chat");
}
