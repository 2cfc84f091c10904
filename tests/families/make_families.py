#!/usr/bin/env python3
"""Tiny random checkpoints with golden logits from transformers, beside those of tests/arch: rope
scalings, layers without rope, Qwen3-MoE, biases, and FP8 blocks.

    make_families.py OUT [NAME ...]

Writes OUT/NAME/{config.json, model.safetensors, golden.json} and prints the table of README.md.
golden.json: fp32 eager attention on the stored (rounded) weights; tokens, logits_last (whole
vocabulary, last position), logits_first8 (ids 0..7, every position), greedy (8 ids), tolerance
(20 times the distance to a float64 run of the same weights, at least 2e-5).
"""
import json, os, re, sys, tempfile
import torch, transformers
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


def cfg(arch, kind, **more):
    c = dict(architectures=[arch + "ForCausalLM"], model_type=kind, vocab_size=96, hidden_size=48,
             intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, hidden_act="silu", max_position_embeddings=256, rms_norm_eps=1e-5,
             rope_theta=10000.0, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
             transformers_version="4.46.0")
    c.update(more)
    return {k: v for k, v in c.items() if v != "absent"}


def mla(arch, kind, **more):
    return cfg(arch, kind, num_key_value_heads=4, head_dim="absent", q_lora_rank=None,
               kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
               attention_bias=False, first_k_dense_replace=2, moe_layer_freq=1,
               moe_intermediate_size=16, n_routed_experts=8, n_shared_experts=1,
               num_experts_per_tok=2, n_group=1, topk_group=1, topk_method="greedy",
               scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=1.0,
               num_nextn_predict_layers=0, rms_norm_eps=1e-6, **more)


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
CASES = {
    "llama_yarn": ("Llama with YaRN, everything at its default", dict(config=cfg(
        "Llama", "llama", rope_scaling=YARN), bite=("no scaling", dict(rope_scaling=None)))),
    "qwen2_yarn": ("Qwen2.5 with YaRN as transformers 5 writes it: betas, truncate false, an "
                   "attention factor", dict(v5=True, config=cfg(
        "Qwen2", "qwen2", head_dim="absent", rms_norm_eps=1e-6, tie_word_embeddings=True,
        use_sliding_window=False, rope_scaling=dict(YARN, beta_fast=6.0, beta_slow=1.5,
        truncate=False, attention_factor=1.3)), bite=("truncated", dict(rope_parameters=dict(
        YARN, beta_fast=6.0, beta_slow=1.5, attention_factor=1.3, rope_theta=10000.0))))),
    "llama_dynamic": ("Llama with dynamic NTK scaling inside its context, where it changes nothing",
                      dict(config=cfg("Llama", "llama", rope_scaling=dict(type="dynamic",
                                                                          factor=4.0)))),
    "llama_bias": ("Llama with attention_bias and mlp_bias", dict(config=cfg(
        "Llama", "llama", attention_bias=True, mlp_bias=True))),
    "nemo": ("Mistral Nemo: head_dim is not hidden / heads, no window", dict(config=cfg(
        "Mistral", "mistral", head_dim=20, rope_theta=1000000.0, sliding_window=None))),
    "smollm3": ("SmolLM3: every fourth layer without rope, YaRN in the others", dict(config=cfg(
        "SmolLM3", "smollm3", num_hidden_layers=4, rope_theta=5000000.0, head_dim="absent",
        tie_word_embeddings=True, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0],
        attention_bias=False, mlp_bias=False, use_sliding_window=False, pad_token_id=0,
        sliding_window=None, rms_norm_eps=1e-6, rope_scaling=YARN), bite=("rope everywhere", dict(no_rope_layers=[1, 1, 1, 1])))),
    "qwen3_moe": ("Qwen3-MoE: top 3 of 8 renormalised, the second of three layers dense", dict(
        config=cfg("Qwen3Moe", "qwen3_moe", num_hidden_layers=3, num_experts=8, rms_norm_eps=1e-6,
                   num_experts_per_tok=3, moe_intermediate_size=12, norm_topk_prob=True,
                   decoder_sparse_step=1, mlp_only_layers=[1], attention_bias=False,
                   use_sliding_window=False, sliding_window=None, max_window_layers=3),
        bite=("no renorm", dict(norm_topk_prob=False)))),
    "dsv3_yarn": ("DeepSeek-V3 attention with YaRN, mscale and mscale_all_dim unequal", dict(
        config=mla("DeepseekV3", "deepseek_v3", rope_scaling=dict(
            type="yarn", factor=4, original_max_position_embeddings=64, beta_fast=32, beta_slow=1,
            mscale=0.707, mscale_all_dim=1.0)), bite=("no scaling", dict(rope_scaling=None)))),
    "llama_fp8": ("Llama in FP8 blocks of 128 x 128 with partial ones at the edges; golden from the "
                  "dequantised weights in fp32", dict(fp8=True, config=cfg(
        "Llama", "llama", hidden_size=136, intermediate_size=144, num_hidden_layers=1,
        vocab_size=48, head_dim=34))),
}


