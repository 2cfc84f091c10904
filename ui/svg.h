/* svg: plots from plain arrays as SVG that stands alone or inside a page: axes with units, a
 * legend, colours for light and dark backgrounds by the reader's own setting, and never colour
 * alone (lines differ in dashes, bars in tone, each has a title). Pure: no files. */
#ifndef MLATHE_UI_SVG_H
#define MLATHE_UI_SVG_H

#include "ui/markup.h"

#define SVG_WIDTH 760
#define SVG_HEIGHT 320

enum svg_kind {
    SVG_LINES,
    SVG_STACKED, /* bars: the series on top of each other */
    SVG_GROUPED, /* bars: side by side */
};
struct svg_series {
    const char *name;
    const double *y;   /* [n]; not finite: left out. On a log axis so is what is not positive */
    const double *err; /* [n] ± of a bar, or NULL */
    int n;
};
struct svg_plot {
    const char *title, *x_label, *y_label;
    const double *x;            /* [n] of lines; NULL: 0, 1, 2 … */
    const char *const *x_names; /* [n] of bars; NULL: numbers */
    enum svg_kind kind;
    bool log_y;
    bool many; /* a family of lines: one legend for first and last, colours run between */
    const struct svg_series *series;
    int n_series;
    double level; /* a line across at this y, with its name; NaN: none */
    const char *level_name;
    double mark; /* a line upwards at this x; NaN: none */
    const char *mark_name;
};
/* n plots below each other as a file of their own. */
void svg_document(struct markup *m, const struct svg_plot *p, int n);
/* The element for a page whose style has svg_style in it. */
void svg_element(struct markup *m, const struct svg_plot *p);
/* The rules of both. */
const char *svg_style(void);

#endif
