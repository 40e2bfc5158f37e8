"""An adapter as a GGUF of its own, beside a GGUF of its base: what llama-server needs to serve several adapters by one base.

    python -m scripts.lora mcq-nano          # → outputs/mcq-nano/lora/adapter.gguf, receipt lora.json; outputs/served/BASE-…/, once for all adapters of a base

QLoRA trained against the NF4 rounding of the base, so the base that is served is the rounded one (scripts/merge.py says more). Recipes that agree in base,
tokenizer, template and quant types share it. Proven: prompts get training's token ids; base and adapter together give the logits of the adapter as it was
trained (PEFT on the 4-bit base, in fp32), and other ones without the adapter; each quantized base stays near F16.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from scripts import data, files, process, receipt, recipe
from scripts.proofs import base as bases
from scripts.proofs import logits

SERVED = Path("outputs/served")


def served_by(cfg, base, folder, kinds):
    """The folder of the GGUFs that this adapter is served by, named by all that decides them."""
    known = receipt.read(folder / "train.json")["inputs"].get(str(base), base.name)  # a base of the hub: the commit of its snapshot
    decides = [known, bool(cfg.get("load_in_4bit")), kinds, [files.sha256(p) for p in bases.tokenizer_files(folder / "adapter")]]
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    return SERVED / f"{Path(cfg['base_model']).name}-{key[:8]}"


def rounded(cfg, base, tokenizer, out):
    """Write the base to `out`, shard by shard, in F16 where it was rounded in training, as it was there; with training's tokenizer."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    out.mkdir()
    for shard in sorted(base.glob("model*.safetensors")):
        with safe_open(shard, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}
        for key in [k for k, t in tensors.items() if bases.rounded(cfg, k) and t.ndim == 2]:
            tensors[key] = bases.round_trip(tensors[key].float()).half()
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
    own = [base / n for n in ("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.model")]
    # The converter wants tokenizer.model, and training does not save it.
    for path in [*filter(Path.exists, own), *bases.tokenizer_files(tokenizer)]:
        shutil.copy2(path, out / path.name)


def make_base(cfg, base, folder, target, kinds):
    """The GGUFs of the base in `target`, unless they stand."""
    stamp, tool = SERVED / f"{target.name}.json", process.llama_cpp("convert_hf_to_gguf.py")
    with files.locked(SERVED):  # two recipes that share a base may be made side by side
        if receipt.read(stamp) and all((target / f"{kind}.gguf").is_file() for kind in kinds):
            return stamp
        with files.fresh(target, stamp=stamp) as tmp:
            files.need_disk(SERVED, 3.2 * sum(p.stat().st_size for p in base.glob("model*.safetensors")))
            rounded(cfg, base, folder / "adapter", tmp / ".work")
            f16, logs = tmp / "F16.gguf", folder / "logs"
            process.run(
                [sys.executable, tool, tmp / ".work", "--outfile", f16, "--outtype", "f16"], logs / "served.log", f"convert {target.name}"
            )
            shutil.rmtree(tmp / ".work")
            for kind in kinds[1:]:
                command = [process.llama_cpp("llama-quantize"), f16, tmp / f"{kind}.gguf", kind]
                process.run(command, logs / f"served-{kind}.log", f"quantize {kind}")
        sizes = {f"{kind}_mib": round((target / f"{kind}.gguf").stat().st_size / 2**20, 2) for kind in kinds}
        receipt.write(stamp, [base, *bases.tokenizer_files(folder / "adapter")], sorted(target.glob("*.gguf")), sizes, files.sha256)
    return stamp


