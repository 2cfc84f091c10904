/* tokenizer_write: a vocabulary from one format into the other, for exports. */
#ifndef MLATHE_CORE_TOKENIZER_WRITE_H
#define MLATHE_CORE_TOKENIZER_WRITE_H

#include "core/json.h"

/* tokenizer.json and tokenizer_config.json (chat template included) of the vocabulary inside a
 * GGUF. ERR_UNSUPPORTED for pre-tokenizers that we have no rules for. */
int tokenizer_json_from_gguf(const char *path, cJSON **tokenizer, cJSON **config, struct err *e);

#endif
