/* screen: a grid of cells that views draw into. Views never see the terminal: term.c copies the
 * grid to it by difference, script.c prints it as text, and tests read it. Drawing outside the grid
 * is ignored; all text is sanitised on the way in. */
#ifndef MLATHE_UI_SCREEN_H
#define MLATHE_UI_SCREEN_H

#include "ui/layout.h"
#include "ui/sanitize.h"

enum role {
    ROLE_NORMAL,
    ROLE_HEAD,     /* first line */
    ROLE_FOOT,     /* last line */
    ROLE_KEY,      /* a key in the last line and in the help */
    ROLE_DIM,
    ROLE_TITLE,
    ROLE_BORDER,
    ROLE_FOCUS,    /* border and title of what has the focus */
    ROLE_SELECTED, /* the chosen row */
    ROLE_GOOD,
    ROLE_WARN,
    ROLE_BAD,
    ROLE_BAR,
    ROLE_CURVE,
    ROLE_CUT,      /* where the rank cuts the curve */
    ROLE_USER,     /* what the user said */
    ROLE_DIFFERS,  /* the first token where two answers part */
    ROLE_LOST1,    /* probability lost: some, more, most */
    ROLE_LOST2,
    ROLE_LOST3,
    ROLE_COUNT
};

struct cell {
    char text[CLUSTER_BYTES];
    uint8_t width; /* 0: right half of the wide character before it */
    uint8_t role;
};
struct screen {
    int rows, cols;
    struct cell *cell;            /* [rows][cols] */
    bool ascii;                   /* only ASCII may reach the terminal */
    bool plain;                   /* read aloud: words, no plots */
    int cursor_row, cursor_col;   /* -1: hidden */
};

int screen_init(struct screen *s, int rows, int cols, bool ascii, struct err *e);
void screen_done(struct screen *s);
/* Keeps the old size when memory is out. The content is cleared. */
bool screen_resize(struct screen *s, int rows, int cols);
void screen_clear(struct screen *s);

/* Writes text from (row, col) into at most width columns; text that does not fit ends in "…".
 * Returns the columns used. */
int screen_put(struct screen *s, int row, int col, int width, enum role role, const char *text);
int screen_putn(struct screen *s, int row, int col, int width, enum role role, const char *text,
                size_t n);
int screen_putf(struct screen *s, int row, int col, int width, enum role role, const char *fmt,
                ...) __attribute__((format(printf, 6, 7)));
/* As screen_put, right-aligned in width. */
int screen_right(struct screen *s, int row, int col, int width, enum role role, const char *text);
/* As screen_put; what does not fit is cut at the front: for paths. */
int screen_tail(struct screen *s, int row, int col, int width, enum role role, const char *text);
void screen_fill(struct screen *s, struct rect r, enum role role);
void screen_box(struct screen *s, struct rect r, enum role border, const char *title);
/* A horizontal bar of share 0…1 in eighths of a column. */
void screen_bar(struct screen *s, int row, int col, int width, enum role role, double share);
void screen_cursor(struct screen *s, int row, int col);

/* One row as UTF-8 without trailing blanks, in fresh memory. */
char *screen_row(const struct screen *s, int row);

#endif
