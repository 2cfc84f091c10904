/* The vocabulary: pieces, their memory, the indices over them, GPT-2's byte alphabet. Refuses
 * ids out of range, two pieces with one id, over-long pieces and merges of unknown pieces. */
#include "core/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

#define BLOCK ((size_t)256 << 10)

struct tok_block {
    struct tok_block *next;
    size_t used, size;
    char bytes[];
};

int tok_reserve(struct tokenizer *t, size_t n, struct err *e)
{
    if (!n || n > TOK_MAX_IDS)
        return err_set(e, ERR_FORMAT, "a vocabulary of %zu ids is not between 1 and %d", n,
                       TOK_MAX_IDS);
    t->pieces = mem_calloc(n, sizeof *t->pieces);
    if (!t->pieces)
        return err_nomem(e, n * sizeof *t->pieces, "the vocabulary");
    t->n = (int32_t)n;
    return OK;
}

const char *tok_keep(struct tokenizer *t, const char *s, size_t n)
{
    struct tok_block *b = t->blocks;
    if (!b || b->size - b->used < n + 1) {
        size_t size = n + 1 > BLOCK ? n + 1 : BLOCK;
        b = malloc(sizeof *b + size);
        if (!b)
            return NULL;
        *b = (struct tok_block){t->blocks, 0, size};
        t->blocks = b;
    }
    char *copy = b->bytes + b->used;
    memcpy(copy, s, n);
    copy[n] = '\0';
    b->used += n + 1;
    return copy;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    while (t->blocks) {
        struct tok_block *next = t->blocks->next;
        free(t->blocks);
        t->blocks = next;
    }
    free(t->pieces);
    free(t->by_key.slots);
    free(t->by_text.slots);
    added_free(t->raw);
    added_free(t->normal);
    pretok_free(t->pretok);
    bpe_free(t->bpe);
    unigram_free(t->unigram);
    charsmap_free(t->charsmap);
    free(t->eos);
    free(t);
}

/* GPT-2 writes the bytes 33–126, 161–172 and 174–255 as the characters of that number and the
 * others, in order, from U+0100 on. -1: not a character of that alphabet. */
static int alphabet_byte(uint32_t cp)
{
    if ((cp >= 33 && cp <= 126) || (cp >= 161 && cp <= 172) || (cp >= 174 && cp <= 255))
        return (int)cp;
    if (cp < 256 || cp >= 256 + 68)
        return -1;
    int i = (int)cp - 256;
    return i < 33 ? i : i < 67 ? i - 33 + 127 : 173;
}

/* The bytes that s stands for in the alphabet; false when a character is not in it. */
static bool from_alphabet(const char *s, size_t n, char *out, size_t *n_out)
{
    uint32_t cp;
    size_t len, used = 0;
    for (size_t i = 0; i < n; i += len) {
        int byte = utf8_next(s + i, n - i, &cp, &len) == UTF8_GOOD ? alphabet_byte(cp) : -1;
        if (byte < 0)
            return false;
        out[used++] = (char)byte;
    }
    *n_out = used;
    return true;
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool tok_is_byte_piece(const char *s, size_t n)
{
    return n == 6 && !memcmp(s, "<0x", 3) && hex(s[3]) >= 0 && hex(s[4]) >= 0 && s[5] == '>';
}

/* ▁ back to spaces. */
static size_t plain_text(const char *s, size_t n, char *out)
{
    size_t used = 0, mark = strlen(TOK_SPACE);
    for (size_t i = 0; i < n;) {
        if (n - i >= mark && !memcmp(s + i, TOK_SPACE, mark)) {
            out[used++] = ' ';
            i += mark;
        } else {
            out[used++] = s[i++];
        }
    }
    return used;
}

static int keep_text(struct tokenizer *t, struct piece *p, const char *s, size_t n, struct err *e)
{
    p->text = tok_keep(t, s, n);
    p->n_text = (uint32_t)n;
    return p->text ? OK : err_nomem(e, n, "the vocabulary");
}

int tok_set_piece(struct tokenizer *t, int32_t id, const char *s, size_t n, bool byte,
                  struct err *e)
{
    char plain[TOKENIZER_MAX_TOKEN];
    size_t n_plain = n;
    if (id < 0 || id >= t->n)
        return err_set(e, ERR_FORMAT, "token \"%.*s\" has id %d of %d", n > 40 ? 40 : (int)n, s, id,
                       t->n);
    struct piece *p = &t->pieces[id];
    if (p->text)
        return err_set(e, ERR_FORMAT, "tokens \"%.40s\" and \"%.*s\" share id %d", p->text,
                       n > 40 ? 40 : (int)n, s, id);
    if (n > TOKENIZER_MAX_TOKEN)
        return err_set(e, ERR_LIMIT, "token %d is %zu bytes long (limit %d)", id, n,
                       TOKENIZER_MAX_TOKEN);
    if (t->byte_level) {
        bool mapped = from_alphabet(s, n, plain, &n_plain);
        int rc = keep_text(t, p, mapped ? plain : s, mapped ? n_plain : n, e);
        p->key = mapped ? p->text : NULL;
        p->n_key = p->n_text;
        return rc;
    }
    if (byte && tok_is_byte_piece(s, n)) {
        plain[0] = (char)(hex(s[3]) << 4 | hex(s[4]));
        t->bytes[(uint8_t)plain[0]] = id;
        return keep_text(t, p, plain, 1, e);
    }
    p->key = tok_keep(t, s, n);
    p->n_key = (uint32_t)n;
    if (!p->key)
        return err_nomem(e, n, "the vocabulary");
    n_plain = plain_text(s, n, plain);
    return keep_text(t, p, plain, n_plain, e);
}

static uint64_t hash(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)s[i]) * 0x100000001b3ull;
    return h ^ h >> 32;
}

