/* app_plan: what the rooms around the plan of screen 2 offer each other and the rest of the app. */
#ifndef MLATHE_UI_APP_PLAN_H
#define MLATHE_UI_APP_PLAN_H

#include "ui/app.h"

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
/* Of the weights alone, to be shown beside the calibrated one; NULL: not there, or not wanted. */
const struct spectrum *plan_weights(const struct app *a, int layer);
bool plan_remember(struct app *a); /* for undo; false: out of memory */
void plan_set(struct app *a, struct rankplan *next); /* takes next over */
/* Likewise: the old plan can be undone to. false: out of memory, next is freed. */
bool plan_replace(struct app *a, struct rankplan *next);

/* app_recipe.c: the knobs of the method, as words; all: those at their usual value too */
void recipe_text(const struct rankplan *p, bool all, char *text, size_t size);
int recipe_parse(struct rankplan *p, const char *text, struct err *e);
void recipe_ask(struct app *a);
bool recipe_answer(struct app *a, const char *text); /* false: ask.error */

/* app_calibrate.c */
#define CALIBRATE_FILES 8
bool calibrate_answer(struct app *a, const char *text); /* false: ask.error */
void calibrate_again(struct app *a, const struct rankplan *p); /* on what was answered last */
char *calibrate_file(const struct app *a); /* its first file, fresh memory; NULL: none */

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
void plan_ask_save(struct app *a);
bool plan_answer_save(struct app *a, const char *text); /* false: ask.error */
bool plan_answer_load(struct app *a, const char *text);
void plan_keep_foreign(struct app *a, cJSON **plan, const char *why); /* into a file; frees it */
char *plan_put_away(struct app *a, const struct rankplan *p); /* into a file: its path, or NULL */
char *ask_expand_home(const char *text); /* "~/x" → path, fresh memory */

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

#endif
