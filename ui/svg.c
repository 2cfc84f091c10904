/* Plots as SVG. Refuses nothing: a plot without a finite number says so instead of its curves. */
#include "ui/svg.h"

#include <math.h>
#include <stdio.h>

#define LEFT 72
#define RIGHT 16
#define TOP 54
#define BOTTOM 46
#define TONES 4 /* colours and dashes before they repeat */
#define FAMILY_POINTS 400

/* Colours are plain, not variables: many viewers of pictures know no more. */
static const char style[] =
    "svg.plot{font:12px system-ui,sans-serif;max-width:100%;height:auto}"
    ".plot text{font-family:system-ui,sans-serif;font-size:12px;fill:#59636e}"
    ".plot .title{fill:#1b1f24;font-size:14px;font-weight:600}"
    ".plot .paper{fill:#fff}.plot .grid{stroke:#d9dee3;fill:none}"
    ".plot .axis{stroke:#59636e;fill:none}.plot .whisker{stroke:#1b1f24;fill:none}"
    ".plot .note{stroke:#1b1f24;stroke-dasharray:2 4;fill:none}\n"
    ".plot .line{fill:none;stroke-width:1.8;stroke-linejoin:round}"
    ".plot .thin{fill:none;stroke-width:1;stroke-opacity:.8}"
    ".plot .s0{stroke:#0969da}.plot .s1{stroke:#bc4c00;stroke-dasharray:7 3}"
    ".plot .s2{stroke:#1a7f37;stroke-dasharray:2 3}"
    ".plot .s3{stroke:#8250df;stroke-dasharray:9 3 2 3}\n"
    ".plot .b0{fill:#0969da}.plot .b1{fill:#bc4c00;fill-opacity:.5;stroke:#bc4c00}"
    ".plot .b2{fill:#1a7f37}.plot .b3{fill:#8250df;fill-opacity:.5;stroke:#8250df}\n"
    "@media(prefers-color-scheme:dark){.plot text{fill:#9aa4af}.plot .title{fill:#e6edf3}"
    ".plot .paper{fill:#0d1117}.plot .grid{stroke:#323941}.plot .axis{stroke:#9aa4af}"
    ".plot .note,.plot .whisker{stroke:#e6edf3}"
    ".plot .s0{stroke:#58a6ff}.plot .s1{stroke:#f0883e}.plot .s2{stroke:#3fb950}"
    ".plot .s3{stroke:#bc8cff}.plot .b0{fill:#58a6ff}.plot .b1{fill:#f0883e;stroke:#f0883e}"
    ".plot .b2{fill:#3fb950}.plot .b3{fill:#bc8cff;stroke:#bc8cff}}\n";

const char *svg_style(void)
{
    return style;
}

/* Where values lie. Logarithmic axes count in decades. */
struct frame {
    const struct svg_plot *p;
    double x0, x1, y0, y1; /* data; y in log10 when log_y */
    double top;            /* of the element */
    int n;                 /* longest series */
    bool empty;
};

static double y_value(const struct svg_plot *p, double v)
{
    return !p->log_y ? v : v > 0 ? log10(v) : NAN;
}

static double at_x(const struct frame *f, double x)
{
    return LEFT + (x - f->x0) / (f->x1 - f->x0) * (SVG_WIDTH - LEFT - RIGHT);
}

static double at_y(const struct frame *f, double y)
{
    double share = (y - f->y0) / (f->y1 - f->y0);
    share = share < -0.02 ? -0.02 : share > 1.02 ? 1.02 : share;
    return f->top + SVG_HEIGHT - BOTTOM - share * (SVG_HEIGHT - TOP - BOTTOM);
}

/* 1, 2 or 5 times a power of ten: about `want` steps in the range. */
static double nice_step(double range, int want)
{
    double raw = range / want, power = pow(10, floor(log10(raw))), m = raw / power;
    return power * (m > 5 ? 10 : m > 2 ? 5 : m > 1 ? 2 : 1);
}

static void include(struct frame *f, double y)
{
    y = y_value(f->p, y);
    if (!isfinite(y))
        return;
    f->y0 = f->empty || y < f->y0 ? y : f->y0;
    f->y1 = f->empty || y > f->y1 ? y : f->y1;
    f->empty = false;
}

