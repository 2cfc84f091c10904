#!/usr/bin/env bash
# Fuzzes one reader, or all of them one after the other, from the committed seeds.
#   tests/fuzz.sh                   lists the targets
#   tests/fuzz.sh TARGET|all SECONDS [libFuzzer options]     such as -runs=10000000
# Needs clang. Builds in build/fuzz; what is found lies in build/fuzz/found/TARGET. An input may take
# one second of processor time and 1 GiB; more is a finding. An input that is fixed goes to tests/fuzz/seeds/TARGET.
# MLATHE_FUZZ_FAST=1 leaves the sanitizers out: several times as many executions; a run with them
# (-runs=1, say) then replays what was kept, as both share build/corpus.
set -eu
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
fast=${MLATHE_FUZZ_FAST:+1}
build=${MLATHE_FUZZ_BUILD:-$root/build/fuzz${fast:+-fast}}
mapfile -t targets < <(sed -nE 's/^int fuzz_([a-z_]+)\(.*/\1/p' "$root/tests/support_fuzz.h")
if (($# < 2)); then
    echo "usage: tests/fuzz.sh TARGET|all SECONDS; targets: ${targets[*]}" >&2
    exit 2
fi
target=$1 seconds=$2
shift 2
[[ $target == all ]] || targets=("$target")
if [[ ! -f $build/CMakeCache.txt ]]; then
    sanitize=address
    [[ -z $fast ]] || sanitize=
    CC=clang CXX=clang++ cmake -S "$root" -B "$build" -DFUZZ=ON -DSANITIZE=$sanitize \
        -DCMAKE_BUILD_TYPE=Release $(command -v ninja >/dev/null && echo "-G Ninja") >&2
fi
# In memory where there is such a folder: some targets need files, thousands a second. What is freed
# need not be kept for long, and an input that takes long is seldom worth another look.
[[ ! -d /dev/shm ]] || export TMPDIR=${TMPDIR:-/dev/shm}
export ASAN_OPTIONS=quarantine_size_mb=1:malloc_context_size=2:max_free_fill_size=0
export ASAN_OPTIONS=$ASAN_OPTIONS:allocator_release_to_os_interval_ms=-1

# The fuzzer's clock runs on while others have the processor: what counts is the time spent.
too_slow() { # PROGRAM FOLDER
    local unit took bad=0
    for unit in "$2"/slow-unit-*; do
        [[ -f $unit ]] || continue
        took=$({ TIMEFORMAT='%U %S' && time "$1" "$unit" >/dev/null 2>&1; } 2>&1)
        if awk -v t="$took" 'BEGIN { split(t, s); exit !(s[1] + s[2] > 1) }'; then
            echo "$target: $unit takes more than a second" && bad=1
        else
            rm "$unit"
        fi
    done
    return $bad
}

status=0
for target in "${targets[@]}"; do
    cmake --build "$build" --target "fuzz_$target" --parallel "$(nproc)" >&2
    seeds=$root/tests/fuzz/seeds/$target
    corpus=$root/build/corpus/$target found=$build/found/$target
    mkdir -p "$corpus" "$found" "$seeds"
    case $target in # whole files of these are longer
    tokenizer) corpus="$corpus $root/tests/tokenizers" longest=12000 ;;
    gguf_model) longest=16000 ;;
    *) longest=2048 ;;
    esac
    # The readers' messages are not what is looked at; threads of BLAS would only be in the way.
    # shellcheck disable=SC2086
    OPENBLAS_NUM_THREADS=1 "$build/fuzz_$target" $corpus "$seeds" -dict="$root/tests/fuzz/words.dict" \
        -max_total_time="$seconds" -timeout=300 -report_slow_units=1 -rss_limit_mb=1024 -malloc_limit_mb=1024 \
        -max_len=$longest -entropic_scale_per_exec_time=1 -print_final_stats=1 \
        -artifact_prefix="$found/" "$@" 2>&1 |
        tee "$build/$target.log" | grep -E 'ERROR|SUMMARY|Test unit|stat::(number_of_exec|average|peak|slow)' |
        sed "s/^/$target: /" || true
    ! grep -q '^SUMMARY' "$build/$target.log" || status=1
    too_slow "$build/fuzz_$target" "$found" || status=1
done
exit $status
