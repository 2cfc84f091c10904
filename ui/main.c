/* main: the executable's door: locale, then the subcommands or the screens. Only here the process
 * ends. */
#include <locale.h>

#include "ui/cli.h"

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, ""); /* numbers stay in C form: plans and JSON are for machines */
    mem_return_freed();
    return cli_main(argc, argv);
}
