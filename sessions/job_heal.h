/* job_heal: healing as a job: what is asked, what comes back. EVENT_HEAL and EVENT_HEALED
 * (sessions/jobs.h) carry the structs below. */
#ifndef MLATHE_SESSIONS_JOB_HEAL_H
#define MLATHE_SESSIONS_JOB_HEAL_H

#include "sessions/heal.h"
#include "sessions/jobs.h"

/* job_unheal takes the conversion of a folder again; job_heal_forget drops a paused run. */
extern const struct job_kind job_heal, job_unheal, job_heal_forget;

struct heal_wish {
    struct heal_options options; /* dir: the healed one's; a paused run there goes on */
    const char *file;            /* text file or folder; NULL: the original writes */
    const char *from; /* folder of the conversion to heal; NULL: the one in use, as it is */
};
void *heal_args(const struct heal_wish *wish); /* copies */
void *heal_dir_args(const char *dir);          /* of the other two */

/* EVENT_HEAL: struct heal_point, one a step and a measurement.
 * EVENT_HEALED: what is in use now, also when stopped; EVENT_CONVERTED after job_unheal. */
struct healed_model {
    struct converted_model now;
    struct heal_report heal;
};

#endif
