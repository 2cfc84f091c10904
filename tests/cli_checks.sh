#!/usr/bin/env bash
# Runs the program against the tiny models that test_cli.c wrote: exit codes, JSON, refusals,
# Ctrl-C. usage: cli_checks.sh PROGRAM FOLDER
set -u
program=$1
cd -- "$2" || exit 1
export MLATHE_HOME="$PWD/home dir" HOME="$PWD/home dir" LC_ALL=C.UTF-8
unset HF_HOME HF_HUB_CACHE LLAMA_CACHE OLLAMA_MODELS
failures=0
python=$(command -v python3 || true)
[[ -n $python ]] || echo "skipped: values in JSON (no python3)"

fail() {
    echo "FAIL: $*"
    failures=$((failures + 1))
}

# want CODE ARG…: runs mlathe with --threads 2; its output lies in out and err.
want() {
    local code=$1 got=0
    shift
    "$program" "$@" >out 2>err </dev/null || got=$?
    [[ $got == "$code" ]] || fail "mlathe $*: exit code $got, not $code: $(head -c 300 err)"
}

said() { grep -qF -- "$1" err || fail "not said: \"$1\" but: $(head -c 300 err)"; }
printed() { grep -qF -- "$1" out || fail "not printed: \"$1\" but: $(head -c 300 out)"; }
no_output() { [[ ! -s out ]] || fail "stdout is not empty: $(head -c 200 out)"; }

# json EXPRESSION: out is one JSON document d for which it holds.
json() {
    [[ -n $python ]] || return 0
    "$python" - "$1" <<'PY' || fail "not so: $1"
import json, math, sys
try:
    d = json.load(open("out"))
except ValueError as e:
    sys.exit("not one JSON document: %s" % e)
sys.exit(0 if eval(sys.argv[1]) else 1)
PY
}

# --- words ------------------------------------------------------------------------------------
want 2
said convert
no_output
want 2 tiny.gguf # a model opens the screens: no terminal here
said "need a terminal"
want 0 --version
printed "mlathe "
want 0 --help
want 2 insepct
said "did you mean inspect?"
want 2 inspect --jsno
said "did you mean --json?"
want 2 inspect a b
want 2 generate tiny.gguf --text
for command in models inspect tokenize detokenize render logits generate spectra plan convert heal eval \
    chat bench export report doctor paths; do
    want 0 "$command" --help
    [[ $(head -n 1 out) == "Examples:" ]] || fail "$command --help does not start with examples"
done
want 0 paths --json
json '"home dir" in d["data"] and all(k in d for k in ("config", "state", "cache"))'

# --- models -----------------------------------------------------------------------------------
want 1 inspect
said "./run"
mkdir -p "home dir/data/models"
cp tiny.gguf "home dir/data/models/"
want 0 models --json
json 'len(d["models"]) == 1 and d["models"][0]["name"] == "tiny"'
json 'd["models"][0]["family"] == "llama" and d["models"][0]["parameters"] > 0'
want 0 inspect tiny.gguf --json
json 'd["layers"] == 2 and d["hidden"] == 64 and d["q_heads"] == 4 and d["kv_heads"] == 2'
json 'd["head_dim"] == 16 and d["vocab"] == 320 and d["kv_bytes_per_token"] == 256'
json 'd["convertible"] is True and d["reasons"] == [] and d["dtype"] == "F32"'
want 0 inspect tiny --json # by name
want 0 inspect hf --json
json 'd["format"] == "HF"'
# What is missing or unknown is the answer, in a sentence with its name.
cp -r hf bare && rm -f bare/tokenizer*.json bare/tokenizer.model
want 0 inspect bare --json
json 'd["convertible"] is True and len(d["reasons"]) == 1 and "no tokenizer" in d["reasons"][0]'
want 0 inspect bare
printed "no tokenizer"
want 1 generate bare --text "x"
said "no tokenizer"
want 0 convert bare --rank 12 --rope 8 --tokens 1024 -o bareconv --json # from ids of its own
want 0 logits bareconv --ids 1,2,3 --json
cp -r hf strange && sed -i 's/"llama"/"olmo9"/' strange/config.json
want 0 inspect strange --json
json 'd["convertible"] is False and len(d["reasons"]) == 1 and "\"olmo9\"" in d["reasons"][0]'
want 1 logits strange --ids 1
said '"olmo9"'
cp -r hf roped && sed -i 's/"rope_theta"/"rope_scaling":{"type":"mrope"},"rope_theta"/' roped/config.json
want 0 inspect roped --json
json 'd["convertible"] is False and "\"mrope\"" in d["reasons"][0]'
if [[ -n $python ]]; then # a matrix of I32, which no model here has
    "$python" - <<'PY'
