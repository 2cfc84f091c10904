/* The program on a pseudo-terminal: it paints, takes keys, pastes and sizes, and gives the terminal
 * back whatever way it ends. */
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "tests/support.h"
#include "ui/keys.h"
#include "ui/term_keys.h"

struct session {
    pid_t pid;
    int fd;
    char out[1 << 20]; /* everything it wrote */
    size_t n;
};

static void start(struct session *s, const char *term)
{
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    const char *home = test_tmpdir(); /* before the fork: one folder for all */
    s->n = 0;
    s->out[0] = 0;
    s->pid = forkpty(&s->fd, NULL, NULL, &size);
    if (s->pid == 0) {
        setenv("MLATHE_HOME", home, 1);
        setenv("HOME", home, 1);
        setenv("TERM", term, 1);
        setenv("LC_ALL", "C.UTF-8", 1);
        execl(MLATHE_BINARY, MLATHE_BINARY, (char *)NULL);
        _exit(127);
    }
}

/* Reads until the output from byte `from` on holds text; 20 s at most. */
static bool until(struct session *s, size_t from, const char *text)
{
    for (int i = 0; i < 400; i++) {
        if (text && strstr(s->out + from, text))
            return true;
        struct pollfd f = {s->fd, POLLIN, 0};
        if (poll(&f, 1, 50) <= 0)
            continue;
        ssize_t k = read(s->fd, s->out + s->n, sizeof s->out - 1 - s->n);
        if (k <= 0)
            return text && strstr(s->out + from, text);
        s->n += (size_t)k;
        s->out[s->n] = 0;
    }
    return false;
}

static void keys(struct session *s, const char *text)
{
    CHECK(write(s->fd, text, strlen(text)) == (ssize_t)strlen(text), "write");
}

/* Reads to the end; the exit status as waitpid has it. */
static int end(struct session *s)
{
    int status = -1;
    until(s, 0, NULL);
    for (int i = 0; i < 200 && waitpid(s->pid, &status, WNOHANG) == 0; i++)
        usleep(50000);
    close(s->fd);
    return status;
}

static void check_restored(const struct session *s, const char *how)
{
    const char *left = s->out, *at;
    while ((at = strstr(left + 1, "\033[?1049")) != NULL)
        left = at;
    CHECK(strncmp(left, "\033[?1049l", 8) == 0, "%s: the first screen is back", how);
    CHECK(strstr(s->out, "\033[?2004l") != NULL, "%s: paste mode is off", how);
    CHECK(strstr(s->out, "\033[?25h") || strstr(s->out, "\033[34h\033[?25h") ||
              strstr(s->out, "\033[?12l\033[?25h"),
          "%s: the cursor shows", how);
}

