"""Merge a trained adapter into its base with Axolotl, shard by shard, and prove the result.

    python -m scripts.merge pirate-nano           # → outputs/pirate-nano/merged/, receipt merge.json

QLoRA trained against the NF4 rounding of the base, so the merge adds the adapter to the *round-tripped* weights:
merged = NF4⁻¹(NF4(W)) + alpha/r · B·A  (QLoRA, arXiv 2305.14314, eq. 5; rank-stabilised: alpha/√r, arXiv 2312.03732).
An 8-bit base is merged unrounded: LLM.int8 chooses by the activations what it keeps in 16 bits, so there is no one matrix that was trained against.
The tokenizer and the chat template are those that training saved: Axolotl's merge would take the base's.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from scripts import files, process, receipt, recipe
from scripts.proofs import base as bases

PAIR, EMBEDDING = re.compile(r"base_model\.model\.(.+)\.lora(?:_embedding)?_A(?:\.weight)?"), "lora_embedding"
SAMPLES = 12  # matrices checked, spread over the depth of the model
# Unit roundoff u of the stored dtype. ΔW and the sum are each rounded to it, and |sum| ≤ 2·max(|W|, |ΔW|): an error of at most 3u of that maximum.
# (fp32 is not rounded on the way; there the order of B·A's additions decides.)
ROUNDOFF = {"BF16": 2**-8, "F16": 2**-11, "F32": 2**-18}


def shards(folder):
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ValueError(f"{folder}: no .safetensors weights; pickled weights are not loaded, convert them first")
    return found


def index(folder):
    """{tensor name: the shard that holds it}. Raises ValueError for a shard that is cut or damaged."""
    from safetensors import SafetensorError, safe_open

    where = {}
    for shard in shards(folder):
        try:
            with safe_open(shard, framework="pt") as f:
                where.update(dict.fromkeys(f.keys(), shard))
        except SafetensorError as error:
            raise ValueError(f"{shard}: damaged ({error}); delete it and make it again") from None
    return where


def get(where, name):
    from safetensors import safe_open

    with safe_open(where[name], framework="pt") as f:
        return f.get_tensor(name), f.get_slice(name).get_dtype()


def shape(where, name):
    """A tensor's shape from the shard's header alone, or None."""
    from safetensors import safe_open

    if name not in where:
        return None
    with safe_open(where[name], framework="pt") as f:
        return tuple(f.get_slice(name).get_shape())


def refuse_unfit(cfg, base, adapter):
    """Steps missing, or an adapter of another base: say so before any work, with the numbers."""
    trained = json.loads((adapter / "trainer_state.json").read_text())
    if trained["global_step"] < trained["max_steps"]:
        raise ValueError(f"{adapter}: trained {trained['global_step']} of {trained['max_steps']} steps; run `make train` to finish")
    made_for = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    if made_for != cfg["base_model"]:
        raise ValueError(
            f"{adapter}: an adapter of {made_for}, the recipe's base is {cfg['base_model']}; train it on this base, or set BASE={made_for}"
        )
    weights, lora = index(base), index(adapter)
    pairs = {m[1]: (key, re.sub(r"_A(\.weight)?$", r"_B\1", key)) for key in lora if (m := PAIR.fullmatch(key))}
    for module, (a, b) in pairs.items():
        made = (shape(lora, b)[0], shape(lora, a)[1])[:: -1 if EMBEDDING in a else 1]
        if (had := shape(weights, f"{module}.weight")) != made:
            raise ValueError(f"{adapter}: made for another base: {module} has B·A of shape {made}, {base} has {had or 'nothing'} there")
        if EMBEDDING in a and "lm_head.weight" not in weights:
            raise ValueError(f"{adapter}: adapts {module}, which in {base} is the head too; merged, it would change both; train it without")
    zero = [m for m, (_, b) in pairs.items() if not get(lora, b)[0].any()]
    if len(zero) == len(pairs):
        raise ValueError(
            f"{adapter}: {len(zero)} of {len(pairs)} LoRA products are zero; nothing was trained, and there is nothing to merge"
        )
    return weights, lora, pairs


def scale(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    return config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])


def product(lora, pair, factor):
    """ΔW of a module, in fp32. PEFT keeps an embedding's the other way round: A is [r, vocabulary], B [hidden, r]."""
    a, b = (get(lora, key)[0].float() for key in pair)
    return factor * ((b @ a).T if EMBEDDING in pair[0] else b @ a)


