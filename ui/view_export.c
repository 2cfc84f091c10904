/* Screen 6: which engines would take the conversion and why not, what would be written, and what
 * was.
 */
#include <stdio.h>
#include <string.h>

#include "core/kvmem.h"
#include "ui/app_parts.h"

enum { COL_NUMBERS = 16, COL_LOADS = 23 };

static void draw_engine(const struct app *a, struct screen *s, int y, struct rect in,
                        enum stock_engine t)
{
    struct stock_verdict v;
    bool selected = a->export.at == (int)t;
    char numbers[16];
    size_t n = 0;
    const char *name = dtype_traits(export_numbers(a, t))->name;
    for (; name[n] && n < sizeof numbers - 1; n++)
        numbers[n] = (char)(name[n] >= 'A' && name[n] <= 'Z' ? name[n] + 32 : name[n]);
    numbers[n] = 0;
    export_verdict(a, t, &v);
    bool loads = v.fit != STOCK_NO;
    enum role role = selected ? ROLE_SELECTED : ROLE_NORMAL;
    if (selected) {
        screen_fill(s, (struct rect){y, in.x, 1, in.w}, role);
        screen_cursor(s, y, in.x);
    }
    screen_put(s, y, in.x, 1, role, selected ? "▶" : " ");
    screen_put(s, y, in.x + 2, in.w - 2, role, stock_name(t));
    screen_put(s, y, in.x + COL_NUMBERS, in.w - COL_NUMBERS, role, numbers);
    screen_putf(s, y, in.x + COL_LOADS, in.w - COL_LOADS,
                selected ? role
                : loads  ? ROLE_GOOD
                         : ROLE_DIM,
                "%s %s", loads ? "✓" : "✗", v.brief);
}

/* text over as many lines as it needs, broken at blanks; the next free line. */
static int put_wrapped(struct screen *s, int y, int end, int x, int w, enum role role,
                       const char *text)
{
    char part[512];
    while (*text && y < end && w > 8) {
        size_t n = strlen(text), k = n;
        if (n > (size_t)w)
            for (k = (size_t)w; k > 0 && text[k] != ' ';)
                k--;
        k = k ? k : (size_t)w < n ? (size_t)w : n;
        snprintf(part, sizeof part, "%.*s", (int)(k < sizeof part ? k : sizeof part - 1), text);
        screen_put(s, y++, x, w, role, part);
        text += k;
        while (*text == ' ')
            text++;
    }
    return y;
}

/* What can be chosen besides, with its keys. */
static void draw_options(const struct app *a, struct screen *s, int y, int x, int w)
{
    const struct export_state *e = &a->export;
    char queries[16] = "whole";
    if (e->narrow_rank)
        snprintf(queries, sizeof queries, "rank %d", e->narrow_rank);
    int k = screen_putf(s, y, x + 1, w - 1, e->narrow_rank ? ROLE_NORMAL : ROLE_DIM,
                        "queries %s (r)   ", queries);
    k += screen_putf(s, y, x + 1 + k, w - 1 - k, e->mtp ? ROLE_NORMAL : ROLE_DIM,
                     "prediction layer %s (m)   ", e->mtp ? "yes" : "no");
    if (a->info.stock.biases)
        screen_putf(s, y, x + 1 + k, w - 1 - k, e->fold_biases ? ROLE_NORMAL : ROLE_DIM,
                    "biases %s (b)", e->fold_biases ? "folded" : "kept");
}

/* What the options cost, as the export measured it. */
static int draw_costs(const struct app *a, struct screen *s, int y, int end, int x, int w)
{
    const struct export_report *r = &a->export.report;
    char error[16] = "--";
    if (!a->clock_off)
        snprintf(error, sizeof error, "%.0e", r->loss.nmse);
    if (r->query_kept > 0 && y < end)
        screen_putf(s, y++, x, w, ROLE_NORMAL, "queries keep %.2f%% of their energy",
                    100 * r->query_kept);
    if (r->drafted && y < end)
        screen_putf(s, y++, x, w, ROLE_NORMAL, "prediction layer: %d of %d guesses right",
                    r->accepted, r->drafted);
    if (r->loss.done && y < end)
        screen_putf(s, y++, x, w, ROLE_NORMAL,
                    "%s: squared error of the logits %s, same first %d of %d", r->loss.name, error,
                    r->loss.same_top1, r->loss.tokens);
    return y;
}

