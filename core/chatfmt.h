/* chatfmt: a conversation → the ids a model expects, through its own chat template.
 *
 * The template (a bounded Jinja subset, core/jinja) is rendered into parts that remember whether
 * they came from the template or from a message, and the parts are tokenised apart: template text
 * with special tokens parsed, message text without, so that a user cannot type a special token. */
#ifndef MLATHE_CORE_CHATFMT_H
#define MLATHE_CORE_CHATFMT_H

#include "core/json.h"
#include "core/tokenizer.h"

struct chat_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* UTF-8 */
};

struct chatfmt;
/* source NULL: a plain ChatML-like fallback is refused with ERR_UNSUPPORTED; give the template. */
int chatfmt_new(struct chatfmt **out, const char *source, const char *bos, const char *eos,
                struct err *e);
void chatfmt_free(struct chatfmt *f);

/* Rendered text in fresh memory. vars: extra template variables (object) or NULL. A template that
 * raises gives ERR_UNSUPPORTED with its own message. */
int chatfmt_render(const struct chatfmt *f, const struct chat_message *m, size_t n,
                   bool generation_prompt, const cJSON *vars, char **text, struct err *e);
/* Appends the ids of the rendered conversation; no second BOS is added. */
int chatfmt_encode(const struct chatfmt *f, const struct tokenizer *t,
                   const struct chat_message *m, size_t n, bool generation_prompt,
                   struct ids *out, struct err *e);
/* As chatfmt_render, with messages (array) and variables from a JSON document. */
int chatfmt_render_json(const struct chatfmt *f, const cJSON *messages, bool generation_prompt,
                        const cJSON *vars, char **text, struct err *e);

#endif
