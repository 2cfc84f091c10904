/* What a run needs before its first step: sizes by the budget and the memory, the net and its
 * optimiser, text held out and the original's last states on it. */
#include "sessions/heal_run.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/kvmem.h"

#define LENGTH 256
#define LONGER 4 /* times LENGTH: what sees a longer context */
#define DEFAULT_SECONDS 600.0
#define TOKENS_A_SECOND 150.0 /* a guess that only sizes batches, held-out text and steps */
#define TAPE_BYTES ((size_t)1 << 30)

long long heal_expected_tokens(const struct heal_options *o)
{
    double by_time = o->seconds > 0 ? o->seconds * TOKENS_A_SECOND : 1e18;
    double by_tokens = o->tokens ? (double)o->tokens : 1e18;
    return (long long)fmin(fmin(by_time, by_tokens), 1e9);
}

static int clamp_int(double v, int least, int most)
{
    return v < least ? least : v > most ? most : (int)v;
}

void heal_choose_sizes(struct heal *h)
{
    struct heal_options *o = &h->o;
    int context = h->c->model.hp.context;
    if (!o->tokens && !(o->seconds > 0))
        o->seconds = DEFAULT_SECONDS;
    double tokens = (double)heal_expected_tokens(o);
    o->parts = o->parts ? o->parts : HEAL_ALL;
    o->tape_bytes = o->tape_bytes ? o->tape_bytes : TAPE_BYTES;
    o->accumulate = o->accumulate > 0 ? o->accumulate : 1;
    o->checkpoint_sec = o->checkpoint_sec == 0 ? 60 : o->checkpoint_sec;
    h->length = o->length > 0 ? o->length : LENGTH;
    h->length = h->length < context ? h->length : context;
    h->longer = h->length * LONGER < context ? h->length * LONGER : context;
    /* Some 100 steps at least: Adam's steps have a size of their own. */
    if (!o->batch)
        o->batch = h->length * clamp_int(tokens / h->length / 100, 1, 2);
    o->batch = o->batch < h->length ? h->length : o->batch / h->length * h->length;
    if (!o->held_out)
        o->held_out = clamp_int(tokens / 10, 8 * h->length, 16 * h->length);
    h->long_every = 1 + (HEAL_LONG_SHARE - 1) * h->longer / o->batch;
    h->rows = o->batch > h->longer ? o->batch : h->longer;
}

/* What is not trained goes through the original's weights where its memory is the host's. */
static struct heal_net_options net_options(const struct heal *h, const struct engine *original)
{
    struct backend *b = engine_backend(original);
    bool quick = !h->o.exact && b->ops == &cpu_backend_ops;
    return (struct heal_net_options){.op = grad_fast(),
                                     .pool = b->pool,
                                     .parts = h->o.parts,
                                     .rows = h->rows,
                                     .longest = h->longer,
                                     .tape_bytes = h->o.tape_bytes,
                                     .engine = quick ? original : NULL};
}

static int check_memory(const struct heal *h, const struct heal_net_options *o, struct err *e)
{
    double have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    double need = heal_net_bytes(&h->c->model, o);
    char needs[32], has[32];
    for (int l = 0; l < h->c->model.hp.n_layer; l++) /* moments of Adam, and the copy's own */
        need += 3.0 * sizeof(float) *
                (double)(tensor_elements(&h->c->model.layer[l].q) +
                         tensor_elements(&h->c->model.layer[l].kv_a) +
                         tensor_elements(&h->c->model.layer[l].kv_b) +
                         tensor_elements(&h->c->model.layer[l].o));
    if (need < 0.8 * have)
        return OK;
    kvmem_text(need, needs, sizeof needs);
    kvmem_text(have, has, sizeof has);
    return err_set(e, ERR_LIMIT,
                   "%s: healing would take %s, this machine has %s: use one with more memory, or a "
                   "smaller model",
                   h->c->model.hp.name, needs, has);
}

static int make_moments(struct heal *h, struct err *e)
{
    int n = heal_net_count(h->net);
    h->moment = mem_calloc((size_t)n, sizeof *h->moment);
    if (!h->moment)
        return err_nomem(e, (size_t)n * sizeof *h->moment, "an optimiser");
    for (int i = 0; i < n; i++) {
        const struct heal_tensor *t = &h->net->tensor[i];
        size_t size = t->rows * t->cols;
        if (!t->trained || !size)
            continue;
        h->moment[i].m = mem_aligned(size, sizeof(float));
        h->moment[i].v = mem_aligned(size, sizeof(float));
        if (!h->moment[i].m || !h->moment[i].v)
            return err_nomem(e, 2 * size * sizeof(float), "an optimiser");
        h->moment[i].rms = sqrt(h->net->op->sum_squares(h->net->pool, t->w, size) / (double)size);
    }
    return OK;
}

