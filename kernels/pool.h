/* pool: compute threads that wait by spinning, then sleeping. One pool serves one caller at a time
 * (the worker thread); tasks are handed out by an atomic counter, the caller takes part. */
#ifndef MLATHE_KERNELS_POOL_H
#define MLATHE_KERNELS_POOL_H

#include "core/base.h"

struct pool;
/* Cores this process may run on. */
int pool_cores(void);
/* threads ≥ 1 counts the caller. Helper threads block all signals and run at nice +10 when
 * background is true. */
int pool_new(struct pool **out, int threads, bool background, struct err *e);
void pool_free(struct pool *p);
int pool_threads(const struct pool *p);
/* Calls fn(arg, i, thread) once for every i in [0, n) and returns when all are done;
 * thread in [0, threads). p may be NULL: then the caller does it all. Not reentrant. */
void pool_for(struct pool *p, int n, void (*fn)(void *arg, int i, int thread), void *arg);

#endif
