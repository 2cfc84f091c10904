/* Reader of a SentencePiece tokenizer.model (a protocol buffer): BPE and unigram vocabularies with
 * their normalization. Refuses word and character models, spaces as suffixes, and Llama 3's file of
 * the same name, which is a list of ranks. */
#include "core/tokenizer_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/cursor.h"
#include "core/file.h"

#define MODEL_MAX ((size_t)64 << 20)

/* Kinds of pieces in the file. */
enum { PIECE_NORMAL = 1, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER, PIECE_UNUSED, PIECE_BYTE };
enum { MODEL_UNIGRAM = 1, MODEL_BPE };

/* One field of a message. */
struct field {
    unsigned number;
    uint64_t value;      /* of numbers; floats as their bits */
    const uint8_t *data; /* of texts and messages, else NULL */
    size_t n;
};

struct reader {
    struct tokenizer *t;
    const char *path;
    struct err *e;
    float *score; /* [ids] */
    uint8_t *kind;
    size_t n;
    uint64_t model, unk, bos, eos; /* ids: all ones when the file says none */
    bool byte_fallback, suffix, dummy_prefix, squeeze, escape;
    const uint8_t *charsmap;
    size_t n_charsmap;
};

static uint64_t varint(struct cursor *c)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        const uint8_t *b = cursor_take(c, 1, "a number");
        if (!b)
            return 0;
        v |= (uint64_t)(*b & 0x7f) << shift;
        if (!(*b & 0x80))
            return v;
    }
    cursor_fail(c, ERR_FORMAT, "a number has no end");
    return 0;
}

/* false at the end of the message and after a failure. */
static bool next_field(struct cursor *c, struct field *f)
{
    if (!cursor_left(c))
        return false;
    uint64_t tag = varint(c);
    *f = (struct field){.number = (unsigned)(tag >> 3)};
    switch (tag & 7) {
    case 0: f->value = varint(c); break;
    case 1: f->value = cursor_u64(c, "a number"); break;
    case 2: {
        uint64_t n = varint(c);
        f->n = n > SIZE_MAX / 2 ? SIZE_MAX / 2 : (size_t)n;
        f->data = cursor_take(c, f->n, "a text");
        break;
    }
    case 5: f->value = cursor_u32(c, "a number"); break;
    default: cursor_fail(c, ERR_FORMAT, "not a SentencePiece model"); break;
    }
    return !c->status;
}

static struct cursor inside(const struct reader *r, const struct field *f)
{
    return cursor_over(f->data ? f->data : (const uint8_t *)"", f->data ? f->n : 0, r->path, r->e);
}

static int read_piece(struct reader *r, const struct field *message, int32_t id)
{
    struct cursor c = inside(r, message);
    struct field f, text = {0};
    uint32_t bits = 0;
    uint64_t kind = PIECE_NORMAL;
    while (next_field(&c, &f)) {
        if (f.number == 1)
            text = f;
        else if (f.number == 2)
            bits = (uint32_t)f.value;
        else if (f.number == 3)
            kind = f.value;
    }
    if (c.status)
        return c.status;
    float score;
    memcpy(&score, &bits, sizeof score);
    if (!isfinite(score))
        return err_set(r->e, ERR_FORMAT, "%s: the score of token %d is not a number", r->path, id);
    if (memchr(text.n ? (const char *)text.data : "x", 0, text.n ? text.n : 1))
        return err_set(r->e, ERR_FORMAT, "%s: token %d has a NUL in it", r->path, id);
    r->score[id] = score;
    r->kind[id] = kind >= PIECE_NORMAL && kind <= PIECE_BYTE ? (uint8_t)kind : PIECE_NORMAL;
    const char *s = text.n ? (const char *)text.data : "";
    return tok_set_piece(r->t, id, s, text.n, kind == PIECE_BYTE, r->e);
}

