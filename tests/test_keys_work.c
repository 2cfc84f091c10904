/* Every key in the help works: pressed where it stands, on a workspace that has everything (a
 * model, a conversion, a chat, results), it changes what is shown or what runs; and a key that asks
 * for work never does nothing without a word, also where there is nothing to work on. */
#include <unistd.h>

#include "core/file.h"
#include "tests/support.h"
#include "tests/support_app.h"
#include "tests/support_models.h"

static const enum context contexts[] = {IN_MODEL,  IN_RANKS,  IN_CONVERT, IN_TALK, IN_EVAL,
                                        IN_EXPORT, IN_PROMPT, IN_ASK,     IN_HELP};
#define N_CONTEXTS (sizeof contexts / sizeof *contexts)

/* Moving and editing may stop at an edge in silence; going to the screen that is shown changes
 * nothing. All else must answer. */
static bool may_be_silent(enum request r)
{
    return (r >= REQ_UP && r <= REQ_LAST) || (r >= REQ_EDIT_LEFT && r <= REQ_KILL_END) ||
           (r >= REQ_MODEL && r <= REQ_EXPORT);
}

/* All that a user could notice. */
static uint64_t seen(struct app *a, struct screen *s)
{
    uint64_t h = 14695981039346656037ull;
    app_draw(a, s);
    for (int i = 0; i < s->rows * s->cols; i++) {
        for (const char *c = s->cell[i].text; *c; c++)
            h = (h ^ (unsigned char)*c) * 1099511628211ull;
        h = (h ^ s->cell[i].role) * 1099511628211ull;
    }
    int more[] = {s->cursor_row,
                  s->cursor_col,
                  a->quit,
                  a->suspend,
                  a->redraw_all,
                  a->chat.scroll[0] + a->chat.scroll[1],
                  worker_count(a->worker, NULL)};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        h = (h ^ (uint64_t)more[i]) * 1099511628211ull;
    return h;
}

enum { AT_FIRST, IN_THE_MIDDLE, AT_LAST, VARIANTS };

/* Puts the app where a context's keys go; variants stand at different places of it. */
static void stand(struct app *a, struct screen *s, enum context where, int variant)
{
    static const char *const moves[VARIANTS] = {"Home", "Home Down", "End"};
    worker_cancel_kind(a->worker, NULL);
    test_app_settle(a);
    a->quit = a->suspend = a->redraw_all = a->help = false;
    a->leave_warned = 0;
    a->eval.conversions = false;
    a->ask.what = REQ_NONE;
    a->chat.in_transcript = where == IN_TALK;
    for (int i = 0; i < SCREEN_COUNT; i++)
        if (view_of(i)->context == where)
            a->j.screen = i;
    if (where == IN_PROMPT)
        a->j.screen = SCREEN_CHAT;
    if (where == IN_ASK || where == IN_HELP)
        a->j.screen = SCREEN_MODEL;
    if (where == IN_ASK)
        test_app_press(a, "p ~ / c");
    if (where == IN_PROMPT) {
        textbuf_set(&a->chat.prompt, "one two\nthree four\nfive");
        test_app_press(a, "Up Left Left");
    }
    a->help = where == IN_HELP;
    app_draw(a, s);
    if (where & IN_TEXT)
        test_app_press(a, variant == AT_FIRST ? "Home" : variant == AT_LAST ? "End" : "Left");
    else
        test_app_press(a, moves[variant]);
    a->message[0] = 0;
    CHECK(app_context(a) == where, "context %x", where);
}

/* True when pressing it was noticed. */
static bool noticed(struct app *a, struct screen *s, enum context where, int key, int variant)
{
    stand(a, s, where, variant);
    uint64_t before = seen(a, s);
    bool taken = app_key(a, key);
    return taken && seen(a, s) != before;
}

/* Two results of the conversion in use: a key may have made another one. */
static void measure(struct app *a)
{
    a->j.eval.what = EVAL_WHAT_PPL;
    test_app_press(a, "F5 f");
    textbuf_set(&a->ask.text, "~/calib.txt");
    test_app_press(a, "Enter x Ctrl-U 6 4 Enter c Ctrl-U 2 Enter r");
    test_app_settle(a);
    test_app_press(a, "x Ctrl-U 3 2 Enter r");
    test_app_settle(a);
    CHECK(a->eval.list.n == 2, "%zu results: %s", a->eval.list.n, a->message);
}

static void walk(struct app *a, struct screen *s, bool everything)
{
    size_t n;
    const struct binding *table = keys_table(&n);
    char name[32];
    for (size_t c = 0; c < N_CONTEXTS; c++) {
        if (everything && contexts[c] == IN_EVAL) {
            stand(a, s, IN_EVAL, AT_FIRST);
            measure(a);
        }
        /* Keys take turns back: enough must be left to scroll. */
        for (int i = 0; everything && i < 12 && (contexts[c] & (IN_TALK | IN_PROMPT)); i++)
            CHECK(journal_add_turn(&a->j, "many\nlines\nto scroll"), "memory");
        for (size_t i = 0; i < n; i++) {
            if (!(table[i].where & contexts[c]))
                continue;
            int times = 0;
            for (int v = 0; v < VARIANTS; v++) {
                bool yes = noticed(a, s, contexts[c], table[i].key[0], v);
                times += yes;
                CHECK(yes || may_be_silent(table[i].request), "%s, place %d of %x: not a word (%s)",
                      keys_name(table[i].key[0], false, name), v, contexts[c], table[i].help);
            }
            bool here =
                table[i].request >= REQ_MODEL && table[i].request <= REQ_EXPORT &&
                (contexts[c] == IN_HELP || (int)(table[i].request - REQ_MODEL) == a->j.screen);
            CHECK(times || here || !everything, "%s does nothing in %x (%s)",
                  keys_name(table[i].key[0], false, name), contexts[c], table[i].help);
        }
    }
}

