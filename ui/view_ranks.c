/* Screen 2: ranks of the layers, the spectrum of one of them with its cut, and what the plan costs
 * and saves. All numbers come from core/kvmem, core/rankplan and core/spectrum. */
#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "core/kvmem.h"
#include "ui/app_parts.h"
#include "ui/plot.h"

#define FACTS 4
#define PLOT_ROWS 8 /* of a curve, before a second line is put below it */

/* Columns of the list: mark, layer, rank, share kept, bar, energy, damage. The bar takes what the
 * others leave. */
enum { COL_LAYER = 1, COL_RANK = 5, COL_KEPT = 11, COL_BAR = 16, W_ENERGY = 6, W_DAMAGE = 6 };

/* A KL in at most five columns: ".0042", ".421", "4.21". */
static const char *small(double v, char text[16])
{
    snprintf(text, 16, v < 0.1 ? "%.4f" : v < 1 ? "%.3f" : "%.2f", v);
    if (text[0] == '0')
        memmove(text, text + 1, strlen(text));
    return text;
}

/* "+.0042", "-.421", "0", "–" where it is not known: six columns. */
static const char *difference(double v, char text[16])
{
    char size[16];
    if (!isfinite(v))
        return "–";
    if (fabs(v) < 5e-5)
        return "0";
    snprintf(text, 16, "%s%s", v < 0 ? "-" : "+", small(fabs(v), size));
    return text;
}

static void draw_layer(const struct app *a, struct screen *s, int y, struct rect in, int l)
{
    const struct ranks_state *r = &a->ranks;
    const struct plan_layer *p = &r->plan.layer[l];
    const struct layer_curve *c = &r->curve[l];
    bool selected = l == r->layer, fits = plan_curve_fits(a, l);
    enum role role = selected ? ROLE_SELECTED : ROLE_NORMAL;
    enum role soft = selected ? ROLE_SELECTED : fits ? ROLE_NORMAL : ROLE_DIM;
    double gqa = kvmem_gqa_numbers(r->plan.model.n_kv_head, r->plan.model.head_dim);
    int numbers = kvmem_mla_numbers(p->kv_lora_rank, p->qk_rope_head_dim);
    int bar = in.w - COL_BAR - W_ENERGY - W_DAMAGE;
    if (selected) {
        screen_fill(s, (struct rect){y, in.x, 1, in.w}, role);
        screen_cursor(s, y, in.x);
    }
    int first, last;
    plan_range(a, &first, &last);
    screen_put(s, y, in.x, 1, role, selected ? "▶" : l >= first && l <= last ? "│" : " ");
    screen_putf(s, y, in.x + COL_LAYER, in.w - COL_LAYER, role, "%3d", l);
    screen_putf(s, y, in.x + COL_RANK, in.w - COL_RANK, role, "%5d", p->kv_lora_rank);
    int apart = 0;
    double kl_apart = NAN;
    bool compared = compare_layer(a, l, &apart, &kl_apart);
    if (compared)
        screen_putf(s, y, in.x + COL_KEPT, in.w - COL_KEPT, role, apart ? "%+4d" : "   =", apart);
    else
        screen_putf(s, y, in.x + COL_KEPT, in.w - COL_KEPT, role, "%3.0f%%", 100 * numbers / gqa);
    if (in.w < COL_BAR + W_ENERGY)
        return;
    if (!c->there) {
        screen_put(s, y, in.x + COL_BAR, 1, soft, "…");
    } else {
        double energy = spectrum_energy(&c->spectrum, p->kv_lora_rank);
        if (bar >= 4)
            screen_bar(s, y, in.x + COL_BAR, bar,
                       fits || selected ? (selected ? role : ROLE_BAR) : ROLE_DIM, energy);
        screen_putf(s, y, in.x + COL_BAR + (bar > 0 ? bar : 0), W_ENERGY, soft, "%s%5.1f",
                    fits ? " " : "~", 100 * energy);
    }
    const struct sensitivity *m = bar >= 0 ? sensitivity_now(a) : NULL;
    char cost[16];
    if (bar >= 0 && compared)
        screen_right(s, y, in.x, in.w - 1, role, difference(kl_apart, cost));
    else if (bar >= 0)
        screen_right(s, y, in.x, in.w - 1, role,
                     m ? small(sensitivity_layer(m, l, p->kv_lora_rank), cost) : "–");
}

