/* Roles as attributes and colours of the terminal. */
#include "ui/term_roles.h"

#include <stdlib.h>

/* Where a colour tells, bold does not: it can only be left by resetting everything, and frames of
 * plots between borders would cost a quarter more bytes. */
static const struct {
    enum role role;
    attr_t mono;    /* without colours */
    attr_t attr;    /* with colours */
    short fg8, bg8; /* -1: the terminal's own */
    short fg256, bg256;
} roles[] = {
    {ROLE_HEAD, A_REVERSE, A_BOLD, COLOR_WHITE, COLOR_BLUE, 255, 24},
    {ROLE_FOOT, A_NORMAL, A_NORMAL, -1, -1, 250, -1},
    {ROLE_KEY, A_BOLD, A_BOLD, COLOR_CYAN, -1, 80, -1},
    {ROLE_DIM, A_DIM, A_NORMAL, -1, -1, 246, -1},
    {ROLE_TITLE, A_BOLD, A_BOLD, -1, -1, -1, -1},
    {ROLE_BORDER, A_NORMAL, A_NORMAL, COLOR_BLUE, -1, 67, -1},
    {ROLE_FOCUS, A_BOLD, A_NORMAL, COLOR_CYAN, -1, 80, -1},
    {ROLE_SELECTED, A_REVERSE, A_BOLD, COLOR_BLACK, COLOR_CYAN, 16, 80},
    {ROLE_GOOD, A_NORMAL, A_NORMAL, COLOR_GREEN, -1, 114, -1},
    {ROLE_WARN, A_BOLD, A_BOLD, COLOR_YELLOW, -1, 221, -1},
    {ROLE_BAD, A_BOLD | A_UNDERLINE, A_BOLD, COLOR_RED, -1, 203, -1},
    {ROLE_BAR, A_NORMAL, A_NORMAL, COLOR_CYAN, -1, 73, -1},
    {ROLE_CURVE, A_BOLD, A_NORMAL, COLOR_CYAN, -1, 80, -1},
    {ROLE_CUT, A_BOLD, A_NORMAL, COLOR_YELLOW, -1, 221, -1},
    {ROLE_USER, A_BOLD, A_BOLD, COLOR_GREEN, -1, 114, -1},
    {ROLE_DIFFERS, A_REVERSE, A_REVERSE, COLOR_YELLOW, -1, 221, -1},
    {ROLE_LOST1, A_UNDERLINE, A_NORMAL, COLOR_YELLOW, -1, 229, -1},
    {ROLE_LOST2, A_BOLD | A_UNDERLINE, A_UNDERLINE, COLOR_YELLOW, -1, 215, -1},
    {ROLE_LOST3, A_REVERSE, A_REVERSE, COLOR_RED, -1, 203, -1},
};

/* Where a theme differs from the table: on light paper yellow and pale tones cannot be read; strong
 * contrast keeps to the terminal's own colours, bold. */
static const struct {
    enum theme theme;
    enum role role;
    short fg8, fg256, bg256;
} changes[] = {
    {THEME_LIGHT, ROLE_HEAD, COLOR_WHITE, 231, 24},
    {THEME_LIGHT, ROLE_FOOT, -1, 238, -1},
    {THEME_LIGHT, ROLE_KEY, COLOR_BLUE, 25, -1},
    {THEME_LIGHT, ROLE_DIM, -1, 242, -1},
    {THEME_LIGHT, ROLE_BORDER, COLOR_BLUE, 67, -1},
    {THEME_LIGHT, ROLE_FOCUS, COLOR_BLUE, 25, -1},
    {THEME_LIGHT, ROLE_SELECTED, COLOR_BLACK, 231, 25},
    {THEME_LIGHT, ROLE_GOOD, COLOR_GREEN, 28, -1},
    {THEME_LIGHT, ROLE_WARN, COLOR_MAGENTA, 130, -1},
    {THEME_LIGHT, ROLE_BAD, COLOR_RED, 124, -1},
    {THEME_LIGHT, ROLE_BAR, COLOR_BLUE, 31, -1},
    {THEME_LIGHT, ROLE_CURVE, COLOR_BLUE, 25, -1},
    {THEME_LIGHT, ROLE_CUT, COLOR_MAGENTA, 130, -1},
    {THEME_LIGHT, ROLE_USER, COLOR_GREEN, 28, -1},
    {THEME_LIGHT, ROLE_DIFFERS, COLOR_MAGENTA, 130, -1},
    {THEME_LIGHT, ROLE_LOST1, COLOR_BLUE, 94, -1},
    {THEME_LIGHT, ROLE_LOST2, COLOR_MAGENTA, 130, -1},
    {THEME_LIGHT, ROLE_LOST3, COLOR_RED, 124, -1},
    {THEME_CONTRAST, ROLE_HEAD, COLOR_BLACK, 16, 231},
    {THEME_CONTRAST, ROLE_FOOT, -1, -1, -1},
    {THEME_CONTRAST, ROLE_KEY, -1, -1, -1},
    {THEME_CONTRAST, ROLE_DIM, -1, -1, -1},
    {THEME_CONTRAST, ROLE_BORDER, -1, -1, -1},
    {THEME_CONTRAST, ROLE_FOCUS, -1, -1, -1},
    {THEME_CONTRAST, ROLE_SELECTED, COLOR_BLACK, 16, 226},
    {THEME_CONTRAST, ROLE_BAR, -1, -1, -1},
    {THEME_CONTRAST, ROLE_CURVE, -1, -1, -1},
};

void term_roles_set(struct term_roles *t, const struct settings *settings)
{
    t->paper[ROLE_NORMAL] = true;
    t->colour = has_colors() &&
                settings_colour(settings, getenv("NO_COLOR"), getenv("CLICOLOR_FORCE"),
                                getenv("CLICOLOR")) &&
                start_color() == OK;
    if (t->colour)
        t->colour = use_default_colors() == OK && COLOR_PAIRS > ROLE_COUNT;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        enum role r = roles[i].role;
        t->attr[r] = t->colour ? roles[i].attr : roles[i].mono;
        t->paper[r] = !(t->attr[r] & (A_REVERSE | A_UNDERLINE));
        if (!t->colour)
            continue;
        bool many = COLORS >= 256;
        short fg = many ? roles[i].fg256 : roles[i].fg8, bg = many ? roles[i].bg256 : roles[i].bg8;
        for (size_t k = 0; k < sizeof changes / sizeof *changes; k++)
            if (changes[k].theme == settings->theme && changes[k].role == r) {
                fg = many ? changes[k].fg256 : changes[k].fg8;
                bg = many ? changes[k].bg256 : bg;
            }
        if (settings->theme == THEME_CONTRAST)
            t->attr[r] |= A_BOLD;
        t->pair[r] = (short)r;
        t->paper[r] = t->paper[r] && bg == -1;
        init_pair((short)r, fg, bg);
    }
}
