/* models: what is on this machine. Looks into mlathe's own model folder and the caches of Hugging
 * Face, llama.cpp, LM Studio and Ollama; reads only headers. */
#ifndef MLATHE_SESSIONS_MODELS_H
#define MLATHE_SESSIONS_MODELS_H

#include "core/base.h"

#define MODELS_DEFAULT "SmolLM2-135M-Instruct.Q4_1.gguf"

struct model_entry {
    char *name, *path;
    char source[16]; /* "mlathe", "huggingface", "llama.cpp", "lmstudio", "ollama", "conversion",
                      * "recent" */
    char format[16], family[32], dtype[16];
    int n_layer, n_head, n_kv_head, head_dim, context;
    size_t parameters, bytes, kv_bytes_per_token;
    bool usable;
    char reason[256]; /* why not; or what is missing though it is usable */
    char converts[128], exports[256]; /* why it cannot be converted, ""; what would load it then */
};
/* Fresh array of *n; unreadable folders are skipped. recent [n_recent]: paths to list besides, the
 * newest last; what is gone is left out. */
int models_scan(struct model_entry **out, size_t *n, const char *const *recent, size_t n_recent,
                struct err *e);
void models_free(struct model_entry *m, size_t n);
/* NAME, path or NULL (the default model) → path in fresh memory. */
int models_resolve(const char *name, char **path, struct err *e);

#endif
