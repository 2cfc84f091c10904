/* window: caches of layers that see only the last tokens. Such a cache has room for the window, for
 * a block, and for a stretch that a timeline may rewind over; when it is full its last rows move to
 * the front. Keys are rotated already and kernels count positions from row 0, so nothing else
 * changes. */
#ifndef MLATHE_SESSIONS_WINDOW_H
#define MLATHE_SESSIONS_WINDOW_H

#include "sessions/forward.h"

#define WINDOW_BLOCK 512   /* rows that come at once, at most */
#define WINDOW_STRETCH 512 /* tokens that a rewind may go back without loss */

/* Rows for n_ctx tokens under a window (0: none). */
void window_plan(struct layer_cache *c, int window, int n_ctx);
/* Makes room for n ≤ WINDOW_BLOCK rows after position pos; row: bytes of one of a's (and b's). */
void window_slide(struct layer_cache *c, struct backend *b, size_t row, int pos, int n);
/* What the token at pos sees is still there. */
bool window_reaches(const struct layer_cache *c, int window, int pos);

#endif
