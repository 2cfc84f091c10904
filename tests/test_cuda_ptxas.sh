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

# Each source once, for all the build has code for and the newest the toolkit knows.
newest=$("$nvcc" --list-gpu-code 2>/dev/null | sed -n 's/^sm_\([0-9]*\)$/\1/p' | sort -n | tail -1)
archs=$(printf '%s\n' ${CUDA_ARCHS:-80 90 120} "${newest:-90}" | sort -un)
gencode=()
for arch in $archs; do gencode+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
status=0
for source in kernels/cuda*.cu; do
    "$nvcc" -std=c++20 -O3 "${gencode[@]}" -Xptxas -v -Werror all-warnings \
        -Xcompiler -Wall,-Wextra,-Werror -I. -D_GNU_SOURCE -c "$source" -o "$tmp/out.o" \
        >"$tmp/log" 2>&1 || {
        echo "FAIL: nvcc $source"
        grep -v '^ptxas info' "$tmp/log"
        status=1
    }
    cat "$tmp/log" >>"$tmp/all"
done

# Registers: a block of 128 threads with 168 or fewer leaves room for three blocks a processor, 64
# or fewer for 1024 threads, enough to keep its memory busy; 255 is the most there is. gemv has a
# budget for one row of activations (decoding) and one for several, four blocks of 128. Attention
# asks for three blocks by its launch bounds, and for two where values are wide. Static shared
# memory; attention asks for its tiles at launch.
awk '
    BEGIN {
        registers["attn_kernel"] = 200; shared["attn_kernel"] = 1024
        registers["mma_kernel"] = 168;  shared["mma_kernel"] = 14336
        registers["join_kernel"] = 64;  shared["join_kernel"] = 1024
        registers["gemv_kernel"] = 128; registers["gemv_kernel, one row"] = 64
        registers["absorb_kernel"] = 96; shared["absorb_kernel"] = 4096
        registers["gemm_kernel"] = 96;   shared["gemm_kernel"] = 9216
        registers["widen_kernel"] = 40
        registers["norm_kernel"] = 40;   shared["norm_kernel"] = 64
        registers["place_kernel"] = registers["store_kernel"] = registers["glu_kernel"] = 32
        registers["softmax_kernel"] = registers["dots_kernel"] = registers["keys_kernel"] = 64
        registers["divergence_kernel"] = 64; shared["divergence_kernel"] = 64
        registers["fold_kernel"] = registers["weigh_kernel"] = 32
        registers["add_kernel"] = registers["scale_kernel"] = registers["rows_kernel"] = 32
    }
    function fail(why) { printf "FAIL: %s %s: %s\n", arch, name, why; bad = 1 }
    /Compiling entry function/ {
        match($0, /[a-z]+_kernel/)
        name = substr($0, RSTART, RLENGTH)
        if ($0 ~ /gemv_kernelI.*ELi1ELb/) name = name ", one row"
        match($0, /sm_[0-9]+/)
        arch = substr($0, RSTART, RLENGTH)
        count[arch]++
        if (!(name in registers)) fail("no budget is stated for it")
    }
    / bytes stack frame/ && !/ 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ {
        fail("stack or spills: " $0)
    }
    /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/)
        used = substr($0, RSTART + 5, RLENGTH - 5) + 0
        smem = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) + 0 : 0
        if (used > registers[name]) fail(used " registers, budget " registers[name])
        if (smem > shared[name] + 0) fail(smem " bytes of shared memory, budget " shared[name] + 0)
        if (used > most[name]) most[name] = used
    }
    END {
        for (name in most) printf "%s: at most %d registers\n", name, most[name]
        for (arch in count) {
            printf "ptxas: %d kernels for %s\n", count[arch], arch
            bad = bad || count[arch] < 75
            archs++
        }
        exit bad || archs < want
    }' want="$(wc -w <<<"$archs")" "$tmp/all" || status=1
exit $status