void heal_drop_net(struct heal *h)
{
    for (int i = 0; h->net && h->moment && i < heal_net_count(h->net); i++) {
        free(h->moment[i].m);
        free(h->moment[i].v);
    }
    free(h->moment);
    heal_net_free(h->net);
    h->moment = NULL;
    h->net = NULL;
}

/* A net of h->c and its optimiser. */
int heal_make_net(struct heal *h, const struct engine *original, struct err *e)
{
    struct heal_net_options net = net_options(h, original);
    heal_drop_net(h);
    int rc = heal_net_new(&h->net, &h->c->model, &net, e);
    if (rc)
        return rc;
    h->net->go_on = heal_go_on;
    h->net->go_on_user = h;
    return make_moments(h, e);
}

int heal_prepare(struct heal *h, const struct engine *original, struct err *e)
{
    struct heal_net_options net = net_options(h, original);
    int rc = check_memory(h, &net, e);
    if (!rc)
        rc = heal_make_net(h, original, e);
    if (rc)
        return rc;
    h->ids = mem_calloc((size_t)h->rows, sizeof *h->ids);
    h->next = mem_calloc((size_t)h->rows, sizeof *h->next);
    h->start = mem_calloc((size_t)h->rows + 1, sizeof *h->start);
    if (!h->ids || !h->next || !h->start)
        return err_nomem(e, (size_t)h->rows * sizeof *h->ids, "a batch");
    return heal_teacher_init(&h->teacher, original, h->rows, h->net->block, h->o.match > 0, e);
}

int heal_fill(struct heal *h, bool held_out, long long *i, int len, int rows, int most,
              int32_t *ids, int *start, int *n_seq, struct err *e)
{
    int at = 0, n = 0, got, rc = OK;
    start[0] = 0;
    while (n < most && at + len <= rows && !rc) {
        rc = heal_text_sequence(h->text, held_out, (*i)++, len, ids + at, &got, e);
        at += rc ? 0 : got;
        start[++n] = at;
    }
    *n_seq = n;
    return rc;
}

/* Held-out batches: sequences of the usual length, and every third batch a longer one. */
int heal_hold_out(struct heal *h, struct err *e)
{
    int most = h->o.held_out / h->length + 1, rc = OK, tokens = 0;
    long long sequence = 0;
    h->held = mem_calloc((size_t)most, sizeof *h->held);
    if (!h->held)
        return err_nomem(e, (size_t)most * sizeof *h->held, "held-out text");
    while (h->n_held < most && tokens < h->o.held_out && !rc) {
        struct heal_held *b = &h->held[h->n_held];
        int len = h->n_held % 3 == 1 ? h->longer : h->length, left = h->o.held_out - tokens;
        int rows = h->rows < 2 * h->length ? h->rows : 2 * h->length;
        rows = rows < len ? len : rows;
        len = len < left || h->n_held == 0 ? len : left < 2 ? 2 : left;
        h->n_held++;
        b->ids = mem_calloc((size_t)rows, sizeof *b->ids);
        b->start = mem_calloc((size_t)(rows / len) + 2, sizeof *b->start);
        b->states = mem_calloc((size_t)rows * (size_t)h->c->model.hp.hidden, sizeof *b->states);
        if (!b->ids || !b->start || !b->states)
            return err_nomem(e, (size_t)rows * sizeof *b->ids, "held-out text");
        rc =
            heal_fill(h, true, &sequence, len, rows < left || rows == len ? rows : left / len * len,
                      rows / len, b->ids, b->start, &b->n_seq, e);
        if (!rc && !heal_go_on(h))
            rc = err_set(e, ERR_CANCELLED, "healing stopped");
        if (!rc)
            rc = heal_teacher_run(&h->teacher, b->ids, b->start, b->n_seq, e);
        if (!rc)
            heal_teacher_get(&h->teacher, b->states, b->start[b->n_seq]);
        tokens += rc ? 0 : b->start[b->n_seq];
    }
    return rc;
}

/* The tokens that follow, for the next-token loss. */
