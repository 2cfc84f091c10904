/* The tokenizer's doors: open by what the path is, encode, decode, streaming decode.
 *
 * Refused by name: WordPiece and word-level models, normalizers, pre-tokenizers and decoders that
 * we do not know, GGUF pre-tokenizers that we do not know, files without a vocabulary. Known
 * differences to the Hugging Face library: special tokens are looked for in the raw text even when
 * they are marked "normalized"; letters newer than PCRE2's Unicode tables split as symbols;
 * ill-formed bytes decode to one U+FFFD a maximal subpart for every algorithm; a trailing EOS of
 * the post-processor and clean_up_tokenization_spaces are ignored. */
#include "core/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/utf8.h"

static int open_folder(struct tokenizer *t, const char *dir, struct err *e)
{
    char *json = path_join(dir, "tokenizer.json"), *proto = path_join(dir, "tokenizer.model");
    int rc = json && proto ? OK : err_nomem(e, strlen(dir), "a path");
    if (!rc && file_exists(json))
        rc = tok_read_json(t, json, e);
    else if (!rc && file_exists(proto))
        rc = tok_read_proto_folder(t, dir, proto, e);
    else if (!rc)
        rc = err_set(e, ERR_UNSUPPORTED,
                     "%s: no tokenizer (tokenizer.json or tokenizer.model): put the model's own "
                     "there to work with text",
                     dir);
    free(json);
    free(proto);
    return rc ? rc : tok_read_folder(t, dir, e);
}

/* By its first bytes. A SentencePiece model begins with the field of its first piece, which is a
 * line feed to a reader of JSON: what follows decides. */
static int open_file(struct tokenizer *t, const char *path, struct err *e)
{
    struct file_map map;
    size_t i = 0;
    int rc = file_map_open(&map, path, e);
    if (rc)
        return rc;
    while (i < map.size && strchr(" \t\r\n", map.data[i]) && map.data[i])
        i++;
    bool gguf = map.size >= 4 && !memcmp(map.data, "GGUF", 4);
    bool json = i == map.size || map.data[i] == '{' || map.data[i] == '[';
    bool proto =
        !json && map.size > 4 && (map.data[0] == '\n' || tok_is_rank_list(map.data, map.size));
    file_map_close(&map);
    if (gguf)
        return tok_read_gguf(t, path, e);
    if (!proto)
        return tok_read_json(t, path, e);
    rc = tok_read_proto(t, path, 0, e);
    return rc ? rc : tok_index_texts(t, e);
}

/* What the vocabulary's builders refuse knows of no file. */
static void name_file(struct err *e, const char *path)
{
    char text[sizeof e->text];
    if (!e || e->status == ERR_NOMEM || strstr(e->text, path))
        return;
    memcpy(text, e->text, sizeof text);
    err_set(e, e->status, "%s: %s", path, text);
}

int tokenizer_open(struct tokenizer **out, const char *path, struct err *e)
{
    struct tokenizer *t = mem_calloc(1, sizeof *t);
    int rc;
    *out = NULL;
    if (!t)
        return err_nomem(e, sizeof *t, "a tokenizer");
    t->unk = t->bos = -1;
    memset(t->bytes, -1, sizeof t->bytes);
    rc = added_new(&t->raw, e);
    if (!rc)
        rc = added_new(&t->normal, e);
    if (!rc)
        rc = pretok_new(&t->pretok, e);
    if (!rc)
        rc = file_is_dir(path) ? open_folder(t, path, e) : open_file(t, path, e);
    if (!rc)
        rc = tok_add_known_eos(t, e);
    if (rc) {
        name_file(e, path);
        tokenizer_free(t);
        return rc;
    }
    *out = t;
    return OK;
}

int tokenizer_size(const struct tokenizer *t)
{
    return t->n;
}

int tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->adds_bos && t->bos >= 0;
}

const int32_t *tokenizer_eos(const struct tokenizer *t, int *n)
{
    *n = t->n_eos;
    return t->eos;
}

