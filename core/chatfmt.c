/* From messages to a rendered conversation and its ids. Without a template there is no
 * conversation, and a template that raises gives its own words; only one that needs what our
 * interpreter lacks is replaced, and that is said. */
#include "core/chatfmt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/chatfmt_builtin.h"
#include "core/jinja.h"

struct chatfmt {
    struct jinja *jinja;
    cJSON *bos, *eos, *vars;
    char note[512]; /* "": the model's own template runs */
};

#define MAX_VARS 32

void chatfmt_free(struct chatfmt *f)
{
    if (!f)
        return;
    jinja_free(f->jinja);
    cJSON_Delete(f->bos);
    cJSON_Delete(f->eos);
    cJSON_Delete(f->vars);
    free(f);
}

const char *chatfmt_note(const struct chatfmt *f)
{
    return *f->note ? f->note : NULL;
}

int chatfmt_set_vars(struct chatfmt *f, const cJSON *vars, struct err *e)
{
    cJSON *copy = vars ? cJSON_Duplicate(vars, true) : NULL;
    if (vars && !copy)
        return err_nomem(e, 64, "template variables");
    cJSON_Delete(f->vars);
    f->vars = copy;
    return OK;
}

static int render(const struct chatfmt *f, const cJSON *messages, bool generation_prompt,
                  const cJSON *vars, struct jinja_text *out, struct err *e)
{
    struct jinja_var v[MAX_VARS];
    cJSON prompt = {.type = generation_prompt ? cJSON_True : cJSON_False};
    const cJSON *item;
    size_t n = 0;
    v[n++] = (struct jinja_var){"bos_token", f->bos, false};
    v[n++] = (struct jinja_var){"eos_token", f->eos, false};
    vars = vars ? vars : f->vars; /* the macro takes no expression */
    cJSON_ArrayForEach(item, vars)
    {
        if (n == MAX_VARS - 2)
            return err_set(e, ERR_LIMIT, "more than %d template variables", MAX_VARS - 4);
        if (item->string)
            v[n++] = (struct jinja_var){item->string, item, false};
    }
    v[n++] = (struct jinja_var){"messages", messages, true};
    v[n++] = (struct jinja_var){"add_generation_prompt", &prompt, false};
    return jinja_render(f->jinja, v, n, out, e);
}

static cJSON *messages_json(const struct chat_message *m, size_t n)
{
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; list && i < n; i++) {
        cJSON *one = cJSON_CreateObject();
        bool good = one && cJSON_AddStringToObject(one, "role", m[i].role) &&
                    cJSON_AddStringToObject(one, "content", m[i].content);
        if (!good || !cJSON_AddItemToArray(list, one)) {
            cJSON_Delete(one);
            cJSON_Delete(list);
            return NULL;
        }
    }
    return list;
}

int chatfmt_render_json(const struct chatfmt *f, const cJSON *messages, bool generation_prompt,
                        const cJSON *vars, char **text, struct err *e)
{
    struct jinja_text t;
    *text = NULL;
    int rc = render(f, messages, generation_prompt, vars, &t, e);
    if (rc)
        return rc;
    *text = t.s;
    t.s = NULL;
    jinja_text_free(&t);
    return OK;
}

int chatfmt_render(const struct chatfmt *f, const struct chat_message *m, size_t n,
                   bool generation_prompt, const cJSON *vars, char **text, struct err *e)
{
    cJSON *messages = messages_json(m, n);
    *text = NULL;
    if (!messages)
        return err_nomem(e, n * sizeof *m, "messages");
    int rc = chatfmt_render_json(f, messages, generation_prompt, vars, text, e);
    cJSON_Delete(messages);
    return rc;
}

/* Does an ordinary conversation meet something that we lack? What else may fail is for the user to
 * see when it does. */
static bool lacks(const struct chatfmt *f, struct err *e)
{
    static const struct chat_message talk[] = {
        {"system", "a"}, {"user", "b"}, {"assistant", "c"}, {"user", "d"}};
    bool lacking = false;
    for (size_t skip = 0; skip < 2 && !lacking; skip++) {
        cJSON *messages = messages_json(talk + skip, 4 - skip);
        struct jinja_text text = {0};
        if (messages && !render(f, messages, true, NULL, &text, e))
            jinja_text_free(&text);
        else
            lacking = text.lacking;
        cJSON_Delete(messages);
    }
    return lacking;
}

static int fall_back(struct chatfmt *f, const char *source, const char *why, struct err *e)
{
    const char *name, *plain = chatfmt_builtin(source, &name);
    snprintf(f->note, sizeof f->note,
             "%.300s: not supported; the plain %s format is used instead of the model's template",
             why, name);
    jinja_free(f->jinja);
    f->jinja = NULL;
    return jinja_new(&f->jinja, plain, strlen(plain), e);
}

int chatfmt_new(struct chatfmt **out, const char *source, const char *bos, const char *eos,
                struct err *e)
{
    struct err why = {0};
    *out = NULL;
    if (!source)
        return err_set(e, ERR_UNSUPPORTED,
                       "the model brings no chat template; it may not be made for conversations");
    struct chatfmt *f = mem_calloc(1, sizeof *f);
    if (!f)
        return err_nomem(e, sizeof *f, "a chat template");
    f->bos = cJSON_CreateString(bos ? bos : "");
    f->eos = cJSON_CreateString(eos ? eos : "");
    int rc = f->bos && f->eos ? jinja_new(&f->jinja, source, strlen(source), &why)
                              : err_nomem(&why, 64, "a chat template");
    if (rc == ERR_UNSUPPORTED || (!rc && lacks(f, &why)))
        rc = fall_back(f, source, why.text, &why);
    if (!rc) {
        *out = f;
        return OK;
    }
    chatfmt_free(f);
    return err_set(e, rc, "%s", why.text);
}

int chatfmt_encode(const struct chatfmt *f, const struct tokenizer *t, const struct chat_message *m,
                   size_t n, bool generation_prompt, struct ids *out, struct err *e)
{
    cJSON *messages = messages_json(m, n);
    struct jinja_text text;
    if (!messages)
        return err_nomem(e, n * sizeof *m, "messages");
    int rc = render(f, messages, generation_prompt, NULL, &text, e);
    cJSON_Delete(messages);
    if (rc)
        return rc;
    /* The template has written the BOS where it wants one. */
    rc = tokenizer_encode_parts(t, text.s, text.n, text.parts, text.n_parts, 0, out, e);
    jinja_text_free(&text);
    return rc;
}
