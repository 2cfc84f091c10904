/* The instruction sets of this machine, each more than the one before, and the choice between them:
 * one binary for every machine. Refuses a cap that it does not know. */
#include <stdio.h>
#include <string.h>
#if defined __x86_64__
#include <cpuid.h>
#elif defined __aarch64__
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20) /* of Linux's interface to programs */
#endif
#endif

#include "kernels/cpu.h"

struct level {
    const char *name;
    bool (*runs)(void);
    void (*use)(struct cpu_isa *isa);
};

static bool always(void)
{
    return true;
}

static void use_scalar(struct cpu_isa *isa)
{
    *isa = cpu_scalar;
}

#if defined __x86_64__
static bool has_avx2(void)
{
    unsigned a, b, features = 0, d;
    __builtin_cpu_init(); /* its answers include the system's consent; clang has no name for F16C */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &features, &d) && (features & bit_F16C);
}

static void use_avx2(struct cpu_isa *isa)
{
    *isa = cpu_avx2;
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#elif defined __aarch64__
static bool has_dotprod(void)
{
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
}
#endif

static const struct level levels[] = {
    {"scalar", always, use_scalar},
#if defined __x86_64__
    {"avx2", has_avx2, use_avx2},
    {"avx512", has_avx512, cpu_avx512_use},
#elif defined __aarch64__
    {"neon", always, cpu_neon_use}, /* part of the base set */
    {"dotprod", has_dotprod, cpu_neon_dot_use},
#endif
};
enum { LEVELS = sizeof levels / sizeof *levels };

static int unknown(const char *cap, struct err *e)
{
    char names[64] = "";
    for (int i = 0, n = 0; i < LEVELS; i++)
        n += snprintf(names + n, sizeof names - (size_t)n, "%s%s", i ? ", " : "", levels[i].name);
    return err_set(e, ERR_ARG, "unknown isa \"%s\": use one of %s", cap, names);
}

int cpu_isa_choose(struct cpu_isa *isa, const char *cap, struct err *e)
{
    int most = 0;
    while (most < LEVELS && cap && strcmp(cap, levels[most].name))
        most++;
    if (most == LEVELS)
        return unknown(cap, e);
    most = cap ? most : LEVELS - 1;
    for (int i = 0; i <= most && levels[i].runs(); i++)
        levels[i].use(isa);
    return OK;
}
