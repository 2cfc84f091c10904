/* The table of keys: nothing shadowed, names that can be read back, and every key that the help
 * shows does something on a real app with a model open. */
#include <poll.h>
#include <unistd.h>

#include "tests/support.h"
#include "tests/support_models.h"
#include "ui/app_parts.h"

static const enum context contexts[] = {IN_MODEL,  IN_RANKS,  IN_CONVERT, IN_TALK, IN_EVAL,
                                        IN_EXPORT, IN_PROMPT, IN_ASK,     IN_HELP};
#define N_CONTEXTS (sizeof contexts / sizeof *contexts)

static void test_table(void)
{
    size_t n;
    const struct binding *table = keys_table(&n);
    bool bound[REQ_COUNT] = {[REQ_NONE] = true};
    for (size_t i = 0; i < n; i++) {
        bound[table[i].request] = true;
        CHECK(table[i].help && table[i].where && table[i].key[0], "row %zu", i);
        CHECK(strlen(table[i].help) <= 53, "the help screen has 53 columns: %s", table[i].help);
        for (size_t c = 0; c < N_CONTEXTS; c++)
            for (int k = 0; (table[i].where & contexts[c]) && k < BINDING_KEYS; k++) {
                int key = table[i].key[k];
                char name[32];
                if (!key)
                    continue;
                keys_name(key, false, name);
                CHECK(keys_lookup(NULL, contexts[c], key) == table[i].request,
                      "%s is shadowed in %x", name, contexts[c]);
                CHECK((contexts[c] & IN_TEXT) == 0 || !keys_is_text(key), "%s is text", name);
                CHECK(keys_lookup(NULL, contexts[c], keys_parse(name)) == table[i].request,
                      "%s cannot be read back", name);
            }
    }
    for (int r = REQ_NONE + 1; r < REQ_COUNT; r++)
        CHECK(keys_request_name((enum request)r), "request %d has no name", r);
    for (int r = 0; r < REQ_COUNT; r++)
        CHECK(bound[r], "request %d has no key", r);
    CHECK(keys_parse("nonsense") == 0 && keys_parse("") == 0, "unknown names");
    CHECK(keys_parse("é") == 0xe9 && keys_parse("Alt-Enter") == (UI_ENTER | UI_ALT), "names");
}

/* A user's own keys, from the settings file's words. */
static void test_own_keys(void)
{
    struct keymap m = {0};
    struct err e = {0};
    CHECK_OK(keymap_set(&m, "calibrate", "K Ctrl-K", &e), e);
    CHECK(keys_lookup(&m, IN_RANKS, 'K') == REQ_CALIBRATE, "the new key");
    CHECK(keys_lookup(&m, IN_RANKS, UI_CTRL('k')) == REQ_CALIBRATE, "and the other");
    CHECK(keys_lookup(&m, IN_RANKS, 't') == REQ_NONE, "the old one is free");
    CHECK_OK(keymap_set(&m, "auto", "b", &e), e);
    CHECK(keys_lookup(&m, IN_RANKS, 'b') == REQ_AUTO, "own keys win over the table's");
    CHECK_OK(keymap_set(&m, "help", "h", &e), e);
    CHECK(keys_lookup(&m, IN_MODEL, 'h') == REQ_HELP, "a letter where nothing is typed");
    CHECK(keys_lookup(&m, IN_PROMPT, 'h') == REQ_NONE, "a letter stays one in the prompt");
    CHECK(keys_lookup(&m, IN_PROMPT, UI_F9) == REQ_HELP, "where the table's key is left");
    static const char *const wrong[][2] = {{"calibrat", "k"}, {"auto", ""},
                                           {"auto", "Blah"},  {"auto", "a b c d e"},
                                           {"auto", "Ctrl-"}, {"", "a"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        e = (struct err){0};
        CHECK(keymap_set(&m, wrong[i][0], wrong[i][1], &e) == ERR_FORMAT && e.text[0], "%s = %s",
              wrong[i][0], wrong[i][1]);
    }
}

static void settle(struct app *a)
{
    for (int i = 0; i < 3000; i++) {
        worker_drain(a->worker);
        app_collect(a);
        if (!app_busy(a))
            break;
        struct pollfd f = {worker_fd(a->worker), POLLIN, 0};
        poll(&f, 1, 20);
    }
    worker_drain(a->worker);
    app_collect(a);
}

/* Puts the app where a context's keys go. */
static void stand(struct app *a, enum context where)
{
    a->help = false;
    a->ask.what = REQ_NONE;
    a->quit = a->suspend = false;
    a->chat.in_transcript = where != IN_PROMPT;
    for (int i = 0; i < SCREEN_COUNT; i++)
        if (view_of(i)->context == where)
            a->j.screen = i;
    if (where == IN_PROMPT)
        a->j.screen = SCREEN_CHAT;
    if (where == IN_ASK) {
        a->j.screen = SCREEN_RANKS;
        app_key(a, 'b');
    }
    a->help = where == IN_HELP;
    CHECK(app_context(a) == where, "context %x", where);
}

static void test_dispatch(void)
{
    struct app *a = mem_calloc(1, sizeof *a);
    struct ui_options o = {.device = "ref", .threads = 1, .rows = 24, .cols = 80};
    struct test_model_spec spec = test_model_small();
    struct screen s;
    struct err e = {0};
    char path[512];
    size_t n;
    const struct binding *table = keys_table(&n);
    setenv("MLATHE_HOME", test_tmpdir(), 1);
    setenv("HOME", test_tmpdir(), 1);
    snprintf(path, sizeof path, "%s/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0, "model");
    o.model = path;
    CHECK_OK(app_init(a, &o, &e), e);
    CHECK_OK(screen_init(&s, 24, 80, false, &e), e);
    settle(a);
    CHECK(a->has_model && a->ranks.has_plan, "%s", a->message);
    for (size_t c = 0; c < N_CONTEXTS; c++)
        for (size_t i = 0; i < n; i++)
            for (int k = 0; (table[i].where & contexts[c]) && k < BINDING_KEYS; k++) {
                char name[32];
                /* Work that takes seconds has its own tests. */
                if (!table[i].key[k] || table[i].request == REQ_START)
                    continue;
                stand(a, contexts[c]);
                CHECK(app_key(a, table[i].key[k]), "%s does nothing in %x",
                      keys_name(table[i].key[k], false, name), contexts[c]);
                app_draw(a, &s);
            }
    settle(a);
    app_done(a);
    screen_done(&s);
    free(a);
}

int main(void)
{
    test_table();
    test_own_keys();
    test_dispatch();
    return test_end("keys");
}
