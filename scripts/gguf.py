"""Convert the merged model to GGUF with llama.cpp, quantize it, and prove that it is the same model.

    python -m scripts.gguf pirate-nano            # → outputs/pirate-nano/gguf/*.gguf, receipt gguf.json

F16 first, then the recipe's `export: quantize:` types. Proven on every file: the chat template's bytes, the bos and eos ids, the ids of a corpus of
special tokens, unicode, code and blanks. Proven on F16: the logits, against the merged model in fp32.
"""

import os
import sys
import time
from pathlib import Path

from scripts import data, files, process, receipt, recipe
from scripts.proofs import logits

GENERATED = 64  # tokens that are timed, after a prompt of a page
SPOKEN = "The ship lay at anchor in the bay, and the cook went down to the galley to see what was left in the barrels. " * 10
CORPUS = [
    "plain words, nothing else.",
    " leading and trailing blanks ",
    "   three   runs    of     blanks      ",
    "tabs\tand\t\ttabs",
    "lines\n\n\nand\r\nreturns\n\n1. numbered\n\n   22. indented",
    "naïve café, Ærøskøbing, Ελληνικά, Русский, العربية, हिन्दी, 日本語, 한국어",
    "🏴‍☠️ 🦜 👩‍👩‍👧 é (e + combining acute: é) ﬁ ½ №",
    'def f(x: int) -> str:\n    return f"{x:>08.2f}"  # comment\n\n\nclass A:\n\tpass\n',
    "for (int i = 0; i < n; ++i) { a[i] ^= ~b[i] & 0xFF; }",
    "SELECT * FROM t WHERE x >= '2026-11-21' AND y IS NOT NULL; -- ok",
    "1234567890 3.14159 1,000,000 -17 1e-9 0x1F",
    "Don't! It's 'quoted', \"double\", `ticked`…—–",
    "<|not_a_token|> <|eot_id| > < |eot_id|> <s> </s> [INST]",
    "A" * 300,
    "\u00a0non-breaking\u200bzero-width\ufeff",
    "x",
]


def convert(merged, out, name, quants, log):
    """Run the converter, then llama-quantize a type at a time. Returns {type: path}."""
    made = {"F16": out / f"{name}-F16.gguf"}
    process.run(
        [sys.executable, process.llama_cpp("convert_hf_to_gguf.py"), merged, "--outfile", made["F16"], "--outtype", "f16"],
        log,
        f"convert {name}",
    )
    for kind in quants:
        made[kind] = out / f"{name}-{kind}.gguf"
        process.run(
            [process.llama_cpp("llama-quantize"), made["F16"], made[kind], kind], log.with_stem(f"quantize-{kind}"), f"quantize {kind}"
        )
    return made


