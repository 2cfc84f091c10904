/* charsmap: the normalization table inside a SentencePiece model: longest prefixes of the text are
 * replaced by other texts (NFKC and the like, compiled into a double-array trie). */
#ifndef MLATHE_CORE_CHARSMAP_H
#define MLATHE_CORE_CHARSMAP_H

#include "core/base.h"

struct charsmap;
/* Copies. blob: [size of the trie, u32][trie: u32 units][texts, each ended by a NUL]. */
int charsmap_new(struct charsmap **out, const uint8_t *blob, size_t n, const char *where,
                 struct err *e);
void charsmap_free(struct charsmap *m);
/* The replacement of the longest known prefix of s and that prefix's length; without one NULL and
 * the length of the first character. s is well-formed UTF-8 and not empty. */
const char *charsmap_next(const struct charsmap *m, const char *s, size_t n, size_t *len);

#endif
