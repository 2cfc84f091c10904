#!/usr/bin/env python3
"""Where tests/heal/reference.json comes from: two steps of Adam on a tiny converted Llama.

Needs torch and transformers; run from the top of the tree: python3 tests/heal/reference.py
The original is transformers' own LlamaForCausalLM on tests/arch/llama_gqa_tied, the student the same
model with its attention replaced by MLA in plain torch (queries [nope | rope], a latent, one shared
rope key), gradients by autograd, steps by torch.optim.Adam, everything in fp64 on the fp32 numbers.
The student's weights are a formula, so that the test can make them too.
"""
import json, math, os
import torch, transformers
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(0)
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(os.path.join(HERE, '../arch/llama_gqa_tied'), dtype=torch.float32).double().eval()
student = AutoModelForCausalLM.from_pretrained(os.path.join(HERE, '../arch/llama_gqa_tied'), dtype=torch.float32).double().eval()
c = model.config
D, H, d, L = c.hidden_size, c.num_attention_heads, c.head_dim, c.num_hidden_layers
r, R, T = 12, 8, 24
SHAPES = {'q': (H * (d + R), D), 'kv_a': (r + R, D), 'kv_b': (H * 2 * d, r), 'o': (D, H * d)}


def made(layer, which, rows, cols):
    i = torch.arange(rows * cols, dtype=torch.float64)
    x = torch.sin(0.7 * (i % 1009) + 1.3 * layer + 0.4 * which + 0.01 * torch.floor(i / 1009)) / math.sqrt(cols)
    return x.float().double().view(rows, cols)


class Mla(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        for k, (name, shape) in enumerate(SHAPES.items()):
            setattr(self, name, torch.nn.Parameter(made(layer, k, *shape)))
        self.freq = torch.tensor([0.8 * 0.5 ** j for j in range(R // 2)], dtype=torch.float64)

    def turn(self, x):  # [..., T, R], halves are real and imaginary parts
        a = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * self.freq
        re, im = x[..., :R // 2], x[..., R // 2:]
        return torch.cat([re * a.cos() - im * a.sin(), re * a.sin() + im * a.cos()], -1)

    def forward(self, hidden_states, **_):
        B, n, _ = hidden_states.shape
        q = (hidden_states @ self.q.T).view(B, n, H, d + R).transpose(1, 2)
        ckr = hidden_states @ self.kv_a.T
        kv = (ckr[..., :r] @ self.kv_b.T).view(B, n, H, 2 * d).transpose(1, 2)
        kr = self.turn(ckr[..., r:])[:, None].expand(B, H, n, R)
        q = torch.cat([q[..., :d], self.turn(q[..., d:])], -1)
        k = torch.cat([kv[..., :d], kr], -1)
        s = q @ k.transpose(-1, -2) / math.sqrt(d + R)
        s = s.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
        out = (s.softmax(-1) @ kv[..., d:]).transpose(1, 2).reshape(B, n, H * d)
        return out @ self.o.T, None


params = []
for l, layer in enumerate(student.model.layers):
    layer.self_attn = Mla(l)
    params += [(l, n, getattr(layer.self_attn, n)) for n in SHAPES]
for p in student.parameters():
    p.requires_grad_(False)
for _, _, p in params:
    p.requires_grad_(True)
ids = torch.tensor([[(i * 29 + 7 + 11 * b) % c.vocab_size for i in range(T)] for b in range(2)])
with torch.no_grad():
    target = model(ids).logits.log_softmax(-1)
opt = torch.optim.Adam([{'params': [p], 'lr': 1e-3 * p.detach().pow(2).mean().sqrt().item()} for _, _, p in params], betas=(.9, .95), eps=1e-12)
start = [p.detach().clone() for _, _, p in params]
out = {'origin': f'torch {torch.__version__.split("+")[0]}, transformers {transformers.__version__}: tests/heal/reference.py',
       'rank': r, 'rope': R, 'tokens': T, 'loss': [], 'tensors': []}
for step in range(2):
    opt.zero_grad()
    q = student(ids).logits.log_softmax(-1)
    kl = (target.exp() * (target - q)).sum(-1).mean()
    kl.backward()
    out['loss'].append(kl.item())
    if step == 0:
        for l, n, p in params:
            at = [(k * 7919 + 13 * l) % p.numel() for k in range(6)]
            out['tensors'].append({'layer': l, 'name': n, 'gradient_norm': p.grad.norm().item(), 'at': at,
                                   'gradient': [p.grad.view(-1)[i].item() for i in at], 'moved': []})
    opt.step()
    for t, s, (_, _, p) in zip(out['tensors'], start, params):
        t['moved'].append([(p.detach() - s).view(-1)[i].item() for i in t['at']])
        t.setdefault('moved_norm', []).append((p.detach() - s).norm().item())
json.dump(out, open(os.path.join(HERE, 'reference.json'), 'w'), indent=1)
print(out['loss'], out['origin'])
