/* Steps of decoding as CUDA graphs: a step's few hundred launches go to the device in one call, and
 * one graph serves all steps. What differs between them (the token, rope tables, the position) lies
 * in the step's own device memory, which one small copy fills before each launch of the graph;
 * kernels read the position there.
 *
 * The first time a step runs plainly, so that scratch has its size; the second time it is captured.
 * After that the operations are called as ever, but launch nothing: they fill the tables, and a
 * check over everything they would have launched must come out as it did at capture. If it does
 * not, or if something happens on the way that no graph can hold (memory that grows, a number that
 * the host wants), step_end asks for the operations again, which then run plainly, and the step is
 * captured afresh. After TRIES of that, or where the driver captures nothing, or weights stream,
 * steps stay plain; describe() has the reason.
 *
 * Roofline: a launch costs the host about 2.5 µs and the device 1 µs between dependent kernels of a
 * graph. Llama-3-8B: 9 launches a layer and 3 more = 291, 0.7 ms from the host as plain launches,
 * 0.3 ms inside the graph, next to 2.5 ms of Q8_0 weights on an H100; as MLA 11 a layer. The host's
 * part of a step is 291 checks of about 50 ns, 15 µs. Not measured. */
#include "kernels/cuda.h"

#include <stdlib.h>
#include <string.h>

enum {
    CARRIED = 1 << 18, /* bytes of ids, tables and positions of a step */
    TRIES = 16,
};
enum step_state { STEP_NEW, STEP_WARM, STEP_READY, STEP_PLAIN };

struct step {
    enum step_state state;
    bool failed; /* this time: nothing must be launched any more */
    int tries;
    unsigned char *host, *device;
    size_t at;
    const char *why;          /* it failed */
    uint64_t check, recorded; /* of this time; of the capture */
    cudaEvent_t taken;        /* host may be written again */
    cudaGraphExec_t graph;
};

bool cuda_step_repeats(const struct cuda *c)
{
    return c->step->state == STEP_READY || c->step->failed;
}

void cuda_step_note(struct cuda *c, const void *p, size_t n)
{
    uint64_t h = c->step->check;
    const char *from = (const char *)p;
    for (; n >= 8; from += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, from, 8);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    for (; n; from++, n--)
        h = (h ^ (unsigned char)*from) * 0x9e3779b97f4a7c15u;
    c->step->check = h;
}

void cuda_step_spoil(struct cuda *c, const char *why)
{
    if (!c->step || c->step->failed)
        return;
    c->step->failed = true;
    c->step->why = why;
    if (c->step->state == STEP_WARM) { /* what comes now must not meet the capture */
        cudaGraph_t graph = NULL;
        if (cudaStreamEndCapture(c->stream, &graph) == cudaSuccess && graph)
            cudaGraphDestroy(graph);
        cudaGetLastError(); /* the capture's end is no fault of the device */
    }
}

const void *cuda_step_carry(struct cuda *c, const void *host, size_t bytes)
{
    struct step *s = c->step;
    size_t room = (bytes + 15) & ~(size_t)15;
    if (s->at + room > CARRIED) {
        cuda_step_spoil(c, "a step's tables are too large");
        return s->device;
    }
    size_t at = s->at;
    s->at += room;
    memcpy(s->host + at, host, bytes);
    return s->device + at;
}

static struct step *step_new(void)
{
    struct step *s = (struct step *)mem_calloc(1, sizeof *s);
    void *host = NULL, *device = NULL;
    if (!s)
        return NULL;
    bool ok = cudaMallocHost(&host, CARRIED) == cudaSuccess &&
              cudaMalloc(&device, CARRIED) == cudaSuccess &&
              cudaEventCreateWithFlags(&s->taken, cudaEventDisableTiming) == cudaSuccess;
    s->host = (unsigned char *)host;
    s->device = (unsigned char *)device;
    s->state = ok ? STEP_NEW : STEP_PLAIN;
    if (!ok)
        cudaGetLastError(); /* without the memory steps are launched one by one */
    return s;
}

void cuda_step_free(struct backend *b, struct step *s)
{
    (void)b;
    if (!s)
        return;
    if (s->graph)
        cudaGraphExecDestroy(s->graph);
    if (s->taken)
        cudaEventDestroy(s->taken);
    cudaFree(s->device);
    if (s->host)
        cudaFreeHost(s->host);
    free(s);
}

void cuda_step_begin(struct backend *b, struct step **slot)
{
    struct cuda *c = (struct cuda *)b;
    if (c->streamed.weights || (!*slot && !(*slot = step_new())))
        return;
    struct step *s = *slot;
    if (s->state == STEP_NEW || s->state == STEP_PLAIN) {
        s->state = s->state == STEP_NEW ? STEP_WARM : s->state;
        return;
    }
    cudaSetDevice(c->device);
    bool ok = cudaEventSynchronize(s->taken) == cudaSuccess;
    if (ok && s->state == STEP_WARM)
        ok = cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
    if (!ok) {
        cudaGetLastError();
        c->no_steps = "the driver captures none";
        s->state = STEP_PLAIN;
        return;
    }
    s->at = 0;
    s->check = 1;
    s->failed = false;
    c->step = s;
}

/* Ends a capture: true when its graph is ready. */
static bool record(struct cuda *c, struct step *s)
{
    cudaGraph_t graph = NULL;
    bool ok = cudaStreamEndCapture(c->stream, &graph) == cudaSuccess && graph &&
              cudaGraphInstantiate(&s->graph, graph, 0) == cudaSuccess;
    if (graph)
        cudaGraphDestroy(graph);
    if (!ok)
        cudaGetLastError();
    return ok;
}

/* Plainly once more, then captured afresh; or plainly for good. */
static bool try_again(struct cuda *c, struct step *s)
{
    if (s->graph)
        cudaGraphExecDestroy(s->graph);
    s->graph = NULL;
    s->state = ++s->tries < TRIES ? STEP_WARM : STEP_PLAIN;
    if (s->state == STEP_PLAIN)
        c->no_steps = s->why;
    return false;
}

bool cuda_step_end(struct backend *b)
{
    struct cuda *c = (struct cuda *)b;
    struct step *s = c->step;
    if (!s)
        return true;
    c->step = NULL;
    if (s->failed)
        return try_again(c, s);
    if (s->state == STEP_WARM) {
        s->why = "the driver made none of a step";
        if (!record(c, s))
            return try_again(c, s);
        s->recorded = s->check;
    }
    if (s->check != s->recorded) {
        s->why = "steps differ";
        return try_again(c, s);
    }
    s->state = STEP_READY;
    cuda_ok(c, cudaMemcpyAsync(s->device, s->host, s->at, cudaMemcpyHostToDevice, c->stream),
            "a step's tables");
    cuda_ok(c, cudaEventRecord(s->taken, c->stream), "an event");
    cuda_ok(c, cudaGraphLaunch(s->graph, c->stream), "a step");
    return true;
}
