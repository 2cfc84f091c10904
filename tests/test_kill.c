/* kill -9 at random moments of converting, saving, chatting, exporting and healing on a tiny model.
 * After every kill the program starts again, knows everything that was confirmed, finds every
 * conversion whole, and leaves nothing temporary. test_kill [N [SEED]]: N kills (tests/kill.sh). */
#include <dirent.h>
#include <ftw.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/file.h"
#include "core/model.h"
#include "sessions/clock.h"
#include "sessions/journal.h"
#include "sessions/workspace.h"
#include "tests/support.h"
#include "tests/support_models.h"

/* What is killed. %d is the number of the round. "confirmed" is printed when the program has said
 * that it is done and nothing waits to be saved. */
enum { CONVERT, PLAN, CHAT, EXPORT, HEAL, SCENES_ON_SCREEN, CLI = SCENES_ON_SCREEN, SCENES };
static const char *const scenes[SCENES] = {
    /* Esc: what waits since an earlier kill goes into files. */
    [CONVERT] = "key F3 Esc F2 b Ctrl-U\ntype %d%%\nkey Enter c\nwait idle 300\n",
    [PLAN] = "key F2 b Ctrl-U\ntype %d%%\nkey Enter s Ctrl-U\ntype ~/out/plan.json\nkey Enter\n",
    [CHAT] = "key F4 Ctrl-U\ntype /clear\nkey Enter\ntype message %d\nkey Enter\nwait idle 300\n",
    [EXPORT] = "key F6 Enter Ctrl-U\ntype ~/out/export\nkey Enter Enter\nwait idle 300\n",
    [HEAL] = "key F3 h Ctrl-U\ntype 1024 tokens ~/calib.txt\nkey Enter\nwait idle 300\n",
    [CLI] = "",
};
static const char *const names[SCENES] = {"convert", "plan", "chat", "export", "heal", "command"};

struct known {
    char message[32]; /* the last chat input that was confirmed */
    char budget[16];
    bool later[100]; /* percents that were typed since and not confirmed: may be there or not */
    bool plan, export, cli; /* is there for good */
};

static char home[300], model[400];

static const char *in_home(const char *name)
{
    static char path[4][600];
    static int at;
    char *p = path[at++ % 4];
    snprintf(p, 600, "%s/%s", home, name);
    return p;
}

static void write_file(const char *path, const char *text)
{
    struct err e = {0};
    CHECK_OK(file_save(path, text, strlen(text), &e), e);
}

/* The budget of a round: it changes every time. */
static int percent(int round)
{
    return 30 + round * 7 % 60;
}

static pid_t launch(int scene, int round)
{
    char script[1000], rank[16];
    snprintf(script, sizeof script, "wait idle 300\n");
    size_t n = strlen(script);
    snprintf(script + n, sizeof script - n, scenes[scene], scene == CHAT ? round : percent(round));
    strcat(script, "wait saved\nshot confirmed\nquit\n");
    write_file(in_home("keys.txt"), script);
    snprintf(rank, sizeof rank, "%d", 8 + round % 32);
    fflush(stdout);
    pid_t pid = fork();
    if (pid)
        return pid;
    if (!freopen(in_home("screen.txt"), "w", stdout) || !freopen(in_home("log.txt"), "a", stderr))
        _exit(99);
    if (scene == CLI)
        execl(MLATHE_BINARY, "mlathe", "convert", model, "--calib", in_home("calib.txt"),
              "--tokens", "512", "--rank", rank, "--rope", "8", "--threads", "1", "-o",
              in_home("out/conversion"), "--json", NULL);
    else
        execl(MLATHE_BINARY, "mlathe", model, "--script", in_home("keys.txt"), "--threads", "1",
              NULL);
    _exit(99);
}

