/* export_inputs: the second moments of what a conversion's layers read, layer after layer, for the
 * parts of an export that are fitted to text. */
#ifndef MLATHE_SESSIONS_EXPORT_INPUTS_H
#define MLATHE_SESSIONS_EXPORT_INPUTS_H

#include "sessions/export.h"
#include "sessions/states.h"

#define EXPORT_TOKENS 4096 /* unless told */

struct export_inputs {
    const struct model *m;
    struct calib_text text;
    struct backend *b; /* NULL without text */
    struct engine *g;
    struct states s;
    float *x, *block; /* host: [rows][D], [D][D] */
    double *G;        /* [n][n], owned; the user may destroy what is in it */
    int D, n;         /* n = D + 1 with a last input that is always one */
};
/* Reads the export's text files, or lets the conversion write text itself ("self", and without
 * files where tokens is not 0); else every direction of the normed input counts alike. tokens:
 * unless the options say how many. export_inputs_done also after a failure. */
int export_inputs_init(struct export_inputs *in, const struct export_job *j, bool constant,
                       long long tokens, struct err *e);
void export_inputs_done(struct export_inputs *in);
/* G of layer l: E[x xᵀ]. Layers in order, each once. */
int export_inputs_layer(struct export_inputs *in, int l, struct err *e);

#endif
