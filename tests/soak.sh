#!/usr/bin/env bash
# Random keys on the real screens for MINUTES (tests/test_soak.c), in two builds at once: as users
# have it (memory at the end within 5 % of after the warm-up) and under the address sanitizer (no
# report, no leak). Frames stay within their bounds in both.
#   tests/soak.sh MINUTES [SEED]
set -eu
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
builds=${MLATHE_SOAK_BUILDS:-$root/build}
minutes=${1:?usage: tests/soak.sh MINUTES [SEED]}
for kind in plain address; do
    sanitize=${kind/plain/}
    [[ -f $builds/$kind/CMakeCache.txt ]] ||
        cmake -S "$root" -B "$builds/$kind" -DSANITIZE="$sanitize" -DCMAKE_BUILD_TYPE=Release >&2
    cmake --build "$builds/$kind" --target test_soak --parallel "$(nproc)" >&2
done
soak() {
    OPENBLAS_NUM_THREADS=1 "$builds/$1/test_soak" "$minutes" "$2" 2>&1 | sed -u "s/^/$1: /"
}
set -o pipefail
soak plain "${2:-1}" &
rc=0
soak address "${2:-1}" || rc=$?
wait $! || rc=$?
exit "$rc"