def metadata(path):
    """(chat template, bos id, eos id) as the file carries them."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a whole GGUF ({error}); run `make gguf` again") from None
    values = [
        fields[k].contents() if k in fields else None
        for k in ("tokenizer.chat_template", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")
    ]
    return values[0], values[1], values[2]


def prove_metadata(path, merged, tokenizer):
    template, bos, eos = metadata(path)
    trained = (merged / "chat_template.jinja").read_text(encoding="utf-8")
    for what, is_, should in [
        ("chat template", template, trained),
        ("bos id", bos, tokenizer.bos_token_id),
        ("eos id", eos, tokenizer.eos_token_id),
    ]:
        if is_ != should:
            raise ValueError(
                f"{path}: its {what} is {str(is_)[:80]!r}, training's is {str(should)[:80]!r}; look for a second template in {merged}/tokenizer_config.json"
            )


def texts(tokenizer, rows):
    """The corpus: fixed hard cases, every special token alone and inside a sentence, and rendered conversations."""
    special = sorted(set(tokenizer.all_special_tokens) | {t.content for t in tokenizer.added_tokens_decoder.values() if t.special})
    inside = [f"one{t}two {t} three\n{t}" for t in special]
    return CORPUS + special + inside + ["".join(special)] + [tokenizer.apply_chat_template(r["messages"], tokenize=False) for r in rows]


def prove_tokens(url, tokenizer, corpus):
    import httpx

    wrong = []
    for text in corpus:
        got = httpx.post(f"{url}/tokenize", json={"content": text, "add_special": False, "parse_special": True}, timeout=60).json()[
            "tokens"
        ]
        want = tokenizer(text, add_special_tokens=False)["input_ids"]
        if got != want:
            wrong.append((text, got, want))
    if wrong:
        text, got, want = wrong[0]
        raise ValueError(
            f"{len(wrong)} of {len(corpus)} texts get other token ids in llama.cpp than in training, first {text[:60]!r}: {got[:12]} against {want[:12]}"
        )


def speeds(url):
    """{"tokens_per_s", "prompt_tokens_per_s"}: llama-server's own timings of a fixed request, the fastest of those that begin within a second.

    They compare the quant types of one receipt. Flash attention and the short cache types are off here, so a model that is served may be faster.
    """
    import httpx

    def timed(tokens):
        asked = {"prompt": SPOKEN, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
        return httpx.post(f"{url}/completion", json=asked, timeout=600).json()["timings"]

    timed(8)  # to warm up
    found, until = [], time.time() + 1
    while not found or time.time() < until:
        found.append(timed(GENERATED))
    fastest = {what: max(t[f"{what}_per_second"] for t in found) for what in ("predicted", "prompt")}
    return {"tokens_per_s": round(fastest["predicted"], 1), "prompt_tokens_per_s": round(fastest["prompt"], 1)}


def reference(merged, prompts):
    """The merged model's own next-token log-probabilities in fp32, on the GPU where one has room: a list of [vocabulary] vectors."""
    import torch
    from transformers import AutoModelForCausalLM

    need = 3 * sum(p.stat().st_size for p in merged.glob("*.safetensors"))
    room = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    device = "cuda" if room > need else "cpu"
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).to(device).eval()
    with torch.no_grad():
        return [model(torch.tensor([ids], device=device)).logits[0, -1].double().log_softmax(-1).cpu().numpy() for ids in prompts]


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.gguf NAME", file=sys.stderr)
        return 2
    name, folder = argv[0], Path("outputs", argv[0])
    cfg, quants = recipe.read(folder / "recipe.yml"), recipe.read(folder / "export.yml").get("quantize", [])
    merged, stem = folder / "merged", recipe.split(name)[0]
    with files.fresh(folder / "gguf", stamp=folder / "gguf.json") as tmp:
        files.need_disk(folder, 2.2 * sum(p.stat().st_size for p in merged.glob("*.safetensors")))  # what a killed run left is gone by now
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(merged)
        rows = [r for p in recipe.datasets(cfg)[1] or recipe.datasets(cfg)[0] for r in data.read(p)]
        corpus = texts(tokenizer, rows)
        prompts = [
            tokenizer.apply_chat_template(data.prompt(r), add_generation_prompt=True, return_dict=True)["input_ids"]
            for r in logits.spread(rows)
        ]
        vocabulary, figures = len(tokenizer), {"texts": len(corpus)}
        made = convert(merged, tmp, stem, quants, folder / "logs/convert.log")
        wanted, f16 = reference(merged, prompts), None
        for kind, path in made.items():
            prove_metadata(path, merged, tokenizer)
            with process.llama(path, folder / f"logs/llama-server-{kind}.log", *logits.EXACT) as url:
                prove_tokens(url, tokenizer, corpus)
                got = [logits.log_probabilities(url, ids, vocabulary) for ids in prompts]
                measured = speeds(url)
            figures[f"{kind}_mib"] = round(path.stat().st_size / 2**20, 2)
            figures |= {f"{kind}_{what}": value for what, value in measured.items()}
            if kind == "F16":
                f16 = got
                figures["F16_nmse"] = logits.same(path.name, got, wanted, "the merged model's")
            else:
                figures[f"{kind}_kld"] = logits.near(path.name, got, f16)
    receipt.write(folder / "gguf.json", [merged, folder / "export.yml"], sorted((folder / "gguf").glob("*.gguf")), figures, files.sha256)
    print(f"gguf        {', '.join(made)}; {len(corpus)} texts tokenize alike; F16 logits NMSE {figures['F16_nmse']:.1e}")
    return 0


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # all of it is local by now
    process.command(main)
