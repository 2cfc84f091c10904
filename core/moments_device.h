/* moments_device: the sums of moments_add, made where the activations are. For backends that have
 * the conversion's algebra (kernels/algebra.h); phases stay with moments_add_phase. */
#ifndef MLATHE_CORE_MOMENTS_DEVICE_H
#define MLATHE_CORE_MOMENTS_DEVICE_H

#include "core/moments.h"

struct backend;
struct moments_device;

/* Room for batches of up to rows in sequences of T, for what a accumulates (it must outlive it).
 * *out stays NULL where the backend has no algebra or not the memory: then the host adds. */
int moments_device_new(struct moments_device **out, struct backend *b, struct moments_accum *a,
                       int rows, int T, struct err *e);
void moments_device_free(struct moments_device *m);
double moments_device_bytes(const struct moments_shape *s, int rows, int T);
/* As moments_add, from the backend's memory; faults surface at the backend's sync. */
void moments_device_add(struct moments_device *m, const float *x, const float *q, const float *k,
                        const float *v, int windows);
/* The totals into the accumulator, once all windows are in. */
int moments_device_collect(struct moments_device *m, struct err *e);

#endif
