/* chat: a conversation in lines. One side streams; two sides answer in turn tokens and are printed
 * whole. Two models that are no pair of original and conversion get a workspace and a transcript
 * each, and no KL. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "sessions/chat.h"
#include "sessions/models.h"
#include "ui/cli.h"

#define CHAT_CONTEXT 4096

struct talk {
    struct cli *c;
    struct workspace *w[2];
    struct chat *chat[2]; /* [1] only for an unrelated pair */
    int n_chats;
    bool both; /* chat[0] runs original and converted together */
    bool stream;
    struct chat_stats stats[2];
    struct chat_compare compare;
    cJSON *turns;
};

static void on_text(void *user, int side, const char *bytes, size_t n, int token_index, double lost)
{
    const struct talk *k = user;
    (void)side, (void)token_index, (void)lost;
    if (k->stream) {
        cli_print_text(stdout, bytes, n);
        fflush(stdout);
    }
}

static void on_stats(void *user, const struct chat_stats stats[2], const struct chat_compare *c)
{
    struct talk *k = user;
    k->stats[0] = stats[0];
    k->stats[1] = stats[1];
    k->compare = *c;
}

static bool on_go(void *user)
{
    (void)user;
    return !cli_interrupted();
}

static const char *side_name(const struct talk *k, int chat, int side)
{
    if (k->n_chats == 2)
        return chat ? "second" : "first";
    return side == SIDE_CONVERTED ? "converted" : "original";
}

static void add_compare(cJSON *o, const struct chat_compare *m)
{
    cJSON *v = cJSON_AddObjectToObject(o, "compare");
    cJSON_AddNumberToObject(v, "first_difference", m->first_difference);
    cli_json_add(v, "margin", m->margin);
    cli_json_add(v, "kl_mean", m->compared ? m->kl_mean : NAN);
    cli_json_add(v, "agreement", m->compared ? m->agreement : NAN);
    cJSON_AddNumberToObject(v, "compared", m->compared);
}

static void tell_answer(struct talk *k, int which, int turn, int side)
{
    const struct chat_stats *s = &k->stats[side];
    int n, from = chat_answer(k->chat[which], turn, side) ? side : SIDE_ORIGINAL;
    const char *text = chat_answer(k->chat[which], turn, from);
    const int32_t *ids = chat_answer_ids(k->chat[which], turn, from, &n);
    if (k->turns) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddNumberToObject(o, "turn", turn);
        cJSON_AddStringToObject(o, "side", side_name(k, which, side));
        cJSON_AddStringToObject(o, "text", text ? text : "");
        cJSON_AddItemToObject(o, "ids", cli_json_ids(ids, (size_t)n));
        cli_json_add(o, "tokens_per_sec", s->tokens_per_sec);
        cli_json_add(o, "ttft_sec", s->ttft_sec);
        cli_json_drafts(o, s->drafted, s->accepted);
        cJSON_AddStringToObject(o, "stop", s->stop ? s->stop : "");
        cJSON_AddNumberToObject(o, "context_used", s->context_used);
        cJSON_AddNumberToObject(o, "kv_bytes_used", (double)s->kv_bytes_used);
        if (k->both)
            add_compare(o, &k->compare);
        cJSON_AddItemToArray(k->turns, o);
        return;
    }
    if (!k->stream) {
        printf("[%s] ", side_name(k, which, side));
        cli_print_text(stdout, text ? text : "", text ? strlen(text) : 0);
    }
    putchar('\n');
    fflush(stdout);
    cli_say(k->c, "%s%s%d tokens, %.1f tokens/s, first after %.2f s%s%s",
            k->stream ? "" : side_name(k, which, side), k->stream ? "" : ": ", s->tokens,
            s->tokens_per_sec, s->ttft_sec, s->stop && strcmp(s->stop, "eos") ? ", stopped: " : "",
            s->stop && strcmp(s->stop, "eos") ? s->stop : "");
}

static int say(struct talk *k, const char *prompt, struct err *e)
{
    struct chat_sink sink = {on_text, on_stats, on_go, k};
    for (int i = 0; i < k->n_chats; i++) {
        int rc = chat_turn(k->chat[i], prompt, &sink, e);
        if (rc)
            return rc;
        int turn = chat_turns(k->chat[i]) - 1;
        for (int side = 0; side < 2; side++)
            if (k->both || (int)cli_side(k->c, k->w[i]) == side)
                tell_answer(k, i, turn, side);
    }
    if (k->both && !k->turns && k->compare.compared)
        cli_say(k->c, "KL %.4f nats a token over the first %d, same top %.1f %%",
                k->compare.kl_mean, k->compare.compared, 100 * k->compare.agreement);
    else if (k->both && !k->turns)
        cli_say(k->c, "the sides have heard different answers before: no KL");
    return OK;
}

