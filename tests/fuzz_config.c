/* libFuzzer entry: a config.json. Built with -DFUZZ=ON and clang. */
#include "tests/support_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_config(data, size);
    return 0;
}