static void draw_list(struct app *a, struct screen *s, struct rect r)
{
    struct ranks_state *k = &a->ranks;
    struct rect in = layout_inside(r);
    int first, last;
    char title[48];
    plan_range(a, &first, &last);
    snprintf(title, sizeof title, first < last ? "layers: %d to %d marked" : "layers", first, last);
    screen_box(s, r, ROLE_FOCUS, title);
    if (in.h < 1)
        return;
    int n = k->plan.model.n_layer, head = in.h > 2 ? 1 : 0;
    if (head) {
        bool other = k->has_other;
        screen_put(s, in.y, in.x, in.w, ROLE_DIM,
                   other ? "layer rank  A−B energy %" : "layer rank kept energy %");
        if (in.w >= COL_BAR + W_ENERGY + W_DAMAGE)
            screen_right(s, in.y, in.x, in.w - 1, ROLE_DIM, other ? "A−B KL" : "ΔKL");
    }
    k->top = layout_scroll(k->top, k->layer, in.h - head, n);
    struct rect rows = {in.y + head, in.x, in.h - head, in.w};
    view_rows(a, rows, k->top, n, &k->layer);
    for (int i = 0; i < in.h - head && k->top + i < n; i++)
        draw_layer(a, s, in.y + head + i, in, k->top + i);
    if (k->top + in.h - head < n)
        screen_right(s, r.y + r.h - 1, r.x, r.w - 2, ROLE_FOCUS, " ↓ more ");
}

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
             100 * spectrum_energy(&c->spectrum, rank), small(of_rope, rope),
             small(fmax(all - of_rope, 0), cost));
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

static void draw_joint(const struct app *a, struct screen *s, struct rect r)
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
static void draw_apart(const struct app *a, struct screen *s, struct rect r)
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

/* ---- what it costs ---- */

static void memory_lines(const struct app *a, struct screen *s, struct rect r)
{
    const struct rankplan *p = &a->ranks.plan;
    int n = p->model.n_layer, *now = mem_calloc((size_t)n, sizeof *now);
    int *was = mem_calloc((size_t)n, sizeof *was);
    char x[32], y[32], memory[32], line[256];
    for (int l = 0; was && l < n; l++)
        was[l] = kvmem_gqa_numbers(p->model.n_kv_head, p->model.head_dim);
    if (now && was) {
        size_t context = (size_t)a->j.context, batch = (size_t)a->j.batch;
        size_t room = (size_t)a->j.memory_bytes;
        rankplan_layer_numbers(p, now);
        kvmem_text((double)kvmem_bytes(was, n, DTYPE_F16, context, batch), x, sizeof x);
        kvmem_text((double)kvmem_bytes(now, n, DTYPE_F16, context, batch), y, sizeof y);
        snprintf(line, sizeof line, "KV/token  %zu B → %zu B (%.0f%%)   at %lld×%lld: %s → %s",
                 kvmem_bytes(was, n, DTYPE_F16, 1, 1), kvmem_bytes(now, n, DTYPE_F16, 1, 1),
                 100 * rankplan_kept(p), a->j.context, a->j.batch, x, y);
        screen_put(s, r.y, r.x + 1, r.w - 2, ROLE_NORMAL, line);
        kvmem_text(a->j.memory_bytes, memory, sizeof memory);
        snprintf(line, sizeof line, "%s of cache holds %zu → %zu sequences of %lld tokens  (x)",
                 memory, kvmem_fit(was, n, DTYPE_F16, context, room),
                 kvmem_fit(now, n, DTYPE_F16, context, room), a->j.context);
        compare_text(a, line, sizeof line); /* instead, while two plans are compared */
        screen_put(s, r.y + 1, r.x + 1, r.w - 2, ROLE_NORMAL, line);
    }
    free(now);
    free(was);
}

/* Beside the prediction, what the conversion in use measured, if it is of this plan. */
static void measured(const struct app *a, char *text, size_t size)
{
    const struct convert_state *c = &a->convert;
    const struct rankplan *p = &a->ranks.plan;
    text[0] = 0;
    if (!c->has_result || !isfinite(c->result.kl_held) || !rankplan_equal(&c->result_plan, p))
        return;
    int n = snprintf(text, size, ", measured %.3f", c->result.kl_held);
    if (isfinite(p->predicted_kl) && n > 0 && (size_t)n < size)
        snprintf(text + n, size - (size_t)n, " (%+.0f%%)",
                 100 * (p->predicted_kl / c->result.kl_held - 1));
}

