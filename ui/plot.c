/* Curves in characters. Refuses nothing: an empty grid or an empty array draws nothing. */
#include "ui/plot.h"

#include <math.h>
#include <stdlib.h>

int plot_init(struct plot *p, int h, int w, bool ascii, struct err *e)
{
    *p = (struct plot){.h = h > 0 ? h : 0, .w = w > 0 ? w : 0, .ascii = ascii};
    p->dots = mem_calloc((size_t)p->h * (size_t)p->w, 1);
    return p->dots ? OK : err_nomem(e, (size_t)p->h * (size_t)p->w, "plot");
}

void plot_done(struct plot *p)
{
    free(p->dots);
    *p = (struct plot){0};
}

static int dots_across(const struct plot *p)
{
    return p->w * (p->ascii ? 1 : 2);
}

static int dots_down(const struct plot *p)
{
    return p->h * (p->ascii ? 3 : 4);
}

static void dot(struct plot *p, int x, int y)
{
    static const uint8_t bit[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    if (x < 0 || y < 0 || x >= dots_across(p) || y >= dots_down(p))
        return;
    if (p->ascii)
        p->dots[(y / 3) * p->w + x] |= (uint8_t)(1 << (y % 3));
    else
        p->dots[(y / 4) * p->w + x / 2] |= bit[y % 4][x % 2];
}

void plot_curve(struct plot *p, const double *y, int n, double lo, double hi)
{
    int across = dots_across(p), down = dots_down(p), before = -1;
    if (n <= 0 || across == 0 || down == 0 || !(hi > lo))
        return;
    for (int x = 0; x < across; x++) {
        /* Each column of dots shows one element; neighbours in between follow by the joining. */
        int i = across > 1 ? (int)((double)x * (n - 1) / (across - 1) + 0.5) : 0;
        double v = y[i];
        if (!isfinite(v)) {
            before = -1;
            continue;
        }
        double share = (hi - v) / (hi - lo);
        share = share < 0 ? 0 : share > 1 ? 1 : share;
        int at = (int)(share * (down - 1) + 0.5);
        dot(p, x, at);
        for (int k = before; before >= 0 && k != at; k += k < at ? 1 : -1)
            dot(p, x, k);
        before = at;
    }
}

void plot_char(const struct plot *p, int row, int col, char text[8])
{
    static const char ascii[] = " '-!.:|||";
    unsigned bits = p->dots[row * p->w + col];
    if (p->ascii || bits == 0) {
        text[0] = p->ascii ? ascii[bits & 7] : ' ';
        text[1] = 0;
        return;
    }
    unsigned cp = 0x2800 + bits;
    text[0] = (char)(0xe0 | cp >> 12);
    text[1] = (char)(0x80 | (cp >> 6 & 0x3f));
    text[2] = (char)(0x80 | (cp & 0x3f));
    text[3] = 0;
}

int plot_column(const struct plot *p, int i, int n)
{
    if (n <= 1 || p->w <= 1)
        return 0;
    int across = dots_across(p);
    int x = (int)((double)i * (across - 1) / (n - 1) + 0.5);
    x = x < 0 ? 0 : x >= across ? across - 1 : x;
    return p->ascii ? x : x / 2;
}
