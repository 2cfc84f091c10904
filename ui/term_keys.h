/* term_keys: what keys a terminal's codes and sequences are. Pure. */
#ifndef MLATHE_UI_TERM_KEYS_H
#define MLATHE_UI_TERM_KEYS_H

#include "core/base.h"

/* A curses key code as UI_…; 0: none that means anything here. */
int term_keys_code(int code);
/* A sequence that the terminal's description does not know, from behind its ESC ("[1~", "OH",
 * "[1;3A"), as other terminals mean it; 0: unknown. */
int term_keys_sequence(const char *text);
/* Whether another byte belongs to it. */
bool term_keys_goes_on(const char *text);

#endif