data = bytearray(open("tiny.gguf", "rb").read())
at = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
data[at:at + 4] = (26).to_bytes(4, "little")
open("typed.gguf", "wb").write(data)
PY
    want 0 inspect typed.gguf --json
    json 'd["convertible"] is False and "I32" in d["reasons"][0] and "ffn_up" in d["reasons"][0]'
fi
want 1 inspect missing.gguf
said missing.gguf
no_output
head -c 3000 tiny.gguf >cut.gguf
want 1 inspect cut.gguf --json
said cut.gguf
no_output
head -c 200 /dev/urandom >noise.gguf
want 1 inspect noise.gguf
mkdir -p nothing
want 1 inspect nothing
: >empty.gguf
want 1 logits empty.gguf --ids 1

# --- text -------------------------------------------------------------------------------------
want 0 tokenize tiny.gguf --text "Hello world" --json
json 'len(d["ids"]) > 2'
want 0 tokenize tiny.gguf --text "Hello world"
ids=$(cat out)
want 0 detokenize tiny.gguf --ids "$ids" --json
json 'd["text"] == "Hello world"'
want 0 tokenize hf/tokenizer.json --text "Hello world"
[[ $(cat out) == "$ids" ]] || fail "GGUF and tokenizer.json disagree"
want 0 tokenize tiny.gguf --text "" --json
json 'd["ids"] == []'
want 2 tokenize tiny.gguf
want 1 tokenize tiny.gguf --file missing.txt
want 2 detokenize tiny.gguf --ids 1,x
want 1 detokenize tiny.gguf --ids 400
want 0 detokenize tiny.gguf --ids 1,2 --skip-special
echo '[{"role":"user","content":"Hi"}]' >chat.json
want 0 render tiny.gguf --messages chat.json --json
json '"<|im_start|>user\nHi<|im_end|>" in d["text"] and len(d["ids"]) > 4'
want 0 render tiny.gguf --messages chat.json --no-generation-prompt --json
json 'not d["text"].rstrip().endswith("assistant")'
printf '{{ bos_token }}{%% for m in messages %%}[{{ m.content }}]{%% endfor %%}' >t.jinja
echo '{"messages":[{"role":"user","content":"a"}],"bos_token":"<s>"}' >vars.json
want 0 render t.jinja --messages vars.json --json
json 'd["text"] == "<s>[a]"'
echo '{"messages":' >bad.json
want 1 render tiny.gguf --messages bad.json
said bad.json

# --- running ----------------------------------------------------------------------------------
want 0 logits tiny.gguf --ids 1,2,3 --json
json 'len(d["logits"]) == 320 and all(math.isfinite(x) for x in d["logits"])'
want 0 logits tiny.gguf --ids 1,2,3 --all --json
json 'len(d["logits"]) == 3 and len(d["logits"][0]) == 320'
want 1 logits tiny.gguf --ids 1,320
want 2 logits tiny.gguf
want 2 logits tiny.gguf --ids 1,,-2
want 0 generate tiny.gguf --text "Once" -n 8 --ignore-eos --json
json 'len(d["ids"]) == 8 and d["tokens_per_sec"] > 0 and "text" in d'
cp out first
want 0 generate tiny.gguf --text "Once" -n 8 --ignore-eos --json
[[ -z $python ]] || json 'd["ids"] == json.load(open("first"))["ids"]'
want 0 generate tiny.gguf --ids 1,2 -n 4 --temp 0.9 --seed 3 --top-k 5 --quiet
[[ ! -s err ]] || fail "--quiet: $(cat err)"
want 2 generate tiny.gguf --text a --temp -1
want 2 generate tiny.gguf --text a --ids 1
want 0 generate tiny.gguf --text a -n 0 --json
json 'd["ids"] == []'
want 0 bench tiny.gguf -p 8 -n 4 -r 2 -d 0,16 --json
json 'len(d["rows"]) == 4 and d["rows"][0]["test"] == "pp8" and d["rows"][3]["depth"] == 16'
json 'd["rows"][0]["kv_bytes"] == 8 * 256 and d["rows"][3]["kv_bytes"] == 20 * 256'
want 0 generate tiny.gguf --text a -n 5000 --ignore-eos --json
json 'd["stop"] == "context" and len(d["ids"]) <= 2048'
want 2 bench tiny.gguf -d x

