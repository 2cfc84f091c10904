/* Compute threads. The state of a job is one 64-bit word, tasks in the high half and the next task
 * in the low half: taking a task is one fetch-add, and a helper that wakes late simply finds
 * nothing left, so nobody waits for a thread that the kernel has not scheduled.
 *
 * A waiting thread spins for a bounded time (a token has hundreds of short jobs), then sleeps on a
 * condition variable: an idle pool costs nothing. Sleeping and publishing each write their own flag
 * and then read the other's, both sequentially consistent, so a wake-up cannot be lost. */
#include "kernels/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define POOL_MAX_THREADS 1024
#define POOL_SPIN_NS 100000 /* longer than the serial stretches between two jobs of a token */
#define POOL_SPIN_STEP 64   /* pauses between two looks at the clock */

struct helper {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    _Alignas(64) atomic_ullong job; /* tasks << 32 | next */
    _Alignas(64) atomic_int left;   /* tasks not finished */
    _Alignas(64) atomic_int sleepers;
    atomic_bool stop, caller_sleeps;
    void (*fn)(void *arg, int i, int thread);
    void *arg;
    int threads, started;
    bool background;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    struct helper *helpers;
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool has_work(struct pool *p)
{
    unsigned long long job = atomic_load(&p->job);
    return (uint32_t)job < job >> 32;
}

static bool helper_ready(struct pool *p)
{
    return has_work(p) || atomic_load(&p->stop);
}

static bool job_done(struct pool *p)
{
    return atomic_load(&p->left) == 0;
}

static bool spin_until(struct pool *p, bool (*ready)(struct pool *))
{
    int64_t end = 0;
    do {
        for (int i = 0; i < POOL_SPIN_STEP; i++) {
            if (ready(p))
                return true;
            relax();
        }
        if (!end)
            end = now_ns() + POOL_SPIN_NS;
    } while (now_ns() < end);
    return false;
}

/* The low half cannot run into the high one: a thread adds only after it saw work, so it overshoots
 * by at most one a thread. */
static void run_tasks(struct pool *p, int thread)
{
    while (has_work(p)) {
        unsigned long long job = atomic_fetch_add(&p->job, 1);
        if ((uint32_t)job >= job >> 32)
            return;
        p->fn(p->arg, (int)(uint32_t)job, thread);
        if (atomic_fetch_sub(&p->left, 1) == 1 && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    struct pool *p = h->pool;
    if (p->background)
        setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
    while (!atomic_load(&p->stop)) {
        run_tasks(p, h->index);
        if (spin_until(p, helper_ready))
            continue;
        pthread_mutex_lock(&p->lock);
        atomic_fetch_add(&p->sleepers, 1);
        while (!helper_ready(p))
            pthread_cond_wait(&p->work, &p->lock);
        atomic_fetch_sub(&p->sleepers, 1);
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

int pool_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN)
                                                   : CPU_COUNT(&set);
    return n < 1 ? 1 : n;
}

static int start_helpers(struct pool *p)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = 0;
    for (int i = 0; i < p->threads - 1 && !rc; i++) {
        p->helpers[i] = (struct helper){.pool = p, .index = i + 1};
        rc = pthread_create(&p->helpers[i].thread, NULL, helper_main, &p->helpers[i]);
        p->started += !rc;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

int pool_new(struct pool **out, int threads, bool background, struct err *e)
{
    *out = NULL;
    if (threads < 1 || threads > POOL_MAX_THREADS)
        return err_set(e, ERR_ARG, "%d compute threads: use 1 to %d", threads, POOL_MAX_THREADS);
    struct pool *p = mem_aligned(1, sizeof *p);
    if (!p)
        return err_nomem(e, sizeof *p, "the thread pool");
    p->threads = threads;
    p->background = background;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    p->helpers = mem_calloc((size_t)threads, sizeof *p->helpers);
    int rc = p->helpers ? start_helpers(p) : 0;
    if (!p->helpers || rc) {
        int started = p->started;
        pool_free(p);
        return rc ? err_set(e, ERR_NOMEM,
                            "only %d of %d compute threads could be started: use "
                            "fewer threads",
                            started + 1, threads)
                  : err_nomem(e, (size_t)threads * sizeof *p->helpers, "the thread pool");
    }
    *out = p;
    return OK;
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->started; i++)
        pthread_join(p->helpers[i].thread, NULL);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    free(p->helpers);
    free(p);
}

int pool_threads(const struct pool *p)
{
    return p ? p->threads : 1;
}

static void publish(struct pool *p, int n)
{
    atomic_store(&p->left, n);
    atomic_store(&p->job, (unsigned long long)n << 32);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->work);
        pthread_mutex_unlock(&p->lock);
    }
}

void pool_for(struct pool *p, int n, void (*fn)(void *arg, int i, int thread), void *arg)
{
    if (!p || p->threads == 1 || n <= 1) {
        for (int i = 0; i < n; i++)
            fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    publish(p, n);
    run_tasks(p, 0);
    if (spin_until(p, job_done))
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (!job_done(p))
        pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}
