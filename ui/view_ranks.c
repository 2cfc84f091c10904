/* Screen 2: ranks of the layers, and what the plan costs and saves; the spectra are
 * view_spectrum.c's. All numbers come from core/kvmem, core/rankplan and core/spectrum. */
#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "core/kvmem.h"
#include "ui/app_parts.h"

#define FACTS 4

/* Columns of the list: mark, layer, rank, share kept, bar, energy, damage. The bar takes what the
 * others leave. */
enum { COL_LAYER = 1, COL_RANK = 5, COL_KEPT = 11, COL_BAR = 16, W_ENERGY = 6, W_DAMAGE = 6 };

const char *view_small(double v, char text[16])
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
    snprintf(text, 16, "%s%s", v < 0 ? "-" : "+", view_small(fabs(v), size));
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
                     m ? view_small(sensitivity_layer(m, l, p->kv_lora_rank), cost) : "–");
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

static void memory_lines(const struct app *a, struct screen *s, struct rect r)
{
    const struct rankplan *p = &a->ranks.plan;
    const enum dtype type = app_cache_type(a);
    int n = p->model.n_layer, *now = mem_calloc((size_t)n, sizeof *now);
    int *was = mem_calloc((size_t)n, sizeof *was);
    char x[32], y[32], memory[32], line[256];
    for (int l = 0; was && l < n; l++)
        was[l] = kvmem_gqa_numbers(p->model.n_kv_head, p->model.head_dim);
    if (now && was) {
        size_t context = (size_t)a->j.context, batch = (size_t)a->j.batch;
        size_t room = (size_t)a->j.memory_bytes;
        rankplan_layer_numbers(p, now);
        kvmem_text((double)kvmem_bytes(was, n, type, context, batch), x, sizeof x);
        kvmem_text((double)kvmem_bytes(now, n, type, context, batch), y, sizeof y);
        snprintf(line, sizeof line, "KV/token  %zu B → %zu B (%.0f%%)   at %lld×%lld: %s → %s",
                 kvmem_bytes(was, n, type, 1, 1), kvmem_bytes(now, n, type, 1, 1),
                 100 * rankplan_kept(p), a->j.context, a->j.batch, x, y);
        screen_put(s, r.y, r.x + 1, r.w - 2, ROLE_NORMAL, line);
        kvmem_text(a->j.memory_bytes, memory, sizeof memory);
        snprintf(line, sizeof line, "%s of cache holds %zu → %zu sequences of %lld tokens  (x)",
                 memory, kvmem_fit(was, n, type, context, room),
                 kvmem_fit(now, n, type, context, room), a->j.context);
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
    if (r.w >= LAYOUT_WIDE &&
        isfinite(p->predicted_kl)) /* what the original would be surprised by */
        snprintf(kl, sizeof kl, "%.3f (PPL ≈ ×%.2f)", p->predicted_kl, exp(p->predicted_kl));
    if (r.w >= LAYOUT_WIDE || !sensitivity_now(a))
        measured(a, kl + strlen(kl), sizeof kl - strlen(kl));
    int x = screen_putf(s, y, r.x + 1, r.w - 2, ROLE_NORMAL,
                        "method %s%s (m)  layout %s (f)  %s (R)  budget %s (b)  predicted KL %s",
                        p->method == METHOD_MLATHE ? "mlathe" : "transmla", recipe[0] ? "+" : "",
                        plan_layout_name(p->layout), rope, a->j.budget, kl);
    if (recipe[0] && r.w >= LAYOUT_WIDE)
        screen_putf(s, y, r.x + 1 + x, r.w - 2 - x, ROLE_NORMAL, "  recipe %s (r)", recipe);
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
        view_spectrum(a, s, l.plot);
    if (l.plot2.w > 0)
        view_spectra_apart(a, s, l.plot2);
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