static double value(const struct svg_series *s, int i)
{
    return i < s->n ? s->y[i] : NAN;
}

static void measure_y(struct frame *f)
{
    const struct svg_plot *p = f->p;
    for (int i = 0; i < f->n; i++) {
        double sum = 0;
        for (int k = 0; k < p->n_series; k++) {
            const struct svg_series *s = &p->series[k];
            double v = value(s, i), err = s->err && i < s->n && isfinite(s->err[i]) ? s->err[i] : 0;
            sum += isfinite(v) ? v : 0;
            if (p->kind != SVG_STACKED) {
                include(f, v + err);
                include(f, v - err);
            }
        }
        if (p->kind == SVG_STACKED)
            include(f, sum);
    }
    include(f, p->level);
    if (p->kind != SVG_LINES)
        include(f, 0);
}

static struct frame frame_of(const struct svg_plot *p, double top)
{
    struct frame f = {.p = p, .top = top, .empty = true};
    for (int k = 0; k < p->n_series; k++)
        f.n = p->series[k].n > f.n ? p->series[k].n : f.n;
    measure_y(&f);
    f.empty = f.empty || !f.n;
    bool bars = p->kind != SVG_LINES;
    f.x0 = bars ? -0.5 : p->x && f.n ? p->x[0] : 0;
    f.x1 = bars ? f.n - 0.5 : p->x && f.n ? p->x[f.n - 1] : f.n - 1;
    if (!(f.x1 > f.x0))
        f.x1 = f.x0 + 1;
    if (p->log_y && f.y1 - f.y0 > 9) /* rounding noise at the end of a spectrum tells nothing */
        f.y0 = f.y1 - 9;
    double room = (f.y1 - f.y0) * 0.05;
    room = room > 0 ? room : fabs(f.y1) > 0 ? fabs(f.y1) * 0.1 : 1;
    f.y1 += room;
    if (!(bars && f.y0 >= 0))
        f.y0 -= room;
    return f;
}

static void put_tick_y(struct markup *m, const struct frame *f, double y)
{
    markup_printf(m,
                  "<path class=\"grid\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" "
                  "text-anchor=\"end\">",
                  LEFT, at_y(f, y), SVG_WIDTH - RIGHT, LEFT - 6, at_y(f, y) + 4);
    if (f->p->log_y)
        markup_printf(m, "1e%g</text>\n", y);
    else
        markup_printf(m, "%.5g</text>\n", fabs(y) < 1e-12 * (f->y1 - f->y0) ? 0 : y);
}

static void put_tick_x(struct markup *m, const struct frame *f, double x)
{
    const struct svg_plot *p = f->p;
    int i = (int)x;
    markup_printf(m, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", at_x(f, x),
                  f->top + SVG_HEIGHT - BOTTOM + 16);
    if (p->kind != SVG_LINES && p->x_names && i >= 0 && i < f->n)
        markup_escape(m, p->x_names[i]);
    else
        markup_printf(m, "%.6g", fabs(x) < 1e-9 ? 0 : x);
    markup_put(m, "</text>\n");
}

static void put_axes(struct markup *m, const struct frame *f)
{
    const struct svg_plot *p = f->p;
    double step = nice_step(f->y1 - f->y0, 5), mid = f->top + (SVG_HEIGHT + TOP - BOTTOM) / 2.0;
    step = p->log_y && step < 1 ? 1 : step;
    for (double y = ceil(f->y0 / step) * step; y <= f->y1; y += step)
        put_tick_y(m, f, y);
    step = p->x_names ? 1 : nice_step(f->x1 - f->x0, 10);
    step = p->kind != SVG_LINES && step < 1 ? 1 : step;
    for (double x = ceil(f->x0 / step) * step; x <= f->x1; x += step)
        put_tick_x(m, f, x);
    markup_printf(m, "<path class=\"axis\" d=\"M%d %.1fV%.1fH%d\"/>\n", LEFT, f->top + TOP,
                  f->top + SVG_HEIGHT - BOTTOM, SVG_WIDTH - RIGHT);
    markup_printf(m, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"middle\">",
                  (SVG_WIDTH + LEFT - RIGHT) / 2, f->top + SVG_HEIGHT - 10);
    markup_escape(m, p->x_label);
    markup_printf(m,
                  "</text>\n<text x=\"14\" y=\"%.1f\" text-anchor=\"middle\" "
                  "transform=\"rotate(-90 14 %.1f)\">",
                  mid, mid);
    markup_escape(m, p->y_label);
    markup_put(m, "</text>\n");
}

