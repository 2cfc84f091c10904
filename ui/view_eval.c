/* Screen 5: what is measured, the run or a result as table and curve, and the same measurement of
 * every conversion of the model. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "ui/app_parts.h"
#include "ui/eval_text.h"

#define NARROW 66 /* columns below which the table of a result does not fit */

static const char *what_name(int what)
{
    return what == EVAL_WHAT_PPL     ? "perplexity"
           : what == EVAL_WHAT_SPEED ? "speed and memory"
                                     : choice_name((enum choice_task)(what - EVAL_WHAT_TASK));
}

static int label(struct screen *s, int y, int x, int end, const char *key, const char *text)
{
    x += screen_put(s, y, x, end - x, ROLE_KEY, key);
    x += screen_put(s, y, x, end - x, ROLE_NORMAL, " ");
    return x + screen_put(s, y, x, end - x, ROLE_NORMAL, text);
}

static void count_text(long long n, const char *of, char text[64])
{
    if (n)
        snprintf(text, 64, "%lld %s", n, of);
    else
        snprintf(text, 64, "all %s", of);
}

/* "t perplexity   f ~/text.txt" and "p hf   x 512 tokens   c 8 windows". */
static void draw_setup(const struct app *a, struct screen *s, struct rect in)
{
    const struct eval_setup *v = &a->j.eval;
    const char *file = v->what == EVAL_WHAT_PPL ? v->text : v->questions;
    char text[1024], count[64];
    int end = in.x + in.w - 1, x = in.x + 1;
    x = 3 + label(s, in.y, x, end, "t", what_name(v->what));
    if (v->what != EVAL_WHAT_SPEED) {
        x += screen_put(s, in.y, x, end - x, ROLE_KEY, "f ");
        if (file)
            screen_tail(s, in.y, x, end - x, ROLE_NORMAL, app_path_text(file, text));
        else
            screen_put(s, in.y, x, end - x, ROLE_WARN, "no file chosen");
    }
    if (in.h < 2)
        return;
    x = in.x + 1;
    if (v->what == EVAL_WHAT_PPL) {
        x = 3 + label(s, in.y + 1, x, end, "p", eval_protocol_name(v->protocol));
        snprintf(count, sizeof count, "windows of %lld tokens", v->ctx);
        x = 3 + label(s, in.y + 1, x, end, "x", count);
        count_text(v->windows, "windows", count);
        label(s, in.y + 1, x, end, "c", count);
    } else if (v->what == EVAL_WHAT_SPEED) {
        screen_putf(s, in.y + 1, x, end - x, ROLE_NORMAL,
                    "reads %d tokens and makes %d, at depths 0, 1024 and 4096, %d times",
                    EVAL_SPEED_PROMPT, EVAL_SPEED_GENERATE, EVAL_SPEED_REPEAT);
    } else {
        count_text(v->limit, "questions", count);
        label(s, in.y + 1, x, end, "c", count);
    }
}

/* ---- a result ---- */

struct lines {
    struct screen *s;
    struct rect at;
};
static void put_line(void *user, int line, const char *text)
{
    const struct lines *l = user;
    if (line < l->at.h)
        screen_put(l->s, l->at.y + line, l->at.x, l->at.w,
                   line + 1 < l->at.h ? ROLE_CURVE : ROLE_DIM, text);
}

static void draw_curve(struct screen *s, struct rect r, const struct eval_record *e, bool kl)
{
    struct lines l = {s, {r.y + 1, r.x, r.h - 1, r.w}};
    if (r.h < 5 ||
        !eval_text_plot(e, kl ? CURVE_KL : CURVE_NLL, l.at.h, l.at.w, s->ascii, put_line, &l))
        return;
    screen_put(s, r.y, r.x, r.w, ROLE_TITLE,
               kl                ? "KL by position, nats a token"
               : e->ppl.compared ? "NLL by position, nats a token: original and converted"
                                 : "NLL by position, nats a token");
}

static void draw_curves(const struct app *a, struct screen *s, struct rect r,
                        const struct eval_record *e)
{
    bool kl = a->eval.kl_curve && e->ppl.compared;
    if (e->kind != EVAL_PPL || r.h < 5)
        return;
    if (!e->ppl.compared || (r.w < LAYOUT_WIDE - 6 && r.h < 18)) {
        draw_curve(s, r, e, kl);
    } else if (r.w >= LAYOUT_WIDE - 6) {
        struct rect half = {r.y, r.x, r.h, r.w / 2 - 1};
        draw_curve(s, half, e, false);
        half.x += r.w / 2 + 1;
        draw_curve(s, half, e, true);
    } else {
        struct rect half = {r.y, r.x, r.h / 2, r.w};
        draw_curve(s, half, e, false);
        half.y += r.h / 2;
        draw_curve(s, half, e, true);
    }
}

static void draw_nothing(const struct app *a, struct screen *s, struct rect in)
{
    static const char *const text[] = {
        "Enter measures what is open: the model, and its conversion beside it.", "",
        "perplexity       NLL of both on a text, KL, percentiles, loss by position",
        "arc … mmlu       multiple choice in the published files, unpacked",
        "speed            tokens a second and KV bytes at several context lengths"};
    if (a->eval.trouble[0] && in.h > 0) {
        screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_BAD, a->eval.trouble);
        return;
    }
    for (int i = 0; i < (int)(sizeof text / sizeof *text) && i < in.h; i++)
        screen_put(s, in.y + i, in.x + 1, in.w - 2, i ? ROLE_DIM : ROLE_NORMAL, text[i]);
}

