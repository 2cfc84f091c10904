/* app_parts: what the rooms of the app (app_*.c) and the views offer each other. Front ends (ui.c,
 * script.c) need ui/app.h only. */
#ifndef MLATHE_UI_APP_PARTS_H
#define MLATHE_UI_APP_PARTS_H

#include "ui/app_plan.h"

const struct keymap *app_keys(const struct app *a); /* NULL: the table's */

/* app_keys.c: moves in a list of n by a key, staying within; false: the key is for something else. */
bool list_move(enum request r, int n, int page, int *at);

/* app_ask.c */
void ask_open(struct app *a, enum request what, const char *label, const char *preset, bool path);
/* With a sentence above it; hint lives as long as the program. */
void ask_hinted(struct app *a, enum request what, const char *label, const char *preset, bool path,
                const char *hint);
bool ask_key(struct app *a, enum request r, int key);
bool edit_key(struct textbuf *b, enum request r, int key); /* true when it was an edit */

bool ask_refuse(struct app *a, const struct err *e); /* the answer stays, with the reason; false */

/* app_find.c: a word on the screen that is shown */
void find_ask(struct app *a);
void find_answer(struct app *a, const char *text);
void find_next(struct app *a);
enum context app_help_context(const struct app *a); /* whose keys the help shows */

/* app_eval.c */
bool eval_request(struct app *a, enum request r);
bool eval_answer(struct app *a, enum request what, const char *text); /* false: ask.error */
void eval_event(struct app *a, struct event *v);
void eval_job_done(struct app *a, const struct event *v);
void eval_model_changed(struct app *a); /* forgets, and looks up what is kept */
void eval_drop(struct app *a);
/* What is to be shown: the run, or the chosen result; NULL: nothing yet. */
const struct eval_record *eval_shown(const struct app *a);

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
/* app_heal_line.c: what was typed; *file is fresh, NULL: none is named */
int heal_parse(struct heal_options *o, const char *text, char **file, struct err *e);
void heal_event(struct app *a, struct event *v);
void heal_job_done(struct app *a, const struct event *v);
void heal_drop(struct app *a);
/* view_spectrum.c, and view_ranks.c's KL in at most five columns: ".0042", ".421", "4.21" */
void view_spectrum(const struct app *a, struct screen *s, struct rect r);
void view_spectra_apart(const struct app *a, struct screen *s, struct rect r);
const char *view_small(double v, char text[16]);
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
const char *chat_said(const struct app *a, size_t turn, int side, size_t *n);
/* Byte where two answers of a turn part, SIZE_MAX while they do not; *end: of the marked part. */
size_t chat_parts_at(const struct app *a, size_t turn, int side, size_t *end);
bool chat_can_talk(struct app *a); /* false: a message says why not */
void chat_send(struct app *a, const char *text);

/* app_slash.c */
void chat_command(struct app *a, const char *line);
bool chat_complete_command(struct textbuf *b); /* false: it is none that begins like that */

/* app_transcript.c: what can be done with what was said */
/* As JSON, under data/chats unless named; shown: where. false: out of memory. */
bool chat_save(struct app *a, const char *name, bool quiet, char shown[1024]);
void chat_put_away(struct app *a); /* into a file, and starts a new one */
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
/* For clicks: n rows from top stand in r, *at is the selected one. */
void view_rows(struct app *a, struct rect r, int top, int n, int *at);
/* Two lines about a job that was begun at started_sec: its step, or what it waits for; how far it
 * is. also: another kind that belongs to it, or NULL. */
void view_running(const struct app *a, struct screen *s, struct rect in,
                  const struct job_kind *kind, const struct job_kind *also, double started_sec);
void view_help(struct app *a, struct screen *s, struct rect body);

#endif
