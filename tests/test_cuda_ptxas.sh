#!/usr/bin/env bash
# What nvcc makes of the CUDA kernels: no warnings, no spills, no stack, registers and shared memory
# within a budget by kernel. Needs the toolkit and no GPU; skipped without it.
# usage: test_cuda_ptxas.sh PROGRAM SOURCE_FOLDER
set -u
cd -- "${2:-.}" || exit 1
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
if [[ ! -x $nvcc ]]; then
    echo "skipped: no nvcc: the CUDA kernels are not compiled here"
    exit 77
fi
tmp=$(mktemp -d) || exit 1
trap 'rm -rf -- "$tmp"' EXIT

# One architecture in ordinary runs; CUDA_ARCHS="80 90 120" for all that the build has code for.
status=0
for arch in ${CUDA_ARCHS:-90}; do
    for source in kernels/cuda*.cu; do
        "$nvcc" -std=c++20 -O3 -arch="sm_$arch" -Xptxas -v -Werror all-warnings \
            -Xcompiler -Wall,-Wextra,-Werror -I. -D_GNU_SOURCE -c "$source" -o "$tmp/out.o" \
            >"$tmp/log" 2>&1 || {
            echo "FAIL: nvcc sm_$arch $source"
            grep -v '^ptxas info' "$tmp/log"
            status=1
        }
        sed "s/^/sm_$arch /" "$tmp/log" >>"$tmp/all"
    done
done

# Registers: a block of 128 threads with 168 or fewer leaves room for three blocks a processor, 255
# is the most there is. Static shared memory; attention asks for its tiles at launch.
awk '
    BEGIN {
        registers["attn_kernel"] = 168; shared["attn_kernel"] = 1024
        registers["join_kernel"] = 40
        registers["gemv_kernel"] = 128
        registers["absorb_kernel"] = 96; shared["absorb_kernel"] = 4096
        registers["gemm_kernel"] = 96;   shared["gemm_kernel"] = 9216
        registers["widen_kernel"] = 40
        registers["norm_kernel"] = 40;   shared["norm_kernel"] = 64
        registers["rope_kernel"] = registers["store_kernel"] = registers["glu_kernel"] = 32
        registers["add_kernel"] = registers["scale_kernel"] = registers["rows_kernel"] = 32
    }
    function fail(why) { printf "FAIL: %s %s: %s\n", $1, name, why; bad = 1 }
    /Compiling entry function/ {
        match($0, /[a-z]+_kernel/)
        name = substr($0, RSTART, RLENGTH)
        if (!(name in registers)) fail("no budget is stated for it")
    }
    / bytes stack frame/ && !/ 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ {
        fail("stack or spills: " $0)
    }
    /Used [0-9]+ registers/ {
        kernels++
        match($0, /Used [0-9]+/)
        used = substr($0, RSTART + 5, RLENGTH - 5) + 0
        smem = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) + 0 : 0
        if (used > registers[name]) fail(used " registers, budget " registers[name])
        if (smem > shared[name] + 0) fail(smem " bytes of shared memory, budget " shared[name] + 0)
        if (used > most[name]) most[name] = used
    }
    END {
        for (name in most) printf "%s: at most %d registers\n", name, most[name]
        printf "ptxas: %d kernels\n", kernels
        exit bad || kernels < 40
    }' "$tmp/all" || status=1
exit $status