static void draw_result(const struct app *a, struct screen *s, struct rect r)
{
    const struct eval_state *v = &a->eval;
    const struct eval_record *e = eval_shown(a);
    struct rect in = layout_inside(r);
    char title[EVAL_TEXT + 32] = "results", text[EVAL_TEXT];
    if (e) {
        eval_text_title(e, text);
        snprintf(title, sizeof title, "%s%s", v->running ? "so far: " : "", text);
    }
    if (e && !v->running && v->list.n > 1) {
        size_t n = strlen(title);
        snprintf(title + n, sizeof title - n, "  ↑↓ %d of %zu", v->at + 1, v->list.n);
    }
    screen_box(s, r, ROLE_FOCUS, title);
    if (!e) {
        if (!v->running)
            draw_nothing(a, s, in);
        return;
    }
    if (in.h < 3) {
        eval_text_brief(e, text);
        screen_put(s, in.y, in.x, in.w, ROLE_NORMAL, text);
        return;
    }
    int y = 0;
    if (in.w < NARROW) { /* the table's right half is cut: the main figures first */
        eval_text_brief(e, text);
        screen_put(s, in.y + y++, in.x + 1, in.w - 2, ROLE_NORMAL, text);
    }
    for (int i = 0; y < in.h && eval_text_line(e, i, !a->clock_off, text); i++, y++) {
        bool head = i == 0 && (e->kind == EVAL_SPEED || strstr(text, "difference"));
        screen_put(s, in.y + y, in.x + 1, in.w - 2, head ? ROLE_DIM : ROLE_NORMAL, text);
    }
    struct rect below = {in.y + y + 1, in.x + 1, in.h - y - 1, in.w - 2};
    draw_curves(a, s, below, e);
}

/* ---- all conversions ---- */

static const struct eval_record *same_in(const struct eval_list *l, const struct eval_record *e)
{
    for (size_t i = 0; e && i < l->n; i++)
        if (eval_record_same(&l->r[i], e))
            return &l->r[i];
    return NULL;
}

static void draw_conversions(const struct app *a, struct screen *s, struct rect r)
{
    const struct eval_results *k = &a->eval.known;
    const struct eval_record *e = eval_shown(a);
    struct rect in = layout_inside(r);
    char title[EVAL_TEXT + 32], text[EVAL_TEXT] = "", brief[64], kept[16];
    if (e)
        eval_text_title(e, text);
    snprintf(title, sizeof title, "conversions of this model%s%s", e ? ": " : "", text);
    screen_box(s, r, ROLE_FOCUS, title);
    if (in.h < 1)
        return;
    if (!k->n) {
        screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_DIM,
                   "none of this model's conversions has kept results");
        return;
    }
    int name = in.w >= 70 ? in.w - 66 : 12;
    int y = in.y, left = in.h;
    if (left > 1) {
        screen_put(s, y, in.x + 1, name, ROLE_DIM, "conversion");
        screen_put(s, y, in.x + name + 2, in.w - name - 3, ROLE_DIM,
                   "method    layout  kept  result");
        y++;
        left--;
    }
    int top = a->eval.top < (int)k->n - left ? a->eval.top : (int)k->n - left;
    top = top < 0 ? 0 : top;
    for (int i = top; i < (int)k->n && left > 0; i++, y++, left--) {
        const struct eval_sibling *c = &k->s[i];
        const struct eval_record *found = same_in(&c->list, e);
        enum role role = i == k->own ? ROLE_GOOD : ROLE_NORMAL;
        snprintf(brief, sizeof brief, "–");
        if (found)
            eval_text_brief(found, brief);
        snprintf(kept, sizeof kept, isfinite(c->kept) ? "%3.0f%%" : "  –", 100 * c->kept);
        screen_put(s, y, in.x, 1, role, i == k->own ? "▶" : " ");
        screen_tail(s, y, in.x + 1, name, role, path_base(c->dir));
        screen_putf(s, y, in.x + name + 2, in.w - name - 3, role, "%-9s %-6s  %s  %s", c->method,
                    c->layout, kept, brief);
    }
}

static void draw(struct app *a, struct screen *s, struct rect body)
{
    struct rect top = body, rest = body;
    top.h = body.h >= 10 ? 4 : body.h >= 6 ? 3 : 0;
    rest.y += top.h;
    rest.h -= top.h;
    if (top.h) {
        screen_box(s, top, ROLE_BORDER, a->eval.running ? "evaluate: running" : "evaluate");
        if (a->eval.running)
            view_running(a, s, layout_inside(top), &job_eval, NULL, a->eval.started_sec);
        else
            draw_setup(a, s, layout_inside(top));
    }
    if (a->eval.conversions)
        draw_conversions(a, s, rest);
    else
        draw_result(a, s, rest);
}

const struct view_ops view_eval = {"evaluate", IN_EVAL, draw};
