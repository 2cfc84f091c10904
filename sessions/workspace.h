/* workspace: the one place that knows two models exist. It owns the original model, its tokenizer
 * and engine, its statistics and the converted model, and offers every job as a plain blocking
 * function to one thread: the worker (screens) or main (command line). Results are the caller's. */
#ifndef MLATHE_SESSIONS_WORKSPACE_H
#define MLATHE_SESSIONS_WORKSPACE_H

#include "core/chatfmt.h"
#include "core/sensitivity.h"
#include "core/stock.h"
#include "core/tokenizer.h"
#include "sessions/infer.h"

enum side { SIDE_ORIGINAL, SIDE_CONVERTED };

/* A model as the front ends see it: numbers and words only. */
struct model_info {
    char name[128], family[32], format[32] /* "GGUF", "HF", "conversion" */, dtype[16];
    char path[1024];
    int n_layer, hidden, n_head, n_kv_head, head_dim, ffn, vocab, context;
    double rope_theta;
    size_t parameters, file_bytes;
    size_t kv_bytes_per_token;      /* F16 cache */
    bool convertible;
    char reason[256];               /* why not, when not convertible */
    char text_reason[256];          /* why it takes no text; "" when it does */
    int skipped_layers;             /* multi-token prediction layers, which nothing runs */
    struct plan_model plan_model;
    struct stock_facts stock;       /* what engines differ about */
};

struct workspace_options {
    const char *device; /* "auto", "cpu", "ref" */
    int threads;        /* 0: all */
    bool background;    /* compute at nice +10 */
    bool exact;         /* activations are never quantised to int8 */
    size_t memory;      /* bytes that may be used; 0: what the machine has */
    bool keep;          /* what converting at other ranks need not repeat stays in memory */
    bool rounded;       /* run conversions on rounded attention weights (conversion_runtime) */
};

struct workspace;
int workspace_new(struct workspace **out, const struct workspace_options *o, struct err *e);
void workspace_free(struct workspace *w);
void workspace_describe(const struct workspace *w, char *text, size_t size); /* device line */
const char *workspace_device_note(const struct workspace *w);                /* why the CPU, or "" */

/* Opens a GGUF, a Hugging Face folder, or a conversion folder (base and converted model). On
 * failure what was open stays open. */
int workspace_open(struct workspace *w, const char *path, const struct progress *p, struct err *e);
bool workspace_is_open(const struct workspace *w);
void workspace_info(const struct workspace *w, struct model_info *info);
bool workspace_has_conversion(const struct workspace *w);
/* What runs, or the model itself, a conversion in full precision; NULL when there is none. */
const struct engine *workspace_engine(const struct workspace *w, enum side side);
const struct model *workspace_model(const struct workspace *w, enum side side);
/* The tokenizer is optional for a model (logits need none): NULL with the reason in e. */
const struct tokenizer *workspace_tokenizer(const struct workspace *w, struct err *e);
const struct chatfmt *workspace_chatfmt(const struct workspace *w, struct err *e);

/* Windows of 256 tokens all over the files, and a few long ones; or text of the model's own. */
struct calib_options {
    const char *const *files;
    int n_files;       /* 0: self-generated */
    const double *shares; /* [n_files] of the tokens, > 0; NULL: equal */
    long long tokens;  /* 0: 32768 from files, 8192 self-generated */
    uint64_t seed;
    int stat_groups; /* query heads share statistics in so many groups; 0: as memory allows */
    double until;    /* a layer whose spectrum changes by less collects no more; 0: all tokens */
};
/* on_layer (may be NULL) is called as each layer is done. Statistics are kept here and, unless
 * cache_dir is NULL, in a file there that a later call with the same model and text loads. */
struct calib_sink {
    void (*on_layer)(void *user, int layer, const struct spectrum *s);
    void *user;
    enum plan_layout layout;
    int rope_dim;
};
int workspace_calibrate(struct workspace *w, const struct calib_options *o, const char *cache_dir,
                        const struct calib_sink *sink, const struct progress *p, struct err *e);
