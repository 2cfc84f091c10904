/* Text from models, files and the keyboard made safe to show. Refuses nothing: every byte has a
 * visible or an empty form. */
#include "ui/sanitize.h"

#include <string.h>
#include <utf8proc.h>

static size_t decode(const char *s, size_t n, utf8proc_int32_t *cp)
{
    utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, cp);
    if (k <= 0) {
        *cp = 0xfffd;
        return 1;
    }
    return (size_t)k;
}

static void set(struct cluster *c, utf8proc_int32_t cp, int width)
{
    utf8proc_ssize_t k = utf8proc_encode_char(cp, (utf8proc_uint8_t *)c->text);
    c->text[k] = 0;
    c->width = width;
}

/* Bidirectional overrides, zero-width characters, tags, variation selectors: nothing to see. */
static bool invisible(utf8proc_int32_t cp, utf8proc_category_t category)
{
    return category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_ZL ||
           category == UTF8PROC_CATEGORY_ZP || (cp >= 0xfe00 && cp <= 0xfe0f) || cp == 0x34f ||
           cp == 0x115f || cp == 0x1160 || cp == 0x3164 || (cp >= 0xe0000 && cp <= 0xe0fff);
}

static bool combines(utf8proc_int32_t cp)
{
    utf8proc_category_t k = utf8proc_category(cp);
    return (k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME) && !invisible(cp, k) &&
           utf8proc_charwidth(cp) == 0;
}

static void show(struct cluster *c, utf8proc_int32_t cp)
{
    utf8proc_category_t category = utf8proc_category(cp);
    c->text[0] = 0;
    c->width = 0;
    if (cp == '\t') {
        set(c, ' ', TAB_COLUMNS);
    } else if (cp == '\n') {
        set(c, ' ', 1);
    } else if (cp < 0x20) {
        set(c, 0x2400 + cp, 1);
    } else if (cp == 0x7f) {
        set(c, 0x2421, 1);
    } else if (category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CN ||
               category == UTF8PROC_CATEGORY_CO || category == UTF8PROC_CATEGORY_CS) {
        set(c, 0xfffd, 1);
    } else if (!invisible(cp, category)) {
        int width = utf8proc_charwidth(cp);
        if (width > 0)
            set(c, cp, width);
        else if (combines(cp))
            set(c, 0x25cc, 1); /* a mark without a base sits on a dotted circle */
        else
            set(c, 0xfffd, 1);
    }
}

size_t sanitize_next(const char *s, size_t n, struct cluster *c)
{
    utf8proc_int32_t cp;
    if (n == 0)
        return 0;
    size_t used = decode(s, n, &cp);
    show(c, cp);
    if (cp < 0x20)
        return used;
    while (used < n) {
        utf8proc_uint8_t mark[4];
        size_t k = decode(s + used, n - used, &cp);
        if (cp < 0x80 || !combines(cp))
            break;
        size_t room = CLUSTER_BYTES - 1 - strlen(c->text);
        utf8proc_ssize_t bytes = utf8proc_encode_char(cp, mark);
        /* Piles of marks beyond the room are dropped: they are decoration or an attack. */
        if (c->width > 0 && (size_t)bytes <= room) {
            size_t at = strlen(c->text);
            memcpy(c->text + at, mark, (size_t)bytes);
            c->text[at + (size_t)bytes] = 0;
        }
        used += k;
    }
    return used;
}

int sanitize_width(const char *s, size_t n)
{
    struct cluster c;
    int width = 0;
    for (size_t k; (k = sanitize_next(s, n, &c)) > 0; s += k, n -= k)
        width += c.width;
    return width;
}

char sanitize_ascii(const char *cluster)
{
    static const struct {
        const char *from;
        char to;
    } table[] = {
        {"─", '-'},  {"│", '|'}, {"┌", '+'}, {"┐", '+'}, {"└", '+'}, {"┘", '+'}, {"├", '+'},
        {"┤", '+'},  {"┬", '+'}, {"┴", '+'}, {"┼", '+'}, {"┊", ':'}, {"▶", '>'}, {"→", '>'},
        {"←", '<'},  {"↑", '^'}, {"↓", 'v'}, {"…", '~'}, {"✓", '+'}, {"✗", '!'}, {"×", 'x'},
        {"·", '.'},  {"–", '-'}, {"−", '-'}, {"—", '-'}, {"█", '#'}, {"▉", '#'}, {"▊", '#'},
        {"▋", '#'},  {"▌", '#'}, {"▍", '-'}, {"▎", '-'}, {"▏", '-'}, {"░", '.'}, {"⇧", '^'},
        {"±", '~'},  {"≈", '~'}, {"≤", '<'}, {"≥", '>'}, {"∥", '|'}, {"‖", '|'}, {"Δ", 'd'},
        {"’", '\''}, {"“", '"'}, {"”", '"'}, {"⟂", '|'}, {"●", '*'}, {"○", 'o'}, {"⏎", '<'},
    };
    unsigned char first = (unsigned char)cluster[0];
    if (first < 0x80)
        return (char)first;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(cluster, table[i].from) == 0)
            return table[i].to;
    return '?';
}
