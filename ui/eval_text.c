/* Measurements in words and curves. Values that are not known read "–". */
#include "ui/eval_text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/kvmem.h"

#define AXIS 6 /* columns left of a plot */

/* ---- lines ---- */

static int columns(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

/* Appends at column `at` or, when the text is already there, after one blank. */
static void put_at(char text[EVAL_TEXT], int at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void put_at(char text[EVAL_TEXT], int at, const char *fmt, ...)
{
    size_t n = strlen(text);
    int have = columns(text), gap = at > have ? at - have : have > 0;
    va_list args;
    for (; gap > 0 && n + 1 < EVAL_TEXT; gap--)
        text[n++] = ' ';
    text[n] = 0;
    va_start(args, fmt);
    vsnprintf(text + n, EVAL_TEXT - n, fmt, args);
    va_end(args);
}

static void plus_minus(char text[EVAL_TEXT], int at, double v, double err, int digits,
                       const char *unit)
{
    if (!isfinite(v))
        put_at(text, at, "–");
    else if (!isfinite(err))
        put_at(text, at, "%.*f%s", digits, v, unit);
    else
        put_at(text, at, "%.*f ± %.*f%s", digits, v, digits, err, unit);
}

static void interval(char text[EVAL_TEXT], int at, double v, double err, int digits,
                     const char *unit)
{
    if (!isfinite(err))
        put_at(text, at, "%+.*f%s", digits, v, unit);
    else
        put_at(text, at, "%+.*f%s (%+.*f to %+.*f)", digits, v, unit, digits, v - EVAL_CI95 * err,
               digits, v + EVAL_CI95 * err);
}

enum { COL_1 = 12, COL_2 = 30, COL_3 = 48 };

static void seconds_text(char text[EVAL_TEXT], double seconds, bool timed)
{
    if (timed)
        put_at(text, 0, "in %.1f s", seconds);
}

static void ppl_line(const struct eval_result *p, int i, bool timed, char text[EVAL_TEXT])
{
    int digits = p->ppl < 1000 ? 3 : 0;
    switch (p->compared ? i : i == 0 ? 5 : 6) {
    case 0:
        put_at(text, COL_1, "original");
        put_at(text, COL_2, "converted");
        put_at(text, COL_3, "difference (95%% interval)");
        break;
    case 1:
        put_at(text, 0, "perplexity");
        plus_minus(text, COL_1, p->ppl_against, p->ppl_against_err, digits, "");
        plus_minus(text, COL_2, p->ppl, p->ppl_err, digits, "");
        put_at(text, COL_3, "×%.4f", p->ppl / p->ppl_against);
        break;
    case 2:
        put_at(text, 0, "NLL");
        plus_minus(text, COL_1, log(p->ppl_against), p->ppl_against_err / p->ppl_against, 4, "");
        plus_minus(text, COL_2, log(p->ppl), p->ppl_err / p->ppl, 4, "");
        interval(text, COL_3, p->nll_diff, p->nll_diff_err, 4, "");
        break;
    case 3:
        put_at(text, 0, "KL");
        plus_minus(text, COL_1, p->kl_mean, p->kl_err, 4, "");
        put_at(text, COL_2, "same top-1");
        plus_minus(text, 0, 100 * p->same_top1, 100 * p->same_top1_err, 2, " %");
        break;
    case 4:
        put_at(text, COL_1, "p50 %.3g  p90 %.3g  p95 %.3g  p99 %.3g  max %.3g", p->kl_p50,
               p->kl_p90, p->kl_p95, p->kl_p99, p->kl_max);
        break;
    case 5:
        put_at(text, 0, "perplexity");
        plus_minus(text, COL_1, p->ppl, p->ppl_err, 4, "");
        put_at(text, COL_2, "NLL");
        plus_minus(text, 0, log(p->ppl), p->ppl_err / p->ppl, 4, " nats a token");
        break;
    default:
        put_at(text, 0, "%lld tokens scored in %d of %d windows", p->tokens, p->windows,
               p->windows_total);
        seconds_text(text, p->seconds, timed);
        if (isfinite(p->ppl_err_windows))
            put_at(text, 0, "(by windows ± %.*f)", digits, p->ppl_err_windows);
    }
}

static void task_line(const struct task_result *t, int i, bool timed, char text[EVAL_TEXT])
{
    static const char *const name[TASK_RULES] = {"acc", "acc_norm", "acc_token"};
    int rule = i - 1;
    if (i == 0) {
        if (!t->compared) {
            put_at(text, COL_1, "correct");
            return;
        }
        put_at(text, COL_1, "original");
        put_at(text, COL_2, "converted");
        put_at(text, COL_3, "difference (95%% interval)");
    } else if (rule < TASK_RULES) {
        bool head = eval_headline(t->task) == (enum task_rule)rule;
        put_at(text, 0, "%s%s", name[rule], head ? " *" : "");
        if (t->compared)
            plus_minus(text, COL_1, 100 * t->acc_against[rule].mean, 100 * t->acc_against[rule].err,
                       2, " %");
        plus_minus(text, t->compared ? COL_2 : COL_1, 100 * t->acc[rule].mean,
                   100 * t->acc[rule].err, 2, " %");
        if (t->compared)
            interval(text, COL_3, 100 * t->diff[rule].mean, 100 * t->diff[rule].err, 2, "");
    } else if (t->compared && rule == TASK_RULES) {
        put_at(text, 0, "same answer");
        put_at(text, COL_1, "%.1f %% (acc), %.1f %% (acc_norm), %.1f %% (acc_token)",
               100 * t->same[TASK_SUM], 100 * t->same[TASK_CHARACTER], 100 * t->same[TASK_TOKEN]);
    } else {
        put_at(text, 0, "* usually quoted; %d of %d questions", t->n, t->total);
        seconds_text(text, t->seconds, timed);
        if (t->truncated)
            put_at(text, 0, "(%d contexts cut to fit the model)", t->truncated);
    }
}

static void speed_line(const struct eval_record *r, int i, bool timed, char text[EVAL_TEXT])
{
    char was[32], now[32];
    if (i == 0) {
        put_at(text, 0, "test");
        put_at(text, 8, "depth");
        put_at(text, 16, r->compared ? "original tok/s" : "tok/s");
        if (r->compared)
            put_at(text, 34, "converted tok/s");
        put_at(text, r->compared ? 52 : 34, "KV cache");
        return;
    }
    const struct speed_row *s = &r->speed[i - 1];
    put_at(text, 0, "%s", s->test);
    put_at(text, 8, "%d", s->depth);
    kvmem_text(s->kv_bytes, now, sizeof now);
    kvmem_text(s->kv_bytes_against, was, sizeof was);
    if (!timed)
        put_at(text, 16, "--");
    else if (r->compared)
        plus_minus(text, 16, s->tokens_per_sec_against, s->sd_against, 1, "");
    else
        plus_minus(text, 16, s->tokens_per_sec, s->sd, 1, "");
    if (r->compared && timed)
        plus_minus(text, 34, s->tokens_per_sec, s->sd, 1, "");
    else if (r->compared)
        put_at(text, 34, "--");
    if (r->compared)
        put_at(text, 52, "%s → %s", was, now);
    else
        put_at(text, 34, "%s", now);
}

bool eval_text_line(const struct eval_record *r, int i, bool timed, char text[EVAL_TEXT])
{
    int ppl = r->ppl.compared ? 6 : 2, task = r->task.compared ? 6 : 5;
    int lines = r->kind == EVAL_PPL ? ppl : r->kind == EVAL_TASK ? task : r->n_speed + 1;
    text[0] = 0;
    if (i < 0 || i >= lines)
        return false;
    if (r->kind == EVAL_PPL)
        ppl_line(&r->ppl, r->ppl.compared && i == 5 ? 6 : i, timed, text);
    else if (r->kind == EVAL_TASK)
        task_line(&r->task, i, timed, text);
    else
        speed_line(r, i, timed, text);
    return true;
}

void eval_text_title(const struct eval_record *r, char text[EVAL_TEXT])
{
    const char *file = path_base(r->file);
    if (r->kind == EVAL_PPL && r->windows)
        snprintf(text, EVAL_TEXT, "perplexity of %.100s (%s, %d windows of %d)", file,
                 eval_protocol_name(r->protocol), r->windows, r->ctx);
    else if (r->kind == EVAL_PPL)
        snprintf(text, EVAL_TEXT, "perplexity of %.100s (%s, windows of %d)", file,
                 eval_protocol_name(r->protocol), r->ctx);
    else if (r->kind == EVAL_TASK && r->limit)
        snprintf(text, EVAL_TEXT, "%s: %.100s, first %ld questions", choice_name(r->task.task),
                 file, r->limit);
    else if (r->kind == EVAL_TASK)
        snprintf(text, EVAL_TEXT, "%s: %.100s", choice_name(r->task.task), file);
    else
        snprintf(text, EVAL_TEXT, "speed and memory");
}

void eval_text_brief(const struct eval_record *r, char text[64])
{
    enum task_rule rule = eval_headline(r->task.task);
    const struct task_result *t = &r->task;
    if (r->kind == EVAL_PPL && r->ppl.compared)
        snprintf(text, 64, "KL %.3f  PPL %.2f → %.2f", r->ppl.kl_mean, r->ppl.ppl_against,
                 r->ppl.ppl);
    else if (r->kind == EVAL_PPL)
        snprintf(text, 64, "PPL %.2f", r->ppl.ppl);
    else if (r->kind == EVAL_TASK && t->compared)
        snprintf(text, 64, "%.1f → %.1f %%", 100 * t->acc_against[rule].mean,
                 100 * t->acc[rule].mean);
    else if (r->kind == EVAL_TASK)
        snprintf(text, 64, "%.1f %%", 100 * t->acc[rule].mean);
    else
        snprintf(text, 64, "%d rows", r->n_speed);
}

/* ---- curves ---- */

static double bin_value(const struct eval_bin *b, enum eval_curve what)
{
    return what == CURVE_KL ? b->kl : what == CURVE_NLL ? b->nll : b->nll_against;
}

/* [lo, hi] of the curves, with a little air; false when nothing is finite. */
static bool range_of(const struct eval_result *p, enum eval_curve what, double *lo, double *hi)
{
    *lo = INFINITY;
    *hi = -INFINITY;
    for (int i = 0; i < p->n_bin; i++)
        for (int c = what == CURVE_KL ? CURVE_KL : CURVE_NLL;
             c <= (what == CURVE_KL ? CURVE_KL : CURVE_NLL_AGAINST); c++) {
            double v = bin_value(&p->bin[i], (enum eval_curve)c);
            if (!isfinite(v))
                continue;
            *lo = v < *lo ? v : *lo;
            *hi = v > *hi ? v : *hi;
        }
    if (!isfinite(*lo))
        return false;
    if (what == CURVE_KL)
        *lo = 0;
    double air = *hi > *lo ? 0.02 * (*hi - *lo) : 0.5;
    *hi += air;
    *lo -= what == CURVE_KL ? 0 : air;
    return true;
}

static void draw_curve(struct plot *plot, const struct eval_result *p, enum eval_curve what,
                       double lo, double hi)
{
    double y[EVAL_BINS];
    for (int i = 0; i < p->n_bin; i++)
        y[i] = bin_value(&p->bin[i], what);
    plot_curve(plot, y, p->n_bin, lo, hi);
}

/* Below the plot: where a window begins, its middle and its end. */
static void positions(const struct eval_result *p, int w, char text[EVAL_TEXT])
{
    int last = p->bin[p->n_bin - 1].to - 1;
    char half[16], end[32];
    snprintf(half, sizeof half, "%d", last / 2);
    snprintf(end, sizeof end, "%d tokens", last);
    put_at(text, AXIS, "0");
    if (w >= 40)
        put_at(text, AXIS + (w - AXIS) / 2 - (int)strlen(half) / 2, "%s", half);
    put_at(text, w - (int)strlen(end), "%s", end);
}

bool eval_text_plot(const struct eval_record *r, enum eval_curve what, int h, int w, bool ascii,
                    void (*put)(void *user, int line, const char *text), void *user)
{
    const struct eval_result *p = &r->ppl;
    struct plot plot;
    double lo, hi;
    int rows = h - 1;
    if (r->kind != EVAL_PPL || p->n_bin < 2 || rows < 2 || w < AXIS + 12 || w > 240 ||
        !range_of(p, what, &lo, &hi) || plot_init(&plot, rows, w - AXIS, ascii, NULL))
        return false;
    draw_curve(&plot, p, what, lo, hi);
    if (what != CURVE_KL && p->compared)
        draw_curve(&plot, p, CURVE_NLL_AGAINST, lo, hi);
    for (int y = 0; y < rows; y++) {
        char text[8 + 240 * 4] = "", cell[8];
        bool named = y == 0 || y == rows - 1 || (rows >= 7 && y == rows / 2);
        size_t n;
        if (named)
            snprintf(text, 16, "%5.3g ", hi - (hi - lo) * y / (rows - 1));
        else
            snprintf(text, 16, "%*s", AXIS, "");
        n = strlen(text);
        for (int x = 0; x < plot.w; x++) {
            plot_char(&plot, y, x, cell);
            memcpy(text + n, cell, strlen(cell) + 1);
            n += strlen(cell);
        }
        put(user, y, text);
    }
    char below[EVAL_TEXT] = "";
    positions(p, w, below);
    put(user, rows, below);
    plot_done(&plot);
    return true;
}
