/* Healing what a workspace holds, and taking a saved conversion instead of it. Refuses to write
 * over the conversion that is healed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/calibrate.h"
#include "sessions/heal_run.h"

#define SELF_TOKENS 32768 /* that the original writes at most */

static int healing_text(struct workspace *w, const struct heal_options *o, const char *const *files,
                        int n, struct heal_text **out, const struct progress *p, struct err *e)
{
    const struct tokenizer *t = workspace_tokenizer(w, e);
    struct calib_text own;
    long long tokens = o->tokens && o->tokens < SELF_TOKENS ? o->tokens : SELF_TOKENS;
    if (!t)
        return e ? e->status : ERR_UNSUPPORTED;
    if (n)
        return heal_text_open(out, t, files, n, o->seed, e);
    tokens = tokens < 8 * CALIB_WINDOW ? 8 * CALIB_WINDOW : tokens; /* some are held out */
    int rc = calib_text_self(&own, workspace_engine(w, SIDE_ORIGINAL), t, tokens, o->seed, p, e);
    if (rc)
        return rc;
    rc = heal_text_ids(out, own.ids, own.windows, own.window, "self", o->seed, e);
    calib_text_done(&own);
    return rc;
}

int workspace_heal(struct workspace *w, const struct heal_options *options,
                   const char *const *files, int n_files, const struct heal_sink *sink,
                   const struct progress *p, struct heal_report *out, bool *changed, struct err *e)
{
    struct heal_options o = *options;
    struct heal_text *text = NULL;
    struct conversion *c = NULL;
    *changed = false;
    *out = (struct heal_report){0};
    struct conversion *from = workspace_held(w);
    struct model_info info;
    workspace_info(w, &info);
    if (!from)
        return err_set(e, ERR_ARG, "nothing to heal: convert a model, or open a conversion folder");
    if (path_same(o.dir, from->dir))
        return err_set(e, ERR_ARG,
                       "%s is the conversion to heal: give another folder, so that it stays",
                       o.dir);
    o.base_path = info.path;
    o.plan_model = &info.plan_model;
    int rc = healing_text(w, &o, files, n_files, &text, p, e);
    if (!rc)
        rc = conversion_copy(&c, from, !o.parts || o.parts >> HEAL_O & 1, e);
    if (!rc)
        rc = heal_run(&c, workspace_engine(w, SIDE_ORIGINAL), text, &o, sink, p, out, e);
    heal_text_free(text);
    if (c && (!rc || (rc == ERR_CANCELLED && out->n))) {
        struct err failed;
        int taken = workspace_adopt(w, c, &failed);
        *changed = !taken;
        if (taken && e)
            *e = failed;
        return taken ? taken : rc;
    }
    conversion_free(c);
    return rc;
}

int workspace_take(struct workspace *w, const char *dir, struct err *e)
{
    struct conversion *c = NULL;
    struct model_info info;
    if (!workspace_is_open(w))
        return err_set(e, ERR_ARG, "no model is open");
    workspace_info(w, &info);
    int rc = conversion_open(&c, dir, workspace_model(w, SIDE_ORIGINAL), &info.plan_model, e);
    return rc ? rc : workspace_adopt(w, c, e);
}

double workspace_healed_on(const struct workspace *w, const char *file)
{
    const struct conversion *c = workspace_held(w);
    const cJSON *entry = c && c->healing ? c->healing->child : NULL;
    double most = 0;
    for (; entry; entry = entry->next)
        most = fmax(most, heal_lines_shared(json_str_or(entry, "text_lines", ""), file));
    return most;
}
