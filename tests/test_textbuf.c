/* Text on its way in (editing, pasting) and out (sanitising, wrapping, cells). */
#include "tests/support.h"
#include "ui/screen.h"
#include "ui/textbuf.h"

static void test_editing(void)
{
    struct textbuf b;
    struct err e;
    CHECK_OK(textbuf_init(&b, &e), e);
    textbuf_insert(&b, "héllo wörld", strlen("héllo wörld"));
    textbuf_move(&b, TEXT_WORD_LEFT);
    CHECK(b.at == strlen("héllo "), "%zu", b.at);
    textbuf_move(&b, TEXT_LEFT);
    textbuf_move(&b, TEXT_LEFT);
    textbuf_delete(&b, TEXT_WORD_LEFT);
    CHECK(strcmp(b.text, "o wörld") == 0, "%s", b.text);
    /* A base and its combining mark are one step. */
    textbuf_set(&b, "xe\xcc\x81y");
    textbuf_move(&b, TEXT_LEFT);
    textbuf_move(&b, TEXT_LEFT);
    CHECK(b.at == 1, "%zu", b.at);
    textbuf_delete(&b, TEXT_RIGHT);
    CHECK(strcmp(b.text, "xy") == 0, "%s", b.text);
    textbuf_set(&b, "one\ntwo");
    textbuf_delete(&b, TEXT_LINE_START);
    CHECK(strcmp(b.text, "one\n") == 0, "%s", b.text);
    textbuf_move(&b, TEXT_START);
    textbuf_delete(&b, TEXT_LINE_END);
    CHECK(strcmp(b.text, "\n") == 0, "%s", b.text);
    textbuf_done(&b);
}

static void test_hostile_paste(void)
{
    struct textbuf b;
    struct err e;
    static const char raw[] = "a\x1b[31mb\r\nc\rd\x07\te\xff\x80g\x7f";
    CHECK_OK(textbuf_init(&b, &e), e);
    textbuf_insert(&b, raw, sizeof raw - 1);
    CHECK(strcmp(b.text, "a[31mb\nc\nd\te\xef\xbf\xbd\xef\xbf\xbdg") == 0, "%s", b.text);
    char *big = mem_calloc(TEXTBUF_MAX + 2, 1);
    memset(big, 'x', TEXTBUF_MAX + 1);
    CHECK(!textbuf_insert(&b, big, TEXTBUF_MAX + 1), "refused");
    CHECK(strlen(b.text) == b.n, "unchanged");
    free(big);
    textbuf_done(&b);
}

/* Random edits keep the cursor between clusters and the text terminated. */
static void test_random_edits(void)
{
    static const char *const pieces[] = {
        "a",    "é",  "日本", " ", "\n", "e\xcc\x81", "\xf0\x9f\x98\x80", "\xe2\x80\x8d",
        "word", "\t", "\xff"};
    struct textbuf b;
    struct err e;
    uint64_t seed = 7;
    CHECK_OK(textbuf_init(&b, &e), e);
    for (int i = 0; i < 20000; i++) {
        int k = (int)(test_uniform(&seed) * 11), m = (int)(test_uniform(&seed) * 8);
        double what = test_uniform(&seed);
        if (what < 0.5)
            textbuf_insert(&b, pieces[k], strlen(pieces[k]));
        else if (what < 0.8)
            textbuf_move(&b, (enum textbuf_move)m);
        else if (what < 0.99)
            textbuf_delete(&b, (enum textbuf_move)(m % 6));
        else
            textbuf_clear(&b);
        if (b.n > 4000)
            textbuf_clear(&b);
        if (b.at > b.n || strlen(b.text) != b.n || ((unsigned char)b.text[b.at] & 0xc0) == 0x80)
            CHECK(false, "step %d: cursor %zu of %zu", i, b.at, b.n);
    }
    textbuf_done(&b);
}

