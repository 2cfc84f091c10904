#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: builds for it, runs the operations' parity on it,
# times each operation against the memory's speed, runs compute-sanitizer, times a model beside
# llama.cpp and a conversion by phase, within ten minutes, and prints one table. What is missing
# (compute-sanitizer, llama-bench, a model) is a line that says so; what fails does not stop the rest.
# usage: tests/gpu.sh [MODEL.gguf [TEXT]]
#   GPU_BUILD=DIR     a build with -DWITH_CUDA=ON made elsewhere (no toolkit needed here)
#   GPU_SECONDS=600   for everything; GPU_DEVICE=cuda:1 for another device
# (not run on a GPU yet)
set -u
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 1
end=$((SECONDS + ${GPU_SECONDS:-600}))
device=${GPU_DEVICE:-cuda}
index=${device#cuda}; index=${index#:}; index=${index:-0}
build=${GPU_BUILD:-build/gpu}
logs=$(mktemp -d) || exit 1
rows=() failed=0
trap 'rm -rf -- "$logs"' EXIT

table() {
    printf '\n%-22s %-10s %6s  %s\n' step result s figure
    printf '%s\n' "${rows[@]}"
}
row() { rows+=("$(printf '%-22s %-10s %6s  %s' "$1" "$2" "$3" "$4")"); }
have() { command -v "$1" >/dev/null 2>&1; }

# step NAME SECONDS FIGURE COMMAND…: runs it for at most that long and what is left of all; FIGURE is
# an awk program that makes the table's last column of its output.
step() {
    local name=$1 limit=$2 figure=$3 start=$SECONDS rc=0 log result=ok
    shift 3
    log=$logs/${name//[^a-zA-Z0-9]/_}
    ((limit > end - SECONDS)) && limit=$((end - SECONDS))
    if ((limit < 5)); then
        row "$name" "no time" - "after ${GPU_SECONDS:-600} s in all"
        return 1
    fi
    echo "== $name"
    timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null || rc=$?
    case $rc in
    0) ;;
    77) result=skipped ;;
    124 | 137) result=unfinished ;;
    *) result=FAILED failed=1 ;;
    esac
    if [[ $result == FAILED || $result == unfinished ]]; then tail -15 "$log"; fi
    row "$name" "$result" "$((SECONDS - start))" "$(awk "$figure" "$log" 2>/dev/null | head -1)"
    [[ $result == ok ]]
}

# --- what is here -------------------------------------------------------------------------------

PATH=$PATH:/usr/local/cuda/bin:/opt/cuda/bin
gpu=$(nvidia-smi -i "$index" --query-gpu=name,compute_cap,driver_version,memory.total \
    --format=csv,noheader 2>/dev/null | head -1)
row device "$([[ -n $gpu ]] && echo ok || echo unknown)" - "${gpu:-nvidia-smi does not answer}"
# Code for this device alone, which is quick to make; PTX of the build covers what nvcc does not know.
arch=$(sed -n 's/^[^,]*, *\([0-9]*\)\.\([0-9]\).*/\1\2/p' <<<"$gpu")
have nvcc && ! nvcc --list-gpu-code 2>/dev/null | grep -qx "sm_${arch:-90}" && arch=
jobs=$(nproc 2>/dev/null || echo 4)

make_build() {
    local generator=()
    have ninja && generator=(-G Ninja)
    cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DWITH_CUDA=ON \
        -DCUDA_ARCHS="${arch:-80;90}" -DWERROR=OFF &&
        cmake --build "$build" --parallel "$jobs" --target mlathe test_cuda bench_ops
}
export -f make_build have
export build arch jobs
if [[ -n ${GPU_BUILD:-} ]]; then
    row build given - "$build"
elif ! have nvcc || ! have cmake; then
    row build skipped - "no nvcc or cmake here: set GPU_BUILD to a build made elsewhere"
else
    step build 300 'END { print NR " lines" }' bash -c make_build
fi
if [[ ! -x $build/test_cuda || ! -x $build/mlathe ]]; then
    row "the rest" skipped - "no program in $build"
    table
    exit 1
fi

# --- right, and how fast ------------------------------------------------------------------------

export MLATHE_TEST_DEVICE=$device OPENBLAS_NUM_THREADS=1
last='{ line = $0 } END { print line }'
step parity 150 "$last" "$build/test_cuda"
if [[ ${rows[-1]} == *skipped* ]]; then # no driver, no device: its sentence is in the table
    row "the rest" skipped - "no device to run on"
    table
    exit 1
fi
if [[ -x $build/bench_ops ]]; then
    step operations 120 '/GB\/s/ && !/copy/ { n++; sum += $(NF - 1) }
        END { if (n) printf "%.0f %% of the copy rate in the mean of %d\n", sum / n, n }' \
        "$build/bench_ops" "$device" && cat -- "$logs/operations"
fi
sanitizer=
for candidate in "$(command -v compute-sanitizer)" /usr/local/cuda*/bin/compute-sanitizer \
    /usr/local/cuda*/extras/compute-sanitizer/compute-sanitizer; do
    [[ -z $sanitizer && -x $candidate ]] && sanitizer=$candidate
done
sanitize() {
    if [[ -z $sanitizer ]]; then
        row "$1" skipped - "compute-sanitizer is not installed"
        return
    fi
    step "$1" "$2" '/ERROR SUMMARY|hazard/ { line = $0 } END { print line }' \
        "$sanitizer" --tool "$1" --error-exitcode 1 "$build/test_cuda" parity
}
sanitize memcheck 100

model=${1:-}
for candidate in "$HOME"/.local/share/mlathe/models/*.gguf shared/data/*.gguf; do
    [[ -z $model && -f $candidate ]] && model=$candidate
done
rate='/^(pp|tg)/ { out = out sep $1 " " $3 " t/s (" $6 ")"; sep = ", " } END { print out }'
if [[ -z $model ]]; then
    row model skipped - "name a GGUF file to time one"
else
    step "decode $device" 90 "$rate" "$build/mlathe" bench "$model" --device "$device" -d 0,1024
    step "decode cpu" 60 "$rate" "$build/mlathe" bench "$model" --device cpu
    if ! have llama-bench; then
        row llama.cpp skipped - "llama-bench is not installed"
    else
        step llama.cpp 60 '/pp512|tg128/ { out = out sep $0; sep = "; " } END { print out }' \
            llama-bench -m "$model" -ngl 99
    fi
    text=${2:-$logs/text}
    [[ $# -gt 1 ]] || cat README.md core/*.c sessions/*.c >"$text"
    for where in "$device" cpu; do
        step "convert $where" 120 '{ all = all $0 } END {
            n = split("calibrate solve", phase, " ")
            for (i = 1; i <= n; i++)
                if (match(all, "\"seconds_" phase[i] "\": *[0-9.]+")) {
                    v = substr(all, RSTART, RLENGTH); sub(/.*: */, "", v)
                    out = out phase[i] " " sprintf("%.1f s, ", v)
                }
            if (match(all, /"seconds": *[0-9.]+/)) {
                v = substr(all, RSTART, RLENGTH); sub(/.*: */, "", v)
                out = out sprintf("all %.1f s", v)
            }
            print out }' env MLATHE_HOME="$logs/$where" "$build/mlathe" convert "$model" --kept 25% \
            --rope 32 --alloc uniform --tokens 16384 --calib "$text" --device "$where" --json \
            -o "$logs/$where.mla"
    done
fi
sanitize synccheck 60
sanitize racecheck 90

table
exit "$failed"
