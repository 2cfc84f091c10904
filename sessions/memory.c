/* Budgets of memory, from the machine, the container and the process. */
#include "sessions/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/kvmem.h"
#include "sessions/conversion.h"

/* The number in a control file of the container (they claim to be empty), or what was known before.
 */
static double control_group(const char *path, double known)
{
    double v = 0;
    FILE *f = fopen(path, "re");
    bool number = f && fscanf(f, "%lf", &v) == 1; /* "max": none */
    if (f)
        fclose(f);
    return number && v > 0 && v < known ? v : known;
}

double memory_limit(size_t asked)
{
    double limit = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    struct rlimit r;
    limit = control_group("/sys/fs/cgroup/memory.max", limit);
    limit = control_group("/sys/fs/cgroup/memory/memory.limit_in_bytes", limit);
    const int kinds[] = {RLIMIT_DATA, RLIMIT_AS};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!getrlimit(kinds[i], &r) && r.rlim_cur != RLIM_INFINITY && (double)r.rlim_cur < limit)
            limit = (double)r.rlim_cur;
    return asked && (double)asked < limit ? (double)asked : limit;
}

struct memory_plan memory_plan_for(const struct model *m, double limit, int groups, int window,
                                   bool can_stream)
{
    struct memory_plan p = {.limit = limit};
    double room = limit * MEMORY_RESIDENT;
    p.form = stats_choose(m, groups, room, window);
    p.resident = !can_stream || stats_bytes(m, &p.form, window) <= room;
    if (!groups && p.form.groups && can_stream) { /* shared anyway: as little as the disk allows */
        p.form = stats_choose(m, 0, limit * MEMORY_ON_DISK, window);
        p.resident = stats_bytes(m, &p.form, window) <= room;
    }
    return p;
}

static double free_on_disk(const char *folder)
{
    struct statvfs v;
    return statvfs(folder, &v) ? 1e300 : (double)v.f_bavail * (double)v.f_frsize;
}

int memory_check(const struct model *m, const struct memory_plan *p, const struct calib_text *text,
                 int threads, double held, const char *folder, struct err *e)
{
    const char *name = m->hp.name;
    char needs[32], has[32], tokens[32];
    double all = stats_bytes(m, &p->form, text->window);
    double pass = calibrate_bytes(m, text, &p->form, threads) + (p->resident ? all : 0);
    double solve = conversion_layer_bytes(m, m->hp.head_dim) + (p->resident ? all : 0);
    double have = MEMORY_USABLE * p->limit, hidden = calibrate_hidden_bytes(m, text);
    kvmem_text(have, has, sizeof has);
    kvmem_text(hidden, tokens, sizeof tokens);
    if (pass + held > have) {
        kvmem_text(pass + held, needs, sizeof needs);
        const char *remedy = hidden > 0.2 * pass ? "use fewer tokens (--tokens)"
                             : p->form.groups == 1
                                 ? "use a machine with more memory, or a smaller model"
                                 : "let heads share statistics (--stat-groups 1)";
        return err_set(
            e, ERR_LIMIT,
            "%s: calibration needs %s, of which %s are hidden states of the tokens; %s may "
            "be used: %s",
            name, needs, tokens, has, remedy);
    }
    if (solve + held > have) {
        kvmem_text(solve + held, needs, sizeof needs);
        return err_set(e, ERR_LIMIT,
                       "%s: solving one layer needs %s, %s may be used: use a machine with more "
                       "memory, or a smaller model",
                       name, needs, has);
    }
    if (!p->resident && folder && all > free_on_disk(folder)) {
        kvmem_text(all, needs, sizeof needs);
        kvmem_text(free_on_disk(folder), has, sizeof has);
        return err_set(
            e, ERR_NOSPACE,
            "%s: calibration statistics take %s on disk, %s has %s left: make room there, "
            "or let heads share statistics (--stat-groups 1)",
            name, needs, folder, has);
    }
    return OK;
}

int memory_layers_at_once(const struct model *m, double limit, int rank, int threads)
{
    double one = conversion_layer_bytes(m, rank), room = MEMORY_USABLE * limit / 2;
    int n = one > 0 && room / one < threads ? (int)(room / one) : threads;
    return n < 1 ? 1 : n;
}