/* Points that a reader could not tell apart are passed over. */
static void put_line(struct markup *m, const struct frame *f, int k)
{
    const struct svg_plot *p = f->p;
    const struct svg_series *s = &p->series[k];
    bool drawn = false;
    int step = s->n > 4 * FAMILY_POINTS ? s->n / FAMILY_POINTS : 1;
    if (p->many) {
        double share = p->n_series > 1 ? (double)k / (p->n_series - 1) : 0;
        markup_printf(m, "<path class=\"thin\" stroke=\"hsl(%.0f,75%%,60%%)\" d=\"",
                      215 + 145 * share);
    } else {
        markup_printf(m, "<path class=\"line s%d\" d=\"", k % TONES);
    }
    for (int i = 0, next; i < s->n; i = next) {
        next = i + step < s->n || i == s->n - 1 ? i + step : s->n - 1; /* the last one shows */
        double y = y_value(p, s->y[i]);
        bool seen = isfinite(y) && y >= f->y0;
        if (seen)
            markup_printf(m, "%c%.1f %.1f", drawn ? 'L' : 'M', at_x(f, p->x ? p->x[i] : i),
                          at_y(f, y));
        drawn = seen;
    }
    markup_put(m, "\"><title>");
    markup_escape(m, s->name);
    markup_put(m, "</title></path>\n");
}

static void put_whisker(struct markup *m, const struct frame *f, double x, double y, double err)
{
    if (isfinite(err) && err > 0)
        markup_printf(m, "<path class=\"whisker\" d=\"M%.1f %.1fV%.1f\"/>\n", x, at_y(f, y - err),
                      at_y(f, y + err));
}

static void put_bars(struct markup *m, const struct frame *f)
{
    const struct svg_plot *p = f->p;
    bool grouped = p->kind == SVG_GROUPED;
    double slot = (SVG_WIDTH - LEFT - RIGHT) / (f->x1 - f->x0) * 0.8;
    double width = grouped && p->n_series > 0 ? slot / p->n_series : slot;
    for (int i = 0; i < f->n; i++) {
        double base = 0;
        for (int k = 0; k < p->n_series; k++) {
            const struct svg_series *s = &p->series[k];
            double v = value(s, i), left = at_x(f, i) - slot / 2 + (grouped ? k * width : 0);
            if (!isfinite(v))
                continue;
            double a = at_y(f, base), b = at_y(f, base + v);
            markup_printf(m,
                          "<rect class=\"b%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
                          "height=\"%.1f\"><title>",
                          k % TONES, left, a < b ? a : b, width > 2 ? width - 1 : width,
                          fabs(a - b));
            markup_escape(m, s->name);
            if (p->x_names) {
                markup_put(m, ", ");
                markup_escape(m, p->x_names[i]);
            } else {
                markup_printf(m, ", %d", i);
            }
            markup_printf(m, ": %.6g</title></rect>\n", v);
            if (s->err)
                put_whisker(m, f, left + width / 2, base + v, s->err[i]);
            base += grouped ? 0 : v;
        }
    }
}