# --- plans ------------------------------------------------------------------------------------
want 0 plan tiny.gguf --kept 50% --json
json 'd["mlathe_plan"] == 1 and d["prediction"]["kv_bytes_per_token"] == 128'
want 0 plan tiny.gguf --bytes-per-token 128 -o plan.json
[[ -s plan.json ]] || fail "no plan.json"
want 0 plan tiny.gguf --fit 1MiB,4096x2 --json
json 'd["prediction"]["kv_bytes_per_token"] <= 128'
want 0 plan tiny.gguf --rank 12 --rope 8 --json
json 'all(l == {"kv_lora_rank": 12, "qk_rope_head_dim": 8} for l in d["layers"])'
want 0 plan tiny.gguf --kept 50% --alloc energy --weights-only --json
json 'd["prediction"]["kv_bytes_per_token"] <= 128'
for bad in 0% -5% 25%% 50 x ""; do want 2 plan tiny.gguf --kept "$bad"; done
want 2 plan tiny.gguf
want 2 plan tiny.gguf --kept 50% --rank 3
want 2 plan tiny.gguf --kept 50% --alloc sensitivity --weights-only
want 2 plan tiny.gguf --rank 8 --alloc sensitivity
want 1 plan tiny.gguf --rank 12 --rope 7
want 1 plan tiny.gguf --kept 50% -o no/such/folder/plan.json
want 0 spectra tiny.gguf --weights-only --json
json 'len(d["layers"]) == 2 and all(k in d["layers"][0] for k in ("joint", "key", "value"))'
json 'abs(d["layers"][1]["energy"][-1] - 1) < 1e-9 and d["layers"][1]["index"] == 1'

# --- conversion -------------------------------------------------------------------------------
for i in $(seq 400); do echo "Line $i of a text that says little, but in words: $((i * 7919 % 997))."; done >text.txt
for i in $(seq 60); do cat text.txt; done >long.txt
want 0 plan tiny.gguf --kept 50% --alloc sensitivity --calib long.txt --tokens 1024 --json
json 'd["prediction"]["kl"] > 0 and d["prediction"]["kv_bytes_per_token"] <= 128'
said "predicted KL"
want 0 plan tiny.gguf --kept 50% --search --layout shared --calib long.txt text.txt --shares 3,1 \
    --tokens 1024 --json
said "best"
json 'd["method"]["layout"] == "shared" and len({l["qk_rope_head_dim"] for l in d["layers"]}) == 1'
want 2 plan tiny.gguf --kept 50% --search --rope 8 --calib long.txt
want 2 plan tiny.gguf --kept 50% --calib long.txt text.txt --shares 3
said "--shares"
want 0 plan tiny.gguf --kept 50% --search --method transmla --calib long.txt --tokens 1024 --json
said "freqfold 2: KL"
json 'd["method"]["freqfold"] in (1, 2, 4, 8)'
want 2 plan tiny.gguf --kept 50% --search --method transmla --freqfold 2 --calib long.txt
want 0 plan tiny.gguf --rank 12 --rope 8 --layout stock --rounds 2 --stride 2 --balance 0.5 \
    --damping 2 --without keys,own --json
