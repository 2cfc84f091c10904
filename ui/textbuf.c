/* Editing and wrapping. Refuses texts beyond TEXTBUF_MAX. */
#include "ui/textbuf.h"

#include <stdlib.h>
#include <string.h>

#include "ui/sanitize.h"

int textbuf_init(struct textbuf *b, struct err *e)
{
    *b = (struct textbuf){.cap = 64};
    b->text = mem_calloc(b->cap, 1);
    return b->text ? OK : err_nomem(e, b->cap, "text");
}

void textbuf_done(struct textbuf *b)
{
    free(b->text);
    *b = (struct textbuf){0};
}

void textbuf_clear(struct textbuf *b)
{
    b->n = b->at = 0;
    b->text[0] = 0;
}

bool textbuf_set(struct textbuf *b, const char *text)
{
    textbuf_clear(b);
    return textbuf_insert(b, text, strlen(text));
}

static bool insert_raw(struct textbuf *b, const char *text, size_t n)
{
    size_t need;
    if (!size_add(b->n, n, &need) || need > TEXTBUF_MAX ||
        !mem_grow((void **)&b->text, &b->cap, need + 1, 1))
        return false;
    memmove(b->text + b->at + n, b->text + b->at, b->n - b->at + 1);
    memcpy(b->text + b->at, text, n);
    b->n += n;
    b->at += n;
    return true;
}

bool textbuf_insert(struct textbuf *b, const char *text, size_t n)
{
    char *clean = mem_calloc(n + 1, 3); /* one bad byte becomes three of U+FFFD */
    size_t k = 0;
    if (!clean)
        return false;
    for (size_t i = 0; i < n;) {
        struct cluster c;
        unsigned char u = (unsigned char)text[i];
        if (u == '\r' || u == '\n') {
            i += u == '\r' && i + 1 < n && text[i + 1] == '\n' ? 2 : 1;
            clean[k++] = '\n';
        } else if (u == '\t') {
            clean[k++] = '\t';
            i++;
        } else if (u < 0x20 || u == 0x7f) {
            i++;
        } else {
            size_t used = sanitize_next(text + i, n - i, &c);
            /* Format characters (joiners) are kept: they are the user's text and are only not
             * shown. What is ill-formed becomes U+FFFD. */
            if (used == 1 && u >= 0x80) {
                memcpy(clean + k, "\xef\xbf\xbd", 3);
                k += 3;
            } else {
                memcpy(clean + k, text + i, used);
                k += used;
            }
            i += used;
        }
    }
    bool ok = insert_raw(b, clean, k);
    free(clean);
    return ok;
}

static size_t next_cluster(const struct textbuf *b, size_t at)
{
    struct cluster c;
    do
        at += sanitize_next(b->text + at, b->n - at, &c);
    while (at < b->n && c.width == 0);
    return at;
}

/* Clusters are found from the left only: start at the line's beginning. */
static size_t previous_cluster(const struct textbuf *b, size_t at)
{
    size_t p = at, last;
    if (at == 0)
        return 0;
    p = at - 1;
    while (p > 0 && b->text[p - 1] != '\n')
        p--;
    do {
        last = p;
        p = next_cluster(b, p);
    } while (p < at);
    return last;
}

static bool word_byte(char c)
{
    return !strchr(" \t\n.,;:!?()[]{}<>\"'/\\|+=*&^%$#@~`-", c) || c == 0;
}

static size_t target(const struct textbuf *b, enum textbuf_move move)
{
    size_t at = b->at;
    switch (move) {
    case TEXT_LEFT: return previous_cluster(b, at);
    case TEXT_RIGHT: return at < b->n ? next_cluster(b, at) : at;
    case TEXT_WORD_LEFT:
        while (at > 0 && !word_byte(b->text[at - 1]))
            at--;
        while (at > 0 && word_byte(b->text[at - 1]))
            at--;
        return at;
    case TEXT_WORD_RIGHT:
        while (at < b->n && !word_byte(b->text[at]))
            at++;
        while (at < b->n && word_byte(b->text[at]))
            at++;
        return at;
    case TEXT_LINE_START:
        while (at > 0 && b->text[at - 1] != '\n')
            at--;
        return at;
    case TEXT_LINE_END:
        while (at < b->n && b->text[at] != '\n')
            at++;
        return at;
    case TEXT_START: return 0;
    case TEXT_END: return b->n;
    }
    return at;
}

void textbuf_move(struct textbuf *b, enum textbuf_move move)
{
    b->at = target(b, move);
}

void textbuf_delete(struct textbuf *b, enum textbuf_move move)
{
    size_t to = target(b, move), from = b->at;
    if (to < from) {
        size_t t = to;
        to = from;
        from = t;
    }
    memmove(b->text + from, b->text + to, b->n - to + 1);
    b->n -= to - from;
    b->at = from;
}

struct wrapping {
    struct text_line *line;
    size_t n, cap;
};

static bool add_line(struct wrapping *w, size_t start, size_t end, int width)
{
    if (!mem_grow((void **)&w->line, &w->cap, w->n + 1, sizeof *w->line))
        return false;
    w->line[w->n++] = (struct text_line){start, end - start, width};
    return true;
}

struct text_line *text_wrap(const char *text, size_t n, int width, int *lines)
{
    struct wrapping w = {0};
    struct cluster c;
    size_t start = 0, at = 0, space = 0; /* space: byte after the last blank of the line */
    int used = 0, space_width = 0;
    bool ok = true;
    width = width < 2 ? 2 : width;
    while (ok && at < n) {
        if (text[at] == '\n') {
            ok = add_line(&w, start, at, used);
            start = space = ++at;
            used = space_width = 0;
            continue;
        }
        size_t k = sanitize_next(text + at, n - at, &c);
        while (ok && used > 0 && used + c.width > width && c.text[0] != ' ') {
            bool at_space = space > start;
            size_t end = at_space ? space : at;
            ok = add_line(&w, start, end, at_space ? space_width : used);
            used = at_space ? used - space_width : 0;
            start = space = end;
            space_width = 0;
        }
        at += k;
        used += c.width; /* blanks may hang over the edge: nothing is seen of them */
        if (c.text[0] == ' ') {
            space = at;
            space_width = used;
        }
    }
    if (!ok || !add_line(&w, start, n, used)) {
        free(w.line);
        return NULL;
    }
    *lines = (int)w.n;
    return w.line;
}

void text_locate(const char *text, const struct text_line *line, int lines, size_t at, int *row,
                 int *col)
{
    int i = lines - 1;
    while (i > 0 && line[i].start > at)
        i--;
    *row = i;
    *col = at > line[i].start ? sanitize_width(text + line[i].start, at - line[i].start) : 0;
}

size_t text_at(const char *text, const struct text_line *line, int col)
{
    struct cluster c;
    size_t at = 0;
    int used = 0;
    while (at < line->bytes) {
        size_t k = sanitize_next(text + line->start + at, line->bytes - at, &c);
        if (used + c.width > col)
            break;
        used += c.width;
        at += k;
    }
    return line->start + at;
}
