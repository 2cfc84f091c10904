/* Maps, bounded reads and atomic writes. Refuses to map or read anything but regular files. */
#include "core/file.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BUFFER ((size_t)1 << 16)

struct file_writer {
    int fd;
    char *path, *tmp;
    uint8_t *buffer;
    size_t used;
    struct err failed; /* sticky */
};

static int open_regular(const char *path, struct stat *st, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        err_errno(e, "%s: cannot open", path);
        return -1;
    }
    if (fstat(fd, st) || !S_ISREG(st->st_mode)) {
        err_set(e, ERR_IO, "%s: not a regular file: give one that is", path);
        close(fd);
        return -1;
    }
    return fd;
}

int file_map_open(struct file_map *map, const char *path, struct err *e)
{
    struct stat st;
    *map = (struct file_map){0};
    int fd = open_regular(path, &st, e);
    if (fd < 0)
        return e ? e->status : ERR_IO;
    void *data = NULL;
    if (st.st_size > 0) {
        data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            close(fd);
            return err_errno(e, "%s: cannot map %lld bytes", path, (long long)st.st_size);
        }
    }
    close(fd);
    map->data = data;
    map->size = (size_t)st.st_size;
    map->path = mem_strdup(path);
    if (!map->path) {
        file_map_close(map);
        return err_nomem(e, strlen(path), "a path");
    }
    return OK;
}

void file_map_close(struct file_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->size);
    free(map->path);
    *map = (struct file_map){0};
}

