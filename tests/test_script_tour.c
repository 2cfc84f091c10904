/* The screens as golden text: scripts under tests/screens drive the whole program (worker, models,
 * conversion, chat) without a terminal, and every shot is compared with a file beside them.
 * MLATHE_UPDATE_SCREENS=1 writes the files instead. Nothing volatile is in a shot (clock off), and
 * one thread computes. Shots that show what the conversion method measured are compared in
 * their words, marks and frames; its numbers, curves and answers are the business of other tests.
 */
#include "core/file.h"
#include "tests/support.h"
#include "tests/support_models.h"
#include "tests/support_screens.h"

/* Shots with results of the method in them. */
static bool measured(const char *name)
{
    static const char *const parts[] = {"calibrated", "converted", "chat", "convert",
                                        "saved",      "save",      "help", "evaluate"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(name, parts[i]) && strncmp(name, "hostile", 7) != 0)
            return true;
    return false;
}

static void compare(const char *name, const char *text, size_t n)
{
    char file[300];
    char *want = NULL;
    size_t size = 0;
    struct err e = {0};
    snprintf(file, sizeof file, "%s/screens/%s.txt", TESTS_DIR, name);
    if (getenv("MLATHE_UPDATE_SCREENS")) {
        CHECK_OK(file_save(file, text, n, &e), e);
        return;
    }
    int rc = file_read(file, 1 << 20, &want, &size, &e);
    CHECK(rc == 0, "%s", e.text);
    bool same = rc == 0 && size == n && memcmp(want, text, n) == 0;
    if (!same && rc == 0 && measured(name)) {
        char *a = screens_words(name, want, size), *b = screens_words(name, text, n);
        same = strcmp(a, b) == 0;
        if (!same)
            printf("--- wanted words\n%s--- got words\n%s", a, b);
        free(a);
        free(b);
    }
    CHECK(same, "screen %s differs", name);
    if (!same && rc == 0)
        printf("--- wanted\n%s--- got\n%.*s---\n", want, (int)n, text);
    free(want);
}

/* Cuts the output at its "--- NAME WxH" and "---" lines. */
static int compare_all(char *out)
{
    int shots = 0;
    char *at = out, *end;
    while ((at = strstr(at, "--- ")) != NULL) {
        char name[64];
        char *body = strchr(at, '\n');
        if (!body || sscanf(at, "--- %63s", name) != 1)
            break;
        body++;
        end = strncmp(body, "---\n", 4) == 0 ? body : strstr(body, "\n---\n");
        if (!end)
            break;
        end += end != body;
        compare(name, body, (size_t)(end - body));
        shots++;
        at = end;
    }
    return shots;
}

static int play(const char *script, const char *model)
{
    char keys[300];
    snprintf(keys, sizeof keys, "%s/screens/%s.keys", TESTS_DIR, script);
    char *text = screens_play(keys, model);
    int shots = text ? compare_all(text) : 0;
    free(text);
    return shots;
}

int main(void)
{
    struct test_model_spec spec = test_model_small();
    char path[400];
    screens_home("tour");
    snprintf(path, sizeof path, "%s/tour/data/models", test_tmpdir());
    CHECK(file_mkdirs(path, NULL) == 0, "folder");
    snprintf(path, sizeof path, "%s/tour/data/models/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0, "model");
    CHECK(play("tour", path) == 32, "shots of the tour");
    CHECK(play("small", NULL) == 14, "shots of small screens");
    screens_home("export");
    snprintf(path, sizeof path, "%s/export/data/models", test_tmpdir());
    CHECK(file_mkdirs(path, NULL) == 0, "folder");
    snprintf(path, sizeof path, "%s/export/data/models/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0, "model");
    CHECK(play("export", path) == 7, "shots of exports");
    screens_home("empty");
    CHECK(play("hostile", NULL) == 8, "shots without a model");
    return test_end("script_tour");
}
