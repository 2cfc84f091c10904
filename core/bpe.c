/* Byte-pair merging as in the reference implementation: symbols in an array-linked list, a heap of
 * candidate pairs ordered by rank then position, stale candidates recognised when popped. */
#include "core/bpe.h"

#include <stdlib.h>

struct merge {
    int32_t left, right, id; /* left -1: empty slot */
    uint32_t rank;
};

struct bpe {
    struct merge *slots;
    size_t mask;
};

struct symbol {
    int32_t id; /* -1: merged away */
    int32_t prev, next;
};

struct candidate {
    uint32_t rank;
    int32_t pos, id;
};

int bpe_new(struct bpe **out, size_t n, struct err *e)
{
    size_t slots = 16;
    *out = NULL;
    while (slots / 2 < n)
        slots *= 2;
    struct bpe *b = mem_calloc(1, sizeof *b);
    if (b)
        b->slots = mem_calloc(slots, sizeof *b->slots);
    if (!b || !b->slots) {
        free(b);
        return err_nomem(e, slots * sizeof *b->slots, "the merge table");
    }
    for (size_t i = 0; i < slots; i++)
        b->slots[i].left = -1;
    b->mask = slots - 1;
    *out = b;
    return OK;
}

void bpe_free(struct bpe *b)
{
    if (b)
        free(b->slots);
    free(b);
}

static size_t pair_slot(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9e3779b97f4a7c15ull;
    size_t i = (size_t)(key ^ key >> 29) & b->mask;
    while (b->slots[i].left >= 0 && (b->slots[i].left != left || b->slots[i].right != right))
        i = (i + 1) & b->mask;
    return i;
}

void bpe_add(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    struct merge *m = &b->slots[pair_slot(b, left, right)];
    if (m->left < 0)
        *m = (struct merge){left, right, id, rank};
}

void bpe_scratch_free(struct bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    *s = (struct bpe_scratch){0};
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

static void heap_push(struct candidate *heap, size_t *n, struct candidate c)
{
    size_t i = (*n)++;
    while (i > 0 && before(&c, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = c;
}

static struct candidate heap_pop(struct candidate *heap, size_t *n)
{
    struct candidate top = heap[0], last = heap[--*n];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < *n) {
        if (child + 1 < *n && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &last))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* Puts the pair that starts at pos into the heap when it can merge. */
static void consider(const struct bpe *b, const struct symbol *sym, int32_t pos,
                     struct candidate *heap, size_t *n)
{
    if (pos < 0 || sym[pos].next < 0)
        return;
    const struct merge *m = &b->slots[pair_slot(b, sym[pos].id, sym[sym[pos].next].id)];
    if (m->left >= 0)
        heap_push(heap, n, (struct candidate){m->rank, pos, m->id});
}

static void run(const struct bpe *b, struct symbol *sym, struct candidate *heap, size_t n_heap)
{
    while (n_heap) {
        struct candidate c = heap_pop(heap, &n_heap);
        struct symbol *left = &sym[c.pos];
        if (left->id < 0 || left->next < 0)
            continue;
        struct symbol *right = &sym[left->next];
        const struct merge *m = &b->slots[pair_slot(b, left->id, right->id)];
        if (m->left < 0 || m->id != c.id || m->rank != c.rank)
            continue;
        left->id = c.id;
        right->id = -1;
        left->next = right->next;
        if (left->next >= 0)
            sym[left->next].prev = c.pos;
        consider(b, sym, left->prev, heap, &n_heap);
        consider(b, sym, c.pos, heap, &n_heap);
    }
}

int bpe_merge(const struct bpe *b, struct bpe_scratch *s, int32_t *ids, size_t *n, struct err *e)
{
    size_t count = *n, n_heap = 0, kept = 0;
    if (count < 2)
        return OK;
    if (count > INT32_MAX / 4)
        return err_set(e, ERR_LIMIT, "a single word of %zu symbols is too long to tokenise", count);
    /* Every merge takes one candidate out and puts at most two in: 2n always suffices. */
    if (!mem_grow(&s->symbols, &s->symbols_cap, count, sizeof(struct symbol)) ||
        !mem_grow(&s->heap, &s->heap_cap, 2 * count, sizeof(struct candidate)))
        return err_nomem(e, count * 36, "merging one word");
    struct symbol *sym = s->symbols;
    for (size_t i = 0; i < count; i++)
        sym[i] = (struct symbol){ids[i], (int32_t)i - 1, i + 1 < count ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i + 1 < count; i++)
        consider(b, sym, (int32_t)i, s->heap, &n_heap);
    run(b, sym, s->heap, n_heap);
    for (int32_t i = 0; i >= 0; i = sym[i].next)
        ids[kept++] = sym[i].id;
    *n = kept;
    return OK;
}
