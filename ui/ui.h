/* ui: the screens, as the executable's door sees them. */
#ifndef MLATHE_UI_UI_H
#define MLATHE_UI_UI_H

#include "core/base.h"

struct settings;
struct ui_options {
    const char *model;  /* path or name; NULL: the default model */
    const char *script; /* keystrokes to play without a terminal; NULL: use the terminal */
    bool lines;         /* lines instead of screens, for screen readers (ui/lines.h) */
    const char *device; /* "auto", "cpu", … */
    int threads;        /* 0: all */
    int rows, cols;     /* screen size of a script; 0: 24×80 */
    const struct settings *settings; /* NULL: ui_run reads the file */
    const char *note;                /* said at the start; NULL: nothing */
};
/* Runs the screens until the user leaves. */
int ui_run(const struct ui_options *o, struct err *e);

#endif
