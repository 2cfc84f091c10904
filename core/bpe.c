/* Byte-pair merging as in the reference implementation: symbols in an array-linked list, a heap of
 * candidate pairs ordered by rank then position, stale candidates recognised when popped. A word is
 * first cut where no merge reaches across, which matters where a whole text is one word. */
#include "core/bpe.h"

#include <stdlib.h>
#include <string.h>

#define MAX_JOINT_BITS ((size_t)1 << 19) /* 64 KiB: stays in the second-level cache */

struct merge {
    int32_t left, right, id; /* left -1: empty slot */
    uint32_t rank;
};

struct bpe {
    struct merge *slots;
    size_t mask;
    /* One bit a hash of a joint: a bit that is set by chance only means a cut less. */
    uint64_t *joints;
    size_t joint_mask;
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
    size_t slots = 16, bits = 1024;
    *out = NULL;
    while (slots / 2 < n)
        slots *= 2;
    while (bits / 8 < n && bits < MAX_JOINT_BITS)
        bits *= 2;
    struct bpe *b = mem_calloc(1, sizeof *b);
    if (b) {
        b->slots = mem_calloc(slots, sizeof *b->slots);
        b->joints = mem_calloc(bits / 64, sizeof *b->joints);
    }
    if (!b || !b->slots || !b->joints) {
        bpe_free(b);
        return err_nomem(e, slots * sizeof *b->slots, "the merge table");
    }
    b->joint_mask = bits - 1;
    for (size_t i = 0; i < slots; i++)
        b->slots[i].left = -1;
    b->mask = slots - 1;
    *out = b;
    return OK;
}

void bpe_free(struct bpe *b)
{
    if (b) {
        free(b->slots);
        free(b->joints);
    }
    free(b);
}

static size_t pair_hash(int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9e3779b97f4a7c15ull;
    return (size_t)(key ^ key >> 29);
}

static size_t pair_slot(const struct bpe *b, int32_t left, int32_t right)
{
    size_t i = pair_hash(left, right) & b->mask;
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

void bpe_add_joint(struct bpe *b, int32_t last, int32_t first)
{
    size_t bit = pair_hash(last, first) & b->joint_mask;
    b->joints[bit / 64] |= 1ull << bit % 64;
}

static bool joins(const struct bpe *b, int32_t last, int32_t first)
{
    size_t bit = pair_hash(last, first) & b->joint_mask;
    return b->joints[bit / 64] >> bit % 64 & 1;
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

/* Merges ids[0 … n) and gives how many are left, in place. */
static int merge_stretch(const struct bpe *b, struct bpe_scratch *s, int32_t *ids, size_t n,
                         size_t *left, struct err *e)
{
    size_t n_heap = 0, kept = 0;
    /* Every merge takes one candidate out and puts at most two in: 2n always suffices. */
    if (!mem_grow(&s->symbols, &s->symbols_cap, n, sizeof(struct symbol)) ||
        !mem_grow(&s->heap, &s->heap_cap, 2 * n, sizeof(struct candidate)))
        return err_nomem(e, n * 36, "merging one word");
    struct symbol *sym = s->symbols;
    for (size_t i = 0; i < n; i++)
        sym[i] = (struct symbol){ids[i], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i + 1 < n; i++)
        consider(b, sym, (int32_t)i, s->heap, &n_heap);
    run(b, sym, s->heap, n_heap);
    for (int32_t i = 0; i >= 0; i = sym[i].next)
        ids[kept++] = sym[i].id;
    *left = kept;
    return OK;
}

int bpe_merge(const struct bpe *b, struct bpe_scratch *s, int32_t *ids, size_t *n, struct err *e)
{
    size_t count = *n, kept = 0, to, left;
    if (count > INT32_MAX / 4)
        return err_set(e, ERR_LIMIT, "a single word of %zu symbols is too long to tokenise", count);
    for (size_t from = 0; from < count; from = to) {
        for (to = from + 1; to < count && joins(b, ids[to - 1], ids[to]);)
            to++;
        left = to - from;
        int rc = left > 1 ? merge_stretch(b, s, ids + from, left, &left, e) : OK;
        if (rc)
            return rc;
        memmove(ids + kept, ids + from, left * sizeof *ids);
        kept += left;
    }
    *n = kept;
    return OK;
}
