/* Normalizers. Each takes a text over and gives another; a text that grows beyond all reason (a
 * file may ask for it) is refused. */
#include "core/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "core/utf8.h"

/* The longest canonical growth is 18 characters for one; marks and prefixes come on top. */
#define GROWTH 64

struct text {
    char *s; /* malloc'ed, NULL: out of memory or too long */
    size_t n;
    size_t limit;
    bool too_long;
};

static void replace_text(struct text *t, char *s, size_t n)
{
    free(t->s);
    t->s = s;
    t->n = n;
}

static void refuse_length(struct text *t)
{
    t->too_long = true;
    replace_text(t, NULL, 0);
}

static bool is_ascii(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)s[i] >= 0x80)
            return false;
    return true;
}

static void to_form(struct text *t, int form)
{
    uint8_t *out = NULL;
    if (is_ascii(t->s, t->n))
        return;
    utf8proc_ssize_t size =
        utf8proc_map((const uint8_t *)t->s, (utf8proc_ssize_t)t->n, &out, (utf8proc_option_t)form);
    replace_text(t, size < 0 ? NULL : (char *)out, size < 0 ? 0 : (size_t)size);
}

/* Character by character. Of the special casings only U+0130 has one without a context. */
static void to_lower(struct text *t)
{
    size_t used = 0, len, room;
    uint32_t cp;
    char *out = size_mul(t->n, 3, &room) ? malloc(room + 1) : NULL;
    for (size_t i = 0; out && i < t->n; i += len) {
        utf8_next(t->s + i, t->n - i, &cp, &len);
        bool dotted = cp == 0x130;
        cp = dotted ? 'i' : (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
        used += utf8_put(cp, out + used);
        if (dotted)
            used += utf8_put(0x307, out + used);
    }
    replace_text(t, out, used);
}

static void strip(struct text *t, bool left, bool right)
{
    size_t begin = 0, end = 0, len;
    uint32_t cp;
    for (size_t i = 0; i < t->n; i += len) {
        utf8_next(t->s + i, t->n - i, &cp, &len);
        if (utf8_is_space(cp) && i == begin && left)
            begin = i + len;
        if (!utf8_is_space(cp))
            end = i + len;
    }
    end = right ? end : t->n;
    t->n = end > begin ? end - begin : 0;
    memmove(t->s, t->s + begin, t->n);
}

static void squeeze(struct text *t)
{
    size_t used = 0, mark = strlen(TOK_SPACE);
    for (size_t i = 0; i < t->n; i++)
        if (t->s[i] != ' ' || (used && t->s[used - 1] != ' '))
            t->s[used++] = t->s[i];
    /* The library takes the visible space for a space at the end, and only there. */
    for (;;) {
        if (used && t->s[used - 1] == ' ')
            used--;
        else if (used >= mark && !memcmp(t->s + used - mark, TOK_SPACE, mark))
            used -= mark;
        else
            break;
    }
    t->n = used;
}

static void map_chars(struct text *t, const struct charsmap *map)
{
    struct text out = {.limit = t->limit};
    size_t cap = 0, len;
    for (size_t i = 0; i < t->n; i += len) {
        const char *to = charsmap_next(map, t->s + i, t->n - i, &len);
        size_t n = to ? strlen(to) : len;
        if (n > out.limit - out.n) {
            free(out.s);
            refuse_length(t);
            return;
        }
        if (!mem_grow((void **)&out.s, &cap, out.n + n + 1, 1)) {
            free(out.s);
            replace_text(t, NULL, 0);
            return;
        }
        memcpy(out.s + out.n, to ? to : t->s + i, n);
        out.n += n;
    }
    if (t->n)
        replace_text(t, out.s, out.n);
}

static void prepend(struct text *t, const char *what)
{
    size_t m = strlen(what);
    if (!t->n)
        return;
    if (m > t->limit - t->n) {
        refuse_length(t);
        return;
    }
    char *out = realloc(t->s, t->n + m + 1);
    if (!out) {
        replace_text(t, NULL, 0);
        return;
    }
    memmove(out + m, out, t->n);
    memcpy(out, what, m);
    t->s = out;
    t->n += m;
}

static void replace(struct text *t, const char *from, const char *to)
{
    size_t n_from = strlen(from), n_to = strlen(to), count = 0, size, used = 0, done = 0;
    const char *at = t->s, *end = t->s + t->n;
    if (!n_from)
        return;
    for (; (at = memmem(at, (size_t)(end - at), from, n_from)); at += n_from)
        count++;
    if (!count)
        return;
    if (!size_mul(count, n_to, &size) || !size_add(size, t->n - count * n_from, &size) ||
        size > t->limit) {
        refuse_length(t);
        return;
    }
    char *out = malloc(size + 1);
    while (out && (at = memmem(t->s + done, t->n - done, from, n_from))) {
        size_t gap = (size_t)(at - (t->s + done));
        memcpy(out + used, t->s + done, gap);
        memcpy(out + used + gap, to, n_to);
        used += gap + n_to;
        done += gap + n_from;
    }
    if (out)
        memcpy(out + used, t->s + done, t->n - done);
    replace_text(t, out, size);
}

struct norm_step tok_norm_nfc(void)
{
    return (struct norm_step){.kind = NORM_UNICODE, .form = UTF8PROC_STABLE | UTF8PROC_COMPOSE};
}

int tok_normalize(const struct tokenizer *t, const char *s, size_t n, bool at_start, char **out,
                  size_t *size, struct err *e)
{
    struct text text = {.s = malloc(n + 1), .n = n};
    *out = NULL;
    if (!size_mul(n, GROWTH, &text.limit) || !size_add(text.limit, 4096, &text.limit))
        text.limit = SIZE_MAX / 2;
    if (text.s && n)
        memcpy(text.s, s, n);
    for (int i = 0; text.s && i < t->n_norm; i++) {
        const struct norm_step *step = &t->norm[i];
        switch (step->kind) {
        case NORM_UNICODE: to_form(&text, step->form); break;
        case NORM_LOWER: to_lower(&text); break;
        case NORM_STRIP: strip(&text, step->left, step->right); break;
        case NORM_SQUEEZE: squeeze(&text); break;
        case NORM_CHARSMAP: map_chars(&text, t->charsmap); break;
        case NORM_PREPEND:
            if (at_start || !t->prefix_first)
                prepend(&text, step->to);
            break;
        case NORM_REPLACE: replace(&text, step->from, step->to); break;
        }
    }
    *out = text.s;
    *size = text.n;
    if (text.too_long)
        return err_set(e, ERR_LIMIT,
                       "the tokenizer's normalizer makes %zu bytes of text %d times "
                       "as long; its file is damaged",
                       n, GROWTH);
    return text.s ? OK : err_nomem(e, n, "normalizing text");
}
