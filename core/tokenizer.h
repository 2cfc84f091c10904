/* tokenizer: text ↔ ids. Byte-pair merging over bytes (GPT-2's alphabet) or over characters with
 * byte fallback (SentencePiece), from a Hugging Face tokenizer.json or a GGUF. Immutable once
 * opened, so threads may share one. Ill-formed UTF-8 in the input is replaced by U+FFFD first.
 * Known limits are listed at the top of tokenizer.c. */
#ifndef MLATHE_CORE_TOKENIZER_H
#define MLATHE_CORE_TOKENIZER_H

#include "core/base.h"

struct tokenizer;

/* path: model folder (tokenizer.json [+ tokenizer_config.json, generation_config.json]), a GGUF
 * (vocab-only too), or a bare tokenizer.json. */
int tokenizer_open(struct tokenizer **out, const char *path, struct err *e);
void tokenizer_free(struct tokenizer *t);

/* No token's text is longer; a vocabulary that says otherwise is refused. */
#define TOKENIZER_MAX_TOKEN 1024

int tokenizer_size(const struct tokenizer *t); /* ids are 0 … size−1 */
int tokenizer_bos(const struct tokenizer *t);  /* -1: none */
bool tokenizer_adds_bos(const struct tokenizer *t);
/* End-of-generation ids (eos, eot and the well-known names); *n of them. */
const int32_t *tokenizer_eos(const struct tokenizer *t, int *n);
bool tokenizer_is_eos(const struct tokenizer *t, int32_t id);
/* The id whose decoded text is exactly that (" the", "<|im_end|>"), -1 if none. */
int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t n);

struct ids {
    int32_t *v;
    size_t n, cap;
};
void ids_free(struct ids *ids);

enum {
    TOKENIZE_SPECIAL = 1, /* special (control) tokens in the text are parsed as such */
    TOKENIZE_BOS = 2,     /* prepend BOS if the model wants one */
};
/* Appends to out. Non-special added tokens always match, special ones only with
 * TOKENIZE_SPECIAL. n bytes of text, NULs allowed. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                     struct ids *out, struct err *e);

/* A stretch [begin, end) of bytes of a text. */
struct tokenizer_part {
    size_t begin, end;
};
/* As tokenizer_encode, but special tokens are parsed only where they lie wholly inside one of the
 * parts (ascending, apart from each other); all else, merges included, sees the one joined text.
 * TOKENIZE_SPECIAL in flags is ignored. */
int tokenizer_encode_parts(const struct tokenizer *t, const char *text, size_t n,
                           const struct tokenizer_part *parts, size_t n_parts, unsigned flags,
                           struct ids *out, struct err *e);

/* Decoded bytes of ids in fresh NUL-terminated memory (*size without the NUL). skip_special drops
 * special tokens. Ill-formed sequences become U+FFFD. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                     char **text, size_t *size, struct err *e);

/* Streaming decode: whole code points only. Zero-initialise; push writes into out (room for
 * TOKENIZER_STREAM_OUT bytes) and returns how many; flush gives what is left as U+FFFD. Special
 * tokens give no text unless show_special is set. */
#define TOKENIZER_STREAM_OUT 4096
struct tokenizer_stream {
    uint8_t held[4];
    int n_held;
    bool started, show_special;
};
size_t tokenizer_stream_push(const struct tokenizer *t, struct tokenizer_stream *s, int32_t id,
                             char *out);
size_t tokenizer_stream_flush(struct tokenizer_stream *s, char *out);

/* The model's own chat template source and the bos/eos strings it may use; NULL when none. */
const char *tokenizer_chat_template(const struct tokenizer *t);
const char *tokenizer_bos_text(const struct tokenizer *t);
const char *tokenizer_eos_text(const struct tokenizer *t);

#endif
