/* settings: what a user may choose for good, in one commented file (CONFIG/settings, which `mlathe
 * paths` names). Lines are "name = value"; # begins a comment. */
#ifndef MLATHE_UI_SETTINGS_H
#define MLATHE_UI_SETTINGS_H

#include "core/kvmem.h"
#include "ui/keys.h"

enum theme { THEME_DARK, THEME_LIGHT, THEME_MONO, THEME_CONTRAST, THEME_COUNT };
struct settings {
    enum theme theme;
    bool ascii;       /* borders and plots in ASCII, whatever the locale says */
    bool mouse;       /* the wheel moves, a click selects; else the terminal keeps it */
    enum dtype cache; /* of the chats */
    struct keymap keys;
};
/* What holds where nothing is said. */
struct settings settings_default(void);
/* The values of text; unknown names and values are refused with where (a path) and the line. What
 * was said before the refusal counts. */
int settings_parse(struct settings *s, const char *text, const char *where, struct err *e);
/* Reads the file; where there is none, writes one that says everything in comments. */
int settings_load(struct settings *s, const char *config_dir, struct err *e);
/* Whether to use colours: NO_COLOR, CLICOLOR_FORCE, CLICOLOR, in this order, then the theme. Values
 * as getenv gives them. */
bool settings_colour(const struct settings *s, const char *no_color, const char *force,
                     const char *clicolor);
char *settings_path(const char *config_dir); /* fresh memory */

#endif
