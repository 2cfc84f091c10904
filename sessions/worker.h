/* worker: one thread that does everything slow, so that the screen never waits.
 *
 * A job is a kind (a row of a static table) with arguments that the job owns. The worker runs jobs
 * one after another; what they produce comes back as events that own their payload, as text
 * appended to one buffer a side, and as progress and chat figures of which only the newest counts.
 * One mutex guards queue and outbox and is held for pointer moves and short copies only. A byte is
 * in the wake pipe exactly while something is waiting: drain the pipe first, then take the batch
 * (the other order loses wake-ups). Cancelling sets a flag inside the job that nothing clears. */
#ifndef MLATHE_SESSIONS_WORKER_H
#define MLATHE_SESSIONS_WORKER_H

#include "sessions/chat.h"

struct job;
struct worker;

struct job_kind {
    const char *name; /* "convert": one word for the first line of the screen */
    /* Runs on the worker thread; shop is what worker_new was given. */
    int (*run)(struct job *j, void *shop, void *args, struct err *e);
    void (*args_free)(void *args);
};

/* Kinds from 1 up belong to the jobs (sessions/jobs.h). */
enum { EVENT_DONE = 0 };

struct event {
    struct event *next;
    int kind;
    unsigned job;               /* 0: from no job */
    const struct job_kind *job_kind;
    int status;                 /* EVENT_DONE: how the job ended */
    char *text;                 /* EVENT_DONE: the sentence, NULL when OK */
    void *data;                 /* the payload, freed by data_free */
    void (*data_free)(void *data);
};

struct text_token {
    uint32_t bytes;
    int index;   /* of the token in the answer */
    float lost;  /* probability lost (forced mode) */
};
struct side_text {
    char *bytes; /* not sanitised */
    size_t n, cap;
    struct text_token *token;
    size_t n_token, cap_token;
};

struct job_status { /* of the running job, or of the last one */
    bool active;
    unsigned job;
    const struct job_kind *kind;
    char phase[96];
    double done, total;
    double started_sec, now_sec; /* CLOCK_MONOTONIC */
    int waiting;                 /* jobs queued behind it */
};

struct worker_batch {
    struct event *events; /* oldest first */
    struct job_status status;
    struct side_text text[2];
    bool has_stats;
    struct chat_stats stats[2];
    struct chat_compare compare;
};

/* shop stays the caller's and must outlive the worker. */
int worker_new(struct worker **out, void *shop, struct err *e);
/* Called on the worker's thread after a job that failed, before its EVENT_DONE; may amend the
 * sentence. To be set before the first job. */
void worker_on_failure(struct worker *w, void (*failed)(void *shop, int status, struct err *e));
/* Cancels everything, waits for the running job to stop, frees what was not taken. */
void worker_free(struct worker *w);
int worker_fd(const struct worker *w); /* readable while a batch waits */
/* Takes args over, also on failure. Returns the job's id, 0 when memory is out. */
unsigned worker_submit(struct worker *w, const struct job_kind *kind, void *args);
/* One job, or every job of a kind (kind NULL: all): queued ones are dropped with an EVENT_DONE,
 * a running one is asked to stop. */
void worker_cancel(struct worker *w, unsigned job);
void worker_cancel_kind(struct worker *w, const struct job_kind *kind);
/* Jobs of a kind that run or wait (kind NULL: of all). */
int worker_count(struct worker *w, const struct job_kind *kind);
bool worker_drain(struct worker *w); /* true: take the batch, no other wake comes before */
void worker_take(struct worker *w, struct worker_batch *out);
void worker_batch_done(struct worker_batch *b);
/* Any thread may post: ownership of data moves to the outbox (freed when memory is out). */
void worker_post(struct worker *w, int kind, int status, const char *text, void *data,
                 void (*data_free)(void *));

/* For the job that runs. */
bool job_cancelled(const struct job *j);
struct progress job_progress(struct job *j);
void job_post(struct job *j, int kind, void *data, void (*data_free)(void *));
void job_text(struct job *j, int side, const char *bytes, size_t n, int token, double lost);
void job_stats(struct job *j, const struct chat_stats stats[2], const struct chat_compare *c);


#endif