/* What terminals send that are not what TERM says; the unknown is nothing, not a row of keys. */
static void test_sequences(void)
{
    static const struct {
        const char *text;
        int key;
    } cases[] = {
        {"[1~", UI_HOME},
        {"[7~", UI_HOME},
        {"[H", UI_HOME},
        {"OH", UI_HOME},
        {"[4~", UI_END},
        {"OF", UI_END},
        {"[3~", UI_DELETE},
        {"[5~", UI_PAGE_UP},
        {"[A", UI_UP},
        {"OB", UI_DOWN},
        {"[1;2D", UI_SHIFT_LEFT},
        {"[1;5C", UI_SHIFT_RIGHT},
        {"[1;3A", UI_UP | UI_ALT},
        {"[21~", UI_F10},
        {"OP", UI_F1},
        {"[Z", UI_SHIFT_TAB},
        {"[57414;6u", 0},
        {"[?1;2c", 0},
        {"[99~", 0},
        {"[", 0},
        {"O", 0},
        {"[1;2;3A", 0},
        {"x", 0},
        {"O1P", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(term_keys_sequence(cases[i].text) == cases[i].key, "%s", cases[i].text);
    CHECK(term_keys_goes_on("[") && term_keys_goes_on("[1;") && !term_keys_goes_on("[1~"));
    CHECK(term_keys_goes_on("O") && !term_keys_goes_on("OH") && !term_keys_goes_on("x"));
}

static void test_keys_and_quit(struct session *s)
{
    start(s, "xterm-256color");
    CHECK(until(s, 0, "None found"), "the first screen");
    CHECK(until(s, 0, "\033[?2004h"), "paste mode");
    size_t from = s->n;
    keys(s, "\033OS"); /* F4 */
    CHECK(until(s, from, "Ctrl-T"), "screen 4");
    from = s->n;
    keys(s, "\033[200~pasted q\033[31m\ttext\033[201~");
    CHECK(until(s, from, "pasted q[31m"), "a paste is text, and no control character comes back");
    keys(s, "\033[1~X\033[57414;6u\033[4~\033[D\033[CY"); /* not as this terminal's description has
                                                             it */
    from = s->n;
    struct winsize size = {.ws_row = 10, .ws_col = 40};
    ioctl(s->fd, TIOCSWINSZ, &size);
    kill(s->pid, SIGWINCH);
    CHECK(until(s, from, "original"), "painted anew for the new size");
    from = s->n;
    keys(s, "\033OP"); /* F1 */
    CHECK(until(s, from, "models"), "screen 1");
    keys(s, "q");
    int status = end(s);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
    check_restored(s, "q");
    start(s, "xterm");
    CHECK(until(s, 0, "None found"), "started again");
    from = s->n;
    keys(s, "\033OS");
    CHECK(until(s, from, "Xpasted q[31m"), "what was typed is still there: %s", s->out + from);
    CHECK(until(s, from, "textY"), "and at its end: %s", s->out + from);
    keys(s, "\033[21~"); /* F10 */
    CHECK(WIFEXITED(end(s)), "left");
}

static void test_signals(struct session *s)
{
    static const int ends[] = {SIGTERM, SIGHUP, SIGINT};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        start(s, "xterm-256color");
        CHECK(until(s, 0, "help"), "a screen");
        kill(s->pid, ends[i]);
        int status = end(s);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 130, "%s: status %x", strsignal(ends[i]),
              status);
        check_restored(s, strsignal(ends[i]));
    }
    start(s, "xterm-256color");
    CHECK(until(s, 0, "help"), "a screen");
    kill(s->pid, SIGSEGV);
    int status = end(s);
    CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0, "a crash is a crash");
    check_restored(s, "crash");
}

/* Parameters of ESC [ … m that choose a colour. */
static int colours(const char *out)
{
    int n = 0;
    for (const char *at = out; (at = strstr(at, "\033[")) != NULL; at++) {
        size_t len = strspn(at + 2, "0123456789;");
        if (at[2 + len] != 'm')
            continue;
        for (const char *c = at + 2; c < at + 2 + len; c += strcspn(c, ";m") + 1) {
            int v = atoi(c);
            n += (v >= 30 && v <= 38) || (v >= 40 && v <= 48) || v >= 90;
        }
    }
    return n;
}

/* The settings file: a theme without colours, and a key of one's own. */
static void test_own_settings(struct session *s)
{
    static const char mine[] = "theme = mono\nkey.leave = X\n";
    struct err e = {0};
    char path[400];
    start(s, "xterm-256color");
    CHECK(until(s, 0, "help"), "a screen");
    keys(s, "\033OP"); /* F1 */
    CHECK(until(s, 0, "None found"), "with colours");
    keys(s, "q");
    CHECK(WIFEXITED(end(s)) && colours(s->out) > 0, "colours are counted");
    snprintf(path, sizeof path, "%s/config/settings", test_tmpdir());
    CHECK(file_exists(path), "the file to edit");
    CHECK_OK(file_save(path, mine, sizeof mine - 1, &e), e);
    start(s, "xterm-256color");
    CHECK(until(s, 0, "None found"), "without colours");
    size_t from = s->n;
    keys(s, "?");
    CHECK(until(s, from, "X"), "the help shows the key");
    keys(s, "X");
    int status = end(s);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
    CHECK(colours(s->out) == 0, "mono chooses %d colours", colours(s->out));
    CHECK(remove(path) == 0, "put back");
}

static void test_refusals(struct session *s)
{
    static const char *const terms[] = {"dumb", "", "no-such-terminal"};
    /* newterm leaks 1.6 KB of its own when it refuses. */
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    for (int i = 0; i < 3; i++) {
        start(s, terms[i]);
        CHECK(until(s, 0, "TERM"), "says why: %s", s->out);
        int status = end(s);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1, "status %x", status);
        CHECK(!strstr(s->out, "\033["), "and leaves the terminal alone");
    }
}

int main(void)
{
    struct session *s = mem_calloc(1, sizeof *s);
    test_sequences();
    test_keys_and_quit(s);
    test_signals(s);
    test_own_settings(s);
    test_refusals(s);
    free(s);
    return test_end("terminal");
}
