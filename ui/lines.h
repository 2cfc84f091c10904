/* lines: the screens as lines, for screen readers, Braille displays and pipes. Standard input takes a
 * line at a time, standard output says what is new on the screen, without frames, plots and colours:
 *
 *   (empty)        says the whole screen again
 *   Down Down c    keys by name, as the help and the settings file write them
 *   TEXT           where a question or the chat's prompt is open: typed, with Enter behind it
 *   key F2         keys also there
 *   quit           leaves, as the end of input does */
#ifndef MLATHE_UI_LINES_H
#define MLATHE_UI_LINES_H

#include "ui/ui.h"

int lines_run(const struct ui_options *o, struct err *e);

#endif
