#!/usr/bin/env bash
# Random keys on the real screens for MINUTES, under the address sanitizer (tests/test_soak.c): no
# report, no leak, memory at the end within 5 % of after the warm-up, frames within their bounds.
#   tests/soak.sh MINUTES [SEED]
set -eu
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
build=${MLATHE_SOAK_BUILD:-$root/build/address}
[[ -f $build/CMakeCache.txt ]] ||
    cmake -S "$root" -B "$build" -DSANITIZE=address -DCMAKE_BUILD_TYPE=Release >&2
cmake --build "$build" --target test_soak --parallel "$(nproc)" >&2
OPENBLAS_NUM_THREADS=1 exec "$build/test_soak" "${1:?usage: tests/soak.sh MINUTES [SEED]}" "${2:-1}"
