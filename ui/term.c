/* ncurses behind a cell grid. Refuses TERM=dumb, no TERM, and anything that is not a terminal. */
#include "ui/term.h"

#include <curses.h>
#include <errno.h>
#include <fcntl.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include "core/file.h"
#include "ui/keys.h"
#include "ui/term_keys.h"
#include "ui/term_roles.h"

#define PASTE_START (KEY_MAX + 1)
#define PASTE_END (KEY_MAX + 2)
#define PASTE_MAX ((size_t)1 << 20)

struct term {
    int in, out;              /* duplicates of 0 and 1 */
    int saved_out, saved_err; /* what 1 and 2 were */
    FILE *fin, *fout;
    SCREEN *curses;
    bool ascii;
    struct term_roles look;
    struct screen shown; /* what the terminal has */
    bool know_shown;
    char *paste;
    size_t n_paste, cap_paste;
    bool pasting;
    bool resized;
};

/* Signal handlers have no argument, so what they need is the one file-level state of the screens:
 * set while a terminal is open, read by handlers only. */
static struct {
    int out;
    struct termios before;
    volatile sig_atomic_t open;
    int wake[2];
} hold = {.out = -1, .wake = {-1, -1}};

static const char restore_text[] =
    "\033[?1000;1006l\033[?2004l\033[?1l\033>\033[0m\033[?25h\033[?1049l";

static void on_crash(int sig)
{
    if (hold.open) {
        hold.open = 0;
        ssize_t n = write(hold.out, restore_text, sizeof restore_text - 1);
        (void)n;
        tcsetattr(hold.out, TCSANOW, &hold.before);
    }
    signal(sig, SIG_DFL);
    raise(sig);
}

static void on_ask(int sig)
{
    int saved = errno;
    char c = (char)sig;
    ssize_t n = write(hold.wake[1], &c, 1);
    (void)n;
    errno = saved;
}

