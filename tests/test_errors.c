/* Every message of an error path says what, where and what to do: a table of things that go wrong,
 * each with the place and the remedy that its sentence must name. The command line's half is
 * error_checks.sh; the screens' is here. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "tests/support.h"
#include "tests/support_app.h"
#include "tests/support_models.h"

static const char *in_tmp(const char *name)
{
    static char path[4][600];
    static int at;
    char *p = path[at++ % 4];
    snprintf(p, 600, "%s/%s", test_tmpdir(), name);
    return p;
}

static void put(const char *name, const char *text)
{
    struct err e = {0};
    CHECK_OK(file_save(in_tmp(name), text, strlen(text), &e), e);
}

/* keys open a question (none: ""), text answers it. What is then said, in the question or the last
 * line, names both. */
static void refused(struct app *a, const char *keys, const char *text, const char *names,
                    const char *remedy)
{
    a->message[0] = 0;
    a->ask.what = REQ_NONE;
    a->help = false;
    test_app_press(a, keys);
    if (a->ask.what)
        textbuf_set(&a->ask.text, text);
    else if (app_context(a) == IN_PROMPT)
        textbuf_set(&a->chat.prompt, text);
    if (text[0])
        test_app_press(a, "Enter");
    test_app_settle(a);
    saver_flush(a->saver);
    test_app_settle(a);
    const char *said = a->ask.what ? a->ask.error : a->message;
    CHECK(strstr(said, names) && strstr(said, remedy), "%s \"%s\": \"%s\" (wanted: %s … %s)", keys,
          text, said, names, remedy);
    a->ask.what = REQ_NONE;
}

static void test_screens(void)
{
    struct app *a = test_app_start(in_tmp("tiny.gguf"), "cpu");
    refused(a, "F1 p", "~/missing.gguf", "missing.gguf", "mlathe models lists");
    refused(a, "F1 p", "~/cut.gguf", "cut.gguf", "incomplete download");
    refused(a, "F1 p", "~/text.txt", "text.txt", "give one");
    CHECK(a->has_model, "the model before stays open");
    refused(a, "F2 b", "banana", "banana", "give a share");
    refused(a, "F2 b", "200%", "200%", "give up to");
    refused(a, "F2 R", "7", "7", "even number");
    refused(a, "F2 R", "x", "give an even number", "32");
    refused(a, "F2 x", "8192", "give context x batch", "8192x1 24GiB");
    refused(a, "F2 o", "~/missing.json", "missing.json", "name right");
    refused(a, "F2 o", "~/other.json", "other.json", "mlathe plan makes");
    refused(a, "F2 o", "~/cut.json", "cut.json", "cut short");
    refused(a, "F2 s", "~/file/plan.json", "~/file", "in the way");
    refused(a, "F2 t", "~/missing.txt", "missing.txt", "no such file");
    refused(a, "F2 t", "~/text.txt", "text.txt", "give more text");
    refused(a, "F2 v", "", "no plan B", "B holds");
    refused(a, "F3 z", "", "no healing", "undo");
    refused(a, "F3 h", "", "nothing to heal", "c converts");
    refused(a, "F5 f", "~/missing.txt", "missing.txt", "");
    refused(a, "F5 w", "", "no result", "yet");
    refused(a, "F6 Enter", "", "transformers", "c on screen 2");
    refused(a, "F4 Ctrl-U", "/set heat 7", "heat", "temperature");
    refused(a, "F4 Ctrl-U", "/nothing", "/nothing", "/help");
    refused(a, "F4 Ctrl-U", "/load ~/missing.json", "missing.json", "name right");
    refused(a, "F4 Ctrl-U", "/load ~/text.txt", "text.txt", "JSON");
    refused(a, "F4 Ctrl-U", "/export ~/a.doc", "FILE.md", "FILE.json");
    refused(a, "F4 Ctrl-U", "/regen", "nothing to answer", "again");
    /* A second program on the same workspace. */
    struct app *b = test_app_start(NULL, "cpu");
    CHECK(b->lock < 0 && strstr(b->message, "another mlathe") &&
              strstr(b->message, "saves nothing by itself"),
          "%s", b->message);
    test_app_leave(b);
    test_app_leave(a);
}

/* No room: the old file stays, and the sentence says which file and what to do. */
static void test_no_room(void)
{
    struct app *a = test_app_start(in_tmp("tiny.gguf"), "cpu");
    struct rlimit was, tight = {512, RLIM_INFINITY};
    char *before = NULL, *after = NULL;
    struct err e = {0};
    app_save(a, true);
    saver_flush(a->saver);
    CHECK_OK(file_read(a->journal_path, 1 << 20, &before, NULL, &e), e);
    getrlimit(RLIMIT_FSIZE, &was);
    tight.rlim_max = was.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &tight);
    refused(a, "F2 s", "~/plan.json", "plan.json", "ulimit -f");
    test_app_press(a, "F4");
    textbuf_set(&a->chat.prompt, "typed while the disk was full");
    app_changed(a);
    a->message[0] = 0;
    app_save(a, true);
    saver_flush(a->saver);
    test_app_settle(a);
    CHECK(strstr(a->message, "not saved") && strstr(a->message, "ulimit -f"), "%s", a->message);
    setrlimit(RLIMIT_FSIZE, &was);
    CHECK_OK(file_read(a->journal_path, 1 << 20, &after, NULL, &e), e);
    CHECK(before && after && !strcmp(before, after), "what was saved before is not whole");
    CHECK(!file_exists(in_tmp("plan.json")), "half a plan");
    free(before);
    free(after);
    test_app_leave(a);
}

int main(void)
{
    struct test_model_spec spec = test_model_small();
    char command[2000], *bytes = NULL;
    size_t n = 0;
    struct err e = {0};
    setenv("HOME", test_tmpdir(), 1);
    setenv("MLATHE_HOME", test_tmpdir(), 1);
    CHECK(test_model_write_gguf(in_tmp("tiny.gguf"), &spec) == 0);
    CHECK(test_model_write_hf(in_tmp("hf"), &spec) == 0);
    CHECK_OK(file_read(in_tmp("tiny.gguf"), 1 << 24, &bytes, &n, &e), e);
    CHECK_OK(file_save(in_tmp("cut.gguf"), bytes, n / 2, &e), e);
    free(bytes);
    spec.G = 4;
    CHECK(test_model_write_gguf(in_tmp("other.gguf"), &spec) == 0);
    put("text.txt", "a few words");
    put("file", "");
    put("cut.json", "{\"mlathe_plan\": 1, \"model\":");
    put("other.json",
        "{\"mlathe_plan\": 1, \"model\": {\"name\": \"tiny\", \"family\": \"llama\", "
        "\"fingerprint\": \"00\"}, \"layers\": [{\"kv_lora_rank\": 24, "
        "\"qk_rope_head_dim\": 8}, {\"kv_lora_rank\": 24, \"qk_rope_head_dim\": 8}]}");
    test_screens();
    test_no_room();
    snprintf(command, sizeof command, "bash '%s' '%s' '%s'", test_path("error_checks.sh"),
             MLATHE_BINARY, test_tmpdir());
    fflush(stdout);
    int status = system(command);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "error_checks.sh: %d", status);
    return test_end("errors");
}
