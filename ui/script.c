/* Plays a script against the app. Refuses what it cannot read, naming the line. */
#include "ui/script.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "ui/app.h"
#include "sessions/clock.h"

struct player {
    struct app app;
    bool running;
    struct screen screen;
    const struct ui_options *options;
    bool clock_off, left;
    const char *path;
    int line;
};

static int fail(const struct player *p, struct err *e, const char *what)
{
    return err_set(e, ERR_ARG, "%s:%d: %s", p->path, p->line, what);
}

static int start(struct player *p, struct err *e)
{
    int rc = app_init(&p->app, p->options, e);
    p->running = true;
    p->app.clock_off = p->clock_off;
    p->app.options.rows = p->screen.rows;
    p->app.options.cols = p->screen.cols;
    return rc;
}

static void collect(struct player *p)
{
    worker_drain(p->app.worker);
    app_collect(&p->app);
    app_save(&p->app, false);
}

/* Gives the worker until then; returns early when idle is wanted and reached. */
static bool wait_until(struct player *p, double until, bool idle)
{
    for (;;) {
        collect(p);
        if (idle && !app_busy(&p->app)) {
            collect(p); /* what came between the two looks may have started something */
            if (!app_busy(&p->app))
                return true;
        }
        double left = until - clock_now();
        if (left <= 0)
            return !idle;
        struct pollfd f = {worker_fd(p->app.worker), POLLIN, 0};
        poll(&f, 1, left > 0.05 ? 50 : (int)(left * 1000) + 1);
    }
}

static void press(struct player *p, int key)
{
    app_key(&p->app, key);
    collect(p);
    /* Views keep scroll positions in bounds as they draw. */
    app_draw(&p->app, &p->screen);
    p->left = p->left || p->app.quit;
}

