/* Messages, checked sizes and allocation. Prints nothing, exits never. */
#include "core/base.h"

#include <errno.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Messages quote names from files; none of those may reach a terminal as a control sequence. */
static void blank_controls(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 32 || *s == 127)
            *s = '?';
}

int err_set(struct err *e, int status, const char *fmt, ...)
{
    if (!e)
        return status;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    blank_controls(e->text);
    e->status = status;
    return status;
}

int err_nomem(struct err *e, size_t bytes, const char *what)
{
    return err_set(e, ERR_NOMEM, "out of memory: %zu bytes for %s", bytes, what);
}

/* What to do about it, where the number alone tells. */
static const char *remedy(int code)
{
    switch (code) {
    case ENOENT:
    case ENOTDIR: return " (is the name right?)";
    case EACCES:
    case EPERM: return " (its permissions do not allow it)";
    case ENOSPC:
    case EDQUOT: return " (make room, or name another place)";
    case EFBIG: return " (files may not grow that large here: see ulimit -f)";
    case EEXIST: return " (something of that name is in the way)";
    case EROFS: return " (name a place that can be written)";
    case EISDIR: return " (name a file in it)";
    case EMFILE:
    case ENFILE: return " (close some programs, or raise ulimit -n)";
    default: return "";
    }
}

int err_errno(struct err *e, const char *fmt, ...)
{
    int code = errno;
    int status = code == ENOSPC || code == EDQUOT ? ERR_NOSPACE : ERR_IO;
    if (!e)
        return status;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->text)
        snprintf(e->text + n, sizeof e->text - (size_t)n, ": %s%s", strerror(code), remedy(code));
    blank_controls(e->text);
    e->status = status;
    return status;
}

bool size_mul(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

void mem_return_freed(void)
{
    mallopt(M_MMAP_THRESHOLD, 1 << 20); /* either one stops malloc from moving both */
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
    mallopt(M_ARENA_MAX, 1); /* work allocates between its loops, not in them */
}

void *mem_calloc(size_t n, size_t size)
{
    return calloc(n ? n : 1, size ? size : 1);
}

void *mem_aligned(size_t n, size_t size)
{
    size_t bytes, padded;
    if (!size_mul(n ? n : 1, size, &bytes) || !size_add(bytes, 63, &padded))
        return NULL;
    padded &= ~(size_t)63;
    void *p = aligned_alloc(64, padded);
    if (p)
        memset(p, 0, padded);
    return p;
}

bool mem_grow(void **p, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return true;
    size_t want = *cap + *cap / 2 + 16, bytes;
    if (want < need)
        want = need;
    if (!size_mul(want, size, &bytes))
        return false;
    void *grown = realloc(*p, bytes);
    if (!grown)
        return false;
    *p = grown;
    *cap = want;
    return true;
}

char *mem_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = malloc(n);
    return copy ? memcpy(copy, s, n) : NULL;
}

char *mem_printf(const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    return n < 0 ? NULL : text;
}

bool progress_report(const struct progress *p, const char *phase, double done, double total)
{
    return !p || !p->report || p->report(p->user, phase, done, total);
}

bool text_ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}
