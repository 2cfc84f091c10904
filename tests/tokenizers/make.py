#!/usr/bin/env python3
"""Makes the tokenizers of this folder and what the reference libraries do with them.

Every file is a tiny vocabulary of the build of one family, trained on the lines below. The ids come
from `tokenizers` 0.23.3 and `sentencepiece` 0.2.3 (PyPI); run it in an environment that has both.
A tokenizer.json named X.json is paired with the lines of cases.jsonl whose "file" is X.json:
"ids" without and "special" with the tokens that a post-processor adds, "decoded" with specials shown.
"""
import io
import json
import os
import sys

import sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

HERE = os.path.dirname(os.path.abspath(__file__))

CORPUS = """The model reads a line of text and cuts it into pieces that it has seen before.
A piece may be a word, a part of a word, or one letter; rare letters are written as bytes.
She said: "I'm not sure we'll make it, but they've tried and it'd be a pity to stop here."
In 2024 there were 1234567 lines, 89 of them empty, and 3.14159 is not a whole number.
def add(first, second):\n    return first + second  # the sum of both\n
for (int i = 0; i < 100; i++) { total += values[i] * weights[i]; }
HelloWorld helloWorld HELLO_WORLD camelCaseNames SnakeCaseNames XMLHttpRequest
https://example.com/path/to/file?query=value&other=1#anchor
Žluťoučký kůň pěl ďábelské ódy. Größe, Straße, naïve, café, déjà vu, façade.
Съешь ещё этих мягких французских булок да выпей чаю. Привет, мир!
今日は良い天気です。明日も晴れるでしょう。カタカナとひらがな。
今天天气很好，我们去公园散步吧。你好，世界！
안녕하세요 세계. 오늘은 날씨가 좋습니다.
مرحبا بالعالم كيف حالك اليوم
🙂 🙂 👍🏽 👨‍👩‍👧 the end ... --- === *** ((( ))) [[[ ]]] {{{ }}}
    indented by four\n        indented by eight\n\n\n\tand by a tab\r\n
""".split("\n")
CORPUS += [line.lower() for line in CORPUS] + [line.upper() for line in CORPUS[:6]]

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", "Hello world", " Hello world", "Hello World!",
    "  Hello", "    Hello\n    Hello", " (", "\n =", "' era", "'S 'LL you'LL they'VE I'm", "!!!!!!",
    "3", "33", "333", "3333", "1234567890 ½ Ⅷ ²", "naïve café déjà vu", "e\u0301 o\u0308 (NFD) Å Ω ﬁ ① Ａ",
    "한국어 안녕", "今天天气 very good 明日も", "Привет", "مرحبا ١٢٣", "हिन्दी में", "👨‍👩‍👧 👍🏽 🇺🇸 🦙",
    "\u200b\ufeff", "a\u180eb", "\u0085\u2028\u2029", "\u00a0\u2003\u3000x", "\u001b[31m", "=" * 40, " " * 30 + "x",
    "\r\nfoo\r\n", "def f(x):\n    return x**2  # ok\n", '{"a": [1, 2.5e-3, null]}', "HTTPServer/HTMLparser_X",
    "https://a.b/c?d=e//f", "a  b   c    d", "<s>[INST] hi [/INST]</s>", "<0x0A> <0xFF>", "▁▁ al▁ready ▁",
    "<|im_start|>user\nhi<|im_end|>", "a <|im_sep|> b\n\n<|end|>\n c", "<bos><start>x<unused0>y", "a<end>  b <end>",
    "word<think>word", "foo<t> <t>bar <single> single xsingle", "İSTANBUL ß ſ ﬁ", "the" * 20, "\ue000\U0010ffff",
]

UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
WORD, TAIL = r"[^\r\n\p{L}\p{N}]?", r"\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = SHORT + "|" + WORD + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
O200K = (f"{WORD}[{UPPER}]*[{LOWER}]+{SHORT}?|{WORD}[{UPPER}]+[{LOWER}]*{SHORT}?|" +
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL)
TEKKEN = (f"{WORD}[{UPPER}]*[{LOWER}]+|{WORD}[{UPPER}]+[{LOWER}]*|" +
          r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL)