int file_read(const char *path, size_t max, char **text, size_t *size, struct err *e)
{
    struct stat st;
    int fd = open_regular(path, &st, e);
    if (fd < 0)
        return e ? e->status : ERR_IO;
    size_t n = (size_t)st.st_size, have = 0;
    char *data = n <= max ? malloc(n + 1) : NULL;
    int rc = OK;
    if (n > max)
        rc = err_set(e, ERR_LIMIT, "%s: %zu bytes, more than the %zu this kind of file may have",
                     path, n, max);
    else if (!data)
        rc = err_nomem(e, n + 1, path);
    while (rc == OK && have < n) {
        ssize_t got = read(fd, data + have, n - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            rc = err_errno(e, "%s: cannot read at byte %zu", path, have);
        if (got <= 0)
            break;
        have += (size_t)got;
    }
    close(fd);
    if (rc != OK) {
        free(data);
        return rc;
    }
    data[have] = 0;
    *text = data;
    if (size)
        *size = have;
    return OK;
}

void file_remove(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *entry; d && (entry = readdir(d));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            unlinkat(fd, entry->d_name, 0);
    if (d)
        closedir(d);
    else
        unlink(path);
    rmdir(path);
}

/* Whether name ends in mark and the number of a process that is gone (with a serial, perhaps);
 * *base: bytes before the mark. */
static bool left_behind(const char *name, const char *mark, size_t *base)
{
    const char *at = NULL;
    for (const char *s = name; (s = strstr(s, mark)) != NULL; s++)
        at = s;
    char *end;
    long pid = at ? strtol(at + strlen(mark), &end, 10) : 0;
    *base = at ? (size_t)(at - name) : 0;
    return pid > 0 && (!*end || *end == '-') && kill((pid_t)pid, 0) && errno == ESRCH;
}

void file_sweep(const char *path)
{
    const char *base = path_base(path);
    size_t n = strlen(base), k;
    char *dir = path_parent(path);
    DIR *d = dir ? opendir(dir) : NULL;
    for (struct dirent *entry; d && (entry = readdir(d));) {
        if (!left_behind(entry->d_name, ".tmp-", &k) || k != n || strncmp(entry->d_name, base, n))
            continue;
        char *left = path_join(dir, entry->d_name);
        if (left)
            file_remove(left);
        free(left);
    }
    if (d)
        closedir(d);
    free(dir);
}

/* One entry of a folder that is swept. */
static void sweep_entry(const char *dir, const char *name, int depth)
{
    size_t base;
    struct stat st;
    char *path = path_join(dir, name);
    if (!path || lstat(path, &st)) {
        free(path);
        return;
    }
    if (left_behind(name, ".tmp-", &base)) {
        file_remove(path);
    } else if (left_behind(name, ".old-", &base)) {
        char *to = mem_printf("%s/%.*s", dir, (int)base, name);
        if (to && (file_exists(to) || rename(path, to)))
            file_remove(path);
        free(to);
    } else if (S_ISDIR(st.st_mode) && depth > 0) {
        file_sweep_folder(path, depth - 1);
    }
    free(path);
}

void file_sweep_folder(const char *dir, int depth)
{
    DIR *d = opendir(dir);
    for (struct dirent *entry; d && (entry = readdir(d));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            sweep_entry(dir, entry->d_name, depth);
    if (d)
        closedir(d);
}

int file_writer_open(struct file_writer **out, const char *path, struct err *e)
{
    static atomic_uint serial;
    *out = NULL;
    struct file_writer *w = mem_calloc(1, sizeof *w);
    if (!w)
        return err_nomem(e, sizeof *w, "a file writer");
    w->fd = -1;
    w->path = mem_strdup(path);
    w->tmp = mem_printf("%s.tmp-%ld-%u", path, (long)getpid(), atomic_fetch_add(&serial, 1));
    w->buffer = malloc(FILE_BUFFER);
    if (!w->path || !w->tmp || !w->buffer) {
        file_writer_abort(w);
        return err_nomem(e, FILE_BUFFER, "a file writer");
    }
    file_sweep(path);
    w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (w->fd < 0) {
        int rc = err_errno(e, "%s: cannot create", w->tmp);
        file_writer_abort(w);
        return rc;
    }
    *out = w;
    return OK;
}

static int write_all(struct file_writer *w, const uint8_t *data, size_t size)
{
    while (size) {
        ssize_t put = write(w->fd, data, size);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return err_errno(&w->failed, "%s: cannot write (target left as it was)", w->path);
        data += put;
        size -= (size_t)put;
    }
    return OK;
}

static int flush(struct file_writer *w)
{
    int rc = write_all(w, w->buffer, w->used);
    w->used = 0;
    return rc;
}

int file_writer_write(struct file_writer *w, const void *data, size_t size, struct err *e)
{
    if (!w->failed.status && w->used + size > FILE_BUFFER)
        flush(w);
    if (!w->failed.status) {
        if (size >= FILE_BUFFER) {
            write_all(w, data, size);
        } else {
            if (size)
                memcpy(w->buffer + w->used, data, size);
            w->used += size;
        }
    }
    if (w->failed.status && e)
        *e = w->failed;
    return w->failed.status;
}

static int sync_folder(const char *path, struct err *e)
{
    char *dir = mem_strdup(path);
    if (!dir)
        return err_nomem(e, strlen(path), "a path");
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = 0;
    int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(dir);
    if (fd < 0)
        return OK; /* the rename itself has happened */
    fsync(fd);
    close(fd);
    return OK;
}

int file_rename(const char *from, const char *to, struct err *e)
{
    if (rename(from, to))
        return err_errno(e, "%s: cannot rename to %s", from, to);
    return sync_folder(to, e);
}

int file_writer_commit(struct file_writer *w, struct err *e)
{
    if (!w->failed.status)
        flush(w);
    if (!w->failed.status && fsync(w->fd))
        err_errno(&w->failed, "%s: cannot sync", w->tmp);
    if (!w->failed.status && close(w->fd))
        err_errno(&w->failed, "%s: cannot close", w->tmp);
    if (!w->failed.status) {
        w->fd = -1;
        file_rename(w->tmp, w->path, &w->failed);
    }
    int rc = w->failed.status;
    if (rc && e)
        *e = w->failed;
    if (!rc) {
        free(w->tmp);
        w->tmp = NULL;
    }
    file_writer_abort(w);
    return rc;
}

void file_writer_abort(struct file_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (w->tmp)
        unlink(w->tmp);
    free(w->tmp);
    free(w->path);
    free(w->buffer);
    free(w);
}

int file_save(const char *path, const void *data, size_t size, struct err *e)
{
    struct file_writer *w;
    int rc = file_writer_open(&w, path, e);
    if (rc)
        return rc;
    file_writer_write(w, data, size, NULL);
    return file_writer_commit(w, e);
}

int file_mkdirs(const char *path, struct err *e)
{
    char *copy = mem_strdup(path);
    if (!copy)
        return err_nomem(e, strlen(path), "a path");
    int rc = OK;
    for (char *s = copy + 1; rc == OK; s++) {
        if (*s && *s != '/')
            continue;
        char held = *s;
        *s = 0;
        if (mkdir(copy, 0755) && !(errno == EEXIST && file_is_dir(copy)))
            rc = err_errno(e, "%s: cannot create the folder", copy);
        *s = held;
        if (!held)
            break;
    }
    free(copy);
    return rc;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool file_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

char *path_absolute(const char *path)
{
    char *here = path[0] == '/' ? NULL : getcwd(NULL, 0);
    char *full = here ? path_join(here, path) : mem_strdup(path);
    free(here);
    return full;
}

char *path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir);
    return mem_printf("%s%s%s", dir, n && dir[n - 1] != '/' ? "/" : "", name);
}

char *path_free(const char *dir, const char *name, const char *suffix)
{
    char safe[96];
    size_t n = 0;
    for (const char *c = name; *c && n < sizeof safe - 1; c++)
        safe[n++] = isalnum((unsigned char)*c) || strchr("._-", *c) ? *c : '_';
    safe[n] = 0;
    for (int i = 1; i < 100000; i++) {
        char *path =
            mem_printf("%s/%s-%d%s", dir, safe[0] == '.' || !n ? "model" : safe, i, suffix);
        if (!path || !file_exists(path))
            return path;
        free(path);
    }
    return NULL;
}

const char *path_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *path_parent(const char *path)
{
    const char *base = path_base(path);
    return base > path ? strndup(path, (size_t)(base - path)) : mem_strdup(".");
}

bool path_same(const char *a, const char *b)
{
    char *x = a ? realpath(a, NULL) : NULL, *y = b ? realpath(b, NULL) : NULL;
    bool same = x && y && !strcmp(x, y);
    free(x);
    free(y);
    return same;
}
