#!/usr/bin/env bash
# What goes wrong on the command line, one line each: the exit code, what the sentence must name, and
# what it must say to do. usage: error_checks.sh PROGRAM FOLDER (with the files of test_errors.c)
set -u
program=$1
cd -- "$2" || exit 1
export MLATHE_HOME="$PWD/home" HOME="$PWD/home" LC_ALL=C.UTF-8
unset HF_HOME HF_HUB_CACHE LLAMA_CACHE OLLAMA_MODELS
failures=0 cases=0

# bad CODE WHERE REMEDY ARG…: mlathe ARG… ends with CODE, and says both on stderr.
bad() {
    local code=$1 where=$2 remedy=$3 got=0
    shift 3
    "$program" "$@" --quiet >out 2>err </dev/null || got=$?
    cases=$((cases + 1))
    if [[ $got != "$code" ]] || ! grep -qF -- "$where" err || ! grep -qF -- "$remedy" err; then
        echo "FAIL: mlathe $*: $got, not $code, or not said \"$where\" and \"$remedy\":"
        head -c 600 err
        failures=$((failures + 1))
    fi
}

mkdir -p emptydir notours noweights badconfig cutdir junk otherfamily
echo x >notours/file
cp hf/config.json hf/tokenizer.json noweights/
cp hf/* badconfig/ && echo '{"hidden_size":' >badconfig/config.json
cp hf/* cutdir/ && head -c 1000 hf/model.safetensors >cutdir/model.safetensors
cp hf/* otherfamily/ && sed -i 's/"llama"/"zebra"/; s/LlamaFor/ZebraFor/' otherfamily/config.json
echo '{' >junk/mlathe.json
: >empty.gguf
printf 'GGUF\x63\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' >newer.gguf
for ((i = 0; i < 3000; i++)); do echo -n "stone $((i % 7)) the river "; done >long.txt
: >nothing.txt
echo '[{"content": "hi"}]' >messages.json
"$program" plan tiny.gguf --rank 24 --rope 8 -o plan.json --quiet >/dev/null 2>&1
sed 's/"kv_lora_rank":[^,]*/"kv_lora_rank": 99999/' plan.json >big.json
sed 's/"qk_rope_head_dim":[^,}]*/"qk_rope_head_dim": 7/' plan.json >odd.json
"$program" convert tiny.gguf --plan plan.json --calib long.txt --tokens 512 -o conv --quiet \
    >/dev/null 2>err || { cat err; exit 1; }
cp -r conv cutconv && head -c 500 conv/attention.safetensors >cutconv/attention.safetensors
cp -r conv nobase && sed -i "s#$PWD/tiny.gguf#/nowhere/tiny.gguf#" nobase/mlathe.json

