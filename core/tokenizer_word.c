/* From a normalized word to ids, and the normalizers. */
#include "core/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

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

int tok_word(const struct tokenizer *t, struct tok_scratch *s, const char *word, size_t n,
             struct ids *out, struct err *e)
{
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

/* Takes *s over: frees it or returns it as it is. */
static char *nfc(char *s, size_t *n)
{
    uint8_t *out = NULL;
    size_t i = 0;
    while (i < *n && (uint8_t)s[i] < 0x80)
        i++;
    if (i == *n)
        return s;
    utf8proc_ssize_t size = utf8proc_map((const uint8_t *)s, (utf8proc_ssize_t)*n, &out,
                                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    free(s);
    *n = size < 0 ? 0 : (size_t)size;
    return size < 0 ? NULL : (char *)out;
}

static char *prepend(char *s, size_t *n, const char *what)
{
    size_t m = strlen(what);
    char *out = *n ? realloc(s, *n + m + 1) : s;
    if (!out) {
        free(s);
        return NULL;
    }
    if (*n) {
        memmove(out + m, out, *n);
        memcpy(out, what, m);
        *n += m;
    }
    return out;
}

static char *replace(char *s, size_t *n, const char *from, const char *to)
{
    size_t n_from = strlen(from), n_to = strlen(to), count = 0, room, used = 0, done = 0;
    const char *at = s, *end = s + *n;
    if (!n_from)
        return s;
    for (; (at = memmem(at, (size_t)(end - at), from, n_from)); at += n_from)
        count++;
    if (!count)
        return s;
    char *out = size_mul(count, n_to, &room) && size_add(room, *n + 1, &room) ? malloc(room) : NULL;
    while (out && (at = memmem(s + done, *n - done, from, n_from))) {
        size_t gap = (size_t)(at - (s + done));
        memcpy(out + used, s + done, gap);
        memcpy(out + used + gap, to, n_to);
        used += gap + n_to;
        done += gap + n_from;
    }
    if (out) {
        memcpy(out + used, s + done, *n - done);
        *n = used + *n - done;
    }
    free(s);
    return out;
}

int tok_normalize(const struct tokenizer *t, const char *s, size_t n, char **out, size_t *size,
                  struct err *e)
{
    char *text = malloc(n + 1);
    *out = NULL;
    *size = n;
    if (text && n)
        memcpy(text, s, n);
    for (int i = 0; text && i < t->n_norm; i++) {
        const struct norm_step *step = &t->norm[i];
        switch (step->kind) {
        case NORM_NFC: text = nfc(text, size); break;
        case NORM_PREPEND: text = prepend(text, size, step->to); break;
        case NORM_REPLACE: text = replace(text, size, step->from, step->to); break;
        }
    }
    if (!text)
        return err_nomem(e, n, "normalizing text");
    *out = text;
    return OK;
}
