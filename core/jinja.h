/* jinja: interpreter of the Jinja that chat templates are written in (as transformers sets it up:
 * trim_blocks, lstrip_blocks, loop controls). Templates are untrusted: there is no way out of the
 * values given, and depth, steps, memory and output are limited.
 *
 * Every byte of the output remembers whether the template or a user wrote it. */
#ifndef MLATHE_CORE_JINJA_H
#define MLATHE_CORE_JINJA_H

#include "core/json.h"
#include "core/tokenizer.h"

struct jinja;
/* Parses n bytes of source. A construct that we do not know is ERR_UNSUPPORTED and named with its
 * line; a broken template is ERR_FORMAT. */
int jinja_new(struct jinja **out, const char *source, size_t n, struct err *e);
void jinja_free(struct jinja *j);

/* A variable of the template. user: its strings are the user's, except the values of members
 * called "role", which name the template's own words. */
struct jinja_var {
    const char *name;
    const cJSON *value;
    bool user;
};

struct jinja_text {
    char *s; /* NUL-terminated */
    size_t n;
    struct tokenizer_part *parts; /* what the template wrote; ascending */
    size_t n_parts;
    bool lacking; /* rendering failed for a construct that we do not have */
};
/* What the template raises is ERR_UNSUPPORTED with exactly its message. The variable "__date"
 * {"year", "month", "day"} is the day that strftime_now speaks of; without it 26 July 2024, the
 * day that the reference templates fall back to. */
int jinja_render(const struct jinja *j, const struct jinja_var *vars, size_t n_vars,
                 struct jinja_text *out, struct err *e);
void jinja_text_free(struct jinja_text *t);

#endif
