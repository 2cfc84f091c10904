/* Large symmetric eigenproblems and least squares on the device: cuSOLVER's divide and conquer and
 * its Cholesky factor, with cuBLAS's triangular solves behind it, in fp64, opened at run time;
 * under emulation LAPACK behind the same steps. Without the library, or without the memory, the
 * host solves them; a matrix that does not converge is refused.
 *
 * Which ones. The refit of an output projection is one solve a layer of n = H·d unknowns and D
 * right sides, n³/3 + 2·n²·D FLOPs in fp64 and 8·(n² + 2·n·D) bytes over the link: Llama-3-8B and
 * Llama-2-7B 1.6e11 and 0.4 GB, 5 ms at 30 TFLOP/s and 30 ms at 13 GB/s of pageable memory, where
 * two host cores take 2 s and 16 of them 0.3 s; 70B 1.3e12 and 1.6 GB, 0.16 s. From 1024 on they go
 * there; 8B 1 s, 7B 1 s, 70B 13 s for all layers.
 *
 * Eigenproblems. A layer is solved in fp64 by one host thread, all layers independently, so a host
 * of C cores does C problems at once: of n = 2048 (Llama-3-8B and 70B: keys and values of a layer
 * are 2048 wide) one a second and core as measured here with OpenBLAS, of n = 4096 (Llama-2-7B) one
 * in 8.8 s. The device solves one after the other; tridiagonal reduction is half matrix-vector
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
extern "C" int linalg_solve_spd(int n, int m, double *a, double *b, struct err *e);

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
    cuda_blas_close(&s->blas);
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
    emu_library([&] { *info = (int)LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'L', n, a, n, w); });
    return true;
}

static bool factor_sizes(struct cuda_solver *s, int n, double *a, size_t *device, size_t *host)
{
    (void)s, (void)n, (void)a;
    *device = *host = 0;
    return true;
}

static bool factor(struct cuda_solver *s, int n, double *a, void *device, size_t device_bytes,
                   void *host, size_t host_bytes, int *info)
{
    (void)s, (void)device, (void)device_bytes, (void)host, (void)host_bytes;
    emu_library([&] { *info = (int)LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'L', n, a, n); });
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

typedef cusolverStatus_t (*factor_size_function)(cusolverDnHandle_t, cusolverDnParams_t,
                                                 cublasFillMode_t, int64_t, cudaDataType,
                                                 const void *, int64_t, cudaDataType, size_t *,
                                                 size_t *);
typedef cusolverStatus_t (*potrf_function)(cusolverDnHandle_t, cusolverDnParams_t, cublasFillMode_t,
                                           int64_t, cudaDataType, void *, int64_t, cudaDataType,
                                           void *, size_t, void *, size_t, int *);

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
    s->factor_size = dlsym(s->library, "cusolverDnXpotrf_bufferSize");
    s->potrf = dlsym(s->library, "cusolverDnXpotrf");
    cusolverDnHandle_t handle = NULL;
    cusolverDnParams_t p = NULL;
    if (!create || !params || !set || !s->size || !s->syevd || !s->factor_size || !s->potrf ||
        create(&handle) != CUSOLVER_STATUS_SUCCESS)
        return false;
    if (params(&p) == CUSOLVER_STATUS_SUCCESS && set(handle, s->stream) == CUSOLVER_STATUS_SUCCESS)
        s->handle = handle;
    s->params = p;
    return s->handle;
}

void cuda_solver_close(struct cuda_solver *s)
{
    cuda_blas_close(&s->blas);
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

/* What a solver left at the device's end of its work area. */
static bool read_info(struct cuda_solver *s, int *info, const int *at)
{
    return cudaMemcpyAsync(info, at, sizeof *info, cudaMemcpyDeviceToHost, s->stream) ==
               cudaSuccess &&
           cudaStreamSynchronize(s->stream) == cudaSuccess;
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
    return ok && read_info(s, info, at);
}

static bool factor_sizes(struct cuda_solver *s, int n, double *a, size_t *device, size_t *host)
{
    return ((factor_size_function)s->factor_size)(
               (cusolverDnHandle_t)s->handle, (cusolverDnParams_t)s->params, CUBLAS_FILL_MODE_LOWER,
               n, CUDA_R_64F, a, n, CUDA_R_64F, device, host) == CUSOLVER_STATUS_SUCCESS;
}

static bool factor(struct cuda_solver *s, int n, double *a, void *device, size_t device_bytes,
                   void *host, size_t host_bytes, int *info)
{
    int *at = (int *)((char *)device + device_bytes - 64);
    bool ok = ((potrf_function)s->potrf)((cusolverDnHandle_t)s->handle,
                                         (cusolverDnParams_t)s->params, CUBLAS_FILL_MODE_LOWER, n,
                                         CUDA_R_64F, a, n, CUDA_R_64F, device, device_bytes - 64,
                                         host, host_bytes, at) == CUSOLVER_STATUS_SUCCESS;
    return ok && read_info(s, info, at);
}
#endif

void cuda_solver_init(struct cuda_solver *s)
{
    pthread_mutex_init(&s->lock, NULL);
}

