#!/bin/sh
# What each step of the recipe is worth: one conversion a row, with the program's switches. KL on the
# first window of two texts, their mean beside the reference: what an independent implementation of
# the method had for SmolLM2-135M-Instruct (Q4_1) on the windows that begin at the middle token of
# wiki.test.raw and at token 8192 of C4 documents joined by two newlines. Output projections stay as
# they were. Usage: ablation.sh PROGRAM MODEL TEXT TEXT2 CALIB...
# ROWS: only rows whose name matches this pattern (grep -E). PROTOCOL: of eval, hf unless told; plain
# takes TEXT as it is. Statistics are kept by the program: a row takes seconds after the first.
set -eu
if [ $# -lt 5 ]; then
    echo "usage: $0 PROGRAM MODEL TEXT TEXT2 CALIB..." >&2
    exit 2
fi
program=$1 model=$2 text=$3 text2=$4
shift 4
work=$(mktemp -d "${TMPDIR:-/tmp}/ablation.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# name | reference KL | tokens of a window | options
rows() {
    cat <<'ROWS'
192: TransMLA R64|.588|640|--method transmla --rope 64 --rank 128 --freqfold 2
192: TransMLA R32|.680|640|--method transmla --rope 32 --rank 160 --freqfold 4
192: TransMLA's rope, our latent|.325|640|--rope 64 --rank 128 --freqfold 2 --without rope
192: stock rope, plain PCA|.520|640|--layout stock --rope 64 --rank 128 --without joint,weights,heads
192: the same, heads refitted|.248|640|--layout stock --rope 64 --rank 128 --without joint,weights
192: stock rope, our latent|.203|640|--layout stock --rope 64 --rank 128 --without joint --rounds 1
192: own R32|.238|640|--rope 32 --rank 160 --without joint --rounds 1
192: own R48|.186|640|--rope 48 --rank 144 --without joint --rounds 1
192: own R64|.185|640|--rope 64 --rank 128 --without joint --rounds 1
192: own R80|.229|640|--rope 80 --rank 112 --without joint --rounds 1
96: own R32, no joint fit|.910|640|--rope 32 --rank 64 --without joint --rounds 2
96: own R32|.861|640|--rope 32 --rank 64 --rounds 2
96: own R16|1.349|640|--rope 16 --rank 80 --rounds 2
96: own R48|1.118|640|--rope 48 --rank 48 --rounds 2
96: stock R32, no joint fit|.987|640|--layout stock --rope 32 --rank 64 --without joint --rounds 2
latent: plain balanced PCA|1.260|640|--rope 32 --rank 64 --without joint,weights,heads
latent: weighted|1.372|640|--rope 32 --rank 64 --without joint,heads
latent: weighted, balance / 4|1.514|640|--rope 32 --rank 64 --without joint,heads --balance 0.25
latent: weighted, balance x 4|1.413|640|--rope 32 --rank 64 --without joint,heads --balance 4
latent: weighted, heads refitted|.928|640|--rope 32 --rank 64 --without joint
latent: plain, heads refitted|1.018|640|--rope 32 --rank 64 --without joint,weights
latent: alternating least squares|.910|640|--rope 32 --rank 64 --without joint --rounds 2
rope: TransMLA R64 fold 1|.335|1024|--method transmla --rope 64 --rank 384 --freqfold 1
rope: TransMLA R64 fold 2|.171|1024|--method transmla --rope 64 --rank 384 --freqfold 2
rope: TransMLA R64 fold 4|.237|1024|--method transmla --rope 64 --rank 384 --freqfold 4
rope: TransMLA R64 fold 8|1.071|1024|--method transmla --rope 64 --rank 384 --freqfold 8
rope: own R64|.030|1024|--rope 64 --rank 384 --without joint
rope: stock R64|.056|640|--layout stock --rope 64 --rank 384 --without joint
rope: TransMLA R32 fold 2|.710|1024|--method transmla --rope 32 --rank 384 --freqfold 2
rope: TransMLA R32 fold 4|.391|1024|--method transmla --rope 32 --rank 384 --freqfold 4
rope: TransMLA R32 fold 8|1.074|1024|--method transmla --rope 32 --rank 384 --freqfold 8
rope: own R32|.143|1024|--rope 32 --rank 384 --without joint
rope: own R32, joint fit|.086|640|--rope 32 --rank 384
rope: own R32, real shrink|.180|1024|--rope 32 --rank 384 --without joint,phase
rope: own R32, shrink of all heads|.177|1024|--rope 32 --rank 384 --without joint,own
rope: own R32, shrink by mean rotation|.304|1024|--rope 32 --rank 384 --without joint,fit
rope: own R32, no shrink|.360|1024|--rope 32 --rank 384 --without joint,shrink
rope: own R32, no benefit|.829|1024|--rope 32 --rank 384 --without joint,benefit
grid R32: fastest 16|.200|640|--layout stock --rope 32 --rank 384 --without joint
grid R32: every second|1.565|640|--layout stock --rope 32 --rank 384 --without joint --stride 2
grid R32: one list for all layers|.545|640|--layout shared --rope 32 --rank 384 --without joint
ranks 96: even|.861|640|--kept 25% --rope 32 --alloc uniform --rounds 2
ranks 96: energy|.906|640|--kept 25% --rope 32 --alloc energy --rounds 2
ranks 96: sensitivity|.804|640|--kept 25% --rope 32 --alloc sensitivity --rounds 2
ranks 192: even|.185|640|--kept 50% --rope 64 --alloc uniform --without joint --rounds 1
ranks 192: energy|.209|640|--kept 50% --rope 64 --alloc energy --without joint --rounds 1
ranks 192: sensitivity|.171|640|--kept 50% --rope 64 --alloc sensitivity --without joint --rounds 1
refit: plain moments|.317|640|--layout stock --rope 64 --rank 128 --without joint,keys,values --rounds 1
refit: values plain|.302|640|--layout stock --rope 64 --rank 128 --without joint,values --rounds 1
refit: keys plain|.215|640|--layout stock --rope 64 --rank 128 --without joint,keys --rounds 1
refit: shared by KV heads|.212|640|--layout stock --rope 64 --rank 128 --without joint --rounds 1 --stat-groups KV
refit: shared by all|.223|640|--layout stock --rope 64 --rank 128 --without joint --rounds 1 --stat-groups 1
text: 32k tokens, R32 r160|.269|640|--rope 32 --rank 160 --without joint
text: 8k tokens|.253|640|--rope 32 --rank 160 --without joint --tokens 8192
text: self-written 8k|.447|640|--rope 32 --rank 160 --without joint --calib self --tokens 8192
text: self-written, rope alone|.096|640|--rope 32 --rank 384 --without joint --calib self --tokens 8192
ROWS
}

number() { # KEY: its number in the JSON on standard input
    sed -n "s/.*\"$1\":[[:space:]]*\([0-9.eE+-]*\).*/\1/p" | head -n 1
}

kl() { # TEXT TOKENS
    $program eval "$work/c" --against "$model" --protocol "${PROTOCOL:-hf}" --ctx "$2" --windows 1 \
        --ppl "$1" --json 2>>"$work/log" | number kl_mean
}

kv_heads=$($program inspect "$model" --json | number kv_heads)
echo "| row | reference | measured | ratio | $(basename "$text") | $(basename "$text2") |"
echo "|---|---|---|---|---|---|"
rows | grep -E "${ROWS:-.}" | while IFS='|' read -r name figure tokens options; do
    options=$(echo "$options" | sed "s/--stat-groups KV/--stat-groups $kv_heads/")
    extra=$(echo "$options" | sed -n 's/.*--without \([a-z,]*\).*/\1,/p')
    options=$(echo "$options" | sed 's/--without [a-z,]*//')
    case $options in *transmla*) leave= ;; *) leave="--without ${extra}output" ;; esac
    # shellcheck disable=SC2086 # options are words
    case $options in
    *"--calib self"*) $program convert "$model" $options $leave -o "$work/c" ;;
    *) $program convert "$model" $options $leave -o "$work/c" --calib "$@" ;;
    esac >"$work/log" 2>&1 </dev/null || {
        echo "| $name | $figure | failed: $(tail -n 1 "$work/log") | | | |"
        continue
    }
    one=$(kl "$text" "$tokens" </dev/null)
    two=$(kl "$text2" "$tokens" </dev/null)
    awk -v n="$name" -v f="$figure" -v a="$one" -v b="$two" 'BEGIN {
        m = (a + b) / 2
        printf "| %s | %s | %.3f | %.2f | %.3f | %.3f |\n", n, f, m, m / f, a, b }'
done
