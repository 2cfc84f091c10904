/* draft: decoding with a model's prediction layer (core/mtp.h). Each step reads the chosen token
 * and a guess of the one after it in one pass; when the caller then chooses the guess, its logits
 * are there already. Choosing stays the caller's: whatever it does with the logits, greedy or
 * seeded, it gets those that decoding token by token gives it, bit by bit, and so the same text.
 * Slower where a second row costs as much as the first (small models on a CPU), so it has to be
 * asked for. */
#ifndef MLATHE_SESSIONS_DRAFT_H
#define MLATHE_SESSIONS_DRAFT_H

#include "sessions/infer.h"

struct draft;
/* Watches timeline t of engine g (both must outlive it; create it before anything is read). *out is
 * NULL when the model has no prediction layer, or a window, which could not be stepped back. */
int draft_new(struct draft **out, const struct engine *g, struct infer *t, enum dtype kv,
              struct err *e);
void draft_free(struct draft *d);
/* As infer_step(t, …). limit: guesses are ids below it. Between steps the timeline may hold one
 * token more than was given; d NULL: infer_step. */
int draft_step(struct draft *d, struct infer *t, int32_t id, int limit, float *logits,
               struct err *e);
/* Tokens that were given: infer_pos without a guess. */
int draft_pos(const struct draft *d, const struct infer *t);
/* Takes a guess back that lies in the timeline: before anybody else uses it. */
void draft_settle(struct draft *d);
/* The token that lies in the timeline unchosen; -1: none. */
int32_t draft_guess(const struct draft *d);
/* Guesses made that a choice followed, and those that it confirmed. */
struct draft_count {
    long long made, right;
};
struct draft_count draft_count(const struct draft *d); /* d NULL: none */

#endif
