/* kvmem: how many bytes a KV cache takes. The one formula that the screens, the planner, the
 * allocator and the reports all call. */
#ifndef MLATHE_CORE_KVMEM_H
#define MLATHE_CORE_KVMEM_H

#include "kernels/dtype.h"

/* Cached numbers a token and layer. */
int kvmem_gqa_numbers(int n_kv_head, int head_dim);                /* 2·G·d */
int kvmem_mla_numbers(int kv_lora_rank, int qk_rope_head_dim);     /* r + R */
/* The types that a cache may have, by their names in lower case; DTYPE_COUNT: none of them. */
#define KVMEM_TYPES "f16, f32, bf16 or q8_0"
enum dtype kvmem_type(const char *name);
/* Bytes of so many numbers of one token and layer: whole blocks. */
size_t kvmem_row(int numbers, enum dtype type);
/* Bytes of a cache: numbers[n_layer] a token, context tokens, batch sequences, stored as type.
 * SIZE_MAX on overflow. */
size_t kvmem_bytes(const int *numbers, int n_layer, enum dtype type, size_t context, size_t batch);
/* The same for caches that hold tokens[l] tokens of layer l each: windows forget. */
size_t kvmem_bytes_each(const int *numbers, const int *tokens, int n_layer, enum dtype type);
/* How many sequences of context tokens fit into bytes of memory (0 when none). */
size_t kvmem_fit(const int *numbers, int n_layer, enum dtype type, size_t context, size_t bytes);
/* "22.5 KiB", "1.00 GiB": binary units, three significant digits. */
void kvmem_text(double bytes, char *text, size_t size);

#endif
