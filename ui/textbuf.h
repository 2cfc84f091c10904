/* textbuf: an editor for one UTF-8 text, and the wrapping of text into lines of a width. The cursor
 * is a byte offset that always stands between two clusters (what the eye sees as one character). */
#ifndef MLATHE_UI_TEXTBUF_H
#define MLATHE_UI_TEXTBUF_H

#include "core/base.h"

#define TEXTBUF_MAX ((size_t)1 << 20) /* bytes: more than any prompt, less than a mistake */

struct textbuf {
    char *text; /* NUL-terminated; "" when empty */
    size_t n, cap;
    size_t at;  /* cursor */
};
int textbuf_init(struct textbuf *b, struct err *e);
void textbuf_done(struct textbuf *b);
void textbuf_clear(struct textbuf *b);
/* Replaces everything; the cursor goes to the end. */
bool textbuf_set(struct textbuf *b, const char *text);
/* Inserts at the cursor. Newlines are kept (CR and CRLF become one), other control characters but
 * tabs are left out. False when the text would exceed TEXTBUF_MAX or memory is out. */
bool textbuf_insert(struct textbuf *b, const char *text, size_t n);

enum textbuf_move {
    TEXT_LEFT, TEXT_RIGHT, TEXT_WORD_LEFT, TEXT_WORD_RIGHT,
    TEXT_LINE_START, TEXT_LINE_END, TEXT_START, TEXT_END,
};
void textbuf_move(struct textbuf *b, enum textbuf_move move);
/* Deletes from the cursor to where the move would go. */
void textbuf_delete(struct textbuf *b, enum textbuf_move move);

struct text_line {
    size_t start, bytes; /* without the newline */
    int width;           /* columns */
};
/* Breaks text[n] into lines of at most width columns, at spaces where it can. Fresh array, *lines
 * of it (at least one, empty for empty text); NULL when memory is out. */
struct text_line *text_wrap(const char *text, size_t n, int width, int *lines);
/* Line and column of a byte offset. */
void text_locate(const char *text, const struct text_line *line, int lines, size_t at, int *row,
                 int *col);
/* The byte offset nearest to a column of a line. */
size_t text_at(const char *text, const struct text_line *line, int col);

#endif
