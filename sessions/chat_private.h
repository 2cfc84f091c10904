/* chat_private: what chat.c (the transcript) and chat_turn.c (running a turn) share. */
#ifndef MLATHE_SESSIONS_CHAT_PRIVATE_H
#define MLATHE_SESSIONS_CHAT_PRIVATE_H

#include "sessions/chat.h"
#include "sessions/draft.h"

struct chat_answer {
    char *text; /* NULL: this side said nothing of its own */
    size_t n, cap;
    struct ids ids; /* empty for a restored answer */
};
struct chat_turn {
    char *prompt;
    struct chat_answer answer[2];
};
/* One side's timeline and the ids that lie in its cache. */
struct chat_line {
    struct infer *timeline;
    struct draft *draft; /* or NULL */
    struct ids cached;   /* n = draft_pos(draft, timeline) */
    float *logits;     /* [vocab] after the last token */
    int vocab;
};
struct chat {
    struct workspace *w;
    struct chat_settings settings;
    bool active[2];
    struct chat_line line[2];
    char *system;
    struct chat_turn *turn;
    size_t n_turns, cap_turns;
};

/* Appends the turn and empties *t (also on failure). */
int chat_keep_turn(struct chat *c, struct chat_turn *t, struct err *e);
void chat_drop_turn(struct chat_turn *t);
/* Appends the ids that side s sees: the conversation, the prompt, the start of an answer. */
int chat_encode(const struct chat *c, int s, const char *prompt, struct ids *out, struct err *e);

#endif
