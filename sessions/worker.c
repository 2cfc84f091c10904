/* The worker thread, its queue, its outbox and the wake pipe. Knows no job kind and no model: it
 * moves ownership between two threads and refuses to do anything else. */
#include "sessions/worker.h"
#include "sessions/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Progress alone wakes the screen at most this often: more could not be read anyway. */
#define PROGRESS_GAP_SEC 0.03

struct job {
    struct job *next;
    struct worker *worker;
    const struct job_kind *kind;
    void *args;
    unsigned id;
    atomic_bool cancel;
    double reported_sec; /* worker thread only */
};

struct worker {
    void *shop;
    void (*failed)(void *shop, int status, struct err *e);
    pthread_t thread;
    bool started;
    int wake[2];
    pthread_mutex_t lock;
    pthread_cond_t more;
    /* below: guarded by lock */
    bool quit, woken;
    unsigned last_id;
    struct job *queue, **queue_end, *running;
    struct event *last_event;
    struct worker_batch out;
};

/* Call with the lock held. */
static void wake(struct worker *w)
{
    if (w->woken)
        return;
    w->woken = true;
    while (write(w->wake[1], "", 1) < 0 && errno == EINTR)
        ;
}

static void event_free(struct event *v)
{
    if (!v)
        return;
    if (v->data_free)
        v->data_free(v->data);
    free(v->text);
    free(v);
}

static struct event *event_new(int kind, int status, const char *text, void *data,
                               void (*data_free)(void *))
{
    struct event *v = mem_calloc(1, sizeof *v);
    if (!v) {
        if (data_free)
            data_free(data);
        return NULL;
    }
    v->kind = kind;
    v->status = status;
    v->text = text ? mem_strdup(text) : NULL;
    v->data = data;
    v->data_free = data_free;
    return v;
}

/* Call with the lock held. */
static void append_event(struct worker *w, struct event *v)
{
    if (w->last_event)
        w->last_event->next = v;
    else
        w->out.events = v;
    w->last_event = v;
    wake(w);
}

static void post(struct worker *w, const struct job *j, struct event *v)
{
    if (!v)
        return;
    v->job = j ? j->id : 0;
    v->job_kind = j ? j->kind : NULL;
    pthread_mutex_lock(&w->lock);
    append_event(w, v);
    pthread_mutex_unlock(&w->lock);
}

static void job_free(struct job *j)
{
    if (j && j->kind->args_free)
        j->kind->args_free(j->args);
    free(j);
}

/* Takes the next job off the queue; NULL at the end. */
static struct job *next_job(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->quit && !w->queue)
        pthread_cond_wait(&w->more, &w->lock);
    struct job *j = w->quit ? NULL : w->queue;
    if (j) {
        w->queue = j->next;
        if (!w->queue)
            w->queue_end = &w->queue;
        w->running = j;
        struct job_status *s = &w->out.status;
        *s = (struct job_status){.active = true, .job = j->id, .kind = j->kind};
        s->started_sec = s->now_sec = clock_now();
        wake(w);
    }
    pthread_mutex_unlock(&w->lock);
    return j;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct job *j;
    /* Threads have a niceness of their own here: the screen goes first. */
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
    while ((j = next_job(w)) != NULL) {
        struct err e = {0};
        int status = j->kind->run(j, w->shop, j->args, &e);
        if (status && w->failed)
            w->failed(w->shop, status, &e);
        struct event *v = event_new(EVENT_DONE, status, status ? e.text : NULL, NULL, NULL);
        pthread_mutex_lock(&w->lock);
        w->running = NULL;
        w->out.status.active = false;
        w->out.status.now_sec = clock_now();
        if (v) {
            v->job = j->id;
            v->job_kind = j->kind;
            append_event(w, v);
        }
        wake(w);
        pthread_mutex_unlock(&w->lock);
        job_free(j);
    }
    return NULL;
}

/* Threads inherit the mask of their maker: with all signals blocked here, every signal is handled
 * on the UI thread. */
static int start_thread(struct worker *w)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int rc = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    w->started = rc == 0;
    return rc;
}

int worker_new(struct worker **out, void *shop, struct err *e)
{
    struct worker *w = mem_calloc(1, sizeof *w);
    *out = NULL;
    if (!w)
        return err_nomem(e, sizeof *w, "worker");
    w->shop = shop;
    w->queue_end = &w->queue;
    w->wake[0] = w->wake[1] = -1;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    if (pipe2(w->wake, O_CLOEXEC | O_NONBLOCK)) {
        err_errno(e, "worker: cannot make a pipe");
        goto fail;
    }
    int rc = start_thread(w);
    if (rc) {
        errno = rc;
        err_errno(e, "worker: cannot start a thread");
        goto fail;
    }
    *out = w;
    return OK;
fail:
    worker_free(w);
    return e ? e->status : ERR_IO;
}

void worker_on_failure(struct worker *w, void (*failed)(void *shop, int status, struct err *e))
{
    w->failed = failed;
}

