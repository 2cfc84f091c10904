/* Screen 2's plots: the spectrum of a layer with its cut and what lies under it, keys and values
 * alone beside it where there is room. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ui/app_parts.h"
#include "ui/plot.h"

#define PLOT_ROWS 8 /* of a curve, before a second line is put below it */

struct curve {
    const double *y;
    int n, cut; /* cut: index of the first component dropped; -1: none */
    bool linear;
    int zoom;             /* 2^zoom times, around the cut */
    const double *beside; /* [n] dotted, NULL: nothing */
};

/* The part of a curve that is in the picture: its first component, their number, and between which
 * values: shares of the first component of all, or their log10. */
struct window {
    int from, n;
    double lo, hi;
};

/* All of it goes from 1 down to 0, or over four decades at least and eight at most; a part of it
 * from its largest to its smallest value. */
static struct window look(const struct curve *c, const double *v)
{
    struct window w = {0, c->n, c->linear ? 0 : -4, c->linear ? 1 : 0};
    double least = INFINITY, most = -INFINITY;
    if (c->zoom) {
        w.n = c->n >> c->zoom > 8 ? c->n >> c->zoom : c->n < 8 ? c->n : 8;
        w.from = c->cut - w.n / 2;
        w.from = w.from < 0 ? 0 : w.from + w.n > c->n ? c->n - w.n : w.from;
    }
    for (int i = w.from; i < w.from + w.n; i++) {
        least = fmin(least, v[i]); /* of a number and NaN: the number */
        most = fmax(most, v[i]);
    }
    if (!c->linear && least < w.lo)
        w.lo = floor(least);
    if (c->zoom && least < most) {
        w.lo = least;
        w.hi = most;
    }
    return w;
}

/* What is nothing but rounding is left out of the picture. */
static double *values(const struct curve *c, const double *y)
{
    double *v = mem_calloc((size_t)c->n, sizeof *v), first = y[0];
    for (int i = 0; v && i < c->n; i++) {
        double share = first > 0 ? y[i] / first : NAN;
        v[i] = c->linear ? share : share > 1e-8 ? log10(share) : NAN;
    }
    return v;
}

/* Of all: every second decade, or 1, 0.5, 0. Of a part: its largest, middle and smallest value. */
static void draw_axis(struct screen *s, struct rect area, int x, const struct curve *c,
                      const struct window *w)
{
    for (int d = 0; !c->linear && !c->zoom && d >= (int)w->lo; d -= 2)
        screen_putf(s, area.y + (int)(d / w->lo * (area.h - 1) + 0.5), x, 5, ROLE_DIM, "1e%d", d);
    for (int i = 0; (c->linear || c->zoom) && i < 3; i++) {
        double at = w->hi - 0.5 * i * (w->hi - w->lo);
        double share = c->linear ? at : pow(10, at);
        char text[16];
        snprintf(text, sizeof text,
                 share < 0.01 && share > 0 ? "%.0e"
                 : c->zoom                 ? "%.2f"
                                           : "%.1f",
                 share);
        char *zero = strstr(text, "e-0"); /* four columns: 3e-4 */
        if (zero)
            memmove(zero + 2, zero + 3, strlen(zero + 2));
        screen_put(s, area.y + i * (area.h - 1) / 2, x, 5, ROLE_DIM, text);
    }
}

/* Every second column of another curve, where the first one is not. */
static void draw_beside(struct screen *s, struct rect area, const struct curve *c,
                        const struct plot *over, const struct window *w)
{
    struct plot p;
    char text[16];
    double *v = values(c, c->beside);
    if (!v || plot_init(&p, area.h, area.w, s->ascii, NULL)) {
        free(v);
        return;
    }
    plot_curve(&p, v + w->from, w->n, w->lo, w->hi);
    for (int y = 0; y < area.h; y++)
        for (int x = 0; x < area.w; x += 2) {
            plot_char(over, y, x, text);
            if (strcmp(text, " ") != 0)
                continue;
            plot_char(&p, y, x, text);
            if (strcmp(text, " ") != 0)
                screen_put(s, area.y + y, area.x + x, 1, ROLE_DIM, text);
        }
    plot_done(&p);
    free(v);
}