bool workspace_calibrated(const struct workspace *w);
/* How far statistics have settled, in words: what half of the tokens would have changed. */
int workspace_settled(const struct workspace *w, char *text, size_t size, struct err *e);
/* What a plan made now records as its calibration (source, tokens, seed, sha256). */
void workspace_stamp_plan(const struct workspace *w, struct rankplan *plan);
/* Spectrum of a layer for a layout and rope width, calibrated when statistics are there; n of them,
 * over the threads, all or none; likewise of the weights alone. spectrum_done what comes. */
int workspace_spectrum(struct workspace *w, int layer, enum plan_layout layout, int rope_dim,
                       struct spectrum *out, struct err *e);
int workspace_spectra(struct workspace *w, int n, const int *layer, enum plan_layout layout,
                      const int *rope_dim, struct spectrum *out, struct err *e);
int workspace_weight_spectra(struct workspace *w, int n, const int *layer, enum plan_layout layout,
                             const int *rope_dim, struct spectrum *out, struct err *e);

/* What each layer's conversion costs, by the method, layout and rope widths of plan, around `even`
 * numbers of rank a layer: from the file beside the statistics as far as it goes (cache_dir NULL:
 * none), measured otherwise on text held back from calibration. measure false: only what is known,
 * ERR_IO when nothing is. Needs statistics. */
int workspace_sensitivity(struct workspace *w, const struct rankplan *plan, int even, bool measure,
                          const char *cache_dir, struct sensitivity *out, const struct progress *p,
                          struct err *e);

struct layer_report {
    int kv_lora_rank, qk_rope_head_dim;
    double error;       /* |attention output change|² / |attention output|² on held samples */
    double loss_rope;   /* of it, from narrowing the rope */
    double loss_layout; /* of that, what layout own would have spared */
    double loss_rank;   /* of it, from the latent rank */
    double energy;      /* spectrum energy kept */
};
struct conversion_report {
    double kept;
    size_t kv_bytes_before, kv_bytes_after; /* a token, F16 cache */
    double seconds_calibrate, seconds_solve, seconds_refit; /* refit of outputs: NaN if none */
    double kl_held; /* measured on text held back from calibration; NaN: none was */
    int n_layer;
    struct layer_report *layer; /* owned: conversion_report_done */
    char path[1024];            /* "" until saved */
};
void conversion_report_done(struct conversion_report *r);
struct convert_sink {
    void (*on_layer)(void *user, int layer, const struct layer_report *r); /* after each layer */
    void *user;
};
/* Converts by plan with the statistics at hand (METHOD_TRANSMLA: after a second pass). The result
 * becomes the converted side when all of it succeeded; otherwise the workspace is as before. */
int workspace_convert(struct workspace *w, const struct rankplan *plan,
                      const struct convert_sink *sink, const struct progress *p,
                      struct conversion_report *out, struct err *e);
/* Writes the converted side as a conversion folder (mlathe.json, attention.safetensors). */
int workspace_save(struct workspace *w, const char *dir, struct err *e);
/* Distils the original into the converted side (sessions/heal.h) on text files and folders, or (none)
 * on what the original writes. The best found becomes the converted side, also when stopped
 * (ERR_CANCELLED; *changed says so). o->dir must not be the folder of what is healed: that stays. */
struct heal_options;
struct heal_sink;
struct heal_report;
int workspace_heal(struct workspace *w, const struct heal_options *o, const char *const *files,
                   int n_files, const struct heal_sink *sink, const struct progress *p,
                   struct heal_report *out, bool *changed, struct err *e);
/* The conversion saved in dir, of the same original, becomes the converted side again. */
int workspace_take(struct workspace *w, const char *dir, struct err *e);
/* About the share of a file's longer lines that the converted side was healed on. */
double workspace_healed_on(const struct workspace *w, const char *file);
/* Copies of the converted side's plan and report; false when there is none. */
bool workspace_conversion(const struct workspace *w, struct rankplan *plan,
                          struct conversion_report *report, struct err *e);
/* The temperature-0-safe vocabulary limit: ids the tokenizer knows. */
int workspace_vocab_limit(const struct workspace *w);

#endif
