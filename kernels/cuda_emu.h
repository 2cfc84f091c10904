/* cuda_emu: enough of CUDA on the host to run the kernels' own source in tests. C++20, tests only.
 *
 * Every thread of a block is a fibre; blocks run one after the other. A thread runs until it waits
 * at a barrier or a shuffle, so a missing barrier shows: the first thread runs ahead into shared
 * memory that is still poison (NaN), or, in the other order (emu.backwards), overwrites what others
 * have yet to read. Faults that hardware would let pass stop the launch and read like a CUDA error:
 * threads at different barriers, threads that left while others wait, lanes missing from a shuffle,
 * writes into the guard zones around shared arrays and device allocations. Device memory is closed
 * to the host outside of launches and copies: touching it there is a segmentation fault, as on a
 * real machine. Not modelled: reordering of memory operations between barriers, and time.
 *
 * threadIdx is a name without arguments, so the emulated machine is the one global here. */
#ifndef MLATHE_KERNELS_CUDA_EMU_H
#define MLATHE_KERNELS_CUDA_EMU_H

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <functional>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c)
    {
    }
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

enum {
    EMU_STACK = 32 << 10,
    EMU_THREADS = 1024,
    EMU_SHARED = 227 << 10, /* most a block may have, as on sm_90 */
    EMU_ARRAYS = 16,
    EMU_GUARD = 256,
    EMU_BLOCKS = 8192, /* device allocations */
    EMU_LATE = 64,
    EMU_PINNED = 64,
    EMU_POISON = 0xff, /* NaN in every float format */
};
#define EMU_ARENA ((size_t)1 << 31)

enum emu_state { EMU_READY, EMU_AT_BARRIER, EMU_AT_WARP, EMU_LEFT };

struct emu_fibre {
#ifdef __x86_64__
    void *context;
#else
    ucontext_t context;
#endif
    enum emu_state state;
    int line; /* where it waits */
    unsigned mask;
    int from; /* the lane whose number it wants */
    uint32_t sent, got;
    const void *shown; /* what the warp's other lanes may look at */
};

struct emu_array {
    int line;
    size_t at, bytes;
};

struct emu_block {
    size_t at, bytes; /* without the guards */
};

struct emu_copy { /* from pinned memory: under way */
    void *to;
    const void *from;
    size_t n;
};

struct emu_node { /* a launch of a graph */
    struct dim3 grid, block;
    size_t dynamic;
    std::function<void()> call;
};
typedef std::vector<struct emu_node> emu_graph;

struct emu_pinned {
    unsigned char *at;
    size_t n;
};

struct emu_machine {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    /* What the machine is; tests change these. */
    bool driver = true, backwards = false;
    int devices = 2, major = 9, minor = 0, processors = 6;
    size_t memory = (size_t)1 << 30, shared_most = EMU_SHARED; /* of a block */
    /* The launch under way. */
    dim3 grid, block, block_at;
    struct emu_fibre *fibre = nullptr;
    unsigned char *stacks = nullptr, *shared = nullptr;
    struct emu_fibre host;
    int threads = 0, now = 0;
    size_t dynamic = 0, shared_used = 0;
    struct emu_array array[EMU_ARRAYS];
    int arrays = 0;
    void (*call)(void *) = nullptr;
    void *arg = nullptr;
    bool broken = false; /* latched until the error is read */
    char fault[200] = "";
    long launches = 0, lost_at = 0; /* the launch at which the device is lost; 0: none */
    /* Device memory: allocations in order of address. */
    unsigned char *arena = nullptr;
    struct emu_block *blocks = nullptr;
    int n_blocks = 0;
    size_t used = 0, top = 0;
    struct emu_copy late[EMU_LATE];
    int n_late = 0;
    struct emu_pinned pinned[EMU_PINNED] = {};
    /* Launches go here while a stream is captured; what cannot be captured spoils it. */
    emu_graph *capture = nullptr;
    bool spoilt = false, no_graphs = false;
    long replays = 0;
};
inline struct emu_machine emu;

#define gridDim (emu.grid)
#define blockDim (emu.block)
#define blockIdx (emu.block_at)
#define threadIdx (dim3((unsigned)emu.now))

