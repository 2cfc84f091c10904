/* Files of the fuzzers without the kernel: the linker puts these in the place of core/file's
 * readers
 * (-Wl,--wrap), so that an execution costs no system call and its bytes end where the address
 * sanitizer sees it. The input is held as it is; other files are read once and kept, from the first
 * input on (what is set up before it writes files). */
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "tests/support_fuzz.h"

int __real_file_map_open(struct file_map *map, const char *path, struct err *e);
int __wrap_file_map_open(struct file_map *map, const char *path, struct err *e);
void __real_file_map_close(struct file_map *map);
void __wrap_file_map_close(struct file_map *map);
int __real_file_read(const char *path, size_t max, char **text, size_t *size, struct err *e);
int __wrap_file_read(const char *path, size_t max, char **text, size_t *size, struct err *e);
bool __real_file_exists(const char *path);
bool __wrap_file_exists(const char *path);
bool __real_file_is_dir(const char *path);
bool __wrap_file_is_dir(const char *path);
void __wrap_fuzz_put(int fd, const char *path, const uint8_t *data, size_t size);

enum { FILES = 32 };
static struct known {
    char *path;
    bool exists, is_dir, read;
    int rc; /* of reading it */
    struct err e;
    struct file_map map;
} files[FILES];
static int n_files;
static bool began;

/* NULL: too many names, such as those that an index makes up. */
static struct known *known(const char *path)
{
    for (int i = 0; i < n_files; i++)
        if (!strcmp(files[i].path, path))
            return &files[i];
    if (n_files == FILES)
        return NULL;
    bool exists = __real_file_exists(path);
    if (!exists && n_files > FILES / 2)
        return NULL;
    struct known *k = &files[n_files++];
    *k = (struct known){.path = strdup(path), .exists = exists, .is_dir = __real_file_is_dir(path)};
    return k;
}

static struct known *content(const char *path)
{
    struct known *k = known(path);
    if (k && !k->read) {
        k->read = true;
        k->rc = __real_file_map_open(&k->map, path, &k->e);
    }
    return k;
}

void __wrap_fuzz_put(int fd, const char *path, const uint8_t *data, size_t size)
{
    struct known *k = known(path);
    (void)fd;
    began = true;
    if (!k)
        abort();
    k->exists = k->read = true;
    k->rc = OK;
    k->map = (struct file_map){size ? data : NULL, size, k->path};
}

int __wrap_file_map_open(struct file_map *map, const char *path, struct err *e)
{
    if (!began)
        return __real_file_map_open(map, path, e);
    const struct known *k = content(path);
    *map = (struct file_map){0};
    if (!k)
        return err_set(e, ERR_IO, "%s: cannot open", path);
    if (k->rc) {
        if (e)
            *e = k->e;
        return k->rc;
    }
    *map = (struct file_map){k->map.data, k->map.size, mem_strdup(path)};
    return OK;
}

void __wrap_file_map_close(struct file_map *map)
{
    if (!began) {
        __real_file_map_close(map);
        return;
    }
    free(map->path);
    *map = (struct file_map){0};
}

int __wrap_file_read(const char *path, size_t max, char **text, size_t *size, struct err *e)
{
    struct file_map map;
    if (!began)
        return __real_file_read(path, max, text, size, e);
    int rc = __wrap_file_map_open(&map, path, e);
    if (rc)
        return rc;
    char *copy = map.size <= max ? malloc(map.size + 1) : NULL;
    if (copy) {
        if (map.size)
            memcpy(copy, map.data, map.size);
        copy[map.size] = 0;
        *text = copy;
        if (size)
            *size = map.size;
    } else {
        rc = err_set(e, ERR_LIMIT, "%s: %zu bytes are too many", path, map.size);
    }
    __wrap_file_map_close(&map);
    return rc;
}

bool __wrap_file_exists(const char *path)
{
    const struct known *k = began ? known(path) : NULL;
    return began ? k && k->exists : __real_file_exists(path);
}

bool __wrap_file_is_dir(const char *path)
{
    const struct known *k = began ? known(path) : NULL;
    return began ? k && k->is_dir : __real_file_is_dir(path);
}