bool tokenizer_is_eos(const struct tokenizer *t, int32_t id)
{
    for (int i = 0; i < t->n_eos; i++)
        if (t->eos[i] == id)
            return true;
    return false;
}

const char *tokenizer_chat_template(const struct tokenizer *t)
{
    return t->chat_template;
}

const char *tokenizer_bos_text(const struct tokenizer *t)
{
    return t->bos_text;
}

const char *tokenizer_eos_text(const struct tokenizer *t)
{
    return t->eos_text;
}

struct encoder {
    const struct tokenizer *t;
    struct tok_scratch scratch;
    struct ids *out;
    const struct tokenizer_part *parts;
    size_t n_parts, at; /* at: the first part that ends behind the position looked at last */
};

/* added_room_fn: bytes from pos on that still lie in the part that pos lies in. */
static size_t special_room(void *user, size_t pos)
{
    struct encoder *c = user;
    while (c->at < c->n_parts && c->parts[c->at].end <= pos)
        c->at++;
    return c->at < c->n_parts && c->parts[c->at].begin <= pos ? c->parts[c->at].end - pos : 0;
}

static size_t no_room(void *user, size_t pos)
{
    (void)user, (void)pos;
    return 0;
}

static int encode_word(void *user, const char *word, size_t n, struct err *e)
{
    struct encoder *c = user;
    return tok_word(c->t, &c->scratch, word, n, c->out, e);
}

/* A stretch of normalized text: added tokens that are looked for there, then words. */
static int encode_normal(struct encoder *c, const char *text, size_t n, bool at_start,
                         struct err *e)
{
    const struct tokenizer *t = c->t;
    int rc = OK;
    for (size_t from = 0; !rc && from < n;) {
        struct added_match m = added_find(t->normal, text, n, from, no_room, NULL);
        if (m.begin > from)
            rc = pretok_run(t->pretok, text + from, m.begin - from, at_start && !from, encode_word,
                            c, e);
        if (!rc && m.token)
            rc = ids_push(c->out, m.token->id, e);
        from = m.end;
    }
    return rc;
}

static int encode_gap(struct encoder *c, const char *text, size_t n, bool at_start, struct err *e)
{
    char *normal;
    size_t size;
    if (!c->t->n_norm)
        return encode_normal(c, text, n, at_start, e);
    int rc = tok_normalize(c->t, text, n, at_start, &normal, &size, e);
    if (rc)
        return rc;
    rc = encode_normal(c, normal, size, at_start, e);
    free(normal);
    return rc;
}

static int encode_text(struct encoder *c, const char *text, size_t n, struct err *e)
{
    int rc = OK;
    for (size_t from = 0; !rc && from < n;) {
        struct added_match m = added_find(c->t->raw, text, n, from, special_room, c);
        if (m.begin > from)
            rc = encode_gap(c, text + from, m.begin - from, from == 0, e);
        if (!rc && m.token)
            rc = ids_push(c->out, m.token->id, e);
        from = m.end;
    }
    return rc;
}

/* Repairs ill-formed text; the parts' ends move with it. */
static int encode_repaired(struct encoder *c, const char *text, size_t n, struct err *e)
{
    struct tokenizer_part *moved = mem_calloc(c->n_parts, sizeof *moved);
    size_t size;
    if (!moved)
        return err_nomem(e, c->n_parts * sizeof *moved, "parts of a text");
    for (size_t i = 0; i < c->n_parts; i++)
        moved[i] = c->parts[i];
    /* A part is two offsets in a row, so the parts are one ascending list of offsets. */
    char *fixed = utf8_repair(text, n, &size, (size_t *)moved, 2 * c->n_parts);
    int rc = OK;
    c->parts = moved;
    if (fixed)
        rc = encode_text(c, fixed, size, e);
    else
        rc = err_nomem(e, n, "repairing text");
    free(fixed);
    free(moved);
    return rc;
}

