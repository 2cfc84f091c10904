/* unigram: the cheapest way to cut a word into pieces that each have a score (SentencePiece's
 * second kind of vocabulary). Knows ids and bytes, no files. */
#ifndef MLATHE_CORE_UNIGRAM_H
#define MLATHE_CORE_UNIGRAM_H

#include "core/base.h"

struct unigram;
/* single: path scores are rounded to float as the SentencePiece library does (the Hugging Face
 * library keeps doubles); over a long text this decides between close cuts. */
int unigram_new(struct unigram **out, bool single, struct err *e);
void unigram_free(struct unigram *u);
/* key is not empty; of equal keys the last one counts. bonus: the piece is user-defined and beats
 * all others of its length. */
int unigram_add(struct unigram *u, const char *key, size_t n, int32_t id, double score, bool bonus,
                struct err *e);

/* Working memory that calls may share; zero-initialise. */
struct unigram_scratch {
    void *nodes;
    size_t cap;
};
/* Cuts well-formed UTF-8, calls found(user, begin, end, id) in order; id -1: an unknown character.
 * A non-zero result of found ends it. */
typedef int (*unigram_fn)(void *user, size_t begin, size_t end, int32_t id);
int unigram_cut(const struct unigram *u, struct unigram_scratch *s, const char *word, size_t n,
                unigram_fn found, void *user, struct err *e);

#endif