/* Runs to the end; the exit code, -1 when it did not exit. */
static int finish(pid_t pid)
{
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool confirmed(int scene)
{
    char *text = NULL;
    bool there = file_read(in_home("screen.txt"), 1 << 20, &text, NULL, NULL) == OK &&
                 strstr(text, scene == CLI ? "kv_bytes_per_token_after" : "--- confirmed") != NULL;
    free(text);
    return there;
}

static void learn(struct known *k, int scene, int round)
{
    if (scene == CHAT)
        snprintf(k->message, sizeof k->message, "message %d", round);
    if (scene == PLAN || scene == CONVERT) {
        snprintf(k->budget, sizeof k->budget, "%d%%", percent(round));
        memset(k->later, 0, sizeof k->later);
    }
    k->plan |= scene == PLAN;
    k->export |= scene == EXPORT;
    k->cli |= scene == CLI;
}

static int found_left;

static int look(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    const char *name = path + where->base;
    (void)st, (void)kind;
    if (strstr(name, ".tmp-") || strstr(name, ".old-") || strstr(name, ".bad-")) {
        printf("left behind: %s\n", path);
        found_left++;
    }
    return 0;
}

static void nothing_left(const char *dir, const char *when)
{
    found_left = 0;
    nftw(dir, look, 16, FTW_PHYS);
    CHECK(found_left == 0, "%s", when);
}

/* A conversion folder opens, with its original. */
static void opens(const char *dir, const char *when)
{
    struct workspace_options o = {.device = "cpu", .threads = 1};
    struct workspace *w = NULL;
    struct err e = {0};
    CHECK_OK(workspace_new(&w, &o, &e), e);
    if (w)
        CHECK(workspace_open(w, dir, NULL, &e) == OK && workspace_has_conversion(w), "%s: %s", when,
              e.text);
    workspace_free(w);
}

static void check_conversions(const char *newest, const char *when)
{
    const char *dir = in_home("data/conversions");
    DIR *d = opendir(dir);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        char path[900];
        snprintf(path, sizeof path, "%s/%s/mlathe.json", dir, entry->d_name);
        if (entry->d_name[0] != '.')
            CHECK(file_exists(path), "%s: %s is no whole conversion", when, entry->d_name);
    }
    if (d)
        closedir(d);
    if (newest)
        opens(newest, when);
}

static void check_journal(const struct known *k, const char *when)
{
    struct journal j;
    struct err e = {0};
    char *note = NULL;
    bool said = !k->message[0];
    CHECK_OK(journal_init(&j, &e), e);
    CHECK(journal_load(&j, in_home("state/workspace.json"), &note, &e) == OK && !note, "%s: %s%s",
          when, e.text, note ? note : "");
    for (size_t i = 0; i < j.history.n && !said; i++)
        said = strcmp(j.history.text[i], k->message) == 0;
    CHECK(said, "%s: \"%s\" is lost", when, k->message);
    CHECK(j.conversion && file_is_dir(j.conversion), "%s: the conversion in use is lost", when);
    check_conversions(j.conversion, when);
    /* A later budget may have been saved before the kill; an older one may not come back. */
    int budget = j.budget ? atoi(j.budget) : 0;
    CHECK(j.plan, "%s: the plan is lost", when);
    CHECK(!k->budget[0] || budget == atoi(k->budget) ||
              (budget > 0 && budget < 100 && k->later[budget]),
          "%s: the budget is %d%%, confirmed was %s", when, budget, k->budget);
    journal_done(&j);
    free(note);
}

static void check_files(const struct known *k, const char *when)
{
    struct err e = {0};
    const char *plan = in_home("out/plan.json"), *export = in_home("out/export");
    const char *cli = in_home("out/conversion");
    char *text = NULL;
    CHECK(!k->plan || file_exists(plan), "%s: the plan's file is lost", when);
    if (file_exists(plan)) {
        cJSON *json = NULL;
        CHECK(file_read(plan, 1 << 20, &text, NULL, &e) == OK &&
                  json_parse(&json, text, strlen(text), "plan", &e) == OK,
              "%s: %s", when, e.text);
        cJSON_Delete(json);
        free(text);
    }
    CHECK(!k->export || file_exists(export), "%s: the export is lost", when);
    if (file_exists(export)) {
        struct model *m = NULL;
        CHECK(model_open(&m, export, &e) == OK, "%s: %s", when, e.text);
        model_free(m);
    }
    CHECK(!k->cli || file_is_dir(cli), "%s: the converted folder is lost", when);
    if (file_exists(cli))
        opens(cli, when);
}