def train(tok, size, specials=(), bytes_first=False, **more):
    alphabet = pre_tokenizers.ByteLevel.alphabet() if more.pop("byte_level", False) else []
    first = list(specials)
    if bytes_first:
        first += [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, show_progress=False,
                                  initial_alphabet=alphabet, limit_alphabet=len(alphabet) or 90, **more)
    tok.train_from_iterator(CORPUS, trainer)
    # Byte pieces are ordinary pieces, not added tokens.
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(data))


def special(content, **flags):
    return AddedToken(content, normalized=False, special=True, **flags)


def plain(content, **flags):
    return AddedToken(content, special=False, **flags)


def starts_with(tok, name):
    return processors.TemplateProcessing(single=f"{name} $A", pair=f"{name} $A {name} $B",
                                         special_tokens=[(name, tok.token_to_id(name))])


def byte_level(split, **flags):
    tok = Tokenizer(models.BPE(**flags))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        split + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    return train(tok, 420, byte_level=True)


def spm_like(normalizer, pre, decoder, size=520):
    tok = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if normalizer:
        tok.normalizer = normalizer
    # Words are learnt with a mark in front, whatever the build says later.
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tok = train(tok, size, ["<unk>", "<s>", "</s>"], bytes_first=True)
    data = json.loads(tok.to_str())
    data["pre_tokenizer"] = json.loads(pre) if pre else None
    tok = Tokenizer.from_str(json.dumps(data))
    tok.decoder = decoder
    return tok


def llama_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                              decoders.Strip(" ", 1, 0)])


def gemma():
    tok = spm_like(normalizers.Replace(" ", "▁"), None, None)
    tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tok.add_tokens([plain(t, normalized=False) for t in
                    ["\n\n", "\n\n\n", "▁▁", "▁▁▁▁", "<unused0>", "<table>", "\t\t"]])
    tok.add_special_tokens([special(t) for t in ["<bos>", "<start>", "<end>"]])
    tok.post_processor = starts_with(tok, "<bos>")
    return tok


def phi3():
    tok = spm_like(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
                   llama_decoder())
    tok.add_special_tokens([special("<|end|>", rstrip=True), special("<|im_sep|>", rstrip=True),
                            special("<end>", rstrip=True)])
    tok.post_processor = starts_with(tok, "<s>")
    return tok


def mistral():
    tok = spm_like(None, '{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":false}',
                   llama_decoder())
    tok.add_special_tokens([special(t) for t in ["<s>", "</s>", "[INST]", "[/INST]"]])
    tok.post_processor = starts_with(tok, "<s>")
    return tok


def metaspace(scheme):
    tok = spm_like(None, f'{{"type":"Metaspace","replacement":"▁","prepend_scheme":"{scheme}","split":true}}',
                   decoders.Sequence([decoders.ByteFallback(),
                                      decoders.Metaspace(prepend_scheme=scheme)]))
    tok.add_special_tokens([special("<s>"), special("<end>")])
    return tok


def phi4():
    tok = byte_level([pre_tokenizers.Split(Regex(CL100K), "removed", invert=True)])
    tok.add_special_tokens([special(f"<|im_{w}|>", lstrip=True, rstrip=True) for w in ("start", "end", "sep")])
    return tok


def o200k():
    tok = byte_level([pre_tokenizers.Split(Regex(O200K), "isolated")])
    tok.add_special_tokens([special("<|end|>", rstrip=True), special("<|im_start|>")])
    tok.add_tokens([plain("<think>", normalized=False), plain("single", single_word=True), plain("<t>", lstrip=True)])
    return tok


def tekken():
    tok = byte_level([pre_tokenizers.Split(Regex(TEKKEN), "isolated")], ignore_merges=True)
    data = json.loads(tok.to_str())
    # A word that no merge makes: only looking up whole words finds it.
    data["model"]["vocab"]["ĠHello"] = max(data["model"]["vocab"].values()) + 1
    tok = Tokenizer.from_str(json.dumps(data))
    tok.add_special_tokens([special("<s>"), special("</s>"), special("[INST]"), special("[/INST]")])
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), starts_with(tok, "<s>")])
    return tok


