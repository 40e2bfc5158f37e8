"""Which stages of which recipe stand, are stale, are missing. Reads receipts only: nothing is hashed but recipes and datasets.

python -m scripts.status
"""

import sys
from pathlib import Path

from scripts import files, process, receipt, recipe

STAGES = ["preprocess", "train", "merge", "gguf", "modelfile", "ollama"]
MARK = {"stands": "\033[32m", "stale": "\033[33m", "missing": "\033[2m"}


def changed(name):
    """Whether the recipe file or its data say something else than when the outputs were made."""
    folder = Path("outputs", name)
    try:
        cfg = recipe.load(name)
        then = recipe.read(folder / "recipe.yml")
        now = recipe.meaning(cfg)
        kept = dict(line.split("  ")[::-1] for line in (folder / "data.sha256").read_text().splitlines())
        return now | {"base_model": then["base_model"]} != then or any(
            not Path(p).is_file() or files.sha256(p) != digest for p, digest in kept.items()
        )
    except (OSError, ValueError):
        return True


def other_quants(name):
    """Whether the recipe now asks for other quant types than were made."""
    try:
        return (recipe.load(name).get("export") or {}) != recipe.read(Path("outputs", name, "export.yml"))
    except (OSError, ValueError):
        return True


def stages(name):
    """{stage: stands | stale | missing}. A stage is stale when what it was made from is not what the stage before it has since made."""
    folder, found, stale = Path("outputs", name), {}, changed(name)
    base = recipe.read(folder / "recipe.yml")["base_model"]
    before, source = dict((receipt.read(f"{base}.json") or {}).get("outputs") or {}), recipe.unscaled(name)
    if source != name:
        before |= (receipt.read(Path("outputs", source, "train.json")) or {"outputs": {}})["outputs"]
    for stage in STAGES:
        made = receipt.read(folder / f"{stage}.json")
        stale = stale or (stage == "gguf" and other_quants(name))
        if not made or not all(Path(p).exists() for p in made["outputs"]):
            found[stage] = "missing"
            stale = stale or made is not None
            continue
        now = {p: files.sha256(p) for p in made["inputs"] if p.startswith("modelfiles/") and Path(p).is_file()}
        stale = stale or any((before | now).get(p, digest) != digest for p, digest in made["inputs"].items())
        found[stage] = "stale" if stale else "stands"
        before.update(made["outputs"])
    return found


def main(argv):
    if argv:
        print("usage: python -m scripts.status", file=sys.stderr)
        return 2
    made = {p.parent.name for p in Path("outputs").glob("*/recipe.yml")}
    names = sorted(made | set(recipe.names()))
    width = max(map(len, names)) + 2
    print(" " * width + "".join(f"{s:<12}" for s in STAGES))
    for name in names:
        found = stages(name) if name in made else dict.fromkeys(STAGES, "missing")
        colour = sys.stdout.isatty()
        cells = "".join(
            (MARK[found[s]] if colour else "") + f"{found[s] if found[s] != 'missing' else '-':<12}" + ("\033[0m" if colour else "")
            for s in STAGES
        )
        print(f"{name:<{width}}{cells}".rstrip())
    return 0


if __name__ == "__main__":
    process.command(main)