/* The slot of a key (or text): the one that holds it or the empty one where it belongs. */
static int32_t *index_slot(const struct tokenizer *t, const struct piece_index *x, const char *s,
                           size_t n)
{
    bool text = x == &t->by_text;
    size_t i = (size_t)hash(s, n) & x->mask;
    for (;; i = (i + 1) & x->mask) {
        int32_t id = x->slots[i];
        if (id < 0)
            return &x->slots[i];
        const struct piece *p = &t->pieces[id];
        if ((text ? p->n_text : p->n_key) == n && !memcmp(text ? p->text : p->key, s, n))
            return &x->slots[i];
    }
}

static int index_alloc(struct tokenizer *t, struct piece_index *x, struct err *e)
{
    size_t slots = 16;
    while (slots / 2 < (size_t)t->n)
        slots *= 2;
    x->slots = malloc(slots * sizeof *x->slots);
    if (!x->slots)
        return err_nomem(e, slots * sizeof *x->slots, "the vocabulary's index");
    memset(x->slots, -1, slots * sizeof *x->slots);
    x->mask = slots - 1;
    return OK;
}

int tok_index_keys(struct tokenizer *t, struct err *e)
{
    int rc = index_alloc(t, &t->by_key, e);
    for (int32_t id = 0; !rc && id < t->n; id++) {
        const struct piece *p = &t->pieces[id];
        if (!p->key)
            continue;
        int32_t *slot = index_slot(t, &t->by_key, p->key, p->n_key);
        if (*slot < 0)
            *slot = id;
        if (t->byte_level && p->n_key == 1 && *slot == id)
            t->bytes[(uint8_t)p->key[0]] = id;
    }
    return rc;
}

int tok_index_texts(struct tokenizer *t, struct err *e)
{
    int rc = index_alloc(t, &t->by_text, e);
    for (int32_t id = 0; !rc && id < t->n; id++) {
        const struct piece *p = &t->pieces[id];
        if (!p->text || !p->n_text)
            continue;
        int32_t *slot = index_slot(t, &t->by_text, p->text, p->n_text);
        /* The byte piece <0x41> must not hide the piece A. */
        bool byte = !t->byte_level && p->n_text == 1 && t->bytes[(uint8_t)p->text[0]] == *slot;
        if (*slot < 0 || byte || (p->special && !t->pieces[*slot].special))
            *slot = id;
    }
    return rc;
}

int32_t tok_key_id(const struct tokenizer *t, const char *key, size_t n)
{
    return *index_slot(t, &t->by_key, key, n);
}

int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t n)
{
    return n ? *index_slot(t, &t->by_text, text, n) : -1;
}

