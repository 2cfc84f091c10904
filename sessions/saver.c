/* The saver thread. Its failures are reported through the callback and lose nothing but the write:
 * the caller still holds what it wanted saved. */
#include "sessions/saver.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

struct file_text {
    struct file_text *next;
    char *path, *text;
    bool quiet;
};

struct saver {
    saver_done done;
    void *user;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t more, idle;
    /* below: guarded by lock */
    bool quit, busy;
    struct file_text *queue;
};

static void file_text_free(struct file_text *f)
{
    if (!f)
        return;
    free(f->path);
    free(f->text);
    free(f);
}

static int write_one(const struct file_text *f, struct err *e)
{
    const char *base = path_base(f->path);
    char *dir = mem_strdup(f->path);
    int rc = OK;
    if (!dir)
        return err_nomem(e, strlen(f->path), "path");
    if (base > f->path + 1) {
        dir[base - f->path - 1] = 0;
        rc = file_mkdirs(dir, e);
    }
    free(dir);
    return rc ? rc : file_save(f->path, f->text, strlen(f->text), e);
}

static void *saver_main(void *arg)
{
    struct saver *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->quit && !s->queue)
            pthread_cond_wait(&s->more, &s->lock);
        struct file_text *f = s->queue;
        if (!f)
            break;
        s->queue = f->next;
        s->busy = true;
        pthread_mutex_unlock(&s->lock);
        struct err e = {0};
        int status = write_one(f, &e);
        if (s->done)
            s->done(s->user, f->path, f->quiet, status, status ? e.text : NULL);
        file_text_free(f);
        pthread_mutex_lock(&s->lock);
        s->busy = false;
        pthread_cond_broadcast(&s->idle);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int saver_new(struct saver **out, saver_done done, void *user, struct err *e)
{
    struct saver *s = mem_calloc(1, sizeof *s);
    sigset_t all, before;
    *out = NULL;
    if (!s)
        return err_nomem(e, sizeof *s, "saver");
    s->done = done;
    s->user = user;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
    pthread_cond_init(&s->idle, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    s->started = pthread_create(&s->thread, NULL, saver_main, s) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!s->started) {
        saver_free(s);
        return err_set(e, ERR_IO, "saver: cannot start a thread");
    }
    *out = s;
    return OK;
}

void saver_free(struct saver *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->quit = true;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
    if (s->started)
        pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->more);
    pthread_cond_destroy(&s->idle);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

bool saver_put(struct saver *s, const char *path, char *text, bool quiet)
{
    struct file_text *f = mem_calloc(1, sizeof *f);
    char *name = mem_strdup(path);
    if (!f || !name || !text) {
        free(f);
        free(name);
        free(text);
        return false;
    }
    f->path = name;
    f->text = text;
    f->quiet = quiet;
    pthread_mutex_lock(&s->lock);
    struct file_text **p = &s->queue;
    while (*p && strcmp((*p)->path, path) != 0)
        p = &(*p)->next;
    struct file_text *older = *p;
    f->next = older ? older->next : NULL;
    f->quiet = quiet && (!older || older->quiet);
    *p = f;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
    file_text_free(older);
    return true;
}

void saver_flush(struct saver *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->queue || s->busy)
        pthread_cond_wait(&s->idle, &s->lock);
    pthread_mutex_unlock(&s->lock);
}
