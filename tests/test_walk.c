/* A walk through each screen as a new user would do it (tests/screens/walk.keys), at three sizes,
 * in colour and in ASCII, compared with tests/screens/walk-NAME.txt. There a run of the same row is
 * one row and "= N more", colours are roles by run, and of ASCII only rows stand that are not the
 * UTF-8 row with each character's stand-in. Where the method's numbers differ, words and frames are
 * what is compared. Mono shows the same text: roles are then attributes (test_terminal looks for
 * colours). MLATHE_UPDATE_SCREENS=1 writes the files. */
#include "core/file.h"
#include "tests/support.h"
#include "tests/support_models.h"
#include "tests/support_screens.h"
#include "ui/markup.h"
#include "ui/sanitize.h"

static const char *const sizes[] = {"80x24", "120x40", "200x60"};
enum { SIZES = 3, KINDS = 3 };
static const char *const kinds[KINDS] = {"", " in ASCII", " in roles"};

/* walk.keys with its walks spelt out. */
static void expand(const char *from, const char *to)
{
    struct markup m = {0};
    struct err e = {0};
    char *text = NULL;
    CHECK_OK(file_read(from, 1 << 16, &text, NULL, &e), e);
    for (char *line = text, *next; line && *line; line = next) {
        size_t n = strcspn(line, "\n");
        next = line + n + (line[n] == '\n');
        line[n] = 0;
        if (strncmp(line, "walk ", 5) != 0) {
            markup_printf(&m, "%s\n", line);
            continue;
        }
        for (int s = 0; s < SIZES; s++)
            markup_printf(&m, "size %s\nshot %s\nascii on\nshot %s\nascii off\nshot %s roles\n",
                          sizes[s], line + 5, line + 5, line + 5);
        markup_put(&m, "size 80x24\n");
    }
    CHECK_OK(markup_save(&m, to, &e), e);
    markup_done(&m);
    free(text);
}

/* The end of the row at text. */
static const char *row_end(const char *text)
{
    return text + strcspn(text, "\n");
}

/* What an ASCII terminal would show of a row if each character had its stand-in; trailing blanks
 * go. */
static void ascii_of(const char *row, size_t n, char *out, size_t size)
{
    struct cluster c;
    size_t k = 0;
    for (size_t used; (used = sanitize_next(row, n, &c)) > 0; row += used, n -= used)
        for (int w = 0; w < c.width && k + 1 < size; w++)
            out[k++] = w ? ' ' : sanitize_ascii(c.text);
    while (k && out[k - 1] == ' ')
        k--;
    out[k] = 0;
}

static void put_row(struct markup *m, const char *row, size_t n, const char *roles)
{
    if (!roles) {
        markup_printf(m, "%.*s\n", (int)n, row);
        return;
    }
    for (size_t i = 0, run; i < n; i += run) {
        for (run = 1; i + run < n && row[i + run] == row[i];)
            run++;
        markup_printf(m, "%s%c%zu", i ? " " : "", row[i], run);
    }
    markup_put(m, "\n");
}

/* One shot, [text, end): rows that repeat once. plain: the UTF-8 shot that an ASCII one is told
 * apart from. */
static void put_shot(struct markup *m, const char *text, const char *end, const char *plain,
                     bool roles)
{
    const char *last = NULL;
    size_t last_n = 0, more = 0;
    for (int y = 0; text < end; text = row_end(text) + 1, y++) {
        size_t n = (size_t)(row_end(text) - text);
        if (plain) {
            char want[1024];
            size_t k = (size_t)(row_end(plain) - plain);
            ascii_of(plain, k, want, sizeof want);
            plain = row_end(plain) + 1;
            if (strlen(want) != n || memcmp(want, text, n) != 0)
                markup_printf(m, "%2d %.*s\n", y, (int)n, text);
            continue;
        }
        if (last && n == last_n && !memcmp(text, last, n)) {
            more++;
            continue;
        }
        if (more)
            markup_printf(m, "= %zu more\n", more);
        more = 0;
        put_row(m, text, n, roles ? "" : NULL);
        last = text;
        last_n = n;
    }
    if (more)
        markup_printf(m, "= %zu more\n", more);
}

