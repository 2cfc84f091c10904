/* workspace_private: what the rooms of the workspace share. Not for callers: they include
 * workspace.h. */
#ifndef MLATHE_SESSIONS_WORKSPACE_PRIVATE_H
#define MLATHE_SESSIONS_WORKSPACE_PRIVATE_H

#include "sessions/calibrate.h"
#include "sessions/conversion.h"
#include "sessions/workspace.h"

struct workspace {
    struct workspace_options opt;
    struct backend *backend;
    struct model *base;
    struct engine *base_engine;
    struct plan_model plan_model;
    struct tokenizer *tokenizer; /* NULL with the reason in no_tokenizer */
    struct chatfmt *chatfmt;
    struct err no_tokenizer, no_chatfmt;
    struct calib_text text; /* of the statistics */
    struct stats *stats;    /* NULL: not calibrated */
    char *spill;            /* folder for what does not fit into memory, or NULL */
    struct prepared_layer *prepared; /* [L] of stats, or NULL (sessions/prepared.h) */
    unsigned long solves;            /* conversions made or tried */
    double memory;          /* bytes that may be used */
    double seconds_calibrate;
    int *shared, shared_rope; /* the shared layout's list and its width, once asked for */
    struct conversion *conv;
    struct engine *conv_engine;
};

/* The statistics and what hangs on them. */
void workspace_drop_statistics(struct workspace *w);
void workspace_drop_conversion(struct workspace *w);
int workspace_converted_engine(const struct workspace *w, struct conversion *c, struct engine **out,
                               struct err *e);
/* ERR_UNSUPPORTED with the reason when the open model cannot be converted. */
int workspace_refuse_conversion(const struct workspace *w, struct err *e);
/* The list that plan's layout needs, NULL when it needs none: the shared layout has one rope width.
 */
int workspace_plan_shared_list(struct workspace *w, const struct rankplan *plan, const int **list,
                               struct err *e);
/* Wide layers take so much memory to solve that they cannot all be in work together. */
int workspace_layers_at_once(const struct workspace *w, int rank);
/* Room for what conversions need not repeat, where it is asked for and takes little: from the first
 * on. (workspace_convert.c) */
void workspace_prepare(struct workspace *w, struct conversion_input *in);

#endif
