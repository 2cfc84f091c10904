/* The app in lines. Refuses words that are no keys, naming them. */
#include "ui/lines.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sessions/clock.h"
#include "ui/app.h"

enum { ROWS = 60, COLS = 76, TELL_SEC = 10 };

struct reader {
    struct app app;
    struct screen screen;
    char *said[ROWS]; /* what each row said last */
    char line[65536]; /* of input, as far as it has come */
    size_t n;
    bool busy, over, ended; /* ended: no more input comes */
    double told_sec;
};

/* Frames, plots and bars: nothing that can be read aloud. */
static bool is_drawing(const char *cluster)
{
    const unsigned char *c = (const unsigned char *)cluster;
    bool box = c[0] == 0xe2 && (c[1] == 0x94 || c[1] == 0x95);             /* U+2500 to U+257F */
    bool block = c[0] == 0xe2 && c[1] == 0x96 && c[2] < 0xa0;              /* to U+259F */
    return box || block || (c[0] == 0xe2 && c[1] >= 0xa0 && c[1] <= 0xa3); /* braille */
}

/* A row in words: runs of blanks are one, three or more a comma's pause. */
static char *words_of(const struct screen *s, int row)
{
    char *out = mem_calloc((size_t)s->cols * (CLUSTER_BYTES + 2) + 1, 1);
    size_t n = 0;
    int blanks = 0;
    for (int x = 0; out && x < s->cols; x++) {
        const struct cell *c = &s->cell[row * s->cols + x];
        if (c->width == 0)
            continue;
        if (c->text[0] == ' ' || is_drawing(c->text)) {
            blanks++;
            continue;
        }
        if (n && blanks) {
            memcpy(out + n, ", ", 3);
            if (blanks < 3)
                memcpy(out + n, " ", 2);
            n += blanks < 3 ? 1 : 2;
        }
        blanks = 0;
        memcpy(out + n, c->text, strlen(c->text));
        n += strlen(c->text);
    }
    return out;
}

/* Says the rows that are new; all: every row. The last row only when it is a message or a question:
 * the hints in it are said by ?. */
static void say(struct reader *p, bool all)
{
    struct screen *s = &p->screen;
    app_draw(&p->app, s);
    for (int y = s->rows - 3; y < s->rows && p->app.message[0];
         y++) { /* said again if it is again */
        free(p->said[y]);
        p->said[y] = NULL;
    }
    for (int y = 0; y < s->rows; y++) {
        bool hints = y == s->rows - 1 && !p->app.message[0] && !p->app.ask.what;
        char *now = words_of(s, y);
        if (now && now[0] && !hints && (all || !p->said[y] || strcmp(now, p->said[y]) != 0))
            puts(now);
        free(p->said[y]);
        p->said[y] = now;
    }
    fflush(stdout);
    p->told_sec = clock_now();
}

static void press(struct reader *p, int key)
{
    app_key(&p->app, key);
    worker_drain(p->app.worker);
    app_collect(&p->app);
    app_draw(&p->app, &p->screen); /* views keep what scrolls in bounds */
    p->over = p->over || p->app.quit;
}

/* Every word must be a key before any is pressed. */
static void keys(struct reader *p, const char *words)
{
    for (int go = 0; go < 2; go++)
        for (const char *at = words; *(at += strspn(at, " \t")) && !p->over;) {
            char word[32];
            size_t n = strcspn(at, " \t");
            snprintf(word, sizeof word, "%.*s", (int)(n < 31 ? n : 31), at);
            int key = keys_parse(word);
            if (!key) {
                printf("%s is no key: ? lists the keys\n", word);
                return;
            }
            if (go)
                press(p, key);
            at += n;
        }
}

static void take_line(struct reader *p, const char *line)
{
    bool text = (app_context(&p->app) & IN_TEXT) != 0;
    if (!strcmp(line, "quit")) {
        p->over = true;
        return;
    }
    if (!line[0]) {
        say(p, true);
        return;
    }
    if (!strncmp(line, "key ", 4)) {
        keys(p, line + 4);
    } else if (text) {
        if (p->app.ask.what) /* a whole answer, instead of the one that is offered */
            textbuf_clear(&p->app.ask.text);
        app_paste(&p->app, line, strlen(line));
        press(p, UI_ENTER);
    } else {
        keys(p, line);
    }
    p->app.suspend = false;
    say(p, false);
}

/* More of standard input; its end stands for a last line. */
static void read_more(struct reader *p)
{
    ssize_t got = read(STDIN_FILENO, p->line + p->n, sizeof p->line - 1 - p->n);
    p->ended = got <= 0;
    p->n += got > 0 ? (size_t)got : 0;
    if (p->ended && p->n && p->line[p->n - 1] != '\n')
        p->line[p->n++] = '\n';
    if (p->n == sizeof p->line - 1 && !memchr(p->line, '\n', p->n))
        p->n = 0; /* nothing that long is a line */
}

/* Acts on the first line that has come; false when there is none. */
static bool next_line(struct reader *p)
{
    char *end = memchr(p->line, '\n', p->n);
    if (!end)
        return false;
    size_t used = (size_t)(end - p->line) + 1;
    *end = 0;
    if (end > p->line && end[-1] == '\r')
        end[-1] = 0;
    take_line(p, p->line);
    p->n -= used;
    memmove(p->line, p->line + used, p->n);
    return true;
}

static void collect(struct reader *p)
{
    worker_drain(p->app.worker);
    app_collect(&p->app);
    bool busy = app_busy(&p->app);
    /* What was waited for is said at once, what goes on from time to time. */
    if ((p->busy && !busy) || (busy && clock_now() - p->told_sec > TELL_SEC))
        say(p, false);
    p->busy = busy;
}

/* Lines from a pipe wait until what the line before asked for is done; a person need not. */
static void run(struct reader *p)
{
    struct pollfd f[2] = {{STDIN_FILENO, POLLIN, 0}, {worker_fd(p->app.worker), POLLIN, 0}};
    bool person = isatty(STDIN_FILENO);
    while (!p->over) {
        collect(p);
        bool may = person || !p->busy;
        if (may && next_line(p))
            continue;
        if (may && p->ended)
            return;
        double save = app_save(&p->app, false);
        f[0].fd = p->ended || !may ? -1 : STDIN_FILENO;
        poll(f, 2, save < 0 ? (p->busy ? 1000 : -1) : (int)(save * 1000) + 1);
        if (f[0].fd >= 0 && f[0].revents)
            read_more(p);
    }
}

int lines_run(const struct ui_options *o, struct err *e)
{
    struct reader *p = mem_calloc(1, sizeof *p);
    if (!p)
        return err_nomem(e, sizeof *p, "the screens");
    int rc = screen_init(&p->screen, ROWS, COLS, false, e);
    p->screen.plain = true;
    if (rc == OK) {
        rc = app_init(&p->app, o, e);
        if (rc == OK) {
            p->app.clock_off = false;
            say(p, true);
            puts("? lists the keys; an empty line says the screen again; quit leaves");
            fflush(stdout);
            run(p);
        }
        app_done(&p->app);
    }
    for (int y = 0; y < ROWS; y++)
        free(p->said[y]);
    screen_done(&p->screen);
    free(p);
    return rc;
}
