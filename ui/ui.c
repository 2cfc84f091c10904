/* The event loop on a terminal: poll {terminal, wake pipe, signals}; after every return drain the
 * keys, then drain the pipe, then take the batch. A key is painted at once, streams at most thirty
 * times a second, and when nothing happens nothing runs. */
#include "ui/ui.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "ui/app.h"
#include "ui/lines.h"
#include "ui/script.h"
#include "ui/settings.h"
#include "ui/term.h"
#include "sessions/clock.h"

#define FRAME_SEC 0.033
#define LOG_MAX (1 << 20)

struct loop {
    struct app *app;
    struct term *term;
    struct screen screen;
    bool stale; /* something changed that is not painted */
    double painted_sec;
    int signal; /* that ended the program */
    bool gone;  /* the terminal */
};

static void resize(struct loop *l)
{
    int rows, cols;
    term_size(l->term, &rows, &cols);
    screen_resize(&l->screen, rows, cols);
    l->app->redraw_all = true;
}

/* True when a key came. */
static bool take_keys(struct loop *l)
{
    const char *paste = NULL;
    size_t n = 0;
    bool any = false;
    for (int key; (key = term_key(l->term, &paste, &n)) != 0; any = true) {
        if (key < 0) {
            l->gone = l->app->quit = true;
            break;
        }
        if (key == UI_RESIZE)
            resize(l);
        else if (key == TERM_PASTE)
            app_paste(l->app, paste, n);
        else if (key == TERM_CLICK)
            app_click(l->app, (int)(n >> 16), (int)(n & 0xffff));
        else
            app_key(l->app, key);
        if (l->app->quit || l->app->suspend)
            break;
    }
    return any;
}

static void take_signals(struct loop *l)
{
    for (int sig; (sig = term_signal(l->term)) != 0;) {
        if (sig == SIGTSTP) {
            l->app->suspend = true;
        } else {
            l->signal = sig;
            l->app->quit = true;
        }
    }
}

static void paint(struct loop *l)
{
    app_draw(l->app, &l->screen);
    term_paint(l->term, &l->screen, l->app->redraw_all);
    l->app->redraw_all = false;
    l->stale = false;
    l->painted_sec = clock_now();
}

/* How long poll may sleep: until the next frame of a stream, or the next save; else for ever. */
static int patience(struct loop *l)
{
    double frame = l->stale ? l->painted_sec + FRAME_SEC - clock_now() : -1;
    double save = app_save(l->app, false);
    if (l->stale && frame <= 0)
        return 0;
    double wait = !l->stale ? save : save < 0 || frame < save ? frame : save;
    return wait < 0 ? -1 : (int)(wait * 1000) + 1;
}

static void run(struct loop *l)
{
    struct app *a = l->app;
    struct pollfd f[3] = {{term_fd(l->term), POLLIN, 0},
                          {worker_fd(a->worker), POLLIN, 0},
                          {term_signal_fd(l->term), POLLIN, 0}};
    while (!a->quit) {
        poll(f, 3, patience(l));
        take_signals(l);
        bool key = take_keys(l);
        if (a->suspend) {
            a->suspend = false;
            app_save(a, true);
            term_suspend(l->term);
            resize(l);
            key = true;
        }
        /* The key first: taking the batch may wait for a worker that lost its processor while it
         * held the lock, and a key must not. */
        if (key)
            paint(l);
        /* Not by revents: a wake that came while a key was painted is gone with this. */
        if (worker_drain(a->worker)) {
            app_collect(a);
            l->stale = true;
        }
        if (l->stale && clock_now() - l->painted_sec >= FRAME_SEC)
            paint(l);
    }
}

static int on_terminal(const struct ui_options *o, struct err *e)
{
    struct app *a = mem_calloc(1, sizeof *a);
    struct loop l = {.app = a};
    struct stat st;
    int rows, cols;
    if (!a)
        return err_nomem(e, sizeof *a, "app");
    struct paths paths;
    int rc = paths_init(&paths, e);
    char *log = rc ? NULL : path_join(paths.state, "mlathe.log");
    if (rc == OK && file_mkdirs(paths.state, NULL) == OK && log && stat(log, &st) == 0 &&
        st.st_size > LOG_MAX)
        rc = truncate(log, 0) ? OK : OK; /* a log that cannot be cut is only long */
    if (rc == OK)
        rc = term_open(&l.term, log ? log : "/dev/null", o->settings, e);
    if (rc == OK) {
        rc = app_init(a, o, e);
        if (rc == OK) {
            term_size(l.term, &rows, &cols);
            rc = screen_init(&l.screen, rows, cols, term_ascii(l.term), e);
        }
        if (rc == OK) {
            paint(&l);
            run(&l);
        }
        /* The terminal first: stopping a long step must not leave the user before a dead screen. */
        term_close(l.term);
        app_done(a);
    }
    screen_done(&l.screen);
    free(log);
    paths_done(&paths);
    free(a);
    if (rc == OK && (l.signal == SIGTERM || l.signal == SIGHUP || l.signal == SIGINT))
        return err_set(e, ERR_CANCELLED, "ended by signal %d; everything is saved", l.signal);
    return rc;
}

int ui_run(const struct ui_options *options, struct err *e)
{
    struct ui_options o = *options;
    struct settings settings = settings_default();
    struct err wrong = {0};
    struct paths paths;
    if (!o.settings) {
        int rc = paths_init(&paths, e);
        if (rc)
            return rc;
        settings_load(&settings, paths.config, &wrong); /* a wrong line is said, not fatal */
        paths_done(&paths);
        o.settings = &settings;
        o.note = wrong.status ? wrong.text : o.note;
    }
    return o.lines ? lines_run(&o, e) : o.script ? script_run(&o, e) : on_terminal(&o, e);
}