static inline void emu_fault(const char *what, int line)
{
    if (!emu.broken)
        snprintf(emu.fault, sizeof emu.fault, "%s (line %d, thread %d of block %u,%u,%u)", what,
                 line, emu.now, emu.block_at.x, emu.block_at.y, emu.block_at.z);
    emu.broken = true;
}

/* --- fibres ----------------------------------------------------------------------------------- */

static inline void emu_switch_to(struct emu_fibre *from, struct emu_fibre *to);

static inline void emu_entry(void)
{
    emu.call(emu.arg);
    struct emu_fibre *f = &emu.fibre[emu.now];
    f->state = EMU_LEFT;
    emu_switch_to(f, &emu.host);
}

#ifdef __x86_64__
/* Saves what a call must keep on the old stack, and takes it from the new one. swapcontext would
 * do it with two system calls. */
__attribute__((naked, noinline)) inline void emu_swap(void **from, void *to)
{
    (void)from, (void)to;
    __asm__ volatile("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n"
                     "pushq %r15\n movq %rsp, (%rdi)\n movq %rsi, %rsp\n popq %r15\n popq %r14\n"
                     "popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

static inline void emu_switch_to(struct emu_fibre *from, struct emu_fibre *to)
{
    emu_swap(&from->context, to->context);
}

static inline void emu_prepare(struct emu_fibre *f, unsigned char *stack)
{
    uintptr_t top = (uintptr_t)(stack + EMU_STACK) & ~(uintptr_t)15;
    void **sp = (void **)(top - 16);
    *sp = (void *)emu_entry; /* returned into, with the stack as after a call */
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    f->context = sp;
}
#else
static inline void emu_switch_to(struct emu_fibre *from, struct emu_fibre *to)
{
    swapcontext(&from->context, &to->context);
}

static inline void emu_prepare(struct emu_fibre *f, unsigned char *stack)
{
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stack;
    f->context.uc_stack.ss_size = EMU_STACK;
    f->context.uc_link = &emu.host.context;
    makecontext(&f->context, emu_entry, 0);
}
#endif

static inline void emu_wait(enum emu_state state, int line)
{
    struct emu_fibre *f = &emu.fibre[emu.now];
    f->state = state;
    f->line = line;
    emu_switch_to(f, &emu.host);
}

/* --- what kernels call ------------------------------------------------------------------------ */

#define __syncthreads() emu_wait(EMU_AT_BARRIER, __LINE__)

static inline uint32_t emu_exchange(unsigned mask, uint32_t bits, int from, int line)
{
    struct emu_fibre *f = &emu.fibre[emu.now];
    f->mask = mask, f->sent = bits, f->from = from;
    emu_wait(EMU_AT_WARP, line);
    return f->got;
}

static inline float emu_shuffle(unsigned mask, float v, int from, int line)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits = emu_exchange(mask, bits, from, line);
    memcpy(&v, &bits, sizeof v);
    return v;
}
#define __shfl_xor_sync(mask, v, other) emu_shuffle(mask, v, (emu.now % 32) ^ (other), __LINE__)
#define __syncwarp() emu_exchange(~0u, 0, emu.now % 32, __LINE__)

/* A lane's numbers for the whole warp to read: all have shown theirs when this returns, and may
 * take them back after emu_hide. */
static inline const void *emu_seen(int lane)
{
    return emu.fibre[emu.now - emu.now % 32 + lane].shown;
}
static inline void emu_show(const void *p, int line)
{
    emu.fibre[emu.now].shown = p;
    emu_exchange(~0u, 0, emu.now % 32, line);
}
static inline void emu_hide(int line)
{
    emu_exchange(~0u, 0, emu.now % 32, line);
}

/* The block's array that this line declares: the first thread to come makes and poisons it. */
static inline void *emu_shared(int line, size_t bytes)
{
    for (int i = 0; i < emu.arrays; i++)
        if (emu.array[i].line == line)
            return emu.shared + emu.array[i].at;
    size_t at = emu.shared_used + EMU_GUARD, end = at + ((bytes + 15) & ~(size_t)15) + EMU_GUARD;
    size_t all = end - (size_t)(emu.arrays + 1) * 2 * EMU_GUARD; /* what a device would need */
    if (emu.arrays == EMU_ARRAYS || all > emu.shared_most) {
        emu_fault("too much shared memory", line);
        emu_wait(EMU_AT_BARRIER, -1);
    }
    memset(emu.shared + emu.shared_used, EMU_POISON, end - emu.shared_used);
    emu.array[emu.arrays++] = (struct emu_array){line, at, bytes};
    emu.shared_used = end;
    return emu.shared + at;
}

/* --- the scheduler ---------------------------------------------------------------------------- */

static inline bool emu_untouched(const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != EMU_POISON)
            return false;
    return true;
}