void worker_free(struct worker *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->quit = true;
    if (w->running)
        atomic_store(&w->running->cancel, true);
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
    if (w->started)
        pthread_join(w->thread, NULL);
    while (w->queue) {
        struct job *j = w->queue;
        w->queue = j->next;
        job_free(j);
    }
    worker_batch_done(&w->out);
    for (int i = 0; i < 2; i++)
        if (w->wake[i] >= 0)
            close(w->wake[i]);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

int worker_fd(const struct worker *w)
{
    return w->wake[0];
}

unsigned worker_submit(struct worker *w, const struct job_kind *kind, void *args)
{
    struct job *j = mem_calloc(1, sizeof *j);
    if (!j) {
        if (kind->args_free)
            kind->args_free(args);
        return 0;
    }
    j->worker = w;
    j->kind = kind;
    j->args = args;
    pthread_mutex_lock(&w->lock);
    unsigned id = j->id = ++w->last_id;
    *w->queue_end = j;
    w->queue_end = &j->next;
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
    return id;
}

static void cancel(struct worker *w, unsigned id, const struct job_kind *kind)
{
    struct job *dropped = NULL;
    pthread_mutex_lock(&w->lock);
    struct job *r = w->running;
    if (r && (id ? r->id == id : !kind || r->kind == kind))
        atomic_store(&r->cancel, true);
    for (struct job **p = &w->queue; *p;) {
        struct job *j = *p;
        if (id ? j->id != id : kind && j->kind != kind) {
            p = &j->next;
            continue;
        }
        *p = j->next;
        j->next = dropped;
        dropped = j;
    }
    w->queue_end = &w->queue;
    while (*w->queue_end)
        w->queue_end = &(*w->queue_end)->next;
    pthread_mutex_unlock(&w->lock);
    while (dropped) {
        struct job *j = dropped;
        dropped = j->next;
        post(w, j, event_new(EVENT_DONE, ERR_CANCELLED, "cancelled", NULL, NULL));
        job_free(j);
    }
}

void worker_cancel(struct worker *w, unsigned job)
{
    if (job)
        cancel(w, job, NULL);
}

void worker_cancel_kind(struct worker *w, const struct job_kind *kind)
{
    cancel(w, 0, kind);
}

int worker_count(struct worker *w, const struct job_kind *kind)
{
    pthread_mutex_lock(&w->lock);
    int n = w->running && (!kind || w->running->kind == kind);
    for (const struct job *j = w->queue; j; j = j->next)
        n += !kind || j->kind == kind;
    pthread_mutex_unlock(&w->lock);
    return n;
}

bool worker_drain(struct worker *w)
{
    char bytes[16];
    bool woken = false;
    while (read(w->wake[0], bytes, sizeof bytes) > 0)
        woken = true;
    return woken;
}

void worker_take(struct worker *w, struct worker_batch *out)
{
    pthread_mutex_lock(&w->lock);
    *out = w->out;
    w->out = (struct worker_batch){.status = out->status};
    w->last_event = NULL;
    w->woken = false;
    out->status.waiting = 0;
    for (const struct job *j = w->queue; j; j = j->next)
        out->status.waiting++;
    pthread_mutex_unlock(&w->lock);
}

void worker_batch_done(struct worker_batch *b)
{
    while (b->events) {
        struct event *v = b->events;
        b->events = v->next;
        event_free(v);
    }
    for (int i = 0; i < 2; i++) {
        free(b->text[i].bytes);
        free(b->text[i].token);
    }
    *b = (struct worker_batch){0};
}

void worker_post(struct worker *w, int kind, int status, const char *text, void *data,
                 void (*data_free)(void *))
{
    post(w, NULL, event_new(kind, status, text, data, data_free));
}

bool job_cancelled(const struct job *j)
{
    return atomic_load(&((struct job *)j)->cancel);
}

static bool report(void *user, const char *phase, double done, double total)
{
    struct job *j = user;
    struct worker *w = j->worker;
    double now = clock_now();
    pthread_mutex_lock(&w->lock);
    struct job_status *s = &w->out.status;
    bool same = strncmp(s->phase, phase, sizeof s->phase - 1) == 0;
    if (!same)
        snprintf(s->phase, sizeof s->phase, "%s", phase);
    s->done = done;
    s->total = total;
    s->now_sec = now;
    if (!same || now - j->reported_sec > PROGRESS_GAP_SEC) {
        j->reported_sec = now;
        wake(w);
    }
    pthread_mutex_unlock(&w->lock);
    return !job_cancelled(j);
}

struct progress job_progress(struct job *j)
{
    return (struct progress){report, j};
}

void job_post(struct job *j, int kind, void *data, void (*data_free)(void *))
{
    post(j->worker, j, event_new(kind, OK, NULL, data, data_free));
}

void job_text(struct job *j, int side, const char *bytes, size_t n, int token, double lost)
{
    struct worker *w = j->worker;
    pthread_mutex_lock(&w->lock);
    struct side_text *t = &w->out.text[side == 1];
    /* Out of memory drops the picture of a token, never the token: the answer itself comes with
     * the last event of the turn. */
    if (mem_grow((void **)&t->bytes, &t->cap, t->n + n, 1) &&
        mem_grow((void **)&t->token, &t->cap_token, t->n_token + 1, sizeof *t->token)) {
        if (n)
            memcpy(t->bytes + t->n, bytes, n);
        t->n += n;
        t->token[t->n_token++] = (struct text_token){(uint32_t)n, token, (float)lost};
    }
    wake(w);
    pthread_mutex_unlock(&w->lock);
}

void job_stats(struct job *j, const struct chat_stats stats[2], const struct chat_compare *c)
{
    struct worker *w = j->worker;
    pthread_mutex_lock(&w->lock);
    w->out.has_stats = true;
    w->out.stats[0] = stats[0];
    w->out.stats[1] = stats[1];
    w->out.compare = *c;
    wake(w);
    pthread_mutex_unlock(&w->lock);
}