json 'd["method"]["rounds"] == 2 and d["method"]["stride"] == 2 and d["method"]["damping"] == 2'
json 'd["method"]["balance"] == 0.5 and d["method"]["without"] == ["own", "keys"]'
want 2 plan tiny.gguf --rank 12 --stride 2
said "--layout stock"
want 0 spectra tiny.gguf --calib long.txt --tokens 8192 --until 90 --json
said "since half of its"
want 2 convert tiny.gguf --rank 12 --without output,magic -o nowhere
said "magic"
want 0 plan tiny.gguf --kept 50% --calib long.txt --tokens 1024 --json # by default
json 'd["prediction"]["kl"] > 0'
want 0 convert tiny.gguf --plan plan.json --calib text.txt --tokens 1024 -o conv --json
json 'd["kept"] == 0.5 and d["kv_bytes_per_token_before"] == 256'
json 'd["kv_bytes_per_token_after"] == 128 and len(d["layers"]) == 2 and d["seconds"] > 0'
json 'all(k in d["layers"][0] for k in ("rank", "rope", "error", "loss"))'
[[ -s conv/mlathe.json && -s conv/attention.safetensors ]] || fail "conv lacks files"
want 0 inspect conv --json
json 'd["conversion"]["kept"] == 0.5'
want 0 bench conv -p 16 -n 0 -r 1 --json
json 'd["rows"][0]["kv_bytes"] == 16 * 128' # what was promised is what is allocated
want 0 generate conv --text "Line 1" -n 8 --json
want 0 tokenize conv --text "Line 1" --json
want 0 convert tiny.gguf --kept 50% --calib long.txt --tokens 1024 -o foretold --json
json 'd["prediction"]["kl"] > 0 and d["prediction"]["kl_measured"] > 0'
json 'abs(d["prediction"]["kl"] / d["prediction"]["kl_measured"] - 1 - d["prediction"]["error"]) < 1e-9'
want 0 heal conv --tokens 512 --length 32 --text text.txt -o healed --train kv_b,q,o --json
json 'd["steps"] > 0 and d["tokens"] >= 512 and d["seconds"] > 0 and d["tokens_per_sec"] > 0'
json 'd["kl_after"] <= d["kl_before"] and len(d["curve"]) > 1 and d["curve"][0]["tokens"] == 0'
said "held-out KL"
want 0 eval healed --against tiny.gguf --ppl text.txt --ctx 64 --windows 1 --json
said "healed on: the figures flatter it"
want 2 heal conv --text text.txt
want 2 heal conv --train v --text text.txt -o healed
said "kv_b,q,o,kv_a"
want 1 heal tiny.gguf --text text.txt -o healed2
said "nothing to heal"
want 1 heal conv --text text.txt -o conv
said "give another folder"
want 0 convert tiny.gguf --rank 12 --calib text.txt --tokens 1024 -o conv # over its own
want 0 convert tiny.gguf --kept 50% --method transmla --calib text.txt --tokens 1024 -o base --json
json 'd["method"] == "transmla"'
want 1 convert twin.gguf --plan plan.json --calib text.txt -o conv2
said model.fingerprint
want 1 convert other.gguf --plan plan.json --calib text.txt -o conv2
said model.kv_heads
want 2 convert tiny.gguf --plan plan.json --kept 25% -o conv2
want 2 convert tiny.gguf --kept 25%
want 1 convert tiny.gguf --kept 25% -o nothing/../hf # a folder that is not ours
said "did not write"
[[ -s hf/model.safetensors && ! -e hf/mlathe.json ]] || fail "hf was touched"
want 1 convert tiny.gguf --kept 25% -o tiny.gguf
want 1 convert tiny.gguf --kept 25% --calib text.txt --tokens 1024 -o /proc/conv
want 1 convert tiny.gguf --kept 25% --calib missing.txt -o conv2
said missing.txt
if [[ $(id -u) != 0 ]]; then
    mkdir -p locked && chmod 555 locked
    want 1 convert tiny.gguf --kept 25% --calib text.txt -o locked/conv
else
    echo "skipped: a folder without write permission (running as root)"