/* The text in words; roles, and ASCII's own rows (plots), move with the method's results. */
static char *lasting(const char *name, const char *text)
{
    struct markup m = {0};
    bool skip = false;
    for (const char *row = text; *row; row = row_end(row) + (*row_end(row) == '\n')) {
        if (!strncmp(row, "== ", 3))
            skip = memmem(row, (size_t)(row_end(row) - row), " in ", 4) != NULL;
        if (!skip && strncmp(row, "= ", 2) != 0)
            markup_printf(&m, "%.*s\n", (int)(row_end(row) - row), row);
    }
    char *words = m.text ? screens_words(name, m.text, m.n) : mem_strdup("");
    markup_done(&m);
    return words;
}

static void compare(const char *name, const char *got)
{
    char file[300], label[80];
    char *want = NULL;
    struct err e = {0};
    snprintf(file, sizeof file, "%s/screens/walk-%s.txt", TESTS_DIR, name);
    if (getenv("MLATHE_UPDATE_SCREENS")) {
        CHECK_OK(file_save(file, got, strlen(got), &e), e);
        return;
    }
    CHECK(file_read(file, 1 << 20, &want, NULL, &e) == 0, "%s", e.text);
    bool same = want && !strcmp(want, got);
    bool fixed = !strcmp(name, "model") || !strcmp(name, "help");
    if (want && !same && !fixed) {
        snprintf(label, sizeof label, "chat-%s", name); /* answers are in the chat alone */
        const char *as = strcmp(name, "chat") ? name : label;
        char *a = lasting(as, want), *b = lasting(as, got);
        same = a && b && !strcmp(a, b);
        if (!same)
            printf("--- wanted words\n%s--- got words\n%s", a, b);
        free(a);
        free(b);
    }
    CHECK(same, "%s differs", file);
    if (want && !same)
        printf("--- got\n%s---\n", got);
    free(want);
}

/* The shots come in order: by name, size, and kind. */
static int compare_all(char *out)
{
    int shots = 0;
    struct markup m = {0};
    char name[64] = "", *plain = NULL;
    for (char *at = out; (at = strstr(at, "--- ")) != NULL;) {
        char *body = strchr(at, '\n') + 1, *end = strstr(body, "\n---\n");
        if (!end || sscanf(at, "--- %63s", name) != 1)
            break;
        int kind = shots % KINDS;
        if (shots % (SIZES * KINDS) == 0)
            markup_done(&m);
        markup_printf(&m, "== %s%s\n", sizes[shots / KINDS % SIZES],
                      kind == 1   ? kinds[1]
                      : kind == 2 ? kinds[2]
                                  : kinds[0]);
        plain = kind == 0 ? body : plain;
        /* Roles at one size say it all. */
        if (kind != 2 || shots / KINDS % SIZES == 0)
            put_shot(&m, body, end, kind == 1 ? plain : NULL, kind == 2);
        shots++;
        if (shots % (SIZES * KINDS) == 0)
            compare(name, m.text ? m.text : "");
        at = end;
    }
    markup_done(&m);
    return shots;
}

int main(void)
{
    struct test_model_spec spec = test_model_small();
    char path[400], keys[400];
    spec.L = 3;
    screens_home("walk");
    snprintf(path, sizeof path, "%s/walk/data/models", test_tmpdir());
    CHECK(file_mkdirs(path, NULL) == 0, "folder");
    snprintf(path, sizeof path, "%s/walk/data/models/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0, "model");
    snprintf(keys, sizeof keys, "%s/walk.keys", test_tmpdir());
    expand(test_path("screens/walk.keys"), keys);
    char *out = screens_play(keys, path);
    CHECK(out && compare_all(out) == 7 * SIZES * KINDS, "shots");
    free(out);
    return test_end("walk");
}