/* Plot area with values at the left, indices below, and the cut as a dotted line. */
static void draw_plot(struct screen *s, struct rect in, const struct curve *c, bool fresh)
{
    struct plot p;
    double *v = c->n > 0 ? values(c, c->y) : NULL;
    struct rect area = {in.y, in.x + 5, in.h - 1, in.w - 6};
    if (!v || s->plain || area.h < 2 || area.w < 8 ||
        plot_init(&p, area.h, area.w, s->ascii, NULL)) {
        free(v);
        return;
    }
    struct window w = look(c, v);
    plot_curve(&p, v + w.from, w.n, w.lo, w.hi);
    draw_axis(s, area, in.x, c, &w);
    int cut =
        c->cut >= w.from && c->cut < w.from + w.n ? plot_column(&p, c->cut - w.from, w.n) : -1;
    char text[16], mark[32];
    for (int y = 0; y < area.h; y++)
        for (int x = 0; x < area.w; x++) {
            plot_char(&p, y, x, text);
            bool empty = strcmp(text, " ") == 0;
            enum role role = !fresh ? ROLE_DIM : cut >= 0 && x > cut ? ROLE_DIM : ROLE_CURVE;
            if (x == cut && empty)
                screen_put(s, area.y + y, area.x + x, 1, ROLE_CUT, "┊");
            else if (!empty)
                screen_put(s, area.y + y, area.x + x, 1, role, text);
        }
    if (c->beside)
        draw_beside(s, area, c, &p, &w);
    /* Below: where it begins, the cut, and where it ends, without running into one another. */
    int y = in.y + in.h - 1;
    snprintf(mark, sizeof mark, "r=%d", c->cut);
    int at = cut - (int)strlen(mark) / 2, width = (int)strlen(mark);
    at = at < 0 ? 0 : at + width > area.w ? area.w - width : at;
    snprintf(text, sizeof text, "%d", w.from);
    if (cut < 0 || at > (int)strlen(text))
        screen_put(s, y, area.x, area.w, ROLE_DIM, text);
    snprintf(text, sizeof text, "%d", w.from + w.n);
    if (cut < 0 || at + width < area.w - (int)strlen(text))
        screen_right(s, y, area.x, area.w, ROLE_DIM, text);
    if (cut >= 0)
        screen_put(s, y, area.x + at, area.w, ROLE_CUT, mark);
    plot_done(&p);
    free(v);
}

static const char *waiting_text(const struct app *a)
{
    return a->status.active && a->status.kind != &job_spectra ? "waits for the running job"
                                                              : "updating…";
}

/* What the latent of a layer is made of. */
static void made_of(const struct layer_curve *c, const struct spectrum *weights, int rank,
                    int width, char *text, size_t size)
{
    char sink[40] = ""; /* what attention parks on the first token */
    if (weights)
        snprintf(sink, sizeof sink, "   weights alone %.1f%%",
                 100 * spectrum_energy(weights, rank));
    else if (width >= 56 && isfinite(c->spectrum.sink))
        snprintf(sink, sizeof sink, "   sink %.0f%%", 100 * c->spectrum.sink);
    snprintf(text, size,
             width < (weights ? 62 : 42) ? "kept %.1f%%   K share %.0f%%%s"
                                         : "kept %.1f%%   K share of this latent %.0f%%%s",
             100 * spectrum_energy(&c->spectrum, rank),
             100 * spectrum_key_share(&c->spectrum, rank), sink);
}

/* Where a layer's loss comes from: in KL when that was measured. */
static bool loss_split(const struct app *a, const struct layer_curve *c, int layer, int width,
                       char *text, size_t size)
{
    const struct sensitivity *m = sensitivity_now(a);
    int rank = a->ranks.plan.layer[layer].kv_lora_rank;
    char rope[16], cost[16];
    if (!m)
        return false;
    double of_rope = sensitivity_rope(m, layer), all = sensitivity_layer(m, layer, rank);
    snprintf(text, size,
             width < 38   ? "%.1f%%  ΔKL rope %s rank %s"
             : width < 50 ? "kept %.1f%%  ΔKL rope %s rank %s"
                          : "kept %.1f%%   ΔKL by rope %s, by rank %s",
             100 * spectrum_energy(&c->spectrum, rank), view_small(of_rope, rope),
             view_small(fmax(all - of_rope, 0), cost));
    return true;
}

/* The same in attention's output, of the conversion in use when it is of this plan. */
static bool output_split(const struct app *a, int layer, int width, char *text, size_t size)
{
    const struct convert_state *c = &a->convert;
    const struct layer_report *r;
    char grid[32] = "";
    if (!c->has_result || !rankplan_equal(&c->result_plan, &a->ranks.plan))
        return false;
    r = &c->result.layer[layer];
    if (!isfinite(r->error))
        return false;
    if (r->loss_layout > 0)
        snprintf(grid, sizeof grid, " layout %.2f%%", 100 * r->loss_layout);
    snprintf(text, size,
             width < 46 ? "lost %.1f%%: rope %.2f%%%s rank %.2f%%"
                        : "lost of the output %.1f%%: rope %.2f%%%s rank %.2f%%",
             100 * r->error, 100 * (r->loss_rope - r->loss_layout), grid, 100 * r->loss_rank);
    return true;
}

