/* doctor: what this machine has and lacks, each lack with its remedy. It looks and changes nothing;
 * what it finds wrong is its answer, not its failure. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/file.h"
#include "core/kvmem.h"
#include "sessions/machine.h"
#include "sessions/models.h"
#include "sessions/paths.h"
#include "ui/cli.h"
#include "ui/term_probe.h"

#define ENOUGH_MEMORY 2147483648.0 /* the default model converts in about 1 GiB */
#define ENOUGH_DISK 1073741824.0   /* statistics and a conversion or two */

struct findings {
    cJSON *problems;
    int n;
};

static void problem(struct findings *f, const char *what, const char *remedy, ...)
    __attribute__((format(printf, 3, 4)));
static void problem(struct findings *f, const char *what, const char *remedy, ...)
{
    char text[1536];
    va_list args;
    va_start(args, remedy);
    vsnprintf(text, sizeof text, remedy, args);
    va_end(args);
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "problem", what);
    cJSON_AddStringToObject(o, "remedy", text);
    cJSON_AddItemToArray(f->problems, o);
    f->n++;
}

static void check_machine(struct findings *f, const struct machine *m)
{
    char what[512], have[32];
    if (strstr(m->kernels, "scalar"))
        problem(f, "the processor has no vector instructions that the CPU kernels know",
                "everything works, slowly; a processor with AVX2 is many times as fast");
    if (m->usable_bytes < ENOUGH_MEMORY) {
        kvmem_text(m->usable_bytes, have, sizeof have);
        snprintf(what, sizeof what, "little memory: %s may be used", have);
        problem(f, what,
                "close other programs or raise the container's limit; --memory MiB tells "
                "the program to make do with less");
    }
    for (int i = 0; i < m->n_gpu; i++) {
        const struct machine_gpu *g = &m->gpu[i];
        if (g->usable)
            continue;
        snprintf(what, sizeof what, "%s is not used: %s", g->name, g->reason);
        problem(f, what,
                !strcmp(g->vendor, "NVIDIA")
                    ? "install NVIDIA's driver and a build with CUDA, or go on with the CPU"
                    : "nothing to do: the CPU computes");
    }
}

static void check_terminal(struct findings *f, const struct term_facts *t)
{
    char what[256];
    if (!t->utf8)
        problem(f, "the locale is not UTF-8: plots and borders are drawn in ASCII",
                "export LC_ALL=C.UTF-8");
    if (!t->type[0] || !strcasecmp(t->type, "dumb")) {
        problem(f, "TERM is not set or dumb: the screens cannot open",
                "export TERM=xterm-256color (or what your terminal is)");
    } else if (!t->known) {
        snprintf(what, sizeof what, "terminfo does not know TERM=%s: the screens cannot open",
                 t->type);
        problem(f, what, "install ncurses-term, or export TERM=xterm-256color");
    } else if (t->colours < 8) {
        problem(f, "the terminal has no colours",
                "nothing is lost: marks and letters carry all of "
                "it");
    }
    if (t->width > 0 && (t->width < 80 || t->height < 24)) {
        snprintf(what, sizeof what, "the window has %d columns and %d rows", t->width, t->height);
        problem(f, what,
                "screens are cut below 80 by 24: enlarge the window or use a smaller font");
    }
}

static void check_folder(struct findings *f, const char *role, const char *path)
{
    char what[1400], have[32];
    bool writable;
    double bytes = machine_disk_free(path, &writable);
    if (!writable) {
        snprintf(what, sizeof what, "the %s folder %.1000s cannot be written", role, path);
        problem(f, what,
                "change its owner or permissions, or set MLATHE_HOME to a folder of yours");
    } else if (bytes >= 0 && bytes < ENOUGH_DISK) {
        kvmem_text(bytes, have, sizeof have);
        snprintf(what, sizeof what, "only %s are free for the %s folder %.1000s", have, role, path);
        problem(f, what, "free some space, or set MLATHE_HOME to a folder on a larger disk");
    }
}

static void check_folders(struct findings *f)
{
    struct paths p;
    struct err e = {0};
    if (paths_init(&p, &e)) {
        problem(f, e.text, "export HOME, or MLATHE_HOME, as an absolute folder");
        return;
    }
    check_folder(f, "config", p.config);
    check_folder(f, "data", p.data);
    check_folder(f, "state", p.state);
    check_folder(f, "cache", p.cache);
    char *models = path_join(p.data, "models");
    char *file = models ? path_join(models, MODELS_DEFAULT) : NULL;
    if (file && !file_exists(file))
        problem(f, "the default model is not here",
                "name a model of your own (mlathe MODEL.gguf), or put it at %s; in the source "
                "folder ./run fetches it",
                file);
    free(file);
    free(models);
    paths_done(&p);
}

