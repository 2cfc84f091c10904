/* What /proc, /sys, the backends and the BLAS say. Refuses nothing: unknown stays empty. */
#include "sessions/machine.h"

#include <ctype.h>
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/file.h"
#include "kernels/backend.h"
#include "kernels/blas_info.h"
#include "sessions/memory.h"

#define NVIDIA_FOLDER "/proc/driver/nvidia/gpus"
#define DRM_FOLDER "/sys/class/drm"

/* The value of the first "key : value" line of a small file. */
static bool read_value(const char *path, const char *key, char *out, size_t size)
{
    char line[512];
    bool found = false;
    FILE *f = fopen(path, "r");
    while (f && !found && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (!colon || strncmp(line, key, strlen(key)) != 0)
            continue;
        while (isspace((unsigned char)*++colon)) {
        }
        snprintf(out, size, "%.*s", (int)strcspn(colon, "\n"), colon);
        found = out[0] != 0;
    }
    if (f)
        fclose(f);
    return found;
}

static void look_at_cpu(struct machine *m)
{
    struct backend *b;
    struct backend_options o = {.threads = 1};
    cpu_set_t mask;
    if (!read_value("/proc/cpuinfo", "model name", m->cpu, sizeof m->cpu) &&
        !read_value("/proc/cpuinfo", "Model", m->cpu, sizeof m->cpu))
        snprintf(m->cpu, sizeof m->cpu, "unknown");
    m->threads = sched_getaffinity(0, sizeof mask, &mask) ? (int)sysconf(_SC_NPROCESSORS_ONLN)
                                                          : CPU_COUNT(&mask);
    if (backend_open(&b, "cpu", &o, NULL))
        return;
    char text[128];
    b->ops->describe(b, text, sizeof text);
    const char *kind = strrchr(text, ','); /* "cpu, 1 thread, AVX2": the last is wanted here */
    snprintf(m->kernels, sizeof m->kernels, "%s", kind ? kind + 2 : text);
    backend_close(b);
}

/* Whether this build drives NVIDIA cards, and if not, why. */
static bool cuda_works(char *reason, size_t size)
{
    struct backend *b;
    struct backend_options o = {.threads = 1};
    struct err e = {0};
    bool built = false;
    for (const struct backend_ops *const *t = backend_table; *t; t++)
        built = built || !strcmp((*t)->name, "cuda");
    if (!built) {
        snprintf(reason, size, "this build has no CUDA backend: it computes on the CPU");
        return false;
    }
    if (backend_open(&b, "cuda", &o, &e)) {
        snprintf(reason, size, "%.*s", (int)size - 1, e.text);
        return false;
    }
    backend_close(b);
    return true;
}

static struct machine_gpu *add_gpu(struct machine *m, const char *vendor)
{
    if (m->n_gpu == MACHINE_MAX_GPUS)
        return NULL;
    struct machine_gpu *g = &m->gpu[m->n_gpu++];
    snprintf(g->vendor, sizeof g->vendor, "%.15s", vendor);
    return g;
}

/* Cards with NVIDIA's driver, then (without it, or of others) what the kernel's graphics layer
 * shows. */
static void look_at_gpus(struct machine *m)
{
    char path[512], id[32];
    DIR *d = opendir(NVIDIA_FOLDER);
    for (struct dirent *f; d && (f = readdir(d));) {
        struct machine_gpu *g = f->d_name[0] == '.' ? NULL : add_gpu(m, "NVIDIA");
        if (!g)
            continue;
        snprintf(path, sizeof path, NVIDIA_FOLDER "/%.200s/information", f->d_name);
        if (!read_value(path, "Model", g->name, sizeof g->name))
            snprintf(g->name, sizeof g->name, "NVIDIA card %.64s", f->d_name);
        g->usable = cuda_works(g->reason, sizeof g->reason);
    }
    if (d)
        closedir(d);
    bool driver = m->n_gpu > 0;
    d = opendir(DRM_FOLDER);
    for (struct dirent *f; d && (f = readdir(d));) {
        FILE *in = NULL;
        id[0] = 0;
        if (!strncmp(f->d_name, "card", 4) && !strchr(f->d_name, '-')) {
            snprintf(path, sizeof path, DRM_FOLDER "/%.64s/device/vendor", f->d_name);
            in = fopen(path, "r");
        }
        if (!in || !fgets(id, sizeof id, in))
            id[0] = 0;
        if (in)
            fclose(in);
        id[strcspn(id, "\n")] = 0;
        bool nvidia = !strcmp(id, "0x10de");
        if (!id[0] || (nvidia && driver))
            continue;
        const char *vendor = nvidia                  ? "NVIDIA"
                             : !strcmp(id, "0x1002") ? "AMD"
                             : !strcmp(id, "0x8086") ? "Intel"
                                                     : id;
        struct machine_gpu *g = add_gpu(m, vendor);
        if (!g)
            continue;
        snprintf(g->name, sizeof g->name, "%.15s %.64s", vendor, f->d_name);
        snprintf(g->reason, sizeof g->reason, "%s",
                 nvidia ? "NVIDIA's driver is not loaded" : "only NVIDIA cards could be used");
    }
    if (d)
        closedir(d);
    /* Containers may hide the folders and still have the device. */
    struct machine_gpu *g =
        !m->n_gpu && cuda_works(m->no_gpu, sizeof m->no_gpu) ? add_gpu(m, "NVIDIA") : NULL;
    if (g) {
        snprintf(g->name, sizeof g->name, "NVIDIA device");
        g->usable = true;
    }
}

void machine_look(struct machine *m)
{
    *m = (struct machine){0};
    look_at_cpu(m);
    blas_describe(m->blas, sizeof m->blas);
    m->memory_bytes = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    m->usable_bytes = memory_limit(0);
    look_at_gpus(m);
}

double machine_disk_free(const char *path, bool *writable)
{
    struct statvfs disk;
    char *dir = mem_strdup(path);
    double bytes = -1;
    *writable = false;
    while (dir && !file_exists(dir)) { /* the nearest folder that is there */
        char *slash = strrchr(dir, '/');
        if (!slash || slash == dir)
            snprintf(dir, strlen(path) + 1, "%s", slash ? "/" : ".");
        else
            *slash = 0;
    }
    if (dir && !statvfs(dir, &disk))
        bytes = (double)disk.f_bavail * (double)disk.f_frsize;
    if (dir)
        *writable = file_is_dir(dir) && access(dir, W_OK | X_OK) == 0;
    free(dir);
    return bytes;
}
