/* Curves in characters: where dots land, joined, clipped, with what is not finite left out. */
#include "tests/support.h"
#include "ui/plot.h"
#include "ui/screen.h"

static int dots_of(const struct plot *p)
{
    int n = 0;
    for (int i = 0; i < p->h * p->w; i++)
        n += __builtin_popcount(p->dots[i]);
    return n;
}

static void test_corners(void)
{
    struct plot p;
    struct err e;
    const double falls[] = {1, 0};
    char text[8];
    CHECK_OK(plot_init(&p, 4, 10, false, &e), e);
    plot_curve(&p, falls, 2, 0, 1);
    /* The first half of the columns shows the first value at the top, the rest the second one at
     * the bottom, and a stroke joins them: 20 columns of dots, 16 rows. */
    CHECK(dots_of(&p) == 20 + 15 - 0, "%d", dots_of(&p));
    plot_char(&p, 0, 0, text);
    CHECK(strcmp(text, "⠉") == 0, "%s", text);
    plot_char(&p, 3, 9, text);
    CHECK(strcmp(text, "⣀") == 0, "%s", text);
    plot_char(&p, 3, 0, text);
    CHECK(strcmp(text, " ") == 0, "%s", text);
    plot_done(&p);
}

static void test_odd_input(void)
{
    struct plot p;
    struct err e;
    const double odd[] = {NAN, INFINITY, -INFINITY, 5, -5, 0.5};
    for (int ascii = 0; ascii < 2; ascii++)
        for (int h = 0; h < 5; h++)
            for (int w = 0; w < 9; w++) {
                CHECK_OK(plot_init(&p, h, w, ascii, &e), e);
                plot_curve(&p, odd, 6, 0, 1);
                plot_curve(&p, odd, 0, 0, 1);
                plot_curve(&p, odd, 6, 1, 1);
                for (int n = 1; n < 9; n++)
                    for (int i = -1; i <= n; i++) {
                        int c = plot_column(&p, i, n);
                        CHECK(c >= 0 && (c < w || w == 0), "column %d of %d", c, w);
                    }
                plot_done(&p);
            }
}

/* The cut is drawn where the curve has that element: columns grow with the index. */
static void test_columns(void)
{
    struct plot p;
    struct err e;
    CHECK_OK(plot_init(&p, 3, 37, false, &e), e);
    int before = 0;
    for (int i = 0; i < 384; i++) {
        int c = plot_column(&p, i, 384);
        CHECK(c >= before && c - before <= 1, "element %d", i);
        before = c;
    }
    CHECK(before == 36, "the last element is in the last column");
    plot_done(&p);
}

static void test_bar(void)
{
    struct screen s;
    struct err e;
    CHECK_OK(screen_init(&s, 1, 10, false, &e), e);
    screen_bar(&s, 0, 0, 10, ROLE_BAR, 0.5);
    char *row = screen_row(&s, 0);
    CHECK(strcmp(row, "█████") == 0, "%s", row);
    free(row);
    screen_bar(&s, 0, 0, 10, ROLE_BAR, 0.8125);
    row = screen_row(&s, 0);
    CHECK(strcmp(row, "████████▏") == 0, "%s", row);
    free(row);
    screen_bar(&s, 0, 0, 10, ROLE_BAR, NAN);
    row = screen_row(&s, 0);
    CHECK(strcmp(row, "") == 0, "%s", row);
    free(row);
    s.ascii = true;
    screen_bar(&s, 0, 0, 10, ROLE_BAR, 7);
    row = screen_row(&s, 0);
    CHECK(strcmp(row, "##########") == 0, "%s", row);
    free(row);
    screen_done(&s);
}

int main(void)
{
    test_corners();
    test_odd_input();
    test_columns();
    test_bar();
    return test_end("plot");
}
