/* probe: what converting one layer costs the whole model. The original's hidden states travel
 * layer by layer through held-out windows; at each layer copies of them go through the converted
 * layer at every rank asked for, then on through the rest of the original, and their last logits
 * are compared with the original's. Where the rope's narrowing alone is among them, ranks between
 * it and the lowest are not sent through the rest of the model: the error of the layer's own output
 * says where between the two they lie. Beside them, one set of states a rank goes through converted
 * layers only: what all of it costs together. */
#ifndef MLATHE_SESSIONS_PROBE_H
#define MLATHE_SESSIONS_PROBE_H

#include "core/sensitivity.h"
#include "sessions/conversion.h"

/* Text that the statistics have not seen. Borrowed. */
struct probe_text {
    const int32_t *ids; /* [windows][window] */
    int windows, window;
};
/* Adds a point to s for each rank (rank[n] ascending, at most SENSITIVITY_POINTS together with
 * those there). plan says method, layout and rope widths. s is changed only when all succeeded. */
int probe_run(struct sensitivity *s, const int *rank, int n, const struct engine *base,
              const struct conversion_input *in, const struct rankplan *plan,
              const struct probe_text *text, const struct progress *p, struct err *e);
/* Dropped energies of all layers at the plan's rope widths, a few layers at a time. */
int probe_energies(struct workspace *w, const struct rankplan *plan, struct sensitivity *s,
                   struct err *e);
/* Mean KL(base‖other) a token over the text for one or many others: base with converted attention.
 * The original goes through the text once, when the probe is opened; base, text and p must outlive
 * it. */
struct probe;
int probe_open(struct probe **out, const struct engine *base, const struct probe_text *text,
               const struct progress *p, struct err *e);
int probe_kl(struct probe *t, const struct engine *other, double *kl, struct err *e);
void probe_close(struct probe *t);
/* Where measurements for a plan's method, layout and rope widths are kept (text: the sha256 of the
 * calibration text): fresh memory. */
char *probe_path(const char *dir, const struct rankplan *plan, const char *text);

#endif
