#!/usr/bin/env bash
# The kernels for AArch64: all of kernels/ compiled by a cross compiler without warnings; under
# qemu, the NEON kernels against the scalar ones, on a processor without dot products and on one
# with them. Says what it skips for want of a tool. usage: test_neon.sh PROGRAM SOURCE_FOLDER
set -u
cd -- "${2:-.}" || exit 1
cc=aarch64-linux-gnu-gcc
if ! command -v $cc >/dev/null; then
    echo "skipped: no $cc: the kernels for AArch64 are not compiled here"
    exit 77
fi
tmp=$(mktemp -d) || exit 1
trap 'rm -rf -- "$tmp"' EXIT

# The same headers serve every machine; one by one, since the host's C library lies beside them.
mkdir "$tmp/include"
for name in cblas.h openblas_config.h lapacke.h lapacke_config.h lapacke_mangling.h lapacke_utils.h; do
    for dir in $(pkg-config --cflags-only-I openblas lapacke | sed 's/-I//g') /usr/include; do
        [[ -e $dir/$name && ! -e $tmp/include/$name ]] && ln -s "$dir/$name" "$tmp/include/"
    done
done

# As the build does, by the flags of its files; fmax: gcc 12 stops where it becomes vectors.
flags=(-O2 -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes
    -Werror -fno-math-errno -fno-builtin-fmax -DTESTS_DIR="\"$PWD/tests\"" -I. -isystem "$tmp/include")
status=0
for source in kernels/*.c core/base.c tests/support_kit.c tests/tools/isa_parity.c; do
    march=armv8-a
    [[ $source == kernels/cpu_neon_dot.c ]] && march=armv8.2-a+dotprod
    $cc "${flags[@]}" -march=$march -c "$source" -o "$tmp/$(basename "$source" .c).o" || {
        echo "FAIL: $cc $source"
        status=1
    }
done
[[ $status == 0 ]] && echo "kernels compiled for AArch64"

qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64)
if [[ $status != 0 || -z $qemu ]]; then
    [[ -z $qemu ]] && echo "not run: no qemu-aarch64"
    exit $status
fi

# There is no BLAS for AArch64 here: the CPU backend calls this much of it.
echo 'void openblas_set_num_threads(int n); void openblas_set_num_threads(int n) { (void)n; }' |
    $cc -x c -c - -o "$tmp/no_blas.o"
$cc -static "$tmp"/*.o -Wl,--unresolved-symbols=ignore-in-object-files -lm -lpthread \
    -o "$tmp/isa_parity" || exit 1
for run in "cortex-a53:NEON" "max:NEON dotprod"; do
    "$qemu" -cpu "${run%%:*}" "$tmp/isa_parity" neon dotprod >"$tmp/log" 2>&1 || status=1
    cat "$tmp/log"
    grep -qx "dotprod: cpu, 1 thread, ${run#*:}" "$tmp/log" || {
        echo "FAIL: on a ${run%%:*} the kernels are not those of ${run#*:}"
        status=1
    }
done
exit $status