static void start_again(const struct known *k, const char *when)
{
    char *text = NULL;
    write_file(in_home("keys.txt"), "clock off\nwait idle 300\nwait saved\nshot after\nquit\n");
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        if (!freopen(in_home("again.txt"), "w", stdout) ||
            !freopen(in_home("log.txt"), "a", stderr))
            _exit(99);
        execl(MLATHE_BINARY, "mlathe", "--script", in_home("keys.txt"), "--threads", "1", NULL);
        _exit(99);
    }
    int code = finish(pid);
    CHECK(code == 0, "%s: the next start ended with %d", when, code);
    CHECK(file_read(in_home("again.txt"), 1 << 20, &text, NULL, NULL) == OK &&
              strstr(text, "tiny") && !strstr(text, "No model"),
          "%s: the next start shows\n%s", when, text ? text : "nothing");
    free(text);
    nothing_left(in_home("state"), when);
    nothing_left(in_home("data"), when);
    nothing_left(in_home("cache"), when);
    check_journal(k, when);
    check_files(k, when);
}

static void prepare(void)
{
    struct test_model_spec spec = test_model_small();
    struct err e = {0};
    char text[8000];
    size_t n = 0;
    uint64_t seed = 5;
    static const char *const words[] = {"stone", "river", "the", "of", "slowly", "turns", "lamp"};
    snprintf(home, sizeof home, "%s/home", test_tmpdir());
    CHECK_OK(file_mkdirs(in_home("out"), &e), e);
    snprintf(model, sizeof model, "%s/tiny.gguf", home);
    CHECK(test_model_write_gguf(model, &spec) == 0);
    while (n < sizeof text - 20)
        n += (size_t)snprintf(text + n, 20, "%s ", words[(int)(test_uniform(&seed) * 7)]);
    write_file(in_home("calib.txt"), text);
    setenv("HOME", home, 1);
    setenv("MLATHE_HOME", home, 1);
    write_file(in_home("keys.txt"),
               "wait idle 300\nkey F2 t\ntype ~/calib.txt\nkey Enter\n"
               "wait idle 300\nkey f f F4\ntype /set max_tokens 8\nkey Enter F2 c\n"
               "wait idle 300\nwait saved\nquit\n");
    pid_t pid = fork();
    if (!pid) {
        execl(MLATHE_BINARY, "mlathe", model, "--script", in_home("keys.txt"), "--threads", "1",
              NULL);
        _exit(99);
    }
    CHECK(finish(pid) == 0, "the first start");
}

int main(int argc, char **argv)
{
    int kills = argc > 1 ? atoi(argv[1]) : 12, killed = 0, late = 0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    double took[SCENES];
    struct known known = {0};
    char when[100];
    prepare();
    for (int s = 0; s < SCENES; s++) { /* each once to its end: how long it takes */
        double start = clock_now();
        int code = finish(launch(s, s));
        took[s] = clock_now() - start;
        CHECK(code == 0 && confirmed(s), "%s: exit code %d", names[s], code);
        learn(&known, s, s);
    }
    start_again(&known, "before the first kill");
    for (int i = SCENES; i < kills + SCENES && !test_failures; i++) {
        int scene = i % SCENES;
        pid_t pid = launch(scene, i);
        double wait = took[scene] * 1.05 * test_uniform(&seed);
        nanosleep(&(struct timespec){(time_t)wait, (long)((wait - (double)(time_t)wait) * 1e9)},
                  NULL);
        kill(pid, SIGKILL);
        if (finish(pid) < 0)
            killed++;
        else
            late++; /* it had ended */
        if (confirmed(scene))
            learn(&known, scene, i);
        else if (scene == PLAN || scene == CONVERT)
            known.later[percent(i)] = true;
        snprintf(when, sizeof when, "kill %d, %s after %.3f of %.3f s", i - SCENES + 1,
                 names[scene], wait, took[scene]);
        start_again(&known, when);
    }
    for (int s = 0; s < SCENES; s++) /* what was left beside the user's own files goes now */
        CHECK(finish(launch(s, 90 + s)) == 0, "%s at the end", names[s]);
    nothing_left(home, "at the end");
    printf("%d killed while they worked, %d had just ended\n", killed, late);
    return test_end("kill");
}