fi
[[ ! -e conv2 ]] || fail "a failed conversion left conv2"

# --- measuring --------------------------------------------------------------------------------
want 0 eval tiny.gguf --ppl text.txt --ctx 64 --windows 4 --json
json 'd["ppl"] > 1 and d["tokens"] == 4 * 63 and d["protocol"] == "hf" and d["ctx"] == 64'
json '"kl_mean" not in d'
want 0 eval conv --against tiny.gguf --ppl text.txt --ctx 64 --windows 4 --json
json 'd["kl_mean"] > 0 and 0 <= d["same_top1"] <= 1 and d["kl_p99"] >= d["kl_mean"]'
want 0 eval tiny.gguf --against tiny.gguf --ppl text.txt --ctx 64 --windows 2 --json
json 'd["kl_mean"] == 0 and d["same_top1"] == 1'
want 0 eval tiny.gguf --ppl text.txt --ctx 64 --windows 4 --protocol llamacpp --json
json 'd["tokens"] == 4 * 31'
want 1 eval tiny.gguf --ppl text.txt --ctx 1000000
said "--ctx"
want 2 eval tiny.gguf
want 2 eval tiny.gguf --ppl text.txt --protocol other
cat >arc.json <<'END'
[{"instruction": "Please choose the correct answer to the question: What is wet?\n\nAnswer1: water Answer2: a stone Answer3: fire\n\nAnswer format: answer1/answer2/answer3", "answer": "answer1"},
 {"instruction": "Please choose the correct answer to the question: What is hot?\n\nAnswer1: ice Answer2: fire\n\nAnswer format: answer1/answer2", "answer": "answer2"}]
END
want 0 eval conv --against tiny.gguf --task arc --file arc.json --csv arc.csv --store --json
json 'd["task"] == "arc" and d["n"] == 2 and 0 <= d["acc_norm"] <= 1 and d["stderr"] >= 0'
json 'len(d["diff_ci95"]) == 2 and d["tokens_read"] >= d["tokens_unique"]'
[[ $(wc -l <arc.csv) == 3 ]] || fail "a row a question in arc.csv"
[[ -s conv/evaluations.json ]] || fail "--store kept nothing"
want 1 eval tiny.gguf --task arc --file arc.json --store
want 0 eval tiny.gguf --ppl text.txt --ctx 64 --windows 2 --csv ppl.csv
[[ $(wc -l <ppl.csv) == $((2 * 63 + 1)) ]] || fail "a row a token in ppl.csv"
want 1 eval tiny.gguf --task arc --file x --limit 3
want 2 eval tiny.gguf --task arc
want 2 eval tiny.gguf --task poetry --file x
want 2 eval tiny.gguf --task arc --file x --ppl text.txt
want 1 eval tiny.gguf --ppl missing.txt

# --- talking ----------------------------------------------------------------------------------
want 0 chat tiny.gguf --prompt Hi -n 6 --json
json 'len(d["turns"]) == 1 and d["turns"][0]["side"] == "original"'
json 'all(k in d["turns"][0] for k in ("text", "ids", "tokens_per_sec", "ttft_sec", "stop"))'
want 0 chat tiny.gguf conv --prompt Hi --prompt Again -n 6 --json
json '[t["side"] for t in d["turns"]] == ["original", "converted"] * 2'
want 0 chat conv tiny.gguf --prompt Hi -n 6 --forced --json
json 'd["turns"][0]["ids"] == d["turns"][1]["ids"] and d["turns"][0]["compare"]["compared"] > 0'
want 0 chat tiny.gguf twin.gguf --prompt Hi -n 4 --json
json '[t["side"] for t in d["turns"]] == ["first", "second"]'
want 0 chat tiny.gguf --prompt Hi -n 0 --ctx 40 --json
json 'd["turns"][0]["stop"] in ("context", "eos")'
want 1 chat tiny.gguf --prompt "a long line that has more tokens than the context has room" --ctx 8
said context
want 2 chat tiny.gguf --prompt Hi --forced

