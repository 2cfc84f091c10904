#!/usr/bin/env python3
"""One real conversion in the stock layout, exported to everything and run in the real engines.

usage: export_stock.py MLATHE SOURCE_FOLDER MODEL [CONVERSION [hf|gguf|fp8 ...]]
MODEL is converted (--layout stock --rope 64 --rank 128) unless CONVERSION, made from it, is given; parts
may be chosen. MLATHE_TEST_TOKENS: another number than 2,000.
Checked: logits on 2,000 tokens of real text and 64 greedy tokens after 5 prompts, in F32, BF16 and Q8_0,
against our own runtime in exact arithmetic; FP8 bit by bit against a reference quantisation, and its
perplexity against BF16's. Prints a line each, exits 77 without transformers and 1 when something is off.
"""
import json, os, sys, tempfile

sys.dont_write_bytecode = True
try:
    import export_kit as kit
except ImportError as error:
    print("skipped: transformers is not installed (%s)" % error)
    sys.exit(77)
from export_kit import np, torch

TOKENS, WINDOW, GREEDY = int(os.environ.get("MLATHE_TEST_TOKENS", "2000")), 250, 64
TEXT = """A lathe turns the work while the tool stands still. The first ones were driven by a bow or a treadle;
later came water, steam and electric motors, and with them screws that were all the same. """ * 60
PROMPTS = ["Gravity is", "The three most important rules of cooking are", "def fibonacci(n):\n",
           "In the year 1969,", "Dear Sir or Madam,\n\nI am writing to"]

mlathe, source, model = kit.Program(sys.argv[1]), sys.argv[2], sys.argv[3]
result, cpp = kit.Report(), kit.LlamaCpp()


def data(name):
    path = os.path.join(os.environ.get("MLATHE_TEST_DATA", os.path.join(source, "../shared/data")), name)
    return path if os.path.exists(path) else None


def windows():
    """TOKENS of real text, or of our own where there is none."""
    path = data("lm/eval_wiki.txt")
    text = open(path, encoding="utf-8").read(40000) if path else TEXT
    ids = mlathe("tokenize", model, "--text", text)["ids"][:TOKENS]
    return [ids[i:i + WINDOW] for i in range(0, len(ids), WINDOW)]


def export(to, dtype, check=False):
    out = os.path.join(work, "%s-%s%s" % (to, dtype, ".gguf" if to == "gguf" else ""))
    if os.path.exists(out):
        return out
    report = mlathe("export", conversion, "--to", to, "--dtype", dtype, "-o", out, *([] if check else ["--no-check"]))
    if check:
        c = report["checks"][0]
        result.line(c["passed"] and c["done"], "%-5s %-5s read back by our own reader     NMSE %.1e  top-1 %.1f %%" % (
            to, dtype, c["nmse"], 100 * c["same_top1"]))
    return out


def logits_line(what, got, limit, share):
    """got: a function ids -> logits."""
    off = size = same = n = 0
    for ids, want in zip(rows, ours):
        error, top = kit.compare(got(ids), want)
        weight = float(((want - want.mean(-1, keepdims=True)).astype(np.float64) ** 2).sum())
        off, size, same, n = off + error * weight, size + weight, same + top, n + len(ids)
    result.line(off / size <= limit and same >= share * n, "%-40s NMSE %.2e (limit %.0e)  top-1 %d/%d = %.2f %%" % (
        what, off / size, limit, same, n, 100 * same / n))


def greedy_line(what, got):
    same = [got(ids) == want for ids, want in zip(prompts, continued)]
    result.line(all(same), "%-40s greedy %d tokens equal after %d of %d prompts" % (what, GREEDY, sum(same), len(same)))


def hf(dtype, compute, limit, share, greedy=False):
    folder = export("hf", dtype, dtype == "f32")
    engine = kit.Transformers(folder, compute)
    what = "transformers %s, %s in %s" % (kit.transformers.__version__, dtype, str(compute)[6:])
    result.line(not engine.bad, "%-40s loads as %s, no key missing or unexpected %s" % (what, engine.name, engine.bad or ""))
    logits_line(what, engine.logits, limit, share)
    if greedy:
        greedy_line(what, lambda ids: engine.greedy(ids, GREEDY))