int tokenizer_encode_parts(const struct tokenizer *t, const char *text, size_t n,
                           const struct tokenizer_part *parts, size_t n_parts, unsigned flags,
                           struct ids *out, struct err *e)
{
    struct encoder c = {.t = t, .out = out, .parts = parts, .n_parts = n_parts};
    size_t before = out->n;
    int rc = OK;
    for (size_t i = 0; i < n_parts; i++)
        if (parts[i].begin > parts[i].end || parts[i].end > n ||
            (i && parts[i - 1].end > parts[i].begin))
            return err_set(e, ERR_ARG, "part %zu of a text of %zu bytes is misplaced", i, n);
    if ((flags & TOKENIZE_BOS) && tokenizer_adds_bos(t))
        rc = ids_push(out, t->bos, e);
    if (!rc)
        rc = utf8_valid(text, n) ? encode_text(&c, text, n, e) : encode_repaired(&c, text, n, e);
    tok_scratch_free(&c.scratch);
    if (rc)
        out->n = before;
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                     struct ids *out, struct err *e)
{
    struct tokenizer_part whole = {0, n};
    bool special = flags & TOKENIZE_SPECIAL;
    return tokenizer_encode_parts(t, text, n, &whole, special ? 1 : 0, flags, out, e);
}

/* How many bytes at the beginning of a decoded text are not shown. */
static size_t leading(const struct tokenizer *t, const char *s, size_t n)
{
    size_t skip = 0, most = t->strip_all ? n : t->strip_start;
    while (skip < n && skip < most && s[skip] == ' ')
        skip++;
    return skip;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                     char **text, size_t *size, struct err *e)
{
    char *bytes = NULL;
    size_t used = 0, cap = 0;
    *text = NULL;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= t->n) {
            free(bytes);
            return err_set(e, ERR_ARG, "token id %d is not between 0 and %d", ids[i], t->n - 1);
        }
        const struct piece *p = &t->pieces[ids[i]];
        if (!p->n_text || (skip_special && p->special))
            continue;
        if (!mem_grow((void **)&bytes, &cap, used + p->n_text, 1)) {
            free(bytes);
            return err_nomem(e, used + p->n_text, "decoded text");
        }
        memcpy(bytes + used, p->text, p->n_text);
        used += p->n_text;
    }
    size_t skip = leading(t, bytes, used);
    *text = utf8_repair(used ? bytes + skip : "", used - skip, size, NULL, 0);
    free(bytes);
    return *text ? OK : err_nomem(e, used, "decoded text");
}

size_t tokenizer_stream_push(const struct tokenizer *t, struct tokenizer_stream *s, int32_t id,
                             char *out)
{
    /* Every byte may become a U+FFFD of three. */
    _Static_assert(3 * (TOKENIZER_MAX_TOKEN + 4) <= TOKENIZER_STREAM_OUT, "room for a token");
    char bytes[TOKENIZER_MAX_TOKEN + 4];
    size_t n = (size_t)s->n_held, used = 0, len;
    uint32_t cp;
    if (id < 0 || id >= t->n || (t->pieces[id].special && !s->show_special))
        return 0;
    const struct piece *p = &t->pieces[id];
    size_t skip = s->started ? 0 : leading(t, p->text, p->n_text);
    memcpy(bytes, s->held, n);
    if (p->n_text)
        memcpy(bytes + n, p->text + skip, p->n_text - skip);
    n += p->n_text - skip;
    s->started = s->started || p->n_text > (t->strip_all ? skip : 0);
    s->n_held = 0;
    for (size_t i = 0; i < n; i += len) {
        enum utf8_verdict v = utf8_next(bytes + i, n - i, &cp, &len);
        if (v == UTF8_CUT) {
            memcpy(s->held, bytes + i, len);
            s->n_held = (int)len;
        } else {
            used += utf8_put(cp, out + used);
        }
    }
    return used;
}

size_t tokenizer_stream_flush(struct tokenizer_stream *s, char *out)
{
    size_t used = s->n_held ? utf8_put(0xfffd, out) : 0;
    s->n_held = 0;
    return used;
}
