/* Healing on screen 3, driven by keys on a tiny model: the question and its refusals, the run,
 * pause and going on, stop, undo. What the screens say is looked for, not compared as a whole:
 * figures come and go with the method. */
#include "core/file.h"
#include "tests/support.h"
#include "tests/support_models.h"
#include "tests/support_screens.h"
#include "ui/app_parts.h"

static const char script[] = "clock off\n"
                             "wait idle\n"
                             "key 3 h\n" /* nothing is converted yet */
                             "shot none\n"
                             "key c\n"
                             "wait idle\n"
                             "key h Ctrl-U\n"
                             "type nonsense\n"
                             "key Enter\n"
                             "shot refused\n"
                             "key Ctrl-U\n"
                             "type 600 tokens ~/nothing.txt\n"
                             "key Enter\n"
                             "shot missing\n"
                             "key Ctrl-U\n"
                             "type 600 tokens lr 2 ~/text.txt\n"
                             "key Enter\n"
                             "shot knob\n"
                             "key Ctrl-U\n"
                             "type 1500 tokens lr 0.002 train q,kv_b ~/text.txt\n"
                             "shot asked\n"
                             "key Enter\n"
                             "wait idle\n"
                             "shot healed\n"
                             "size 120x40\n"
                             "shot wide\n"
                             "size 30x9\n"
                             "shot small\n"
                             "size 80x24\n"
                             "key z\n"
                             "wait idle\n"
                             "shot undone\n"
                             "key h Ctrl-U\n"
                             "type 30 m refit 0 ~/text.txt\n"
                             "key Enter\n"
                             "wait 6\n"
                             "key p\n"
                             "wait idle\n"
                             "shot paused\n"
                             "key p\n"
                             "wait 2\n"
                             "key Esc\n"
                             "wait idle\n"
                             "shot stopped\n"
                             "key 4 Ctrl-U\n"
                             "type Hello\n"
                             "key Enter\n"
                             "wait idle\n"
                             "shot chat\n";

/* The shot of that name, NUL-terminated in place of its end. */
static bool shot_says(const char *out, const char *name, const char *words)
{
    char mark[64];
    snprintf(mark, sizeof mark, "--- %s ", name);
    const char *at = strstr(out, mark), *end = at ? strstr(at, "\n---\n") : NULL;
    const char *found = at ? strstr(at, words) : NULL;
    bool says = found && end && found < end;
    CHECK(says, "shot %s does not say \"%s\"", name, words);
    if (!says && at && end)
        printf("%.*s\n", (int)(end - at), at);
    return says;
}

static void write_text(const char *path)
{
    static const char *const words[] = {"stone ", "river ", "the ", "of ", "slowly ", "turns.\n"};
    struct err e = {0};
    char *text = mem_calloc(32768, 1);
    size_t n = 0;
    uint64_t seed = 11;
    while (n < 30000)
        n += (size_t)sprintf(text + n, "%s", words[(int)(test_uniform(&seed) * 6)]);
    CHECK_OK(file_save(path, text, n, &e), e);
    free(text);
}

/* What is typed, and what of it healing would get. */
static void test_line(void)
{
    struct heal_options o;
    struct err e = {0};
    char *file;
    CHECK_OK(heal_parse(&o, " 10", &file, &e), e);
    CHECK(o.seconds == 600 && !o.tokens && !o.refit_tokens && !o.parts && !file, "minutes");
    CHECK_OK(heal_parse(&o, "2m", &file, &e), e);
    CHECK(o.seconds == 120, "2m");
    CHECK_OK(heal_parse(&o, "kl .3 refit 0", &file, &e), e);
    CHECK(o.until_kl == .3 && o.seconds == 3600 && o.refit_tokens == -1, "kl");
    CHECK_OK(heal_parse(&o,
                        "5000 tok refit 4096 train q,o lr .002 next-token 0.1 match 1 length 64 "
                        "batch 128 accumulate 2 ~/text.txt",
                        &file, &e),
             e);
    CHECK(o.tokens == 5000 && !o.seconds && o.refit_tokens == 4096 && o.rate == .002 &&
              o.parts == (1u << HEAL_Q | 1u << HEAL_O) && o.mix == .1 && o.match == 1 &&
              o.length == 64 && o.batch == 128 && o.accumulate == 2,
          "knobs");
    CHECK(file && strstr(file, "/text.txt") && file[0] == '/', "file");
    free(file);
    static const char *const wrong[] = {"",
                                        "tokens",
                                        "-1",
                                        "nan",
                                        "10 x",
                                        "kl",
                                        "10 length",
                                        "10 length 8.5",
                                        "10 train x",
                                        "10 train",
                                        "10 batch 1",
                                        "10 lr 0,1",
                                        "10 match -1",
                                        "10 refit 4194305",
                                        "10 ~/no.txt"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        e = (struct err){0};
        CHECK(heal_parse(&o, wrong[i], &file, &e) == ERR_ARG && e.text[0] && !file, "\"%s\"",
              wrong[i]);
    }
}

int main(void)
{
    struct err e = {0};
    struct test_model_spec spec = test_model_small();
    char path[600], model[600], keys[600];
    snprintf(path, sizeof path, "%s/home", test_tmpdir());
    setenv("HOME", path, 1);
    setenv("MLATHE_HOME", path, 1);
    CHECK_OK(file_mkdirs(path, &e), e);
    snprintf(path, sizeof path, "%s/home/text.txt", test_tmpdir());
    snprintf(model, sizeof model, "%s/tiny.gguf", test_tmpdir());
    snprintf(keys, sizeof keys, "%s/heal.keys", test_tmpdir());
    write_text(path);
    CHECK(test_model_write_gguf(model, &spec) == 0, "no model");
    CHECK_OK(file_save(keys, script, strlen(script), &e), e);
    test_line();
    char *text = screens_play(keys, model);
    if (text) {
        shot_says(text, "none", "nothing to heal yet");
        shot_says(text, "refused", "say 10 (minutes), 50000 tokens, or kl 0.3");
        shot_says(text, "missing", "nothing.txt is not there");
        shot_says(text, "knob", "lr takes a number from 1e-07 to 0.1, not \"2\"");
        shot_says(text, "asked", "heal for");
        shot_says(text, "asked", "refit 4096");
        shot_says(text, "healed", "heal: done");
        shot_says(text, "healed", "held-out KL");
        shot_says(text, "healed", "the budget is used");
        shot_says(text, "wide", "KL a token: held out");
        shot_says(text, "undone", "as it was before healing");
        shot_says(text, "paused", "heal: paused");
        shot_says(text, "paused", "p goes on");
        shot_says(text, "stopped", "heal: done");
        shot_says(text, "chat", "Hello");
    }
    free(text);
    return test_end("heal_screen");
}