static void install(void)
{
    static const int crash[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    static const int ask[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGTSTP};
    struct sigaction sa = {.sa_handler = on_crash, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&sa.sa_mask);
    for (size_t i = 0; i < sizeof crash / sizeof *crash; i++)
        sigaction(crash[i], &sa, NULL);
    sa.sa_handler = on_ask;
    sa.sa_flags = 0; /* poll must return */
    for (size_t i = 0; i < sizeof ask / sizeof *ask; i++)
        sigaction(ask[i], &sa, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- open and close ---- */

static void say(struct term *t, const char *text)
{
    ssize_t n = write(t->out, text, strlen(text));
    (void)n;
}

static int redirect(struct term *t, const char *log_path, struct err *e)
{
    int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log < 0)
        log = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (log < 0)
        return err_errno(e, "%s", log_path);
    t->saved_out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    t->saved_err = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    fflush(stdout);
    fflush(stderr);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    close(log);
    return 0;
}

static int open_curses(struct term *t, const char *name, const struct settings *settings,
                       struct err *e)
{
    t->fin = fdopen(dup(t->in), "r");
    t->fout = fdopen(dup(t->out), "w");
    if (!t->fin || !t->fout)
        return err_errno(e, "terminal");
    t->curses = newterm(name, t->fout, t->fin);
    if (!t->curses)
        return err_set(e, ERR_UNSUPPORTED,
                       "TERM=%s: this terminal is not known here; try "
                       "TERM=xterm, or the command line (mlathe --help)",
                       name);
    set_term(t->curses);
    set_escdelay(25);
    raw();
    noecho();
    nonl();
    keypad(stdscr, TRUE);
    nodelay(stdscr, TRUE);
    leaveok(stdscr, FALSE);
    define_key("\033[200~", PASTE_START);
    define_key("\033[201~", PASTE_END);
    if (settings->mouse && mousemask(BUTTON1_PRESSED | BUTTON4_PRESSED | BUTTON5_PRESSED, NULL))
        mouseinterval(0); /* a press is a press: nothing waits for a second one */
    term_roles_set(&t->look, settings);
    return 0;
}

int term_open(struct term **out, const char *log_path, const struct settings *settings,
              struct err *e)
{
    const char *name = getenv("TERM");
    *out = NULL;
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return err_set(e, ERR_UNSUPPORTED,
                       "the screens need a terminal on standard input and "
                       "output; without one use a subcommand (mlathe --help) or --script FILE");
    if (!name || !name[0] || strcmp(name, "dumb") == 0 || strcmp(name, "unknown") == 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "TERM=%s cannot show screens; set TERM (xterm-256color) "
                       "or use a subcommand (mlathe --help)",
                       name ? name : "");
    struct term *t = mem_calloc(1, sizeof *t);
    if (!t)
        return err_nomem(e, sizeof *t, "terminal");
    t->in = t->out = t->saved_out = t->saved_err = -1;
    setlocale(LC_CTYPE, ""); /* only this: numbers keep their point */
    const char *codes = nl_langinfo(CODESET);
    t->ascii = strcasecmp(codes, "UTF-8") != 0 && strcasecmp(codes, "utf8") != 0;
    t->ascii = t->ascii || settings->ascii;
    t->in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    t->out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    tcgetattr(t->out, &hold.before);
    hold.out = t->out;
    int rc = pipe2(hold.wake, O_CLOEXEC | O_NONBLOCK) ? err_errno(e, "pipe") : 0;
    if (rc == 0)
        rc = redirect(t, log_path, e);
    if (rc == 0)
        rc = open_curses(t, name, settings, e);
    if (rc) {
        term_close(t);
        return rc;
    }
    install(); /* after newterm, which installs handlers of its own */
    hold.open = 1;
    say(t, "\033[?2004h");
    *out = t;
    return 0;
}

void term_close(struct term *t)
{
    if (!t)
        return;
    if (t->curses) {
        say(t, "\033[?2004l");
        endwin();
        delscreen(t->curses);
    }
    hold.open = 0;
    for (int i = 0; i < 2; i++) {
        if (hold.wake[i] >= 0)
            close(hold.wake[i]);
        hold.wake[i] = -1;
    }
    if (t->fin)
        fclose(t->fin);
    if (t->fout)
        fclose(t->fout);
    fflush(stdout);
    if (t->saved_out >= 0)
        dup2(t->saved_out, STDOUT_FILENO);
    if (t->saved_err >= 0)
        dup2(t->saved_err, STDERR_FILENO);
    int fds[] = {t->in, t->out, t->saved_out, t->saved_err};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    screen_done(&t->shown);
    free(t->paste);
    free(t);
}

bool term_ascii(const struct term *t)
{
    return t->ascii;
}

void term_size(const struct term *t, int *rows, int *cols)
{
    (void)t;
    getmaxyx(stdscr, *rows, *cols);
}

int term_fd(const struct term *t)
{
    return t->in;
}

int term_signal_fd(const struct term *t)
{
    (void)t;
    return hold.wake[0];
}

int term_signal(struct term *t)
{
    char c;
    (void)t;
    return read(hold.wake[0], &c, 1) == 1 ? c : 0;
}

/* ---- keys ---- */

static void paste_add(struct term *t, wint_t c)
{
    char utf8[8] = {0};
    mbstate_t state = {0};
    size_t k = wcrtomb(utf8, (wchar_t)c, &state);
    if (k == (size_t)-1 || t->n_paste + k >= PASTE_MAX ||
        !mem_grow((void **)&t->paste, &t->cap_paste, t->n_paste + k + 1, 1))
        return;
    memcpy(t->paste + t->n_paste, utf8, k);
    t->n_paste += k;
    t->paste[t->n_paste] = 0;
}

/* 0: nothing that means anything here. */
static int mouse_key(size_t *where)
{
    MEVENT m;
    if (getmouse(&m) != OK)
        return 0;
    *where = (size_t)m.y << 16 | (size_t)m.x;
    return m.bstate & BUTTON4_PRESSED   ? UI_WHEEL_UP
           : m.bstate & BUTTON5_PRESSED ? UI_WHEEL_DOWN
           : m.bstate & BUTTON1_PRESSED ? TERM_CLICK
                                        : 0;
}

/* Alt sends ESC and the key in one go: what follows at once belongs to it. So do keys that the
 * terminal's description does not know: multiplexers are often run under another terminal's name.
 */
static int after_escape(void)
{
    wint_t c;
    char text[16];
    size_t n = 0;
    int rc = get_wch(&c);
    if (rc == ERR)
        return UI_ESC;
    if (rc == KEY_CODE_YES)
        return term_keys_code((int)c) | UI_ALT;
    int alone = (c == 127 ? UI_BACKSPACE : (int)c) | UI_ALT;
    text[n++] = c < 127 ? (char)c : '?';
    for (text[n] = 0; term_keys_goes_on(text); text[n] = 0) {
        if (get_wch(&c) != OK)
            return n == 1 ? alone : 0;
        if (n < sizeof text - 1)
            text[n++] = c < 127 ? (char)c : '~';
        else
            text[n - 1] = c < 127 ? (char)c : '~'; /* too long for any that is known */
    }
    return n == 1 ? alone : term_keys_sequence(text);
}

int term_key(struct term *t, const char **paste, size_t *n)
{
    wint_t c;
    for (;;) {
        int rc = get_wch(&c);
        if (rc == ERR) {
            struct pollfd p = {t->in, POLLIN, 0};
            return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)) ? -1 : 0;
        }
        if (rc == KEY_CODE_YES && c == PASTE_START) {
            t->pasting = true;
            t->n_paste = 0;
        } else if (rc == KEY_CODE_YES && c == PASTE_END) {
            t->pasting = false;
            *paste = t->n_paste ? t->paste : "";
            *n = t->n_paste;
            return TERM_PASTE;
        } else if (t->pasting) {
            if (rc != KEY_CODE_YES)
                paste_add(t, c);
        } else if (rc == KEY_CODE_YES) {
            int key = c == KEY_MOUSE ? mouse_key(n) : term_keys_code((int)c);
            if (key)
                return key;
        } else if (c == UI_ESC) {
            int key = after_escape();
            if (key)
                return key;
        } else if (c) {
            return c == 127 ? UI_BACKSPACE : (int)c;
        }
    }
}

