/* The frame around every screen: first line, last line, questions, messages, help. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/kvmem.h"
#include "ui/app_parts.h"

const struct view_ops *view_of(int screen)
{
    static const struct view_ops *const table[SCREEN_COUNT] = {
        &view_model, &view_ranks, &view_convert, &view_chat, &view_eval, &view_export};
    return table[screen >= 0 && screen < SCREEN_COUNT ? screen : 0];
}

/* "convert layer 3/30 ███▌      41%", or what stands still. */
static void job_text_of(const struct app *a, char text[160])
{
    const struct job_status *s = &a->status;
    bool measured = false;
    int curves = plan_curves(a, &measured);
    if (s->active && s->kind) {
        /* The share first: a narrow screen cuts at the end. */
        int n = snprintf(text, 160, "%s", s->kind->name);
        if (s->total > 0 && s->kind != &job_chat)
            n += snprintf(text + n, 160 - (size_t)n, " %3.0f%%", 100 * s->done / s->total);
        if (strcmp(s->phase, s->kind->name) != 0 && s->phase[0] && a->options.cols >= 110)
            snprintf(text + n, 160 - (size_t)n, "  %.60s", s->phase);
    } else if (a->ranks.has_plan && curves == a->info.n_layer) {
        snprintf(text, 160, "%s %d/%d ✓", measured ? "calibrated" : "spectra", curves,
                 a->info.n_layer);
    } else {
        text[0] = 0;
    }
}

/* From most to least that fits: the job always, then the memory, then the device. */
static void right_text(const struct app *a, int room, char text[400])
{
    char job[160], memory[32] = "-- MiB", device[128] = "device";
    job_text_of(a, job);
    if (!a->clock_off) {
        kvmem_text(a->memory_bytes, memory, sizeof memory);
        snprintf(device, sizeof device, "%s", a->device);
    }
    const char *const gap = job[0] ? "   " : "";
    snprintf(text, 400, "%s   %s%s%s ", device, memory, gap, job);
    if (sanitize_width(text, strlen(text)) > room || !a->has_model)
        snprintf(text, 400, "%s%s%s ", memory, gap, job);
    if (sanitize_width(text, strlen(text)) > room)
        snprintf(text, 400, "%s ", job);
}

static void draw_head(const struct app *a, struct screen *s, struct rect r)
{
    char name[128] = "mlathe " MLATHE_VERSION, shape[160] = "", right[400];
    if (r.h < 1)
        return;
    screen_fill(s, r, ROLE_HEAD);
    if (a->has_model) {
        snprintf(name, sizeof name, "%s", a->info.name);
        snprintf(shape, sizeof shape, "  %s  %d layers  %dQ/%dKV×%d", a->info.family,
                 a->info.n_layer, a->info.n_head, a->info.n_kv_head, a->info.head_dim);
    }
    int w_name = sanitize_width(name, strlen(name)), w_shape = sanitize_width(shape, strlen(shape));
    int cap = w_name < 20 ? w_name : 20;
    right_text(a, r.w - 2 - cap - w_shape, right);
    int w_right = sanitize_width(right, strlen(right));
    w_right = w_right > r.w * 2 / 3 ? r.w * 2 / 3 : w_right;
    int room = r.w - 2 - w_right - w_shape;
    if (room < 8) { /* narrow: the name, and what runs */
        w_shape = 0;
        room = r.w - 2 - w_right;
    }
    int x = 1 + screen_put(s, r.y, r.x + 1, room > 0 ? room : 0, ROLE_HEAD, name);
    screen_put(s, r.y, r.x + x, w_shape, ROLE_HEAD, shape);
    screen_put(s, r.y, r.x + r.w - w_right, w_right, ROLE_HEAD, right);
}

static int hint(struct screen *s, struct rect r, int x, const char *keys, const char *text)
{
    int need = sanitize_width(keys, strlen(keys)) + 1 + sanitize_width(text, strlen(text));
    if (x + need > r.w)
        return -1;
    x += screen_put(s, r.y, r.x + x, r.w - x, ROLE_KEY, keys);
    x += screen_put(s, r.y, r.x + x, r.w - x, ROLE_FOOT, " ");
    return x + screen_put(s, r.y, r.x + x, r.w - x, ROLE_FOOT, text);
}

/* Stopping and pausing are of use while something runs that can be. */
static bool idle_key(const struct app *a, enum request r, enum context where)
{
    if (r == REQ_PAUSE)
        return !a->status.active || a->status.kind != &job_heal;
    return r == REQ_STOP && !(where & (IN_ASK | IN_HELP)) && !a->status.active;
}