# --- export -----------------------------------------------------------------------------------
want 2 export
want 2 export conv -o x
said "--to"
want 2 export conv --to tensorrt -o x
said "hf, vllm, sglang, gguf or plan"
want 2 export conv --to hf --dtype int3 -o x
want 1 export tiny.gguf --to hf -o x
said "nothing is converted"
want 1 export conv --to gguf -o x # of its own layout
said "--layout stock"
want 0 plan tiny.gguf --engine gguf --kept 50% -o engine.json
want 2 plan tiny.gguf --engine tgi --kept 50%
want 0 convert tiny.gguf --plan engine.json --calib text.txt --tokens 1024 -o stockconv --json
want 0 inspect stockconv --json
json '[e["engine"] for e in d["loads_in"]] == ["hf", "vllm", "sglang", "gguf"]'
json 'all(e["fit"] == "yes" for e in d["loads_in"])'
want 0 export stockconv --to hf --dtype f32 --dry-run -o exported --json
json 'd["bytes"] > 0 and d["files"] and not d["checks"]'
[[ ! -e exported ]] || fail "a dry run wrote something"
want 0 eval stockconv --against tiny.gguf --ppl text.txt --ctx 64 --windows 2 --store --json
want 0 export stockconv --to hf --dtype f32 -o exported --json
grep -q "perplexity .* on .* tokens" exported/README.md || fail "the card lacks what was measured"
json 'd["checks"][0]["passed"] and d["checks"][0]["nmse"] < 1e-7 and d["checks"][0]["same_top1"] == 1'
json '{"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {f["name"] for f in d["files"]}'
want 1 export stockconv --to hf --dtype f32 -o exported
said "--force"
want 0 generate exported --text "Once" -n 2 --temp 0 --json # a model like any other
want 0 export exported --help
want 1 export exported --to hf -o y
want 0 export stockconv --to gguf --dtype f32 -o exported.gguf --json
json 'd["checks"][0]["nmse"] < 1e-7'
want 0 tokenize exported.gguf --text "Once upon" --json
cp out first
want 0 tokenize exported --text "Once upon" --json
cmp -s out first || fail "the exported vocabularies differ"
want 0 export stockconv --to hf --dtype f32 --q-lora-rank 8 --calib text.txt -o narrow --json
json 'd["q_lora_rank"] == 8 and 0 < d["query_energy_kept"] < 1 and d["query_loss"]["nmse"] > 0'
json 'd["checks"][0]["nmse"] < 1e-7' # what it computes is what was meant
want 0 inspect narrow --json
want 1 export stockconv --to hf --q-lora-rank 60000 -o narrower
said "queries of rank"
want 0 plan tiny.gguf --preset equal-cache -o equal.json
said "transformers loads it"
want 0 convert tiny.gguf --plan equal.json --engine hf --calib text.txt --tokens 1024 -o equal --json
json 'd["kept"] == 1 and all(l["error"] < 1e-11 for l in d["layers"])'
want 1 convert tiny.gguf --plan equal.json --engine vllm --calib text.txt --tokens 1024 -o never
said "vLLM could not load this"
want 2 plan tiny.gguf --preset equal-cache --rank 3
want 0 export stockconv --to plan -o plan-again.json --json
want 0 convert tiny.gguf --plan plan-again.json --calib text.txt --tokens 1024 -o again --json

# --- full disk, Ctrl-C ------------------------------------------------------------------------
if [[ -w /dev/full ]]; then
    code=0
    "$program" paths --json >/dev/full 2>err || code=$?
    [[ $code == 1 ]] || fail "/dev/full: exit code $code"
fi
interrupt() { # ARG…: runs, interrupts after a second, wants 130 soon
    "$program" "$@" >out 2>err </dev/null &
    local pid=$! code=0 start=$SECONDS
    sleep 1
    kill -INT "$pid"
    wait "$pid" || code=$?
    [[ $code == 130 ]] || fail "mlathe $*: exit code $code after Ctrl-C: $(head -c 300 err)"
    ((SECONDS - start <= 20)) || fail "mlathe $*: took $((SECONDS - start)) s to stop"
}
interrupt convert hf --kept 50% --calib long.txt --tokens 400000 -o stopped
[[ ! -e stopped ]] || fail "a stopped conversion left something"
interrupt eval tiny.gguf --ppl long.txt --ctx 512 --device ref
interrupt bench tiny.gguf -p 512 -n 512 -r 1000
compgen -G '*.tmp-*' >/dev/null && fail "temporary files are left"