static void test_wrapping(void)
{
    static const char text[] =
        "The quick brown fox\njumps  over 日本語テキスト andaverylongwordindeed";
    for (int width = 1; width < 60; width++) {
        int lines = 0;
        struct text_line *l = text_wrap(text, strlen(text), width, &lines);
        size_t at = 0;
        CHECK(l != NULL && lines >= 2, "width %d", width);
        for (int i = 0; l && i < lines; i++) {
            CHECK(l[i].start == at || text[l[i].start - 1] == '\n', "no byte is lost");
            at = l[i].start + l[i].bytes;
            /* Blanks may hang over the edge; nothing else may. */
            size_t n = l[i].bytes;
            while (n && text[l[i].start + n - 1] == ' ')
                n--;
            int w = sanitize_width(text + l[i].start, n);
            CHECK(w <= (width < 2 ? 2 : width), "line %d is %d wide of %d", i, w, width);
        }
        CHECK(at == strlen(text), "to the end");
        free(l);
    }
    int lines = 0, row, col;
    struct text_line *l = text_wrap("ab cd\nef", 8, 4, &lines);
    CHECK(lines == 3, "%d", lines);
    text_locate("ab cd\nef", l, lines, 4, &row, &col);
    CHECK(row == 1 && col == 1, "%d %d", row, col);
    text_locate("ab cd\nef", l, lines, 8, &row, &col);
    CHECK(row == 2 && col == 2, "%d %d", row, col);
    CHECK(text_at("ab cd\nef", &l[1], 1) == 4, "column");
    free(l);
    l = text_wrap("", 0, 10, &lines);
    CHECK(l && lines == 1 && l[0].bytes == 0, "empty text has one line");
    free(l);
}

/* No byte that a terminal would act on comes out, whatever goes in. */
static void test_sanitising(void)
{
    uint64_t seed = 3;
    for (int i = 0; i < 200000; i++) {
        char s[12];
        struct cluster c;
        for (int k = 0; k < 12; k++)
            s[k] = (char)(test_uniform(&seed) * 256);
        if (i % 2) /* likelier to be well-formed */
            s[0] = (char)(0xe0 | (s[0] & 15)), s[1] = (char)(0x80 | (s[1] & 63)),
            s[2] = (char)(0x80 | (s[2] & 63));
        size_t n = sanitize_next(s, 12, &c);
        bool ok = n >= 1 && n <= 12 && memchr(c.text, 0, CLUSTER_BYTES) && c.width >= 0 &&
                  c.width <= TAB_COLUMNS && (c.width > 0) == (c.text[0] != 0);
        for (const unsigned char *u = (unsigned char *)c.text; ok && *u; u++)
            ok = *u >= 0x20 && *u != 0x7f && !(u[0] == 0xc2 && u[1] >= 0x80 && u[1] < 0xa0);
        if (!ok)
            CHECK(false, "case %d", i);
    }
    struct cluster c;
    sanitize_next("\x1b[2J", 4, &c);
    CHECK(strcmp(c.text, "␛") == 0 && c.width == 1, "%s", c.text);
    sanitize_next("\xe2\x80\xae", 3, &c);
    CHECK(c.width == 0, "right-to-left override is dropped");
    sanitize_next("\xc2\x9b", 2, &c);
    CHECK(c.width == 1 && strcmp(c.text, "\xef\xbf\xbd") == 0, "%s", c.text);
}

static void test_cells(void)
{
    struct screen s;
    struct err e;
    CHECK_OK(screen_init(&s, 2, 8, false, &e), e);
    int used = screen_put(&s, 0, 0, 8, ROLE_NORMAL, "日本語テキスト");
    char *row = screen_row(&s, 0);
    CHECK(used == 8 && strcmp(row, "日本語…") == 0, "%d %s", used, row);
    free(row);
    /* Overwriting half a wide character blanks the other half. */
    screen_put(&s, 0, 1, 1, ROLE_NORMAL, "x");
    row = screen_row(&s, 0);
    CHECK(strcmp(row, " x本語…") == 0, "%s", row);
    free(row);
    screen_put(&s, 1, 6, 20, ROLE_NORMAL, "abc"); /* over the edge: ignored */
    screen_put(&s, 7, -3, 20, ROLE_NORMAL, "abc");
    screen_tail(&s, 1, 0, 8, ROLE_NORMAL, "/usr/share/name");
    row = screen_row(&s, 1);
    CHECK(strcmp(row, "…re/name") == 0, "%s", row);
    free(row);
    s.ascii = true;
    screen_put(&s, 1, 0, 8, ROLE_NORMAL, "é→日│");
    row = screen_row(&s, 1);
    CHECK(strncmp(row, "?>? |", 5) == 0, "%s", row);
    free(row);
    screen_done(&s);
}

int main(void)
{
    test_editing();
    test_hostile_paste();
    test_random_edits();
    test_wrapping();
    test_sanitising();
    test_cells();
    return test_end("textbuf");
}
