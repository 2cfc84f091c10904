/* The CUDA backend: device, stream, memory, weights and the table. Weights are in
 * cuda_weights.cu, the operations in cuda_small.cu, cuda_linear.cu and cuda_attn.cu; what a launch
 * does wrong latches and surfaces at sync. Refuses machines without a driver or a device, an index
 * that is not there, and devices older than compute capability 8.0, each with a sentence. The
 * runtime is linked statically and cuBLAS is looked for at run time, so the program starts on
 * machines that have neither.
 *
 * The conversion's second moments, large eigenproblems and least squares are in cuda_algebra.cu and
 * cuda_solver.cu; without cuBLAS they stay on the host. One stream; decoding steps are graphs
 * (cuda_step.cu).
 *
 * Roofline of a conversion, 40,960 tokens in groups of 2,048, on an H100 (3.35 TB/s, 400 TFLOP/s of
 * TF32, 50 of fp32 and 30 of fp64 products), seconds expected:
 *
 *                                      Llama-3-8B   Llama-2-7B   Llama-3-70B
 *   upload, BF16, 55 GB/s               16 GB  0.3   13 GB  0.3   140 GB  2.6 (each pass streams)
 *   forward pass, 2·N·T FLOP           6.6e14  1.6  5.4e14  1.4   5.7e15   14
 *   widening, 10 bytes a weight, group  1.6 TB 0.5   1.3 TB 0.4    14 TB  4.2
 *   attention over F32 caches          2.2e12  0.7  2.2e12  0.7   1.1e13  3.5 (at 3 TFLOP/s)
 *   second moments (moments_device.c)  4.1e14  8.3  5.8e14   12   8.0e14   16
 *   eigenproblems (cuda_solver.cu)               5            22            13 (16 host cores too)
 *   refit: two passes, sums, solves              8             7            73
 *   probes, 4 ranks, 4,096 rows        4.2e15   11  3.5e15    9   9.2e16  230 (with --calib only)
 *
 * Phase covariances and candidates stay on the host. So about 25, 45 and 130 s with refit and
 * without probes. What a better program would save: second moments in TF32 with fp32's exactness by
 * three products (a third of their time), heads' products in batches. None of it measured. */
#include "kernels/cuda_quant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "kernels/pool.h"
}
/* linalg.h speaks of C's complex numbers; this is all that is needed of it. */
extern "C" void linalg_init(void);

enum { OLDEST_MAJOR = 8 };

static struct cuda *cuda_of(struct backend *b)
{
    return (struct cuda *)b;
}

bool cuda_ok(struct cuda *c, cudaError_t rc, const char *what)
{
    if (rc == cudaSuccess)
        return true;
    if (!c->fault.status)
        err_set(&c->fault, ERR_DEVICE, "cuda:%d: %s: %s: restart with --device cpu", c->device,
                what, cudaGetErrorString(rc));
    return false;
}

static void make_current(struct cuda *c)
{
    cuda_ok(c, cudaSetDevice(c->device), "choosing the device");
}

const void *cuda_carry(struct cuda *c, const void *host, size_t bytes)
{
    if (c->step)
        return cuda_step_carry(c, host, bytes);
    size_t room = (bytes + 255) & ~(size_t)255;
    if (room > CUDA_RING) {
        err_set(&c->fault, ERR_LIMIT, "cuda:%d: a table of %zu bytes is too large", c->device,
                bytes);
        return NULL;
    }
    if (c->ring_at + room > CUDA_RING) { /* what read the ring so far must be done */
        if (!cuda_ok(c, cudaStreamSynchronize(c->stream), "waiting"))
            return NULL;
        c->ring_at = 0;
    }
    size_t at = c->ring_at;
    c->ring_at += room;
    memcpy(c->ring_host + at, host, bytes);
    return cuda_ok(c,
                   cudaMemcpyAsync(c->ring + at, c->ring_host + at, bytes, cudaMemcpyHostToDevice,
                                   c->stream),
                   "copying a table")
               ? c->ring + at
               : NULL;
}

int cuda_no_memory(struct cuda *c, size_t bytes, const char *what, struct err *e)
{
    size_t free_bytes = 0, all = 0;
    cudaGetLastError(); /* out of memory is no fault of the device: it is told here */
    cudaMemGetInfo(&free_bytes, &all);
    return err_set(e, ERR_NOMEM,
                   "cuda:%d: no memory for %s: %zu MiB needed, %zu of %zu MiB free: use a smaller "
                   "model or context, or --device cpu",
                   c->device, what, (bytes >> 20) + 1, free_bytes >> 20, all >> 20);
}

