/* app: everything the screens show, and how keys and the worker's results change it. No terminal:
 * views draw it into a cell grid, term.c or script.c carry keys and time in. The app owns the
 * journal (what is remembered), the worker and the saver; it never touches a model. */
#ifndef MLATHE_UI_APP_H
#define MLATHE_UI_APP_H

#include "sessions/job_eval.h"
#include "sessions/job_export.h"
#include "sessions/journal.h"
#include "sessions/paths.h"
#include "sessions/saver.h"
#include "ui/app_heal.h"
#include "ui/keys.h"
#include "ui/screen.h"
#include "ui/textbuf.h"
#include "ui/ui.h"

enum { SCREEN_MODEL, SCREEN_RANKS, SCREEN_CONVERT, SCREEN_CHAT, SCREEN_EVAL, SCREEN_EXPORT,
       SCREEN_COUNT };

/* One line of input at the bottom of the screen. */
struct ask {
    enum request what; /* REQ_NONE: no question is open */
    char label[128];
    char error[512];
    const char *hint;  /* what can be typed, above the line; NULL: the label says it */
    struct textbuf text;
    bool path;         /* Tab completes a path */
};

struct layer_curve {
    bool there;
    int rope_dim;
    enum plan_layout layout;
    struct spectrum spectrum;
    struct spectrum weights;   /* of the weights alone, n 0: not there */
    enum plan_layout weights_layout;
};

struct ranks_state {
    bool has_plan;
    struct rankplan plan;
    bool has_other;
    struct rankplan other;     /* plan B, valid with has_other */
    struct rankplan *past;     /* undo: [n_past], past[at] is next to undo to */
    size_t n_past, at_past, cap_past;
    struct layer_curve *curve; /* [n_layer] */
    int layer, top;
    int mark;                  /* 1 + the layer where a range begins, 0: no range */
    int curves;                /* spectrum of 0: keys and values, 1: keys, 2: values */
    bool weights;              /* beside it that of the weights alone */
    bool linear;               /* spectra by value instead of decades */
    int zoom;                  /* the joint spectrum around its cut: 2^zoom times */
    bool energy_pending;       /* allocate by energy when the spectra are complete */
    bool has_sensitivity, sensitivity_pending;
    struct sensitivity sensitivity; /* valid with has_sensitivity; may be of another rope width */
    double price;              /* KL a number, of the last allocation by it */
};

enum convert_phase { CONVERT_NONE, CONVERT_WAITING, CONVERT_RUNNING, CONVERT_DONE,
                     CONVERT_STOPPED, CONVERT_FAILED };
struct convert_state {
    enum convert_phase phase;
    bool calibrate_first;
    struct rankplan plan;         /* being converted; valid unless CONVERT_NONE */
    struct layer_report *report;  /* [n_layer] */
    bool *reported;               /* [n_layer] */
    int n_layer, n_reported, top;
    struct rankplan *queue;       /* [n_queue] plans that wait for the running one */
    size_t n_queue, cap_queue;
    double started_sec, ended_sec;
    bool has_result;
    struct conversion_report result; /* valid with has_result: of the converted side in use */
    struct rankplan result_plan;
    char trouble[512];            /* why it failed, or could not be saved */
};

/* A word found in the transcript. */
struct found_text {
    size_t turn;
    int what;     /* 0 and 1: what that side answered; 2: the prompt */
    size_t at, n; /* bytes; n 0: nothing found */
    bool show;    /* the next frame scrolls to it */
};

struct chat_state {
    struct textbuf prompt;
    bool in_transcript;        /* the focus */
    bool answering;
    struct side_text live[2];  /* the newest turn, with its tokens */
    bool has_stats;
    struct chat_stats stats[2];
    struct chat_compare compare;
    int scroll[2];             /* each side's lines up from its end */
    size_t history_at;         /* n: not browsing */
    char *held;                /* what was typed before browsing */
    char *needle;              /* searched for in the history; NULL: no search */
    size_t needle_at;          /* found so far */
    bool find_difference;      /* the next frame shows where the newest answers part */
    struct found_text found;
};

struct eval_state {
    struct eval_list list;      /* this conversion's results, newest last */
    int at;                     /* the one shown */
    bool running;
    struct eval_record live;    /* of the run, as far as it has come */
    bool has_live;
    double started_sec;
    char trouble[512];          /* why the last run ended */
    bool conversions, kl_curve; /* what is shown: the comparison; KL instead of NLL */
    int top;
    struct eval_results known;  /* of all conversions of the model */
};

struct export_state {
    int at;                        /* enum stock_engine, the selected line */
    int numbers[STOCK_ENGINES];    /* which of the types it takes */
    bool mtp, fold_biases;         /* as export_options has them */
    int narrow_rank;
    bool running, dry_run, has_report;
    double started_sec;
    struct export_report report;   /* valid with has_report: of the last run */
    bool report_dry;
    char trouble[1024];            /* why it failed */
    char replace[1024];            /* the name that was answered and is there already */
};

struct app {
    struct ui_options options;
    struct paths paths;
    struct shop shop;
    struct worker *worker;
    struct saver *saver;
    struct journal j;
    char *journal_path;
    int lock;                /* -1: this program saves nothing by itself */
    double save_due_sec;     /* 0: nothing to save */
    cJSON *queue_found;      /* of the last start, until a model is open; NULL: none */
    bool quit, redraw_all, suspend;
    int leave_warned;        /* asked to leave while something runs */
    bool clock_off;          /* scripts: times, speeds and memory read "--" */
    bool help;
    int help_top;
    struct rect rows;        /* where the list stands on the screen, h 0: none */
    int rows_top, *rows_at;  /* its first row; what a click sets */
    struct ask ask;
    char find[128];          /* what was looked for */
    char message[1024];
    enum role message_role;
    struct job_status status;
    double memory_bytes, memory_sec;

    struct found_models found;
    bool scanned;
    int found_selected, found_top;
    char *opening;           /* path asked for */
    int loads;               /* asked for, their ends not taken yet */
    bool has_model, calibrated, has_conversion;
    struct model_info info;
    char device[128], chat_reason[256];
    char chat_note[512]; /* "" unless a built-in format stands in for the model's template */

    struct ranks_state ranks;
    struct convert_state convert;
    struct heal_screen heal;
    struct chat_state chat;
    struct eval_state eval;
    struct export_state export;
};

int app_init(struct app *a, const struct ui_options *o, struct err *e);
/* Saves, stops the worker, frees. */
void app_done(struct app *a);

enum context app_context(const struct app *a);
enum dtype app_cache_type(const struct app *a); /* of the chats' caches */
/* False when nothing takes that key here. */
bool app_key(struct app *a, int key);
void app_paste(struct app *a, const char *text, size_t n);
void app_click(struct app *a, int row, int col);
/* Takes what the worker has; call after worker_drain. */
void app_collect(struct app *a);
/* Writes the journal when due; seconds until it is, -1 when nothing waits. */
double app_save(struct app *a, bool now);
bool app_busy(const struct app *a);
/* Draws everything. */
void app_draw(struct app *a, struct screen *s);

/* For the parts of the app and the views. */
void app_message(struct app *a, enum role role, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void app_changed(struct app *a); /* the journal is to be saved soon */
void app_open(struct app *a, const char *path, const char *fallback);
void app_go(struct app *a, int screen);
const char *app_seconds(const struct app *a, double sec, char text[32]);  /* "0:12" */
const char *app_rate(const struct app *a, double per_sec, char text[32]); /* "41.2 tok/s" */
const char *app_path_text(const char *path, char text[1024]);             /* home as ~ */

#endif
