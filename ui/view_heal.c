/* Healing on screen 3: figures above, the curves of training and held-out KL below. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ui/app_parts.h"
#include "ui/plot.h"

static void draw_figures(const struct app *a, struct screen *s, struct rect in)
{
    const struct heal_screen *h = &a->heal;
    const struct job_status *j = &a->status;
    bool mine = j->active && j->kind == &job_heal;
    double share = mine && j->total > 0 ? j->done / j->total : 0, run = j->now_sec - j->started_sec;
    char one[32], two[32], rate[32];
    if (h->phase == HEAL_FAILED) {
        screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_BAD, h->trouble);
        return;
    }
    if (isnan(h->kl_before))
        screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_NORMAL,
                   !mine         ? "waits for the worker"
                   : j->phase[0] ? j->phase
                                 : "reading the text, and what the original says to it");
    else
        screen_putf(s, in.y, in.x + 1, in.w - 2, ROLE_NORMAL,
                    "held-out KL %.4f → %.4f (%.0f%%)   training %.4f", h->kl_before, h->kl_best,
                    100 * h->kl_best / h->kl_before, h->last.train_kl);
    if (in.h < 2)
        return;
    app_seconds(a, h->last.seconds, one);
    app_rate(a, h->last.seconds > 0 ? (double)h->last.tokens / h->last.seconds : 0, rate);
    if (share > 0.02)
        app_seconds(a, run * (1 - share) / share, two);
    else
        snprintf(two, sizeof two, "–");
    if (h->phase == HEAL_RUNNING)
        screen_putf(s, in.y + 1, in.x + 1, in.w - 2, ROLE_NORMAL,
                    "step %lld  %lld tokens  %s  %s elapsed  %s left  p pauses, Esc keeps",
                    h->last.step, h->last.tokens, rate, one, two);
    else
        screen_putf(s, in.y + 1, in.x + 1, in.w - 2, ROLE_GOOD,
                    h->phase == HEAL_PAUSED
                        ? "%lld tokens: paused. p goes on, Esc keeps what is reached, z undoes"
                        : "%lld tokens: %s. z undoes, h heals more, 5 measures",
                    h->last.tokens, h->end);
}

static void draw_curves(const struct heal_screen *h, struct screen *s, struct rect in)
{
    struct plot p;
    struct rect area = {in.y, in.x + 7, in.h, in.w - 8};
    double lo = INFINITY, hi = -INFINITY;
    char text[16];
    for (size_t i = 0; i < h->n; i++) {
        lo = fmin(lo, fmin(h->train[i], h->held[i]));
        hi = fmax(hi, fmax(h->train[i], h->held[i]));
    }
    if (!(hi > lo) || area.h < 2 || area.w < 8 || plot_init(&p, area.h, area.w, s->ascii, NULL))
        return;
    int n = h->n < 1u << 30 ? (int)h->n : 1 << 30;
    plot_curve(&p, h->train, n, lo, hi);
    for (int y = 0; y < area.h; y++)
        for (int x = 0; x < area.w; x++) {
            plot_char(&p, y, x, text);
            if (strcmp(text, " "))
                screen_put(s, area.y + y, area.x + x, 1, ROLE_DIM, text);
        }
    memset(p.dots, 0, (size_t)p.h * (size_t)p.w);
    plot_curve(&p, h->held, n, lo, hi);
    for (int y = 0; y < area.h; y++)
        for (int x = 0; x < area.w; x++) {
            plot_char(&p, y, x, text);
            if (strcmp(text, " "))
                screen_put(s, area.y + y, area.x + x, 1, ROLE_CURVE, text);
        }
    screen_putf(s, area.y, in.x, 6, ROLE_DIM, "%.3f", hi);
    screen_putf(s, area.y + area.h - 1, in.x, 6, ROLE_DIM, "%.3f", lo);
    plot_done(&p);
}

bool view_heal(const struct app *a, struct screen *s, struct rect body)
{
    static const char *const title[] = {"", "heal: running", "heal: paused", "heal: done",
                                        "heal: failed; the last good state is kept"};
    const struct heal_screen *h = &a->heal;
    if (h->phase == HEAL_OFF)
        return false;
    struct rect top = body, rest = body;
    top.h = body.h < 4 ? body.h : 4;
    rest.y += top.h;
    rest.h -= top.h;
    screen_box(s, top, ROLE_BORDER, title[h->phase]);
    struct rect in = layout_inside(top);
    if (in.h > 0)
        draw_figures(a, s, in);
    if (rest.h < 4)
        return true;
    screen_box(s, rest, ROLE_FOCUS, "KL a token: held out (bright), training (dim)");
    draw_curves(h, s, layout_inside(rest));
    return true;
}