static cJSON *machine_json(const struct machine *m, const struct term_facts *t)
{
    cJSON *o = cJSON_CreateObject(), *cpu, *gpus, *term;
    cJSON_AddStringToObject(o, "version", MLATHE_VERSION);
    cpu = cJSON_AddObjectToObject(o, "cpu");
    cJSON_AddStringToObject(cpu, "name", m->cpu);
    cJSON_AddNumberToObject(cpu, "threads", m->threads);
    cJSON_AddStringToObject(cpu, "kernels", m->kernels);
    cJSON_AddNumberToObject(o, "memory_bytes", m->memory_bytes);
    cJSON_AddNumberToObject(o, "memory_usable_bytes", m->usable_bytes);
    cJSON_AddStringToObject(o, "blas", m->blas);
    gpus = cJSON_AddArrayToObject(o, "gpus");
    for (int i = 0; i < m->n_gpu; i++) {
        cJSON *g = cJSON_CreateObject();
        cJSON_AddStringToObject(g, "name", m->gpu[i].name);
        cJSON_AddStringToObject(g, "vendor", m->gpu[i].vendor);
        cJSON_AddBoolToObject(g, "usable", m->gpu[i].usable);
        cJSON_AddStringToObject(g, "reason", m->gpu[i].reason);
        cJSON_AddItemToArray(gpus, g);
    }
    term = cJSON_AddObjectToObject(o, "terminal");
    cJSON_AddStringToObject(term, "type", t->type);
    cJSON_AddBoolToObject(term, "is_terminal", t->is_terminal);
    cJSON_AddBoolToObject(term, "known", t->known);
    cJSON_AddBoolToObject(term, "utf8", t->utf8);
    cJSON_AddNumberToObject(term, "colours", t->colours);
    cJSON_AddNumberToObject(term, "columns", t->width);
    cJSON_AddNumberToObject(term, "rows", t->height);
    return o;
}

static void print_machine(const struct machine *m, const struct term_facts *t)
{
    char all[32], usable[32], name[256];
    kvmem_text(m->memory_bytes, all, sizeof all);
    kvmem_text(m->usable_bytes, usable, sizeof usable);
    cli_clean(m->cpu, name, sizeof name);
    printf("processor  %s, %d thread%s (%s)\n", name, m->threads, m->threads == 1 ? "" : "s",
           m->kernels);
    printf("memory     %s, %s of it may be used\n", all, usable);
    printf("blas       %s\n", m->blas);
    for (int i = 0; i < m->n_gpu; i++) {
        cli_clean(m->gpu[i].name, name, sizeof name);
        printf("gpu        %s: %s%s\n", name, m->gpu[i].usable ? "used" : "not used, ",
               m->gpu[i].reason);
    }
    if (!m->n_gpu)
        printf("gpu        none found: %s\n", m->no_gpu);
    cli_clean(t->type[0] ? t->type : "none", name, sizeof name);
    printf("terminal   %s, %s, %d colours", name, t->utf8 ? "UTF-8" : "no UTF-8", t->colours);
    if (t->width)
        printf(", %d by %d", t->width, t->height);
    putchar('\n');
}

static void print_problems(const cJSON *list, int n)
{
    char text[4096];
    printf("\n%s\n", n ? "To mend:" : "Nothing is missing.");
    for (const cJSON *v = list->child; v; v = v->next) {
        cli_clean(json_str_or(v, "problem", ""), text, sizeof text);
        printf("  ! %s\n", text);
        cli_clean(json_str_or(v, "remedy", ""), text, sizeof text);
        printf("    %s\n", text);
    }
}

int cli_doctor(struct cli *c, struct err *e)
{
    struct machine *m = mem_calloc(1, sizeof *m);
    struct term_facts t;
    if (!m)
        return err_nomem(e, sizeof *m, "the machine's description");
    machine_look(m);
    term_probe(&t);
    cJSON *o = machine_json(m, &t);
    struct findings f = {cJSON_AddArrayToObject(o, "problems"), 0};
    int rc = f.problems ? OK : err_nomem(e, 4096, "the answer");
    if (!rc) {
        check_machine(&f, m);
        check_terminal(&f, &t);
        check_folders(&f);
        if (!c->o.json) {
            print_machine(m, &t);
            print_problems(f.problems, f.n);
        }
    }
    if (!rc && c->o.json)
        rc = cli_print_json(o, e);
    else
        cJSON_Delete(o);
    free(m);
    return rc;
}