def deepseek():
    split = lambda regex: pre_tokenizers.Split(Regex(regex), "isolated")
    tok = byte_level([
        split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"),
        split(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|""" +
              r" ?[\p{P}\p{S}]+[\r\n]*|" + TAIL)])
    return tok


def falcon():
    tok = byte_level([pre_tokenizers.Punctuation("contiguous"),
                      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                      pre_tokenizers.Digits(individual_digits=False)])
    data = json.loads(tok.to_str())
    steps = data["pre_tokenizer"]["pretokenizers"]
    data["pre_tokenizer"]["pretokenizers"] = [steps[0], steps[2], steps[1]]
    return Tokenizer.from_str(json.dumps(data))


def unigram(scheme, normalizer, byte_fallback):
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    specials = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if byte_fallback else [])
    trainer = trainers.UnigramTrainer(vocab_size=300 + len(specials), special_tokens=specials, unk_token="<unk>",
                                      show_progress=False)
    # Some letters stay out, so that there are unknown ones.
    tok.train_from_iterator([line for line in CORPUS if line.isascii()], trainer)
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    data["model"]["byte_fallback"] = byte_fallback
    tok = Tokenizer.from_str(json.dumps(data))
    parts = [decoders.ByteFallback()] if byte_fallback else []
    tok.decoder = decoders.Sequence(parts + [decoders.Metaspace(prepend_scheme=scheme)])
    return tok


JSON = {
    "gemma.json": gemma, "phi3.json": phi3, "mistral.json": mistral, "phi4.json": phi4, "o200k.json": o200k,
    "tekken.json": tekken, "deepseek.json": deepseek, "falcon.json": falcon,
    "metaspace_always.json": lambda: metaspace("always"), "metaspace_never.json": lambda: metaspace("never"),
    "unigram.json": lambda: unigram("always", normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]), False),
    "unigram_bytes.json": lambda: unigram("first", normalizers.NFD(), True),
}

SPM = {
    "bpe.model": dict(model_type="bpe", vocab_size=560, byte_fallback=True, normalization_rule_name="identity",
                      remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
                      user_defined_symbols=["<think>", "▁▁", "▁▁▁▁", "\t"]),
    "unigram.model": dict(model_type="unigram", vocab_size=330, hard_vocab_limit=False),
    "noprefix.model": dict(model_type="bpe", vocab_size=300, add_dummy_prefix=False),
    "unigram_bytes.model": dict(model_type="unigram", vocab_size=520, hard_vocab_limit=False, byte_fallback=True,
                                normalization_rule_name="identity", remove_extra_whitespaces=False,
                                user_defined_symbols=["<think>"]),
}
# A normalization of a few lines instead of a quarter of a megabyte.
RULES = "".join("\t".join((" ".join(f"{ord(c):X}" for c in a), " ".join(f"{ord(c):X}" for c in b))) + "\n"
                for a, b in [("ﬁ", "fi"), ("①", "1"), ("Ａ", "A"), ("\u3000", " "), ("\u00a0", " "), ("e\u0301", "é"),
                             ("\t", " "), ("\n", " "), ("\u200b", ""), ("İ", "i\u0307")])


def make_spm(name, rules_path):
    options = dict(SPM[name])
    if options.get("normalization_rule_name") != "identity":
        options["normalization_rule_tsv"] = rules_path
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in CORPUS if line.isascii()] if "unigram" in name else CORPUS),
        model_writer=out, minloglevel=2, num_threads=1, character_coverage=0.98, **options)
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(out.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def main():
    cases = []
    for name, build in JSON.items():
        tok = build()
        with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
            json.dump(json.loads(tok.to_str()), f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")
        for text in TEXTS:
            ids = tok.encode(text, add_special_tokens=False).ids
            cases.append({"file": name, "text": text, "ids": ids, "special": tok.encode(text).ids,
                          "decoded": tok.decode(ids, skip_special_tokens=False)})
    rules_path = os.path.join(HERE, "rules.tmp")
    with open(rules_path, "w", encoding="utf-8") as f:
        f.write(RULES)
    for name in SPM:
        tok = make_spm(name, rules_path)
        for text in TEXTS:
            ids = tok.encode(text)
            case = {"file": name, "text": text, "ids": ids}
            # The library shows an unknown piece as " ⁇ ", as no text can.
            if tok.unk_id() not in ids:
                case["decoded"] = tok.decode(ids)
            cases.append(case)
    os.remove(rules_path)
    with open(os.path.join(HERE, "cases.jsonl"), "w", encoding="utf-8") as f:
        for case in cases:
            f.write(json.dumps(case, ensure_ascii=True) + "\n")
    print(len(cases), "cases", file=sys.stderr)


main()
