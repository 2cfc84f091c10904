#!/usr/bin/env python3
"""Exports of the tiny checkpoints in the real engines: an unmodified transformers, and llama.cpp where
cyllama is installed. usage: export_engines.py MLATHE SOURCE_FOLDER [FAMILY ...]

Whole conversions (own layout, full rank, all of the rope) must give the *original's* logits as stored
in golden.json; half ones (stock layout) those of our own runtime. Prints a line each, exits 77 when
there is no transformers and 1 when something is off.
"""
import json, os, shutil, sys, tempfile

sys.dont_write_bytecode = True

try:
    import export_kit as kit
except ImportError as error:
    print("skipped: transformers is not installed (%s)" % error)
    sys.exit(77)

mlathe, source = kit.Program(sys.argv[1]), sys.argv[2]
# folder: whether engines without biases and longrope take it, whether a whole conversion has one list of
# frequencies (layers without rope make two), changes to config.json
FAMILIES = {"arch/llama2_mha": (True, True, {}), "arch/llama_gqa_tied": (True, True, {}),
            "arch/llama3_rope": (False, True, {}), "arch/llama3_v5layout": (False, True, {}),
            "arch/mistral_swa": (True, True, {"sliding_window": None}), "arch/qwen2_bias": (False, True, {}),
            "arch/mixtral_moe": (True, True, {}), "arch/phi4": (True, True, {}), "arch/phi3_partial": (True, True, {}),
            "arch/phi4mini_short": (False, True, {}),
            "families/smollm3": (True, False, {"rope_scaling": None, "rope_theta": 5000000.0})}
# Against golden logits the models' own fp32 noise counts (1e-11 as NMSE), amplified by random weights.
LIMIT = 1e-8
result = kit.Report()
cpp = kit.LlamaCpp()


def report(name, what, engine, got, want, bad=None):
    error, same = kit.compare(got, want)
    result.line(error <= LIMIT and same == len(want) and not bad, "%-16s %-22s %-24s NMSE %.1e  top-1 %d/%d%s" % (
        name, what, engine, error, same, len(want), "  %s" % bad if bad else ""))


def family(base, served, one_list, changes, work):
    name = os.path.basename(base)
    folder = os.path.join(work, name)
    shutil.copytree(base, folder)
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    os.chmod(folder, 0o755)
    golden = json.load(open(folder + "/golden.json"))
    config = json.load(open(folder + "/config.json"))
    json.dump({**config, **changes}, open(folder + "/config.json", "w"))
    ids = golden["tokens"]
    want = kit.np.array([golden["logits_last"]])
    if changes:  # another model than the golden one: ask transformers itself
        want = kit.Transformers(folder).logits(ids)[-1:]
    shape = mlathe("inspect", folder)
    n = 2 * shape["kv_heads"] * shape["head_dim"]
    rope = int(shape["head_dim"] * config.get("partial_rotary_factor", 1))
    common = ["--calib", "self", "--tokens", 512]
    whole, half = os.path.join(work, name + "-whole"), os.path.join(work, name + "-half")
    mlathe("convert", folder, "--rank", n // 2, "--rope", rope, "--layout", "stock", *common, "-o", half)
    if one_list:
        mlathe("convert", folder, "--rank", n, "--rope", shape["kv_heads"] * rope, *common, "-o", whole)
        out = os.path.join(work, name + "-hf")
        mlathe("export", whole, "--to", "hf", "--dtype", "f32", "-o", out)
        hf = kit.Transformers(out)
        report(name, "whole, golden logits", hf.name, hf.logits(ids)[-1:], want, hf.bad)
    ours = mlathe.logits(half, ids)
    out = os.path.join(work, name + "-half-hf")
    mlathe("export", half, "--to", "hf", "--dtype", "f32", "-o", out)
    hf = kit.Transformers(out)
    report(name, "half, our logits", hf.name, hf.logits(ids), ours, hf.bad)
    if served and cpp.there:
        out = os.path.join(work, name + ".gguf")
        mlathe("export", half, "--to", "gguf", "--dtype", "f32", "-o", out)
        report(name, "half, our logits", "llama.cpp", cpp.logits(out, ids), ours)


if not cpp.there:
    print("skipped: llama.cpp (cyllama is not installed)")
for path, how in FAMILIES.items():
    if len(sys.argv) > 3 and os.path.basename(path) not in sys.argv[3:]:
        continue
    with tempfile.TemporaryDirectory() as work:
        family(os.path.join(source, "tests", path), *how, work)
result.end("engines")
