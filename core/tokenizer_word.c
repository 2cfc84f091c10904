/* From a normalized word to ids. */
#include "core/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

void ids_free(struct ids *ids)
{
    free(ids->v);
    *ids = (struct ids){0};
}

int ids_push(struct ids *ids, int32_t id, struct err *e)
{
    if (!mem_grow((void **)&ids->v, &ids->cap, ids->n + 1, sizeof *ids->v))
        return err_nomem(e, (ids->n + 1) * sizeof *ids->v, "token ids");
    ids->v[ids->n++] = id;
    return OK;
}

/* Every byte its piece; a byte without one is the unknown token or, without that, nothing. */
static size_t from_bytes(const struct tokenizer *t, const char *word, size_t n, int32_t *ids)
{
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = t->bytes[(uint8_t)word[i]];
        id = id < 0 ? t->unk : id;
        if (id >= 0)
            ids[used++] = id;
    }
    return used;
}

static bool all_bytes_known(const struct tokenizer *t, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (t->bytes[(uint8_t)s[i]] < 0)
            return false;
    return true;
}

/* Every character its piece, else its bytes, else the unknown token (runs fused if so asked). */
static size_t from_chars(const struct tokenizer *t, const char *word, size_t n, int32_t *ids)
{
    size_t used = 0, len;
    uint32_t cp;
    bool unk = false;
    for (size_t i = 0; i < n; i += len) {
        utf8_next(word + i, n - i, &cp, &len);
        int32_t id = tok_key_id(t, word + i, len);
        bool bytes = id < 0 && t->byte_fallback && all_bytes_known(t, word + i, len);
        if (id >= 0)
            ids[used++] = id;
        else if (bytes)
            used += from_bytes(t, word + i, len, ids + used);
        else if (t->unk >= 0 && !(unk && t->fuse_unk))
            ids[used++] = t->unk;
        unk = id < 0 && !bytes;
    }
    return used;
}

void tok_scratch_free(struct tok_scratch *s)
{
    bpe_scratch_free(&s->bpe);
    free(s->unigram.nodes);
    free(s->ids);
    *s = (struct tok_scratch){0};
}

/* Merges go on inside one word; what is cut by score goes out piece by piece. */
struct unigram_run {
    const struct tokenizer *t;
    const char *word;
    struct ids *out;
    bool unk; /* the last one was the unknown token */
    struct err *e;
};

static int put_cut(void *user, size_t begin, size_t end, int32_t id)
{
    struct unigram_run *r = user;
    const struct tokenizer *t = r->t;
    bool was_unk = r->unk;
    int32_t bytes[4];
    r->unk = false;
    if (id >= 0)
        return ids_push(r->out, id, r->e);
    if (t->byte_fallback && all_bytes_known(t, r->word + begin, end - begin)) {
        size_t n = from_bytes(t, r->word + begin, end - begin, bytes);
        int rc = OK;
        for (size_t i = 0; !rc && i < n; i++)
            rc = ids_push(r->out, bytes[i], r->e);
        return rc;
    }
    r->unk = true;
    return t->unk < 0 || (was_unk && t->fuse_unk) ? OK : ids_push(r->out, t->unk, r->e);
}

int tok_word(const struct tokenizer *t, struct tok_scratch *s, const char *word, size_t n,
             struct ids *out, struct err *e)
{
    if (t->unigram) {
        struct unigram_run r = {.t = t, .word = word, .out = out, .e = e};
        return unigram_cut(t->unigram, &s->unigram, word, n, put_cut, &r, e);
    }
    int32_t whole = t->ignore_merges || n == 1 ? tok_key_id(t, word, n) : -1;
    if (whole >= 0)
        return ids_push(out, whole, e);
    if (!mem_grow(&s->ids, &s->cap, n, sizeof(int32_t)))
        return err_nomem(e, n * sizeof(int32_t), "a word");
    int32_t *ids = s->ids;
    size_t count = t->byte_level ? from_bytes(t, word, n, ids) : from_chars(t, word, n, ids);
    int rc = bpe_merge(t->bpe, &s->bpe, ids, &count, e);
    if (rc)
        return rc;
    if (!mem_grow((void **)&out->v, &out->cap, out->n + count, sizeof *out->v))
        return err_nomem(e, (out->n + count) * sizeof *out->v, "token ids");
    if (count)
        memcpy(out->v + out->n, ids, count * sizeof *ids);
    out->n += count;
    return OK;
}