void term_suspend(struct term *t)
{
    say(t, "\033[?2004l");
    def_prog_mode();
    endwin();
    signal(SIGTSTP, SIG_DFL);
    kill(getpid(), SIGTSTP);
    install();
    reset_prog_mode();
    refresh();
    say(t, "\033[?2004h");
    t->know_shown = false;
}

/* ---- painting ---- */

static bool same_cell(const struct cell *a, const struct cell *b)
{
    return a->role == b->role && a->width == b->width && strcmp(a->text, b->text) == 0;
}

/* Text of a cell as wide characters; what the C library would show with another width than we do
 * becomes a plain mark, so that columns never shift. */
static int widen(const struct cell *c, wchar_t *out)
{
    mbstate_t state = {0};
    const char *s = c->text;
    int n = 0, width = 0;
    while (*s && n < CLUSTER_BYTES) {
        size_t k = mbrtowc(&out[n], s, CLUSTER_BYTES, &state);
        if (k == 0 || k > CLUSTER_BYTES)
            break;
        int w = wcwidth(out[n]);
        if (w < 0)
            break;
        width += w;
        n++;
        s += k;
    }
    if (*s == 0 && width == c->width)
        return n;
    out[0] = L'?';
    out[1] = L' ';
    return c->width == 2 ? 2 : 1;
}

/* One run of cells, painted in one role. */
static void paint_run(struct term *t, const struct screen *s, int row, int from, int to,
                      enum role role)
{
    wchar_t text[512];
    const struct cell *cell = &s->cell[(size_t)row * (size_t)s->cols];
    attr_set(t->look.attr[role], t->look.pair[role], NULL);
    move(row, from);
    int n = 0;
    for (int x = from; x < to; x++) {
        if (n + CLUSTER_BYTES >= (int)(sizeof text / sizeof *text)) {
            addnwstr(text, n);
            n = 0;
            move(row, x);
        }
        if (cell[x].width > 0)
            n += widen(&cell[x], text + n);
    }
    addnwstr(text, n);
}

static bool is_paper(const struct term *t, const struct cell *c)
{
    return c->text[0] == ' ' && !c->text[1] && t->look.paper[c->role];
}

/* Changing colours costs a terminal more bytes than a few blanks, which look alike in many roles:
 * short gaps are painted with what is before them, long ones are left to erasing. */
#define GAP 8

static int run_end(const struct term *t, const struct cell *cell, int from, int to, enum role *role)
{
    int end = from, gap = from;
    while (gap < to && is_paper(t, &cell[gap]))
        gap++;
    if (gap > from) {
        *role = ROLE_NORMAL;
        return gap;
    }
    *role = cell[from].role;
    while (end < to) {
        for (gap = end; gap < to && gap - end <= GAP && is_paper(t, &cell[gap]);)
            gap++;
        if (gap > end && (!t->look.paper[*role] || gap - end > GAP || gap == to))
            break;
        if (gap < to && cell[gap].role != *role)
            return t->look.paper[*role] ? gap : end;
        end = gap + 1;
    }
    return end;
}

static void paint_row(struct term *t, const struct screen *s, int row, bool all)
{
    const struct cell *now = &s->cell[(size_t)row * (size_t)s->cols];
    const struct cell *old = &t->shown.cell[(size_t)row * (size_t)s->cols];
    int from = 0, to = s->cols;
    while (!all && from < to && same_cell(&now[from], &old[from]))
        from++;
    while (!all && to > from && same_cell(&now[to - 1], &old[to - 1]))
        to--;
    while (from > 0 && from < to && now[from].width == 0)
        from--;
    while (from < to) {
        enum role role;
        int end = run_end(t, now, from, to, &role);
        paint_run(t, s, row, from, end, role);
        from = end;
    }
}

void term_paint(struct term *t, const struct screen *s, bool all)
{
    int rows, cols;
    getmaxyx(stdscr, rows, cols);
    if (rows != s->rows || cols != s->cols)
        return; /* a resize is on its way */
    if (t->shown.rows != s->rows || t->shown.cols != s->cols) {
        if (!t->shown.cell ? screen_init(&t->shown, s->rows, s->cols, s->ascii, NULL) != 0
                           : !screen_resize(&t->shown, s->rows, s->cols))
            return;
        t->know_shown = false;
    }
    all = all || !t->know_shown;
    if (all)
        clear();
    for (int y = 0; y < s->rows; y++)
        paint_row(t, s, y, all);
    memcpy(t->shown.cell, s->cell, (size_t)s->rows * (size_t)s->cols * sizeof *s->cell);
    t->know_shown = true;
    curs_set(s->cursor_row >= 0);
    if (s->cursor_row >= 0)
        move(s->cursor_row, s->cursor_col);
    refresh();
}
