/* Screen 3: the conversion that runs, layer by layer, or the result of the last one. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/kvmem.h"
#include "ui/app_parts.h"

/* Shares from parts per million to whole ones, three digits. */
static const char *percent(double share, char text[16])
{
    double p = 100 * share;
    snprintf(text, 16, p < 0.001 ? "<0.001%%" : p < 1 ? "%.3f%%" : p < 10 ? "%.2f%%" : "%.1f%%", p);
    return text;
}

/* What the table shows: the run, or the layers of the conversion in use. */
struct table {
    const struct rankplan *plan;
    const struct layer_report *report;
    const bool *reported; /* NULL: all */
    int n, done;
};

static void layer_row(const struct table *t, struct screen *s, int y, struct rect in, int l)
{
    const struct layer_report *r = &t->report[l];
    const struct plan_layer *p = &t->plan->layer[l];
    double gqa = kvmem_gqa_numbers(t->plan->model.n_kv_head, t->plan->model.head_dim);
    double kept = kvmem_mla_numbers(p->kv_lora_rank, p->qk_rope_head_dim) / gqa;
    bool done = !t->reported || t->reported[l];
    char text[160], error[16], rope[16], rank[16];
    int n = snprintf(text, sizeof text, "%5d %5d %4d  %3.0f%%", l, p->kv_lora_rank,
                     p->qk_rope_head_dim, 100 * kept);
    if (done)
        snprintf(text + n, sizeof text - (size_t)n, "  %5.1f%%  %8s  %8s  %8s", 100 * r->energy,
                 percent(r->error, error), percent(r->loss_rope, rope),
                 percent(r->loss_rank, rank));
    else
        snprintf(text + n, sizeof text - (size_t)n, "       –");
    screen_put(s, y, in.x + 1, in.w - 2, done ? ROLE_NORMAL : ROLE_DIM, text);
}

static struct table table_of(const struct convert_state *c)
{
    if (c->phase == CONVERT_NONE && c->has_result)
        return (struct table){&c->result_plan, c->result.layer, NULL,
                              c->result.layer ? c->result.n_layer : 0, c->result.n_layer};
    return (struct table){&c->plan, c->report, c->reported, c->n_layer, c->n_reported};
}

static void draw_layers(struct app *a, struct screen *s, struct rect r)
{
    struct convert_state *c = &a->convert;
    struct table t = table_of(c);
    struct rect in = layout_inside(r);
    bool runs = c->phase == CONVERT_WAITING || c->phase == CONVERT_RUNNING;
    char title[96];
    if (t.n < 1 || in.h < 2)
        return;
    snprintf(title, sizeof title, runs ? "layers: %d of %d done" : "layers: %d of %d", t.done, t.n);
    screen_box(s, r, ROLE_FOCUS, title);
    screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_DIM,
               "layer  rank    R  kept  energy     error   by rope   by rank");
    int rows = in.h - 1;
    if (runs)
        c->top = layout_scroll(c->top, t.done, rows, t.n);
    int most = t.n > rows ? t.n - rows : 0;
    c->top = c->top > most ? most : c->top < 0 ? 0 : c->top;
    for (int i = 0; i < rows && c->top + i < t.n; i++)
        layer_row(&t, s, in.y + 1 + i, in, c->top + i);
    if (c->top + rows < t.n)
        screen_right(s, r.y + r.h - 1, r.x, r.w - 2, ROLE_FOCUS, " ↓ more ");
}

/* Where quality went: the layers that lost most, and which step took it. */
static void draw_loss(const struct conversion_report *r, struct screen *s, int y, struct rect in)
{
    double rope = 0, layout = 0, rank = 0, error = 0;
    int worst = 0;
    for (int l = 0; l < r->n_layer; l++) {
        rope += r->layer[l].loss_rope;
        layout += r->layer[l].loss_layout;
        rank += r->layer[l].loss_rank;
        error += r->layer[l].error;
        worst = r->layer[l].error > r->layer[worst].error ? l : worst;
    }
    if (r->n_layer < 1)
        return;
    double both = rope + rank > 0 ? rope + rank : 1;
    char mean[16], most[16], grid[32] = "";
    if (layout > 0)
        snprintf(grid, sizeof grid, " + layout %.0f%%", 100 * layout / both);
    screen_putf(s, y, in.x + 1, in.w - 2, ROLE_NORMAL,
                "lost %s%s (rope %.0f%%%s, rank %.0f%%), most in layer %d: %s",
                percent(error / r->n_layer, mean), in.w < 90 ? "" : " of attention",
                100 * (rope - layout) / both, grid, 100 * rank / both, worst,
                percent(r->layer[worst].error, most));
}

