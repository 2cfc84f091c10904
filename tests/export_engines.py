#!/usr/bin/env python3
"""Exports of the tiny checkpoints in the real engines: an unmodified transformers, and llama.cpp where
cyllama is installed. usage: export_engines.py MLATHE SOURCE_FOLDER [FAMILY ...]

Whole conversions (own layout, full rank, all of the rope) must give the *original's* logits as stored
in golden.json; half ones (stock layout) those of our own runtime. Prints a line each, exits 77 when
there is no transformers and 1 when something is off.
"""
import json, os, shutil, subprocess, sys, tempfile

try:
    import numpy as np, torch, transformers
except ImportError as error:
    print("skipped: transformers is not installed (%s)" % error)
    sys.exit(77)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
program, source = os.path.abspath(sys.argv[1]), sys.argv[2]
# name: whether engines without biases and longrope take it, changes to config.json
FAMILIES = {"llama2_mha": (True, {}), "llama_gqa_tied": (True, {}), "llama3_rope": (False, {}),
            "llama3_v5layout": (False, {}), "mistral_swa": (True, {"sliding_window": None}), "qwen2_bias": (False, {}),
            "mixtral_moe": (True, {}), "phi4": (True, {}), "phi3_partial": (True, {}), "phi4mini_short": (False, {})}
# Against golden logits the models' own fp32 noise counts (1e-11 as NMSE), amplified by random weights.
LIMIT = 1e-8
failures = 0


def mlathe(*words):
    run = subprocess.run([program, *map(str, words), "--json", "--threads", "2"], capture_output=True, text=True)
    if run.returncode:
        sys.exit("mlathe %s: %s" % (" ".join(map(str, words)), run.stderr[-500:]))
    return json.loads(run.stdout)


def nmse(y, r):
    y, r = np.asarray(y, np.float64), np.asarray(r, np.float64)
    y, r = y - y.mean(-1, keepdims=True), r - r.mean(-1, keepdims=True)
    return float(((y - r) ** 2).sum() / (r ** 2).sum())


def hf_logits(folder, ids):
    # By the class that the folder names: not all are in transformers' automatic list (Mistral4).
    kind = getattr(transformers, json.load(open(folder + "/config.json"))["architectures"][0])
    model, info = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    bad = {k: v for k, v in info.items() if v and k != "error_msgs"}
    with torch.no_grad():
        return type(model).__name__, bad, model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def report(name, what, engine, error, top, n, bad=None, limit=LIMIT):
    global failures
    good = error <= limit and top == n and not bad
    failures += not good
    print("%-4s %-16s %-22s %-24s NMSE %.1e  top-1 %d/%d%s" % ("ok" if good else "FAIL", name, what, engine, error, top, n,
                                                             "  %s" % bad if bad else ""), flush=True)


def family(name, served, changes, work):
    base, folder = os.path.join(source, "tests/arch", name), os.path.join(work, name)
    shutil.copytree(base, folder)
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    os.chmod(folder, 0o755)
    golden = json.load(open(folder + "/golden.json"))
    config = json.load(open(folder + "/config.json"))
    json.dump({**config, **changes}, open(folder + "/config.json", "w"))
    ids = golden["tokens"]
    want = np.array(golden["logits_last"])
    if changes:  # another model than the golden one: ask transformers itself
        want = hf_logits(folder, ids)[2][-1]
    shape = mlathe("inspect", folder)
    n = 2 * shape["kv_heads"] * shape["head_dim"]
    rope = int(shape["head_dim"] * config.get("partial_rotary_factor", 1))
    common = ["--calib", "self", "--tokens", 512]
    whole, half = os.path.join(work, name + "-whole"), os.path.join(work, name + "-half")
    mlathe("convert", folder, "--rank", n, "--rope", shape["kv_heads"] * rope, *common, "-o", whole)
    mlathe("convert", folder, "--rank", n // 2, "--rope", rope, "--layout", "stock", *common, "-o", half)
    out = os.path.join(work, name + "-hf")
    mlathe("export", whole, "--to", "hf", "--dtype", "f32", "-o", out)
    kind, bad, y = hf_logits(out, ids)
    report(name, "whole, golden logits", kind, nmse(y[-1], want), int(y[-1].argmax() == want.argmax()), 1, bad)
    ours = np.array(mlathe("logits", half, "--ids", ",".join(map(str, ids)), "--all", "--exact", "--kv", "f32")["logits"])
    out = os.path.join(work, name + "-half-hf")
    mlathe("export", half, "--to", "hf", "--dtype", "f32", "-o", out)
    kind, bad, y = hf_logits(out, ids)
    report(name, "half, our logits", kind, nmse(y, ours), int((y.argmax(1) == ours.argmax(1)).sum()), len(ids), bad)
    if served and "llama.cpp" in engines:
        out = os.path.join(work, name + ".gguf")
        mlathe("export", half, "--to", "gguf", "--dtype", "f32", "-o", out)
        y = engines["llama.cpp"](out, ids)
        # llama.cpp computes attention in half precision where it can
        report(name, "half, our logits", "llama.cpp", nmse(y, ours), int((y.argmax(1) == ours.argmax(1)).sum()), len(ids),
               limit=1e-5)


CPP = """
import json, os, sys
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
from cyllama.llama import llama_cpp as L
class Model(L.LlamaModel):
    n_vocab = property(lambda self: self.get_vocab().n_vocab)
ids = json.loads(sys.argv[2])
model = Model(sys.argv[1], L.LlamaModelParams())
p = L.LlamaContextParams()
p.n_ctx, p.n_batch, p.n_ubatch, p.type_k, p.type_v = max(64, len(ids)), 512, 512, 0, 0
ctx = L.LlamaContext(model, p)
batch = L.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
batch.set_batch(ids, 0, True)
ctx.decode(batch)
json.dump([[float(x) for x in ctx.get_logits_ith(i)] for i in range(len(ids))], out); out.flush(); os._exit(0)
"""


def llamacpp():
    """A function (file, ids) -> logits, or None; another Python may be the one that has it."""
    python = os.environ.get("MLATHE_LLAMACPP_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import cyllama"], capture_output=True).returncode:
        return None

    def logits(file, ids):
        run = subprocess.run([python, "-c", CPP, file, json.dumps(ids)], capture_output=True, text=True)
        if run.returncode or not run.stdout:
            sys.exit("llama.cpp: " + run.stderr[-500:])
        return np.array(json.loads(run.stdout))
    return logits


engines = {"llama.cpp": llamacpp()}
if not engines["llama.cpp"]:
    del engines["llama.cpp"]
    print("skipped: llama.cpp (cyllama is not installed)")
for name, (served, changes) in FAMILIES.items():
    if len(sys.argv) > 3 and name not in sys.argv[3:]:
        continue
    with tempfile.TemporaryDirectory() as work:
        family(name, served, changes, work)
print("engines: %s" % ("%d failures" % failures if failures else "ok"))
sys.exit(1 if failures else 0)
