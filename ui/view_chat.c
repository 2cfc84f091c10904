/* Screen 4: one prompt, one or two models. Text is wrapped from the newest turn upwards, so that
 * the work a frame takes does not grow with the transcript. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/kvmem.h"
#include "ui/app_parts.h"

/* One piece of the transcript of a side. */
struct piece {
    const char *text;
    size_t n;
    size_t turn;
    bool answer;
};

static enum role lost_role(float lost)
{
    return lost < 0.1f   ? ROLE_NORMAL
           : lost < 0.3f ? ROLE_LOST1
           : lost < 0.6f ? ROLE_LOST2
                         : ROLE_LOST3;
}

struct inks {                     /* what decides the role of a byte */
    const struct side_text *live; /* NULL: tokens unknown */
    size_t token, token_at;       /* cursor into live */
    size_t parts_at, parts_end;
    enum role plain;
};

static enum role ink(struct inks *k, size_t at)
{
    if (at >= k->parts_at && at < k->parts_end)
        return ROLE_DIFFERS;
    if (!k->live)
        return k->plain;
    while (k->token < k->live->n_token && k->token_at + k->live->token[k->token].bytes <= at)
        k->token_at += k->live->token[k->token++].bytes;
    return k->token < k->live->n_token ? lost_role(k->live->token[k->token].lost) : k->plain;
}

static void draw_line(struct screen *s, int y, int x, int w, const char *text,
                      const struct text_line *l, struct inks *k)
{
    size_t at = l->start, end = l->start + l->bytes;
    int used = 0;
    while (at < end && used < w) {
        struct cluster c;
        enum role role = ink(k, at);
        size_t run = at;
        int width = 0;
        /* A run of one role; blanks that hang over the edge are not drawn. */
        while (run < end && ink(k, run) == role) {
            size_t n = sanitize_next(text + run, end - run, &c);
            if (used + width + c.width > w)
                break;
            width += c.width;
            run += n;
        }
        if (run == at)
            break;
        screen_putn(s, y, x + used, w - used, role, text + at, run - at);
        used += width;
        at = run;
    }
}

static struct inks inks_of(const struct app *a, const struct piece *p, int side)
{
    struct inks k = {.parts_at = SIZE_MAX, .plain = p->answer ? ROLE_NORMAL : ROLE_USER};
    const struct found_text *f = &a->chat.found;
    bool found = f->n && f->turn == p->turn && f->what == (p->answer ? side : 2);
    if (p->answer)
        k.parts_at = chat_parts_at(a, p->turn, side, &k.parts_end);
    if (found) {
        k.parts_at = f->at;
        k.parts_end = f->at + f->n;
    }
    bool newest = p->answer && p->turn + 1 == a->j.n_turn && a->chat.live[side].n_token;
    if (newest && side == 1 && a->j.settings.mode == CHAT_FORCED)
        k.live = &a->chat.live[side];
    return k;
}

static void stand_in(struct piece *p, const char *text)
{
    p->text = text;
    p->n = strlen(text);
}

/* Pieces from the end: 0 is the newest answer, 1 its prompt, and so on. */
static bool piece_at(const struct app *a, int side, size_t i, struct piece *p)
{
    size_t back = i / 2;
    if (back >= a->j.n_turn)
        return false;
    p->turn = a->j.n_turn - 1 - back;
    p->answer = i % 2 == 0;
    if (p->answer) {
        p->text = chat_said(a, p->turn, side, &p->n);
        if (!p->text)
            stand_in(p, "(not there yet)");
        else if (a->chat.answering && back == 0 && p->n == 0)
            stand_in(p, "…");
        /* Blank lines at the end would only push the rest out of sight. */
        size_t all = p->n;
        while (p->n && strchr(" \n\t", p->text[p->n - 1]))
            p->n--;
        if (all && !p->n)
            stand_in(p, "(blank)");
    } else {
        p->text = a->j.turn[p->turn].prompt;
        p->n = strlen(p->text);
    }
    return true;
}

/* Lines of a piece with the blank line that follows an answer; fresh array. */
static struct text_line *piece_lines(const struct piece *p, int w, int *lines)
{
    return text_wrap(p->text, p->n, p->answer ? w : w - 2, lines);
}

static void draw_piece(const struct app *a, struct screen *s, struct rect in, int y,
                       const struct piece *p, int side, const struct text_line *line, int lines)
{
    struct inks k = inks_of(a, p, side);
    int indent = p->answer ? 0 : 2;
    for (int i = 0; i < lines; i++) {
        if (y + i < in.y || y + i >= in.y + in.h)
            continue;
        if (!p->answer && i == 0)
            screen_put(s, y, in.x, 1, ROLE_USER, ">");
        draw_line(s, y + i, in.x + indent, in.w - indent, p->text, &line[i], &k);
    }
}

