/* tokenizer_write: a vocabulary from one format into the other, for exports. */
#ifndef MLATHE_CORE_TOKENIZER_WRITE_H
#define MLATHE_CORE_TOKENIZER_WRITE_H

#include "core/json.h"

/* tokenizer.json and tokenizer_config.json (chat template included) of the vocabulary inside a
 * GGUF. ERR_UNSUPPORTED for pre-tokenizers that we have no rules for. */
int tokenizer_json_from_gguf(const char *path, cJSON **tokenizer, cJSON **config, struct err *e);

/* The tokenizer's keys of a GGUF for a model folder with tokenizer.json; ids up to vocab − 1 that
 * it does not name become unused tokens. A folder without one: "none". */
struct gguf_writer;
int tokenizer_gguf_from_folder(const char *dir, int vocab, struct gguf_writer *w, struct err *e);

#endif