static int read_trainer(struct reader *r, const struct field *message)
{
    struct cursor c = inside(r, message);
    struct field f;
    while (next_field(&c, &f)) {
        switch (f.number) {
        case 3: r->model = f.value; break;
        case 24: r->suffix = f.value != 0; break;
        case 35: r->byte_fallback = f.value != 0; break;
        case 40: r->unk = f.value; break;
        case 41: r->bos = f.value; break;
        case 42: r->eos = f.value; break;
        default: break;
        }
    }
    return c.status;
}

static int read_normalizer(struct reader *r, const struct field *message)
{
    struct cursor c = inside(r, message);
    struct field f;
    while (next_field(&c, &f)) {
        switch (f.number) {
        case 2:
            r->charsmap = f.data;
            r->n_charsmap = f.n;
            break;
        case 3: r->dummy_prefix = f.value != 0; break;
        case 4: r->squeeze = f.value != 0; break;
        case 5: r->escape = f.value != 0; break;
        default: break;
        }
    }
    return c.status;
}

static int read_settings(struct reader *r, const uint8_t *data, size_t n)
{
    struct cursor c = cursor_over(data, n, r->path, r->e);
    struct field f;
    int rc = OK;
    while (!rc && next_field(&c, &f)) {
        if (f.number == 1)
            r->n++;
        else if (f.number == 2)
            rc = read_trainer(r, &f);
        else if (f.number == 3)
            rc = read_normalizer(r, &f);
    }
    rc = rc ? rc : c.status;
    if (!rc && !r->n)
        rc = err_set(r->e, ERR_FORMAT, "%s: a SentencePiece model without pieces", r->path);
    if (!rc && r->model != MODEL_BPE && r->model != MODEL_UNIGRAM)
        rc = err_set(r->e, ERR_UNSUPPORTED,
                     "%s: SentencePiece model type %llu (word or character) is not supported",
                     r->path, (unsigned long long)r->model);
    if (!rc && r->suffix)
        rc = err_set(r->e, ERR_UNSUPPORTED,
                     "%s: SentencePiece's treat_whitespace_as_suffix is not supported", r->path);
    return rc;
}

static int read_pieces(struct reader *r, const uint8_t *data, size_t n, size_t more)
{
    struct cursor c = cursor_over(data, n, r->path, r->e);
    struct field f;
    int32_t id = 0;
    int rc = tok_reserve(r->t, r->n > more ? r->n : more, r->e);
    if (rc)
        return rc;
    r->score = mem_calloc((size_t)r->t->n, sizeof *r->score);
    r->kind = mem_calloc((size_t)r->t->n, sizeof *r->kind);
    if (!r->score || !r->kind)
        return err_nomem(r->e, (size_t)r->t->n * 5, "scores");
    while (!rc && next_field(&c, &f))
        if (f.number == 1)
            rc = read_piece(r, &f, id++);
    return rc ? rc : c.status;
}

static int use_normalizer(struct reader *r)
{
    struct tokenizer *t = r->t;
    int rc = OK;
    if (r->n_charsmap) {
        rc = charsmap_new(&t->charsmap, r->charsmap, r->n_charsmap, r->path, r->e);
        t->norm[t->n_norm++].kind = NORM_CHARSMAP;
    }
    if (r->squeeze)
        t->norm[t->n_norm++].kind = NORM_SQUEEZE;
    if (r->dummy_prefix)
        t->norm[t->n_norm++] = (struct norm_step){.kind = NORM_PREPEND, .to = " "};
    if (r->escape)
        t->norm[t->n_norm++] =
            (struct norm_step){.kind = NORM_REPLACE, .from = " ", .to = TOK_SPACE};
    t->strip_start = r->dummy_prefix || r->squeeze;
    t->strip_all = r->squeeze;
    return rc;
}

/* Special pieces are cut from the text as it is, the user's pieces from the normalized text; a
 * unigram model weighs those like any other piece. */
