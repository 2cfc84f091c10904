/* The app without a screen, for tests: started on a model, settled, pressed, left. */
#include "tests/support_app.h"

#include <poll.h>

#include "tests/support.h"

void test_app_settle(struct app *a)
{
    for (int i = 0; i < 60000; i++) {
        worker_drain(a->worker);
        app_collect(a);
        if (!app_busy(a))
            break;
        struct pollfd f = {worker_fd(a->worker), POLLIN, 0};
        poll(&f, 1, 10);
    }
    worker_drain(a->worker);
    app_collect(a);
}

struct app *test_app_start(const char *model, const char *device)
{
    struct app *a = mem_calloc(1, sizeof *a);
    struct ui_options o = {.model = model, .device = device, .threads = 1, .rows = 24, .cols = 80};
    struct err e = {0};
    CHECK_OK(app_init(a, &o, &e), e);
    test_app_settle(a);
    return a;
}

void test_app_leave(struct app *a)
{
    app_done(a);
    free(a);
}

void test_app_press(struct app *a, const char *keys)
{
    char text[200], *save;
    snprintf(text, sizeof text, "%s", keys);
    for (char *k = strtok_r(text, " ", &save); k; k = strtok_r(NULL, " ", &save))
        app_key(a, keys_parse(k));
}
