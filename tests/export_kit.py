"""What the checks of exports in real engines share: our program, an unmodified transformers, and
llama.cpp through cyllama. Importing it without torch and transformers raises ImportError."""
import json, os, subprocess, sys

import numpy as np, torch, transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
THREADS = int(os.environ.get("MLATHE_TEST_THREADS", "2"))
torch.set_num_threads(THREADS)


class Program:
    """mlathe with --json."""

    def __init__(self, path):
        self.path = os.path.abspath(path)

    def text(self, *words):
        run = subprocess.run([self.path, *map(str, words), "--json", "--threads", str(THREADS)], capture_output=True,
                             text=True)
        if run.returncode:
            sys.exit("mlathe %s: %s" % (" ".join(map(str, words)), run.stderr[-500:]))
        return run.stdout

    def __call__(self, *words):
        return json.loads(self.text(*words))

    def logits(self, model, ids):
        """[len(ids)][V] in exact arithmetic; read row by row, as a tree of JSON would take gigabytes."""
        text = self.text("logits", model, "--ids", ",".join(map(str, ids)), "--all", "--exact", "--kv", "f32")
        rows = text[text.index("[") + 1:text.rindex("]")].split("],")
        return np.array([np.fromstring(row.strip(" \n[]"), np.float32, sep=",") for row in rows])


def compare(y, r):
    """(NMSE of logits centred per position, positions with the same best token)."""
    y, r = np.asarray(y, np.float64), np.asarray(r, np.float64)
    same = int((y.argmax(-1) == r.argmax(-1)).sum())
    y, r = y - y.mean(-1, keepdims=True), r - r.mean(-1, keepdims=True)
    return float(((y - r) ** 2).sum() / (r ** 2).sum()), same


class Transformers:
    def __init__(self, folder, dtype=torch.float32):
        # By the class that the folder names: not all are in transformers' automatic list (Mistral4).
        kind = getattr(transformers, json.load(open(folder + "/config.json"))["architectures"][0])
        self.model, info = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager",
                                                output_loading_info=True)
        self.model.eval()
        self.bad = {k: v for k, v in info.items() if v and k != "error_msgs"}
        self.name = type(self.model).__name__

    def logits(self, ids):
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()

    def greedy(self, ids, n):
        """generate() with the engine's own KV cache."""
        out = self.model.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False, eos_token_id=-1, pad_token_id=0)
        return out[0, len(ids):].tolist()


CPP = """
import json, os, sys
out = os.fdopen(os.dup(1), "wb"); os.dup2(2, 1)
import numpy as np
from cyllama.llama import llama_cpp as L
class Model(L.LlamaModel):
    n_vocab = property(lambda self: self.get_vocab().n_vocab)
what, ids, n, threads = sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
model = Model(sys.argv[1], L.LlamaModelParams())
p = L.LlamaContextParams()
p.n_ctx, p.n_batch, p.n_ubatch, p.type_k, p.type_v = max(64, len(ids) + n), 2048, 512, 0, 0
p.flash_attn_type = 0  # it would round a cache in F32 to halves
p.n_threads = p.n_threads_batch = threads
ctx = L.LlamaContext(model, p)
def feed(ids, past, every):
    batch = L.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    batch.set_batch(ids, past, every)
    ctx.decode(batch)
feed(ids, 0, what == "logits")
if what == "logits":
    out.write(np.array([ctx.get_logits_ith(i) for i in range(len(ids))], np.float32).tobytes())
else:
    made = []
    while len(made) < n:
        made.append(int(np.argmax(ctx.get_logits_ith(-1))))
        feed(made[-1:], len(ids) + len(made) - 1, False)
    out.write(np.array(made, np.int32).tobytes())
out.flush(); os._exit(0)
"""


class LlamaCpp:
    """By another Python where that is the one that has cyllama (MLATHE_LLAMACPP_PYTHON)."""

    def __init__(self):
        self.python = os.environ.get("MLATHE_LLAMACPP_PYTHON", sys.executable)
        self.there = subprocess.run([self.python, "-c", "import cyllama, numpy"], capture_output=True).returncode == 0

    def _run(self, file, what, ids, n):
        run = subprocess.run([self.python, "-c", CPP, file, what, json.dumps(ids), str(n), str(THREADS)],
                             capture_output=True)
        if run.returncode or not run.stdout:
            sys.exit("llama.cpp: " + run.stderr.decode()[-500:])
        return run.stdout

    def logits(self, file, ids):
        return np.frombuffer(self._run(file, "logits", ids, 0), np.float32).reshape(len(ids), -1)

    def greedy(self, file, ids, n):
        return np.frombuffer(self._run(file, "greedy", ids, n), np.int32).tolist()


class Report:
    def __init__(self):
        self.failures = 0

    def line(self, good, text):
        self.failures += not good
        print("%-4s %s" % ("ok" if good else "FAIL", text), flush=True)

    def end(self, name):
        print("%s: %s" % (name, "%d failures" % self.failures if self.failures else "ok"))
        sys.exit(1 if self.failures else 0)
