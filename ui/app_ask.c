/* Questions: one line of input, path completion, and the editing keys shared with the chat's
 * prompt. What is typed stays until it is accepted. */
#include "ui/app_parts.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

void ask_open(struct app *a, enum request what, const char *label, const char *preset, bool path)
{
    a->ask.what = what;
    a->ask.path = path;
    a->ask.hint = NULL;
    a->ask.error[0] = 0;
    snprintf(a->ask.label, sizeof a->ask.label, "%s", label);
    textbuf_set(&a->ask.text, preset ? preset : "");
}

void ask_hinted(struct app *a, enum request what, const char *label, const char *preset, bool path,
                const char *hint)
{
    ask_open(a, what, label, preset, path);
    a->ask.hint = hint;
}

bool edit_key(struct textbuf *b, enum request r, int key)
{
    static const struct {
        enum request request;
        bool removes;
        enum textbuf_move move;
    } edits[] = {
        {REQ_EDIT_LEFT, false, TEXT_LEFT},        {REQ_EDIT_RIGHT, false, TEXT_RIGHT},
        {REQ_WORD_LEFT, false, TEXT_WORD_LEFT},   {REQ_WORD_RIGHT, false, TEXT_WORD_RIGHT},
        {REQ_LINE_START, false, TEXT_LINE_START}, {REQ_LINE_END, false, TEXT_LINE_END},
        {REQ_BACKSPACE, true, TEXT_LEFT},         {REQ_DELETE, true, TEXT_RIGHT},
        {REQ_DELETE_WORD, true, TEXT_WORD_LEFT},  {REQ_KILL_START, true, TEXT_LINE_START},
        {REQ_KILL_END, true, TEXT_LINE_END},
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        if (edits[i].request != r)
            continue;
        if (edits[i].removes)
            textbuf_delete(b, edits[i].move);
        else
            textbuf_move(b, edits[i].move);
        return true;
    }
    if (r == REQ_NONE && keys_is_text(key)) {
        char utf8[8] = {0};
        unsigned c = (unsigned)key;
        int n = 0;
        if (c < 0x80) {
            utf8[n++] = (char)c;
        } else if (c < 0x800) {
            utf8[n++] = (char)(0xc0 | c >> 6);
            utf8[n++] = (char)(0x80 | (c & 0x3f));
        } else if (c < 0x10000) {
            utf8[n++] = (char)(0xe0 | c >> 12);
            utf8[n++] = (char)(0x80 | (c >> 6 & 0x3f));
            utf8[n++] = (char)(0x80 | (c & 0x3f));
        } else {
            utf8[n++] = (char)(0xf0 | c >> 18);
            utf8[n++] = (char)(0x80 | (c >> 12 & 0x3f));
            utf8[n++] = (char)(0x80 | (c >> 6 & 0x3f));
            utf8[n++] = (char)(0x80 | (c & 0x3f));
        }
        textbuf_insert(b, utf8, (size_t)n);
        return true;
    }
    return false;
}

/* What all names in a folder that start with prefix have in common; *n: how many there are, the
 * first ones in names. */
static char *common_name(const char *dir, const char *prefix, int *n, char *names, size_t size)
{
    char *common = NULL;
    size_t used = 0;
    DIR *d = opendir(dir);
    *n = 0;
    names[0] = 0;
    for (struct dirent *f; d && (f = readdir(d)) != NULL;) {
        if (strncmp(f->d_name, prefix, strlen(prefix)) != 0 ||
            (f->d_name[0] == '.' && prefix[0] != '.'))
            continue;
        if (used < size)
            used += (size_t)snprintf(names + used, size - used, "%s%s", *n ? "  " : "", f->d_name);
        if ((*n)++ == 0) {
            common = mem_strdup(f->d_name);
            continue;
        }
        size_t k = 0;
        while (common && common[k] && common[k] == f->d_name[k])
            k++;
        if (common)
            common[k] = 0;
    }
    if (d)
        closedir(d);
    return common;
}

/* Completes the path that begins at byte from of the answer; how many names it could be. */
static int complete_from(struct textbuf *b, size_t from, char *names, size_t size)
{
    const char *home = getenv("HOME"), *text = b->text + from;
    char *path = text[0] == '~' && home ? mem_printf("%s%s", home, text + 1) : mem_strdup(text);
    const char *base = path ? path_base(path) : NULL;
    char *dir = !path         ? NULL
                : base > path ? mem_printf("%.*s", (int)(base - path), path)
                              : mem_strdup(".");
    int n = 0;
    char *name = dir ? common_name(dir, base, &n, names, size) : NULL;
    if (name && n > 0) {
        char *full = mem_printf("%.*s%s", (int)(base - path), path, name);
        bool is_dir = full && n == 1 && file_is_dir(full);
        char *all =
            full ? mem_printf("%.*s%s%s", (int)from, b->text, full, is_dir ? "/" : "") : NULL;
        if (all)
            textbuf_set(b, all);
        free(all);
        free(full);
    }
    free(name);
    free(dir);
    free(path);
    return n;
}

/* All of it is one path, or else its last word. */
static void complete_path(struct app *a)
{
    struct textbuf *b = &a->ask.text;
    const char *blank = strrchr(b->text, ' ');
    char names[300];
    int n = complete_from(b, 0, names, sizeof names);
    if (n == 0 && blank)
        n = complete_from(b, (size_t)(blank + 1 - b->text), names, sizeof names);
    if (n == 0)
        snprintf(a->ask.error, sizeof a->ask.error, "nothing there starts like this");
    else if (n > 1)
        snprintf(a->ask.error, sizeof a->ask.error, "%d names: %s", n, names);
}

bool ask_key(struct app *a, enum request r, int key)
{
    struct ask *q = &a->ask;
    if (r == REQ_STOP) {
        q->what = REQ_NONE;
    } else if (r == REQ_ACCEPT) {
        enum request what = q->what;
        char *text = mem_strdup(q->text.text);
        q->error[0] = 0;
        q->what = REQ_NONE;
        if (text && !plan_answer(a, what, text) && q->error[0])
            q->what = what; /* the question stays, with what was typed and why it is refused */
        free(text);
    } else if (r == REQ_COMPLETE) {
        q->error[0] = 0;
        if (q->path)
            complete_path(a);
        else
            snprintf(q->error, sizeof q->error, "Tab completes paths; here a value is typed");
    } else if (edit_key(&q->text, r, key)) {
        q->error[0] = 0;
    } else {
        return false;
    }
    return true;
}