static int draw_result(const struct app *a, struct screen *s, int y, int end, int x, int w)
{
    const struct export_state *e = &a->export;
    const struct export_report *r = &e->report;
    const struct export_check *k = &r->check;
    char size[32], room[32], shown[1024];
    if (e->running && y + 2 < end) {
        view_running(a, s, (struct rect){y, x - 1, 2, w + 2}, &job_export, NULL, e->started_sec);
        y += 2;
    }
    if (e->trouble[0])
        y = put_wrapped(s, y, end, x, w, ROLE_BAD, e->trouble);
    if (!e->has_report || y >= end)
        return y;
    kvmem_text((double)r->bytes, size, sizeof size);
    kvmem_text((double)r->free_bytes, room, sizeof room);
    screen_putf(s, y++, x, w, ROLE_GOOD,
                e->report_dry ? "would write %s of tensors (%s free)" : "wrote %s (%s free)", size,
                a->clock_off ? "--" : room);
    if (y < end)
        screen_tail(s, y++, x + 2, w - 2, ROLE_NORMAL, app_path_text(r->path, shown));
    for (size_t i = 0; r->n_file > 1 && i < r->n_file && i < 12 && y < end; i++)
        screen_putf(s, y++, x + 2, w - 2, ROLE_DIM, "%s", r->file[i].name);
    y = draw_costs(a, s, y, end, x, w);
    char error[16] = "--"; /* its digits differ between machines */
    if (!a->clock_off)
        snprintf(error, sizeof error, "%.0e", k->nmse);
    if (k->name && y < end && k->done)
        screen_putf(s, y++, x, w, ROLE_NORMAL,
                    "read back: squared error of its logits %s, same first choice %d of %d", error,
                    k->same_top1, k->tokens);
    else if (k->name && y < end)
        y = put_wrapped(s, y, end, x, w, ROLE_DIM, k->text);
    return y;
}

static void draw(struct app *a, struct screen *s, struct rect body)
{
    const struct rankplan *p = export_plan(a);
    struct rect in = layout_inside(body);
    struct stock_verdict v;
    char path[1024];
    int y = in.y, x = in.x + 1, w = in.w - 2, end = in.y + in.h;
    screen_box(s, body, ROLE_FOCUS,
               a->convert.has_result ? "export"
                                     : "export: what the plan of screen 2 would load in");
    if (in.h < 6)
        return;
    if (!p) {
        screen_put(s, y, x, w, ROLE_WARN,
                   "No model is open that can be converted: 1 shows what is here.");
        return;
    }
    screen_put(s, y, in.x + 2, w, ROLE_DIM, "engine");
    screen_put(s, y, in.x + COL_NUMBERS, w - COL_NUMBERS, ROLE_DIM, "numbers");
    screen_put(s, y++, in.x + COL_LOADS + 2, w - COL_LOADS, ROLE_DIM, "loads");
    struct rect rows = {y, in.x, end - y, in.w};
    view_rows(a, rows, 0, STOCK_ENGINES, &a->export.at);
    for (int t = 0; t < STOCK_ENGINES && y < end; t++)
        draw_engine(a, s, y++, in, (enum stock_engine)t);
    export_verdict(a, (enum stock_engine)a->export.at, &v);
    draw_options(a, s, y++, x, w);
    y++;
    if (v.text[0])
        y = put_wrapped(s, y, end, x, w, v.fit == STOCK_NO ? ROLE_WARN : ROLE_NORMAL, v.text);
    if (v.fit == STOCK_NO && p->layout != LAYOUT_STOCK && y < end)
        screen_put(s, y++, x, w, ROLE_DIM, "On screen 2 f chooses the layout, c converts again.");
    y += v.text[0] != 0;
    y = draw_result(a, s, y, end - 3, x, w);
    if (y + 2 >= end)
        return;
    y = end - 2;
    int k = screen_put(s, y, x, w, ROLE_DIM, "own format   ");
    if (a->j.conversion)
        screen_tail(s, y++, x + k, w - k, ROLE_DIM, app_path_text(a->j.conversion, path));
    else
        screen_put(s, y++, x + k, w - k, ROLE_DIM, "c on screen 2 writes it");
    screen_put(s, y, x, w, ROLE_DIM, "plan (JSON)  s on screen 2");
}

const struct view_ops view_export = {"export", IN_EXPORT, draw};
