/* script: keystrokes from a file instead of a terminal, and screens as text instead of paint. One
 * command a line; blank lines and lines that start with # are skipped:
 *
 *   size 100x30        columns x rows of the screen (80x24 at the start)
 *   ascii on|off       what an ASCII terminal would show
 *   clock on|off       off: times, speeds, device and memory read "--", so that shots compare
 *   key NAME…          keys: c, Enter, Left, Shift-Right, Alt-Enter, Ctrl-L, F10, Space …
 *   type TEXT          the rest of the line, key by key
 *   paste TEXT         the rest of the line as one paste; \n a newline, \x1b a byte
 *   wait idle [SEC]    until no job runs or waits (at most SEC seconds, 120 when left out)
 *   wait saved [SEC]   until nothing waits to be saved, and all that was put is on disk
 *   wait SEC           so long
 *   shot NAME          prints "--- NAME 80x24", the rows of the screen, and "---"
 *   shot NAME roles    the same with a digit or letter a cell for its role, instead of the text
 *   restart            leaves and starts again, as a user would
 *   quit               leaves (as the end of the file does)
 *
 * A command that cannot be read, or a wait that runs out, ends the script with its line number. */
#ifndef MLATHE_UI_SCRIPT_H
#define MLATHE_UI_SCRIPT_H

#include "ui/ui.h"

int script_run(const struct ui_options *o, struct err *e);

#endif
