/* What a fuzz target's file holds, on the disk; a file of its own, so that the fuzzers' linker can
 * put tests/fuzz/memory.c in its place. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/support_fuzz.h"

void fuzz_put(int fd, const char *path, const uint8_t *data, size_t size)
{
    if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size) {
        perror(path);
        abort();
    }
}
