/* app_parts: what the rooms of the app (app_*.c) and the views offer each other. Front ends (ui.c,
 * script.c) need ui/app.h only. */
#ifndef MLATHE_UI_APP_PARTS_H
#define MLATHE_UI_APP_PARTS_H

#include "ui/app.h"

const struct keymap *app_keys(const struct app *a); /* NULL: the table's */

/* app_ask.c */
void ask_open(struct app *a, enum request what, const char *label, const char *preset, bool path);
bool ask_key(struct app *a, enum request r, int key);
bool edit_key(struct textbuf *b, enum request r, int key); /* true when it was an edit */

bool ask_refuse(struct app *a, const struct err *e); /* the answer stays, with the reason; false */

/* app_plan.c: the plan, its spectra and its past */
#define PLAN_TOKENS 8192 /* of calibration: seconds, not minutes; the command line takes more */
#define PLAN_KV_BYTES 2  /* of a cached number: F16 */
bool plan_request(struct app *a, enum request r);
void plan_loaded(struct app *a, const struct loaded_model *m);
void plan_spectrum(struct app *a, struct layer_spectrum *s);
void plan_drop(struct app *a);
void plan_want_spectra(struct app *a);
void plan_keep(struct app *a); /* writes the plan into the journal */
int plan_step(const struct app *a);
void plan_range(const struct app *a, int *first, int *last); /* the layers that a change is for */
int plan_curves(const struct app *a, bool *calibrated); /* layers whose spectrum fits the plan */
bool plan_curve_fits(const struct app *a, int layer);
bool plan_remember(struct app *a); /* for undo; false: out of memory */
void plan_set(struct app *a, struct rankplan *next); /* takes next over */
/* Likewise: the old plan can be undone to. false: out of memory, next is freed. */
bool plan_replace(struct app *a, struct rankplan *next);

/* app_ranks.c: what keys change of it */
void ranks_change(struct app *a, int steps);
void ranks_level(struct app *a); /* this layer's rank for all, or for the range */
void ranks_layout(struct app *a);
void ranks_method(struct app *a);
void plan_spend_evenly(struct app *a);
void ranks_spend_by_energy(struct app *a);
/* The same width everywhere, ranks as they are. */
int plan_set_rope(struct rankplan *p, int rope_dim, struct err *e);

/* app_answer.c */
bool plan_answer(struct app *a, enum request what, const char *text); /* false: ask.error says why */

/* app_plan_file.c: plans as files */
char *plan_free_path(const char *dir, const char *name, const char *suffix);
void plan_ask_save(struct app *a);
bool plan_answer_save(struct app *a, const char *text); /* false: ask.error */
bool plan_answer_load(struct app *a, const char *text);
void plan_keep_foreign(struct app *a, cJSON **plan, const char *why); /* into a file; frees it */
char *plan_put_away(struct app *a, const struct rankplan *p); /* into a file: its path, or NULL */
char *ask_expand_home(const char *text); /* "~/x" → path, fresh memory */

/* app_eval.c */
bool eval_request(struct app *a, enum request r);
bool eval_answer(struct app *a, enum request what, const char *text); /* false: ask.error */
void eval_event(struct app *a, struct event *v);
void eval_job_done(struct app *a, const struct event *v);
void eval_model_changed(struct app *a); /* forgets, and looks up what is kept */
void eval_drop(struct app *a);
/* What is to be shown: the run, or the chosen result; NULL: nothing yet. */
const struct eval_record *eval_shown(const struct app *a);

/* app_compare.c: plan B */
bool compare_request(struct app *a, enum request r);
void compare_drop(struct app *a);
void compare_keep(struct app *a);   /* into the journal */
bool compare_loaded(struct app *a); /* out of it; false: it is of another model */
/* A − B at layer l: cached numbers, and KL (NaN: not measured). false: no B. */
bool compare_layer(const struct app *a, int l, int *numbers, double *kl);
bool compare_text(const struct app *a, char *text, size_t size); /* in all; false: no B */