static void draw_result(const struct app *a, struct screen *s, struct rect in)
{
    const struct convert_state *c = &a->convert;
    const struct conversion_report *r = &c->result;
    double seconds = r->seconds_solve + (isfinite(r->seconds_refit) ? r->seconds_refit : 0);
    char path[1024], text[32];
    if (!c->has_result || in.h < 1)
        return;
    screen_putf(s, in.y, in.x + 1, in.w - 2, ROLE_NORMAL,
                "KV/token  %zu B → %zu B (%.0f%%), solved in %s", r->kv_bytes_before,
                r->kv_bytes_after, 100 * r->kept, app_seconds(a, seconds, text));
    if (in.h >= 2)
        draw_loss(r, s, in.y + 1, in);
    if (in.h >= 3 && r->path[0]) {
        int x = 1 + screen_put(s, in.y + 2, in.x + 1, in.w - 2, ROLE_NORMAL, "saved in ");
        screen_tail(s, in.y + 2, in.x + x, in.w - x - 1, ROLE_NORMAL, app_path_text(r->path, path));
    } else if (in.h >= 3) {
        screen_putf(s, in.y + 2, in.x + 1, in.w - 2, ROLE_WARN, "not saved %s", c->trouble);
    }
    if (in.h >= 4)
        screen_put(s, in.y + 3, in.x + 1, in.w - 2, ROLE_GOOD,
                   "next: h heals some of the loss, 4 talks with both, 5 measures, 6 exports");
}

static void draw_plan(const struct app *a, struct screen *s, struct rect in)
{
    const struct rankplan *p = &a->ranks.plan;
    if (in.h < 1)
        return;
    if (!a->ranks.has_plan) {
        screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_WARN,
                   a->has_model ? a->info.reason : "No model is open: 1 shows what is here.");
        return;
    }
    screen_putf(s, in.y, in.x + 1, in.w - 2, ROLE_NORMAL,
                "The plan of screen 2 keeps %.0f%% of the cache (%s, %s layout).",
                100 * rankplan_kept(p), p->method == METHOD_MLATHE ? "mlathe" : "transmla",
                plan_layout_name(p->layout));
    if (in.h >= 2)
        screen_put(s, in.y + 1, in.x + 1, in.w - 2, ROLE_NORMAL,
                   a->calibrated || a->j.calibration
                       ? "c converts; the original stays as it is."
                       : "c calibrates on the model's own text and converts (t on screen "
                         "2 takes a file).");
}

static void draw(struct app *a, struct screen *s, struct rect body)
{
    const struct convert_state *c = &a->convert;
    static const char *const title[] = {"convert",
                                        "convert: waiting",
                                        "convert: running",
                                        "convert: done",
                                        "convert: stopped, everything as before",
                                        "convert: failed, everything as before"};
    bool runs = c->phase == CONVERT_WAITING || c->phase == CONVERT_RUNNING;
    bool first = c->phase == CONVERT_WAITING && c->calibrate_first;
    bool failed = c->phase == CONVERT_FAILED;
    int lines = runs ? 2 : failed ? 1 : c->has_result ? 4 : 2;
    struct list_layout l = {.list = body};
    struct rect top = body;
    if (!runs && view_heal(a, s, body))
        return;
    if (c->phase != CONVERT_NONE || c->has_result) {
        int h = lines + 2 < body.h ? lines + 2 : body.h;
        top.h = h;
        l.list = (struct rect){body.y + h, body.x, body.h - h, body.w};
    }
    char words[160];
    int n = snprintf(words, sizeof words, "%s",
                     c->phase == CONVERT_NONE && c->has_result ? "convert: the conversion in use"
                     : first                                   ? "convert: calibrating first"
                                                               : title[c->phase]);
    for (size_t i = 0; i < c->n_queue && n < (int)sizeof words - 32; i++)
        n += snprintf(words + n, sizeof words - (size_t)n,
                      i      ? ", %.0f%%"
                      : runs ? "; then a plan of %.0f%%"
                             : "; c begins plans of %.0f%%",
                      100 * rankplan_kept(&c->queue[i]));
    screen_box(s, top, ROLE_BORDER, words);
    struct rect in = layout_inside(top);
    if (runs)
        view_running(a, s, in, &job_convert, &job_calibrate, c->started_sec);
    else if (failed)
        screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_BAD, c->trouble);
    else if (c->phase == CONVERT_STOPPED || (c->phase == CONVERT_NONE && !c->has_result))
        draw_plan(a, s, in);
    else
        draw_result(a, s, in);
    if (l.list.y > body.y)
        draw_layers(a, s, l.list);
}

const struct view_ops view_convert = {"convert", IN_CONVERT, draw};