def convert(adapter, base, out, log):
    """The adapter as GGUF in `out`. llama.cpp scales by alpha/r, so a rank-stabilised adapter (alpha/√r) gets the alpha that comes to the same."""
    work, config = out / ".work", json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("use_rslora"):
        config["lora_alpha"] *= config["r"] ** 0.5
    work.mkdir()
    (work / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy2(adapter / "adapter_model.safetensors", work)
    tool = process.llama_cpp("convert_lora_to_gguf.py")
    process.run([sys.executable, tool, work, "--base", base, "--outfile", out / "adapter.gguf", "--outtype", "f32"], log, "convert adapter")
    shutil.rmtree(work)


def prompts_of(name, cfg):
    """The held-out conversations up to their last reply: the recipe's own test_datasets, else its family's eval.jsonl, else the training rows."""
    own = Path("datasets", recipe.family(name), "eval.jsonl")
    paths = recipe.datasets(cfg)[1] or ([own] if own.is_file() else recipe.datasets(cfg)[0])
    return [data.prompt(row) for path in paths for row in data.read(path)]


def reference(folder, cfg, prompts):
    """Next-token log-probabilities [vocabulary] of the adapter as it was trained, on the 4-bit base, in fp32."""
    import torch
    from scripts.scoring import weights

    model, _ = weights.load("adapter", folder, cfg | {"bf16": False, "fp16": False})
    with torch.inference_mode():
        ids = [torch.tensor([p], device=model.device) for p in prompts]
        return [model(input_ids=x).logits[0, -1].double().log_softmax(-1).cpu().numpy() for x in ids]


def prove_prompts(url, tokenizer, conversations, wanted):
    """The server's own template and tokenizer give training's ids."""
    import httpx

    for said, ids in zip(conversations, wanted):
        prompt = httpx.post(f"{url}/apply-template", json={"messages": said}, timeout=60).json()["prompt"]
        got = httpx.post(f"{url}/tokenize", json={"content": prompt, "add_special": True, "parse_special": True}, timeout=60).json()[
            "tokens"
        ]
        if got != ids:
            raise ValueError(
                f"llama-server reads {prompt[:80]!r} as {got[:12]}, training as {ids[:12]}: another template or tokenizer than {tokenizer.name_or_path} has"
            )


def prove(name, cfg, target, kinds, adapter):
    """Figures of base and adapter together, of every kind. Raises ValueError where they are not the adapter that was trained."""
    from transformers import AutoTokenizer

    folder = Path("outputs", name)
    tokenizer, conversations, figures, f16 = AutoTokenizer.from_pretrained(folder / "adapter"), prompts_of(name, cfg), {}, None
    ids = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=True)["input_ids"] for c in conversations]
    chosen = logits.spread(ids)
    wanted = reference(folder, cfg, chosen)
    vocabulary = len(wanted[0])

    def ask(url, scale):
        return [logits.log_probabilities(url, p, vocabulary, lora=[{"id": 0, "scale": scale}]) for p in chosen]

    for kind in kinds:
        path = target / f"{kind}.gguf"
        with process.llama(path, folder / f"logs/lora-{kind}.log", "--lora", f'"{adapter}"', *logits.EXACT) as url:
            got = ask(url, 1.0)
            if kind == "F16":
                prove_prompts(url, tokenizer, conversations, ids)
                f16, without = got, logits.nmse(ask(url, 0.0), wanted)
        if kind == "F16":
            found = logits.same(f"{adapter} on {target}", got, wanted, "the trained adapter's")
            figures = {"prompts": len(ids), "F16_nmse": found, "F16_nmse_without_the_adapter": without}
            if not without > found:
                raise ValueError(f"{adapter}: the logits are the same without it; it changes nothing, or is not applied")
        else:
            figures[f"{kind}_kld"] = logits.near(path, got, f16)
    return figures


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.lora NAME", file=sys.stderr)
        return 2
    name, folder = argv[0], Path("outputs", argv[0])
    cfg = recipe.read(folder / "recipe.yml")
    kinds, base = ["F16", *recipe.read(folder / "export.yml").get("quantize", [])], bases.folder(cfg)
    target = served_by(cfg, base, folder, kinds)
    stamp = make_base(cfg, base, folder, target, kinds)
    with files.fresh(folder / "lora", stamp=folder / "lora.json") as tmp:
        convert(folder / "adapter", base, tmp, folder / "logs/lora.log")
        try:
            figures = {"base": str(target)} | prove(name, cfg, target, kinds, tmp / "adapter.gguf")
        except ValueError:
            stamp.unlink(missing_ok=True)  # the fault may be the base's: the next run makes it anew
            raise
    figures["adapter_mib"] = round((folder / "lora/adapter.gguf").stat().st_size / 2**20, 2)
    receipt.write(folder / "lora.json", [folder / "adapter", stamp], [folder / "lora"], figures, files.sha256)
    apart = figures["F16_nmse_without_the_adapter"]
    print(
        f"lora        {figures['adapter_mib']} MiB beside {target}; F16 logits NMSE {figures['F16_nmse']:.1e}, without the adapter {apart:.1e}"
    )
    return 0


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # all of it is local by now
    process.command(main)
