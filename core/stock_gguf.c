/* Names of llama.cpp's deepseek2. */
#include "core/stock_export.h"
int stock_list_gguf(struct stock_export *x, struct err *e)
{
    (void)x;
    return err_set(e, ERR_UNSUPPORTED, "gguf is not written yet");
}
