/* libFuzzer entry: one safetensors file. Built with -DFUZZ=ON and clang. */
#include "tests/support_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_safetensors(data, size);
    return 0;
}
