/* fp8: DeepSeek's weights in E4M3. A matrix NAME comes with NAME_scale_inv [ceil(rows/block)]
 * [ceil(cols/block)], and a number is its eight bits times the scale of its block. */
#ifndef MLATHE_CORE_FP8_H
#define MLATHE_CORE_FP8_H

#include "core/safetensors.h"

#define FP8_SCALE "_scale_inv"

struct fp8_matrix {
    const uint8_t *data; /* [rows][cols] */
    size_t rows, cols;
    struct tensor scale;
    size_t block[2]; /* rows and columns that share a scale */
};

/* 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity, 0x7f and 0xff are NaN. */
float fp8_e4m3(uint8_t bits);
/* ERR_FORMAT, naming where, when the matrix or its scales are missing, misshapen or not finite, or
 * block is 0. */
int fp8_find(struct fp8_matrix *out, const struct safetensors *st, const char *name,
             const int block[2], const char *where, struct err *e);
/* out[rows][cols] in fp32. */
void fp8_read(const struct fp8_matrix *m, float *out);

/* Writing, in blocks of FP8_BLOCK x FP8_BLOCK (those at the edges are smaller). */
#define FP8_BLOCK ((size_t)128)
uint8_t fp8_from_f32(float f);
/* x [rows][cols] → scale [ceil(rows/block)][ceil(cols/block)] and out [rows][cols]; each may be
 * NULL. */
void fp8_write(const float *x, size_t rows, size_t cols, float *scale, uint8_t *out);

#endif