void *cuda_scratch(struct cuda *c, size_t bytes)
{
    if (bytes <= c->scratch_bytes)
        return c->scratch;
    cuda_step_spoil(c, "scratch grows");
    cudaFree(c->scratch); /* waits for what uses it */
    c->scratch = NULL;
    c->scratch_bytes = 0;
    if (cudaMalloc(&c->scratch, bytes) == cudaSuccess)
        c->scratch_bytes = bytes;
    else
        cuda_no_memory(c, bytes, "scratch", c->fault.status ? NULL : &c->fault);
    return c->scratch;
}

static void *cuda_alloc(struct backend *b, size_t bytes)
{
    struct cuda *c = cuda_of(b);
    void *p = NULL;
    make_current(c);
    cuda_step_spoil(c, "memory is asked for");
    if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    cuda_ok(c, cudaMemsetAsync(p, 0, bytes ? bytes : 1, c->stream), "clearing memory");
    return p;
}

static void cuda_free(struct backend *b, void *p)
{
    cuda_step_spoil(cuda_of(b), "memory is freed");
    cudaFree(p);
}

static void cuda_put(struct backend *b, void *dst, const void *src, size_t bytes)
{
    struct cuda *c = cuda_of(b);
    make_current(c);
    cuda_step_spoil(c, "numbers go up");
    cuda_ok(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, c->stream), "upload");
    /* src is the caller's again when this returns. */
    cuda_ok(c, cudaStreamSynchronize(c->stream), "upload");
}

static void cuda_get(struct backend *b, void *dst, const void *src, size_t bytes)
{
    struct cuda *c = cuda_of(b);
    bool small = bytes <= CUDA_SMALL; /* a step's logits: pinned, they come at the link's speed */
    make_current(c);
    cuda_step_spoil(c, "numbers come down");
    cuda_ok(
        c,
        cudaMemcpyAsync(small ? c->small_host : dst, src, bytes, cudaMemcpyDeviceToHost, c->stream),
        "download");
    if (cuda_ok(c, cudaStreamSynchronize(c->stream), "download") && small)
        memcpy(dst, c->small_host, bytes);
}

static int cuda_sync(struct backend *b, struct err *e)
{
    struct cuda *c = cuda_of(b);
    make_current(c);
    cuda_ok(c, cudaStreamSynchronize(c->stream), "work on the device");
    int status = c->fault.status;
    if (status && e)
        *e = c->fault;
    c->fault.status = OK;
    return status;
}

static void cuda_close(struct backend *b)
{
    struct cuda *c = cuda_of(b);
    if (!c)
        return;
    cudaFree(c->scratch);
    cudaFree(c->ring);
    if (c->ring_host)
        cudaFreeHost(c->ring_host);
    if (c->small_host)
        cudaFreeHost(c->small_host);
    cuda_weights_close(c);
    cuda_solver_close(&c->solver);
    cuda_blas_close(&c->blas);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    pool_free(c->base.pool);
    free(c);
}

/* Is there a device of this index that the kernels run on? */
static int find_device(struct cuda *c, struct err *e)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc == cudaErrorInsufficientDriver)
        return err_set(e, ERR_DEVICE,
                       "no CUDA device: the NVIDIA driver is not installed or too old for this "
                       "build: use --device cpu");
    if (rc != cudaSuccess || n < 1)
        return err_set(e, ERR_DEVICE, "no CUDA device: %s: use --device cpu",
                       rc == cudaSuccess ? "the driver names none" : cudaGetErrorString(rc));
    if (c->device < 0 || c->device >= n)
        return err_set(e, ERR_DEVICE,
                       "no device cuda:%d: this machine has %d (cuda:0 to cuda:%d): use one, or "
                       "--device cpu",
                       c->device, n, n - 1);
    struct cudaDeviceProp p;
    rc = cudaGetDeviceProperties(&p, c->device);
    if (rc == cudaSuccess && p.major < OLDEST_MAJOR)
        return err_set(e, ERR_DEVICE,
                       "cuda:%d: %s has compute capability %d.%d, and this build needs %d.0 or "
                       "newer: use --device cpu",
                       c->device, p.name, p.major, p.minor, OLDEST_MAJOR);
    if (rc == cudaSuccess)
        rc = cudaSetDevice(c->device);
    if (rc != cudaSuccess)
        return err_set(e, ERR_DEVICE, "cuda:%d: %s: use --device cpu", c->device,
                       cudaGetErrorString(rc));
    snprintf(c->name, sizeof c->name, "%.60s", p.name);
    c->processors = p.multiProcessorCount;
    c->shared_most = (size_t)p.sharedMemPerBlockOptin;
    return OK;
}

