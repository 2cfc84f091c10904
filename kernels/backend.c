/* The table of backends and the choice by name. Refuses names it does not know and devices that
 * this build has no code for. */
#include "kernels/backend.h"

#include <string.h>

const struct backend_ops *const backend_table[] = {&cpu_backend_ops, &ref_backend_ops, NULL};

int backend_open(struct backend **out, const char *name, const struct backend_options *opt,
                 struct err *e)
{
    *out = NULL;
    if (!strncmp(name, "cuda", 4))
        return err_set(e, ERR_DEVICE, "no CUDA backend in this build: use --device cpu");
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
