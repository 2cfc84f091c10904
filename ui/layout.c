/* Rectangles. Refuses nothing: small screens give small or empty ones. */
#include "ui/layout.h"

static int least(int a, int b)
{
    return a < b ? a : b;
}

static int most(int a, int b)
{
    return a > b ? a : b;
}

/* The first h rows of r, and the rest of it. */
static struct rect cut_top(struct rect *r, int h)
{
    h = most(0, least(h, r->h));
    struct rect top = {r->y, r->x, h, r->w};
    r->y += h;
    r->h -= h;
    return top;
}

static struct rect cut_bottom(struct rect *r, int h)
{
    h = most(0, least(h, r->h));
    r->h -= h;
    return (struct rect){r->y + r->h, r->x, h, r->w};
}

static struct rect cut_left(struct rect *r, int w)
{
    w = most(0, least(w, r->w));
    struct rect left = {r->y, r->x, r->h, w};
    r->x += w;
    r->w -= w;
    return left;
}

struct frame_layout layout_frame(int rows, int cols)
{
    struct rect all = {0, 0, most(rows, 0), most(cols, 0)};
    struct frame_layout f;
    f.head = cut_top(&all, rows >= 3 ? 1 : 0);
    f.foot = cut_bottom(&all, rows >= 2 ? 1 : 0);
    f.body = all;
    return f;
}

struct ranks_layout layout_ranks(struct rect body, int facts)
{
    struct ranks_layout l = {0};
    /* The list keeps at least one row inside its box before facts get room. */
    l.facts = cut_bottom(&body, most(0, least(facts, body.h - 4)));
    if (body.w < 60) {
        l.list = body;
        l.plot = (struct rect){body.y, body.x + body.w, body.h, 0};
        l.plot2 = l.plot;
        return l;
    }
    l.list = cut_left(&body, least(44, most(36, body.w * 2 / 5)));
    l.plot2 = (struct rect){body.y, body.x + body.w, body.h, 0};
    if (body.w + l.list.w >= LAYOUT_WIDE) {
        l.plot = cut_left(&body, body.w / 2);
        l.plot2 = body;
    } else {
        l.plot = body;
    }
    return l;
}

struct list_layout layout_list(struct rect body, int detail)
{
    struct list_layout l;
    int want = detail > 0 ? detail + 2 : 0;
    if (body.h < 8)
        want = 0;
    l.detail = cut_bottom(&body, least(want, body.h - 5));
    l.list = body;
    return l;
}

struct chat_layout layout_chat(struct rect body, int sides, int input_lines)
{
    struct chat_layout l = {0};
    int most_input = most(1, body.h / 3);
    l.input = cut_bottom(&body, least(most(1, input_lines), most_input));
    if (sides == 2 && body.h >= 4)
        l.middle = cut_bottom(&body, 1);
    else
        l.middle = (struct rect){body.y + body.h, body.x, 0, body.w};
    l.side[0] = body;
    l.side[1] = (struct rect){body.y + body.h, body.x, 0, body.w};
    if (sides != 2)
        return l;
    if (body.w >= LAYOUT_COLUMNS) {
        l.side[0] = cut_left(&body, body.w / 2);
        l.side[1] = body;
    } else {
        l.side[0] = cut_top(&body, (body.h + 1) / 2);
        l.side[1] = body;
    }
    return l;
}

struct rect layout_inside(struct rect box)
{
    if (box.h < 3 || box.w < 4)
        return box; /* no room for a border: none is drawn */
    return (struct rect){box.y + 1, box.x + 1, box.h - 2, box.w - 2};
}

int layout_scroll(int top, int selected, int visible, int total)
{
    if (visible <= 0 || total <= visible)
        return 0;
    if (selected < top)
        top = selected;
    if (selected >= top + visible)
        top = selected - visible + 1;
    return most(0, least(top, total - visible));
}
