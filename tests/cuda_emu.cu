/* The emulator itself: right kernels run in both orders of threads, and deliberately broken ones
 * are caught, by a fault or by numbers that come out wrong. Then the backend's sentences for
 * machines that cannot run it. */
#include "kernels/cuda.h"

#include <stdio.h>
#include <string.h>

extern "C" {
#include "tests/support.h"
}

enum { N = 100, THREADS = 64 };

enum flaw { NONE, NO_BARRIER, NO_LAST_BARRIER, SPLIT_BARRIER, LEAVES, LANES, TAIL, BESIDE };

/* y[i] = x[i] + the next number of its block of 64 (round about), by way of shared memory, which a
 * second round then overwrites. */
static __global__ void shift_kernel(float *y, const float *x, int n, enum flaw flaw)
{
    SHARED(float, part, THREADS);
    int tid = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + tid;
    if (flaw == LEAVES && i >= n)
        return;
    for (int round = 0; round < 2; round++) {
        part[tid] = i < n ? x[i] + (float)round : 0;
        if (flaw == BESIDE && tid == THREADS - 1)
            part[THREADS] = 0;
        if (flaw == SPLIT_BARRIER && tid % 2)
            __syncthreads();
        else if (flaw != NO_BARRIER)
            __syncthreads();
        float next = part[(tid + 1) % THREADS];
        if (round == 0 && (i < n || (flaw == TAIL && i == n)))
            y[i] = (i < n ? x[i] : 0) + next;
        if (flaw != NO_LAST_BARRIER)
            __syncthreads();
    }
}

/* y[0] = sum of a block's x. */
static __global__ void sum_kernel(float *y, const float *x, enum flaw flaw)
{
    float v = x[threadIdx.x];
    for (int other = 16; other; other /= 2)
        if (flaw != LANES || threadIdx.x % 32 != 5)
            v += __shfl_xor_sync(~0u, v, other);
    if (threadIdx.x % 32 == 0)
        y[threadIdx.x / 32] = v;
}

/* Runs a flaw in both orders: true when the machine or the numbers tell. */
static bool told(enum flaw flaw, char *how, size_t size)
{
    bool wrong = false, fault = false;
    for (int order = 0; order < 2; order++) {
        float x[N], y[N], sums[2];
        void *dx, *dy;
        emu.backwards = order;
        emu.broken = false;
        emu.fault[0] = 0;
        for (int i = 0; i < N; i++)
            x[i] = (float)(i % 17);
        cudaMalloc(&dx, sizeof x);
        cudaMalloc(&dy, sizeof y);
        cudaMemcpyAsync(dx, x, sizeof x, cudaMemcpyHostToDevice, NULL);
        float *to = (float *)dy;
        const float *from = (const float *)dx;
        if (flaw == LANES)
            LAUNCH(sum_kernel, 1, THREADS, 0, NULL, to, from, flaw);
        else
            LAUNCH(shift_kernel, (N + THREADS - 1) / THREADS, THREADS, 0, NULL, to, from, N, flaw);
        if (flaw == NONE && !emu.broken) {
            LAUNCH(sum_kernel, 1, THREADS, 0, NULL, (float *)dx, (const float *)dy, flaw);
            cudaMemcpyAsync(sums, dx, sizeof sums, cudaMemcpyDeviceToHost, NULL);
        }
        fault = fault || cudaGetLastError() != cudaSuccess;
        cudaMemcpyAsync(y, dy, sizeof y, cudaMemcpyDeviceToHost, NULL);
        float sum = 0;
        for (int i = 0; i < N; i++) {
            int at = i % THREADS == THREADS - 1 ? i - i % THREADS : i + 1;
            float want = x[i] + (at < N ? x[at] : 0);
            wrong = wrong || !(y[i] == want);
            sum += i < 32 ? want : 0;
        }
        if (flaw == NONE)
            wrong = wrong || sums[0] != sum;
        cudaFree(dx);
        cudaFree(dy);
        if (emu.fault[0])
            snprintf(how, size, "%s", emu.fault);
    }
    if (!fault && wrong)
        snprintf(how, size, "wrong numbers");
    emu.backwards = emu.broken = false;
    return fault || wrong;
}

