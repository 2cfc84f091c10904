/* Placeholder pool: runs everything on the caller. Replaced by the CPU backend's pool. */
#include "kernels/pool.h"

#include <stdlib.h>

struct pool {
    int threads;
};

int pool_new(struct pool **out, int threads, bool background, struct err *e)
{
    (void)background;
    struct pool *p = mem_calloc(1, sizeof *p);
    if (!p)
        return err_nomem(e, sizeof *p, "a pool");
    p->threads = threads;
    *out = p;
    return OK;
}

void pool_free(struct pool *p)
{
    free(p);
}

int pool_threads(const struct pool *p)
{
    (void)p;
    return 1;
}

void pool_for(struct pool *p, int n, void (*fn)(void *arg, int i, int thread), void *arg)
{
    (void)p;
    for (int i = 0; i < n; i++)
        fn(arg, i, 0);
}
