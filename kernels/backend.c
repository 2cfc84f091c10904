/* The table of backends and the choice by name. Refuses names it does not know and devices that
 * this build has no code for. */
#include "kernels/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct backend_ops *const backend_table[] = {
    &cpu_backend_ops,
    &ref_backend_ops,
#ifdef WITH_CUDA
    &cuda_backend_ops,
#endif
    NULL,
};

#ifdef WITH_CUDA
/* "cuda" or "cuda:N". */
static int open_cuda(struct backend **out, const char *name, const struct backend_options *opt,
                     struct err *e)
{
    struct backend_options o = *opt;
    if (name[4]) {
        char *end;
        long n =
            name[4] == ':' && name[5] >= '0' && name[5] <= '9' ? strtol(name + 5, &end, 10) : -1;
        if (n < 0 || n > 1023 || *end)
            return err_set(e, ERR_ARG, "unknown device \"%s\": use cuda or cuda:N", name);
        o.device = (int)n;
    }
    return cuda_backend_ops.open(out, &o, e);
}

/* The accelerator if there is one; else the CPU, and why. */
static int open_auto(struct backend **out, const struct backend_options *opt, struct err *e)
{
    struct err why = {0};
    if (!open_cuda(out, "cuda", opt, &why))
        return OK;
    int rc = cpu_backend_ops.open(out, opt, e);
    if (!rc)
        snprintf((*out)->note, sizeof(*out)->note, "%.*s", (int)strcspn(why.text, "\n"), why.text);
    return rc;
}
#endif

int backend_open(struct backend **out, const char *name, const struct backend_options *opt,
                 struct err *e)
{
    *out = NULL;
#ifdef WITH_CUDA
    if (!strcmp(name, "auto"))
        return open_auto(out, opt, e);
    if (!strncmp(name, "cuda", 4))
        return open_cuda(out, name, opt, e);
#else
    if (!strncmp(name, "cuda", 4))
        return err_set(e, ERR_DEVICE, "no CUDA backend in this build: use --device cpu");
#endif
    for (int i = 0; backend_table[i]; i++)
        if (!strcmp(name, backend_table[i]->name) || (i == 0 && !strcmp(name, "auto")))
            return backend_table[i]->open(out, opt, e);
    return err_set(e, ERR_ARG, "unknown device \"%s\": use auto, cpu or ref", name);
}

void backend_close(struct backend *b)
{
    if (b)
        b->ops->close(b);
}
