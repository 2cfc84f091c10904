/* Merges of a SentencePiece vocabulary, which gives its pieces scores instead of an order. */
#include "core/tokenizer_impl.h"

#include <math.h>
#include <stdlib.h>

#include "core/utf8.h"

struct scored {
    float score;
    int32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Every way to make piece id of two pieces; without a table they are only counted. */
static size_t add_splits(struct tokenizer *t, int32_t id, uint32_t rank)
{
    const struct piece *p = &t->pieces[id];
    size_t found = 0, len;
    uint32_t cp;
    if (!p->key || !p->n_key)
        return 0;
    utf8_next(p->key, p->n_key, &cp, &len);
    for (size_t at = len; at < p->n_key; at += len) {
        int32_t left = tok_key_id(t, p->key, at);
        int32_t right = left < 0 ? -1 : tok_key_id(t, p->key + at, p->n_key - at);
        utf8_next(p->key + at, p->n_key - at, &cp, &len);
        if (right < 0)
            continue;
        found++;
        if (t->bpe)
            tok_join(t, left, right, rank, id);
    }
    return found;
}

int tok_merges_from_scores(struct tokenizer *t, const float *score, const char *path, struct err *e)
{
    struct scored *order = mem_calloc((size_t)t->n, sizeof *order);
    size_t count = 0;
    uint32_t rank = 0;
    int rc = order ? OK : err_nomem(e, (size_t)t->n * sizeof *order, "scores");
    for (int32_t id = 0; !rc && id < t->n; id++) {
        order[id] = (struct scored){score[id], id};
        if (isnan(score[id]))
            rc = err_set(e, ERR_FORMAT, "%s: the score of token %d is not a number", path, id);
        count += add_splits(t, id, 0);
    }
    if (!rc)
        rc = bpe_new(&t->bpe, count, e);
    if (!rc) {
        qsort(order, (size_t)t->n, sizeof *order, by_score);
        for (int32_t i = 0; i < t->n; i++) {
            /* Equal scores share a rank, so that the leftmost pair goes first. */
            if (i && order[i].score < order[i - 1].score)
                rank++;
            add_splits(t, order[i].id, rank);
        }
    }
    free(order);
    return rc;
}
