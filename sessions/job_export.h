/* job_export: exporting the open conversion, as a job of the screens. */
#ifndef MLATHE_SESSIONS_JOB_EXPORT_H
#define MLATHE_SESSIONS_JOB_EXPORT_H

#include "sessions/export.h"
#include "sessions/worker.h"

extern const struct job_kind job_export;
/* o is copied, its path and the first of its files too. The result is EVENT_EXPORTED with a struct
 * export_report. */
void *export_args(const struct export_options *o);

#endif
