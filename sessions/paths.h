/* paths: where mlathe keeps things (XDG base directories; MLATHE_HOME overrides all four). */
#ifndef MLATHE_SESSIONS_PATHS_H
#define MLATHE_SESSIONS_PATHS_H

#include "core/base.h"

struct paths {
    char *config, *data, *state, *cache; /* absolute folders, not necessarily existing */
};
int paths_init(struct paths *p, struct err *e);
void paths_done(struct paths *p);

#endif
