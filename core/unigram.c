/* Viterbi over a trie whose edges lie in one hash table: a walk ends as soon as no piece goes on,
 * so that a text costs its length times the depth of the trie where it stands. */
#include "core/unigram.h"

#include <stdlib.h>

#include "core/utf8.h"

#define UNKNOWN_PENALTY 10.0 /* below the worst piece; the same in both libraries */

struct edge {
    int32_t from, to; /* to 0: empty (nothing leads to the root) */
    int32_t id;       /* the piece that ends here, -1: none */
    double score;
    uint8_t byte;
    bool bonus;
};

struct unigram {
    struct edge *edges;
    size_t mask;
    int32_t n_nodes;
    double least, most; /* of the scores */
    bool single, empty;
};

struct node {
    double score;
    int32_t begin, id; /* begin -1: not reached */
};

int unigram_new(struct unigram **out, bool single, struct err *e)
{
    enum { START = 1024 };
    *out = NULL;
    struct unigram *u = mem_calloc(1, sizeof *u);
    if (u)
        u->edges = mem_calloc(START, sizeof *u->edges);
    if (!u || !u->edges) {
        free(u);
        return err_nomem(e, START * sizeof(struct edge), "a vocabulary");
    }
    u->mask = START - 1;
    u->n_nodes = 1;
    u->single = single;
    u->empty = true;
    *out = u;
    return OK;
}

void unigram_free(struct unigram *u)
{
    if (u)
        free(u->edges);
    free(u);
}

static struct edge *find(struct edge *edges, size_t mask, int32_t from, uint8_t byte)
{
    uint64_t key = ((uint64_t)(uint32_t)from << 8 | byte) * 0x9e3779b97f4a7c15ull;
    size_t i = (size_t)(key ^ key >> 31) & mask;
    while (edges[i].to && (edges[i].from != from || edges[i].byte != byte))
        i = (i + 1) & mask;
    return &edges[i];
}

static int widen(struct unigram *u, struct err *e)
{
    size_t slots = 2 * (u->mask + 1);
    struct edge *grown = mem_calloc(slots, sizeof *grown);
    if (!grown)
        return err_nomem(e, slots * sizeof *grown, "a vocabulary");
    for (size_t i = 0; i <= u->mask; i++)
        if (u->edges[i].to)
            *find(grown, slots - 1, u->edges[i].from, u->edges[i].byte) = u->edges[i];
    free(u->edges);
    u->edges = grown;
    u->mask = slots - 1;
    return OK;
}

int unigram_add(struct unigram *u, const char *key, size_t n, int32_t id, double score, bool bonus,
                struct err *e)
{
    struct edge *edge = NULL;
    int32_t at = 0;
    for (size_t i = 0; i < n; i++, at = edge->to) {
        if ((size_t)u->n_nodes > u->mask / 2) {
            int rc = u->n_nodes < INT32_MAX / 2
                         ? widen(u, e)
                         : err_set(e, ERR_LIMIT, "a vocabulary with too many prefixes");
            if (rc)
                return rc;
        }
        edge = find(u->edges, u->mask, at, (uint8_t)key[i]);
        if (!edge->to)
            *edge =
                (struct edge){.from = at, .to = u->n_nodes++, .id = -1, .byte = (uint8_t)key[i]};
    }
    if (!edge)
        return err_set(e, ERR_ARG, "piece %d is empty", id);
    edge->id = id;
    edge->score = score;
    edge->bonus = bonus;
    if (!bonus) {
        u->least = u->empty || score < u->least ? score : u->least;
        u->most = u->empty || score > u->most ? score : u->most;
        u->empty = false;
    }
    return OK;
}

static void offer(const struct unigram *u, struct node *to, size_t begin, int32_t id, double score)
{
    score = u->single ? (double)(float)score : score;
    if (to->begin < 0 || score > to->score)
        *to = (struct node){score, (int32_t)begin, id};
}

/* Everything that begins at pos; a character that is no piece of its own may stay unknown. */
static void extend(const struct unigram *u, struct node *nodes, const char *word, size_t n,
                   size_t pos, size_t len)
{
    double here = nodes[pos].score;
    bool alone = false;
    int32_t at = 0;
    for (size_t end = pos + 1; end <= n; end++) {
        const struct edge *edge = find(u->edges, u->mask, at, (uint8_t)word[end - 1]);
        if (!edge->to)
            break;
        at = edge->to;
        if (edge->id < 0)
            continue;
        double score = edge->bonus ? (double)(end - pos) * u->most - 0.1 : edge->score;
        offer(u, &nodes[end], pos, edge->id, score + here);
        alone = alone || end == pos + len;
    }
    if (!alone) {
        double least = u->least - UNKNOWN_PENALTY;
        least = u->single ? (double)(float)least : least;
        offer(u, &nodes[pos + len], pos, -1, least + here);
    }
}

int unigram_cut(const struct unigram *u, struct unigram_scratch *s, const char *word, size_t n,
                unigram_fn found, void *user, struct err *e)
{
    size_t len, room;
    uint32_t cp;
    if (n > INT32_MAX / 4)
        return err_set(e, ERR_LIMIT, "a single word of %zu bytes is too long to tokenise", n);
    if (!size_add(n, 1, &room) || !mem_grow(&s->nodes, &s->cap, room, sizeof(struct node)))
        return err_nomem(e, n * sizeof(struct node), "cutting one word");
    struct node *nodes = s->nodes;
    for (size_t i = 0; i <= n; i++)
        nodes[i] = (struct node){0, -1, -1};
    for (size_t pos = 0; pos < n; pos += len) {
        utf8_next(word + pos, n - pos, &cp, &len);
        extend(u, nodes, word, n, pos, len);
    }
    /* The way back gives the ends; turned round in place: begin becomes the next cut. */
    int32_t next = (int32_t)n, next_id = -1;
    for (int32_t at = (int32_t)n; at > 0;) {
        int32_t before = nodes[at].begin, id = nodes[at].id;
        nodes[at].begin = next;
        nodes[at].id = next_id;
        next = at;
        next_id = id;
        at = before;
    }
    int rc = OK;
    for (int32_t at = 0; !rc && at < (int32_t)n;) {
        rc = found(user, (size_t)at, (size_t)next, next_id);
        at = next;
        next = nodes[at].begin;
        next_id = nodes[at].id;
    }
    return rc;
}
