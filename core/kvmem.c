/* The bytes of a KV cache. A row is written token by token, so each is whole blocks. */
#include "core/kvmem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int kvmem_gqa_numbers(int n_kv_head, int head_dim)
{
    return 2 * n_kv_head * head_dim;
}

int kvmem_mla_numbers(int kv_lora_rank, int qk_rope_head_dim)
{
    return kv_lora_rank + qk_rope_head_dim;
}

enum dtype kvmem_type(const char *name)
{
    static const char *const names[] = {"f32", "f16", "bf16", "q8_0"}; /* as enum dtype has them */
    int t = 0;
    while (t < 4 && strcmp(names[t], name))
        t++;
    return t < 4 ? (enum dtype)t : DTYPE_COUNT;
}

size_t kvmem_row(int numbers, enum dtype type)
{
    return dtype_bytes(type, dtype_padded(type, (size_t)numbers));
}

size_t kvmem_bytes(const int *numbers, int n_layer, enum dtype type, size_t context, size_t batch)
{
    size_t bytes = 0;
    for (int l = 0; l < n_layer; l++)
        if (numbers[l] < 0 || !size_add(bytes, kvmem_row(numbers[l], type), &bytes))
            return SIZE_MAX;
    if (!size_mul(bytes, context, &bytes) || !size_mul(bytes, batch, &bytes))
        return SIZE_MAX;
    return bytes;
}

size_t kvmem_bytes_each(const int *numbers, const int *tokens, int n_layer, enum dtype type)
{
    size_t total = 0;
    for (int l = 0; l < n_layer; l++) {
        size_t one;
        if (numbers[l] < 0 || tokens[l] < 0 ||
            !size_mul(kvmem_row(numbers[l], type), (size_t)tokens[l], &one) ||
            !size_add(total, one, &total))
            return SIZE_MAX;
    }
    return total;
}

size_t kvmem_fit(const int *numbers, int n_layer, enum dtype type, size_t context, size_t bytes)
{
    size_t one = kvmem_bytes(numbers, n_layer, type, context, 1);
    return one ? bytes / one : 0;
}

void kvmem_text(double bytes, char *text, size_t size)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t u = 0;
    /* 1023.5 would print as "1024": move on before it does. */
    while (fabs(bytes) >= 1023.5 && u + 1 < sizeof unit / sizeof unit[0]) {
        bytes /= 1024;
        u++;
    }
    int decimals = u == 0 || fabs(bytes) >= 99.95 ? 0 : fabs(bytes) >= 9.995 ? 1 : 2;
    snprintf(text, size, "%.*f %s", decimals, bytes, unit[u]);
}