static void draw_hints(const struct app *a, struct screen *s, struct rect r)
{
    size_t n;
    const struct binding *table = keys_table(&n);
    enum context where = app_context(a);
    int x = 1, tail = 0;
    char key[32], more[40];
    /* "? help" and how to leave always have their place at the right end. */
    static const char screens[] = "1-6 screens";
    snprintf(more, sizeof more, "%s help", where == IN_PROMPT ? "F9" : "?");
    bool room = r.w >= 40 && !(where & (IN_TEXT | IN_HELP));
    if (where != IN_ASK)
        tail = sanitize_width(more, strlen(more)) + 2 + (room ? (int)sizeof screens - 1 + 2 : 0);
    for (size_t i = 0; i < n; i++) {
        const struct binding *b = &table[i];
        if (!(b->where & where) || !b->hint || b->request == REQ_HELP || b->request == REQ_QUIT)
            continue;
        if (idle_key(a, b->request, where))
            continue;
        int first = keys_of(app_keys(a), b, 0);
        keys_name(first, !s->ascii, key);
        if (first == UI_LEFT)
            snprintf(key, sizeof key, "←→");
        else if (first == UI_SHIFT_LEFT)
            snprintf(key, sizeof key, "⇧←→");
        else if (first == UI_F1)
            snprintf(key, sizeof key, "F1-F6");
        struct rect room_left = {r.y, r.x, 1, r.w - tail};
        int next = hint(s, room_left, x, key, b->hint);
        if (next < 0)
            break;
        x = next + 2;
    }
    if (!tail || r.w < tail)
        return;
    int at = r.w - tail + 1;
    if (room)
        at += screen_put(s, r.y, r.x + at, r.w - at, ROLE_FOOT, screens) + 2;
    hint(s, r, at, where == IN_PROMPT ? "F9" : "?", "help");
}

static void draw_ask(const struct app *a, struct screen *s, struct rect r)
{
    const struct textbuf *b = &a->ask.text;
    int x = 1, room;
    x += screen_put(s, r.y, r.x + x, r.w > 48 ? r.w - 24 : r.w / 2, ROLE_KEY, a->ask.label);
    x += screen_put(s, r.y, r.x + x, r.w - x, ROLE_FOOT, ": ");
    room = r.w - x - 1;
    /* The end of a long text stays visible while it is typed; the cursor may split a cluster. */
    size_t from = 0;
    struct cluster c;
    while (from < b->at && sanitize_width(b->text + from, b->at - from) > room - 1)
        from += sanitize_next(b->text + from, b->at - from, &c);
    screen_putn(s, r.y, r.x + x, room, ROLE_FOOT, b->text + from, b->n - from);
    screen_cursor(s, r.y, r.x + x + sanitize_width(b->text + from, b->at - from));
}

/* A message may need more than the last line: it then covers what is above, up to three lines. */
static void draw_message(struct screen *s, struct rect foot, enum role role, const char *text)
{
    int lines = 0, most = foot.y < 8 ? 1 : 3;
    struct text_line *line = text_wrap(text, strlen(text), foot.w - 2, &lines);
    if (!line)
        return;
    int show = lines < most ? lines : most;
    struct rect r = {foot.y - show + 1, foot.x, show, foot.w};
    screen_fill(s, r, ROLE_FOOT);
    for (int i = 0; i < show; i++) {
        bool last = i + 1 == show;
        /* What does not fit is cut by screen_putn, which marks it. */
        size_t n = last ? strlen(text + line[i].start) : line[i].bytes;
        while (n && text[line[i].start + n - 1] == ' ') /* of the break: it may not fit */
            n--;
        screen_putn(s, r.y + i, r.x + 1, r.w - 2, role, text + line[i].start, n);
    }
    free(line);
}

static void draw_foot(const struct app *a, struct screen *s, struct rect r)
{
    if (r.h < 1)
        return;
    screen_fill(s, r, ROLE_FOOT);
    if (a->ask.what) {
        draw_ask(a, s, r);
        struct rect above = {r.y - 1, r.x, 1, r.w};
        if (a->ask.error[0] && r.y > 0)
            draw_message(s, above, ROLE_BAD, a->ask.error);
        else if (a->ask.hint && r.y > 6) /* there it does not cover what the question is about */
            draw_message(s, above, ROLE_DIM, a->ask.hint);
    } else if (a->message[0]) {
        draw_message(s, r, a->message_role, a->message);
    } else {
        draw_hints(a, s, r);
    }
}

