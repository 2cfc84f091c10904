/* From a lost device to the CPU. The model's weights are in its file and statistics and conversion
 * in host memory, so only engines have to be made again. */
#include "sessions/workspace_device.h"

#include <stdio.h>
#include <string.h>

#include "sessions/workspace_private.h"

bool workspace_device_lost(struct workspace *w)
{
    struct backend *b = w->backend;
    /* Twice: the first call may bring up a fault of one operation, which another outlives. */
    return b->ops->sync(b, NULL) == ERR_DEVICE && b->ops->sync(b, NULL) == ERR_DEVICE;
}

int workspace_device_reason(struct workspace *w, int rc, struct err *e)
{
    struct err why = {0};
    if (!rc || rc == ERR_DEVICE || w->backend->ops->sync(w->backend, &why) != ERR_DEVICE)
        return rc;
    return err_set(e, ERR_DEVICE, "%s", why.text);
}

bool workspace_may_leave(const struct workspace *w)
{
    return (!w->opt.device || !strcmp(w->opt.device, "auto")) &&
           strcmp(w->backend->ops->name, "cpu") != 0;
}

int workspace_leave_device(struct workspace *w, const char *why, struct err *e)
{
    struct backend_options o = {.threads = w->opt.threads,
                                .background = w->opt.background,
                                .exact = w->opt.exact,
                                .copies = (size_t)(w->memory / 2)};
    struct workspace fresh = *w;
    fresh.backend = NULL;
    fresh.base_engine = fresh.conv_engine = NULL;
    int rc = backend_open(&fresh.backend, "cpu", &o, e);
    if (!rc && w->base)
        rc = engine_new(&fresh.base_engine, w->base, fresh.backend, NULL, e);
    if (!rc && w->conv)
        rc = workspace_converted_engine(&fresh, w->conv, &fresh.conv_engine, e);
    if (rc) {
        engine_free(fresh.base_engine);
        backend_close(fresh.backend);
        return rc;
    }
    snprintf(fresh.backend->note, sizeof fresh.backend->note, "%s", why);
    engine_free(w->conv_engine);
    engine_free(w->base_engine);
    backend_close(w->backend);
    *w = fresh;
    return OK;
}
