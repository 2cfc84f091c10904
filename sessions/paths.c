/* XDG folders. Creates nothing. */
#include "sessions/paths.h"

#include <stdlib.h>

#include "core/file.h"

static char *folder(const char *home, const char *var, const char *fallback)
{
    const char *xdg = getenv(var);
    if (xdg && xdg[0] == '/')
        return path_join(xdg, "mlathe");
    return mem_printf("%s/%s/mlathe", home, fallback);
}

int paths_init(struct paths *p, struct err *e)
{
    const char *own = getenv("MLATHE_HOME"), *home = getenv("HOME");
    *p = (struct paths){0};
    if (own && own[0]) {
        p->config = path_join(own, "config");
        p->data = path_join(own, "data");
        p->state = path_join(own, "state");
        p->cache = path_join(own, "cache");
    } else if (home && home[0] == '/') {
        p->config = folder(home, "XDG_CONFIG_HOME", ".config");
        p->data = folder(home, "XDG_DATA_HOME", ".local/share");
        p->state = folder(home, "XDG_STATE_HOME", ".local/state");
        p->cache = folder(home, "XDG_CACHE_HOME", ".cache");
    } else {
        return err_set(e, ERR_ARG, "HOME is not set: set HOME or MLATHE_HOME");
    }
    if (!p->config || !p->data || !p->state || !p->cache) {
        paths_done(p);
        return err_nomem(e, 4096, "paths");
    }
    return OK;
}

void paths_done(struct paths *p)
{
    free(p->config);
    free(p->data);
    free(p->state);
    free(p->cache);
    *p = (struct paths){0};
}
