/* term_probe: what the terminal at descriptor 1 can do, without opening the screens on it. */
#ifndef MLATHE_UI_TERM_PROBE_H
#define MLATHE_UI_TERM_PROBE_H

#include "core/base.h"

struct term_facts {
    char type[64]; /* TERM, "" when it is not set */
    bool is_terminal, known /* terminfo knows the type and it can place a cursor */, utf8;
    int colours, width, height; /* 0: none, or not known */
};
void term_probe(struct term_facts *f);

#endif