/* What would help, and what a number is worth at the margin. */
static void wants_line(const struct app *a, struct screen *s, int y, struct rect r)
{
    char text[128], price[32] = "", now[64];
    sensitivity_wants(a, text, sizeof text);
    measured(a, now, sizeof now);
    if (now[0] && r.w < LAYOUT_WIDE) { /* no room for it in the plan's line */
        screen_putf(s, y, r.x + 1, r.w - 2, ROLE_NORMAL, "KL%s  16 more help %s", now + 1, text);
        return;
    }
    if (a->ranks.price > 0)
        snprintf(price, sizeof price, "  price %.1e KL", a->ranks.price);
    screen_putf(s, y, r.x + 1, r.w - 2, ROLE_NORMAL, "16 more numbers help most: %s%s", text,
                price);
}

static void plan_line(const struct app *a, struct screen *s, int y, struct rect r)
{
    const struct rankplan *p = &a->ranks.plan;
    int lo = p->layer[0].qk_rope_head_dim, hi = lo;
    char rope[32], kl[96], recipe[256];
    recipe_text(p, false, recipe, sizeof recipe);
    for (int l = 1; l < p->model.n_layer; l++) {
        int w = p->layer[l].qk_rope_head_dim;
        lo = w < lo ? w : lo;
        hi = w > hi ? w : hi;
    }
    snprintf(rope, sizeof rope, lo == hi ? "R %d" : "R %d–%d", lo, hi);
    snprintf(kl, sizeof kl, isfinite(p->predicted_kl) ? "%.3f" : "–", p->predicted_kl);
    if (r.w >= LAYOUT_WIDE || !sensitivity_now(a))
        measured(a, kl + strlen(kl), sizeof kl - strlen(kl));
    screen_putf(s, y, r.x + 1, r.w - 2, ROLE_NORMAL,
                "method %s%s (m)  layout %s (l)  %s (R)  budget %s (b)  predicted KL %s",
                p->method == METHOD_MLATHE ? "mlathe" : "transmla", recipe[0] ? "+" : "",
                plan_layout_name(p->layout), rope, a->j.budget, kl);
}

/* Engines that say the same share one mark. */
static void engines_line(const struct app *a, struct screen *s, int y, struct rect r)
{
    struct stock_verdict v[STOCK_ENGINES];
    int x = r.x + 1, end = r.x + r.w - 1;
    for (int t = 0; t < STOCK_ENGINES; t++)
        stock_check(&a->info.stock, &a->ranks.plan, (enum stock_engine)t, &v[t]);
    x += screen_put(s, y, x, end - x, ROLE_NORMAL, "loads in: own ");
    x += screen_put(s, y, x, end - x, ROLE_GOOD, "✓");
    for (int t = 0, n; t < STOCK_ENGINES; t += n) {
        bool loads = v[t].fit != STOCK_NO;
        for (n = 0; t + n < STOCK_ENGINES && v[t + n].fit == v[t].fit &&
                    !strcmp(v[t + n].brief, v[t].brief);
             n++)
            x += screen_putf(s, y, x, end - x, ROLE_NORMAL, n ? ", %s" : "  %s",
                             stock_name((enum stock_engine)(t + n)));
        x += screen_putf(s, y, x, end - x, loads ? ROLE_GOOD : ROLE_DIM, " %s%s%s",
                         loads ? "✓" : "✗", v[t].brief[0] ? " " : "", v[t].brief);
    }
}

static void draw(struct app *a, struct screen *s, struct rect body)
{
    bool measured_layers = sensitivity_now(a) != NULL;
    struct ranks_layout l = layout_ranks(body, FACTS + measured_layers);
    if (!a->ranks.has_plan) {
        screen_box(s, body, ROLE_BORDER, "ranks");
        struct rect in = layout_inside(body);
        if (in.h > 0)
            screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_WARN,
                       !a->has_model
                           ? (a->status.active ? "opening the model…"
                                               : "No model is open: 1 shows what is here.")
                           : a->info.reason);
        return;
    }
    draw_list(a, s, l.list);
    if (l.plot.w > 0)
        draw_joint(a, s, l.plot);
    if (l.plot2.w > 0)
        draw_apart(a, s, l.plot2);
    if (l.facts.h >= 2)
        memory_lines(a, s, l.facts);
    if (l.facts.h >= 3)
        plan_line(a, s, l.facts.y + 2, l.facts);
    if (l.facts.h >= 4)
        engines_line(a, s, l.facts.y + 3, l.facts);
    if (l.facts.h >= 5)
        wants_line(a, s, l.facts.y + 4, l.facts);
}

const struct view_ops view_ranks = {"ranks", IN_RANKS, draw};
