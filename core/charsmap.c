/* Reader of the compiled table. Nothing in it is trusted: every step of a walk stays inside the
 * trie, every text ends inside the table. */
#include "core/charsmap.h"

#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

struct charsmap {
    uint32_t *units;
    size_t n_units;
    char *texts; /* ends in a NUL */
    size_t n_texts;
};

int charsmap_new(struct charsmap **out, const uint8_t *blob, size_t n, const char *where,
                 struct err *e)
{
    uint32_t size = 0;
    *out = NULL;
    if (n >= sizeof size)
        memcpy(&size, blob, sizeof size);
    if (!size || size % 4 || size > n - sizeof size || size == n - sizeof size || blob[n - 1])
        return err_set(e, ERR_FORMAT, "%s: the normalization table of %zu bytes is damaged", where,
                       n);
    struct charsmap *m = mem_calloc(1, sizeof *m);
    if (m) {
        m->n_units = size / 4;
        m->n_texts = n - sizeof size - size;
        m->units = mem_calloc(m->n_units, 4);
        m->texts = mem_calloc(m->n_texts, 1);
    }
    if (!m || !m->units || !m->texts) {
        charsmap_free(m);
        return err_nomem(e, n, "a normalization table");
    }
    memcpy(m->units, blob + sizeof size, size);
    memcpy(m->texts, blob + sizeof size + size, m->n_texts);
    *out = m;
    return OK;
}

void charsmap_free(struct charsmap *m)
{
    if (!m)
        return;
    free(m->units);
    free(m->texts);
    free(m);
}

/* A unit of the double array: bits 0–7 and 31 label, 8 a leaf follows, 9 wide offset, 10–30
 * offset; a leaf's bits 0–30 are its value. */
static uint32_t offset_of(uint32_t unit)
{
    return (unit >> 10) << ((unit & 1u << 9) >> 6);
}

const char *charsmap_next(const struct charsmap *m, const char *s, size_t n, size_t *len)
{
    const char *best = NULL;
    uint32_t at = offset_of(m->units[0]), cp;
    utf8_next(s, n, &cp, len);
    for (size_t i = 0; i < n; i++) {
        at ^= (uint8_t)s[i];
        if (at >= m->n_units || (m->units[at] & 0x800000ffu) != (uint8_t)s[i])
            break;
        uint32_t unit = m->units[at];
        at ^= offset_of(unit);
        if (!(unit >> 8 & 1) || at >= m->n_units)
            continue;
        uint32_t value = m->units[at] & 0x7fffffffu;
        if (value < m->n_texts) {
            best = m->texts + value;
            *len = i + 1;
        }
    }
    return best;
}
