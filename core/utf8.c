/* UTF-8 by table 3-7 of the Unicode standard: no surrogates, no overlong forms, nothing above
 * U+10FFFF. Ill-formed bytes are reported as maximal subparts, as Rust and the browsers do. */
#include "core/utf8.h"

#include <stdlib.h>
#include <string.h>

enum utf8_verdict utf8_next(const char *s, size_t n, uint32_t *cp, size_t *len)
{
    const uint8_t *b = (const uint8_t *)s;
    uint8_t lo = 0x80, hi = 0xbf;
    size_t want;
    *len = 1;
    *cp = 0xfffd;
    if (b[0] < 0x80) {
        *cp = b[0];
        return UTF8_GOOD;
    }
    if (b[0] < 0xc2 || b[0] > 0xf4)
        return UTF8_BAD;
    want = b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : 4;
    /* Only the second byte has narrowed bounds. */
    if (b[0] == 0xe0)
        lo = 0xa0;
    else if (b[0] == 0xed)
        hi = 0x9f;
    else if (b[0] == 0xf0)
        lo = 0x90;
    else if (b[0] == 0xf4)
        hi = 0x8f;
    uint32_t v = b[0] & (0x7fu >> want);
    for (size_t i = 1; i < want; i++) {
        if (i >= n) {
            *len = n;
            return UTF8_CUT;
        }
        if (b[i] < lo || b[i] > hi) {
            *len = i;
            return UTF8_BAD;
        }
        v = v << 6 | (b[i] & 0x3f);
        lo = 0x80;
        hi = 0xbf;
    }
    *len = want;
    *cp = v;
    return UTF8_GOOD;
}

size_t utf8_put(uint32_t cp, char *out)
{
    if (cp > 0x10ffff || (cp >= 0xd800 && cp <= 0xdfff))
        cp = 0xfffd;
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

bool utf8_valid(const char *s, size_t n)
{
    uint32_t cp;
    size_t len;
    for (size_t i = 0; i < n; i += len)
        if (utf8_next(s + i, n - i, &cp, &len) != UTF8_GOOD)
            return false;
    return true;
}

char *utf8_repair(const char *s, size_t n, size_t *size, size_t *at, size_t n_at)
{
    size_t used = 0, next = 0, len, room;
    uint32_t cp;
    char *out = size_mul(n, 3, &room) && size_add(room, 1, &room) ? malloc(room) : NULL;
    if (!out)
        return NULL;
    for (size_t i = 0; i < n; i += len) {
        while (next < n_at && at[next] <= i)
            at[next++] = used;
        if (utf8_next(s + i, n - i, &cp, &len) == UTF8_GOOD) {
            memcpy(out + used, s + i, len);
            used += len;
        } else {
            used += utf8_put(0xfffd, out + used);
        }
    }
    while (next < n_at)
        at[next++] = used;
    out[used] = '\0';
    *size = used;
    return out;
}

bool utf8_is_space(uint32_t cp)
{
    return (cp >= 0x9 && cp <= 0xd) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}
