/* Growing text and its escapes. Refuses nothing: what cannot be kept is remembered as a failure. */
#include "ui/markup.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "ui/sanitize.h"

void markup_done(struct markup *m)
{
    free(m->text);
    *m = (struct markup){0};
}

static void put_bytes(struct markup *m, const char *text, size_t n)
{
    void *grown = m->text;
    size_t need;
    m->failed = m->failed || !size_add(m->n, n + 1, &need) || !mem_grow(&grown, &m->cap, need, 1);
    m->text = grown;
    if (m->failed)
        return;
    memcpy(m->text + m->n, text, n);
    m->n += n;
    m->text[m->n] = 0;
}

void markup_put(struct markup *m, const char *text)
{
    put_bytes(m, text, strlen(text));
}

void markup_printf(struct markup *m, const char *fmt, ...)
{
    char line[512];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof line) {
        put_bytes(m, line, (size_t)n);
        return;
    }
    char *longer = n < 0 ? NULL : mem_calloc((size_t)n + 1, 1);
    if (longer) {
        va_start(args, fmt);
        vsnprintf(longer, (size_t)n + 1, fmt, args);
        va_end(args);
        put_bytes(m, longer, (size_t)n);
    }
    m->failed = m->failed || !longer;
    free(longer);
}

void markup_escape(struct markup *m, const char *text)
{
    static const struct {
        char c;
        const char *entity;
    } special[] = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&quot;"}, {'\'', "&#39;"}};
    struct cluster c;
    size_t n = strlen(text), used;
    for (; (used = sanitize_next(text, n, &c)) > 0; text += used, n -= used) {
        const char *out = c.text;
        for (size_t i = 0; i < sizeof special / sizeof special[0]; i++)
            if (c.text[0] == special[i].c) {
                markup_put(m, special[i].entity);
                out = c.text + 1; /* its combining marks */
            }
        markup_put(m, out);
    }
}

int markup_save(const struct markup *m, const char *path, struct err *e)
{
    if (m->failed)
        return err_nomem(e, m->cap, "a document");
    if (file_exists(path)) { /* another report or plot is replaced, nothing else */
        struct file_map map;
        int rc = file_map_open(&map, path, e);
        if (rc)
            return rc;
        bool ours = !map.size || map.data[0] == '<';
        file_map_close(&map);
        if (!ours)
            return err_set(e, ERR_ARG, "%s is there already and is no report: give another name",
                           path);
    }
    return file_save(path, m->text ? m->text : "", m->n, e);
}
