/* Plain forms: roles, contents and the start of an answer; no tools, no thinking, no default
 * system text. A system message without a place of its own goes before the first user's text. */
#include "core/chatfmt_builtin.h"

#include <stddef.h>
#include <string.h>

#define EACH "{% for m in messages %}"
#define END "{% endfor %}"
#define PROMPT(text) "{% if add_generation_prompt %}" text "{% endif %}"
/* The text of a turn, with the system message before the first user's. */
#define SYSTEM_FIRST                                                                               \
    "{% set ns = namespace(system='') %}" EACH                                                     \
    "{% if m.role == 'system' %}{% set ns.system = m.content ~ '\\n\\n' %}{% else %}"
#define SAID "{{ ns.system }}{% set ns.system = '' %}{{ m.content }}"

static const struct {
    const char *mark, *other; /* both must occur; other may be NULL */
    const char *name, *source;
} formats[] = {
    {"<|im_sep|>", "<|im_start|>", "Phi 4",
     EACH "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>" END PROMPT(
         "<|im_start|>assistant<|im_sep|>")},
    {"<|start_header_id|>", NULL, "Llama 3",
     "{{ bos_token }}" EACH
     "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>" END PROMPT(
         "<|start_header_id|>assistant<|end_header_id|>\n\n")},
    {"<start_of_turn>", NULL, "Gemma",
     "{{ bos_token }}" SYSTEM_FIRST
     "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n" SAID
     "<end_of_turn>\n{% endif %}" END PROMPT("<start_of_turn>model\n")},
    {"<|im_start|>", NULL, "ChatML",
     EACH
     "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" END PROMPT("<|im_start|>assistant\n")},
    {"<|assistant|>", "<|end|>", "Phi 3",
     EACH "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" END PROMPT("<|assistant|>\n")},
    {"[INST]", NULL, "Mistral",
     "{{ bos_token }}" SYSTEM_FIRST "{% if m.role == 'user' %}[INST] " SAID
     " [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endif %}" END},
    {"", NULL, "ChatML",
     EACH
     "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" END PROMPT("<|im_start|>assistant\n")},
};

const char *chatfmt_builtin(const char *source, const char **name)
{
    size_t i = 0;
    while (!strstr(source, formats[i].mark) ||
           (formats[i].other && !strstr(source, formats[i].other)))
        i++; /* the last mark is in every text */
    *name = formats[i].name;
    return formats[i].source;
}
