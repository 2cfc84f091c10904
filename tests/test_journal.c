/* What is remembered: comes back whole, is never half written, never lost when it cannot be read,
 * and never written by two programs. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "sessions/journal.h"
#include "sessions/saver.h"
#include "tests/support.h"

static void fill(struct journal *j)
{
    text_set(&j->model, "/models/a \"b\".gguf");
    text_set(&j->conversion, "/conv/a-1");
    text_set(&j->budget, "24GiB,8192x16");
    text_set(&j->calibration, "/texts/a.txt");
    text_set(&j->typed, "half a sent\nence\t☃");
    text_set(&j->system, "Be brief.");
    j->screen = 3;
    j->context = 4096;
    j->batch = 16;
    j->memory_bytes = 80.0 * 0x1p30;
    j->settings.sampling.temperature = 0.7;
    j->settings.sampling.seed = 9007199254740991ull;
    j->settings.mode = CHAT_FORCED;
    j->plan = cJSON_Parse("{\"mlathe_plan\":1,\"future\":[1,2,{\"x\":null}]}");
    text_list_add(&j->conversions, "/conv/a-1", 10);
    for (int i = 0; i < JOURNAL_HISTORY + 20; i++) {
        char text[32];
        snprintf(text, sizeof text, "input %d", i);
        text_list_add(&j->history, text, JOURNAL_HISTORY);
    }
    journal_add_turn(j, "first");
    text_set(&j->turn[0].answer[0], "yes \x1b[31m");
    journal_add_turn(j, "second");
    text_set(&j->turn[1].answer[0], "one");
    text_set(&j->turn[1].answer[1], "");
}

static void test_round_trip(void)
{
    struct journal a, b;
    struct err e = {0};
    CHECK_OK(journal_init(&a, &e), e);
    CHECK_OK(journal_init(&b, &e), e);
    fill(&a);
    char *text = journal_text(&a);
    CHECK_OK(journal_parse(&b, text, strlen(text), "journal", &e), e);
    char *again = journal_text(&b);
    CHECK(strcmp(text, again) == 0, "the same text again");
    CHECK(b.n_turn == 2 && b.turn[0].answer[1] == NULL && b.turn[1].answer[1] != NULL,
          "absent and empty answers differ");
    CHECK(b.history.n == JOURNAL_HISTORY && strcmp(b.history.text[0], "input 20") == 0,
          "the oldest inputs go");
    CHECK(b.settings.sampling.seed == 9007199254740991ull, "seed");
    char *chat = journal_chat_text(&a);
    journal_drop_turns(&b, 0);
    CHECK_OK(journal_chat_parse(&b, chat, strlen(chat), "chat", &e), e);
    CHECK(b.n_turn == 2 && strcmp(b.model, a.model) == 0, "a transcript alone");
    CHECK(journal_chat_parse(&b, text, strlen(text), "chat", &e) != 0 && b.n_turn == 2,
          "a journal is no transcript, and nothing is lost by trying");
    free(chat);
    free(text);
    free(again);
    journal_done(&a);
    journal_done(&b);
}

/* Cut off anywhere, or with bytes changed: refused or understood, never half taken over. */
static void test_damage(void)
{
    struct journal a, b;
    struct err e = {0};
    uint64_t seed = 5;
    journal_init(&a, &e);
    fill(&a);
    text_list_done(&a.history); /* shorter */
    char *text = journal_text(&a);
    size_t n = strlen(text);
    journal_init(&b, &e);
    for (size_t cut = 0; cut + 2 < n; cut += 3) {
        CHECK(journal_parse(&b, text, cut, "cut", &e) != 0, "cut at %zu", cut);
        CHECK(b.n_turn == 0 && !b.model, "untouched");
    }
    for (int i = 0; i < 3000; i++) {
        char *copy = mem_strdup(text);
        copy[(size_t)(test_uniform(&seed) * (double)n)] = (char)(test_uniform(&seed) * 256);
        struct journal c;
        journal_init(&c, &e);
        journal_parse(&c, copy, n, "changed", &e);
        char *out = journal_text(&c);
        CHECK(out != NULL, "still a journal");
        free(out);
        journal_done(&c);
        free(copy);
    }
    free(text);
    journal_done(&a);
    journal_done(&b);
}