def gguf(dtype, limit, share, greedy=False):
    file = export("gguf", dtype, dtype == "f32")
    what = "llama.cpp, %s, F32 cache" % dtype
    logits_line(what, lambda ids: cpp.logits(file, ids), limit, share)
    if greedy:
        greedy_line(what, lambda ids: cpp.greedy(file, ids, GREEDY))


def tensors(folder):
    from safetensors import safe_open
    with safe_open(folder + "/model.safetensors", "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}


def blocks(x):
    """[rows][cols] as [block rows][128][block columns][128], edges filled with zeros."""
    m, n = x.shape
    return torch.nn.functional.pad(x, (0, -n % 128, 0, -m % 128)).reshape(-(-m // 128), 128, -(-n // 128), 128)


def fp8():
    """Scales amax/448 a block and the nearest E4M3 numbers, as torch's own type rounds them."""
    plain, packed = tensors(export("vllm", "f32")), tensors(export("vllm", "fp8", True))
    wrong = n = 0
    names = [k for k in packed if packed[k].dtype == torch.float8_e4m3fn]
    for k in names:
        w, q, scale = blocks(plain[k].float()), packed[k], packed[k + "_scale_inv"]
        amax = w.abs().amax((1, 3))
        want = torch.where(amax > 0, amax / 448, torch.ones_like(amax))
        ref = (w / want[:, None, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        got = blocks(q.float())
        wrong += int((scale != want).sum()) + int((got != ref).sum())
        n += q.numel()
    result.line(wrong == 0 and len(names) > 0, "FP8: %d matrices, %d numbers: %d differ from the reference" % (len(names), n, wrong))
    path = data("lm/eval_wiki.txt")
    if not path:
        return print("skipped: perplexity (no text)")
    ppl = [mlathe("eval", os.path.join(work, "vllm-" + d), "--ppl", path, "--ctx", 512, "--windows", 24)["ppl"]
           for d in ("bf16", "fp8") if d == "fp8" or export("vllm", d)]
    result.line(abs(ppl[1] / ppl[0] - 1) <= 0.01, "FP8: perplexity %.4f, BF16 %.4f: %+.2f %%" % (
        ppl[1], ppl[0], 100 * (ppl[1] / ppl[0] - 1)))


with tempfile.TemporaryDirectory() as work:
    if len(sys.argv) > 4:
        conversion = sys.argv[4]
    else:
        conversion = os.path.join(work, "conversion")
        texts = [t for t in (data("lm/calib_wiki.txt"), data("lm/calib_c4.txt")) if t]
        calib = [w for t in texts for w in ("--calib", t)] or ["--calib", "self"]
        mlathe("convert", model, "--layout", "stock", "--rope", 64, "--rank", 128, *calib, "--tokens", 32768,
               "-o", conversion)
    parts = sys.argv[5:] or ["hf", "gguf", "fp8"]
    if parts != ["fp8"]:
        rows = windows()
        ours = [mlathe.logits(conversion, ids) for ids in rows]
        prompts = [mlathe("tokenize", model, "--text", p)["ids"] for p in PROMPTS]
        continued = [mlathe("generate", conversion, "--ids", ",".join(map(str, p)), "-n", GREEDY, "--temp", 0,
                            "--ignore-eos", "--exact", "--kv", "f32")["ids"] for p in prompts]
    if "hf" in parts:
        hf("f32", torch.float32, 1e-6, 1, greedy=True)
        # Stored in BF16: what storing costs, and with BF16 arithmetic on top.
        hf("bf16", torch.float32, 5e-4, 0.98)
        hf("bf16", torch.bfloat16, 5e-3, 0.95)
    if "gguf" in parts and not cpp.there:
        print("skipped: llama.cpp (cyllama is not installed)")
    elif "gguf" in parts:
        gguf("f32", 1e-6, 1, greedy=True)
        gguf("bf16", 5e-4, 0.98)
        gguf("q8_0", 5e-3, 0.93)  # eight bits a weight: an NMSE near 2e-3
    if "fp8" in parts:
        fp8()
result.end("stock")
