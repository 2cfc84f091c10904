/* tokenize, detokenize, render: text and token ids. Need no weights: a bare tokenizer will do. */
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/models.h"
#include "ui/cli.h"

#define RENDER_MAX_BYTES ((size_t)64 << 20)

/* The tokenizer of MODEL; a conversion folder's is its base model's. *w: NULL unless it had to be
 * opened, then *t is the workspace's. */
static int open_tokenizer(struct cli *c, struct workspace **w, struct tokenizer **own,
                          const struct tokenizer **t, struct err *e)
{
    char *path, *mark = NULL;
    *w = NULL;
    *own = NULL;
    int rc = models_resolve(c->arg[0], &path, e);
    if (rc)
        return rc;
    mark = path_join(path, "mlathe.json");
    if (mark && file_exists(mark)) {
        rc = cli_open(c, path, CLI_FAST, w, e);
        if (!rc && !(*t = workspace_tokenizer(*w, e)))
            rc = e->status;
    } else {
        rc = tokenizer_open(own, path, e);
        *t = *own;
    }
    free(mark);
    free(path);
    return rc;
}

static int print_ids(struct cli *c, const struct ids *ids, struct err *e)
{
    if (c->o.json) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddItemToObject(o, "ids", cli_json_ids(ids->v, ids->n));
        return cli_print_json(o, e);
    }
    for (size_t i = 0; i < ids->n; i++)
        printf("%s%d", i ? "," : "", ids->v[i]);
    putchar('\n');
    return OK;
}

int cli_tokenize(struct cli *c, struct err *e)
{
    struct workspace *w = NULL;
    struct tokenizer *own = NULL;
    const struct tokenizer *t;
    struct ids ids = {0};
    char *text;
    size_t n;
    int rc = cli_input(c, &text, &n, e);
    if (rc)
        return rc;
    rc = open_tokenizer(c, &w, &own, &t, e);
    if (!rc)
        rc = tokenizer_encode(t, text, n, c->o.special ? TOKENIZE_SPECIAL | TOKENIZE_BOS : 0, &ids,
                              e);
    if (!rc)
        rc = print_ids(c, &ids, e);
    ids_free(&ids);
    free(text);
    tokenizer_free(own);
    workspace_free(w);
    return rc;
}

static int print_text(struct cli *c, const char *text, size_t n, const struct ids *ids,
                      struct err *e)
{
    if (!c->o.json) {
        cli_print_text(stdout, text, n);
        putchar('\n');
        return OK;
    }
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "text", text);
    if (ids)
        cJSON_AddItemToObject(o, "ids", cli_json_ids(ids->v, ids->n));
    return cli_print_json(o, e);
}

int cli_detokenize(struct cli *c, struct err *e)
{
    struct workspace *w = NULL;
    struct tokenizer *own = NULL;
    const struct tokenizer *t;
    struct ids ids = {0};
    char *text = NULL;
    size_t n;
    if (!c->o.ids)
        return cli_usage(e, "give --ids 1,2,3");
    int rc = cli_parse_ids(c->o.ids, &ids, e);
    if (!rc)
        rc = open_tokenizer(c, &w, &own, &t, e);
    for (size_t i = 0; i < ids.n && !rc; i++)
        if (ids.v[i] >= tokenizer_size(t))
            rc = err_set(e, ERR_ARG, "id %d: the vocabulary has %d tokens: ids are counted from 0", ids.v[i],
                         tokenizer_size(t));
    if (!rc)
        rc = tokenizer_decode(t, ids.v, ids.n, c->o.skip_special, &text, &n, e);
    if (!rc)
        rc = print_text(c, text, n, NULL, e);
    free(text);
    ids_free(&ids);
    tokenizer_free(own);
    workspace_free(w);
    return rc;
}

/* --- render ------------------------------------------------------------------------------- */

struct render {
    cJSON *root;           /* what --messages holds */
    const cJSON *messages; /* the list in it */
    cJSON *vars;           /* the other keys */
    char *source;          /* of a .jinja file */
    struct workspace *w;
    struct tokenizer *own;
    const struct tokenizer *t; /* NULL with a .jinja file */
};