static int use_kinds(struct reader *r)
{
    int rc = OK;
    for (int32_t id = 0; !rc && id < (int32_t)r->n; id++) {
        int kind = r->kind[id];
        const struct piece *p = &r->t->pieces[id];
        struct added_token token = {.text = p->key, .n = p->n_key, .id = id};
        if (!p->key || !p->n_key)
            continue;
        if (kind == PIECE_UNUSED && r->model == MODEL_BPE)
            return err_set(r->e, ERR_UNSUPPORTED,
                           "%s: token %d is marked unused, which is not supported in a BPE model",
                           r->path, id);
        if (kind == PIECE_USER && r->model == MODEL_BPE)
            rc = added_add(r->t->normal, &token, r->e);
        if (kind != PIECE_CONTROL && kind != PIECE_UNKNOWN)
            continue;
        token.special = true;
        r->t->pieces[id].key = NULL;
        rc = tok_add_token(r->t, &token, false, r->e);
    }
    return rc;
}

static int32_t id_or_none(const struct reader *r, uint64_t id)
{
    return id < r->n ? (int32_t)id : -1;
}

static int use_vocabulary(struct reader *r)
{
    struct tokenizer *t = r->t;
    t->fuse_unk = true;
    t->byte_fallback = r->byte_fallback;
    t->unk = id_or_none(r, r->unk);
    t->bos = id_or_none(r, r->bos);
    t->adds_bos = t->bos >= 0;
    for (int32_t id = 0; id < (int32_t)r->n; id++)
        if (r->kind[id] == PIECE_UNKNOWN)
            t->unk = id;
    int rc = use_kinds(r);
    if (!rc)
        rc = tok_index_keys(t, r->e);
    if (!rc && r->model == MODEL_BPE)
        rc = tok_merges_from_scores(t, r->score, r->path, r->e);
    for (int32_t id = 0; !rc && r->model == MODEL_UNIGRAM && id < (int32_t)r->n; id++) {
        const struct piece *p = &t->pieces[id];
        if (!t->unigram)
            rc = unigram_new(&t->unigram, true, r->e);
        if (!rc && p->key && p->n_key && r->kind[id] != PIECE_UNUSED)
            rc = unigram_add(t->unigram, p->key, p->n_key, id, (double)r->score[id],
                             r->kind[id] == PIECE_USER, r->e);
    }
    if (!rc)
        rc = tok_add_eos(t, id_or_none(r, r->eos), r->e);
    if (t->bos >= 0)
        t->bos_text = t->pieces[t->bos].text;
    if (t->n_eos)
        t->eos_text = t->pieces[t->eos[0]].text;
    return rc;
}

/* Lines of base64 and a rank: what Llama 3 ships under the same name. */
bool tok_is_rank_list(const uint8_t *s, size_t n)
{
    size_t i = 0;
    for (; i < n && i < 400; i++) {
        uint8_t c = s[i], lower = (uint8_t)(c | 32);
        if (!(c == '+' || c == '/' || c == '=' || (c >= '0' && c <= '9') ||
              (lower >= 'a' && lower <= 'z')))
            break;
    }
    return i > 1 && i + 1 < n && s[i] == ' ' && s[i + 1] >= '0' && s[i + 1] <= '9';
}

int tok_read_proto(struct tokenizer *t, const char *path, size_t more, struct err *e)
{
    struct reader r = {.t = t,
                       .path = path,
                       .e = e,
                       .model = MODEL_UNIGRAM,
                       .unk = 0,
                       .bos = 1,
                       .eos = 2,
                       .dummy_prefix = true,
                       .squeeze = true,
                       .escape = true};
    struct file_map map;
    int rc = file_map_open(&map, path, e);
    if (rc)
        return rc;
    if (map.size > MODEL_MAX)
        rc = err_set(e, ERR_LIMIT, "%s: %zu bytes are too many for a tokenizer", path, map.size);
    else if (tok_is_rank_list(map.data, map.size))
        rc = err_set(e, ERR_UNSUPPORTED,
                     "%s: a list of byte ranks, not a SentencePiece model; use the tokenizer.json "
                     "of the same model",
                     path);
    if (!rc)
        rc = read_settings(&r, map.data, map.size);
    if (!rc)
        rc = read_pieces(&r, map.data, map.size, more);
    if (!rc)
        rc = use_normalizer(&r);
    if (!rc)
        rc = use_vocabulary(&r);
    file_map_close(&map);
    free(r.score);
    free(r.kind);
    return rc;
}
