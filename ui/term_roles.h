/* term_roles: what each role looks like on a terminal of many, eight or no colours. */
#ifndef MLATHE_UI_TERM_ROLES_H
#define MLATHE_UI_TERM_ROLES_H

#include "ui/screen.h"
#include "ui/settings.h"

#include <curses.h> /* last: it defines OK */

struct term_roles {
    bool colour;
    attr_t attr[ROLE_COUNT];
    short pair[ROLE_COUNT];
    bool paper[ROLE_COUNT]; /* a blank of that role is nothing but background */
};
/* t zeroed; behind curses' start. Colours as the settings, NO_COLOR and CLICOLOR say. */
void term_roles_set(struct term_roles *t, const struct settings *settings);

#endif