static int read_messages(const struct cli *c, struct render *r, struct err *e)
{
    struct cli input = *c;
    char *text;
    size_t n;
    input.o.text = NULL;
    input.o.file = c->o.messages;
    int rc = cli_input(&input, &text, &n, e);
    if (rc)
        return rc;
    rc = json_parse(&r->root, text, n, c->o.messages, e);
    free(text);
    if (rc)
        return rc;
    r->messages = cJSON_IsArray(r->root) ? r->root : json_get(r->root, "messages");
    if (!cJSON_IsArray(r->messages))
        return err_set(e, ERR_FORMAT, "%s: give a list of messages, or an object with \"messages\"",
                       c->o.messages);
    if (cJSON_IsObject(r->root)) {
        r->vars = cJSON_Duplicate(r->root, true);
        cJSON_DeleteItemFromObjectCaseSensitive(r->vars, "messages");
    }
    return OK;
}

static int open_template(struct cli *c, struct render *r, struct chatfmt **f, struct err *e)
{
    const char *model = c->arg[0], *bos = NULL, *eos = NULL, *source;
    size_t n = model ? strlen(model) : 0;
    int rc;
    if (n > 6 && !strcmp(model + n - 6, ".jinja")) {
        rc = file_read(model, RENDER_MAX_BYTES, &r->source, &n, e);
        source = r->source;
    } else {
        rc = open_tokenizer(c, &r->w, &r->own, &r->t, e);
        source = rc ? NULL : tokenizer_chat_template(r->t);
        bos = rc ? NULL : tokenizer_bos_text(r->t);
        eos = rc ? NULL : tokenizer_eos_text(r->t);
    }
    if (rc)
        return rc;
    /* The file's own bos_token and eos_token win. */
    bos = json_str_or(r->vars, "bos_token", bos ? bos : "");
    eos = json_str_or(r->vars, "eos_token", eos ? eos : "");
    rc = chatfmt_new(f, source, bos, eos, e);
    if (!rc && chatfmt_note(*f))
        cli_say(c, "%s", chatfmt_note(*f));
    return rc;
}

/* The ids of the conversation, when it is made of nothing but roles and texts. */
static int render_ids(const struct cli *c, const struct render *r, const struct chatfmt *f,
                      struct ids *ids, struct err *e)
{
    size_t n = (size_t)cJSON_GetArraySize(r->messages), i = 0;
    struct chat_message *m = mem_calloc(n, sizeof *m);
    if (!m)
        return err_nomem(e, n * sizeof *m, "the messages");
    for (const cJSON *item = r->messages->child; item; item = item->next, i++)
        m[i] =
            (struct chat_message){json_str_or(item, "role", ""), json_str_or(item, "content", "")};
    int rc = chatfmt_encode(f, r->t, m, n, !c->o.no_generation_prompt, ids, e);
    free(m);
    return rc;
}

static bool is_plain(const struct render *r)
{
    if (!r->t || json_get(r->vars, "tools"))
        return false;
    for (const cJSON *m = r->messages->child; m; m = m->next)
        if (cJSON_GetArraySize(m) != 2 || !cJSON_IsString(json_get(m, "role")) ||
            !cJSON_IsString(json_get(m, "content")))
            return false;
    return true;
}

int cli_render(struct cli *c, struct err *e)
{
    struct render r = {0};
    struct chatfmt *f = NULL;
    struct ids ids = {0};
    char *text = NULL;
    if (!c->o.messages)
        return cli_usage(e, "give --messages FILE");
    int rc = read_messages(c, &r, e);
    if (!rc)
        rc = open_template(c, &r, &f, e);
    if (!rc)
        rc = chatfmt_render_json(f, r.messages, !c->o.no_generation_prompt, r.vars, &text, e);
    if (!rc && is_plain(&r))
        rc = render_ids(c, &r, f, &ids, e);
    else if (!rc && r.t)
        rc = tokenizer_encode(r.t, text, strlen(text), TOKENIZE_SPECIAL, &ids, e);
    if (!rc)
        rc = print_text(c, text, strlen(text), r.t ? &ids : NULL, e);
    free(text);
    ids_free(&ids);
    chatfmt_free(f);
    tokenizer_free(r.own);
    workspace_free(r.w);
    free(r.source);
    cJSON_Delete(r.vars);
    cJSON_Delete(r.root);
    return rc;
}
