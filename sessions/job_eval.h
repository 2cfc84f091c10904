/* job_eval: measuring as a job: what is asked, what comes back, and the results that conversions of
 * one model already have. Events EVENT_EVAL and EVENT_RESULTS (sessions/jobs.h) carry the structs
 * below. */
#ifndef MLATHE_SESSIONS_JOB_EVAL_H
#define MLATHE_SESSIONS_JOB_EVAL_H

#include "sessions/eval_record.h"
#include "sessions/worker.h"

extern const struct job_kind job_eval, job_results;

/* EVENT_EVAL: a few times a second while it runs, and once at the end. */
struct eval_news {
    struct eval_record record;
    bool final;
    char kept_in[1024];    /* the folder it was kept in; "" when it was not */
    char trouble[512];     /* why it could not be kept */
};
/* What to measure is in a record: kind, file, and the figures asked for. store: the conversion's
 * folder, NULL: keep nowhere. Both models are measured where both are open. */
void *eval_args(const struct eval_record *what, const char *store);

/* EVENT_RESULTS */
struct eval_results {
    struct eval_sibling *s;
    size_t n;
    int own; /* the one whose folder was named, −1: none */
};
/* own: folder of the conversion in use or NULL; parent: where conversions are kept, or NULL. */
void *results_args(const char *own, const char *parent, const char *fingerprint);

/* Speed is measured with these. */
enum { EVAL_SPEED_PROMPT = 256, EVAL_SPEED_GENERATE = 32, EVAL_SPEED_REPEAT = 3 };

#endif