/* The lines under the curve, the best one first; their number. */
static int curve_lines(const struct app *a, const struct layer_curve *c, int layer, int width,
                       char text[3][160])
{
    int n = 0, rank = a->ranks.plan.layer[layer].kv_lora_rank;
    n += loss_split(a, c, layer, width, text[n], sizeof *text);
    made_of(c, plan_weights(a, layer), rank, width, text[n], sizeof *text);
    n++;
    return n + output_split(a, layer, width, text[n], sizeof *text);
}

/* which: 0 keys and values together, 1 keys, 2 values. */
static struct curve curve_of(const struct app *a, int layer, int which)
{
    const struct ranks_state *k = &a->ranks;
    const struct spectrum *m = &k->curve[layer].spectrum, *w = plan_weights(a, layer);
    struct curve c = {m->joint, m->n, k->plan.layer[layer].kv_lora_rank, k->linear, k->zoom, NULL};
    if (which)
        c = (struct curve){which == 1 ? m->key : m->value,
                           which == 1 ? m->n_key : m->n_value,
                           -1,
                           k->linear,
                           0,
                           NULL};
    bool same = w && w->n == m->n && w->n_key == m->n_key && w->n_value == m->n_value;
    c.beside = !same ? NULL : which == 0 ? w->joint : which == 1 ? w->key : w->value;
    return c;
}

void view_spectrum(const struct app *a, struct screen *s, struct rect r)
{
    const struct ranks_state *k = &a->ranks;
    const struct layer_curve *c = &k->curve[k->layer];
    struct rect in = layout_inside(r);
    bool fits = plan_curve_fits(a, k->layer);
    static const char *const of[] = {"spectrum", "keys alone", "values alone"};
    char title[128];
    char zoom[16] = "";
    if (k->zoom && k->curves == 0)
        snprintf(zoom, sizeof zoom, " %d× (Z)", 1 << k->zoom);
    snprintf(title, sizeof title, "layer %d: %s, %s%s%s%s", k->layer, of[k->curves],
             c->there && c->spectrum.calibrated ? "calibrated" : "weights only", zoom,
             c->there && !fits ? ", " : "", c->there && !fits ? waiting_text(a) : "");
    screen_box(s, r, ROLE_BORDER, title);
    if (in.h < 4)
        return;
    if (!c->there || c->spectrum.n < 1) {
        screen_put(s, in.y + in.h / 2, in.x + 2, in.w - 2, ROLE_DIM, waiting_text(a));
        return;
    }
    struct curve curve = curve_of(a, k->layer, k->curves);
    char text[3][160];
    int lines = curve_lines(a, c, k->layer, in.w, text), room = in.h - PLOT_ROWS;
    lines = lines < room ? lines : room > 1 ? room : 1;
    struct rect plot = {in.y, in.x, in.h - lines, in.w};
    draw_plot(s, plot, &curve, fits);
    for (int i = 0; i < lines; i++)
        screen_put(s, in.y + in.h - lines + i, in.x + 1, in.w - 1, fits ? ROLE_NORMAL : ROLE_DIM,
                   text[i]);
}

/* Keys and values apart, one above the other, when the screen is wide. */
void view_spectra_apart(const struct app *a, struct screen *s, struct rect r)
{
    const struct ranks_state *k = &a->ranks;
    const struct layer_curve *c = &k->curve[k->layer];
    if (r.w < 20 || r.h < 12 || !c->there)
        return;
    bool fits = plan_curve_fits(a, k->layer);
    struct rect top = {r.y, r.x, r.h / 2, r.w}, low = {r.y + r.h / 2, r.x, r.h - r.h / 2, r.w};
    struct curve key = curve_of(a, k->layer, 1), value = curve_of(a, k->layer, 2);
    screen_box(s, top, ROLE_BORDER, "keys alone");
    screen_box(s, low, ROLE_BORDER, "values alone");
    if (key.n > 0)
        draw_plot(s, layout_inside(top), &key, fits);
    if (value.n > 0)
        draw_plot(s, layout_inside(low), &value, fits);
}
