/* Arrays moved into an unlinked file. Refuses folders that cannot hold one. */
#include "sessions/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/file.h"

static int open_nameless(const char *dir, struct err *e)
{
    char *path = path_join(dir, "spill-XXXXXX");
    int fd = path ? mkostemp(path, O_CLOEXEC) : -1;
    if (!path)
        err_nomem(e, 4096, "a path");
    else if (fd < 0)
        err_errno(e, "%s: cannot create a file there", dir);
    else
        unlink(path);
    free(path);
    return fd;
}

static int write_all(int fd, const void *data, size_t n, const char *dir, struct err *e)
{
    for (const char *at = data; n;) {
        ssize_t done = write(fd, at, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return err_errno(e, "%s: cannot write %zu bytes", dir, n);
        at += done;
        n -= (size_t)done;
    }
    return OK;
}

int spill_floats(struct spill *s, const char *dir, int n, float **const *array, const size_t *count,
                 struct err *e)
{
    size_t size = 0, at = 0;
    int fd = open_nameless(dir, e), rc = fd < 0 ? (e ? e->status : ERR_IO) : OK;
    *s = (struct spill){0};
    for (int i = 0; i < n && !rc; i++) {
        size_t bytes = *array[i] ? count[i] * sizeof(float) : 0;
        rc = write_all(fd, *array[i], bytes, dir, e);
        size += bytes;
    }
    void *data = rc || !size ? NULL : mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        rc = err_errno(e, "%s: cannot map %zu bytes", dir, size);
    if (fd >= 0)
        close(fd);
    if (rc || !size)
        return rc;
    *s = (struct spill){data, size};
    for (int i = 0; i < n; i++) {
        if (!*array[i])
            continue;
        free(*array[i]);
        *array[i] = (float *)(void *)((char *)data + at);
        at += count[i] * sizeof(float);
    }
    return OK;
}

void spill_done(struct spill *s)
{
    if (s->data)
        munmap(s->data, s->size);
    *s = (struct spill){0};
}
