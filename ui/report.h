/* report: a conversion as one HTML page: no script, nothing fetched, readable without a network.
 * Everything in it comes from the conversion folder and is escaped. */
#ifndef MLATHE_UI_REPORT_H
#define MLATHE_UI_REPORT_H

#include "core/json.h"
#include "sessions/eval_record.h"
#include "sessions/workspace.h"
#include "ui/markup.h"

struct report_source {
    const char *dir;
    const cJSON *description; /* mlathe.json */
    struct rankplan plan;
    struct layer_report *layer; /* [plan.model.n_layer]; NaN where the folder says nothing */
    struct eval_list evaluations;
    struct spectrum *spectra; /* [plan.model.n_layer], or NULL with the reason */
    char no_spectra[512];
};
void report_html(struct markup *m, const struct report_source *s);

#endif
