#!/usr/bin/env bash
# Fuzzes one reader, or all of them one after the other, from the committed seeds.
#   tests/fuzz.sh                   lists the targets
#   tests/fuzz.sh TARGET|all SECONDS [libFuzzer options]
# Needs clang. Builds in build/fuzz; what is found lies in build/fuzz/found/TARGET. An input may take
# one second and 1 GiB; more is a finding. An input that is fixed goes to tests/fuzz/seeds/TARGET.
set -eu
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
build=${MLATHE_FUZZ_BUILD:-$root/build/fuzz}
mapfile -t targets < <(sed -nE 's/^int fuzz_([a-z_]+)\(.*/\1/p' "$root/tests/support_fuzz.h")
if (($# < 2)); then
    echo "usage: tests/fuzz.sh TARGET|all SECONDS; targets: ${targets[*]}" >&2
    exit 2
fi
target=$1 seconds=$2
shift 2
[[ $target == all ]] || targets=("$target")
if [[ ! -f $build/CMakeCache.txt ]]; then
    CC=clang CXX=clang++ cmake -S "$root" -B "$build" -DFUZZ=ON -DSANITIZE=address \
        -DCMAKE_BUILD_TYPE=Release $(command -v ninja >/dev/null && echo "-G Ninja") >&2
fi
status=0
for target in "${targets[@]}"; do
    cmake --build "$build" --target "fuzz_$target" --parallel "$(nproc)" >&2
    seeds=$root/tests/fuzz/seeds/$target
    corpus=$build/corpus/$target found=$build/found/$target
    mkdir -p "$corpus" "$found" "$seeds"
    [[ $target != tokenizer ]] || corpus="$corpus $root/tests/tokenizers"
    # The readers' messages are not what is looked at; threads of BLAS would only be in the way.
    # shellcheck disable=SC2086
    OPENBLAS_NUM_THREADS=1 "$build/fuzz_$target" $corpus "$seeds" -dict="$root/tests/fuzz/words.dict" \
        -max_total_time="$seconds" -timeout=1 -rss_limit_mb=1024 -malloc_limit_mb=1024 \
        -max_len=8192 -print_final_stats=1 -artifact_prefix="$found/" "$@" 2>&1 |
        tee "$build/$target.log" | grep -E 'ERROR|SUMMARY|Test unit|stat::number_of|stat::peak' |
        sed "s/^/$target: /" || true
    ! grep -q '^SUMMARY' "$build/$target.log" || status=1
done
exit $status
