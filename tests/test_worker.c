/* The worker: order, ownership, cancelling, shutting down in mid-job, and no lost wake-up. */
#include <poll.h>
#include <unistd.h>

#include "sessions/worker.h"
#include "tests/support.h"

static int posts_run(struct job *j, void *shop, void *args, struct err *e)
{
    const int *n = args;
    (void)shop, (void)e;
    for (int i = 0; i < *n; i++) {
        int *value = mem_calloc(1, sizeof *value);
        *value = i;
        job_post(j, 7, value, free);
        job_text(j, i % 2, "ab", 2, i, 0.5);
    }
    return OK;
}

static int spin_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct progress p = job_progress(j);
    (void)shop, (void)args;
    for (double i = 0; progress_report(&p, "spin", i, 1e9); i++)
        usleep(100);
    return err_set(e, ERR_CANCELLED, "cancelled");
}

static int fail_run(struct job *j, void *shop, void *args, struct err *e)
{
    (void)j, (void)args;
    ++*(int *)shop;
    return err_set(e, ERR_NUMERIC, "it went wrong");
}

static const struct job_kind posts = {"posts", posts_run, free};
static const struct job_kind spin = {"spin", spin_run, free};
static const struct job_kind fails = {"fails", fail_run, NULL};

static int *number(int n)
{
    int *p = mem_calloc(1, sizeof *p);
    *p = n;
    return p;
}

struct seen {
    int done, cancelled, failed, posted, tokens;
    size_t bytes;
    bool in_order;
};

/* One turn of a user interface; false when nothing came for ten seconds. */
static bool turn(struct worker *w, struct seen *s)
{
    struct pollfd f = {worker_fd(w), POLLIN, 0};
    if (poll(&f, 1, 10000) <= 0)
        return false;
    struct worker_batch b;
    worker_drain(w);
    worker_take(w, &b);
    for (struct event *v = b.events; v; v = v->next) {
        if (v->kind == EVENT_DONE) {
            s->done++;
            s->cancelled += v->status == ERR_CANCELLED;
            s->failed += v->status == ERR_NUMERIC && strcmp(v->text, "it went wrong") == 0;
        } else {
            s->in_order = s->in_order && *(int *)v->data == s->posted;
            s->posted++;
        }
    }
    for (int i = 0; i < 2; i++) {
        s->bytes += b.text[i].n;
        s->tokens += (int)b.text[i].n_token;
    }
    worker_batch_done(&b);
    return true;
}

static void test_posts(void)
{
    struct worker *w;
    struct err e = {0};
    struct seen s = {.in_order = true};
    int shop = 0, n = 20000;
    CHECK_OK(worker_new(&w, &shop, &e), e);
    worker_submit(w, &posts, number(n));
    worker_submit(w, &fails, NULL);
    while (s.done < 2)
        if (!turn(w, &s)) {
            CHECK(false, "a wake-up was lost after %d events", s.posted);
            break;
        }
    CHECK(s.posted == n && s.in_order, "%d", s.posted);
    CHECK(s.tokens == n && s.bytes == 2 * (size_t)n, "%d %zu", s.tokens, s.bytes);
    CHECK(s.failed == 1 && shop == 1, "the failure came with its sentence");
    CHECK(worker_count(w, NULL) == 0, "idle");
    worker_free(w);
}

static void test_cancel(void)
{
    struct worker *w;
    struct err e = {0};
    struct seen s = {.in_order = true};
    int shop = 0;
    CHECK_OK(worker_new(&w, &shop, &e), e);
    unsigned first = worker_submit(w, &spin, number(0));
    unsigned second = worker_submit(w, &spin, number(0));
    worker_submit(w, &fails, NULL);
    CHECK(worker_count(w, &spin) == 2, "%d", worker_count(w, &spin));
    worker_cancel(w, second); /* queued: gone at once */
    CHECK(worker_count(w, &spin) == 1, "%d", worker_count(w, &spin));
    usleep(20000);
    worker_cancel(w, first);
    while (s.done < 3 && turn(w, &s))
        ;
    CHECK(s.done == 3 && s.cancelled == 2 && s.failed == 1, "%d %d %d", s.done, s.cancelled,
          s.failed);
    CHECK(shop == 1, "the job behind ran");
    worker_cancel(w, 999); /* nobody */
    worker_submit(w, &spin, number(0));
    worker_submit(w, &spin, number(0));
    worker_cancel_kind(w, &spin);
    while (s.done < 5 && turn(w, &s))
        ;
    CHECK(s.cancelled == 4, "%d", s.cancelled);
    worker_free(w);
}

static void test_shutdown(void)
{
    struct err e = {0};
    int shop = 0;
    for (int i = 0; i < 40; i++) {
        struct worker *w;
        CHECK_OK(worker_new(&w, &shop, &e), e);
        worker_submit(w, &posts, number(300));
        worker_submit(w, &spin, number(0));
        worker_submit(w, &posts, number(300));
        if (i % 4)
            usleep((unsigned)(i * 50));
        /* From outside a job as well. */
        worker_post(w, 7, OK, "text", number(1), free);
        worker_free(w); /* the leak checker sees what was not taken */
    }
}

/* Draining says that there is a batch to take: it may have come after poll returned for a key, and
 * nothing else tells of it. */
static void test_drained_is_told(void)
{
    struct worker_batch b;
    struct worker *w;
    struct err e;
    int shop = 0, tries = 0;
    CHECK_OK(worker_new(&w, &shop, &e), e);
    CHECK(!worker_drain(w), "nothing has come");
    worker_submit(w, &fails, NULL);
    while (!worker_drain(w) && ++tries < 10000) /* no poll: only draining looks */
        usleep(1000);
    CHECK(tries < 10000, "the wake was drained and not told");
    worker_take(w, &b);
    worker_batch_done(&b);
    worker_free(w);
}

int main(void)
{
    test_drained_is_told();
    test_posts();
    test_cancel();
    test_shutdown();
    return test_end("worker");
}
