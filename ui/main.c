/* main: the executable's door. */
#include <stdio.h>

int main(void)
{
    puts("mlathe " MLATHE_VERSION);
    return 0;
}
