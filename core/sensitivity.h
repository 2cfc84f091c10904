/* sensitivity: what converting each layer costs, measured: the KL of the model with only that layer
 * converted, at a few ranks, and with all layers converted. Between the measured ranks a layer's KL
 * follows its spectrum: KL(r) = rope + s·E(r)^a, E the dropped energy, a and s through the
 * neighbouring points. Plain values: safe to copy to the screen.
 *
 * Layers are measured as solved. Where output projections are refitted afterwards, the whole loses
 * less: by a usual share until a conversion of these widths has shown what it is here.
 *
 * Losses compound: layers together cost more than the sum of what they cost alone. The total at the
 * measured ranks says how much more, as a function of the sum. */
#ifndef MLATHE_CORE_SENSITIVITY_H
#define MLATHE_CORE_SENSITIVITY_H

#include "core/rankplan.h"

#define SENSITIVITY_GRID 64 /* dropped energies are kept at ranks i·n/64 */
#define SENSITIVITY_POINTS 16
/* KL with refitted outputs over KL x without, as usual: REFIT · x^POWER, at most 1. Measured on
 * SmolLM2-135M: .171 → .146, .880 → .615. */
#define SENSITIVITY_REFIT 0.69
#define SENSITIVITY_REFIT_POWER (-0.12)

struct sensitivity {
    int n_layer, n;    /* n: the full rank, 2·G·d */
    enum plan_method method;
    enum plan_layout layout;
    int *rope_dim;     /* [n_layer] that all of it was measured at */
    long long tokens;  /* that a KL is the mean of */
    double *energy;    /* [n_layer][SENSITIVITY_GRID + 1] dropped energy */
    double refit;      /* the same, measured; 0: not yet */
    int n_point;       /* measured ranks, ascending; the last is n: the rope's narrowing alone */
    struct sensitivity_point {
        int rank;
        double total;  /* KL with all layers converted */
        double *kl;    /* [n_layer] with that layer alone */
    } point[SENSITIVITY_POINTS];
};

int sensitivity_init(struct sensitivity *s, const struct rankplan *plan, struct err *e);
void sensitivity_done(struct sensitivity *s);
int sensitivity_copy(struct sensitivity *to, const struct sensitivity *from, struct err *e);
/* Measured for this method, layout and these rope widths. */
bool sensitivity_fits(const struct sensitivity *s, const struct rankplan *plan);
/* Adds an empty point, or finds the one of that rank; NULL: no room. */
struct sensitivity_point *sensitivity_point(struct sensitivity *s, int rank);
/* The ranks to measure for a budget of `even` numbers a layer, ascending, the full rank last;
 * rank[SENSITIVITY_POINTS], their number is returned. Ranks that have a neighbour in s are left
 * out: nothing is left when s serves that budget already. */
int sensitivity_wanted(const struct sensitivity *s, int even, int *rank);
void sensitivity_set_energy(struct sensitivity *s, int layer, const struct spectrum *x);

/* KL with layer `layer` alone at a rank; its part that the rope's narrowing costs. */
double sensitivity_layer(const struct sensitivity *s, int layer, int rank);
double sensitivity_rope(const struct sensitivity *s, int layer);
/* KL of a plan's layers together (NaN when it does not fit), and of layers whose KLs sum up to sum. */
double sensitivity_predict(const struct sensitivity *s, const struct rankplan *plan);
double sensitivity_total(const struct sensitivity *s, double sum);
/* What `more` numbers for one layer of a plan would take off the predicted KL. */
double sensitivity_gain(const struct sensitivity *s, const struct rankplan *plan, int layer,
                        int more);
/* As rankplan_allocate, with each layer's convexified KL for its energy; the price is in KL a
 * number. */
int sensitivity_allocate(const struct sensitivity *s, struct rankplan *plan, long long numbers,
                         int min, int max, int step, double *price, struct err *e);

/* Takes the measured KL of a whole conversion by plan for what refitting is worth. False: nothing to
 * learn from it. */
bool sensitivity_learn(struct sensitivity *s, const struct rankplan *plan, double kl);

int sensitivity_save(const struct sensitivity *s, const char *path, struct err *e);
/* Refuses what is not of this shape. */
int sensitivity_load(struct sensitivity *s, const struct rankplan *plan, const char *path,
                     struct err *e);

#endif
