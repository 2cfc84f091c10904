/* cuda_emu_runtime: the emulated machine's memory and the runtime's calls that the backend makes:
 * allocations between guards, copies from pinned memory as late as the stream's order allows,
 * events, and graphs (launches kept and done again). Included by cuda_emu.h only. */
#ifndef MLATHE_KERNELS_CUDA_EMU_RUNTIME_H
#define MLATHE_KERNELS_CUDA_EMU_RUNTIME_H

#include "kernels/cuda_emu.h"

static inline void emu_reach(int how)
{
    if (emu.arena)
        mprotect(emu.arena, (emu.top + 0xfff) & ~(size_t)0xfff, how);
}

static inline void emu_check_guards(void)
{
    for (int i = 0; i < emu.n_blocks && !emu.broken; i++) {
        const struct emu_block *b = &emu.blocks[i];
        if (!emu_untouched(emu.arena + b->at - EMU_GUARD, EMU_GUARD) ||
            !emu_untouched(emu.arena + b->at + b->bytes, EMU_GUARD))
            emu_fault("a write beside a device allocation", 0);
    }
}

static inline void emu_begin(void)
{
    pthread_mutex_lock(&emu.lock);
    emu_reach(PROT_READ | PROT_WRITE);
}

static inline void emu_end(void)
{
    emu_reach(PROT_NONE);
    pthread_mutex_unlock(&emu.lock);
}

