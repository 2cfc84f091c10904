/* journal: what a workspace remembers from one start to the next, as one value and one JSON file.
 * Reading never loses anything: a file that cannot be understood, or that a newer version wrote, is
 * renamed to NAME.bad-N and said so. A lock file keeps two programs from writing the same one. */
#ifndef MLATHE_SESSIONS_JOURNAL_H
#define MLATHE_SESSIONS_JOURNAL_H

#include "core/json.h"
#include "sessions/eval_task.h"
#include "sessions/jobs.h"

#define JOURNAL_VERSION 1
#define JOURNAL_HISTORY 500 /* inputs kept */
#define JOURNAL_RECENT 20   /* models */

/* What screen 5 measures. Files NULL: none chosen yet; counts 0: all. */
enum { EVAL_WHAT_PPL, EVAL_WHAT_TASK /* + enum choice_task */,
       EVAL_WHAT_SPEED = EVAL_WHAT_TASK + CHOICE_TASKS, EVAL_WHATS };
struct eval_setup {
    int what;
    char *text, *questions; /* files: of perplexity, of a task */
    enum eval_protocol protocol;
    long long ctx, windows, limit;
};
struct journal {
    char *model;       /* path of the original; NULL: none yet */
    char *conversion;  /* folder of the conversion in use; NULL: none */
    int screen;
    cJSON *plan_b;     /* the plan held beside it, or NULL */
    cJSON *plan;       /* as rankplan_to_json wrote it; checked when the model is open */
    cJSON *queue;      /* plans to be converted, the running one first; NULL: none */
    char *budget;      /* as typed, "50%" */
    char *calibration; /* text file used last; NULL: the model's own text */
    long long context, batch; /* what-if of screen 2 */
    double memory_bytes;
    struct eval_setup eval;
    struct text_list conversions; /* folders made, oldest first */
    struct text_list recent;      /* models that were open, newest last */
    struct text_list history;     /* chat inputs, oldest first */
    char *typed;                  /* in the chat's prompt, not yet sent */
    char *system;                 /* NULL: the model's own */
    struct chat_settings settings;
    struct chat_turn_text *turn;
    size_t n_turn, cap_turn;
};

int journal_init(struct journal *j, struct err *e); /* the state of a first start */
void journal_done(struct journal *j);
bool text_list_add(struct text_list *l, const char *text, size_t keep); /* drops the oldest */
/* Puts text at the end, wherever it was before; true when it is new. */
bool text_list_last(struct text_list *l, const char *text, size_t keep);
void text_list_done(struct text_list *l);
bool journal_add_turn(struct journal *j, const char *prompt);
void journal_drop_turns(struct journal *j, size_t keep);
bool text_set(char **slot, const char *text); /* text may be NULL */

char *journal_text(const struct journal *j); /* fresh memory, NULL when out of it */
int journal_parse(struct journal *j, const char *text, size_t n, const char *where,
                  struct err *e);
/* Reads path into an initialised j. Absent: OK and nothing changes. Not understood: OK, j as on a
 * first start, the file renamed and *note (fresh memory) says what happened. */
int journal_load(struct journal *j, const char *path, char **note, struct err *e);
/* A transcript alone (/save and /load). */
char *journal_chat_text(const struct journal *j);
int journal_chat_parse(struct journal *j, const char *text, size_t n, const char *where,
                       struct err *e);

/* -1 when another program holds the lock (or the folder cannot be written: e says which). */
int journal_lock(const char *path, struct err *e);
void journal_unlock(int fd);

#endif