struct search_result;
/* app_search.c: the best rope width, measured */
void search_start(struct app *a);
bool search_stop(struct app *a); /* false: nothing runs */
void search_event(struct app *a, const struct search_result *found);

/* app_sensitivity.c: what layers cost, measured */
int plan_even_numbers(const struct app *a); /* of the budget, a layer */
const struct sensitivity *sensitivity_now(const struct app *a); /* NULL: none for this plan */
void sensitivity_fetch(struct app *a);   /* what an earlier run left on disk */
void sensitivity_measure(struct app *a);
bool sensitivity_stop(struct app *a);
void sensitivity_refresh(struct app *a); /* the plan's predicted KL */
bool sensitivity_spend(struct app *a);   /* false: nothing measured for this plan */
void sensitivity_event(struct app *a, struct sensitivity *s);
void sensitivity_job_done(struct app *a);
void sensitivity_drag(struct app *a, int percent);
void sensitivity_wants(const struct app *a, char *text, size_t size);

/* app_export.c */
bool export_request(struct app *a, enum request r);
bool export_answer(struct app *a, enum request what, const char *text); /* false: ask.error */
void export_event(struct app *a, struct export_report *r);
void export_job_done(struct app *a, const struct event *v);
void export_drop(struct app *a);
enum dtype export_numbers(const struct app *a, enum stock_engine t); /* chosen for that engine */
/* stock_check of the plan below, with the options chosen. */
void export_verdict(const struct app *a, enum stock_engine t, struct stock_verdict *out);
/* The plan that an export would be of: the conversion's, else screen 2's; NULL: neither. */
const struct rankplan *export_plan(const struct app *a);

/* app_convert.c */
void convert_start(struct app *a);
bool convert_stop(struct app *a); /* false: nothing runs */
void convert_event(struct app *a, struct event *v);
void convert_job_done(struct app *a, const struct event *v);
void convert_adopt(struct app *a, struct rankplan *plan, struct conversion_report *r);
void convert_drop(struct app *a);
void convert_keep(struct app *a); /* writes the plans that wait into the journal */
void convert_restore(struct app *a); /* those of the last start, once a model is open */

/* app_heal.c: healing the conversion in use, on screen 3 */
bool heal_request(struct app *a, enum request r);
bool heal_answer(struct app *a, const char *text); /* false: ask.error says why */
void heal_event(struct app *a, struct event *v);
void heal_job_done(struct app *a, const struct event *v);
void heal_drop(struct app *a);
/* view_heal.c: false when there is nothing of it to show */
bool view_heal(const struct app *a, struct screen *s, struct rect body);

/* app_chat.c */
int chat_init(struct chat_state *c, const struct journal *j, struct err *e);
void chat_done(struct chat_state *c);
bool chat_request(struct app *a, enum request r, int key);
void chat_collect(struct app *a, struct worker_batch *b);
void chat_answered(struct app *a, struct answered_turn *t);
void chat_job_done(struct app *a, const struct event *v);
void chat_model_changed(struct app *a);
void chat_put_away(struct app *a); /* into a file, and starts a new one */
const char *chat_said(const struct app *a, size_t turn, int side, size_t *n);
/* Byte where two answers of a turn part, SIZE_MAX while they do not; *end: of the marked part. */
size_t chat_parts_at(const struct app *a, size_t turn, int side, size_t *end);

/* app_transcript.c: what can be done with what was said */
void chat_export(struct app *a, const char *name); /* .md or .json */
void chat_search_past(struct app *a);
void chat_to_difference(struct app *a);

/* views: one a screen */
struct view_ops {
    const char *name;
    enum context context;
    void (*draw)(struct app *a, struct screen *s, struct rect body);
};
extern const struct view_ops view_model, view_ranks, view_convert, view_chat, view_eval,
    view_export;
const struct view_ops *view_of(int screen);
void view_help(struct app *a, struct screen *s, struct rect body);

#endif
