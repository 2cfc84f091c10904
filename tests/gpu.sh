#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and the toolkit: builds with the CUDA backend, runs the operations'
# parity on the device, once more under compute-sanitizer, and times decoding and a conversion by
# phase of a model on both devices, beside llama.cpp's bench where it is installed.
# usage: tests/gpu.sh [MODEL [TEXT]]     (nothing here has been run on a GPU yet)
set -eu
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
build=build/gpu
cmake -S . -B "$build" -DWITH_CUDA=ON
cmake --build "$build" --parallel --target mlathe test_cuda test_infer
"$build/test_cuda"
"$build/test_infer"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
        echo "== $tool"
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/test_cuda"
    done
else
    echo "skipped: compute-sanitizer is not installed"
fi
(($#)) || exit 0
out=$(mktemp -d)
trap 'rm -rf -- "$out"' EXIT
for device in cpu cuda; do
    echo "== $device"
    "$build/mlathe" bench "$1" --device "$device"
    if (($# > 1)); then # its report has the seconds of calibration and of solving
        XDG_CACHE_HOME=$out/$device "$build/mlathe" convert "$1" --kept 25% --calib "$2" \
            --device "$device" -o "$out/$device.mla"
    fi
done
if command -v llama-bench >/dev/null && [[ $1 == *.gguf ]]; then
    echo "== llama.cpp"
    llama-bench -m "$1"
fi
