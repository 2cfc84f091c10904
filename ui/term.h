/* term: the one place that knows ncurses. Opens the terminal on descriptors of its own, points 1
 * and 2 at a log file (libraries print there), copies a cell grid to the screen by difference, and
 * brings the terminal back whatever way the program ends. */
#ifndef MLATHE_UI_TERM_H
#define MLATHE_UI_TERM_H

#include "ui/screen.h"
#include "ui/settings.h"

struct term;
/* log_path: where output to 1 and 2 goes while the screens are up. Refuses a missing or dumb
 * terminal with a sentence. */
int term_open(struct term **out, const char *log_path, const struct settings *settings,
              struct err *e);
void term_close(struct term *t); /* restores */
bool term_ascii(const struct term *t);
void term_size(const struct term *t, int *rows, int *cols);
int term_fd(const struct term *t);        /* readable: keys wait */
int term_signal_fd(const struct term *t); /* readable: a signal asks to leave or to suspend */
/* The next key, 0 when none waits, -1 when the terminal is gone. UI_RESIZE: ask term_size again.
 * A paste comes as TERM_PASTE with its text (valid until the next call), a click as TERM_CLICK with
 * row << 16 | column in *n. */
enum { TERM_PASTE = 1 << 26, TERM_CLICK = 1 << 27 };
int term_key(struct term *t, const char **paste, size_t *n);
/* Signal to act on: 0 none, SIGTSTP, or one that ends the program. */
int term_signal(struct term *t);
void term_suspend(struct term *t); /* gives the shell its terminal, returns after fg */
void term_paint(struct term *t, const struct screen *s, bool all);

#endif
