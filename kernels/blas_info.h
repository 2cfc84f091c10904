/* blas_info: which BLAS this program runs on. */
#ifndef MLATHE_KERNELS_BLAS_INFO_H
#define MLATHE_KERNELS_BLAS_INFO_H

#include "core/base.h"

/* "OpenBLAS 0.3.21 … SkylakeX": the library's own words, with the core it chose. */
void blas_describe(char *text, size_t size);

#endif
