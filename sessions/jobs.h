/* jobs: the kinds of work the screens ask for, one file a kind (job_*.c). Arguments are built here
 * and owned by the job; results arrive as the events below. A cancelled or failed job leaves
 * everything as it was. */
#ifndef MLATHE_SESSIONS_JOBS_H
#define MLATHE_SESSIONS_JOBS_H

#include "sessions/models.h"
#include "sessions/worker.h"

/* What the worker works on; only the worker's thread touches it between worker_new and _free. */
struct shop {
    struct workspace_options options; /* set before the first job */
    struct workspace *w;              /* made by the first load */
    struct chat *chat;                /* NULL until the first turn */
    int chat_sides;
    char *chat_system;
};
void shop_done(struct shop *s);
/* For worker_on_failure: when the accelerator is lost, the shop goes on with the CPU. */
void shop_failed(void *shop, int status, struct err *e);

struct text_list {
    char **text;
    size_t n, cap;
};

extern const struct job_kind job_scan, job_load, job_spectra, job_calibrate, job_convert, job_chat;
extern const struct job_kind job_sensitivity, job_search;

enum {
    EVENT_MODELS = 1,  /* struct found_models */
    EVENT_LOADED,      /* struct loaded_model */
    EVENT_SPECTRUM,    /* struct layer_spectrum */
    EVENT_LAYER,       /* struct layer_done */
    EVENT_CONVERTED,   /* struct converted_model */
    EVENT_ANSWERED,    /* struct answered_turn */
    EVENT_EVAL,        /* struct eval_news (sessions/job_eval.h) */
    EVENT_RESULTS,     /* struct eval_results (there) */
    EVENT_SENSITIVITY, /* struct sensitivity */
    EVENT_SEARCHED,    /* struct search_result */
    EVENT_EXPORTED,    /* struct export_report (sessions/job_export.h) */
    EVENT_HEAL,        /* struct heal_point (sessions/job_heal.h) */
    EVENT_HEALED,      /* struct healed_model (there) */
    EVENT_SAVED,       /* from the saver: data is the path, status and text say how it went */
};

struct found_models {
    struct model_entry *entry;
    size_t n;
};
struct loaded_model {
    struct model_info info;
    char device[128], device_note[256]; /* what computes; why not an accelerator, or "" */
    char chat_reason[256];              /* why it cannot chat; "" when it can */
    char chat_note[512]; /* when it does not chat in its own format; "" when it does */
    bool calibrated;
    bool has_conversion;
    struct rankplan plan;            /* valid with has_conversion */
    struct conversion_report report; /* valid with has_conversion */
};
struct layer_spectrum {
    int layer, rope_dim;
    enum plan_layout layout;
    struct spectrum spectrum;
};
struct layer_done {
    int layer;
    struct layer_report report;
};
struct converted_model {
    struct rankplan plan;
    struct conversion_report report;
    char save_error[512]; /* "" when the folder was written */
};
struct answered_turn {
    char *answer[2]; /* NULL: that side said nothing */
    bool cut;        /* stopped by the user */
};

void *scan_args(const struct text_list *recent); /* copied: paths to list besides, newest last */
void *load_args(const char *path, const char *fallback); /* fallback: tried when path fails */
/* rope[n_layer]; first: the layer to begin with; weights: as if nothing were calibrated. */
void *spectra_args(enum plan_layout layout, const int *rope, int n_layer, int first, bool weights);
/* o (copied): files, shares, tokens and until. */
void *calibrate_args(const struct calib_options *o, const char *cache_dir, enum plan_layout layout,
                     int rope_dim);
/* For plan's method, layout and rope widths, around `even` numbers of rank a layer; measure false:
 * only what is in cache_dir, silently nothing when nothing is. */
void *sensitivity_args(const struct rankplan *plan, int even, bool measure, const char *cache_dir);
/* even: numbers a layer, r + R. */
void *search_args(const struct rankplan *plan, int even);
/* dir: the folder under which <model>-<n> is made; NULL: do not save. */
void *convert_args(const struct rankplan *plan, const char *dir);

struct chat_turn_text {
    char *prompt, *answer[2]; /* answers NULL when that side was not there */
};
void chat_turn_text_done(struct chat_turn_text *t);
/* past[n]: the turns before, copied; the worker rewinds or refills its timelines to match. */
void *chat_args(const struct chat_turn_text *past, int n, const char *system, const char *prompt,
                const struct chat_settings *settings);

#endif
