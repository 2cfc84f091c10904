/* support_fuzz: what a fuzzer does with bytes. Each target takes them as one file, opens it with a
 * reader and, when that succeeds, reads everything. A target aborts when a promise is broken: a
 * failure without a message, or a message that does not name the file. */
#ifndef MLATHE_TESTS_SUPPORT_FUZZ_H
#define MLATHE_TESTS_SUPPORT_FUZZ_H

#include "core/base.h"

/* All return the reader's status. */
int fuzz_gguf(const uint8_t *data, size_t size);        /* reader alone */
int fuzz_gguf_model(const uint8_t *data, size_t size);  /* model_open of a GGUF file */
int fuzz_safetensors(const uint8_t *data, size_t size); /* one file, reader alone */
int fuzz_config(const uint8_t *data, size_t size);      /* config.json beside good weights */
int fuzz_index(const uint8_t *data, size_t size);       /* index of shards beside one good shard */

#endif
