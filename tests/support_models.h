/* support_models: tiny random Llama models, written to disk for tests. The same specification
 * gives the same numbers in both formats, whatever the machine (up to the rounding of the type).
 *
 * The tokenizer is a byte-level BPE: ids 0 … 255 are the 256 bytes in the order of the byte
 * alphabet's table ("!" is 0), then TEST_MERGES merged tokens, then three control tokens; ids up to
 * V are "<unused N>". Pre-tokenizer: SmolLM2's. Template: ChatML without a default system prompt.
 */
#ifndef MLATHE_TESTS_SUPPORT_MODELS_H
#define MLATHE_TESTS_SUPPORT_MODELS_H

#include "kernels/dtype.h"

struct test_model_spec {
    int L, D, H, G, d, F, V; /* V at least TEST_VOCAB_MIN; 0 in any field: the default */
    enum dtype dtype;        /* of matrices; norms are F32 in GGUF and this type in safetensors */
    uint64_t seed;
    bool untied;       /* a head of its own */
    double rope_theta; /* 0: 10000 */
    bool rope_llama3;  /* factor 8, low 1, high 4, original context 64 */
    int context;       /* 0: 2048 */
};

enum {
    TEST_BYTES = 256,
    TEST_MERGES = 16,
    TEST_END_OF_TEXT = TEST_BYTES + TEST_MERGES, /* <|endoftext|> */
    TEST_IM_START,                               /* <|im_start|> = bos */
    TEST_IM_END,                                 /* <|im_end|> = eos */
    TEST_VOCAB_MIN = 320,
};

/* L 2, D 64, H 4, G 2, d 16, F 96, V 320, F32, tied, seed 1. Blocks of 32 fit every matrix. */
struct test_model_spec test_model_small(void);

/* A Hugging Face folder (made if need be): config.json, generation_config.json, model.safetensors,
 * tokenizer.json, tokenizer_config.json. dtype F32, F16 or BF16. 0 or a failed CHECK and -1. */
int test_model_write_hf(const char *dir, const struct test_model_spec *spec);
/* One GGUF file with complete tokenizer metadata; any dtype whose block divides D, F and H·d. */
int test_model_write_gguf(const char *path, const struct test_model_spec *spec);

#endif
