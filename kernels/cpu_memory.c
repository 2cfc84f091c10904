/* Memory of the CPU backend, in pages of 2 MiB where the system has them: weights and caches are
 * read from end to end for every token, and with small pages the processor stops at each to find
 * the next. */
#include <stdlib.h>
#include <sys/mman.h>

#include "kernels/cpu.h"

#define PAGE_BYTES ((size_t)2 << 20)
#define SLAB_BYTES ((size_t)32 << 20)
#define LINE_BYTES ((size_t)64)

/* bytes of zeros at a multiple of PAGE_BYTES, a mapping of their own: what malloc has once taken
 * for so much it may keep, and small blocks then lie about in pages of 2 MiB. NULL: no memory. */
static void *map_pages(size_t bytes, void **raw, size_t *mapped)
{
    if (!size_add(bytes, PAGE_BYTES + LINE_BYTES, mapped))
        return NULL;
    *raw = mmap(NULL, *mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*raw == MAP_FAILED)
        return NULL;
    char *p = (char *)*raw + LINE_BYTES;
    p += (PAGE_BYTES - (uintptr_t)p % PAGE_BYTES) % PAGE_BYTES;
    madvise(p, bytes, MADV_HUGEPAGE); /* a wish: refused, small pages serve */
    return p;
}

/* What an allocation has before it. */
struct header {
    void *raw;
    size_t mapped; /* 0: by malloc */
};

void *cpu_alloc(struct backend *b, size_t bytes)
{
    struct header h = {0};
    char *p;
    size_t all;
    (void)b;
    if (bytes >= 2 * PAGE_BYTES) {
        p = map_pages(bytes, &h.raw, &h.mapped);
        if (!p)
            return NULL;
    } else {
        h.raw = size_add(bytes, 2 * LINE_BYTES, &all) ? calloc(all, 1) : NULL;
        if (!h.raw)
            return NULL;
        p = (char *)h.raw + LINE_BYTES;
        p += (LINE_BYTES - (uintptr_t)p % LINE_BYTES) % LINE_BYTES;
    }
    ((struct header *)(void *)p)[-1] = h;
    return p;
}

void cpu_free(struct backend *b, void *p)
{
    (void)b;
    if (!p)
        return;
    struct header h = ((struct header *)p)[-1];
    if (h.mapped)
        munmap(h.raw, h.mapped);
    else
        free(h.raw);
}

struct cpu_slab {
    size_t used, size, mapped;
    int weights;
    char *data;
    void *raw;
};

static struct cpu_slab *new_slab(size_t bytes)
{
    struct cpu_slab *s = mem_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->size = (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
    s->data = map_pages(s->size, &s->raw, &s->mapped);
    if (!s->data) {
        free(s);
        return NULL;
    }
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
    munmap(s->raw, s->mapped);
    free(s);
}