# --- models -----------------------------------------------------------------------------------
bad 1 nofile.gguf "mlathe models" inspect nofile.gguf
bad 1 empty.gguf "give one" inspect empty.gguf
bad 1 text.txt "give one" inspect text.txt
bad 1 cut.gguf "incomplete download" inspect cut.gguf
bad 1 newer.gguf "2 and 3 can be read" chat newer.gguf --prompt hi
bad 1 emptydir "give a GGUF file" inspect emptydir
bad 1 noweights "put the weights beside" inspect noweights
bad 1 badconfig/config.json "cut short?" inspect badconfig
bad 1 cutdir/model.safetensors "cut short?" inspect cutdir
bad 1 zebra "families that can" chat otherfamily --prompt hi
bad 1 /dev/null "give one that is" inspect /dev/null
bad 1 cutconv/attention.safetensors "cut short?" inspect cutconv
bad 1 nobase "put the model back" inspect nobase
bad 1 junk/mlathe.json "cut short?" inspect junk
bad 1 nofile "mlathe models" tokenize nofile --text hi
# --- plans and budgets ------------------------------------------------------------------------
bad 1 nofile.json "name right" convert tiny.gguf --plan nofile.json -o x
bad 1 cut.json "cut short?" convert tiny.gguf --plan cut.json -o x
bad 1 big.json "from 1 to" convert tiny.gguf --plan big.json -o x
bad 1 odd.json "even" convert tiny.gguf --plan odd.json -o x
bad 1 other.json "mlathe plan makes" convert tiny.gguf --plan other.json -o x
bad 1 plan.json "mlathe plan makes" convert other.gguf --plan plan.json -o x
bad 2 "150%" "give up to" convert tiny.gguf --kept 150% -o x
bad 2 banana "give a share" convert tiny.gguf --kept banana -o x
bad 2 banana "give a share" plan tiny.gguf --fit banana -o x
bad 2 --rank "from 1 to" convert tiny.gguf --rank 0 --rope 8 -o x
bad 1 "rope width 7" "give an even number" convert tiny.gguf --rank 16 --rope 7 -o x
bad 2 zebra "own, shared or stock" convert tiny.gguf --rank 16 --layout zebra -o x
# --- texts ------------------------------------------------------------------------------------
bad 1 nofile.txt "name right" convert tiny.gguf --rank 16 --calib nofile.txt -o x
bad 1 nothing.txt "give more text" convert tiny.gguf --rank 16 --calib nothing.txt -o x
bad 1 text.txt "give more text" convert tiny.gguf --rank 16 --calib text.txt -o x
bad 1 nofile.txt "name right" eval conv --ppl nofile.txt
bad 1 text.txt "give --ctx less" eval conv --ppl text.txt --ctx 512
bad 1 nofile.json "name right" eval conv --task arc --file nofile.json
bad 1 long.txt "as published" eval conv --task arc --file long.txt
bad 2 zebra "arc, hellaswag" eval conv --task zebra --file long.txt
bad 1 nofile.txt "name right" heal conv --text nofile.txt -o x
bad 1 nothing.txt "give text" heal conv --text nothing.txt -o x
# --- where to write ---------------------------------------------------------------------------
bad 1 notours "give another name" convert tiny.gguf --rank 16 --calib long.txt -o notours
bad 1 text.txt "give a folder's name" convert tiny.gguf --rank 16 --calib long.txt -o text.txt
bad 1 conv "give another folder" heal conv --tokens 256 --text long.txt -o conv
bad 1 /proc/x "name right" plan tiny.gguf --rank 16 -o /proc/x/plan.json
bad 1 "llama.cpp" "--layout stock" export conv --to gguf -o x
bad 2 zebra "hf, vllm" export conv --to zebra -o x
bad 1 export "that convert wrote" export tiny.gguf --to hf -o x
bad 1 text.txt "mlathe convert" report text.txt -o r.html
bad 1 nofile "mlathe models" export nofile --to hf -o x
# --- values -----------------------------------------------------------------------------------
bad 1 99999 "counted from 0" generate tiny.gguf --ids 1,99999
bad 2 '"x"' "give 1,2,3" generate tiny.gguf --ids 1,x
bad 2 --ids "give --ids" logits tiny.gguf
bad 1 99999 "counted from 0" detokenize tiny.gguf --ids 99999
bad 1 nofile.json "name right" render tiny.gguf --messages nofile.json
bad 2 --depth "0,4096" bench tiny.gguf -d x
bad 2 --threads "0 to" inspect tiny.gguf --threads banana
bad 2 --jsno "did you mean --json" inspect tiny.gguf --jsno
bad 2 insepct "did you mean inspect" insepct
bad 1 nofile.keys "name right" --script nofile.keys
# --- no room ----------------------------------------------------------------------------------
(
    trap '' XFSZ
    ulimit -f 20
    bad 1 full/ "ulimit -f" convert tiny.gguf --plan plan.json --calib long.txt --tokens 512 -o full
    bad 1 healed/ "ulimit -f" heal conv --tokens 256 --text long.txt -o healed
    exit $failures
) || failures=$((failures + 1))
for left in full healed; do
    compgen -G "$left*" >/dev/null && { echo "FAIL: a full disk leaves $left*"; ls -R "$left"*; failures=$((failures + 1)); }
done
got=0
"$program" inspect tiny.gguf --json >/dev/full 2>err || got=$?
[[ $got == 1 ]] && grep -q 'cannot write the output' err || { echo "FAIL: /dev/full: $got"; cat err; failures=$((failures + 1)); }
# --- not allowed ------------------------------------------------------------------------------
if [[ $(id -u) == 0 ]]; then
    echo "skipped: files without permission (root may read all)"
else
    chmod 0 text.txt && bad 1 text.txt permissions eval conv --ppl text.txt
    mkdir -p locked && chmod 0 locked && bad 1 locked permissions plan tiny.gguf --rank 16 -o locked/p
    chmod 700 locked
fi
echo "$cases things gone wrong, $failures badly said"
exit $((failures > 0))