static int cmd_key(struct player *p, char *rest, struct err *e)
{
    for (char *save, *word = strtok_r(rest, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        int key = keys_parse(word);
        if (!key)
            return fail(p, e, "no such key");
        if (!p->left)
            press(p, key);
    }
    return OK;
}

static int cmd_type(struct player *p, const char *rest)
{
    while (*rest && !p->left) {
        unsigned char c = (unsigned char)*rest;
        int bytes = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
        char text[8] = {0};
        for (int i = 0; i < bytes && rest[i]; i++)
            text[i] = rest[i];
        press(p, strcmp(text, " ") == 0 ? ' ' : keys_parse(text));
        rest += strlen(text);
    }
    return OK;
}

static int cmd_paste(struct player *p, char *rest)
{
    char *to = rest;
    for (const char *c = rest; *c; c++) {
        unsigned byte;
        if (c[0] == '\\' && c[1] == 'n') {
            *to++ = '\n';
            c++;
        } else if (c[0] == '\\' && c[1] == 'x' && sscanf(c + 2, "%2x", &byte) == 1 && byte) {
            *to++ = (char)byte;
            c += 3;
        } else {
            *to++ = *c;
        }
    }
    *to = 0;
    app_paste(&p->app, rest, (size_t)(to - rest));
    return OK;
}

static int cmd_size(struct player *p, const char *rest, struct err *e)
{
    int cols, rows;
    if (sscanf(rest, "%dx%d", &cols, &rows) != 2 || cols < 1 || rows < 1 || cols > 1000 ||
        rows > 1000 || !screen_resize(&p->screen, rows, cols))
        return fail(p, e, "size COLUMNSxROWS");
    return OK;
}

/* Until nothing waits to be saved, and what was put is on disk. */
static bool wait_saved(struct player *p, double until)
{
    while (p->app.save_due_sec != 0 && p->app.lock >= 0) {
        if (clock_now() > until)
            return false;
        wait_until(p, clock_now() + 0.02, false);
    }
    saver_flush(p->app.saver);
    collect(p);
    return true;
}

static int cmd_wait(struct player *p, const char *rest, struct err *e)
{
    double sec = 120;
    if (strncmp(rest, "idle", 4) == 0) {
        sscanf(rest + 4, " %lf", &sec);
        if (!wait_until(p, clock_now() + sec, true))
            return fail(p, e, "still busy");
        return OK;
    }
    if (strncmp(rest, "saved", 5) == 0) {
        sscanf(rest + 5, " %lf", &sec);
        return wait_saved(p, clock_now() + sec) ? OK : fail(p, e, "still not saved");
    }
    if (sscanf(rest, "%lf", &sec) != 1 || !(sec >= 0 && sec <= 3600))
        return fail(p, e, "wait idle [SEC], wait saved [SEC], or wait SEC");
    wait_until(p, clock_now() + sec, false);
    return OK;
}

static int cmd_shot(struct player *p, const char *rest, struct err *e)
{
    char name[64];
    bool roles = strstr(rest, " roles") != NULL;
    if (sscanf(rest, "%63s", name) != 1)
        return fail(p, e, "shot NAME");
    collect(p);
    app_draw(&p->app, &p->screen);
    printf("--- %s %dx%d\n", name, p->screen.cols, p->screen.rows);
    for (int y = 0; y < p->screen.rows; y++) {
        char *row = screen_row(&p->screen, y);
        if (roles)
            for (int x = 0; x < p->screen.cols; x++)
                putchar("0123456789abcdefghijklmnop"[p->screen.cell[y * p->screen.cols + x].role]);
        else
            fputs(row ? row : "", stdout);
        putchar('\n');
        free(row);
    }
    puts("---");
    return fflush(stdout) ? err_errno(e, "standard output") : OK;
}

static int restart(struct player *p, struct err *e)
{
    app_done(&p->app);
    p->running = false;
    p->left = false;
    return start(p, e);
}

static int play(struct player *p, char *line, struct err *e)
{
    char *end = line + strlen(line);
    while (end > line && (end[-1] == '\r' || end[-1] == '\n'))
        *--end = 0;
    if (!line[0] || line[0] == '#')
        return OK;
    char *rest = line + strcspn(line, " ");
    if (*rest)
        *rest++ = 0;
    if (strcmp(line, "restart") == 0)
        return restart(p, e);
    if (p->left)
        return fail(p, e, "the program was left before this line");
    if (strcmp(line, "key") == 0)
        return cmd_key(p, rest, e);
    if (strcmp(line, "type") == 0)
        return cmd_type(p, rest);
    if (strcmp(line, "paste") == 0)
        return cmd_paste(p, rest);
    if (strcmp(line, "size") == 0)
        return cmd_size(p, rest, e);
    if (strcmp(line, "wait") == 0)
        return cmd_wait(p, rest, e);
    if (strcmp(line, "shot") == 0)
        return cmd_shot(p, rest, e);
    if (strcmp(line, "ascii") == 0) {
        p->screen.ascii = strcmp(rest, "on") == 0;
        return OK;
    }
    if (strcmp(line, "clock") == 0) {
        p->app.clock_off = p->clock_off = strcmp(rest, "off") == 0;
        return OK;
    }
    if (strcmp(line, "quit") == 0) {
        p->left = true;
        return OK;
    }
    return fail(p, e, "no such command");
}

int script_run(const struct ui_options *o, struct err *e)
{
    struct player p = {.options = o, .path = o->script};
    char *text = NULL;
    int rc = file_read(o->script, (size_t)1 << 20, &text, NULL, e);
    if (rc == OK)
        rc = screen_init(&p.screen, o->rows > 0 ? o->rows : 24, o->cols > 0 ? o->cols : 80, false,
                         e);
    if (rc == OK)
        rc = start(&p, e);
    for (char *line = text, *next; rc == OK && line && *line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        else
            next = line + strlen(line);
        p.line++;
        rc = play(&p, line, e);
    }
    if (p.running)
        app_done(&p.app);
    screen_done(&p.screen);
    free(text);
    return rc;
}
