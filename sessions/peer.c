/* Another program's benchmark as a child process. Refuses commands that cannot be started, that
 * fail, and answers without the rate that was asked for. */
#include "sessions/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/json.h"

enum { PEER_WORDS = 64, PEER_TEXT = 8192, PEER_OUTPUT = 1 << 20 };

/* Words in one text, each ended by a 0. */
struct words {
    char text[PEER_TEXT];
    size_t used;
    char *v[PEER_WORDS + 1];
    int n;
    bool full;
};

static void put(struct words *w, const char *s, size_t n)
{
    if (n >= sizeof w->text - w->used) {
        w->full = true;
        return;
    }
    memcpy(w->text + w->used, s, n);
    w->used += n;
}

static void begin(struct words *w)
{
    if (w->n < PEER_WORDS)
        w->v[w->n++] = w->text + w->used;
    else
        w->full = true;
}

static void end(struct words *w)
{
    put(w, "", 1);
}

static void put_word(struct words *w, const char *s)
{
    begin(w);
    put(w, s, strlen(s));
    end(w);
}

struct value {
    const char *name;
    char text[16];
};
enum { PEER_VALUES = 4 };

static void values_of(const struct peer_test *t, struct value v[PEER_VALUES])
{
    static const char *const names[PEER_VALUES] = {"prompt", "generate", "depth", "threads"};
    const int numbers[] = {t->prefill ? t->n : 0, t->prefill ? 0 : t->n, t->depth, t->threads};
    for (int i = 0; i < PEER_VALUES; i++) {
        v[i].name = names[i];
        snprintf(v[i].text, sizeof v[i].text, "%d", numbers[i]);
    }
}

/* The length of "{name}" at s when it is one of ours, its value put in; else 0. */
static size_t put_value(struct words *w, const struct peer_test *t, const char *s)
{
    struct value v[PEER_VALUES];
    if (!strncmp(s, "{model}", 7)) {
        put(w, t->model, strlen(t->model));
        return 7;
    }
    values_of(t, v);
    for (int i = 0; i < PEER_VALUES; i++) {
        size_t n = strlen(v[i].name);
        if (!strncmp(s + 1, v[i].name, n) && s[n + 1] == '}') {
            put(w, v[i].text, strlen(v[i].text));
            return n + 2;
        }
    }
    return 0;
}

/* Returns whether any value was put in. */
static bool split(struct words *w, const char *s, const struct peer_test *t)
{
    bool any = false;
    while (*(s += strspn(s, " \t\n"))) {
        char quote = 0;
        for (begin(w); *s && (quote || !strchr(" \t\n", *s)); s++) {
            size_t n = *s == '{' ? put_value(w, t, s) : 0;
            any = any || n;
            if (n)
                s += n - 1;
            else if (*s == quote)
                quote = 0;
            else if (!quote && (*s == '\'' || *s == '"'))
                quote = *s;
            else
                put(w, s, 1);
        }
        end(w);
    }
    return any;
}

static void add_llama_bench(struct words *w, const struct peer_test *t)
{
    struct value v[PEER_VALUES];
    values_of(t, v);
    const char *const all[] = {"-m",      t->model, "-p",      v[0].text, "-n", v[1].text, "-d",
                               v[2].text, "-t",     v[3].text, "-r",      "1",  "-o",      "json"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        put_word(w, all[i]);
}

/* What fd gives until its end, at most size − 1 bytes. */
static size_t read_all(int fd, char *out, size_t size)
{
    size_t n = 0;
    char rest[4096];
    for (;;) {
        ssize_t got = n < size - 1 ? read(fd, out + n, size - 1 - n) : read(fd, rest, sizeof rest);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        n += n < size - 1 ? (size_t)got : 0;
    }
    out[n] = 0;
    return n;
}

static int run_child(char **argv, char *out, size_t size, struct err *e)
{
    int fd[2], status = 0;
    pid_t pid;
    posix_spawn_file_actions_t files;
    if (pipe2(fd, O_CLOEXEC))
        return err_set(e, ERR_IO, "a pipe for %s: %s", argv[0], strerror(errno));
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, fd[1], 1);
    posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
    int failed = posix_spawnp(&pid, argv[0], &files, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    close(fd[1]);
    if (!failed)
        read_all(fd[0], out, size);
    close(fd[0]);
    if (failed)
        return err_set(e, ERR_IO, "the peer %s: %s", argv[0], strerror(failed));
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGINT)
        return err_set(e, ERR_CANCELLED, "benchmark stopped");
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        return err_set(e, ERR_IO, "the peer %s failed with %s %d: run it by hand to see why",
                       argv[0], WIFEXITED(status) ? "status" : "signal",
                       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    return OK;
}

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = json_get(o, key);
    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

/* The rate of the asked test, or 0. */
static double find_rate(const cJSON *root, const struct peer_test *t)
{
    char name[24];
    const cJSON *list = cJSON_IsArray(root) ? root : json_get(root, "rows"), *o;
    snprintf(name, sizeof name, "%s%d", t->prefill ? "pp" : "tg", t->n);
    cJSON_ArrayForEach(o, list)
    {
        if (!strcmp(json_str_or(o, "test", ""), name))
            return number(o, "tokens_per_sec");
        if (number(o, t->prefill ? "n_prompt" : "n_gen") == t->n &&
            number(o, t->prefill ? "n_gen" : "n_prompt") == 0)
            return number(o, "avg_ts");
    }
    return 0;
}

int peer_run(const char *command, const struct peer_test *t, double *tokens_per_sec, struct err *e)
{
    struct words w = {.used = 0};
    if (!split(&w, command, t))
        add_llama_bench(&w, t);
    if (w.full || !w.v[0] || !*w.v[0])
        return err_set(e, ERR_ARG, "the peer \"%.64s\": %s", command,
                       w.full ? "the command is too long" : "give a command");
    char *out = mem_calloc(PEER_OUTPUT, 1);
    if (!out)
        return err_nomem(e, PEER_OUTPUT, "the peer's answer");
    int rc = run_child(w.v, out, PEER_OUTPUT, e);
    cJSON *root = NULL;
    if (!rc)
        rc = json_parse(&root, out, strlen(out), "the peer's answer", e);
    if (!rc) {
        *tokens_per_sec = find_rate(root, t);
        if (!(*tokens_per_sec > 0))
            rc = err_set(e, ERR_FORMAT, "the peer %s gave no rate of %s%d", w.v[0],
                         t->prefill ? "pp" : "tg", t->n);
    }
    cJSON_Delete(root);
    free(out);
    return rc;
}
