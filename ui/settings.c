/* The settings file. Refuses names and values that it does not know, by line. */
#include "ui/settings.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "ui/markup.h"

#define MAX_BYTES ((size_t)64 << 10)

static const char template[] =
    "# Settings of mlathe's screens; they count from the next start. Remove the # to change one.\n"
    "\n"
    "# Colours: dark, light, mono (none) or contrast (few and strong).\n"
    "# NO_COLOR or CLICOLOR=0 in the environment mean mono.\n"
    "#theme = dark\n"
    "\n"
    "# Borders and plots: auto (by the locale) or ascii.\n"
    "#borders = auto\n"
    "\n"
    "# Mouse: off leaves it to the terminal, to select text with; on: the wheel moves, a click\n"
    "# selects a row (most terminals select text with Shift then).\n"
    "#mouse = off\n"
    "\n"
    "# Numbers of the chats' KV caches: f16, bf16 (as small, coarser), q8_0 (about half) or f32.\n"
    "#cache = f16\n"
    "\n"
    "# Keys: key.ACTION = KEY KEY KEY (at most three) takes the place of the keys below. Keys are\n"
    "# written q, Q, Ctrl-K, Alt-Enter, Shift-Left, F5, PgUp, Space. While text is typed, a "
    "letter\n"
    "# stays a letter.\n";

static const char *const themes[THEME_COUNT + 1] = {"dark", "light", "mono", "contrast", NULL};
static const char *const borders[] = {"auto", "ascii", NULL};
static const char *const mouse[] = {"off", "on", NULL};
static const char *const caches[] = {"f16", "bf16", "q8_0", "f32", NULL};

static const struct {
    const char *name;
    const char *const *words; /* ends with NULL */
} known[] = {{"theme", themes}, {"borders", borders}, {"mouse", mouse}, {"cache", caches}};

static void apply(struct settings *s, size_t name, int word)
{
    if (name == 0)
        s->theme = (enum theme)word;
    else if (name == 1)
        s->ascii = word == 1;
    else if (name == 2)
        s->mouse = word == 1;
    else
        s->cache = kvmem_type(caches[word]);
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

/* "key.ACTION = KEY …" */
static int parse_keys(struct settings *s, const char *name, const char *words, const char *where,
                      int line, struct err *e)
{
    struct err why = {0};
    int rc = keymap_set(&s->keys, name + strlen("key."), words, &why);
    return rc ? err_set(e, rc, "%s, line %d: %s", where, line, why.text) : OK;
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
    if (strncmp(name, "key.", 4) == 0)
        return parse_keys(s, name, value, where, line, e);
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
    return err_set(e, ERR_FORMAT,
                   "%s, line %d: there is no setting of that name (theme, borders, "
                   "mouse, cache, key.…)",
                   where, line);
}

struct settings settings_default(void)
{
    return (struct settings){.theme = THEME_DARK, .cache = DTYPE_F16};
}

int settings_parse(struct settings *s, const char *text, const char *where, struct err *e)
{
    int rc = OK;
    *s = settings_default();
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

/* The file that says everything in comments; fresh memory. */
static char *complete(void)
{
    struct markup m = {0};
    size_t n;
    const struct binding *b = keys_table(&n);
    bool said[REQ_COUNT] = {false};
    markup_put(&m, template);
    for (size_t i = 0; i < n; i++) {
        char line[200], key[32];
        if (said[b[i].request])
            continue;
        said[b[i].request] = true;
        int at = snprintf(line, sizeof line, "#key.%s =", keys_request_name(b[i].request));
        for (int k = 0; k < BINDING_KEYS && b[i].key[k]; k++)
            at += snprintf(line + at, sizeof line - (size_t)at, " %s",
                           keys_name(b[i].key[k], false, key));
        snprintf(line + at, sizeof line - (size_t)at, "%*s# %s\n", at < 40 ? 40 - at : 1, "",
                 b[i].help);
        markup_put(&m, line);
    }
    if (!m.failed)
        return m.text;
    markup_done(&m);
    return NULL;
}

int settings_load(struct settings *s, const char *config_dir, struct err *e)
{
    char *path = settings_path(config_dir), *text = NULL;
    size_t n;
    int rc = OK;
    *s = settings_default();
    if (!path)
        return err_nomem(e, 4096, "a path");
    if (file_exists(path)) {
        rc = file_read(path, MAX_BYTES, &text, &n, e);
        if (!rc)
            rc = settings_parse(s, text, path, e);
    } else if (file_mkdirs(config_dir, NULL) == OK) {
        text = complete();
        if (text) /* a courtesy: may fail */
            file_save(path, text, strlen(text), NULL);
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
