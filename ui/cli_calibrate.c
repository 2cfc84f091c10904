/* Calibration as the options ask for it: files, shares, tokens, until when. Refuses shares that do
 * not fit the files. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/paths.h"
#include "ui/cli_plan.h"

/* "2,1" → share[n]. */
static int parse_shares(const char *text, int n, double *share, struct err *e)
{
    for (int i = 0; i < n; i++) {
        char *end;
        share[i] = strtod(text, &end);
        if (end == text || !(share[i] > 0) || !isfinite(share[i]) || *end != (i + 1 < n ? ',' : 0))
            return cli_usage(e,
                             "--shares takes a number above 0 for each of the %d --calib files: "
                             "2,1",
                             n);
        text = end + 1;
    }
    return OK;
}

static int calib_files(const struct cli *c, double share[CLI_MAX_LIST], struct calib_options *o,
                       struct err *e)
{
    const struct cli_list *list = &c->o.calib;
    *o = (struct calib_options){.files = list->v,
                                .n_files = list->n,
                                .tokens = c->o.tokens,
                                .seed = (uint64_t)c->o.seed,
                                .stat_groups = (int)c->o.stat_groups,
                                .until = c->o.until / 100};
    for (int i = 0; i < list->n; i++) {
        if (strcmp(list->v[i], "self"))
            continue;
        if (list->n > 1)
            return cli_usage(e, "--calib self stands alone, without files");
        o->n_files = 0;
    }
    if (!c->o.shares)
        return OK;
    o->shares = share;
    return parse_shares(c->o.shares, o->n_files, share, e);
}

char *cli_statistics_dir(void)
{
    struct paths p;
    if (paths_init(&p, NULL))
        return NULL;
    char *dir = path_join(p.cache, "statistics");
    paths_done(&p);
    return dir;
}

int cli_calibrate(struct cli *c, struct workspace *w, struct err *e)
{
    struct calib_options o;
    double share[CLI_MAX_LIST];
    int rc = calib_files(c, share, &o, e);
    if (rc)
        return rc;
    char *cache = cli_statistics_dir();
    if (!o.n_files)
        cli_say(c, "calibrating on text that the model writes itself; your own text is better: "
                   "--calib FILE");
    char text[200];
    rc = workspace_calibrate(w, &o, cache, NULL, &c->progress, e);
    cli_progress_end(c);
    if (!rc)
        rc = workspace_settled(w, text, sizeof text, e);
    if (!rc && text[0])
        cli_say(c, "statistics: %s", text);
    free(cache);
    return rc;
}
