"""Tokenize a recipe's data with Axolotl, and prove that the reply is what will be learned.

    python -m scripts.preprocess pirate-nano      # → outputs/pirate-nano/prepared/, receipt preprocess.json

Before Axolotl starts: every dataset line is read (Axolotl names no line), and a gated base is asked for with your token.
Afterwards: every prepared row must carry loss on a reply, and on the token that ends the turn.
"""

import os
import sys
from pathlib import Path

from scripts import data, files, process, receipt, recipe


def refuse_base(cfg):
    """A base that can't be read costs an hour if it is found out by the trainer on a rented machine."""
    base = str(cfg["base_model"])
    if recipe.is_local(cfg):
        if not (Path(base) / "config.json").is_file():
            raise ValueError(f"{base}: no base model there; `make base` makes the nano one")
        return
    from huggingface_hub import errors, get_token, hf_hub_download

    try:
        hf_hub_download(base, "config.json")
    except errors.GatedRepoError:
        why = (
            "your token may not read it: accept its licence on its page"
            if get_token()
            else "no token: accept its licence on its page and set HF_TOKEN"
        )
        raise ValueError(f"{base} is gated and {why}, or use an open mirror: BASE=… (see the recipe's header)") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f"{base}: the hub knows no such model, or hides it without a token; mend `base_model` or set HF_TOKEN") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError):
        raise ValueError(f"{base}: not in the local hub cache and the hub is out of reach; connect, or give BASE=a/local/folder") from None


def named(cfg):
    """How many rows the recipe names, for training and evaluation; None where some are on the hub. Every local file is read, and its faults raised."""
    counts = [data.count(cfg.get(key), paths) for key, paths in zip(("datasets", "test_datasets"), recipe.datasets(cfg))]
    return None if None in counts else sum(counts)


def learned(prepared, cfg, tokenizer):
    """Counts over the prepared rows: {rows, tokens, trained_tokens, longest, rows_without_reply, rows_without_end}."""
    import numpy as np
    from datasets import load_from_disk

    ends = [tokenizer.convert_tokens_to_ids(t) for t in cfg.get("eot_tokens") or [tokenizer.eos_token]]
    figures = dict.fromkeys(["rows", "tokens", "trained_tokens", "longest", "rows_without_reply", "rows_without_end"], 0)
    for folder in sorted(p.parent for p in prepared.rglob("dataset_info.json")):
        for labels in load_from_disk(str(folder))["labels"]:
            trained = np.asarray(labels)
            trained = trained[trained != -100]
            figures["rows"] += 1
            figures["tokens"] += len(labels)
            figures["trained_tokens"] += len(trained)
            figures["longest"] = max(figures["longest"], len(labels))
            figures["rows_without_reply"] += len(trained) < 2
            figures["rows_without_end"] += not np.isin(trained, ends).any()
    return figures


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.preprocess NAME", file=sys.stderr)
        return 2
    name, folder = argv[0], Path("outputs", argv[0])
    cfg = recipe.read(folder / "recipe.yml")
    rows = named(cfg)
    refuse_base(cfg)
    with files.fresh(folder / "prepared", stamp=folder / "preprocess.json") as tmp:
        # `axolotl preprocess` from -c: `datasets` saves in spawned workers, and each would import a main module that has a file (20 s).
        process.run(
            [
                sys.executable,
                "-c",
                "from axolotl.cli.main import main; main()",
                "preprocess",
                folder / "recipe.yml",
                "--dataset-prepared-path",
                tmp,
            ],
            folder / "logs/preprocess.log",
            f"preprocess {name}",
            env=recipe.environment(cfg),
        )
        from transformers import AutoTokenizer

        figures = learned(tmp, cfg, AutoTokenizer.from_pretrained(cfg["base_model"]))
        for what, problem in [
            ("rows_without_reply", "carry no loss on a reply"),
            ("rows_without_end", "carry no loss on the end of the turn"),
        ]:
            if figures[what]:
                raise ValueError(
                    f"{folder}/recipe.yml: {figures[what]} of {figures['rows']} rows {problem}; "
                    "check roles_to_train, train_on_eot, eot_tokens and sequence_len"
                )
        if rows and figures["rows"] == 0:
            raise ValueError(f"{folder}/recipe.yml: Axolotl kept none of {rows} rows; check sequence_len and the dataset's type")
    figures["rows_dropped"] = rows - figures["rows"] if rows else None
    receipt.write(
        folder / "preprocess.json",
        [folder / "recipe.yml", *recipe.datasets(cfg)[0], *recipe.datasets(cfg)[1]],
        [folder / "prepared"],
        figures,
        files.sha256,
    )
    print(
        f"preprocess  {figures['rows']} rows, {figures['tokens']:,} tokens, {figures['trained_tokens'] / figures['tokens']:.0%} of them learned"
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    process.command(main)
