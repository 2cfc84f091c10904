/* The settings file: values, comments, refusals by line, the file that is written where none is;
 * and what the environment says about colours. */
#include "core/file.h"
#include "tests/support.h"
#include "ui/settings.h"

static void test_parse(void)
{
    struct settings s;
    struct err e = {0};
    CHECK_OK(settings_parse(&s, "", "f", &e), e);
    CHECK(s.theme == THEME_DARK && !s.ascii, "nothing said");
    CHECK_OK(
        settings_parse(&s, "# theme = mono\n\n  theme=light # day\r\nborders = ascii", "f", &e), e);
    CHECK(s.theme == THEME_LIGHT && s.ascii, "theme %d", (int)s.theme);
    CHECK_OK(settings_parse(&s, "theme = dark\ntheme = contrast\n", "f", &e), e);
    CHECK(s.theme == THEME_CONTRAST, "the last one counts");
    CHECK(s.cache == DTYPE_F16 && settings_parse(&s, "cache = q8_0", "f", &e) == OK &&
              s.cache == DTYPE_Q8_0,
          "the cache");
    CHECK(!s.mouse && settings_parse(&s, "mouse = on", "f", &e) == OK && s.mouse, "the mouse");
    static const char *const wrong[] = {"\nthema = dark", "\ntheme = blue", "\ntheme",
                                        "\n= dark",       "\ntheme =",      "\n\xff\x01 = \x02"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECK(settings_parse(&s, wrong[i], "f", &e) == ERR_FORMAT && strstr(e.text, "f, line 2"),
              "%s: %s", wrong[i], e.text);
    CHECK(settings_parse(&s, "theme = mono\nx = y", "f", &e) == ERR_FORMAT && s.theme == THEME_MONO,
          "what stands before a wrong line counts");
}

static void test_file(void)
{
    struct settings s;
    struct err e = {0};
    char dir[400], text[] = "theme = light\n";
    snprintf(dir, sizeof dir, "%s/config", test_tmpdir());
    char *path = settings_path(dir);
    CHECK_OK(settings_load(&s, dir, &e), e);
    CHECK(file_exists(path) && s.theme == THEME_DARK, "a file to edit is there");
    CHECK_OK(settings_load(&s, dir, &e), e); /* what it says in comments is all that there is */
    CHECK_OK(file_save(path, text, sizeof text - 1, &e), e);
    CHECK_OK(settings_load(&s, dir, &e), e);
    CHECK(s.theme == THEME_LIGHT, "read");
    free(path);
}

static void test_colour(void)
{
    const struct settings dark = {.theme = THEME_DARK}, mono = {.theme = THEME_MONO};
    CHECK(settings_colour(&dark, NULL, NULL, NULL), "colours by themselves");
    CHECK(settings_colour(&dark, "", NULL, NULL), "an empty NO_COLOR says nothing");
    CHECK(!settings_colour(&dark, "1", "1", "1"), "NO_COLOR wins");
    CHECK(!settings_colour(&dark, NULL, NULL, "0"), "CLICOLOR=0");
    CHECK(settings_colour(&dark, NULL, "1", "0"), "CLICOLOR_FORCE");
    CHECK(!settings_colour(&dark, NULL, "0", "0"), "CLICOLOR_FORCE=0 forces nothing");
    CHECK(!settings_colour(&mono, NULL, "1", "1"), "mono has none");
}

int main(void)
{
    test_parse();
    test_file();
    test_colour();
    return test_end("settings");
}
