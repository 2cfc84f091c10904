/* utf8: code points in and out of bytes, and the repair of what is ill-formed. A leaf. */
#ifndef MLATHE_CORE_UTF8_H
#define MLATHE_CORE_UTF8_H

#include "core/base.h"

enum utf8_verdict {
    UTF8_GOOD, /* *len bytes are the code point *cp */
    UTF8_BAD,  /* *len bytes are a maximal ill-formed part: one U+FFFD stands for them */
    UTF8_CUT,  /* all *len remaining bytes are a good beginning that more bytes may complete */
};
/* Looks at s[0 … n), n ≥ 1. At the end of a text, UTF8_CUT means the same as UTF8_BAD. */
enum utf8_verdict utf8_next(const char *s, size_t n, uint32_t *cp, size_t *len);
/* Writes cp (at most 4 bytes) and returns the number of bytes. */
size_t utf8_put(uint32_t cp, char *out);
bool utf8_valid(const char *s, size_t n);
/* Fresh NUL-terminated copy with U+FFFD for ill-formed parts; NULL when memory is out. The offsets
 * in at (ascending, n_at of them, ≤ n) are moved along with the text; at may be NULL. */
char *utf8_repair(const char *s, size_t n, size_t *size, size_t *at, size_t n_at);
/* Unicode's White_Space property (what Rust's char::is_whitespace and regex \s mean). */
bool utf8_is_space(uint32_t cp);

#endif
