/* eval_record: one finished measurement with what was asked, as JSON and CSV, and kept with the
 * conversion that it measured: DIR/evaluations.json beside mlathe.json. The document that the
 * command line prints, the screen exports and the folder keeps is the same. */
#ifndef MLATHE_SESSIONS_EVAL_RECORD_H
#define MLATHE_SESSIONS_EVAL_RECORD_H

#include "core/json.h"
#include "core/rankplan.h"
#include "sessions/bench.h"
#include "sessions/eval_task.h"

enum eval_kind { EVAL_PPL, EVAL_TASK, EVAL_SPEED, EVAL_KINDS };
#define EVAL_SPEED_ROWS 8
/* One test at one depth, of both models. */
struct speed_row {
    char test[16];
    int depth;
    double tokens_per_sec, sd, tokens_per_sec_against, sd_against;
    double kv_bytes, kv_bytes_against;
};
struct eval_record {
    enum eval_kind kind;
    char file[1024];
    long long when_sec; /* since 1970; 0: not known */
    bool rounded;       /* the conversion ran on rounded attention weights, as chats do */
    /* EVAL_PPL */
    enum eval_protocol protocol;
    int ctx, windows; /* asked for; windows 0: all */
    struct eval_result ppl;
    /* EVAL_TASK */
    long limit; /* asked for; 0: all */
    struct task_result task;
    /* EVAL_SPEED */
    bool compared;
    int n_speed;
    struct speed_row speed[EVAL_SPEED_ROWS];
};

/* The document; NULL when memory is out. */
cJSON *eval_record_json(const struct eval_record *r);
int eval_record_parse(struct eval_record *r, const cJSON *o, const char *where, struct err *e);
/* Fresh text, a table with a head line: positions of a window (EVAL_PPL), the rules of a task, the
 * tests of a speed measurement. */
char *eval_record_csv(const struct eval_record *r);
/* True when both asked the same, so that the newer one replaces the older. */
bool eval_record_same(const struct eval_record *a, const struct eval_record *b);
/* The rule that a task's results are usually quoted by. */
enum task_rule eval_headline(enum choice_task task);

struct eval_list {
    struct eval_record *r;
    size_t n, cap;
};
void eval_list_free(struct eval_list *l);
/* What a conversion folder keeps, oldest first; nothing there: an empty list. Records that this
 * version cannot read are passed over. */
int eval_list_load(struct eval_list *out, const char *dir, struct err *e);
/* Adds or replaces one record in the folder's file (atomically; all else in it is kept). A file
 * that is not understood stays as it is: ERR_FORMAT. */
int eval_store(const char *dir, const struct eval_record *r, struct err *e);

/* Conversions of one base model that have results. */
struct eval_sibling {
    char dir[1024], method[16], layout[16];
    double kept;
    struct eval_list list;
};
/* Looks at the n folders given and those inside parent (may be NULL); another base's, and those
 * without results, are left out. Sorted by kept, most first. */
int eval_siblings(struct eval_sibling **out, size_t *n_out, const char *const *dir, size_t n,
                  const char *parent, const char *fingerprint, struct err *e);
void eval_siblings_free(struct eval_sibling *s, size_t n);

#endif
