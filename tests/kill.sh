#!/usr/bin/env bash
# kill -9 at N random moments of converting, saving, chatting, exporting and healing (tests/test_kill.c).
#   tests/kill.sh [N [SEED]]     N: 500 when left out
set -eu
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
build=${MLATHE_TEST_BUILD:-$root/build/test}
[[ -f $build/CMakeCache.txt ]] ||
    cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release >&2
cmake --build "$build" --target test_kill --parallel "$(nproc)" >&2
OPENBLAS_NUM_THREADS=1 exec "$build/test_kill" "${1:-500}" "${2:-1}"