int tok_add_token(struct tokenizer *t, const struct added_token *token, bool normalized,
                  struct err *e)
{
    struct added_token own = *token;
    if (own.id < 0 || own.id >= t->n)
        return err_set(e, ERR_FORMAT, "added token \"%.40s\" has id %d of %d", own.text, own.id,
                       t->n);
    if (own.n > TOKENIZER_MAX_TOKEN)
        return err_set(e, ERR_LIMIT, "added token %d is %zu bytes long (limit %d)", own.id, own.n,
                       TOKENIZER_MAX_TOKEN);
    struct piece *p = &t->pieces[own.id];
    char plain[TOKENIZER_MAX_TOKEN];
    size_t n_plain = t->byte_level ? 0 : plain_text(own.text, own.n, plain);
    int rc = keep_text(t, p, t->byte_level ? own.text : plain, t->byte_level ? own.n : n_plain, e);
    p->special = own.special;
    own.text = rc ? NULL : tok_keep(t, own.text, own.n);
    if (!own.text)
        return err_nomem(e, own.n, "added tokens");
    if (!normalized || own.special)
        return added_add(t->raw, &own, e);
    if (!utf8_valid(own.text, own.n)) /* which normal forms are made of */
        return err_set(e, ERR_FORMAT, "added token %d is not UTF-8", own.id);
    char *pattern;
    rc = tok_normalize(t, own.text, own.n, true, &pattern, &own.n, e);
    if (rc)
        return rc;
    own.text = tok_keep(t, pattern, own.n);
    free(pattern);
    return own.text ? added_add(t->normal, &own, e) : err_nomem(e, own.n, "added tokens");
}

/* The id of a piece as the file spells it, or -1. */
static int32_t spelled_id(const struct tokenizer *t, const char *s, size_t n, char *key,
                          size_t *n_key)
{
    if (n > TOKENIZER_MAX_TOKEN)
        return -1;
    if (t->byte_level)
        return from_alphabet(s, n, key, n_key) ? tok_key_id(t, key, *n_key) : -1;
    memcpy(key, s, n);
    *n_key = n;
    return tok_key_id(t, key, n);
}

/* The id that a word begins with for one end of a piece, -1: none, so no word reaches the piece. */
static int32_t end_symbol(const struct tokenizer *t, int32_t id, bool last)
{
    const struct piece *p = &t->pieces[id];
    size_t at = last ? p->n_key - 1 : 0, n = 1;
    uint32_t cp;
    if (t->byte_level)
        return t->bytes[(uint8_t)p->key[at]];
    while (at > 0 && ((uint8_t)p->key[at] & 0xc0) == 0x80)
        at--;
    utf8_next(p->key + at, p->n_key - at, &cp, &n);
    return tok_key_id(t, p->key + at, n);
}

void tok_join(struct tokenizer *t, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    if (!t->pieces[left].n_key || !t->pieces[right].n_key)
        return;
    int32_t last = end_symbol(t, left, true), first = end_symbol(t, right, false);
    bpe_add(t->bpe, left, right, rank, id);
    bpe_add_joint(t->bpe, last, first);
    /* The unknown token is a symbol itself, whatever it is written like. */
    if (left == t->unk || right == t->unk)
        bpe_add_joint(t->bpe, left == t->unk ? left : last, right == t->unk ? right : first);
}

int tok_add_merge(struct tokenizer *t, const char *left, size_t n_left, const char *right,
                  size_t n_right, uint32_t rank, struct err *e)
{
    char key[2 * TOKENIZER_MAX_TOKEN];
    size_t n_key = 0, n_more = 0;
    int32_t a = spelled_id(t, left, n_left, key, &n_key), b = -1, both = -1;
    if (a >= 0)
        b = spelled_id(t, right, n_right, key + n_key, &n_more);
    if (b >= 0)
        both = tok_key_id(t, key, n_key + n_more);
    if (both < 0)
        return err_set(e, ERR_FORMAT,
                       "merge %u joins \"%.*s\" and \"%.*s\", which are not in the vocabulary, or "
                       "not together",
                       rank, n_left > 40 ? 40 : (int)n_left, left, n_right > 40 ? 40 : (int)n_right,
                       right);
    tok_join(t, a, b, rank, both);
    return OK;
}

int tok_add_eos(struct tokenizer *t, int32_t id, struct err *e)
{
    if (id < 0 || id >= t->n || tokenizer_is_eos(t, id))
        return OK;
    int32_t *grown = realloc(t->eos, (size_t)(t->n_eos + 1) * sizeof *grown);
    if (!grown)
        return err_nomem(e, sizeof *grown, "end tokens");
    t->eos = grown;
    t->eos[t->n_eos++] = id;
    return OK;
}

int tok_add_known_eos(struct tokenizer *t, struct err *e)
{
    static const char *const names[] = {"<|eot_id|>",     "<|eom_id|>",    "<|im_end|>",
                                        "<|end|>",        "<end_of_turn>", "<|endoftext|>",
                                        "<|end_of_text|>"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t id = tokenizer_find(t, names[i], strlen(names[i]));
        if (id >= 0 && t->pieces[id].special && tok_add_eos(t, id, e))
            return ERR_NOMEM;
    }
    return OK;
}