static void fill_workspace(struct app *a)
{
    test_app_press(a, "F2 t");
    textbuf_set(&a->ask.text, "~/calib.txt");
    test_app_press(a, "Enter");
    test_app_settle(a);
    test_app_press(a, "z Right Left Right z c");
    test_app_settle(a);
    CHECK(a->has_conversion, "%s", a->convert.trouble);
    test_app_press(a, "F4");
    a->j.settings.max_tokens = 6;
    for (int i = 0; i < 14; i++) {
        textbuf_set(&a->chat.prompt, "a prompt of\ntwo lines");
        test_app_press(a, "Enter");
        test_app_settle(a);
    }
    measure(a);
}

/* A range of layers takes a change together, and undo takes it back at once. */
static void test_range(struct app *a, struct screen *s)
{
    stand(a, s, IN_RANKS, AT_FIRST);
    const struct plan_layer *l = a->ranks.plan.layer;
    int was[3] = {l[0].kv_lora_rank, l[1].kv_lora_rank, l[2].kv_lora_rank};
    test_app_press(a, "Home Space Down <");
    l = a->ranks.plan.layer;
    CHECK(l[0].kv_lora_rank < was[0] && l[1].kv_lora_rank < was[1] && l[2].kv_lora_rank == was[2],
          "%d %d %d", l[0].kv_lora_rank, l[1].kv_lora_rank, l[2].kv_lora_rank);
    test_app_press(a, "z Esc");
    l = a->ranks.plan.layer;
    CHECK(l[0].kv_lora_rank == was[0] && l[1].kv_lora_rank == was[1] && !a->ranks.mark, "undone");
}

/* A second plan waits for the first; both are converted. Stopped, a waiting plan is in a file. */
static void test_queue(struct app *a, struct screen *s)
{
    char path[512];
    size_t made = a->j.conversions.n;
    stand(a, s, IN_RANKS, AT_FIRST);
    test_app_press(a, "< c F2 < c");
    CHECK(a->convert.n_queue == 1, "%zu plans wait: %s", a->convert.n_queue, a->message);
    test_app_settle(a);
    CHECK(a->j.conversions.n == made + 2, "%zu conversions were made", a->j.conversions.n - made);
    stand(a, s, IN_RANKS, AT_FIRST);
    test_app_press(a, "> c F2 > c F3 Esc");
    test_app_settle(a);
    snprintf(path, sizeof path, "%s/data/plans/%s-1.plan.json", test_tmpdir(),
             a->ranks.plan.model.name);
    CHECK(a->convert.n_queue == 0 && file_exists(path), "%s: %s", path, a->message);
}

static void test_transcript(struct app *a, struct screen *s)
{
    char path[512], *text = NULL;
    struct err e = {0};
    stand(a, s, IN_PROMPT, AT_FIRST);
    textbuf_set(&a->chat.prompt, "a needle in the hay");
    test_app_press(a, "Enter");
    test_app_settle(a);
    textbuf_set(&a->chat.prompt, "needle");
    test_app_press(a, "Ctrl-R");
    CHECK(!strcmp(a->chat.prompt.text, "a needle in the hay"), "%s", a->chat.prompt.text);
    textbuf_set(&a->chat.prompt, "/export ~/chat.md");
    test_app_press(a, "Enter");
    saver_flush(a->saver);
    snprintf(path, sizeof path, "%s/chat.md", test_tmpdir());
    CHECK(file_read(path, 1 << 20, &text, NULL, &e) == OK &&
              strstr(text, "> a needle in the hay") && strstr(text, "**Original**"),
          "%s %s", e.text, text ? text : "");
    free(text);
}

int main(void)
{
    struct test_model_spec spec = test_model_small();
    struct screen s;
    struct err e = {0};
    char path[512], text[1600];
    size_t n = 0;
    uint64_t seed = 3;
    setenv("MLATHE_HOME", test_tmpdir(), 1);
    setenv("HOME", test_tmpdir(), 1);
    CHECK_OK(screen_init(&s, 20, 80, false, &e), e);
    struct app *a = test_app_start(NULL, "cpu");
    a->clock_off = true;
    CHECK(!a->has_model, "a model from nowhere");
    walk(a, &s, false);
    test_app_leave(a);
    while (n < sizeof text - 20)
        n += (size_t)snprintf(text + n, 20, "%c%c%c%s", (int)(97 + test_uniform(&seed) * 26),
                              (int)(97 + test_uniform(&seed) * 26),
                              (int)(97 + test_uniform(&seed) * 26), n % 7 ? " " : ".\n");
    snprintf(path, sizeof path, "%s/calib.txt", test_tmpdir());
    CHECK_OK(file_save(path, text, n, &e), e);
    spec.L = 16; /* more than a screen shows */
    snprintf(path, sizeof path, "%s/data/models", test_tmpdir());
    CHECK_OK(file_mkdirs(path, &e), e);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/data/models/tiny-%d.gguf", test_tmpdir(), i);
        CHECK(test_model_write_gguf(path, &spec) == 0);
    }
    a = test_app_start(path, "cpu");
    a->clock_off = true;
    fill_workspace(a);
    test_range(a, &s);
    test_transcript(a, &s);
    walk(a, &s, true);
    test_queue(a, &s);
    test_app_leave(a);
    screen_done(&s);
    return test_end("keys_work");
}
