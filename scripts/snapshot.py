"""Write down what a recipe means, so that Make rebuilds what a change touches and nothing else.

    python -m scripts.snapshot pirate-nano

outputs/NAME/recipe.yml    what Axolotl runs: the recipe, a variant's changes, BASE; no comments, no export, no x_ keys but x_strength
outputs/NAME/data.sha256   the bytes of datasets, chat template and DeepSpeed config (Axolotl's cache does not hash them)
outputs/NAME/export.yml    the quant types
outputs/NAME/prompt.sha256 the Modelfile's bytes, and QUANT
Each is only written when it changes. With --train it also refuses a machine that can't train the recipe, before anything is spent.
"""

import argparse
import os
from pathlib import Path

import yaml

from scripts import files, process, receipt, recipe


def chosen_base(folder, cfg):
    """BASE=… if given, else the one given earlier for this output folder, else the recipe's own (BASE=recipe goes back to that).

    It is kept beside the outputs because a later `make merge` without BASE must not undo `make train BASE=…`.
    """
    kept, base = folder / "base", os.environ.get("BASE")
    if base == "recipe":
        kept.unlink(missing_ok=True)
    elif base:
        files.write_if_changed(kept, base + "\n")
    return kept.read_text().strip() if kept.exists() else cfg["base_model"]


def hashes(paths):
    missing = [p for p in paths if not Path(p).is_file()]
    if missing:
        raise ValueError("; ".join(f"{p}: no such file; put it there, or mend the recipe" for p in missing))
    return "".join(f"{files.sha256(p)}  {p}\n" for p in paths)


def refuse_machine(name, cfg):
    """Too few GPUs, or a GPUS=n that doesn't divide: say what the recipe needs and what to run instead."""
    kind = recipe.hardware(cfg)[0]
    wanted = recipe.ranks(cfg)
    recipe.accumulation(cfg, wanted, int(os.environ.get("NNODES") or 1))
    here = len(receipt.gpus())
    if kind and here < wanted:
        nano = f"{recipe.family(name)}-nano"
        fewer = (
            f"`make train RECIPE={name} GPUS={here}`"
            if here
            else f"`make train RECIPE={nano}`"
            if nano in recipe.names()
            else "it on another machine"
        )
        raise ValueError(f"recipe {name} needs {wanted} × {kind}, this machine has {here} GPU{'s' * (here != 1)}; run {fewer} instead")


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.snapshot", description="write down what a recipe means")
    parser.add_argument("name")
    parser.add_argument("--train", action="store_true", help="refuse a machine that cannot train it")
    args = parser.parse_args(argv)
    cfg, folder = recipe.load(args.name), Path("outputs", args.name)
    trained = Path("outputs", recipe.unscaled(args.name))  # a scaled adapter's machine and base are those of the run that it scales
    if args.train and not (trained / "train.json").exists():
        refuse_machine(args.name, cfg)
    cfg["base_model"] = chosen_base(trained, cfg)
    used = [
        *recipe.datasets(cfg)[0],
        *recipe.datasets(cfg)[1],
        *(cfg[k] for k in ("chat_template_jinja", "deepspeed") if Path(str(cfg.get(k))).suffix),
    ]
    files.write_if_changed(folder / "data.sha256", hashes(used))
    files.write_if_changed(folder / "export.yml", yaml.safe_dump(cfg.get("export") or {}))
    files.write_if_changed(folder / "prompt.sha256", hashes([recipe.modelfile(args.name)]) + f"QUANT={os.environ.get('QUANT') or ''}\n")
    files.write_if_changed(folder / "recipe.yml", yaml.safe_dump(recipe.meaning(cfg), sort_keys=False, width=120))
    return 0


if __name__ == "__main__":
    process.command(main)
