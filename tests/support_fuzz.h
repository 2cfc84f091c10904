/* support_fuzz: what a fuzzer does with bytes. Each target takes them as one file, opens it with a
 * reader and, when that succeeds, reads everything. A target aborts when a promise is broken: a
 * failure without a message, a message that does not name the file, or a value that is not the same
 * after writing and reading it. */
#ifndef MLATHE_TESTS_SUPPORT_FUZZ_H
#define MLATHE_TESTS_SUPPORT_FUZZ_H

#include "core/base.h"

/* All return the reader's status. */
int fuzz_gguf(const uint8_t *data, size_t size);        /* reader alone */
int fuzz_gguf_model(const uint8_t *data, size_t size);  /* model_open of a GGUF file */
int fuzz_safetensors(const uint8_t *data, size_t size); /* one file, reader alone */
int fuzz_config(const uint8_t *data, size_t size);      /* config.json beside good weights */
int fuzz_index(const uint8_t *data, size_t size);       /* index of shards beside one good shard */
int fuzz_json(const uint8_t *data, size_t size);        /* parsed, written, parsed */
int fuzz_tokenizer(const uint8_t *data, size_t size);   /* tokenizer.json, .model, or GGUF */
int fuzz_template(const uint8_t *data, size_t size);    /* a chat template, rendered */
int fuzz_plan(const uint8_t *data, size_t size);
int fuzz_conversion(const uint8_t *data, size_t size); /* mlathe.json beside good tensors */
int fuzz_journal(const uint8_t *data, size_t size);    /* workspace and transcript */
int fuzz_results(const uint8_t *data, size_t size);    /* evaluations.json of a conversion */
int fuzz_questions(const uint8_t *data, size_t size);  /* of every task */
int fuzz_settings(const uint8_t *data, size_t size);
int fuzz_screen(const uint8_t *data, size_t size); /* text on the grid: nothing else gets there */

struct fuzz_target {
    const char *name;
    int (*run)(const uint8_t *data, size_t size);
};
extern const struct fuzz_target fuzz_targets[]; /* ends with a NULL name */

/* For the targets: aborts on a failure whose message is missing, names nothing, or could harm a
 * terminal; the bytes as a file in memory, by a path that stays the same; the bytes as what path
 * (fd is open on it) holds. The fuzzers replace the last one (tests/fuzz/memory.c). */
struct err;
void fuzz_judge(int rc, const struct err *e, const char *names);
const char *fuzz_file(const uint8_t *data, size_t size);
void fuzz_put(int fd, const char *path, const uint8_t *data, size_t size);

#endif
