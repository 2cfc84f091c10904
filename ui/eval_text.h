/* eval_text: a measurement in words, the same on the screen and on the command line, and the curves
 * of loss against position. Pure. */
#ifndef MLATHE_UI_EVAL_TEXT_H
#define MLATHE_UI_EVAL_TEXT_H

#include "sessions/eval_record.h"
#include "ui/plot.h"

#define EVAL_TEXT 256
/* Line i (from 0) of the table; false behind the last. timed: with seconds and speeds. */
bool eval_text_line(const struct eval_record *r, int i, bool timed, char text[EVAL_TEXT]);
/* "perplexity of wiki.txt (hf, 3 windows of 512)" */
void eval_text_title(const struct eval_record *r, char text[EVAL_TEXT]);
/* The one number for a narrow place: "KL 0.195", "acc_norm 43.2 -> 41.8 %". */
void eval_text_brief(const struct eval_record *r, char text[64]);

/* Which curve of a perplexity measurement. */
enum eval_curve { CURVE_NLL, CURVE_NLL_AGAINST, CURVE_KL };
/* h×w characters of curve(s) of NLL (both models) or KL over the window, with the axis at the left
 * (6 columns) and the positions below: h lines of text, each up to w columns. Calls put for each
 * line; false when there is nothing to draw. */
bool eval_text_plot(const struct eval_record *r, enum eval_curve what, int h, int w, bool ascii,
                    void (*put)(void *user, int line, const char *text), void *user);

#endif
