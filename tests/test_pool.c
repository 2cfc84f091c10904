/* The pool: every task runs once, on a thread number in range, job after job; sleeping threads
 * wake; an idle pool uses no processor time; signals reach the caller only. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "kernels/pool.h"
#include "tests/support.h"

enum { TASKS = 1000 };

struct count {
    atomic_int runs[TASKS];
    atomic_int bad_thread, unblocked;
    int threads;
    long plain[TASKS]; /* written by tasks, read by the caller: TSan sees a missing fence */
};

static void count_task(void *arg, int i, int thread)
{
    struct count *c = arg;
    sigset_t set;
    atomic_fetch_add(&c->runs[i], 1);
    if (thread < 0 || thread >= c->threads)
        atomic_fetch_add(&c->bad_thread, 1);
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    if (thread && !sigismember(&set, SIGINT))
        atomic_fetch_add(&c->unblocked, 1);
    c->plain[i] += i;
}

static void test_every_task_once(int threads)
{
    struct err e = {0};
    struct pool *p;
    CHECK_OK(pool_new(&p, threads, false, &e), e);
    CHECK(pool_threads(p) == threads, "%d", pool_threads(p));
    struct count *c = mem_calloc(1, sizeof *c);
    c->threads = threads;
    for (int job = 0; job < 3000; job++)
        pool_for(p, job % 7 == 0 ? TASKS : job % 5, count_task, c);
    long expected[5] = {0};
    for (int job = 0; job < 3000; job++)
        for (int i = 0; i < 5; i++)
            expected[i] += i < (job % 7 == 0 ? TASKS : job % 5);
    for (int i = 0; i < TASKS; i++) {
        long want = i < 5 ? expected[i] : 429;
        CHECK(atomic_load(&c->runs[i]) == want, "task %d", i);
        CHECK(c->plain[i] == want * i, "task %d", i);
    }
    CHECK(atomic_load(&c->bad_thread) == 0);
    CHECK(atomic_load(&c->unblocked) == 0);
    free(c);
    pool_free(p);
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_idle_and_wake(void)
{
    struct err e = {0};
    struct pool *p;
    CHECK_OK(pool_new(&p, 3, true, &e), e);
    struct count *c = mem_calloc(1, sizeof *c);
    c->threads = 3;
    for (int i = 0; i < 5; i++) {
        pool_for(p, 50, count_task, c);
        usleep(2000); /* far beyond the spin: the helpers sleep */
    }
    CHECK(atomic_load(&c->runs[49]) == 5);
    double before = cpu_seconds();
    usleep(100000);
    /* Spinning helpers would use 0.2 s; 10 ms leaves room for a slow machine. */
    CHECK(cpu_seconds() - before < 0.01, "%.3f s", cpu_seconds() - before);
    free(c);
    pool_free(p);
}

static void slow_task(void *arg, int i, int thread)
{
    (void)thread;
    usleep(i ? 3000 : 100); /* the caller outwaits its spin and sleeps */
    atomic_fetch_add((atomic_int *)arg, 1);
}

static void test_slow_helper(void)
{
    struct err e = {0};
    struct pool *p;
    atomic_int runs = 0;
    CHECK_OK(pool_new(&p, 2, false, &e), e);
    for (int i = 0; i < 20; i++)
        pool_for(p, 2, slow_task, &runs);
    CHECK(runs == 40, "%d", runs);
    pool_free(p);
}

static void test_refusals(void)
{
    struct err e = {0};
    struct pool *p = NULL;
    CHECK(pool_new(&p, 0, false, &e) == ERR_ARG && !p, "%s", e.text);
    CHECK(pool_cores() >= 1);
    pool_free(NULL);
    struct count *c = mem_calloc(1, sizeof *c);
    c->threads = 1;
    pool_for(NULL, 10, count_task, c);
    CHECK(atomic_load(&c->runs[9]) == 1);
    free(c);
}

int main(void)
{
    test_every_task_once(1);
    test_every_task_once(2);
    test_every_task_once(5);
    test_idle_and_wake();
    test_slow_helper();
    test_refusals();
    return test_end("pool");
}
