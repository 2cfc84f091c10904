/* tokenizer_impl: what the rooms of the tokenizer share. Nobody else includes it.
 *
 * A vocabulary is a table of pieces. A piece's key is what merging works on (raw bytes for
 * byte-level vocabularies, text with ▁ for SentencePiece ones), its text is what decoding gives. */
#ifndef MLATHE_CORE_TOKENIZER_IMPL_H
#define MLATHE_CORE_TOKENIZER_IMPL_H

#include "core/added.h"
#include "core/bpe.h"
#include "core/charsmap.h"
#include "core/json.h"
#include "core/pretok.h"
#include "core/tokenizer.h"
#include "core/unigram.h"

#define TOK_MAX_IDS (1 << 22)    /* 16 times the largest vocabulary we know */
#define TOK_SPACE "\xe2\x96\x81" /* ▁, SentencePiece's visible space */

struct piece {
    const char *key, *text; /* key NULL: not reachable by merging; text NULL: a hole */
    uint32_t n_key, n_text;
    bool special;
};

/* Open addressing over the pieces, by key or by text. */
struct piece_index {
    int32_t *slots; /* -1: empty */
    size_t mask;
};

struct norm_step {
    enum {
        NORM_UNICODE, /* to one of the normalization forms */
        NORM_LOWER,
        NORM_STRIP,    /* white space at the ends */
        NORM_SQUEEZE,  /* as SentencePiece: spaces at the ends go, runs become one */
        NORM_CHARSMAP, /* the tokenizer's charsmap */
        NORM_PREPEND,
        NORM_REPLACE
    } kind;
    const char *from, *to; /* kept */
    int form;              /* NORM_UNICODE: utf8proc's options */
    bool left, right;      /* NORM_STRIP */
};

#define TOK_MAX_NORM 8

struct tokenizer {
    struct piece *pieces;
    int32_t n;
    struct tok_block *blocks; /* memory of all strings */
    struct piece_index by_key, by_text;
    struct added *raw;    /* cut from the text as it is */
    struct added *normal; /* cut from the normalized text; never special */
    struct norm_step norm[TOK_MAX_NORM];
    int n_norm;
    bool prefix_first; /* NORM_PREPEND works only at the beginning of the input */
    struct charsmap *charsmap;
    struct pretok *pretok;
    struct bpe *bpe;
    struct unigram *unigram; /* instead of bpe */
    bool byte_level;         /* keys are bytes */
    bool byte_fallback;      /* unknown characters become <0xHH> pieces */
    bool fuse_unk, ignore_merges;
    bool strip_start;   /* decoding drops one leading space … */
    bool strip_all;     /* … or all */
    int32_t unk;        /* -1: none */
    int32_t bytes[256]; /* id of each single byte, -1: none */
    int32_t bos;
    bool adds_bos;
    int32_t *eos;
    int n_eos;
    const char *bos_text, *eos_text, *chat_template;
};

/* tokenizer_vocab.c */
int tok_reserve(struct tokenizer *t, size_t n, struct err *e);
/* A lasting NUL-terminated copy, NULL when memory is out. */
const char *tok_keep(struct tokenizer *t, const char *s, size_t n);
/* Sets a piece of the model's vocabulary as the file spells it. byte: it is a <0xHH> piece. */
int tok_set_piece(struct tokenizer *t, int32_t id, const char *s, size_t n, bool byte,
                  struct err *e);
/* After all pieces: the index by key and the single bytes. */
int tok_index_keys(struct tokenizer *t, struct err *e);
/* An added token; it is looked for as it is written. normalized: looked for in normalized text. */
int tok_add_token(struct tokenizer *t, const struct added_token *token, bool normalized,
                  struct err *e);
/* After added tokens: the index by text. */
int tok_index_texts(struct tokenizer *t, struct err *e);
int32_t tok_key_id(const struct tokenizer *t, const char *key, size_t n);
/* A pair of pieces as the file spells them; they and their union must be in the vocabulary. */
int tok_add_merge(struct tokenizer *t, const char *left, size_t n_left, const char *right,
                  size_t n_right, uint32_t rank, struct err *e);
/* The same by ids: left and right become id. */
void tok_join(struct tokenizer *t, int32_t left, int32_t right, uint32_t rank, int32_t id);
/* The merges of a vocabulary whose pieces have scores: whatever pair gives the best goes first. */
int tok_merges_from_scores(struct tokenizer *t, const float *score, const char *path,
                           struct err *e);
int tok_add_eos(struct tokenizer *t, int32_t id, struct err *e);
/* Every special token whose name is known to end a generation. */
int tok_add_known_eos(struct tokenizer *t, struct err *e);
bool tok_is_byte_piece(const char *s, size_t n);

/* tokenizer_word.c: ids of one word, appended. */
struct tok_scratch {
    struct bpe_scratch bpe;
    struct unigram_scratch unigram;
    void *ids;
    size_t cap;
};
void tok_scratch_free(struct tok_scratch *s);
int tok_word(const struct tokenizer *t, struct tok_scratch *s, const char *word, size_t n,
             struct ids *out, struct err *e);
int ids_push(struct ids *ids, int32_t id, struct err *e);
/* tokenizer_norm.c: normalized copy in fresh memory. at_start: of the whole input. */
int tok_normalize(const struct tokenizer *t, const char *s, size_t n, bool at_start, char **out,
                  size_t *size, struct err *e);

struct norm_step tok_norm_nfc(void);

/* What GGUF's names of pre-tokenizers ("llama-bpe") stand for. Splits go one after the other, each
 * inside the pieces of the one before. */
struct tok_pre_rules {
    const char *pre;
    const char *split[3];
    bool digits; /* every digit cut out first */
    bool nfc, ignore_merges, adds_bos;
};
const struct tok_pre_rules *tok_pre_find(const char *pre, size_t n); /* NULL: unknown */

/* Readers; each fills an empty tokenizer. */
int tok_read_json(struct tokenizer *t, const char *path, struct err *e);
int tok_read_gguf(struct tokenizer *t, const char *path, struct err *e);
/* A SentencePiece model; at least more ids are reserved. The index by text is the caller's. */
int tok_read_proto(struct tokenizer *t, const char *path, size_t more, struct err *e);
/* Lines of base64 and a rank: what Llama 3 ships under the same name, and nothing of ours reads. */
bool tok_is_rank_list(const uint8_t *s, size_t n);
/* The tokenizer.model of a folder and the tokens that its settings add. */
int tok_read_proto_folder(struct tokenizer *t, const char *dir, const char *path, struct err *e);
/* tokenizer_config.json, generation_config.json, chat_template.jinja of a model folder. */
int tok_read_folder(struct tokenizer *t, const char *dir, struct err *e);

#endif
