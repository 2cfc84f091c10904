/* rankplan: the user's decision: for every layer a latent rank and a rope width, with the method,
 * the layout and where the numbers came from. Plain values and pure functions; a plan knows its
 * model by name, family, shape and fingerprint and is refused for another one. */
#ifndef MLATHE_CORE_RANKPLAN_H
#define MLATHE_CORE_RANKPLAN_H

#include "core/json.h"
#include "core/spectrum.h"

enum plan_method { METHOD_MLATHE, METHOD_TRANSMLA };
/* Rope frequencies: free in every layer (our runtime); one free list for all layers (Hugging Face
 * through longrope factors); theta^(-2i/R) (every engine). */
enum plan_layout { LAYOUT_OWN, LAYOUT_SHARED, LAYOUT_STOCK };
const char *plan_layout_name(enum plan_layout layout);
/* Steps of the recipe that can be left out, to see what each is worth (method: section 4). */
enum plan_step {
    STEP_ROPE = 1 << 0,     /* our rope choice and shrinks: TransMLA's folded choice instead */
    STEP_BENEFIT = 1 << 1,  /* (1 − R²): directions chosen by energy alone */
    STEP_SHRINK = 1 << 2,   /* what loses its rotation counts as it is */
    STEP_PHASE = 1 << 3,    /* shrinks are real */
    STEP_JOINT = 1 << 4,    /* the joint fit of shrinks and rope gains */
    STEP_WEIGHTS = 1 << 5,  /* query and output weighting: plain balanced PCA */
    STEP_HEADS = 1 << 6,    /* kv_b refitted per head */
    STEP_OUTPUT = 1 << 7,   /* output projections refitted in sequence */
    STEP_OWN = 1 << 8,      /* shrinks of each head: their mean over heads for all */
    STEP_FIT = 1 << 9,      /* shrinks by regression: the mean rotation under attention instead */
    STEP_BALANCE = 1 << 10, /* keys against values by what they do: by their energy instead */
    STEP_KEYS = 1 << 11,    /* heads' keys refitted under attention: under plain moments instead */
    STEP_VALUES = 1 << 12,  /* likewise heads' values */
};
#define PLAN_STEPS 13
#define PLAN_MAX_ROUNDS 20
/* "rope", "benefit", … in the order of the bits. */
const char *plan_step_name(int bit);
/* "joint,output" → bits; ERR_ARG names what is not known. */
int plan_steps_parse(const char *text, unsigned *steps, struct err *e);

enum plan_alloc { ALLOC_UNIFORM, ALLOC_ENERGY };

struct plan_layer {
    int kv_lora_rank;     /* r */
    int qk_rope_head_dim; /* R, even */
};

/* The model as far as planning cares. */
struct plan_model {
    char name[128], family[32], fingerprint[65];
    int n_layer, n_head, n_kv_head, head_dim; /* L H G d */
};

struct rankplan {
    struct plan_model model;
    enum plan_method method;
    enum plan_layout layout;
    unsigned without;         /* mlathe: enum plan_step left out */
    int freqfold;             /* transmla: M; 0 = automatic (2·d/R … see rankplan_freqfold) */
    int rounds;               /* mlathe: of alternating least squares on the latent */
    int stride;               /* stock layout: every so many-th frequency; 0: 1 */
    double balance;           /* mlathe: of keys against values, times the natural one; 0: 1 */
    bool refit_ffn; /* mlathe: feed-forwards' output maps are refitted as well */
    double damping; /* mlathe: of the joint fit and the heads' refit, times theirs; 0: 1 */
    struct {
        char source[512];     /* "self", or file names joined by ", " */
        long long tokens, seed;
        char sha256[65];      /* of the token ids */
    } calibration;
    double budget_kept;       /* the wish that made the plan, 0 when edited by hand */
    double predicted_kl;      /* NaN when unknown */
    struct plan_layer *layer; /* [model.n_layer] */
    cJSON *extra;             /* a read plan as it was: keys that we do not know pass through */
};

int rankplan_init(struct rankplan *p, const struct plan_model *m, struct err *e);
void rankplan_done(struct rankplan *p);
int rankplan_copy(struct rankplan *to, const struct rankplan *from, struct err *e);
/* The same method, layout, fold and layers. */
bool rankplan_equal(const struct rankplan *a, const struct rankplan *b);

/* Numbers a token over all layers: of the plan, and of the original. */
long long rankplan_numbers(const struct rankplan *p);
long long rankplan_numbers_gqa(const struct plan_model *m);
double rankplan_kept(const struct rankplan *p);
/* numbers[n_layer] for kvmem_bytes. */
void rankplan_layer_numbers(const struct rankplan *p, int *numbers);
/* Smallest and largest rank a layer may have: 1 … min(2·G·d, …). */
int rankplan_max_rank(const struct plan_model *m);
/* The rope width the program picks for a kept share, and for a method's fold. */
int rankplan_auto_rope(const struct plan_model *m, enum plan_layout layout, double kept);
int rankplan_freqfold(const struct rankplan *p, int rope_dim);

/* The same rank and rope width everywhere. */
int rankplan_uniform(struct rankplan *p, int rank, int rope_dim, struct err *e);
/* As many numbers as the original caches, and nothing lost: all rotary key dims of every head, which
 * turn rope_dim of head_dim, beside a latent of all the rest (TransMLA's first form of MLA; the
 * layout must give every head its rope rows). */
int rankplan_equal_cache(struct rankplan *p, int rope_dim, struct err *e);
/* Spends a total of numbers a token (r + R summed over layers; rope widths stay as they are) by
 * exact greedy water-filling of the spectra in blocks of step, min ≤ r ≤ max. spectra[n_layer].
 * ERR_ARG when the budget is below the minimum. price (may be NULL): the dual price reached. */
int rankplan_allocate(struct rankplan *p, const struct spectrum *spectra, long long numbers,
                      int min, int max, int step, double *price, struct err *e);
/* Uniform ranks for a total of numbers a token (rounded down to whole ranks). */
int rankplan_spread(struct rankplan *p, long long numbers, struct err *e);

/* "25%", or bytes per token, or "24GiB,8192x16" → numbers a token; kv_bytes: of one number. */
int rankplan_budget(const struct plan_model *m, const char *text, int kv_bytes,
                    long long *numbers, struct err *e);

int rankplan_to_json(const struct rankplan *p, cJSON **out, struct err *e);
/* Refuses a plan for another model, naming the field that differs. where names the source. */
int rankplan_from_json(struct rankplan *p, const struct plan_model *m, const cJSON *json,
                       const char *where, struct err *e);
int rankplan_save(const struct rankplan *p, const char *path, struct err *e);
int rankplan_load(struct rankplan *p, const struct plan_model *m, const char *path, struct err *e);

#endif
