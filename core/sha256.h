/* sha256: FIPS 180-4, for fingerprints (identity, not secrecy). */
#ifndef MLATHE_CORE_SHA256_H
#define MLATHE_CORE_SHA256_H

#include "core/base.h"

struct sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
};
void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t size);
/* 64 lower-case hex digits and a NUL. */
void sha256_hex(struct sha256 *s, char hex[65]);

#endif
