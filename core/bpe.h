/* bpe: a table of pair merges and the merging of one word. Knows ids, no text. */
#ifndef MLATHE_CORE_BPE_H
#define MLATHE_CORE_BPE_H

#include "core/base.h"

struct bpe;
/* Room for n merges. */
int bpe_new(struct bpe **out, size_t n, struct err *e);
void bpe_free(struct bpe *b);
/* left+right become id; a lower rank goes first. Of equal pairs the first one added counts. No
 * more than n calls. */
void bpe_add(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);
/* Must be told for every merge added: the last symbol of its left side and the first one of its
 * right side, in the ids that words begin with. Where no merge ever joins two neighbours, a word is
 * cut in two without changing a thing, and short words merge in the cache of the processor. */
void bpe_add_joint(struct bpe *b, int32_t last, int32_t first);

/* Working memory that calls may share; zero-initialise. */
struct bpe_scratch {
    void *symbols, *heap;
    size_t symbols_cap, heap_cap;
};
void bpe_scratch_free(struct bpe_scratch *s);
/* Merges ids[0 … *n) in place, always the lowest rank, leftmost first: O(n log n). n < 2³¹. */
int bpe_merge(const struct bpe *b, struct bpe_scratch *s, int32_t *ids, size_t *n, struct err *e);

#endif
