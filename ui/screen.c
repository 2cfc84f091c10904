/* The cell grid. Clips everything; refuses nothing. */
#include "ui/screen.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int screen_init(struct screen *s, int rows, int cols, bool ascii, struct err *e)
{
    *s = (struct screen){.ascii = ascii, .cursor_row = -1};
    if (!screen_resize(s, rows, cols))
        return err_nomem(e, (size_t)rows * (size_t)cols * sizeof *s->cell, "screen");
    return OK;
}

void screen_done(struct screen *s)
{
    free(s->cell);
    *s = (struct screen){0};
}

bool screen_resize(struct screen *s, int rows, int cols)
{
    size_t n;
    rows = rows < 1 ? 1 : rows;
    cols = cols < 1 ? 1 : cols;
    if (!size_mul((size_t)rows, (size_t)cols, &n))
        return false;
    struct cell *cell = mem_calloc(n, sizeof *cell);
    if (!cell)
        return false;
    free(s->cell);
    s->cell = cell;
    s->rows = rows;
    s->cols = cols;
    screen_clear(s);
    return true;
}

static void blank(struct cell *c, enum role role)
{
    c->text[0] = ' ';
    c->text[1] = 0;
    c->width = 1;
    c->role = (uint8_t)role;
}

void screen_clear(struct screen *s)
{
    for (size_t i = 0; i < (size_t)s->rows * (size_t)s->cols; i++)
        blank(&s->cell[i], ROLE_NORMAL);
    s->cursor_row = s->cursor_col = -1;
}

static struct cell *at(struct screen *s, int row, int col)
{
    if (row < 0 || col < 0 || row >= s->rows || col >= s->cols)
        return NULL;
    return &s->cell[(size_t)row * (size_t)s->cols + (size_t)col];
}

/* Half a wide character may not stay behind when its other half is overwritten. */
static void clear_halves(struct screen *s, int row, int col)
{
    struct cell *c = at(s, row, col), *left = at(s, row, col - 1), *right = at(s, row, col + 1);
    if (c && c->width == 0 && left)
        blank(left, left->role);
    if (c && c->width == 2 && right)
        blank(right, right->role);
}

static void put_cluster(struct screen *s, int row, int col, enum role role, const struct cluster *u)
{
    struct cell *c = at(s, row, col);
    if (!c)
        return;
    clear_halves(s, row, col);
    blank(c, role);
    if (s->ascii)
        c->text[0] = sanitize_ascii(u->text);
    else
        memcpy(c->text, u->text, sizeof c->text);
    if (u->width != 2)
        return;
    struct cell *right = at(s, row, col + 1);
    if (!right) {
        blank(c, role);
        return;
    }
    clear_halves(s, row, col + 1);
    blank(right, role);
    if (s->ascii)
        return;
    c->width = 2;
    right->text[0] = 0;
    right->width = 0;
}

int screen_putn(struct screen *s, int row, int col, int width, enum role role, const char *text,
                size_t n)
{
    static const struct cluster more = {"…", 1};
    struct cluster c;
    int used = 0, last = 0;
    for (size_t k; (k = sanitize_next(text, n, &c)) > 0; text += k, n -= k) {
        if (c.width == 0)
            continue;
        if (used + c.width > width) {
            /* The mark replaces the last character that did fit when the line is full. */
            if (width > 0)
                put_cluster(s, row, col + (used < width ? used : last), role, &more);
            return width > 0 ? (used < width ? used + 1 : width) : 0;
        }
        last = used;
        if (c.text[0] == ' ') {
            struct cluster space = {" ", 1};
            for (int i = 0; i < c.width; i++)
                put_cluster(s, row, col + used + i, role, &space);
        } else {
            put_cluster(s, row, col + used, role, &c);
        }
        used += c.width;
    }
    return used;
}

int screen_put(struct screen *s, int row, int col, int width, enum role role, const char *text)
{
    return screen_putn(s, row, col, width, role, text, strlen(text));
}

int screen_putf(struct screen *s, int row, int col, int width, enum role role, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return screen_put(s, row, col, width, role, text);
}

int screen_right(struct screen *s, int row, int col, int width, enum role role, const char *text)
{
    int w = sanitize_width(text, strlen(text));
    int pad = w < width ? width - w : 0;
    return pad + screen_put(s, row, col + pad, width - pad, role, text);
}

int screen_tail(struct screen *s, int row, int col, int width, enum role role, const char *text)
{
    struct cluster c;
    size_t n = strlen(text), k = 0;
    int w = sanitize_width(text, n);
    if (w <= width)
        return screen_put(s, row, col, width, role, text);
    while (k < n && w > width - 1) {
        k += sanitize_next(text + k, n - k, &c);
        w -= c.width;
    }
    if (width > 0)
        screen_put(s, row, col, 1, role, "…");
    return 1 + screen_put(s, row, col + 1, width - 1, role, text + k);
}

void screen_fill(struct screen *s, struct rect r, enum role role)
{
    struct cluster space = {" ", 1};
    for (int y = r.y; y < r.y + r.h; y++)
        for (int x = r.x; x < r.x + r.w; x++)
            put_cluster(s, y, x, role, &space);
}

void screen_box(struct screen *s, struct rect r, enum role border, const char *title)
{
    if (r.h < 3 || r.w < 4)
        return;
    for (int x = r.x + 1; x < r.x + r.w - 1; x++) {
        screen_put(s, r.y, x, 1, border, "─");
        screen_put(s, r.y + r.h - 1, x, 1, border, "─");
    }
    for (int y = r.y + 1; y < r.y + r.h - 1; y++) {
        screen_put(s, y, r.x, 1, border, "│");
        screen_put(s, y, r.x + r.w - 1, 1, border, "│");
    }
    screen_put(s, r.y, r.x, 1, border, "┌");
    screen_put(s, r.y, r.x + r.w - 1, 1, border, "┐");
    screen_put(s, r.y + r.h - 1, r.x, 1, border, "└");
    screen_put(s, r.y + r.h - 1, r.x + r.w - 1, 1, border, "┘");
    if (title && r.w > 6) {
        char text[256];
        snprintf(text, sizeof text, " %s ", title);
        screen_put(s, r.y, r.x + 1, r.w - 2, border == ROLE_FOCUS ? border : ROLE_TITLE, text);
    }
}

void screen_bar(struct screen *s, int row, int col, int width, enum role role, double share)
{
    static const char *const eighth[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    share = share > 0 ? (share < 1 ? share : 1) : 0; /* NaN gives an empty bar */
    int parts = (int)(share * width * 8 + 0.5);
    for (int i = 0; i < width; i++) {
        int p = parts - i * 8;
        screen_put(s, row, col + i, 1, role, p >= 8 ? "█" : p > 0 ? eighth[p] : " ");
    }
}

void screen_cursor(struct screen *s, int row, int col)
{
    if (!at(s, row, col))
        return;
    s->cursor_row = row;
    s->cursor_col = col;
}

char *screen_row(const struct screen *s, int row)
{
    char *text = mem_calloc((size_t)s->cols + 1, CLUSTER_BYTES);
    size_t n = 0, end = 0;
    if (!text)
        return NULL;
    for (int x = 0; x < s->cols; x++) {
        const struct cell *c = &s->cell[(size_t)row * (size_t)s->cols + (size_t)x];
        size_t k = strlen(c->text);
        memcpy(text + n, c->text, k);
        n += k;
        if (k && strcmp(c->text, " ") != 0)
            end = n;
    }
    text[end] = 0;
    return text;
}
