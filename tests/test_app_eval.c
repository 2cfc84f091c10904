/* Screen 5 without a screen: a measurement from keys to a result that is found again, one that is
 * stopped, one that fails, speed, and files that are no results. */

#include "core/file.h"
#include "tests/support.h"
#include "tests/support_app.h"
#include "tests/support_models.h"
#include "ui/eval_text.h"

static void type(struct app *a, const char *text)
{
    app_key(a, UI_CTRL('u'));
    app_paste(a, text, strlen(text));
    app_key(a, UI_ENTER);
}

static const char *write_file(const char *name, const char *text)
{
    static char path[512];
    struct err e = {0};
    snprintf(path, sizeof path, "%s/%s", test_tmpdir(), name);
    CHECK_OK(file_save(path, text, strlen(text), &e), e);
    return path;
}

static const char *long_text(void)
{
    static char text[60000];
    size_t n = 0;
    for (int i = 0; n < sizeof text - 64; i++)
        n += (size_t)snprintf(text + n, 64, "Row %d of some text %d.\n", i, i * 7919 % 997);
    return text;
}

static void convert(struct app *a)
{
    test_app_press(a, "2 k");
    type(a, write_file("text.txt", long_text()));
    test_app_settle(a);
    test_app_press(a, "c");
    test_app_settle(a);
    CHECK(a->has_conversion && a->convert.result.path[0], "%s", a->message);
}

/* Nothing to do without a file or a result, and it says so. */
static void test_empty(struct app *a)
{
    test_app_press(a, "5 r");
    CHECK(!a->eval.running && strstr(a->message, "choose a text"), "%s", a->message);
    test_app_press(a, "w");
    CHECK(!a->ask.what && strstr(a->message, "no result"), "%s", a->message);
    test_app_press(a, "f");
    type(a, "/nonexistent/text");
    CHECK(a->ask.what == REQ_EVAL_FILE && a->ask.error[0], "the question stays");
    test_app_press(a, "Esc x");
    type(a, "1");
    CHECK(a->ask.what == REQ_EVAL_CTX && a->ask.error[0]);
    type(a, "48");
    test_app_press(a, "c");
    type(a, "3");
    CHECK(!a->ask.what && a->j.eval.ctx == 48 && a->j.eval.windows == 3);
}

static void test_run(struct app *a)
{
    test_app_press(a, "5 f");
    type(a, write_file("text.txt", long_text()));
    test_app_press(a, "r");
    CHECK(a->eval.running);
    test_app_settle(a);
    const struct eval_record *r = eval_shown(a);
    CHECK(r && !a->eval.running && r->kind == EVAL_PPL && r->ppl.compared, "%s", a->message);
    CHECK(r && r->ppl.windows == 3 && r->ppl.kl_mean > 0 && r->ppl.tokens == 3 * 47);
    CHECK(strstr(a->message, "kept in"), "%s", a->message);
    CHECK(a->eval.known.n == 1 && a->eval.known.own == 0);
    test_app_press(a, "f");
    type(a, write_file("piqa.jsonl", "{\"goal\": \"g\", \"sol1\": \"s\", \"sol2\": \"t\", "
                                     "\"label\": 1}\n"));
    CHECK(a->j.eval.what == EVAL_WHAT_PPL, "a text stays a text: t chooses questions");
    test_app_press(a, "t f");
    type(a, write_file("piqa.jsonl", "{\"goal\": \"g\", \"sol1\": \"s\", \"sol2\": \"t\", "
                                     "\"label\": 1}\n"));
    CHECK(a->j.eval.what == EVAL_WHAT_TASK + CHOICE_PIQA, "the file's name says its task");
    test_app_press(a, "r");
    test_app_settle(a);
    r = eval_shown(a);
    CHECK(r && r->kind == EVAL_TASK && r->task.n == 1 && a->eval.list.n == 2, "%s", a->message);
    test_app_press(a, "Up");
    CHECK(eval_shown(a)->kind == EVAL_PPL);
}

/* The same again measures once more in place of the old result. */
static void test_found_again(struct app *a)
{
    CHECK(a->j.eval.what == EVAL_WHAT_TASK + CHOICE_PIQA && a->j.eval.ctx == 48);
    CHECK(a->eval.list.n == 2, "%zu results found again", a->eval.list.n);
    test_app_press(a, "5 r");
    test_app_settle(a);
    CHECK(a->eval.list.n == 2 && eval_shown(a)->kind == EVAL_TASK);
}