/* Lines from the newest piece up, at most most of them. */
static int count_lines(const struct app *a, int side, int w, int most)
{
    struct piece p;
    int total = 0;
    for (size_t i = 0; total < most && piece_at(a, side, i, &p); i++) {
        int lines = 0;
        free(piece_lines(&p, w, &lines));
        total += lines + (p.answer && i > 0);
    }
    return total;
}

static void draw_text(struct app *a, struct screen *s, struct rect in, int side)
{
    struct chat_state *c = &a->chat;
    struct piece p;
    int want = in.h + (c->scroll[side] < 1 << 28 ? c->scroll[side] : 1 << 28);
    int total = count_lines(a, side, in.w, want);
    if (total < want)
        c->scroll[side] = total > in.h ? total - in.h : 0;
    int scroll = c->scroll[side];
    int y = in.y + (total < in.h ? total : in.h) + scroll;
    for (size_t i = 0; y > in.y && piece_at(a, side, i, &p); i++) {
        int lines = 0;
        struct text_line *line = piece_lines(&p, in.w, &lines);
        if (!line)
            return;
        y -= lines + (p.answer && i > 0); /* a blank line below older answers */
        draw_piece(a, s, in, y, &p, side, line, lines);
        free(line);
    }
    if (scroll > 0)
        screen_right(s, in.y + in.h, in.x - 1, in.w, ROLE_FOCUS, " ↓ more ");
}

/* Scrolls so that the word found stands in the middle; where the other side said it, the prompt. */
static void show_found(struct app *a, struct rect in, int side)
{
    const struct found_text *f = &a->chat.found;
    struct piece p;
    int below = 0;
    for (size_t i = 0; piece_at(a, side, i, &p); i++) {
        int lines = 0, row = 0, col;
        struct text_line *line = piece_lines(&p, in.w, &lines);
        bool here = p.turn == f->turn && p.answer == (f->what == side);
        if (line && here && (p.answer || f->what == 2))
            text_locate(p.text, line, lines, f->at, &row, &col);
        free(line);
        if (here) {
            below += lines - row - 1;
            a->chat.scroll[side] = below > in.h / 2 ? below - in.h / 2 : 0;
            return;
        }
        below += lines + (p.answer && i > 0);
    }
}

/* Scrolls so that the place where the newest answers part stands in the middle. */
static void find_difference(struct app *a, struct rect in, int side)
{
    struct piece p;
    size_t end, at = SIZE_MAX;
    int lines = 0, row = 0, col;
    if (!piece_at(a, side, 0, &p) || (at = chat_parts_at(a, p.turn, side, &end)) == SIZE_MAX)
        return;
    struct text_line *line = piece_lines(&p, in.w, &lines);
    if (line)
        text_locate(p.text, line, lines, at, &row, &col);
    int below = line ? lines - row - 1 : 0;
    a->chat.scroll[side] = below > in.h / 2 ? below - in.h / 2 : 0;
    free(line);
}

static void stats_text(const struct app *a, int side, int width, char text[160])
{
    const struct chat_stats *t = &a->chat.stats[side];
    char kv[32], rate[32];
    text[0] = 0;
    if (!a->chat.has_stats)
        return;
    kvmem_text((double)t->kv_bytes_used, kv, sizeof kv);
    app_rate(a, t->tokens_per_sec, rate);
    int n = snprintf(text, 160, " %s  KV %s", rate, kv);
    if (width >= 64 && !a->clock_off)
        n += snprintf(text + n, 160 - (size_t)n, "  first %.2f s", t->ttft_sec);
    if (width >= 48)
        n += snprintf(text + n, 160 - (size_t)n, "  %d/%d", t->context_used, t->context);
    if (width >= 64 && t->stop && t->stop[0])
        n += snprintf(text + n, 160 - (size_t)n, "  %s", t->stop);
    snprintf(text + n, 160 - (size_t)n, " ");
}

static void draw_side(struct app *a, struct screen *s, struct rect r, int side)
{
    static const char *const name[] = {"original", "converted"};
    struct rect in = layout_inside(r);
    char stats[160];
    screen_box(s, r, a->chat.in_transcript ? ROLE_FOCUS : ROLE_BORDER, name[side]);
    if (in.h < 1 || in.w < 4)
        return;
    stats_text(a, side, in.w, stats);
    int w = sanitize_width(stats, strlen(stats));
    if (w > 0 && w + 14 < in.w)
        screen_right(s, r.y, r.x, r.w - 1, ROLE_DIM, stats);
    in.x++;
    in.w -= 2;
    if (a->j.n_turn == 0 && side == 0) {
        const char *why = !a->has_model ? "No model is open: F1 shows what is here."
                          : a->chat_reason[0]
                              ? a->chat_reason
                              : "Type below, then Enter. /help lists keys and commands.";
        screen_put(s, in.y, in.x, in.w, ROLE_DIM, why);
        if (a->has_model && !a->has_conversion && in.h > 1)
            screen_put(s, in.y + 1, in.x, in.w, ROLE_DIM,
                       "After a conversion (F2, c) the converted model answers beside it.");
        if (a->chat_note[0] && in.h > 2)
            screen_put(s, in.y + 2, in.x, in.w, ROLE_WARN, a->chat_note);
        return;
    }
    if (a->chat.find_difference)
        find_difference(a, in, side);
    if (a->chat.found.show)
        show_found(a, in, side);
    draw_text(a, s, in, side);
}

