/* The emulator itself: right kernels run in both orders of threads, and deliberately broken ones
 * are caught, by a fault or by numbers that come out wrong. Then the backend's sentences for
 * machines that cannot run it, and a device that is lost in the middle of a job. */
#include "kernels/cuda.h"

#include <stdio.h>
#include <string.h>

extern "C" {
#include "sessions/jobs.h"
#include "sessions/workspace_device.h"
#include "tests/support.h"
#include "tests/support_models.h"
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

/* Without the event that says when a pinned buffer may be filled again, the second bytes arrive
 * twice; with it each copy brings its own. */
static void test_pinned(void)
{
    void *host, *dx;
    cudaEvent_t taken;
    for (int waits = 0; waits < 2; waits++) {
        char got[2] = {};
        cudaMallocHost(&host, 1);
        cudaMalloc(&dx, 2);
        cudaEventCreateWithFlags(&taken, cudaEventDisableTiming);
        for (int i = 0; i < 2; i++) {
            if (waits)
                cudaEventSynchronize(taken);
            *(char *)host = (char)('a' + i);
            cudaMemcpyAsync((char *)dx + i, host, 1, cudaMemcpyHostToDevice, NULL);
            cudaEventRecord(taken, NULL);
        }
        cudaMemcpyAsync(got, dx, 2, cudaMemcpyDeviceToHost, NULL);
        CHECK(got[0] == (waits ? 'a' : 'b') && got[1] == 'b', "%d: %.2s", waits, got);
        cudaEventDestroy(taken);
        cudaFree(dx);
        cudaFreeHost(host);
    }
}

static struct backend *open_device(size_t memory, struct err *e)
{
    struct backend *b = NULL;
    struct backend_options opt = {};
    opt.threads = 2;
    emu.memory = memory;
    CHECK_OK(backend_open(&b, "cuda", &opt, e), *e);
    return b;
}

/* y = w x of three weights in turn, on a device that holds them all, or one and a half: they come
 * by turns then, and the numbers are the same to the bit. Also embeddings, and a format that is
 * widened on the way. */
static void test_streaming(void)
{
    enum { ROWS = 4096, COLS = 512, N = 3, T = 2 };
    struct err e = {};
    size_t n = (size_t)ROWS * COLS, memory = emu.memory;
    float *x = (float *)calloc(n, sizeof *x), *y[2];
    void *data[N];
    uint64_t seed = 5;
    static const enum dtype types[N] = {DTYPE_Q8_0, DTYPE_BF16, DTYPE_Q4_0};
    for (int i = 0; i < N; i++) {
        for (size_t j = 0; j < n; j++)
            x[j] = (float)(test_uniform(&seed) - 0.5);
        data[i] = calloc(dtype_bytes(types[i], n), 1);
        dtype_from_f32(types[i], x, data[i], n);
    }
    for (int small = 0; small < 2; small++) {
        struct backend *b = open_device((size_t)(small ? 11 : 64) << 20, &e);
        struct weight *w[N] = {};
        size_t owned = 0, sum = 0;
        char text[256];
        y[small] = (float *)calloc((size_t)(2 * N * ROWS + COLS) * T, sizeof(float));
        if (!b)
            continue;
        for (int i = 0; i < N; i++) {
            struct matrix m = {data[i], types[i], ROWS, COLS};
            CHECK_OK(b->ops->weight_load(b, &m, &w[i], &owned, &e), e);
            sum += owned;
        }
        b->ops->describe(b, text, sizeof text);
        CHECK(!!strstr(text, "streams") == small, "%s", text);
        CHECK((sum < 6u << 20) == small, "%zu bytes are the device's own", sum);
        float *dx = (float *)b->ops->alloc(b, COLS * T * sizeof *x);
        float *dy = (float *)b->ops->alloc(b, ROWS * T * sizeof *x);
        b->ops->put(b, dx, x, COLS * T * sizeof *x);
        for (int i = 0; i < 2 * N; i++) {
            const struct weight *one[] = {w[i % N]};
            b->ops->linear(b, 1, one, &dy, dx, T, false);
            b->ops->get(b, y[small] + (size_t)i * ROWS * T, dy, ROWS * T * sizeof *x);
        }
        const int32_t ids[T] = {ROWS - 1, 7};
        b->ops->embed(b, dx, w[1], ids, T);
        b->ops->get(b, y[small] + (size_t)2 * N * ROWS * T, dx, COLS * T * sizeof *x);
        CHECK_OK(b->ops->sync(b, &e), e);
        b->ops->free(b, dx), b->ops->free(b, dy);
        for (int i = 0; i < N; i++)
            b->ops->weight_free(b, w[i]);
        backend_close(b);
    }
    CHECK(!memcmp(y[0], y[1], (size_t)(2 * N * ROWS + COLS) * T * sizeof(float)),
          "streamed weights are the same weights");
    emu.memory = memory;
    for (int i = 0; i < N; i++)
        free(data[i]);
    free(x), free(y[0]), free(y[1]);
    CHECK(emu.n_blocks == 0, "%d device allocations left", emu.n_blocks);
}

/* Attention of wide latents with as much shared memory as devices of 9.0, 8.0 and 12.0 have: one
 * buffer or two, the same numbers to the bit. */
static void test_shared_memory(void)
{
    enum { H = 20, R = 64, L = 512, KEYS = 150, N = KEYS * (L + R), Q = H * (L + R) };
    static const size_t most[] = {227 << 10, 163 << 10, 99 << 10};
    struct err e = {};
    uint64_t seed = 4;
    float *x = (float *)calloc(Q, sizeof *x), *y = (float *)calloc(3 * H * L, sizeof *y);
    uint16_t *cache = (uint16_t *)calloc(N, sizeof *cache);
    for (int i = 0; i < Q; i++)
        x[i] = (float)test_normal(&seed);
    for (int i = 0; i < N; i++)
        cache[i] = f32_to_f16((float)test_normal(&seed));
    for (int i = 0; i < 3; i++) {
        emu.shared_most = most[i];
        struct backend *b = open_device(emu.memory, &e);
        struct attn_mla_args a = {};
        float *q = (float *)b->ops->alloc(b, Q * sizeof *q);
        a.out = (float *)b->ops->alloc(b, H * L * sizeof *y);
        void *there = b->ops->alloc(b, N * sizeof *cache);
        b->ops->put(b, q, x, Q * sizeof *q);
        b->ops->put(b, there, cache, N * sizeof *cache);
        a.q_lat = q, a.q_rope = q + H * L, a.cache = there;
        a.kv = DTYPE_F16, a.T = 1, a.past = KEYS - 1, a.H = H, a.r = L, a.R = R, a.scale = 0.05f;
        b->ops->attn_mla(b, &a);
        b->ops->get(b, y + i * H * L, a.out, H * L * sizeof *y);
        CHECK_OK(b->ops->sync(b, &e), e);
        b->ops->free(b, q), b->ops->free(b, a.out), b->ops->free(b, there);
        backend_close(b);
        CHECK(!memcmp(y, y + i * H * L, H * L * sizeof *y), "%zu KiB of shared memory",
              most[i] >> 10);
    }
    emu.shared_most = EMU_SHARED;
    free(x), free(y), free(cache);
}

/* Two engines of models that share tensors keep one copy on the device. */
static void test_shared(const char *path)
{
    struct err e = {};
    struct model *m = NULL;
    struct engine *first = NULL, *second = NULL;
    struct backend *b = open_device(emu.memory, &e);
    CHECK_OK(model_open(&m, path, &e), e);
    if (!m || !b)
        return;
    CHECK_OK(engine_new(&first, m, b, NULL, &e), e);
    size_t one = emu.used;
    CHECK_OK(engine_new(&second, m, b, first, &e), e);
    /* norms are vectors, a copy each: 2 layers and the last of 64 numbers */
    CHECK(emu.used - one == 5 * 64 * sizeof(float), "%zu bytes more", emu.used - one);
    engine_free(second), engine_free(first);
    model_free(m);
    backend_close(b);
}

/* A model that does not fit the device that "auto" found runs on the CPU, and the line says why;
 * one that was asked for by name refuses. */
static void test_too_small(const char *model)
{
    struct err e = {};
    char text[512];
    size_t memory = emu.memory;
    emu.memory =
        (4 << 20) + (40 << 10); /* the backend's own buffers, and less than the embeddings */
    for (int named = 0; named < 2; named++) {
        struct workspace *w = NULL;
        struct workspace_options o = {};
        o.device = named ? "cuda" : "auto";
        o.threads = 1;
        CHECK_OK(workspace_new(&w, &o, &e), e);
        if (!w)
            continue;
        int rc = workspace_open(w, model, NULL, &e);
        workspace_describe(w, text, sizeof text);
        if (named)
            CHECK(rc == ERR_NOMEM && !workspace_is_open(w) && strstr(e.text, "MiB free"), "%d: %s",
                  rc, e.text);
        else
            CHECK(!rc && !strncmp(text, "cpu", 3) &&
                      strstr(workspace_device_note(w), "no memory for"),
                  "%s", text);
        workspace_free(w);
    }
    emu.memory = memory;
    CHECK(emu.n_blocks == 0, "%d device allocations left", emu.n_blocks);
}

/* Logits of a prompt and of steps behind it, and a prompt again after a rewind, with more rows than
 * before, so that scratch moves. */
static void decode(struct engine *g, enum dtype kv, float *out, size_t V)
{
    struct err e = {};
    struct infer *t = NULL;
    const int32_t ids[] = {70, 71, 3, 68, 69, 70, 71, 72, 66, 67, 65, 99};
    CHECK_OK(infer_new(&t, g, 30, kv, &e), e);
    if (!t)
        return;
    CHECK_OK(infer_prefill(t, ids, 4, INFER_LAST, out, NULL, &e), e);
    for (int i = 1; i <= 6; i++)
        CHECK_OK(infer_step(t, ids[i + 3], out + (size_t)i * V, &e), e);
    infer_rewind(t, 1);
    CHECK_OK(infer_prefill(t, ids, 12, INFER_LAST, out + 7 * V, NULL, &e), e);
    for (int i = 8; i < 13; i++)
        CHECK_OK(infer_step(t, ids[i - 7], out + (size_t)i * V, &e), e);
    infer_free(t);
}

/* Steps as graphs: the same logits to the bit as launches one by one, all steps but the first of
 * each stretch in one launch of one graph; where the driver captures nothing the line says so. */
static void test_steps(const char *path)
{
    struct err e = {};
    struct model *m = NULL;
    CHECK_OK(model_open(&m, path, &e), e);
    if (!m)
        return;
    size_t V = (size_t)m->hp.vocab, n = 13 * V;
    float *got = (float *)calloc(4 * n, sizeof *got);
    for (int plain = 0; plain < 2; plain++) {
        struct backend *b = open_device(emu.memory, &e);
        struct engine *g = NULL;
        char text[256];
        CHECK_OK(engine_new(&g, m, b, NULL, &e), e);
        long before = emu.replays;
        emu.no_graphs = plain;
        decode(g, DTYPE_F16, got + (size_t)plain * n, V);
        decode(g, DTYPE_F32, got + (size_t)(2 + plain) * n, V);
        /* the first step is plain; the others, and those behind the second prompt if nothing moved
         */
        long graphs = emu.replays - before;
        CHECK(plain ? !graphs : graphs >= 2 * 8 && graphs <= 2 * 10, "%ld graphs", graphs);
        b->ops->describe(b, text, sizeof text);
        CHECK(!!strstr(text, "no graphs: the driver") == plain, "%s", text);
        engine_free(g);
        backend_close(b);
        emu.no_graphs = false;
    }
    CHECK(!memcmp(got, got + n, n * sizeof *got), "F16: graphs and launches differ");
    CHECK(!memcmp(got + 2 * n, got + 3 * n, n * sizeof *got), "F32: graphs and launches differ");
    free(got);
    model_free(m);
    CHECK(emu.n_blocks == 0, "%d device allocations left", emu.n_blocks);
}

static int convert(struct workspace *w, struct err *e)
{
    struct model_info info;
    struct rankplan plan;
    workspace_info(w, &info);
    int rc = rankplan_init(&plan, &info.plan_model, e);
    if (!rc)
        rc = rankplan_uniform(&plan, 32, 8, e);
    if (!rc)
        rc = workspace_convert(w, &plan, NULL, NULL, NULL, e);
    rankplan_done(&plan);
    return rc;
}

/* Loses the device so many launches into the calibration (0) or the conversion (1): that job fails
 * and says so, and everything made before is there to start it again on the CPU. */
static void test_lost(const char *model, const char *text, int stage, long launches)
{
    struct err e = {};
    struct shop shop = {};
    struct workspace_options o = {};
    char device[256];
    o.device = "cuda:1";
    o.threads = 1;
    CHECK_OK(workspace_new(&shop.w, &o, &e), e);
    CHECK_OK(shop.w ? workspace_open(shop.w, model, NULL, &e) : e.status, e);
    struct calib_options c = {};
    c.files = &text, c.n_files = 1, c.tokens = 128;
    if (stage)
        CHECK_OK(workspace_calibrate(shop.w, &c, NULL, NULL, NULL, &e), e);
    emu.lost_at = emu.launches + launches;
    int rc = stage ? convert(shop.w, &e) : workspace_calibrate(shop.w, &c, NULL, NULL, NULL, &e);
    CHECK(rc == ERR_DEVICE && strstr(e.text, "cuda:1") && strstr(e.text, "lost"), "%d: %s", rc,
          e.text);
    CHECK(workspace_is_open(shop.w) && workspace_calibrated(shop.w) == stage &&
              !workspace_has_conversion(shop.w),
          "what was there stays there");
    shop_failed(&shop, rc, &e);
    CHECK(strstr(e.text, "goes on with the CPU"), "%s", e.text);
    workspace_describe(shop.w, device, sizeof device);
    CHECK(!strncmp(device, "cpu", 3) && strstr(workspace_device_note(shop.w), "lost"), "%s",
          device);
    if (!stage)
        CHECK_OK(workspace_calibrate(shop.w, &c, NULL, NULL, NULL, &e), e);
    CHECK_OK(convert(shop.w, &e), e);
    CHECK(workspace_has_conversion(shop.w), "converted on the CPU");
    shop_failed(&shop, ERR_IO, &e); /* the CPU is never lost */
    CHECK(workspace_has_conversion(shop.w), "nothing happens");
    shop_done(&shop);
    emu.broken = false;
    CHECK(emu.n_blocks == 0, "%d device allocations left", emu.n_blocks);
}

static void test_losses(void)
{
    struct test_model_spec spec = test_model_small();
    char model[512], text[512];
    spec.context = 32;
    snprintf(model, sizeof model, "%s/model.gguf", test_tmpdir());
    snprintf(text, sizeof text, "%s/text", test_tmpdir());
    FILE *f = fopen(text, "w");
    uint64_t seed = 3;
    for (int i = 0; f && i < 3000; i++)
        fputc(i % 50 == 49 ? '\n' : 'a' + (int)(26 * test_uniform(&seed)), f);
    CHECK(f && !fclose(f) && !test_model_write_gguf(model, &spec), "%s", model);
    test_shared(model);
    test_steps(model);
    test_too_small(model);
    test_lost(model, text, 0, 1);
    test_lost(model, text, 0, 90);
    test_lost(model, text, 1, 30);
}

int main(void)
{
    test_flaws();
    test_refusals();
    test_pinned();
    test_streaming();
    test_shared_memory();
    test_losses();
    return test_end("cuda_emu");
}
