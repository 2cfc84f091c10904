/* support_vocab: tiny vocabularies for tests. Ids 0 … 255 are the bytes, merges follow from 256 on,
 * added tokens are given as JSON. */
#ifndef MLATHE_TESTS_SUPPORT_VOCAB_H
#define MLATHE_TESTS_SUPPORT_VOCAB_H

#include "tests/support.h"

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"

struct tiny_vocab {
    const char *merges;     /* ASCII pairs apart by a bar: "l l|he ll" */
    const char *added;      /* JSON array, NULL: none */
    const char *normalizer; /* JSON, NULL: null */
    const char *pretok;     /* JSON, NULL: BYTE_LEVEL */
    const char *post;       /* JSON, NULL: null */
    const char *extra;      /* members of the model, each with a comma behind; NULL: none */
};
/* tokenizer.json in fresh memory. */
char *tiny_json(const struct tiny_vocab *v);
/* Writes a file under test_tmpdir() and gives its path (in a ring, like test_path). */
const char *tiny_file(const char *name, const void *data, size_t n);

/* A GGUF with a byte-level vocabulary of the bytes, merges, and <|x|> (control) as last token. */
struct tiny_gguf {
    const char *model, *pre; /* NULL: the key is left out */
    const char *merges;      /* as above */
    int add_bos;             /* -1: left out */
};
uint8_t *tiny_gguf(const struct tiny_gguf *v, size_t *n);

#endif