/* A word leads to the result, the conversion or the engine that holds it. */
static void test_find(struct app *a)
{
    test_app_press(a, "5 /");
    type(a, "TEXT.txt");
    CHECK(eval_shown(a)->kind == EVAL_PPL, "%s", a->message);
    test_app_press(a, "/");
    type(a, "piqa");
    CHECK(eval_shown(a)->kind == EVAL_TASK, "%s", a->message);
    test_app_press(a, "n");
    CHECK(eval_shown(a)->kind == EVAL_TASK, "it is the only one");
    test_app_press(a, "Tab /");
    type(a, "own");
    CHECK(strstr(a->message, "next"), "%s", a->message);
    test_app_press(a, "Tab 6 /");
    type(a, "llama");
    CHECK(a->export.at == STOCK_GGUF, "%s", a->message);
    test_app_press(a, "/");
    type(a, "nowhere");
    CHECK(a->export.at == STOCK_GGUF && strstr(a->message, "nothing here holds \"nowhere\""), "%s",
          a->message);
}

static void test_stop_and_fail(struct app *a)
{
    a->j.eval.what = EVAL_WHAT_PPL;
    a->j.eval.windows = 0;
    text_set(&a->j.eval.text, write_file("text.txt", long_text()));
    test_app_press(a, "5 r Esc");
    test_app_settle(a);
    CHECK(!a->eval.running && a->eval.list.n == 2 && strstr(a->message, "stopped"), "%s",
          a->message);
    text_set(&a->j.eval.text, write_file("short.txt", "too short"));
    test_app_press(a, "r");
    test_app_settle(a);
    CHECK(!a->eval.running && a->eval.trouble[0] && strstr(a->message, "less than one window"),
          "%s", a->message);
    CHECK(eval_shown(a), "the last result is still there");
}

static void test_speed(struct app *a)
{
    char text[EVAL_TEXT];
    a->j.eval.what = EVAL_WHAT_SPEED;
    test_app_press(a, "r");
    test_app_settle(a);
    const struct eval_record *r = eval_shown(a);
    /* The model's context of 2048 has room for depths 0 and 1024. */
    CHECK(r && r->kind == EVAL_SPEED && r->n_speed == 4 && r->compared, "%s", a->message);
    for (int i = 0; r && i < r->n_speed; i++) {
        CHECK(r->speed[i].tokens_per_sec > 0 && r->speed[i].tokens_per_sec_against > 0);
        CHECK(r->speed[i].kv_bytes > 0 && r->speed[i].kv_bytes < r->speed[i].kv_bytes_against);
    }
    CHECK(r && eval_text_line(r, 4, true, text) && !eval_text_line(r, 5, true, text));
    test_app_press(a, "w");
    type(a, "~/speed.csv");
    saver_flush(a->saver);
    char path[512];
    snprintf(path, sizeof path, "%s/speed.csv", test_tmpdir());
    CHECK(file_exists(path), "%s", a->message);
}

int main(void)
{
    struct test_model_spec spec = test_model_small();
    char path[512], store[1200];
    struct err e = {0};
    setenv("MLATHE_HOME", test_tmpdir(), 1);
    setenv("HOME", test_tmpdir(), 1);
    snprintf(path, sizeof path, "%s/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0, "model");
    struct app *a = test_app_start(path, "cpu");
    test_empty(a);
    convert(a);
    test_run(a);
    test_app_leave(a);
    a = test_app_start(NULL, "cpu");
    test_found_again(a);
    test_find(a);
    test_stop_and_fail(a);
    test_speed(a);
    snprintf(store, sizeof store, "%s/evaluations.json", a->convert.result.path);
    CHECK(file_exists(store));
    test_app_leave(a);
    /* A damaged store loses nothing but itself, and is left alone. */
    CHECK_OK(file_save(store, "{\"results\": [{}, 7", 18, &e), e);
    a = test_app_start(NULL, "cpu");
    CHECK(a->has_conversion && a->eval.list.n == 0);
    a->j.eval.what = EVAL_WHAT_TASK + CHOICE_PIQA;
    test_app_press(a, "5 r");
    test_app_settle(a);
    CHECK(a->eval.list.n == 1 && strstr(a->message, "not kept"), "%s", a->message);
    test_app_leave(a);
    return test_end("app_eval");
}
