/* base: status codes, error messages, checked sizes, allocation, progress.
 *
 * The leaf that every layer may include; it includes nothing of ours. A function that can fail
 * returns 0 or a negative enum status and leaves the reader's sentence (what, where, what to do)
 * in the caller's struct err. Nothing here prints or exits. */
#ifndef MLATHE_CORE_BASE_H
#define MLATHE_CORE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum status {
    OK = 0,
    ERR_NOMEM = -1,       /* memory */
    ERR_ARG = -2,         /* the caller or the user asked for something impossible */
    ERR_IO = -3,          /* open, read, write, rename */
    ERR_FORMAT = -4,      /* a file's bytes are not what they claim */
    ERR_UNSUPPORTED = -5, /* well formed, but we do not do that */
    ERR_MISMATCH = -6,    /* two things that do not belong together */
    ERR_CANCELLED = -7,   /* the user said stop */
    ERR_NOSPACE = -8,     /* disk full or quota */
    ERR_DEVICE = -9,      /* backend: no device, lost device */
    ERR_LIMIT = -10,      /* a stated limit was reached (context, recursion, size) */
    ERR_NUMERIC = -11,    /* NaN, no convergence, singular */
};

/* The last failure, owned by the caller. text is one sentence without a newline. */
struct err {
    int status;
    char text[1024];
};

/* Writes the message and returns status, so that a failing line reads
 * return err_set(e, ERR_FORMAT, "%s: ...", path). e may be NULL. */
int err_set(struct err *e, int status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int err_nomem(struct err *e, size_t bytes, const char *what);
/* As err_set with the text of errno appended; ENOSPC and EDQUOT become ERR_NOSPACE. */
int err_errno(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* *out = a·b or a+b; false when it does not fit (then *out is untouched). */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* Zeroed memory for n elements of size bytes, NULL when n·size overflows or memory is out. n = 0
 * gives a valid pointer. mem_aligned aligns to 64 bytes. Both are released by free(). */
void *mem_calloc(size_t n, size_t size);
void *mem_aligned(size_t n, size_t size);
/* Grows *p (capacity *cap elements of size bytes) so that need elements fit; false keeps *p. */
bool mem_grow(void **p, size_t *cap, size_t need, size_t size);
char *mem_strdup(const char *s);
bool text_ends_with(const char *s, const char *end);
/* printf into fresh memory; NULL when memory is out. */
char *mem_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* For the start of a program that stays open: what a job had goes back to the system when it ends.
 * Left alone, malloc learns to keep blocks of up to 32 MiB, and each thread up to 64 MiB. */
void mem_return_freed(void);

/* How long work reports and is stopped: report returns false to stop (the work then returns
 * ERR_CANCELLED). phase names the step ("calibrate layer 3/30"); done and total share a unit. */
struct progress {
    bool (*report)(void *user, const char *phase, double done, double total);
    void *user;
};
/* true to go on; p or p->report may be NULL. */
bool progress_report(const struct progress *p, const char *phase, double done, double total);

#endif
