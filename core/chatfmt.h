/* chatfmt: a conversation → the ids a model expects, through its own chat template.
 *
 * The template (a bounded Jinja subset, core/jinja) is rendered into one text that remembers which
 * stretches the template wrote. The text is tokenised as a whole, so that ids equal the
 * reference's, but special tokens are parsed only where they lie wholly inside template text: a
 * user cannot type one. Roles count as template text. */
#ifndef MLATHE_CORE_CHATFMT_H
#define MLATHE_CORE_CHATFMT_H

#include "core/json.h"
#include "core/tokenizer.h"

struct chat_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* UTF-8 */
};

struct chatfmt;
/* source NULL (the model brings no template) is ERR_UNSUPPORTED: nothing is guessed. A template
 * with a construct that we do not have is replaced by the plain built-in form of its family, see
 * chatfmt_note. bos and eos are the strings that the template calls bos_token and eos_token; NULL:
 * empty. */
int chatfmt_new(struct chatfmt **out, const char *source, const char *bos, const char *eos,
                struct err *e);
void chatfmt_free(struct chatfmt *f);
/* A sentence for the user when the model's own template is not what runs, else NULL. */
const char *chatfmt_note(const struct chatfmt *f);
/* Template variables (object, copied; NULL: none) for every call that is not given its own, such as
 * "__date" or Qwen3's "enable_thinking". */
int chatfmt_set_vars(struct chatfmt *f, const cJSON *vars, struct err *e);

/* Rendered text in fresh memory. vars: extra template variables (object) or NULL; "__date" in it,
 * {"year", "month", "day"}, is the day for strftime_now (core has no clock; without it 26 July 2024
 * as in the reference templates). A template that raises gives ERR_UNSUPPORTED with its own message
 * and nothing else in it. */
int chatfmt_render(const struct chatfmt *f, const struct chat_message *m, size_t n,
                   bool generation_prompt, const cJSON *vars, char **text, struct err *e);
/* Appends the ids of the rendered conversation. BOS is there if the template writes it, and only
 * then, as in transformers. */
int chatfmt_encode(const struct chatfmt *f, const struct tokenizer *t, const struct chat_message *m,
                   size_t n, bool generation_prompt, struct ids *out, struct err *e);
/* As chatfmt_render, with messages (array) and variables from a JSON document. */
int chatfmt_render_json(const struct chatfmt *f, const cJSON *messages, bool generation_prompt,
                        const cJSON *vars, char **text, struct err *e);

#endif
