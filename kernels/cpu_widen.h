/* widen and widen_turned of cpu.h with the type a constant: included by cpu_avx2.c and cpu_neon.c
 * only, behind their INLINE and
 *
 *   widen_row  n numbers of one row
 *   turned_as  rows that become columns */
#ifndef MLATHE_KERNELS_CPU_WIDEN_H
#define MLATHE_KERNELS_CPU_WIDEN_H

static void widen(enum dtype type, int rows, int n, const void *src, int ld, float *dst)
{
    const size_t step = dtype_bytes(type, (size_t)ld);
    const char *p = src;
    for (int i = 0; i < rows; i++, p += step, dst += n)
        switch (type) {
        case DTYPE_F16: widen_row(DTYPE_F16, p, dst, n); break;
        case DTYPE_BF16: widen_row(DTYPE_BF16, p, dst, n); break;
        default: widen_row(DTYPE_Q8_0, p, dst, n);
        }
}

static void widen_turned(enum dtype type, int rows, int n, const void *src, int ld, float *dst,
                         int ld_dst)
{
    switch (type) {
    case DTYPE_F16: turned_as(DTYPE_F16, rows, n, src, ld, dst, ld_dst); break;
    case DTYPE_BF16: turned_as(DTYPE_BF16, rows, n, src, ld, dst, ld_dst); break;
    case DTYPE_Q8_0: turned_as(DTYPE_Q8_0, rows, n, src, ld, dst, ld_dst); break;
    default: turned_as(DTYPE_F32, rows, n, src, ld, dst, ld_dst);
    }
}

#endif
