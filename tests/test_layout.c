/* Rectangles of every screen at every size from 20×5 to 400×100 (and below): inside, disjoint, and
 * big enough to be of use where there is room. */
#include "tests/support.h"
#include "ui/layout.h"

static bool inside(struct rect in, struct rect out)
{
    return in.h >= 0 && in.w >= 0 && in.y >= out.y && in.x >= out.x &&
           in.y + in.h <= out.y + out.h && in.x + in.w <= out.x + out.w;
}

static bool apart(struct rect a, struct rect b)
{
    if (a.h == 0 || a.w == 0 || b.h == 0 || b.w == 0)
        return true;
    return a.y + a.h <= b.y || b.y + b.h <= a.y || a.x + a.w <= b.x || b.x + b.w <= a.x;
}

static void check_set(const struct rect *r, int n, struct rect out, const char *what, int rows,
                      int cols)
{
    for (int i = 0; i < n; i++) {
        CHECK(inside(r[i], out), "%s %d at %dx%d: %d %d %d %d", what, i, cols, rows, r[i].y, r[i].x,
              r[i].h, r[i].w);
        for (int j = 0; j < i; j++)
            CHECK(apart(r[i], r[j]), "%s %d and %d at %dx%d", what, j, i, cols, rows);
    }
}

static void check_size(int rows, int cols)
{
    struct rect all = {0, 0, rows, cols};
    struct frame_layout f = layout_frame(rows, cols);
    check_set((struct rect[]){f.head, f.body, f.foot}, 3, all, "frame", rows, cols);
    CHECK(f.head.h + f.body.h + f.foot.h == rows, "every line is used");
    struct ranks_layout k = layout_ranks(f.body, 4);
    check_set((struct rect[]){k.list, k.plot, k.plot2, k.facts}, 4, f.body, "ranks", rows, cols);
    CHECK(rows < 4 || k.list.h >= 2, "%dx%d", cols, rows);
    CHECK((k.plot2.w > 0) == (cols >= LAYOUT_WIDE), "two plots from %d columns", LAYOUT_WIDE);
    for (int detail = 0; detail < 8; detail++) {
        struct list_layout l = layout_list(f.body, detail);
        check_set((struct rect[]){l.list, l.detail}, 2, f.body, "list", rows, cols);
        CHECK(l.list.h + l.detail.h == f.body.h, "%dx%d", cols, rows);
    }
    for (int sides = 1; sides <= 2; sides++)
        for (int lines = 1; lines < 40; lines += 3) {
            struct chat_layout c = layout_chat(f.body, sides, lines);
            check_set((struct rect[]){c.side[0], c.side[1], c.middle, c.input}, 4, f.body, "chat",
                      rows, cols);
            CHECK(f.body.h < 1 || c.input.h >= 1, "the prompt is always there");
            CHECK(f.body.h < 4 || sides < 2 || c.side[1].h >= 1, "%dx%d", cols, rows);
        }
}

static void test_inside(void)
{
    for (int h = 0; h < 6; h++)
        for (int w = 0; w < 6; w++) {
            struct rect box = {3, 4, h, w};
            CHECK(inside(layout_inside(box), box), "%d %d", h, w);
        }
}

static void test_scroll(void)
{
    for (int total = 0; total < 12; total++)
        for (int visible = 0; visible < 12; visible++)
            for (int selected = 0; selected < total; selected++)
                for (int top = -2; top < 14; top++) {
                    int t = layout_scroll(top, selected, visible, total);
                    CHECK(t >= 0 && (t == 0 || t + visible <= total), "%d", t);
                    if (visible > 0)
                        CHECK(selected >= t && selected < t + visible, "visible");
                    if (visible > 0 && top >= 0 && selected >= top && selected < top + visible &&
                        top + visible <= total)
                        CHECK(t == top, "does not move without need");
                }
}

int main(void)
{
    for (int rows = 1; rows <= 100; rows += rows < 40 ? 1 : 7)
        for (int cols = 1; cols <= 400; cols += cols < 130 ? 1 : 13)
            check_size(rows, cols);
    test_inside();
    test_scroll();
    return test_end("layout");
}
