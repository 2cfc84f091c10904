/* Trie of added tokens. Nodes link to a first child and a next sibling; the root has a table, as
 * almost every position of a text fails there. */
#include "core/added.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "core/utf8.h"

struct node {
    int32_t child, sibling; /* -1: none */
    int32_t token;          /* index, -1: none ends here */
    uint8_t byte;
};

struct added {
    struct added_token *tokens;
    struct node *nodes;
    size_t n_tokens, tokens_cap, n_nodes, nodes_cap;
    int32_t root[256];
};

int added_new(struct added **out, struct err *e)
{
    *out = mem_calloc(1, sizeof **out);
    if (!*out)
        return err_nomem(e, sizeof **out, "added tokens");
    memset((*out)->root, -1, sizeof(*out)->root);
    return OK;
}

void added_free(struct added *a)
{
    if (!a)
        return;
    free(a->tokens);
    free(a->nodes);
    free(a);
}

/* The child of parent (-1: the root) with that byte, or -1. */
static int32_t child_of(const struct added *a, int32_t parent, uint8_t byte)
{
    if (parent < 0)
        return a->root[byte];
    int32_t i = a->nodes[parent].child;
    while (i >= 0 && a->nodes[i].byte != byte)
        i = a->nodes[i].sibling;
    return i;
}

static int32_t add_child(struct added *a, int32_t parent, uint8_t byte)
{
    if (a->n_nodes >= INT32_MAX ||
        !mem_grow((void **)&a->nodes, &a->nodes_cap, a->n_nodes + 1, sizeof *a->nodes))
        return -1;
    int32_t i = (int32_t)a->n_nodes++;
    a->nodes[i] = (struct node){-1, -1, -1, byte};
    if (parent < 0) {
        a->root[byte] = i;
    } else {
        a->nodes[i].sibling = a->nodes[parent].child;
        a->nodes[parent].child = i;
    }
    return i;
}

int added_add(struct added *a, const struct added_token *token, struct err *e)
{
    int32_t at = -1;
    if (!token->n)
        return OK;
    if (a->n_tokens >= INT32_MAX ||
        !mem_grow((void **)&a->tokens, &a->tokens_cap, a->n_tokens + 1, sizeof *a->tokens))
        return err_nomem(e, sizeof *token, "added tokens");
    for (size_t i = 0; i < token->n; i++) {
        uint8_t byte = (uint8_t)token->text[i];
        int32_t next = child_of(a, at, byte);
        at = next >= 0 ? next : add_child(a, at, byte);
        if (at < 0)
            return err_nomem(e, token->n * sizeof(struct node), "added tokens");
    }
    if (a->nodes[at].token >= 0) /* said twice: the later one counts */
        a->tokens[a->nodes[at].token] = *token;
    else
        a->nodes[at].token = (int32_t)a->n_tokens, a->tokens[a->n_tokens++] = *token;
    return OK;
}

/* Start of the code point that ends before pos. */
static size_t step_back(const char *text, size_t pos)
{
    do
        pos--;
    while (pos > 0 && ((uint8_t)text[pos] & 0xc0) == 0x80);
    return pos;
}

static bool is_word(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
    }
}

static bool stands_alone(const char *text, size_t n, size_t begin, size_t end)
{
    uint32_t cp;
    size_t len, before = begin ? step_back(text, begin) : 0;
    if (begin && utf8_next(text + before, n - before, &cp, &len) == UTF8_GOOD && is_word(cp))
        return false;
    return end >= n || utf8_next(text + end, n - end, &cp, &len) != UTF8_GOOD || !is_word(cp);
}

static void swallow_space(const char *text, size_t n, size_t from, struct added_match *m)
{
    uint32_t cp;
    size_t len;
    while (m->token->lstrip && m->begin > from) {
        size_t before = step_back(text, m->begin);
        if (before < from || utf8_next(text + before, n - before, &cp, &len) != UTF8_GOOD ||
            !utf8_is_space(cp))
            break;
        m->begin = before;
    }
    while (m->token->rstrip && m->end < n &&
           utf8_next(text + m->end, n - m->end, &cp, &len) == UTF8_GOOD && utf8_is_space(cp))
        m->end += len;
}

/* The longest token at pos that may stand there, or NULL. */
static const struct added_token *longest(const struct added *a, const char *text, size_t n,
                                         size_t pos, added_room_fn room, void *user)
{
    const struct added_token *best = NULL;
    int32_t at = -1;
    for (size_t i = pos; i < n && (at = child_of(a, at, (uint8_t)text[i])) >= 0; i++) {
        if (a->nodes[at].token < 0)
            continue;
        const struct added_token *t = &a->tokens[a->nodes[at].token];
        if (t->special && t->n > room(user, pos))
            continue;
        if (!t->single_word || stands_alone(text, n, pos, i + 1))
            best = t;
    }
    return best;
}

struct added_match added_find(const struct added *a, const char *text, size_t n, size_t from,
                              added_room_fn room, void *user)
{
    for (size_t pos = from; pos < n; pos++) {
        if (a->root[(uint8_t)text[pos]] < 0)
            continue;
        const struct added_token *t = longest(a, text, n, pos, room, user);
        if (t) {
            struct added_match m = {pos, pos + t->n, t};
            swallow_space(text, n, from, &m);
            return m;
        }
    }
    return (struct added_match){n, n, NULL};
}
