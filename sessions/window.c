/* Sliding caches. Refuses nothing: sizes are checked by whoever plans them. */
#include "sessions/window.h"

#define MOVE_BYTES 4096 /* host memory between two places of the backend */

void window_plan(struct layer_cache *c, int window, int n_ctx)
{
    int keep = window + WINDOW_STRETCH, rows = keep + WINDOW_BLOCK;
    c->first = 0;
    c->keep = window > 0 && rows < n_ctx ? keep : 0;
    c->rows = c->keep ? rows : n_ctx;
}

/* Towards the front, piece by piece: a piece never overlaps where it goes, or its rest is done. */
static void move(struct backend *b, char *to, const char *from, size_t bytes)
{
    char host[MOVE_BYTES];
    for (size_t at = 0; at < bytes; at += sizeof host) {
        size_t n = bytes - at < sizeof host ? bytes - at : sizeof host;
        b->ops->get(b, host, from + at, n);
        b->ops->put(b, to + at, host, n);
    }
}

void window_slide(struct layer_cache *c, struct backend *b, size_t row, int pos, int n)
{
    if (!c->keep || pos - c->first + n <= c->rows)
        return;
    int first = pos - c->keep;
    size_t from = (size_t)(first - c->first) * row, bytes = (size_t)c->keep * row;
    move(b, c->a, (const char *)c->a + from, bytes);
    if (c->b)
        move(b, c->b, (const char *)c->b + from, bytes);
    c->first = first;
}

bool window_reaches(const struct layer_cache *c, int window, int pos)
{
    return c->first == 0 || c->first <= pos - window + 1;
}
