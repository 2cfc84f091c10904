/* sanitize: the only way text from outside reaches a cell. Splits UTF-8 into what a terminal shows
 * as one character: a base with its combining marks. Control characters become visible stand-ins,
 * ill-formed bytes U+FFFD, and format characters that reorder or hide text are dropped. */
#ifndef MLATHE_UI_SANITIZE_H
#define MLATHE_UI_SANITIZE_H

#include "core/base.h"

#define CLUSTER_BYTES 12
#define TAB_COLUMNS 4

struct cluster {
    char text[CLUSTER_BYTES]; /* NUL-terminated; "" when the input is to be dropped */
    int width;                /* columns: 0 (dropped), 1, 2, or TAB_COLUMNS blanks */
};
/* Reads one cluster from s[n] and returns the bytes it took, 0 when n is 0. */
size_t sanitize_next(const char *s, size_t n, struct cluster *c);
/* Columns of s[n] on one line (newlines count as one). */
int sanitize_width(const char *s, size_t n);
/* Closest plain ASCII for a cluster that an ASCII terminal cannot show, as wide as width. */
char sanitize_ascii(const char *cluster);

#endif