# --- pictures, the report, the doctor -----------------------------------------------------------
well_formed() { # FILE: XML, and nothing in it that is fetched
    grep -qE '<script|<image|href="http|url\(' "$1" && fail "$1 fetches or runs something"
    [[ -z $python ]] || "$python" -c 'import sys, xml.dom.minidom as x; x.parse(sys.argv[1])' "$1" ||
        fail "$1 is no XML"
}
want 0 spectra tiny.gguf --weights-only --svg spectra.svg
well_formed spectra.svg
want 0 plan tiny.gguf --kept 50% --svg plan.svg
well_formed plan.svg
want 0 eval tiny.gguf --ppl long.txt --ctx 64 --windows 2 --svg eval.svg
well_formed eval.svg
want 0 convert tiny.gguf --rank 8 --rope 4 --calib long.txt --tokens 512 -o 'a<b>&"c'
want 0 report 'a<b>&"c' -o report.html --json
json 'd["file"] == "report.html" and d["bytes"] > 5000'
[[ $(wc -c <report.html) == "$("$program" report 'a<b>&"c' -o again.html --json 2>/dev/null |
    grep -o '"bytes":[^0-9]*[0-9]*' | grep -o '[0-9]*$')" ]] || fail "the report differs from run to run"
grep -q 'calibrated)' report.html || fail "the report did not find the conversion's statistics"
grep -qE '<script|http:|https:' report.html && fail "the report fetches or runs something"
want 2 report 'a<b>&"c'
want 1 report hf -o report.html
said "no conversion folder"
want 0 paths --json
json 'd["settings"].endswith("/settings")'
want 0 doctor --json
json 'd["memory_bytes"] > 0 and d["cpu"]["threads"] > 0 and d["blas"] and d["gpus"] == list(d["gpus"])'
json 'd["terminal"] and any("default model" in p["problem"] and p["remedy"] for p in d["problems"])'
TERM=dumb want 0 doctor
printed "TERM is not set or dumb"

# --- the manual and the completions name every command and option --------------------------------
want 0 --man
"$program" --help 2>/dev/null | sed -n '/^Commands/,/^$/s/^  \([a-z]*\) .*/\1/p' >commands
(($(wc -l <commands) >= 15)) || fail "the help's list of commands cannot be read"
sed 's/\\-/-/g' out >page
for shell in bash zsh fish; do
    want 0 --completion $shell
    mv out completion.$shell
    command -v $shell >/dev/null && ! $shell -n completion.$shell && fail "completion of $shell"
done
while read -r command; do
    grep -q "^.SS mlathe $command" page || fail "the manual lacks $command"
    grep -q "    $command) words=" completion.bash || fail "bash does not complete $command"
    grep -q "'$command:" completion.zsh || fail "zsh does not complete $command"
    for option in $("$program" "$command" --help | grep -oE '^  (-., )?--[a-z0-9-]+' | grep -oE -- '--.*'); do
        grep -qF "fB$option\fR" page || grep -qF ", \fB$option\fR" page || fail "the manual lacks $option"
        grep -qF -- "-l ${option#--}" completion.fish || fail "fish does not complete $option"
    done
done <commands
(
    source ./completion.bash
    complete_to() { COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=() && _mlathe && echo "${COMPREPLY[*]}"; }
    [[ $(complete_to mlathe insp) == inspect && $(complete_to mlathe convert --meth) == --method &&
        $(complete_to mlathe convert --layout sh) == shared && -z $(complete_to mlathe eval --ppl w) ]]
) || fail "bash completes something else"
command -v man >/dev/null && { man --warnings -l page >/dev/null 2>err.man || fail "man cannot show the page"; }
want 2 --completion tcsh

echo "cli checks: $failures failed"
exit $((failures > 0))
