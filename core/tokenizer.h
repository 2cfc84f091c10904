/* tokenizer: text ↔ ids. Byte-level BPE today (GGUF "gpt2" vocabularies and Hugging Face
 * tokenizer.json); other algorithms are added behind the same functions. Immutable once opened.
 * Ill-formed UTF-8 in the input is replaced by U+FFFD first. */
#ifndef MLATHE_CORE_TOKENIZER_H
#define MLATHE_CORE_TOKENIZER_H

#include "core/base.h"

struct tokenizer;

/* path: model folder (tokenizer.json [+ tokenizer_config.json, generation_config.json]), a GGUF
 * (vocab-only too), or a bare tokenizer.json. */
int tokenizer_open(struct tokenizer **out, const char *path, struct err *e);
void tokenizer_free(struct tokenizer *t);

int tokenizer_size(const struct tokenizer *t); /* ids are 0 … size−1 */
int tokenizer_bos(const struct tokenizer *t);  /* -1: none */
bool tokenizer_adds_bos(const struct tokenizer *t);
/* End-of-generation ids (eos, eot and the well-known names); *n of them. */
const int32_t *tokenizer_eos(const struct tokenizer *t, int *n);
bool tokenizer_is_eos(const struct tokenizer *t, int32_t id);
/* The id of an exact token string (added tokens included), -1 if none. */
int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t n);

struct ids { int32_t *v; size_t n, cap; };
void ids_free(struct ids *ids);

enum {
    TOKENIZE_SPECIAL = 1, /* special (control) tokens in the text are parsed as such */
    TOKENIZE_BOS = 2,     /* prepend BOS if the model wants one */
};
/* Appends to out. Non-special added tokens always match, special ones only with
 * TOKENIZE_SPECIAL. n bytes of text, NULs allowed. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                     struct ids *out, struct err *e);

/* Decoded bytes of ids in fresh NUL-terminated memory (*size without the NUL). skip_special drops
 * special tokens. Ill-formed sequences become U+FFFD. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                     char **text, size_t *size, struct err *e);

/* Streaming decode: whole code points only. Zero-initialise; push returns the number of bytes put
 * into out (≥ TOKENIZER_STREAM_OUT bytes of room); flush gives what is left as U+FFFD. Token text
 * longer than the room is split over calls by the caller passing pending tokens one at a time. */
#define TOKENIZER_STREAM_OUT 1024
struct tokenizer_stream { uint8_t held[4]; int n_held; bool started; };
size_t tokenizer_stream_push(const struct tokenizer *t, struct tokenizer_stream *s, int32_t id,
                             char *out);
size_t tokenizer_stream_flush(struct tokenizer_stream *s, char *out);

/* The model's own chat template source and the bos/eos strings it may use; NULL when none. */
const char *tokenizer_chat_template(const struct tokenizer *t);
const char *tokenizer_bos_text(const struct tokenizer *t);
const char *tokenizer_eos_text(const struct tokenizer *t);

#endif
