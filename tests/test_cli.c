/* The command line as a user meets it: writes tiny models, then cli_checks.sh runs the program. */
#include <sys/wait.h>

#include "core/file.h"
#include "tests/support.h"
#include "tests/support_models.h"

int main(void)
{
    struct test_model_spec spec = test_model_small();
    char path[600], command[3000];
    struct err e;
    snprintf(path, sizeof path, "%s/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0);
    snprintf(path, sizeof path, "%s/hf", test_tmpdir());
    CHECK(test_model_write_hf(path, &spec) == 0);
    spec.seed = 2; /* same shape, other weights */
    snprintf(path, sizeof path, "%s/twin.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0);
    spec.G = 4;
    snprintf(path, sizeof path, "%s/other.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0);
    snprintf(path, sizeof path, "%s/home dir", test_tmpdir()); /* the blank is on purpose */
    CHECK_OK(file_mkdirs(path, &e), e);
    snprintf(command, sizeof command, "bash '%s' '%s' '%s'", test_path("cli_checks.sh"),
             MLATHE_BINARY, test_tmpdir());
    fflush(stdout);
    int status = system(command);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "cli_checks.sh: %d", status);
    return test_end("cli");
}
