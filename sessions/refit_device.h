/* refit_device: the sums of an output projection's refit (refit.h), in the backend's memory, where
 * the hidden states are. Heads' outputs stay there between the two halves of a layer. */
#ifndef MLATHE_SESSIONS_REFIT_DEVICE_H
#define MLATHE_SESSIONS_REFIT_DEVICE_H

#include "kernels/algebra.h"

struct refit_device;
/* For rows of width W and targets of D, at most group of them at a time. *out is NULL where the
 * host has to do it: the backend has no algebra, or not the memory. */
int refit_device_new(struct refit_device **out, struct backend *b, size_t rows, int group, int W,
                     int D, struct err *e);
void refit_device_free(struct refit_device *d);
/* A layer begins. bias [D] or NULL; wo [D][W] where targets are products of it, else NULL. Host. */
int refit_device_start(struct refit_device *d, const float *wo, const float *bias, struct err *e);
/* The next add's targets: W_O a of heads a [n][W], or h − h̃ − bias [n][D]; all backend memory. */
void refit_device_product(struct refit_device *d, const float *a, int n);
void refit_device_gap(struct refit_device *d, const float *h, const float *converted, int n);
/* Adds n rows from row first on: the converted layer's heads [n][W]. */
void refit_device_add(struct refit_device *d, size_t first, const float *heads, int n);
/* Those heads again. */
void refit_device_heads(const struct refit_device *d, size_t first, float *heads, int n);
/* S [W][W] (upper triangle) and X [W][D] of the layer, host. */
int refit_device_collect(const struct refit_device *d, double *S, double *X, struct err *e);

#endif