static void test_flaws(void)
{
    static const struct {
        enum flaw flaw;
        const char *name, *word;
    } all[] = {
        {NO_BARRIER, "missing barrier", "wrong"},
        {NO_LAST_BARRIER, "missing last barrier", "wrong"},
        {SPLIT_BARRIER, "two barriers", "different barriers"},
        {LEAVES, "a thread leaves early", "left"},
        {LANES, "a lane misses a shuffle", "shuffle"},
        {TAIL, "off by one at the tail", "allocation"},
        {BESIDE, "off by one in shared memory", "shared array"},
    };
    char how[256] = "";
    CHECK(!told(NONE, how, sizeof how), "a right kernel: %s", how);
    for (const auto &f : all) {
        how[0] = 0;
        bool caught = told(f.flaw, how, sizeof how);
        printf("%s: %s\n", f.name, how);
        CHECK(caught && strstr(how, f.word), "%s: %s", f.name, how);
    }
}

static void refused(const char *device, int status, const char *word)
{
    struct err e = {};
    struct backend *b = NULL;
    struct backend_options opt = {};
    opt.threads = 1;
    int rc = backend_open(&b, device, &opt, &e);
    CHECK(rc == status && !b, "%s: status %d", device, rc);
    CHECK(strstr(e.text, word) && !strchr(e.text, '\n'), "%s: %s", device, e.text);
    backend_close(b);
}

static void test_refusals(void)
{
    struct err e = {};
    struct backend *b = NULL;
    struct backend_options opt = {};
    opt.threads = 1;
    emu.driver = false;
    refused("cuda", ERR_DEVICE, "driver is not installed");
    CHECK_OK(backend_open(&b, "auto", &opt, &e), e);
    CHECK(b && !strcmp(b->ops->name, "cpu") && strstr(b->note, "driver"), "auto without a driver");
    backend_close(b);
    emu.driver = true;
    refused("cuda:2", ERR_DEVICE, "this machine has 2");
    refused("cuda:", ERR_ARG, "cuda:N");
    refused("cuda:1x", ERR_ARG, "cuda:N");
    refused("cudax", ERR_ARG, "cuda:N");
    int devices = emu.devices;
    emu.devices = 0;
    refused("cuda", ERR_DEVICE, "no CUDA device");
    emu.devices = devices;
    emu.major = 7, emu.minor = 5;
    refused("cuda:1", ERR_DEVICE, "capability 7.5");
    emu.major = 9, emu.minor = 0;
    size_t memory = emu.memory;
    emu.memory = 1 << 20;
    refused("cuda", ERR_NOMEM, "MiB free");
    emu.memory = 8 << 20;
    b = NULL;
    CHECK_OK(backend_open(&b, "auto", &opt, &e), e);
    CHECK(b && !strcmp(b->ops->name, "cuda"), "auto with a device");
    if (b) {
        char *data = (char *)calloc(5, 1 << 20);
        struct matrix m = {data, DTYPE_Q8_0, 5 * 4096, 224};
        struct weight *w = NULL;
        CHECK(b->ops->weight_load(b, &m, &w, NULL, &e) == ERR_NOMEM && !w, "weight beyond memory");
        CHECK(strstr(e.text, "MiB needed"), "%s", e.text);
        CHECK(!b->ops->alloc(b, 64 << 20), "memory beyond memory");
        CHECK_OK(b->ops->sync(b, &e), e); /* told by return values, not latched */
        free(data);
    }
    backend_close(b);
    emu.memory = memory;
    CHECK(emu.n_blocks == 0, "%d device allocations left", emu.n_blocks);
}

int main(void)
{
    test_flaws();
    test_refusals();
    return test_end("cuda_emu");
}
