/* Large symmetric eigenproblems on the device: cuSOLVER's divide and conquer in fp64, opened at run
 * time; under emulation LAPACK behind the same steps. Without the library, or without the memory,
 * the host solves them; a matrix that does not converge is refused.
 *
 * Which ones. A layer is solved in fp64 by one host thread, all layers independently, so a host of
 * C cores does C problems at once: of n = 2048 (Llama-3-8B and 70B: keys and values of a layer are
 * 2048 wide) one a second and core as measured here with OpenBLAS, of n = 4096 (Llama-2-7B) one in
 * 8.8 s. The device solves one after the other; tridiagonal reduction is half matrix-vector
 * products and bound by memory: 8·n³/3 bytes, 7 ms, 55 ms and 440 ms of an H100's bandwidth for n =
 * 2048, 4096 and 8192, and launches of n columns (5 µs each and more) and the back-transformation
 * make several times that of the small ones: about 0.2, 0.7 and 4 s are to be expected. With 16
 * cores the host thus wins at 2048 (0.06 s a problem), and is even with the device at 4096 (0.55
 * s); from 3072 on the device takes them, which leaves the cores to the refits (solve_spd of r ≤
 * 1024 and products of d rows: milliseconds each, by the dozen, not worth a copy) and to the
 * phases. Metrics of a head or of all key heads (n = d, G·d ≤ 1024) stay on the host for the same
 * reason, so there is nothing to batch. By size only: results do not depend on who was free. Whole
 * conversions, eigenproblems alone: 8B 32 layers · 3 of ≤ 2048 on 16 cores 5 s, 7B 32 on the device
 * 22 s, 70B 80 layers 13 s on the host. None of it measured on a device. */
#include "kernels/cuda.h"

#include <stdlib.h>
#include <string.h>

extern "C" int linalg_eigh(int n, double *a, double *w, struct err *e);

#ifdef CUDA_EMULATE
#include <lapacke.h>

static bool open_solver(struct cuda_solver *s)
{
    s->handle = s;
    return true;
}

void cuda_solver_close(struct cuda_solver *s)
{
    s->handle = NULL;
    pthread_mutex_destroy(&s->lock);
}

static bool work_sizes(struct cuda_solver *s, int n, double *a, double *w, size_t *device,
                       size_t *host)
{
    (void)s, (void)n, (void)a, (void)w;
    *device = 64, *host = 0;
    return true;
}

static bool solve(struct cuda_solver *s, int n, double *a, double *w, void *device,
                  size_t device_bytes, void *host, size_t host_bytes, int *info)
{
    (void)s, (void)device, (void)device_bytes, (void)host, (void)host_bytes;
    emu_begin();
    emu_catch_up();
    *info = (int)LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'L', n, a, n, w);
    emu_check_guards();
    emu_end();
    return true;
}
#else
#include <cusolverDn.h>
#include <dlfcn.h>
#include <stdio.h>

typedef cusolverStatus_t (*size_function)(cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t,
                                          cublasFillMode_t, int64_t, cudaDataType, const void *,
                                          int64_t, cudaDataType, const void *, cudaDataType,
                                          size_t *, size_t *);
typedef cusolverStatus_t (*syevd_function)(cusolverDnHandle_t, cusolverDnParams_t,
                                           cusolverEigMode_t, cublasFillMode_t, int64_t,
                                           cudaDataType, void *, int64_t, cudaDataType, void *,
                                           cudaDataType, void *, size_t, void *, size_t, int *);

static bool open_solver(struct cuda_solver *s)
{
    char name[32];
    if (s->tried)
        return s->handle;
    s->tried = true;
    snprintf(name, sizeof name, "libcusolver.so.%d", CUSOLVER_VER_MAJOR);
    s->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!s->library)
        return false;
    auto create = (cusolverStatus_t(*)(cusolverDnHandle_t *))dlsym(s->library, "cusolverDnCreate");
    auto params =
        (cusolverStatus_t(*)(cusolverDnParams_t *))dlsym(s->library, "cusolverDnCreateParams");
    auto set = (cusolverStatus_t(*)(cusolverDnHandle_t, cudaStream_t))dlsym(s->library,
                                                                            "cusolverDnSetStream");
    s->size = dlsym(s->library, "cusolverDnXsyevd_bufferSize");
    s->syevd = dlsym(s->library, "cusolverDnXsyevd");
    cusolverDnHandle_t handle = NULL;
    cusolverDnParams_t p = NULL;
    if (!create || !params || !set || !s->size || !s->syevd ||
        create(&handle) != CUSOLVER_STATUS_SUCCESS)
        return false;
    if (params(&p) == CUSOLVER_STATUS_SUCCESS && set(handle, s->stream) == CUSOLVER_STATUS_SUCCESS)
        s->handle = handle;
    s->params = p;
    return s->handle;
}

