/* chat: one transcript, one or two models. A turn encodes the conversation through the model's own
 * template, prefills only what is new on each side, and alternates tokens between the sides. */
#ifndef MLATHE_SESSIONS_CHAT_H
#define MLATHE_SESSIONS_CHAT_H

#include "core/sampler.h"
#include "sessions/workspace.h"

enum chat_mode {
    CHAT_FREE,   /* each side continues its own answer */
    CHAT_FORCED, /* the converted side scores the original's answer */
};
struct chat_settings {
    struct sampler_options sampling;
    int max_tokens; /* an answer; 0: until the context is full */
    int context;    /* tokens a timeline */
    enum chat_mode mode;
    bool draft; /* guess ahead where a model can (draft.h): the same answers */
    enum dtype kv; /* of the caches */
};
struct chat_stats { /* of one side, this turn unless said otherwise */
    int prompt_tokens, tokens;
    double ttft_sec, tokens_per_sec;
    int context_used, context;
    size_t kv_bytes_used;
    long long drafted, accepted; /* tokens guessed ahead, and those that were right */
    const char *stop;            /* "", "eos", "length", "context", "cancelled" */
};
struct chat_compare {
    int first_difference; /* token index of the answer where the sides part (forced mode: where
                           * the converted side's best token is another one); -1: none so far */
    double margin;        /* there, in the original's eyes: probability of the token it took, less
                           * that of the converted side's; near 0: it was a tie. NAN: none yet */
    double kl_mean;       /* over compared tokens (the same context on both sides) */
    double agreement;     /* share of compared tokens with the same top-1 */
    int compared;
};
/* Called on the thread that runs the turn. lost: probability the converted side lost on this token
 * (forced mode), else 0. bytes are whole code points of model text, not sanitised. */
struct chat_sink {
    void (*text)(void *user, int side, const char *bytes, size_t n, int token_index, double lost);
    void (*stats)(void *user, const struct chat_stats stats[2], const struct chat_compare *c);
    bool (*go_on)(void *user); /* false stops the answer and keeps what was said */
    void *user;
};

struct chat;
/* Everywhere below, side is an enum side, whether one or two models answer. An answer that a mode
 * did not make (the converted side's in forced mode) is the original's.
 * sides: 1 (original or converted alone: which) or 2. Engines and tokenizer must outlive it. */
int chat_new(struct chat **out, struct workspace *w, int sides, enum side which,
             const struct chat_settings *s, struct err *e);
void chat_free(struct chat *c);
int chat_set(struct chat *c, const struct chat_settings *s, struct err *e);
int chat_system(struct chat *c, const char *text, struct err *e); /* NULL: none; clears timelines */
/* Runs one turn. On error the transcript is as before the turn; ERR_LIMIT when the conversation no
 * longer fits the context, ERR_CANCELLED when stopped before the first token. Stopped later, the
 * turn is kept and the result is OK. Turn n draws with seed + n on both sides. */
int chat_turn(struct chat *c, const char *prompt, const struct chat_sink *sink, struct err *e);
/* Drops the last user turn and its answers. */
void chat_undo(struct chat *c);
void chat_clear(struct chat *c);
int chat_turns(const struct chat *c);
/* The answer's text or ids of a side; NULL/0 when absent. */
const char *chat_answer(const struct chat *c, int turn, int side);
const int32_t *chat_answer_ids(const struct chat *c, int turn, int side, int *n);
const char *chat_prompt(const struct chat *c, int turn);
/* Restores a turn from text (a saved transcript); the timelines are refilled at the next turn. */
int chat_restore(struct chat *c, const char *prompt, const char *answer0, const char *answer1,
                 struct err *e);

#endif