static void test_bad_files(void)
{
    struct err e = {0};
    char path[512], bad[600];
    static const char *const texts[] = {"{\"mlathe_workspace\": 1, \"chat\":", "",
                                        "{\"mlathe_workspace\": 99}", "[]"};
    snprintf(path, sizeof path, "%s/workspace.json", test_tmpdir());
    for (int i = 0; i < 4; i++) {
        struct journal j;
        char *note = NULL;
        journal_init(&j, &e);
        CHECK_OK(file_save(path, texts[i], strlen(texts[i]), &e), e);
        CHECK_OK(journal_load(&j, path, &note, &e), e);
        snprintf(bad, sizeof bad, "%s.bad-%d", path, i + 1);
        CHECK(note && strstr(note, ".bad-") && file_exists(bad) && !file_exists(path),
              "kept aside: %s", note ? note : "no note");
        char *kept = NULL;
        CHECK_OK(file_read(bad, 4096, &kept, NULL, &e), e);
        CHECK(strcmp(kept, texts[i]) == 0, "byte for byte");
        free(kept);
        free(note);
        journal_done(&j);
    }
    struct journal j;
    char *note = NULL;
    journal_init(&j, &e);
    CHECK(journal_load(&j, path, &note, &e) == OK && !note, "an absent file is a first start");
    journal_done(&j);
}

static void test_lock(void)
{
    struct err e = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/workspace.lock", test_tmpdir());
    int first = journal_lock(path, &e);
    CHECK(first >= 0, "%s", e.text);
    CHECK(journal_lock(path, &e) < 0 && strstr(e.text, "another mlathe"), "%s", e.text);
    journal_unlock(first);
    first = journal_lock(path, &e);
    CHECK(first >= 0, "free again");
    journal_unlock(first);
    CHECK(journal_lock("/nonexistent/folder/lock", &e) < 0, "says why: %s", e.text);
}

struct outcome {
    int written, failed;
};
static void outcome(void *user, const char *path, bool quiet, int status, const char *text)
{
    struct outcome *o = user; /* the saver's thread; read after saver_flush or _free */
    (void)path, (void)quiet, (void)text;
    o->written += status == OK;
    o->failed += status != OK;
}

static void test_saver(void)
{
    struct saver *s;
    struct err e = {0};
    struct outcome o = {0};
    char path[512], *text = NULL;
    snprintf(path, sizeof path, "%s/new/folder/file.json", test_tmpdir());
    CHECK_OK(saver_new(&s, outcome, &o, &e), e);
    for (int i = 0; i <= 200; i++)
        CHECK(saver_put(s, path, mem_printf("version %d", i), true), "%d", i);
    saver_put(s, "/proc/no/such/folder/file", mem_strdup("x"), false);
    saver_free(s); /* writes what waits */
    CHECK_OK(file_read(path, 4096, &text, NULL, &e), e);
    CHECK(text && strcmp(text, "version 200") == 0, "%s", text);
    CHECK(o.written >= 1 && o.failed == 1, "%d %d", o.written, o.failed);
    free(text);
}

/* Killed at any moment, the file is a whole one: the one before or the new one. */
static void test_killed(void)
{
    struct err e = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/killed.json", test_tmpdir());
    struct journal j;
    journal_init(&j, &e);
    fill(&j);
    for (int i = 0; i < 12; i++) {
        pid_t child = fork();
        if (child == 0) {
            for (int k = 0;; k++) {
                char *text = journal_text(&j);
                file_save(path, text, strlen(text), NULL);
                free(text);
            }
        }
        usleep(3000 + (unsigned)i * 1700);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        if (!file_exists(path))
            continue;
        struct journal back;
        char *note = NULL;
        journal_init(&back, &e);
        CHECK_OK(journal_load(&back, path, &note, &e), e);
        CHECK(!note && back.n_turn == 2, "whole: %s", note ? note : "");
        free(note);
        journal_done(&back);
    }
    journal_done(&j);
}

int main(void)
{
    test_round_trip();
    test_damage();
    test_bad_files();
    test_lock();
    test_saver();
    test_killed();
    return test_end("journal");
}