/* Lines of stdin until its end. Ctrl-C stops an answer; at the prompt it leaves. */
static int converse(struct talk *k, struct err *e)
{
    char *line = NULL;
    size_t cap = 0;
    bool terminal = isatty(STDIN_FILENO);
    int rc = OK;
    while (!rc) {
        if (terminal && !k->c->o.quiet)
            fputs("> ", stderr);
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0 && cli_interrupted())
            rc = err_set(e, ERR_CANCELLED, "stopped");
        if (n < 0)
            break;
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            line[--n] = 0;
        if (!n)
            continue;
        rc = say(k, line, e);
        if (terminal && cli_interrupted() && (!rc || rc == ERR_CANCELLED)) {
            cli_interrupt_clear();
            cli_catch_interrupt();
            rc = OK;
        } else if (!rc && cli_interrupted()) {
            rc = err_set(e, ERR_CANCELLED, "stopped");
        }
    }
    free(line);
    return rc;
}

/* Opens what the words name: one model, a conversion with its own base (in either order), or two
 * models that have nothing to do with each other. */
static int open_models(struct talk *k, struct err *e)
{
    struct cli *c = k->c;
    struct model_info info[2];
    char *path[2] = {NULL, NULL};
    int rc = OK;
    for (int i = 0; i < 2 && !rc && (i == 0 || i < c->n_args); i++) {
        rc = models_resolve(c->arg[i], &path[i], e);
        if (!rc)
            rc = cli_open(c, path[i], CLI_TALK, &k->w[i], e);
        if (!rc)
            workspace_info(k->w[i], &info[i]);
    }
    k->n_chats = k->w[1] ? 2 : 1;
    for (int i = 0; i < 2 && !rc && k->w[1]; i++) {
        if (!workspace_has_conversion(k->w[i]) || workspace_has_conversion(k->w[!i]) ||
            !path_same(info[i].path, path[!i]))
            continue;
        /* The conversion's workspace holds both sides. */
        workspace_free(k->w[!i]);
        k->w[0] = k->w[i];
        k->w[1] = NULL;
        k->both = true;
        k->n_chats = 1;
    }
    free(path[0]);
    free(path[1]);
    return rc;
}

static int new_chats(struct talk *k, struct err *e)
{
    const struct cli_options *o = &k->c->o;
    enum dtype kv = DTYPE_F16;
    int rc = cli_cache_type(k->c, &kv, e);
    for (int i = 0; i < k->n_chats && !rc; i++) {
        struct model_info info;
        workspace_info(k->w[i], &info);
        int context = o->context                    ? (int)o->context
                      : info.context < CHAT_CONTEXT ? info.context
                                                    : CHAT_CONTEXT;
        struct chat_settings s = {
            .sampling = {o->temperature, (int)o->top_k, o->top_p, o->min_p, (uint64_t)o->seed},
            .max_tokens = o->predict < 0 ? 512 : (int)o->predict,
            .context = context,
            .mode = o->forced ? CHAT_FORCED : CHAT_FREE,
            .draft = o->draft,
            .kv = kv};
        rc = chat_new(&k->chat[i], k->w[i], k->both ? 2 : 1, cli_side(k->c, k->w[i]), &s, e);
        const struct chatfmt *format = rc ? NULL : workspace_chatfmt(k->w[i], e);
        if (format && chatfmt_note(format))
            cli_say(k->c, "%s", chatfmt_note(format));
        if (!rc)
            rc = chat_system(k->chat[i], o->system, e);
    }
    if (!rc && o->forced && !k->both)
        rc = cli_usage(e, "--forced compares a conversion with its original: name both");
    return rc;
}

int cli_chat(struct cli *c, struct err *e)
{
    struct talk k = {.c = c};
    int rc = open_models(&k, e);
    if (!rc)
        rc = new_chats(&k, e);
    if (!rc && c->o.json)
        k.turns = cJSON_CreateArray();
    k.stream = !c->o.json && !k.both && k.n_chats == 1;
    for (int i = 0; i < c->o.prompt.n && !rc; i++) {
        rc = say(&k, c->o.prompt.v[i], e);
        if (!rc && cli_interrupted())
            rc = err_set(e, ERR_CANCELLED, "stopped");
    }
    if (!rc && !c->o.prompt.n)
        rc = converse(&k, e);
    if (k.turns && (!rc || rc == ERR_CANCELLED)) {
        cJSON *root = cJSON_CreateObject();
        cJSON_AddItemToObject(root, "turns", k.turns);
        int printed = cli_print_json(root, e);
        rc = rc ? rc : printed;
    } else {
        cJSON_Delete(k.turns);
    }
    for (int i = 0; i < 2; i++) {
        chat_free(k.chat[i]);
        workspace_free(k.w[i]);
    }
    return rc;
}
