/* added: the tokens that are cut out of a text before any other rule sees it (special tokens and
 * user-defined ones), found by a trie: leftmost, then longest. */
#ifndef MLATHE_CORE_ADDED_H
#define MLATHE_CORE_ADDED_H

#include "core/base.h"

struct added_token {
    const char *text; /* borrowed */
    size_t n;
    int32_t id;
    bool special;        /* matched only where special tokens are parsed */
    bool lstrip, rstrip; /* the match swallows white space on that side */
    bool single_word;    /* must not touch a letter, digit or underscore */
};

struct added;
int added_new(struct added **out, struct err *e);
void added_free(struct added *a);
int added_add(struct added *a, const struct added_token *token, struct err *e);

/* A span [begin, end) of the text, inside which special tokens may lie. */
struct added_match {
    size_t begin, end;
    const struct added_token *token;
};
/* The first match at or after from, NULL token when there is none. room(user, pos) says how many
 * bytes from pos a special token may cover. */
typedef size_t (*added_room_fn)(void *user, size_t pos);
struct added_match added_find(const struct added *a, const char *text, size_t n, size_t from,
                              added_room_fn room, void *user);

#endif
