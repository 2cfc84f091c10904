/* markup: text that grows, for documents made of it (SVG, HTML, roff). A failed allocation is
 * remembered and comes out at the end, so that builders need no checks on the way. */
#ifndef MLATHE_UI_MARKUP_H
#define MLATHE_UI_MARKUP_H

#include "core/base.h"

struct markup {
    char *text; /* NUL-terminated; NULL while empty */
    size_t n, cap;
    bool failed;
};
void markup_done(struct markup *m);
void markup_put(struct markup *m, const char *text);
void markup_printf(struct markup *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Text from outside as it may stand between tags and in quoted attributes: & < > " ' escaped,
 * control characters and ill-formed bytes replaced, what reorders text dropped. */
void markup_escape(struct markup *m, const char *text);
/* Writes the file, whole or not at all. ERR_NOMEM when building it ran out of memory. */
int markup_save(const struct markup *m, const char *path, struct err *e);

#endif