/* Lets a warp go on whose lanes all stand at the same exchange. */
static inline bool emu_release_warp(int first)
{
    int lanes = emu.threads - first < 32 ? emu.threads - first : 32, some = -1;
    for (int i = 0; i < lanes && some < 0; i++)
        if (emu.fibre[first + i].state == EMU_AT_WARP)
            some = first + i;
    if (some < 0)
        return false;
    const struct emu_fibre *like = &emu.fibre[some];
    for (int i = 0; i < lanes; i++) {
        const struct emu_fibre *f = &emu.fibre[first + i];
        if ((like->mask >> i & 1) &&
            (f->state != EMU_AT_WARP || f->line != like->line || f->mask != like->mask))
            return false;
    }
    unsigned mask = like->mask;
    for (int i = 0; i < lanes; i++) {
        struct emu_fibre *f = &emu.fibre[first + i];
        if (!(mask >> i & 1))
            continue;
        bool there = f->from < lanes && (mask >> f->from & 1);
        f->got = there ? emu.fibre[first + f->from].sent : ~0u;
        f->state = EMU_READY;
    }
    return true;
}

/* Lets the block go on when every thread stands at the same barrier; false: nobody can move. */
static inline bool emu_release_block(void)
{
    int line = 0;
    for (int i = 0; i < emu.threads; i++) {
        const struct emu_fibre *f = &emu.fibre[i];
        if (f->state != EMU_AT_BARRIER || (line && f->line != line)) {
            emu.now = i;
            emu_fault(f->state == EMU_LEFT      ? "a thread left while others wait"
                      : f->state == EMU_AT_WARP ? "a shuffle that not all its lanes reach"
                                                : "threads wait at different barriers",
                      f->line);
            return false;
        }
        line = f->line;
    }
    for (int i = 0; i < emu.threads; i++)
        emu.fibre[i].state = EMU_READY;
    return true;
}

static inline void emu_run_block(void)
{
    emu.arrays = 0, emu.shared_used = 0;
    for (int i = 0; i < emu.threads; i++) {
        emu_prepare(&emu.fibre[i], emu.stacks + (size_t)i * EMU_STACK);
        emu.fibre[i].state = EMU_READY;
        emu.fibre[i].line = 0;
    }
    for (int left = 0; left < emu.threads && !emu.broken;) {
        for (int i = 0; i < emu.threads && !emu.broken; i++) {
            emu.now = emu.backwards ? emu.threads - 1 - i : i;
            if (emu.fibre[emu.now].state != EMU_READY)
                continue;
            emu_switch_to(&emu.host, &emu.fibre[emu.now]);
            left += emu.fibre[emu.now].state == EMU_LEFT;
        }
        bool moved = false;
        for (int w = 0; w < emu.threads; w += 32)
            moved = emu_release_warp(w) || moved;
        if (!moved && left < emu.threads && !emu.broken)
            emu_release_block();
    }
    for (int i = 0; i < emu.arrays && !emu.broken; i++) {
        const struct emu_array *a = &emu.array[i];
        if (!emu_untouched(emu.shared + a->at - EMU_GUARD, EMU_GUARD) ||
            !emu_untouched(emu.shared + a->at + a->bytes, EMU_GUARD))
            emu_fault("a write beside a shared array", a->line);
    }
}

#include "kernels/cuda_emu_runtime.h"

#endif
