/* machine: what this computer is, as far as conversions care: processor, memory, BLAS, graphics
 * cards and whether this build can use them. Reads /proc and /sys only; what cannot be read stays
 * empty. */
#ifndef MLATHE_SESSIONS_MACHINE_H
#define MLATHE_SESSIONS_MACHINE_H

#include "core/base.h"

#define MACHINE_MAX_GPUS 16
struct machine_gpu {
    char name[128], vendor[16]; /* "NVIDIA", "AMD", "Intel" or a number */
    bool usable;
    char reason[256]; /* why not */
};
struct machine {
    char cpu[128];
    int threads;       /* that may run at once, by the scheduler's mask */
    char kernels[128]; /* what the cpu backend says it runs on */
    char blas[256];
    double memory_bytes; /* of the machine */
    double usable_bytes; /* what a container or a resource limit leaves of it */
    struct machine_gpu gpu[MACHINE_MAX_GPUS];
    int n_gpu;
    char no_gpu[256]; /* why none can be used where n_gpu is 0 */
};
void machine_look(struct machine *m);
/* Bytes free for us on the disk that path lies on or would lie on; < 0 when nobody knows.
 * writable: whether files could be made there. */
double machine_disk_free(const char *path, bool *writable);

#endif
