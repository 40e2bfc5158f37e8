"""Scale a trained adapter exactly, without training: ΔW × BY. It becomes a variant of its own, which merges, converts and is scored like any other.

    make strength RECIPE=pirate-nano BY=2.0
    python -m scripts.strength pirate-nano+x_strength=2.0   # outputs/pirate-nano/adapter → outputs/pirate-nano+x_strength=2.0/adapter, train.json

LoRA adds ΔW = s·B·A to a weight (Hu 2021, arXiv 2106.09685, section 4.1), so every lora_B is multiplied by BY, and nothing else. By a power of two
that is exact; by any other number each element is rounded once, by half a unit in its last place at most. Multiplying A and B alike, as is often
advised, gives BY² · ΔW. Both are measured on every matrix: ‖B·A‖² = Σ (BᵀB) ∘ (AAᵀ), in fp64, which needs no product of the weights' size.
"""

import math
import shutil
import sys
from pathlib import Path

from scripts import files, process, receipt, recipe
from scripts.scoring import scaling

WEIGHTS, BOUND = "adapter_model.safetensors", 2**-8  # the unit roundoff of bfloat16, the coarsest that adapters are kept in


def source_of(name):
    """(folder of the run whose adapter is scaled, its train receipt). Raises ValueError where no finished adapter is there."""
    source = recipe.unscaled(name)
    folder = Path("outputs", source)
    made, adapter = receipt.read(folder / "train.json"), folder / "adapter"
    if not made or not adapter.is_dir():
        raise ValueError(f"{folder}: no trained adapter to scale; {recipe.command('train', source)} makes it")
    if made["outputs"].get(str(adapter)) != files.sha256(adapter):
        again = f"`rm {folder}/train.json` and {recipe.command('train', source)} make it anew"
        raise ValueError(f"{adapter}: not what {folder}/train.json says (cut or changed since); {again}")
    return folder, made


def read(path):
    """({tensor's name: tensor}, metadata) of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        return {key: f.get_tensor(key) for key in f.keys()}, f.metadata()


def scaled(tensors, by, kinds=("lora_B",)):
    """The tensors of these kinds times `by`, rounded once to their own dtype; the others as they are. Raises ValueError where one overflows."""
    found = {k: (t.double() * by).to(t.dtype) if any(kind in k for kind in kinds) else t for k, t in tensors.items()}
    if over := [k for k, t in found.items() if not t.isfinite().all()]:
        raise ValueError(f"x_strength={by:g}: {over[0]} is then no finite {tensors[over[0]].dtype}; take a smaller one")
    return found


def norms(tensors):
    """{module: ‖B·A‖, Frobenius} of an adapter's pairs."""
    found = {}
    for key in (k for k in tensors if ".lora_A." in k):
        a, b = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        found[key.removesuffix(".lora_A.weight")] = math.sqrt(max(0.0, ((b.T @ b) * (a @ a.T)).sum().item()))
    return found


def compared(before, after, both, by):
    """Figures of the scaled adapter against the trained one; `both` has A and B scaled alike."""
    was, now, alike = norms(before), norms(after), norms(both)
    b = [t.double().norm().item() for key, t in after.items() if "lora_B" in key]
    return {
        "strength": by,
        "matrices": len(was),
        "largest_relative_deviation": max(abs(now[m] - by * was[m]) / (by * was[m]) if was[m] else 0.0 for m in was),
        "had_both_been_scaled": math.sqrt(sum(n**2 for n in alike.values()) / sum(n**2 for n in was.values())),
        "lora_B_norm_min": round(min(b), 5),
        "lora_B_norm_max": round(max(b), 5),
    }


def main(argv):
    if len(argv) != 1 or recipe.unscaled(argv[0]) == argv[0]:
        print("usage: python -m scripts.strength NAME+x_strength=2.0", file=sys.stderr)
        return 2
    name, folder, by = argv[0], Path("outputs", argv[0]), recipe.strength(argv[0])
    source, trained = source_of(name)
    scaling.refuse(source / "adapter")
    from safetensors.torch import save_file

    tensors, about = read(source / "adapter" / WEIGHTS)
    scaling.refuse(source / "adapter", tensors)
    after = scaled(tensors, by)
    figures = compared(tensors, after, scaled(tensors, by, ("lora_A", "lora_B")), by)
    if figures["largest_relative_deviation"] > BOUND:
        raise ValueError(
            f"x_strength={by:g}: ‖ΔW‖ would be off by {figures['largest_relative_deviation']:.1g}, for lora_B underflows; take a larger one"
        )
    with files.fresh(folder / "adapter", stamp=folder / "train.json") as tmp:
        shutil.copytree(source / "adapter", tmp, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
        save_file(after, tmp / WEIGHTS, metadata=about)
    # All its steps were taken elsewhere, so that its seconds are not taken for a training's.
    figures = trained["figures"] | {"resumed_from_step": trained["figures"]["steps"]} | figures
    base = Path(recipe.read(folder / "recipe.yml")["base_model"])
    made_from = [folder / "recipe.yml", folder / "data.sha256", *([base] if base.is_dir() else []), source / "adapter"]
    receipt.write(folder / "train.json", made_from, [folder / "adapter"], figures, files.sha256)
    off, wrong = figures["largest_relative_deviation"], figures["had_both_been_scaled"]
    print(
        f"strength    {figures['matrices']} matrices × {by:g}, ‖ΔW‖ off by at most {off:.1g}; A and B both × {by:g} would have made it × {wrong:.4g}"
    )
    return 0


if __name__ == "__main__":
    process.command(main)
