/* What terminfo, the locale and the driver say. Refuses nothing: what is not known is 0. */
#include "ui/term_probe.h"

#include <curses.h>
#include <langinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <term.h>
#include <unistd.h>

void term_probe(struct term_facts *f)
{
    const char *type = getenv("TERM");
    struct winsize size = {0};
    int failed = 0;
    *f = (struct term_facts){0};
    snprintf(f->type, sizeof f->type, "%.63s", type ? type : "");
    f->is_terminal = isatty(STDOUT_FILENO);
    f->utf8 = !strcmp(nl_langinfo(CODESET), "UTF-8");
    if (f->is_terminal && !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size)) {
        f->width = size.ws_col;
        f->height = size.ws_row;
    }
    if (!f->type[0] || setupterm(f->type, STDOUT_FILENO, &failed) != 0)
        return;
    char cup[] = "cup", colors[] = "colors";
    const char *move = tigetstr(cup);
    int n = tigetnum(colors);
    f->known = move && move != (const char *)-1;
    f->colours = n > 0 ? n : 0;
    del_curterm(cur_term);
}
