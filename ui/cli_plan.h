/* cli_plan: what the subcommands share of plans, calibration and spectra. */
#ifndef MLATHE_UI_CLI_PLAN_H
#define MLATHE_UI_CLI_PLAN_H

#include "ui/cli.h"

/* cli_plan.c */
bool cli_recipe_given(const struct cli_options *o); /* any option of the method's steps and knobs */
int cli_choose_method(const struct cli *c, struct rankplan *p, struct err *e); /* all of those */
/* The plan that the options ask for; needs spectra only for --alloc energy. */
int cli_make_plan(struct cli *c, struct workspace *w, struct rankplan *plan, struct err *e);
/* Whether --engine, if it is given, loads what the plan makes; says what filling up costs. */
int cli_check_engine(struct cli *c, const struct model_info *info, const struct rankplan *p,
                     struct err *e);
/* cli_calibrate.c; the folder of cached statistics, fresh memory, NULL: none. */
int cli_calibrate(struct cli *c, struct workspace *w, struct err *e);
char *cli_statistics_dir(void);
/* cli_spectra.c: of every layer at p's layout and widths. */
int cli_all_spectra(struct cli *c, struct workspace *w, const struct rankplan *p,
                    struct spectrum **out, struct err *e);
void cli_free_spectra(struct spectrum *s, int n_layer);

#endif
