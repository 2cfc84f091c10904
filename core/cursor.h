/* cursor: a bounded walk over bytes that somebody else wrote. The first failure is sticky: later
 * reads give zeros and the message of the first one stays, so a parser checks once a record. */
#ifndef MLATHE_CORE_CURSOR_H
#define MLATHE_CORE_CURSOR_H

#include "core/base.h"

struct cursor {
    const uint8_t *data;
    size_t size, at;
    const char *where; /* names the source in messages */
    struct err *e;
    int status; /* 0 or the first failure */
};

struct cursor cursor_over(const void *data, size_t size, const char *where, struct err *e);
/* Fails with "WHERE: byte AT: ..." unless it has failed before; returns the sticky status. */
int cursor_fail(struct cursor *c, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
size_t cursor_left(const struct cursor *c);
/* The next n bytes, NULL (and a failure naming what) when there are fewer. */
const uint8_t *cursor_take(struct cursor *c, size_t n, const char *what);
uint32_t cursor_u32(struct cursor *c, const char *what);
uint64_t cursor_u64(struct cursor *c, const char *what);
/* A count of records that take at least min_bytes each: never more than the rest could hold. */
size_t cursor_count(struct cursor *c, size_t min_bytes, const char *what);

#endif