/* One problem's memory: a and x (or the eigenvalues) there, and the solver's work areas. */
struct problem {
    double *a, *x;
    size_t a_bytes, x_bytes;
    void *device, *host;
    size_t device_bytes, host_bytes;
};

static bool room(struct cuda *c, struct problem *p, int n, size_t x_numbers)
{
    struct cuda_solver *s = &c->solver;
    void *a = NULL, *x = NULL;
    *p = {};
    p->a_bytes = (size_t)n * (size_t)n * sizeof *p->a;
    p->x_bytes = x_numbers * sizeof *p->x;
    bool ok = cudaSetDevice(c->device) == cudaSuccess;
    if (ok && !s->stream)
        ok = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking) == cudaSuccess;
    ok = ok && open_solver(s) && cudaMalloc(&a, p->a_bytes) == cudaSuccess &&
         cudaMalloc(&x, p->x_bytes) == cudaSuccess;
    p->a = (double *)a;
    p->x = (double *)x;
    return ok;
}

static bool work_area(struct problem *p)
{
    p->device_bytes = ((p->device_bytes + 63) & ~(size_t)63) + 64;
    return cudaMalloc(&p->device, p->device_bytes) == cudaSuccess &&
           (!p->host_bytes || (p->host = malloc(p->host_bytes)));
}

static void problem_done(struct problem *p)
{
    cudaFree(p->a);
    cudaFree(p->x);
    cudaFree(p->device);
    free(p->host);
}

static bool up(struct cuda_solver *s, double *to, const double *from, size_t bytes)
{
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, s->stream) == cudaSuccess;
}

static bool down(struct cuda_solver *s, double *to, const double *from, size_t bytes)
{
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, s->stream) == cudaSuccess &&
           cudaStreamSynchronize(s->stream) == cudaSuccess;
}

/* What became of a problem there: UNDONE leaves it to the host, with its numbers as they were. */
enum outcome { DONE, UNDONE, LOST };

static enum outcome eigh_there(struct cuda *c, int n, double *a, double *w, int *info)
{
    struct cuda_solver *s = &c->solver;
    struct problem p;
    bool ok = room(c, &p, n, (size_t)n) && up(s, p.a, a, p.a_bytes) &&
              work_sizes(s, n, p.a, p.x, &p.device_bytes, &p.host_bytes) && work_area(&p) &&
              solve(s, n, p.a, p.x, p.device, p.device_bytes, p.host, p.host_bytes, info);
    enum outcome rc = ok ? DONE : UNDONE;
    if (ok && *info == 0 && !(down(s, w, p.x, p.x_bytes) && down(s, a, p.a, p.a_bytes)))
        rc = LOST;
    problem_done(&p);
    return rc;
}

static enum outcome spd_there(struct cuda *c, int n, int m, const double *a, double *x, int *info)
{
    struct cuda_solver *s = &c->solver;
    struct problem p;
    bool ok = room(c, &p, n, (size_t)n * (size_t)m);
    if (ok && !s->blas.handle)
        ok = !cuda_blas_open(&s->blas, s->stream);
    ok = ok && up(s, p.a, a, p.a_bytes) && up(s, p.x, x, p.x_bytes) &&
         factor_sizes(s, n, p.a, &p.device_bytes, &p.host_bytes) && work_area(&p) &&
         factor(s, n, p.a, p.device, p.device_bytes, p.host, p.host_bytes, info);
    if (ok && *info == 0)
        ok = !cuda_blas_back(&s->blas, n, m, p.a, p.x);
    enum outcome rc = ok ? DONE : UNDONE;
    if (ok && *info == 0 && !down(s, x, p.x, p.x_bytes))
        rc = LOST;
    problem_done(&p);
    return rc;
}

static int lost(struct cuda *c, struct err *e)
{
    return err_set(e, ERR_DEVICE, "cuda:%d: lost a linear problem: restart with --device cpu",
                   c->device);
}

int cuda_eigh(struct backend *b, int n, double *a, double *w, struct err *e)
{
    struct cuda *c = (struct cuda *)b;
    int info = 0;
    pthread_mutex_lock(&c->solver.lock);
    enum outcome rc = eigh_there(c, n, a, w, &info);
    pthread_mutex_unlock(&c->solver.lock);
    if (rc == UNDONE) {
        cudaGetLastError();
        return linalg_eigh(n, a, w, e);
    }
    if (rc == LOST)
        return lost(c, e);
    return info ? err_set(e, ERR_NUMERIC,
                          "cuSOLVER failed (info %d) on a %d × %d matrix: NaN or singular", info, n,
                          n)
                : OK;
}

/* A matrix that is not positive definite goes to the host too, which says so in its own words. */
int cuda_solve_spd(struct backend *b, int n, int m, double *a, double *x, struct err *e)
{
    struct cuda *c = (struct cuda *)b;
    int info = 0;
    pthread_mutex_lock(&c->solver.lock);
    enum outcome rc = spd_there(c, n, m, a, x, &info);
    pthread_mutex_unlock(&c->solver.lock);
    if (rc == LOST)
        return lost(c, e);
    if (rc == UNDONE)
        cudaGetLastError();
    return rc == UNDONE || info ? linalg_solve_spd(n, m, a, x, e) : OK;
}