static int start_device(struct cuda *c, struct err *e)
{
    void *ring = NULL, *host = NULL, *small = NULL;
    cudaError_t rc = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (rc == cudaSuccess)
        rc = cudaMallocHost(&host, CUDA_RING);
    c->ring_host = (unsigned char *)host;
    if (rc == cudaSuccess)
        rc = cudaMallocHost(&small, CUDA_SMALL);
    c->small_host = (unsigned char *)small;
    if (rc == cudaSuccess)
        rc = cudaMalloc(&ring, CUDA_RING);
    c->ring = (unsigned char *)ring;
    if (rc == cudaErrorMemoryAllocation)
        return cuda_no_memory(c, CUDA_RING, "the first buffers", e);
    if (rc != cudaSuccess)
        return err_set(e, ERR_DEVICE, "cuda:%d: %s: use --device cpu", c->device,
                       cudaGetErrorString(rc));
    /* Without it prefill is slower, and describe says so; calibration adds on the host. */
    if (!cuda_blas_open(&c->blas, c->stream))
        c->base.algebra = &cuda_algebra_ops;
    return OK;
}

static int cuda_open(struct backend **out, const struct backend_options *opt, struct err *e)
{
    struct cuda *c = (struct cuda *)mem_calloc(1, sizeof *c);
    if (!c)
        return err_nomem(e, sizeof *c, "the CUDA backend");
    c->base.ops = &cuda_backend_ops;
    c->device = opt->device;
    c->exact = opt->exact;
    cuda_solver_init(&c->solver);
    linalg_init();
    int rc = find_device(c, e);
    if (!rc)
        rc =
            pool_new(&c->base.pool, opt->threads ? opt->threads : pool_cores(), opt->background, e);
    if (!rc)
        rc = start_device(c, e);
    if (rc) {
        cuda_close(&c->base);
        return rc;
    }
    *out = &c->base;
    return OK;
}

static void cuda_describe(const struct backend *b, char *text, size_t size)
{
    const struct cuda *c = (const struct cuda *)b;
    size_t free_bytes = 0, all = 0;
    cudaMemGetInfo(&free_bytes, &all);
    int n = snprintf(text, size, "cuda:%d %s, %.1f of %.1f GiB free%s", c->device, c->name,
                     (double)free_bytes / 1073741824, (double)all / 1073741824,
                     c->blas.handle ? "" : ", without cuBLAS");
    if (c->streamed.weights && n > 0 && (size_t)n < size)
        n += snprintf(text + n, size - (size_t)n, ", streams %.1f GiB of weights",
                      (double)c->streamed.weights / 1073741824);
    else if (c->no_steps && n > 0 && (size_t)n < size)
        snprintf(text + n, size - (size_t)n, ", no graphs: %s", c->no_steps);
}

extern "C" const struct backend_ops cuda_backend_ops = {
    .name = "cuda",
    .caches = 1u << DTYPE_F32 | 1u << DTYPE_F16,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .put = cuda_put,
    .get = cuda_get,
    .sync = cuda_sync,
    .weight_load = cuda_weight_load,
    .weight_free = cuda_weight_free,
    .embed = cuda_embed,
    .linear = cuda_linear,
    .rms_norm = cuda_rms_norm,
    .rope = cuda_rope,
    .store = cuda_store,
    .attn_gqa = cuda_attn_gqa,
    .attn_mla = cuda_attn_mla,
    .mla_absorb = cuda_mla_absorb,
    .mla_expand = cuda_mla_expand,
    .glu = cuda_glu,
    .add = cuda_add,
    .head_norm = cuda_head_norm,
    .add_bias = cuda_add_bias,
    .scale = cuda_scale,
    .softcap = cuda_softcap,
    .take_rows = cuda_take_rows,
    .add_rows = cuda_add_rows,
    .place = cuda_place,
    .mla_step = NULL,
    .glu_linear = cuda_glu_linear,
    .outer = NULL,
    .step_begin = cuda_step_begin,
    .step_end = cuda_step_end,
    .step_free = cuda_step_free,
};