def fill(model, gen, dtype):
    with torch.no_grad():
        for name, t in model.named_parameters():
            new = torch.randn(t.shape, generator=gen)
            if "norm" in name:
                new = 1 + 0.3 * new
            elif t.dim() == 1 or "embed_tokens" in name or "lm_head" in name:
                new = 0.45 * new
            else:
                sharp = re.search(r"q_proj|k_proj|q_b_proj|kv_a|kv_b|gate\.weight", name)
                new = new * (1.6 if sharp else 1.2) / t.shape[-1] ** 0.5
            t.copy_(new.to(dtype))


def fp8(tensors):
    """DeepSeek's block quantisation of the linear layers. -> stored tensors, dequantised ones"""
    stored, plain = dict(tensors), {n: t.float() for n, t in tensors.items()}
    for name, t in tensors.items():
        if not name.endswith("proj.weight"):
            continue
        rows, cols = -(-t.shape[0] // 128), -(-t.shape[1] // 128)
        scale = torch.zeros(rows, cols)
        q = torch.zeros(t.shape, dtype=torch.float8_e4m3fn)
        back = torch.zeros(t.shape)
        for i in range(rows):
            for j in range(cols):
                at = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
                scale[i, j] = t[at].float().abs().max() / 448
                q[at] = (t[at].float() / scale[i, j]).to(torch.float8_e4m3fn)
                back[at] = q[at].float() * scale[i, j]
        stored[name], stored[name + "_scale_inv"], plain[name] = q, scale, back
    return stored, plain


def load(config, tensors):
    with tempfile.TemporaryDirectory() as tmp:
        json.dump(config, open(tmp + "/config.json", "w"))
        save_file(tensors, tmp + "/model.safetensors", {"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(
            tmp, dtype=torch.float32, attn_implementation="eager",
            experts_implementation="eager").eval()


class F64(TorchFunctionMode):
    """Turns the explicit fp32 casts inside the models into fp64 ones."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        up = lambda a: torch.float64 if a is torch.float32 else a
        if func is torch.Tensor.float:
            return args[0].double()
        return func(*map(up, args), **{k: up(v) for k, v in (kwargs or {}).items()})


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def prompt(model, vocab, gen):
    """Ids whose greedy continuation is clear at every step and meets no end token."""
    for _ in range(200):
        tokens = torch.randint(4, vocab, (24,), generator=gen).tolist()
        ids, margin = list(tokens), 9e9
        for _ in range(8):
            row = logits(model, ids)[-1]
            top = row.topk(2).values
            margin = min(margin, ((top[0] - top[1]) / row.std()).item())
            ids.append(int(row.argmax()))
        if margin > 0.02 and min(ids[24:]) > 3:
            return tokens, ids[24:]
    raise SystemExit("no clear greedy continuation")


def make(out, name, seed):
    what, case = CASES[name]
    gen = torch.Generator().manual_seed(seed)
    published = dict(case["config"], torch_dtype="bfloat16")
    with tempfile.TemporaryDirectory() as tmp:
        json.dump(published, open(tmp + "/config.json", "w"))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp),
                                                 dtype=torch.float32)
        fill(model, gen, torch.bfloat16)
        model.config.dtype = torch.bfloat16
        model.save_pretrained(tmp)
        tensors = {n: t.to(torch.bfloat16) for n, t in load_file(tmp + "/model.safetensors").items()}
        if case.get("v5"):
            published = json.load(open(tmp + "/config.json"))
    plain, native = tensors, dict(published)
    if case.get("fp8"):
        tensors, plain = fp8(tensors)
        published["quantization_config"] = dict(activation_scheme="dynamic", fmt="e4m3",
                                                quant_method="fp8", weight_block_size=[128, 128])
    folder = f"{out}/{name}"
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, folder + "/model.safetensors", {"format": "pt"})
    with open(folder + "/config.json", "w") as f:
        json.dump(published, f, indent=2, sort_keys=True)
        f.write("\n")
    model = load(native, plain)
    tokens, greedy = prompt(model, published["vocab_size"], gen)
    ref = logits(model, tokens)
    with F64():
        exact = logits(load(native, plain).double(), tokens)
    rms = ref[-1].pow(2).mean().sqrt().item()
    noise = ((ref - exact).abs().max() / rms).item()
    tolerance = float(f"{max(2e-5, 20 * noise):.0e}")
    num = lambda row: [float(f"{x:.8g}") for x in row.tolist()]
    with open(folder + "/golden.json", "w") as f:
        json.dump(dict(tokens=tokens, logits_last=num(ref[-1]),
                       logits_first8=[num(r[:8]) for r in ref], greedy=greedy,
                       tolerance=tolerance), f)
        f.write("\n")
    bite = ""
    if "bite" in case:
        label, change = case["bite"]
        wrong = logits(load({**native, **change}, plain), tokens)[-1]
        bite = f"{label} {(wrong - ref[-1]).abs().max() / rms:.2g}"
    print(f"| {name} | {what} | {rms:.2f} | {noise:.1e} | {tolerance:.0e} | {bite} |", flush=True)


def main():
    out, names = sys.argv[1], sys.argv[2:] or list(CASES)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for name in names:
        make(out, name, 7000 + list(CASES).index(name))


if __name__ == "__main__":
    main()
