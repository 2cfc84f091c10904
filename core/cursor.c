/* The bounded cursor. Never reads past size, never allocates. */
#include "core/cursor.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct cursor cursor_over(const void *data, size_t size, const char *where, struct err *e)
{
    return (struct cursor){.data = data, .size = size, .where = where, .e = e};
}

int cursor_fail(struct cursor *c, int status, const char *fmt, ...)
{
    if (c->status)
        return c->status;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    c->status = status;
    return err_set(c->e, status, "%s: byte %zu: %s", c->where, c->at, text);
}

size_t cursor_left(const struct cursor *c)
{
    return c->status ? 0 : c->size - c->at;
}

const uint8_t *cursor_take(struct cursor *c, size_t n, const char *what)
{
    if (c->status)
        return NULL;
    if (n > c->size - c->at) {
        cursor_fail(c, ERR_FORMAT, "%s needs %zu bytes, but only %zu of %zu are left (cut short?)",
                    what, n, c->size - c->at, c->size);
        return NULL;
    }
    const uint8_t *p = c->data + c->at;
    c->at += n;
    return p;
}

uint32_t cursor_u32(struct cursor *c, const char *what)
{
    uint32_t v = 0;
    const uint8_t *p = cursor_take(c, sizeof v, what);
    if (p)
        memcpy(&v, p, sizeof v);
    return v;
}

uint64_t cursor_u64(struct cursor *c, const char *what)
{
    uint64_t v = 0;
    const uint8_t *p = cursor_take(c, sizeof v, what);
    if (p)
        memcpy(&v, p, sizeof v);
    return v;
}

size_t cursor_count(struct cursor *c, size_t min_bytes, const char *what)
{
    uint64_t n = cursor_u64(c, what);
    if (n > cursor_left(c) / min_bytes) {
        cursor_fail(c, ERR_FORMAT, "%s of %llu does not fit into the %zu bytes left (cut short?)",
                    what, (unsigned long long)n, cursor_left(c));
        return 0;
    }
    return (size_t)n;
}