static void draw_middle(const struct app *a, struct screen *s, struct rect r)
{
    const struct chat_state *c = &a->chat;
    const struct chat_settings *t = &a->j.settings;
    char text[256];
    int n = snprintf(text, sizeof text, "%s", t->mode == CHAT_FORCED ? "forced" : "free");
    if (c->has_stats && c->compare.compared > 0)
        n += snprintf(text + n, sizeof text - (size_t)n, "  KL %.4f  agree %.1f%% of %d",
                      c->compare.kl_mean, 100 * c->compare.agreement, c->compare.compared);
    if (c->has_stats && c->compare.first_difference >= 0)
        n += snprintf(text + n, sizeof text - (size_t)n, "  part at token %d",
                      c->compare.first_difference + 1);
    else if (c->has_stats && c->compare.compared > 0)
        n += snprintf(text + n, sizeof text - (size_t)n, "  same so far");
    if (r.w >= 70)
        snprintf(text + n, sizeof text - (size_t)n, "  temp %g  seed %llu", t->sampling.temperature,
                 (unsigned long long)t->sampling.seed);
    int x = 1 + screen_put(s, r.y, r.x + 1, r.w - 2, ROLE_DIM, text);
    if (t->mode != CHAT_FORCED || x + 34 > r.w)
        return;
    /* What the marks of forced mode mean. */
    static const struct {
        enum role role;
        const char *text;
    } legend[] = {{ROLE_DIM, "  probability lost: "},
                  {ROLE_LOST1, "10%"},
                  {ROLE_DIM, " "},
                  {ROLE_LOST2, "30%"},
                  {ROLE_DIM, " "},
                  {ROLE_LOST3, "60%"}};
    for (size_t i = 0; i < sizeof legend / sizeof *legend; i++)
        x += screen_put(s, r.y, r.x + x, r.w - x, legend[i].role, legend[i].text);
}

static void draw_prompt(const struct app *a, struct screen *s, struct rect r,
                        const struct text_line *line, int lines)
{
    const struct chat_state *c = &a->chat;
    int row, col;
    text_locate(c->prompt.text, line, lines, c->prompt.at, &row, &col);
    int top = row >= r.h ? row - r.h + 1 : 0;
    for (int i = 0; i < r.h && top + i < lines; i++) {
        const struct text_line *l = &line[top + i];
        struct inks k = {.parts_at = SIZE_MAX, .plain = ROLE_NORMAL};
        screen_put(s, r.y + i, r.x, 1, ROLE_USER, top + i == 0 ? ">" : " ");
        draw_line(s, r.y + i, r.x + 2, r.w - 3, c->prompt.text, l, &k);
    }
    if (a->chat.prompt.n == 0 && a->chat.answering)
        screen_put(s, r.y, r.x + 2, r.w - 3, ROLE_DIM,
                   a->status.active && a->status.kind != &job_chat
                       ? "waits for the running job; Esc takes it back"
                       : "Esc stops the answer");
    if (!c->in_transcript)
        screen_cursor(s, r.y + row - top, r.x + 2 + (col < r.w - 3 ? col : r.w - 3));
}

static void draw(struct app *a, struct screen *s, struct rect body)
{
    const struct textbuf *b = &a->chat.prompt;
    bool past = false;
    for (size_t i = 0; i < a->j.n_turn && !past; i++)
        past = a->j.turn[i].answer[1] != NULL;
    int lines = 1, sides = a->has_conversion || past ? 2 : 1;
    struct text_line *line = text_wrap(b->text, b->n, body.w - 3, &lines);
    struct chat_layout l = layout_chat(body, sides, lines);
    for (int i = 0; i < sides; i++)
        draw_side(a, s, l.side[i], i);
    a->chat.find_difference = a->chat.found.show = false;
    if (l.middle.h > 0)
        draw_middle(a, s, l.middle);
    if (line && l.input.h > 0)
        draw_prompt(a, s, l.input, line, lines);
    free(line);
}

const struct view_ops view_chat = {"chat", IN_TALK, draw};
