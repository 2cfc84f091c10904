/* memory: what this process may use, and how calibration and conversion fit into it. Sharing of
 * statistics, streaming, and how many layers are solved side by side all follow from here. */
#ifndef MLATHE_SESSIONS_MEMORY_H
#define MLATHE_SESSIONS_MEMORY_H

#include "sessions/calibrate.h"

/* Bytes: the machine's, or what a container or a resource limit leaves of it. asked: the user's own
 * limit, 0: none. */
double memory_limit(size_t asked);

/* Shares of the limit (of calibration statistics and a conversion's tensors before they go to disk,
 * of statistics on disk: what is there should stay in the page cache). */
#define MEMORY_RESIDENT (1.0 / 4)
#define MEMORY_ON_DISK (1.0 / 3)
#define MEMORY_PREPARED (1.0 / 16) /* of what is kept to convert again at other ranks */
#define MEMORY_USABLE 0.8 /* of the limit, by everything together */

/* How a model is calibrated within a limit. */
struct memory_plan {
    double limit;
    struct stats_form form;
    bool resident; /* statistics stay in memory */
};
/* groups: 0, or the user's choice; can_stream: there is a folder for statistics. */
struct memory_plan memory_plan_for(const struct model *m, double limit, int groups, int window,
                                   bool can_stream);
/* ERR_LIMIT with the figures and the remedies when calibration or solving a layer does not fit
 * beside `held` bytes that are in use anyway. folder (may be NULL) must have room for what streams.
 */
int memory_check(const struct model *m, const struct memory_plan *p, const struct calib_text *text,
                 int threads, double held, const char *folder, struct err *e);
/* Layers that can be solved side by side, from 1 to threads. */
int memory_layers_at_once(const struct model *m, double limit, int rank, int threads);

#endif
