/* dtype_blocks: readers of one block, for the table in dtype.c. b: the block's bytes at any
 * address; y: its numbers. */
#ifndef MLATHE_KERNELS_DTYPE_BLOCKS_H
#define MLATHE_KERNELS_DTYPE_BLOCKS_H

#include "kernels/dtype.h"

void dtype_read_q5_0(const uint8_t *b, float *y);
void dtype_read_q5_1(const uint8_t *b, float *y);
void dtype_read_q2_k(const uint8_t *b, float *y);
void dtype_read_q3_k(const uint8_t *b, float *y);
void dtype_read_q4_k(const uint8_t *b, float *y);
void dtype_read_q5_k(const uint8_t *b, float *y);
void dtype_read_q6_k(const uint8_t *b, float *y);
void dtype_read_iq4_nl(const uint8_t *b, float *y);
void dtype_read_iq4_xs(const uint8_t *b, float *y);
void dtype_read_mxfp4(const uint8_t *b, float *y);
void dtype_read_q6_0(const uint8_t *b, float *y);

/* What a block of Q4_K, Q5_K or Q6_K says: number i is d·scale·u − m·min by runs of 32; in Q6_K
 * d·scale·(u − 32) by runs of 16, scale signed. */
struct dtype_super {
    uint16_t d, m; /* F16 */
    uint8_t scale[16], min[8], u[256];
};
void dtype_open_super(enum dtype type, const uint8_t *b, struct dtype_super *s);

/* dst = n numbers of Q5_0 or IQ4_NL as Q8_0, exactly: they are a scale times small integers. */
static inline bool dtype_is_q8_0(enum dtype type)
{
    return type == DTYPE_Q5_0 || type == DTYPE_IQ4_NL;
}
void dtype_as_q8_0(enum dtype type, const uint8_t *src, uint8_t *dst, size_t n);

/* The integers of a block of Q6_0. */
void dtype_open_q6_0(const uint8_t *b, uint8_t u[32]);

/* And writers: x has the block's numbers. */
void dtype_write_q6_0(const float *x, uint8_t *b);
void dtype_write_q4_k(const float *x, uint8_t *b);
void dtype_write_q6_k(const float *x, uint8_t *b);

#endif
