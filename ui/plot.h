/* plot: curves from plain arrays as a grid of characters, braille (2×4 dots a character) or ASCII.
 * Pure: the caller owns the grid and draws it. */
#ifndef MLATHE_UI_PLOT_H
#define MLATHE_UI_PLOT_H

#include "core/base.h"

struct plot {
    int h, w;      /* characters */
    bool ascii;
    uint8_t *dots; /* [h][w], braille bit pattern; ASCII: one bit for each third of the cell */
};
int plot_init(struct plot *p, int h, int w, bool ascii, struct err *e);
void plot_done(struct plot *p);
/* y[n] over x = 0 … n−1, mapped from [lo, hi] (top is hi); neighbours are joined. Values that are
 * not finite are left out, others clipped. */
void plot_curve(struct plot *p, const double *y, int n, double lo, double hi);
/* The character at (row, col) as UTF-8; " " when empty. */
void plot_char(const struct plot *p, int row, int col, char text[8]);
/* Column of element i of n. */
int plot_column(const struct plot *p, int i, int n);

#endif
