#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and the toolkit: builds with the CUDA backend, runs the operations'
# parity on the device, once more under compute-sanitizer, and times a model on both devices.
# usage: tests/gpu.sh [MODEL]     (nothing here has been run on a GPU yet)
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
if (($#)); then
    for device in cpu cuda; do
        echo "== $device"
        "$build/mlathe" bench "$1" --device "$device"
    done
fi
