/* export: a conversion as files that stock engines load. Everything is written under a temporary
 * name beside the target, read back by our own reader and compared with the conversion, and only
 * then renamed: nothing half-written or wrong ever has the final name. */
#ifndef MLATHE_SESSIONS_EXPORT_H
#define MLATHE_SESSIONS_EXPORT_H

#include "core/stock_export.h"
#include "sessions/workspace.h"

struct export_options {
    enum stock_engine to;
    enum dtype dtype;
    bool fp8; /* matrices in FP8, the rest as dtype */
    const char *path;
    const char *from;         /* the conversion's folder, for what was measured there; or NULL */
    bool dry_run;             /* everything that can be known without writing */
    bool force;               /* an earlier export of ours at path is replaced */
    bool no_check;            /* leave out reading back */
    size_t shard_bytes;       /* of tensors a file; 0: 5 GB */
    int narrow_rank;          /* q_lora_rank: queries through so many numbers; 0: whole */
    bool mtp;                 /* with a prediction layer, fitted to the text if there is any */
    bool fold_biases;         /* for engines that have none: b becomes b·(a·x), a·x near one */
    const char *const *files; /* text that narrowing weighs inputs by (none: weights alone), and
                               * that folding and the prediction layer are fitted to */
    int n_files;
    long long tokens;
};

struct export_file {
    char name[64];
    size_t bytes; /* in a dry run an estimate without headers */
};
struct export_check {
    const char *name; /* "read back" */
    int tokens, same_top1;
    double nmse; /* of logits centred a position */
    bool done, passed;
    char text[256]; /* why it was not done, or what failed */
};
struct export_report {
    struct stock_verdict verdict;
    char path[1024];
    size_t bytes, free_bytes;
    struct export_file *file; /* owned */
    size_t n_file, cap_file;
    double latent_eps, freq_error;
    double query_kept;     /* narrow queries: share of their weighted energy, mean over layers */
    double bias_left;      /* folded biases: E(a·x - 1)² of the worst layer */
    int drafted, accepted; /* by the prediction layer, in a greedy text of its own */
    struct export_check check, loss; /* the latter: what narrowing and folding cost, by logits */
};
void export_report_done(struct export_report *r);

/* ERR_UNSUPPORTED with the reason when the engine cannot load the conversion, ERR_IO when path is
 * there already, ERR_NOSPACE before anything is written. The report is valid when it returns OK. */
int workspace_export(struct workspace *w, const struct export_options *o, const struct progress *p,
                     struct export_report *out, struct err *e);
/* "bf16" → dtype; false for unknown names. */
bool export_dtype(const char *name, enum dtype *out, bool *fp8); /* "fp8": BF16 with fp8 set */

/* Rooms. */
struct export_job {
    const struct model *model, *base;  /* the conversion, exact; what it was made from */
    const struct tokenizer *tokenizer; /* or NULL */
    const struct rankplan *plan;
    const struct conversion_report *result;
    const cJSON *healing; /* what was trained when, or NULL */
    const struct export_options *o;
    const struct progress *p;
    struct stock_export x;
    char *dir; /* the temporary folder or file */
    struct export_report *report;
};
int export_add_file(struct export_job *j, const char *name,
                    struct err *e); /* with its size on disk */
int export_save_json(struct export_job *j, const char *name, const cJSON *json, struct err *e);
/* Numbers written, of all; a step reports what is done before its n, and may be told to stop. */
struct export_meter {
    const struct export_job *j;
    double done, total;
};
int export_step(struct export_meter *m, double n, struct err *e);
int export_text_files(struct export_job *j, struct err *e); /* tokenizer, template, card */
int export_weights_hf(struct export_job *j, struct err *e);
int export_weights_gguf(struct export_job *j, struct err *e);
int export_compare(struct export_job *j, struct err *e);
int export_queries(struct export_job *j, struct err *e); /* fills x.narrow */
/* The conversion with its biases folded into its matrices, where the option asks for it. */
struct export_folded {
    struct model model;
    float **made; /* [2 L] */
    double left;  /* see bias_left */
};
/* The prediction layer: its projection from text (fills x.join); and a text written with the export
 * back, which must be the same as token by token. */
int export_join(struct export_job *j, struct err *e);
struct ids;
int export_check_drafts(struct export_job *j, const struct model *back, struct backend *b,
                        const struct ids *ids, struct err *e);
int export_fold(struct export_folded *f, struct export_job *j, struct err *e);
void export_folded_free(struct export_folded *f); /* also after a failure */
/* The conversion with the queries that the narrow ones multiply out to. */
struct export_narrowed {
    struct model model;
    float **made; /* [n] */
    size_t n;
};
int export_narrowed_new(struct export_narrowed *n, const struct export_job *j, struct err *e);
void export_narrowed_free(struct export_narrowed *n); /* also after a failure */

#endif
