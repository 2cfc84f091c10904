/* libFuzzer entry: a GGUF file, opened as a model. Built with -DFUZZ=ON and clang. */
#include "tests/support_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_gguf_model(data, size);
    return 0;
}
