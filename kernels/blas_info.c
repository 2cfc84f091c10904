/* What the linked OpenBLAS says about itself. Refuses nothing. */
#include "kernels/blas_info.h"

#include <cblas.h>
#include <stdio.h>
#include <string.h>

void blas_describe(char *text, size_t size)
{
    const char *config = openblas_get_config(), *core = openblas_get_corename();
    bool named = core && config && strstr(config, core);
    snprintf(text, size, "%s%s%s", config ? config : "OpenBLAS", core && !named ? " " : "",
             core && !named ? core : "");
}