void cuda_solver_close(struct cuda_solver *s)
{
    if (s->library) {
        auto params =
            (cusolverStatus_t(*)(cusolverDnParams_t))dlsym(s->library, "cusolverDnDestroyParams");
        auto handle =
            (cusolverStatus_t(*)(cusolverDnHandle_t))dlsym(s->library, "cusolverDnDestroy");
        if (s->params && params)
            params((cusolverDnParams_t)s->params);
        if (s->handle && handle)
            handle((cusolverDnHandle_t)s->handle);
        dlclose(s->library);
    }
    if (s->stream)
        cudaStreamDestroy(s->stream);
    pthread_mutex_destroy(&s->lock);
}

static bool work_sizes(struct cuda_solver *s, int n, double *a, double *w, size_t *device,
                       size_t *host)
{
    return ((size_function)s->size)((cusolverDnHandle_t)s->handle, (cusolverDnParams_t)s->params,
                                    CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n, CUDA_R_64F,
                                    a, n, CUDA_R_64F, w, CUDA_R_64F, device,
                                    host) == CUSOLVER_STATUS_SUCCESS;
}

static bool solve(struct cuda_solver *s, int n, double *a, double *w, void *device,
                  size_t device_bytes, void *host, size_t host_bytes, int *info)
{
    int *at = (int *)((char *)device + device_bytes - 64); /* the last 64 bytes are the result's */
    bool ok =
        ((syevd_function)s->syevd)((cusolverDnHandle_t)s->handle, (cusolverDnParams_t)s->params,
                                   CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n, CUDA_R_64F,
                                   a, n, CUDA_R_64F, w, CUDA_R_64F, device, device_bytes - 64, host,
                                   host_bytes, at) == CUSOLVER_STATUS_SUCCESS;
    return ok &&
           cudaMemcpyAsync(info, at, sizeof *info, cudaMemcpyDeviceToHost, s->stream) ==
               cudaSuccess &&
           cudaStreamSynchronize(s->stream) == cudaSuccess;
}
#endif

void cuda_solver_init(struct cuda_solver *s)
{
    pthread_mutex_init(&s->lock, NULL);
}

/* Numbers to and fro around the solver. 1: the host must do it, a is as it was; 2: a is lost. */
static int on_device(struct cuda *c, int n, double *a, double *w, int *info)
{
    struct cuda_solver *s = &c->solver;
    size_t nn = (size_t)n * (size_t)n * sizeof *a, device = 0, bytes = 0;
    void *da = NULL, *dw = NULL, *work = NULL, *host = NULL;
    bool ok = cudaSetDevice(c->device) == cudaSuccess;
    if (ok && !s->stream)
        ok = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking) == cudaSuccess;
    ok = ok && open_solver(s) && cudaMalloc(&da, nn) == cudaSuccess &&
         cudaMalloc(&dw, (size_t)n * sizeof *w) == cudaSuccess &&
         cudaMemcpyAsync(da, a, nn, cudaMemcpyHostToDevice, s->stream) == cudaSuccess &&
         work_sizes(s, n, (double *)da, (double *)dw, &device, &bytes);
    device = ((device + 63) & ~(size_t)63) + 64;
    ok = ok && cudaMalloc(&work, device) == cudaSuccess && (!bytes || (host = malloc(bytes)));
    ok = ok && solve(s, n, (double *)da, (double *)dw, work, device, host, bytes, info);
    int rc = ok ? OK : 1;
    if (ok && *info == 0 &&
        (cudaMemcpyAsync(w, dw, (size_t)n * sizeof *w, cudaMemcpyDeviceToHost, s->stream) ||
         cudaMemcpyAsync(a, da, nn, cudaMemcpyDeviceToHost, s->stream) ||
         cudaStreamSynchronize(s->stream)))
        rc = 2;
    cudaFree(da);
    cudaFree(dw);
    cudaFree(work);
    free(host);
    return rc;
}

int cuda_eigh(struct backend *b, int n, double *a, double *w, struct err *e)
{
    struct cuda *c = (struct cuda *)b;
    int info = 0;
    pthread_mutex_lock(&c->solver.lock);
    int rc = on_device(c, n, a, w, &info);
    pthread_mutex_unlock(&c->solver.lock);
    if (rc == 1) {
        cudaGetLastError();
        return linalg_eigh(n, a, w, e);
    }
    if (rc)
        return err_set(e, ERR_DEVICE, "cuda:%d: lost an eigenproblem: restart with --device cpu",
                       c->device);
    return info ? err_set(e, ERR_NUMERIC,
                          "cuSOLVER failed (info %d) on a %d × %d matrix: NaN or singular", info, n,
                          n)
                : OK;
}
