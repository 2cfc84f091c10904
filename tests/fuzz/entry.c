/* libFuzzer entry, built once for every target of tests/support_fuzz.h (FUZZ_TARGET names it):
 * cmake -DFUZZ=ON with clang, or tests/fuzz.sh. */
#include "tests/support_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FUZZ_TARGET(data, size);
    return 0;
}