static int help_line(const struct app *a, struct screen *s, struct rect in, int row, int top,
                     const struct binding *b)
{
    char keys[128] = "", key[32];
    for (int k = 0, press; k < BINDING_KEYS && (press = keys_of(app_keys(a), b, k)); k++) {
        size_t n = strlen(keys);
        keys_name(press, false, key);
        if (strstr(keys, key))
            continue;
        snprintf(keys + n, sizeof keys - n, "%s%s", n ? ", " : "", key);
    }
    if (row >= top && row < top + in.h) {
        int y = in.y + row - top;
        screen_put(s, y, in.x + 1, 22 < in.w ? 22 : in.w - 1, ROLE_KEY, keys);
        screen_put(s, y, in.x + 24, in.w - 25, ROLE_NORMAL, b->help);
    }
    return row + 1;
}

void view_help(struct app *a, struct screen *s, struct rect body)
{
    size_t n;
    const struct binding *table = keys_table(&n);
    enum context where = app_help_context(a);
    bool chat = where == IN_PROMPT;
    char title[64];
    int rows = 0, row = 0;
    snprintf(title, sizeof title, "keys of screen %d: %s%s", a->j.screen + 1,
             view_of(a->j.screen)->name, chat ? ", prompt" : "");
    screen_box(s, body, ROLE_FOCUS, title);
    struct rect in = layout_inside(body);
    for (size_t i = 0; i < n; i++)
        rows += (table[i].where & where) != 0;
    rows += chat ? 3 : 0;
    int most = rows > in.h ? rows - in.h : 0;
    a->help_top = a->help_top > most ? most : a->help_top < 0 ? 0 : a->help_top;
    for (size_t i = 0; i < n; i++)
        if (table[i].where & where)
            row = help_line(a, s, in, row, a->help_top, &table[i]);
    static const char *const slash[] = {
        "", "/system TEXT  /set KEY VALUE  /regen  /edit  /undo  /clear  /stats  /help  /quit",
        "/save FILE  /load FILE  /export FILE.md or FILE.json  (// starts a text with a slash)"};
    for (int i = 0; chat && i < 3; i++, row++)
        if (row >= a->help_top && row < a->help_top + in.h)
            screen_put(s, in.y + row - a->help_top, in.x + 1, in.w - 2, ROLE_NORMAL, slash[i]);
    if (a->help_top < most)
        screen_right(s, body.y + body.h - 1, body.x, body.w - 2, ROLE_FOCUS, " ↓ more ");
}

/* Jobs name their steps themselves; time left is what the running step has shown so far. */
void view_running(const struct app *a, struct screen *s, struct rect in,
                  const struct job_kind *kind, const struct job_kind *also, double started_sec)
{
    const struct job_status *j = &a->status;
    bool mine = j->active && (j->kind == kind || j->kind == also);
    double share = mine && j->total > 0 ? j->done / j->total : 0, run = j->now_sec - j->started_sec;
    char elapsed[32], left[32];
    int y = in.h >= 2 ? in.y + 1 : in.y, bar = in.w - 44 > 10 ? in.w - 44 : in.w > 24 ? 10 : 0;
    if (in.h >= 2)
        screen_putf(s, in.y, in.x + 1, in.w - 2, ROLE_NORMAL, "%s%s", mine ? "" : "waits for ",
                    !j->active            ? "the worker"
                    : mine && j->phase[0] ? j->phase
                                          : j->kind->name);
    if (!s->plain)
        screen_bar(s, y, in.x + 1, bar, ROLE_BAR, share);
    app_seconds(a, j->now_sec - started_sec, elapsed);
    if (share > 0.02)
        app_seconds(a, run * (1 - share) / share, left);
    else
        snprintf(left, sizeof left, "–");
    screen_putf(s, y, in.x + bar + 2, in.w - bar - 3, ROLE_NORMAL,
                "%3.0f%%  %s elapsed  %s left  Esc stops", 100 * share, elapsed, left);
}

void view_rows(struct app *a, struct rect r, int top, int n, int *at)
{
    r.h = n - top < r.h ? n - top : r.h;
    a->rows = r;
    a->rows_top = top;
    a->rows_at = at;
}

void app_draw(struct app *a, struct screen *s)
{
    struct frame_layout f = layout_frame(s->rows, s->cols);
    a->options.rows = s->rows;
    a->options.cols = s->cols;
    screen_clear(s);
    a->rows = (struct rect){0};
    draw_head(a, s, f.head);
    if (a->help)
        view_help(a, s, f.body);
    else
        view_of(a->j.screen)->draw(a, s, f.body);
    if (a->help)
        s->cursor_row = -1;
    draw_foot(a, s, f.foot);
}
