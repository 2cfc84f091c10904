/* The settings file. Refuses names and values that it does not know, by line. */
#include "ui/settings.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

#define MAX_BYTES ((size_t)64 << 10)

static const char template[] =
    "# Settings of mlathe's screens; they count from the next start. Remove the # to change one.\n"
    "\n"
    "# Colours: dark, light, mono (none) or contrast (few and strong).\n"
    "# NO_COLOR or CLICOLOR=0 in the environment mean mono.\n"
    "#theme = dark\n"
    "\n"
    "# Borders and plots: auto (by the locale) or ascii.\n"
    "#borders = auto\n";

static const char *const themes[THEME_COUNT + 1] = {"dark", "light", "mono", "contrast", NULL};
static const char *const borders[] = {"auto", "ascii", NULL};

static const struct {
    const char *name;
    const char *const *words; /* ends with NULL */
} known[] = {{"theme", themes}, {"borders", borders}};

static void apply(struct settings *s, size_t name, int word)
{
    if (name == 0)
        s->theme = (enum theme)word;
    else
        s->ascii = word == 1;
}

/* text[n] without blanks around it, cut to size. */
static void trim(const char *text, size_t n, char *out, size_t size)
{
    while (n > 0 && isspace((unsigned char)*text))
        text++, n--;
    while (n > 0 && isspace((unsigned char)text[n - 1]))
        n--;
    snprintf(out, size, "%.*s", (int)(n < size ? n : size - 1), text);
}

static int parse_line(struct settings *s, const char *text, size_t n, const char *where, int line,
                      struct err *e)
{
    char name[64], value[64];
    const char *equals = memchr(text, '=', n);
    trim(text, equals ? (size_t)(equals - text) : n, name, sizeof name);
    if (!name[0] && !equals)
        return OK;
    if (!equals)
        return err_set(e, ERR_FORMAT, "%s, line %d: \"name = value\" is wanted", where, line);
    trim(equals + 1, n - (size_t)(equals + 1 - text), value, sizeof value);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        char all[128] = "";
        if (strcmp(known[i].name, name) != 0)
            continue;
        for (int w = 0; known[i].words[w]; w++) {
            if (!strcmp(known[i].words[w], value)) {
                apply(s, i, w);
                return OK;
            }
            size_t at = strlen(all);
            snprintf(all + at, sizeof all - at, "%s%s", w ? ", " : "", known[i].words[w]);
        }
        return err_set(e, ERR_FORMAT, "%s, line %d: %s is one of %s", where, line, name, all);
    }
    return err_set(e, ERR_FORMAT, "%s, line %d: there is no setting of that name (theme, borders)",
                   where, line);
}

int settings_parse(struct settings *s, const char *text, const char *where, struct err *e)
{
    int rc = OK;
    *s = (struct settings){.theme = THEME_DARK};
    for (int line = 1; *text && !rc; line++) {
        size_t all = strcspn(text, "\n"), n = strcspn(text, "#\n");
        rc = parse_line(s, text, n, where, line, e);
        text += all + (text[all] == '\n');
    }
    return rc;
}

char *settings_path(const char *config_dir)
{
    return path_join(config_dir, "settings");
}

int settings_load(struct settings *s, const char *config_dir, struct err *e)
{
    char *path = settings_path(config_dir), *text = NULL;
    size_t n;
    int rc = OK;
    *s = (struct settings){.theme = THEME_DARK};
    if (!path)
        return err_nomem(e, 4096, "a path");
    if (file_exists(path)) {
        rc = file_read(path, MAX_BYTES, &text, &n, e);
        if (!rc)
            rc = settings_parse(s, text, path, e);
    } else if (file_mkdirs(config_dir, NULL) == OK) {
        file_save(path, template, sizeof template - 1, NULL); /* a courtesy: may fail */
    }
    free(text);
    free(path);
    return rc;
}

bool settings_colour(const struct settings *s, const char *no_color, const char *force,
                     const char *clicolor)
{
    if (no_color && no_color[0])
        return false;
    if (s->theme == THEME_MONO)
        return false;
    if (force && force[0] && strcmp(force, "0") != 0)
        return true;
    return !(clicolor && !strcmp(clicolor, "0"));
}