static inline void emu_start(void)
{
    if (emu.fibre)
        return;
    emu.backwards = emu.backwards || getenv("CUDA_EMU_BACKWARDS");
    emu.fibre = (struct emu_fibre *)calloc(EMU_THREADS, sizeof *emu.fibre);
    emu.stacks = (unsigned char *)malloc((size_t)EMU_THREADS * EMU_STACK);
    emu.shared = (unsigned char *)malloc(2 * EMU_SHARED);
    emu.blocks = (struct emu_block *)calloc(EMU_BLOCKS, sizeof *emu.blocks);
    emu.arena = (unsigned char *)mmap(nullptr, EMU_ARENA, PROT_NONE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* Copies from pinned memory happen as late as the stream's order allows: whoever fills a buffer
 * again before its event sends the wrong bytes, here as there. */
static inline void emu_catch_up(void)
{
    for (int i = 0; i < emu.n_late; i++)
        memmove(emu.late[i].to, emu.late[i].from, emu.late[i].n);
    emu.n_late = 0;
}

/* What a library does in the stream's order, by the host's own. */
template <class F> static void emu_library(F work)
{
    emu_begin();
    emu_catch_up();
    work();
    emu_check_guards();
    emu_end();
}

static inline void emu_do(const struct emu_node &n)
{
    const dim3 grid = n.grid, block = n.block;
    emu_begin();
    emu_start();
    emu_catch_up();
    emu.grid = grid, emu.block = block, emu.dynamic = n.dynamic;
    emu.threads = (int)block.x;
    emu.call = [](void *arg) { (*(const std::function<void()> *)arg)(); };
    emu.arg = (void *)&n.call;
    if (++emu.launches == emu.lost_at)
        emu_fault("the device is lost, as told", 0);
    if (block.x < 1 || block.x > EMU_THREADS || block.y * block.z != 1 || !grid.x || !grid.y ||
        !grid.z || grid.y > 65535 || grid.z > 65535)
        emu_fault("a launch that no device takes", 0);
    for (unsigned z = 0; z < grid.z && !emu.broken; z++)
        for (unsigned y = 0; y < grid.y && !emu.broken; y++)
            for (unsigned x = 0; x < grid.x && !emu.broken; x++) {
                emu.block_at = dim3(x, y, z);
                emu_run_block();
            }
    emu_check_guards();
    emu_end();
}

template <class F> static inline void emu_launch(dim3 grid, dim3 block, size_t dynamic, F f)
{
    struct emu_node n = {grid, block, dynamic, std::function<void()>(f)};
    if (emu.capture)
        emu.capture->push_back(n);
    else
        emu_do(n);
}

typedef int cudaError_t;
typedef void *cudaStream_t, *cudaEvent_t;
typedef emu_graph *cudaGraph_t, *cudaGraphExec_t;
enum {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
};
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum { cudaStreamCaptureModeThreadLocal };
enum { cudaStreamNonBlocking, cudaEventDisableTiming, cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t sharedMemPerBlockOptin;
};

static inline cudaError_t emu_error(void)
{
    return emu.broken ? cudaErrorLaunchFailure : cudaSuccess;
}
/* For what no capture may meet. */
static inline bool emu_spoils(void)
{
    emu.spoilt = emu.spoilt || emu.capture;
    return emu.capture;
}
static inline cudaError_t cudaGetLastError(void)
{
    return emu_error(); /* a broken launch loses the device for good, as a real one does */
}
static inline const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaErrorLaunchFailure ? emu.fault : e ? "an emulated error" : "no error";
}
static inline cudaError_t cudaGetDeviceCount(int *n)
{
    *n = emu.driver ? emu.devices : 0;
    return !emu.driver ? cudaErrorInsufficientDriver : *n ? cudaSuccess : cudaErrorNoDevice;
}
static inline cudaError_t cudaSetDevice(int device)
{
    return device < emu.devices ? cudaSuccess : cudaErrorNoDevice;
}
static inline cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    *p = {};
    snprintf(p->name, sizeof p->name, "emulated device %d", device);
    p->major = emu.major, p->minor = emu.minor, p->multiProcessorCount = emu.processors;
    p->sharedMemPerBlockOptin = emu.shared_most;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    *s = &emu;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamDestroy(cudaStream_t)
{
    return cudaSuccess;
}
static inline cudaError_t emu_wait_for_all(void)
{
    if (emu_spoils())
        return cudaErrorStreamCaptureUnsupported;
    emu_begin();
    emu_catch_up();
    emu_end();
    return emu_error();
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return emu_wait_for_all();
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = calloc(1, 1);
    return *e ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    free(e);
    return cudaSuccess;
}
/* One that was never recorded is past already. */
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t)
{
    *(char *)e = 1;
    return emu_error();
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    return *(char *)e ? emu_wait_for_all() : emu_error();
}
static inline cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all)
{
    *all = emu.memory;
    *free_bytes = emu.used < emu.memory ? emu.memory - emu.used : 0;
    return cudaSuccess;
}
template <class F> static inline cudaError_t cudaFuncSetAttribute(F, int, int)
{
    return cudaSuccess;
}
static inline cudaError_t cudaMallocHost(void **p, size_t n)
{
    *p = nullptr;
    for (int i = 0; i < EMU_PINNED && !*p; i++)
        if (!emu.pinned[i].at && (emu.pinned[i].at = (unsigned char *)malloc(n))) {
            emu.pinned[i].n = n;
            *p = emu.pinned[i].at;
        }
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFreeHost(void *p)
{
    emu_wait_for_all();
    for (int i = 0; i < EMU_PINNED; i++)
        if (emu.pinned[i].at == p)
            emu.pinned[i] = {};
    free(p);
    return cudaSuccess;
}
static inline bool emu_is_pinned(const void *p)
{
    for (int i = 0; i < EMU_PINNED; i++) {
        const struct emu_pinned *m = &emu.pinned[i];
        if (m->at && (const unsigned char *)p >= m->at && (const unsigned char *)p < m->at + m->n)
            return true;
    }
    return false;
}

/* First fit, guards before and after; the bytes are poison until they are written. */
static inline cudaError_t cudaMalloc(void **p, size_t bytes)
{
    *p = nullptr;
    if (emu_spoils())
        return cudaErrorStreamCaptureUnsupported;
    emu_begin();
    emu_start();
    size_t room = ((bytes + 255) & ~(size_t)255) + 2 * EMU_GUARD, at = 0;
    int i = 0;
    for (; i < emu.n_blocks; i++) {
        if (emu.blocks[i].at - EMU_GUARD >= at + room)
            break;
        at = (emu.blocks[i].at + emu.blocks[i].bytes + EMU_GUARD + 255) & ~(size_t)255;
    }
    bool fits = !emu.broken && emu.n_blocks < EMU_BLOCKS && emu.used + bytes <= emu.memory &&
                at + room <= EMU_ARENA;
    if (fits) {
        memmove(emu.blocks + i + 1, emu.blocks + i,
                (size_t)(emu.n_blocks++ - i) * sizeof *emu.blocks);
        emu.blocks[i] = (struct emu_block){at + EMU_GUARD, bytes};
        emu.used += bytes;
        if (at + room > emu.top)
            emu.top = at + room;
        emu_reach(PROT_READ | PROT_WRITE);
        *p = emu.arena + at + EMU_GUARD;
        memset(emu.arena + at, EMU_POISON, room);
    }
    emu_end();
    return emu.broken ? cudaErrorLaunchFailure : fits ? cudaSuccess : cudaErrorMemoryAllocation;
}

static inline cudaError_t cudaFree(void *p)
{
    if (emu_spoils())
        return cudaErrorStreamCaptureUnsupported;
    emu_begin();
    emu_catch_up();
    size_t at = (size_t)((unsigned char *)p - emu.arena);
    for (int i = 0; p && i < emu.n_blocks; i++)
        if (emu.blocks[i].at == at) {
            emu.used -= emu.blocks[i].bytes;
            memset(p, EMU_POISON, emu.blocks[i].bytes);
            memmove(emu.blocks + i, emu.blocks + i + 1,
                    (size_t)(--emu.n_blocks - i) * sizeof *emu.blocks);
            break;
        }
    emu_end();
    return cudaSuccess;
}

static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, int how,
                                          cudaStream_t)
{
    if (emu_spoils()) /* a device would take one; the backend has none to give */
        return cudaErrorStreamCaptureUnsupported;
    emu_begin();
    bool late = how == cudaMemcpyHostToDevice && emu_is_pinned(from);
    if (!late || emu.n_late == EMU_LATE)
        emu_catch_up();
    if (late)
        emu.late[emu.n_late++] = {to, from, n};
    else
        memmove(to, from, n);
    emu_check_guards();
    emu_end();
    return emu_error();
}

static inline cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t)
{
    emu_begin();
    emu_catch_up();
    memset(p, v, n);
    emu_end();
    return emu_error();
}

/* --- graphs ----------------------------------------------------------------------------------- */

static inline cudaError_t cudaStreamBeginCapture(cudaStream_t, int)
{
    if (emu.no_graphs || emu.capture)
        return cudaErrorStreamCaptureUnsupported;
    emu.capture = new emu_graph;
    emu.spoilt = false;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *g)
{
    *g = emu.spoilt ? nullptr : emu.capture;
    if (emu.spoilt)
        delete emu.capture;
    emu.capture = nullptr;
    return *g ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}
static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g,
                                               unsigned long long)
{
    *e = new emu_graph(*g);
    return cudaSuccess;
}
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    delete e;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t)
{
    if (emu_spoils())
        return cudaErrorStreamCaptureUnsupported;
    emu.replays++;
    for (const struct emu_node &n : *e)
        emu_do(n);
    return emu_error();
}

#endif
