/* divergence: KL between next-token distributions given as rows of logits, on host memory. */
#ifndef MLATHE_KERNELS_DIVERGENCE_H
#define MLATHE_KERNELS_DIVERGENCE_H

/* share[n] = softmax of the logits x[n], to 2e-7 of each; log Σ exp x is returned. */
double divergence_share(float *share, const float *x, int n);
/* KL(x‖y) in nats for logits x, y [n], share and log_sum as divergence_share gave them for x. May
 * be below zero by roundings. */
double divergence_row(const float *share, const float *x, double log_sum, const float *y, int n);

#endif
