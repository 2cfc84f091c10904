/* Memory of the CPU backend, in pages of 2 MiB where the system has them: weights and caches are
 * read from end to end for every token, and with small pages the processor stops at each to find
 * the next. */
#include <stdlib.h>
#include <sys/mman.h>

#include "kernels/cpu.h"

#define PAGE_BYTES ((size_t)2 << 20)
#define SLAB_BYTES ((size_t)32 << 20)
#define LINE_BYTES ((size_t)64)

/* What an allocation has before it. */
struct header {
    void *raw;
};

void *cpu_alloc(struct backend *b, size_t bytes)
{
    size_t align = bytes < 2 * PAGE_BYTES ? LINE_BYTES : PAGE_BYTES, all;
    (void)b;
    if (!size_add(bytes, align + LINE_BYTES, &all))
        return NULL;
    char *raw = calloc(all, 1); /* large ones are fresh from the system, zero without being read */
    if (!raw)
        return NULL;
    size_t skip = align - (uintptr_t)raw % align;
    skip += skip < LINE_BYTES ? align : 0;
    char *p = raw + skip;
    ((struct header *)(void *)p)[-1].raw = raw;
    if (align == PAGE_BYTES)
        madvise(p, bytes, MADV_HUGEPAGE); /* a wish: refused, small pages serve */
    return p;
}

void cpu_free(struct backend *b, void *p)
{
    (void)b;
    if (p)
        free(((struct header *)p)[-1].raw);
}

struct cpu_slab {
    size_t used, size;
    int weights;
    char *data;
};

static struct cpu_slab *new_slab(size_t bytes)
{
    struct cpu_slab *s = mem_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->size = (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
    s->data = aligned_alloc(PAGE_BYTES, s->size);
    if (!s->data) {
        free(s);
        return NULL;
    }
    madvise(s->data, s->size, MADV_HUGEPAGE);
    return s;
}

void *cpu_slab_take(struct cpu *b, size_t bytes, struct cpu_slab **from)
{
    struct cpu_slab *s = b->slab;
    bytes = (bytes + LINE_BYTES - 1) & ~(LINE_BYTES - 1);
    if (!s || bytes > s->size - s->used) {
        bool large = bytes > SLAB_BYTES / 4;
        s = new_slab(large ? bytes : SLAB_BYTES);
        if (!s)
            return NULL;
        if (!large)
            b->slab = s; /* the one before is freed by the last of its weights */
    }
    void *p = s->data + s->used;
    s->used += bytes;
    s->weights++;
    *from = s;
    return p;
}

void cpu_slab_give(struct cpu *b, struct cpu_slab *s)
{
    if (!s || --s->weights)
        return;
    if (b->slab == s)
        b->slab = NULL;
    free(s->data);
    free(s);
}