static void put_notes(struct markup *m, const struct frame *f)
{
    const struct svg_plot *p = f->p;
    double level = y_value(p, p->level);
    if (isfinite(level)) {
        markup_printf(m,
                      "<path class=\"note\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" "
                      "text-anchor=\"end\">",
                      LEFT, at_y(f, level), SVG_WIDTH - RIGHT, SVG_WIDTH - RIGHT - 4,
                      at_y(f, level) - 4);
        markup_escape(m, p->level_name ? p->level_name : "");
        markup_put(m, "</text>\n");
    }
    if (isfinite(p->mark) && p->mark >= f->x0 && p->mark <= f->x1) {
        markup_printf(m,
                      "<path class=\"note\" d=\"M%.1f %.1fV%.1f\"/><text x=\"%.1f\" "
                      "y=\"%.1f\">",
                      at_x(f, p->mark), f->top + TOP, f->top + SVG_HEIGHT - BOTTOM,
                      at_x(f, p->mark) + 4, f->top + TOP + 12);
        markup_escape(m, p->mark_name ? p->mark_name : "");
        markup_put(m, "</text>\n");
    }
}

/* One entry at x; a family shows its first and last. Returns the next place. */
static double put_legend_entry(struct markup *m, const struct frame *f, int k, double x)
{
    const struct svg_plot *p = f->p;
    double y = f->top + 36;
    size_t n = 0;
    for (const char *s = p->series[k].name; *s; s++)
        n += (*s & 0xc0) != 0x80;
    if (p->many)
        markup_printf(m,
                      "<path stroke-width=\"2\" stroke=\"hsl(%d,75%%,60%%)\" d=\"M%.1f %.1fh24\"/>",
                      k ? 360 : 215, x, y - 4);
    else if (p->kind == SVG_LINES)
        markup_printf(m, "<path class=\"line s%d\" d=\"M%.1f %.1fh24\"/>", k % TONES, x, y - 4);
    else
        markup_printf(m, "<rect class=\"b%d\" x=\"%.1f\" y=\"%.1f\" width=\"24\" height=\"9\"/>",
                      k % TONES, x, y - 9);
    markup_printf(m, "<text x=\"%.1f\" y=\"%.1f\">", x + 30, y);
    markup_escape(m, p->series[k].name);
    markup_put(m, "</text>\n");
    return x + 48 + 6.6 * (double)n;
}

static void put_legend(struct markup *m, const struct frame *f)
{
    const struct svg_plot *p = f->p;
    double x = LEFT;
    for (int k = 0; k < p->n_series; k++)
        if (!p->many || k == 0 || k == p->n_series - 1)
            x = put_legend_entry(m, f, k, x);
}

static void put_plot(struct markup *m, const struct svg_plot *p, double top)
{
    struct frame f = frame_of(p, top);
    markup_printf(m, "<text class=\"title\" x=\"%d\" y=\"%.1f\">", LEFT, top + 18);
    markup_escape(m, p->title);
    markup_put(m, "</text>\n");
    if (f.empty) {
        markup_printf(m, "<text x=\"%d\" y=\"%.1f\">no numbers</text>\n", LEFT, top + TOP + 20);
        return;
    }
    put_axes(m, &f);
    for (int k = 0; k < p->n_series && p->kind == SVG_LINES; k++)
        put_line(m, &f, k);
    if (p->kind != SVG_LINES)
        put_bars(m, &f);
    put_notes(m, &f);
    put_legend(m, &f);
}

static void open_element(struct markup *m, const struct svg_plot *p, int height, bool alone)
{
    markup_printf(m,
                  "<svg class=\"plot\" role=\"img\"%s width=\"%d\" height=\"%d\" viewBox=\"0 0 %d "
                  "%d\" aria-label=\"",
                  alone ? " xmlns=\"http://www.w3.org/2000/svg\"" : "", SVG_WIDTH, height,
                  SVG_WIDTH, height);
    markup_escape(m, p->title);
    markup_put(m, "\">\n");
}

void svg_element(struct markup *m, const struct svg_plot *p)
{
    open_element(m, p, SVG_HEIGHT, false);
    put_plot(m, p, 0);
    markup_put(m, "</svg>\n");
}

void svg_document(struct markup *m, const struct svg_plot *p, int n)
{
    open_element(m, p, n * SVG_HEIGHT, true);
    markup_printf(
        m, "<style>%s</style>\n<rect class=\"paper\" width=\"100%%\" height=\"100%%\"/>\n", style);
    for (int i = 0; i < n; i++)
        put_plot(m, &p[i], (double)i * SVG_HEIGHT);
    markup_put(m, "</svg>\n");
}
