/* Exports as GGUF. */
#include "sessions/export.h"
int export_weights_gguf(struct export_job *j, struct err *e)
{
    (void)j;
    return err_set(e, ERR_UNSUPPORTED, "gguf is not written yet");
}
