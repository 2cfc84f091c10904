/* Packed weights for AArch64 with the dot-product extension, which the build allows in this file
 * alone. */
#ifdef __aarch64__
#include "kernels/cpu_neon_q.h"

#ifndef __ARM_FEATURE_DOTPROD
#error "compile this file with -march=armv8.2-a+dotprod"
#endif

void cpu_neon_dot_use(struct cpu_isa *isa)
{
    isa->name = "NEON dotprod";
    isa->matmul_q = matmul_q;
}
#endif