def add_embeddings(merged, lora, pairs, factor):
    """Axolotl's merge leaves out what was trained on an embedding, without a word: add it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    where = index(merged)
    for module, pair in pairs.items():
        if EMBEDDING not in pair[0]:
            continue
        shard = where[f"{module}.weight"]
        with safe_open(shard, framework="pt") as f:
            tensors, about = {key: f.get_tensor(key) for key in f.keys()}, f.metadata()
        old = tensors[f"{module}.weight"]
        tensors[f"{module}.weight"] = (old.float() + product(lora, pair, factor)).to(old.dtype)
        save_file(tensors, f"{shard}.new", metadata=about)
        os.replace(f"{shard}.new", shard)


def prove(cfg, merged, base_weights, lora, pairs, factor):
    """Compare sampled matrices of the merged model with an independent sum. Returns the figures; raises ValueError if they differ."""
    result = index(merged)
    if missing := set(base_weights) - set(result):
        raise ValueError(f"{merged}: {len(missing)} of {len(base_weights)} tensors are missing (first: {min(missing)})")
    names = sorted(pairs)[:: max(1, len(pairs) // SAMPLES)][:SAMPLES] if len(pairs) > SAMPLES else sorted(pairs)
    names += [module for module in pairs if EMBEDDING in pairs[module][0] and module not in names]
    worst, off, off_plain, norm = 0.0, 0.0, 0.0, 0.0
    for module in names:
        (w, dtype), (m, _) = get(base_weights, f"{module}.weight"), get(result, f"{module}.weight")
        delta = product(lora, pairs[module], factor)
        start = (bases.round_trip(w) if bases.rounded(cfg, module) else w).float()
        size = start.abs().maximum(delta.abs()).clamp_min(1e-6)
        worst = max(worst, ((m.float() - start - delta).abs() / size).max().item())
        off, off_plain, norm = (
            off + (m.float() - start - delta).norm() ** 2,
            off_plain + (m.float() - w.float() - delta).norm() ** 2,
            norm + w.float().norm() ** 2,
        )
    bound = 3 * ROUNDOFF[dtype]
    if not worst <= bound:  # NaN too
        raise ValueError(
            f"{merged}: merged − (base + scale·B·A) is up to {worst:.2e} of the weight in {len(names)} sampled matrices (bound {bound:.1e}); the merge is wrong"
        )
    for name in {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} & set(base_weights) - {f"{p}.weight" for p in pairs}:
        trained = f"base_model.model.{name}" in lora  # whole: lora_modules_to_save
        wanted, got = get(lora, f"base_model.model.{name}")[0] if trained else get(base_weights, name)[0], get(result, name)[0]
        if not got.equal(wanted.to(got.dtype)):
            why = "is not what was trained whole" if trained else "differs from the base's, though nothing trained it"
            raise ValueError(f"{merged}: {name} {why}")
    return {
        "matrices": len(pairs),
        "sampled": len(names),
        "scale": factor,
        "worst_relative_error": worst,
        "bound": bound,
        "norm_off": float((off / norm) ** 0.5),
        "norm_off_had_the_base_not_been_rounded": float((off_plain / norm) ** 0.5),
    }


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.merge NAME", file=sys.stderr)
        return 2
    name, folder = argv[0], Path("outputs", argv[0])
    cfg, adapter = recipe.read(folder / "recipe.yml"), folder / "adapter"
    base = bases.folder(cfg)
    base_weights, lora, pairs = refuse_unfit(cfg, base, adapter)
    with files.fresh(folder / "merged", stamp=folder / "merge.json") as tmp:
        files.need_disk(folder, 1.1 * sum(p.stat().st_size for p in shards(base)))  # what a killed merge left is gone by now
        work = tmp / ".work"  # Axolotl writes to output_dir/merged
        process.run(
            [
                sys.executable,
                "-m",
                "axolotl.cli.merge_lora",
                folder / "recipe.yml",
                f"--base_model={base}",
                f"--lora_model_dir={adapter}",
                f"--output_dir={work}",
            ],
            folder / "logs/merge.log",
            f"merge {name}",
            env=recipe.environment(cfg),
        )
        for path in (work / "merged").iterdir():
            os.replace(path, tmp / path.name)
        shutil.rmtree(work)
        for stale in bases.tokenizer_files(tmp):
            stale.unlink()
        for path in bases.tokenizer_files(adapter):
            shutil.copy2(path, tmp / path.name)
        if (base / "tokenizer.model").exists():  # llama.cpp's converter wants it, and training does not save it
            shutil.copy2(base / "tokenizer.model", tmp / "tokenizer.model")
        add_embeddings(tmp, lora, pairs, scale(adapter))
        figures = prove(cfg, tmp, base_weights, lora, pairs, scale(adapter))
    figures["largest_shard_gib"] = round(max(p.stat().st_size for p in shards(folder / "merged")) / 2**30, 3)
    receipt.write(folder / "merge.json", [base, adapter], [folder / "merged"], figures, files.sha256)
    print(
        f"merge       {figures['matrices']} matrices; {figures['sampled']} checked, off by at most {figures['worst_relative_error']:.1e} of the weight"
    )
    return 0


if __name__ == "__main__":
    process.command(main)
