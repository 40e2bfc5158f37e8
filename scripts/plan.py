"""What a run will need, before a GPU is rented: steps, memory per device, time, cost, disk. Every figure as low–expected–high.

    python -m scripts.plan pirate                                  # the machine the recipe was written for
    python -m scripts.plan my.yml --gpu rtx4090 --gpus 1 --price 0.4 --json

Formulae stand with their sources in scripts/steps/memory.py; shapes of bases and GPUs in recipes/facts/. Tokens are Axolotl's own count where `make preprocess` was run,
else the base's tokenizer's where it is at hand, else estimated from characters (±15 %).
"""

import argparse
import json
import random
import textwrap
from pathlib import Path

from scripts import data, facts, files, process, receipt, recipe
from scripts.steps import memory, packing

RUNS, GRID = Path("reports/calibration/runs.jsonl"), Path("reports/calibration/grid.jsonl")


def lengths(cfg, base, name, rows=None):
    """({"train": [tokens of each row], "eval": […]}, share of trained tokens, relative uncertainty, where from)."""
    made = receipt.read(f"outputs/{name}/preprocess.json") or {}
    tokenizer = base.get("tokenizer") or next(iter(sorted(facts.cache_of(str(cfg["base_model"])).glob("snapshots/*/tokenizer.json"))), None)
    found, replies, total = {"train": [], "eval": []}, 0, 0
    count = packing.counter(tokenizer, base.get("chars_per_token"))
    for key, kind in (("datasets", "train"), ("test_datasets", "eval")):
        for spec in cfg.get(key) or []:
            path = Path(str(spec.get("path")))
            view = data.view(str(path), json.dumps(spec, default=str)) if path.is_file() else {"rows": [], "count": 0}
            named = rows if rows and kind == "train" else data.named(spec)
            if not view["rows"] and named:
                found[kind] += [int(cfg.get("sequence_len") or 512) // 4] * named
            elif not view["rows"]:
                raise ValueError(
                    f"{path}: {'no rows that can be read here' if path.is_file() else 'not a local file'}; name a local copy in the recipe, or say --rows N"
                )
            seen = [] if not view["rows"] else [count(turns) for _, turns in view["rows"]]
            found[kind] += seen + random.Random(0).choices(seen, k=view["count"] - len(seen))
            if kind == "train":
                replies += sum(
                    len(text) / data.CHARS_PER_TOKEN + 1 for _, turns in view["rows"] for role, text in turns if role == "assistant"
                )
                total += sum(data.tokens(turns) for _, turns in view["rows"])
    if not found["train"]:
        raise ValueError(f"{name}: no `datasets` to count; the plan knows supervised fine-tuning only")
    if share := float(cfg.get("val_set_size") or 0):
        held = int(share if share > 1 else share * len(found["train"]))
        found["eval"], found["train"] = found["train"][:held], found["train"][held:]
    trained, unsure = replies / max(1, total), 0.01 if tokenizer else 0.15
    if not total:
        trained, unsure, tokenizer = 0.5, 0.6, None
    source = (
        f"supposed: {len(found['train']):,} rows of a quarter of sequence_len"
        if not total
        else "the base's tokenizer"
        if tokenizer
        else "estimated from characters, ±15 %"
    )
    figures = made.get("figures") or {}
    if figures.get("rows") == sum(map(len, found.values())) and receipt.holds(f"outputs/{name}/preprocess.json", files.sha256):
        scale = figures["tokens"] / sum(map(sum, found.values()))
        found = {k: [round(n * scale) for n in v] for k, v in found.items()}
        trained, unsure, source = figures["trained_tokens"] / figures["tokens"], 0.0, "counted by `make preprocess`"
    return found, trained, unsure, source


def three(expected, low, high):
    return {"low": round(low, 2), "expected": round(expected, 2), "high": round(high, 2)}


def plan(cfg, base, gpu, gpus, sizes, unsure=0.0):
    """The whole plan of one recipe as it stands; `gpu` {} plans for a CPU."""
    own = recipe.hardware(cfg)[1]
    cfg = (
        cfg | {"gradient_accumulation_steps": recipe.accumulation(cfg, gpus), "x_hardware": {"gpu": "x", "count": gpus}}
        if gpus != own
        else cfg
    )
    sequences, an_epoch, efficiency = packing.batches(cfg, sizes["train"])
    when = recipe.schedule(cfg, len(sizes["train"]), sequences)
    evals = when["epochs"] * float(cfg.get("evals_per_epoch") or 1) if sizes["eval"] else 0
    computed = {"train": an_epoch * when["epochs"], "evals": evals, "longest": max(sizes["train"]), "cores": cfg.get("x_cores") or receipt.machine()["cores"]}
    time = facts.minutes(cfg, base, gpu, gpus, computed, when["steps"], sizes["eval"])
    made = {
        "steps": when["steps"],
        "epochs": round(when["epochs"], 3),
        "warmup_steps": when["warmup"],
        "global_batch": recipe.global_batch(cfg),
        "rows": len(sizes["train"]),
        "tokens": sum(sizes["train"]),
        "efficiency": round(efficiency, 3),
        "trainable_parameters": facts.adapter_parameters(base, cfg) if cfg.get("adapter") else facts.parameters(base),
        "minutes": three(time[1], time[2] * (1 - unsure), time[0] * (1 + unsure)),
        "disk_gib": round(facts.disk(cfg, base), 1),
        "ram_gib": round(facts.merge_ram(base), 1),
    }
    if gpu:
        parts = memory.parts(cfg, base, gpus, computed["longest"])
        made["vram_gib"] = three(*memory.interval(parts)) | {"parts": {k: round(v / facts.GIB, 2) for k, v in parts.items()}}
    return made


CHANGES = [
    ("gradient_checkpointing: true", {"gradient_checkpointing": True}),
    ("a fused loss (liger_fused_linear_cross_entropy: true)", {"liger_fused_linear_cross_entropy": True}),
    ("micro_batch_size halved, accumulation doubled", "micro"),
    (
        "sample_packing: true with flash attention",
        {"sample_packing": True, "pad_to_sequence_len": True, "attn_implementation": "flash_attention_2"},
    ),
    ("sequence_len: {}, which every row fits", "length"),
    ("4-bit weights (adapter: qlora)", {"adapter": "qlora", "load_in_4bit": True}),
    ("optimizer: adamw_bnb_8bit", {"optimizer": "adamw_bnb_8bit"}),
    ("lora_r halved", "rank"),
    ("gradient_checkpointing: false", {"gradient_checkpointing": False}),
    ("activation_offloading: true", {"activation_offloading": True, "gradient_checkpointing": True}),
]


def changed(cfg, what, longest):
    """The recipe with one of CHANGES, or None where it changes nothing."""
    micro, length = int(cfg.get("micro_batch_size") or 1), int(cfg.get("sequence_len") or 512)
    if what == "micro":
        what = (
            {"micro_batch_size": micro // 2, "gradient_accumulation_steps": int(cfg.get("gradient_accumulation_steps") or 1) * 2}
            if micro % 2 == 0
            else {}
        )
    elif what == "length":
        fit = -(-longest // 64) * 64
        what = {"sequence_len": fit} if fit < length and not cfg.get("sample_packing") else {}
    elif what == "rank":
        what = {"lora_r": int(cfg.get("lora_r") or 8) // 2} if cfg.get("adapter") and int(cfg.get("lora_r") or 8) > 1 else {}
    elif "load_in_4bit" in what and not cfg.get("adapter"):
        what = {}
    return cfg | what if any(cfg.get(k) != v for k, v in what.items()) else None


def savings(cfg, base, gpu, gpus, sizes, now):
    """The three changes that save most, as (what, GiB saved, minutes saved): by the larger of the two shares, none that would not fit."""
    found = []
    for title, what in CHANGES:
        other = changed(cfg, what, max(sizes["train"]))
        if not other or (not gpu and "flash" in title):
            continue
        then = plan(other, base, gpu, gpus, sizes)
        space = now["vram_gib"]["expected"] - then["vram_gib"]["expected"] if gpu else 0
        time = now["minutes"]["expected"] - then["minutes"]["expected"]
        gain = max(space / now["vram_gib"]["expected"] if gpu else 0, time / now["minutes"]["expected"])
        if gain > 0.02 and (not gpu or then["vram_gib"]["high"] <= max(gpu["memory_gib"], now["vram_gib"]["high"])):
            found.append((gain, title.format(other["sequence_len"]) if "{}" in title else title, round(space, 1), round(time, 1)))
    return [{"change": title, "gib": space, "minutes": time} for _, title, space, time in sorted(found, reverse=True)[:3]]


def fitting(cfg, base, gpus, longest):
    """Keys of the GPUs of which as many hold the run even if it takes the high figure, and that know its number format."""
    need = memory.interval(memory.parts(cfg, base, gpus, longest))[2]
    return [
        k
        for k, g in facts.gpus().items()
        if need <= g.get("usable_gib", g["memory_gib"]) and (g["bf16"] or cfg.get("bf16") in (None, False, "auto"))
    ]


def track_record():
    """One sentence on how earlier predictions fared on this machine, or None."""
    runs = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()] if RUNS.exists() else []
    if not runs:
        return None
    within = sum(r["predicted_minutes"]["low"] <= r["minutes"] <= r["predicted_minutes"]["high"] for r in runs)
    off = sorted(r["predicted_minutes"]["expected"] / r["minutes"] - 1 for r in runs)
    said = (
        f"{len(runs)} run{'s' * (len(runs) != 1)}: time within low–high {within}×, expected off by {off[len(off) // 2]:+.0%} in the median"
    )
    if space := [r["predicted_gib"]["expected"] / r["gib"] - 1 for r in runs if "gib" in r]:
        said += f"; memory off by at most {max(map(abs, space)):.0%}"
    return said


def predict(cfg, name, gpu, gpus, price=None, rows=None):
    """Everything that `make plan` prints, as a dict. `gpu` is a key of recipes/facts/gpus.yml, None for a CPU."""
    if other := cfg.get("rl") or (cfg.get("reward_model") and "reward_model"):
        raise ValueError(f"{name}: {other} trains on pairs, or beside a second model; the plan knows supervised fine-tuning only")
    base = facts.base(cfg["base_model"])
    if not base.get("hidden"):
        raise ValueError(
            f"{name}: the shapes of {cfg['base_model']} are not known here; add it to recipes/facts/bases.yml, or give a local folder with its config.json"
        )
    card = facts.gpu(gpu)
    sizes, trained, unsure, source = lengths(cfg, base, name, rows)
    told = {"recipe": name, "base": base["name"], "gpu": gpu or "none", "gpus": gpus, "cores": cfg.get("x_cores"), "calibrated": GRID.exists()}
    told |= plan(cfg, base, card, gpus, sizes, unsure) | {"tokens_from": source, "trained_share": round(trained, 3)}
    rate = price if price is not None else card.get("price_usd_h")
    if gpu and rate is not None:
        told["cost"] = three(*(told["minutes"][k] / 60 * gpus * rate for k in ("expected", "low", "high"))) | {"price_usd_h": rate}
    if gpu:
        told["fits"] = fitting(cfg, base, gpus, max(sizes["train"]))
    told["savings"] = savings(cfg, base, card, gpus, sizes, told)
    told["track_record"] = track_record()
    return told


def line(name, value, unit=""):
    return f"{name:<34}{value['low']:>9,.1f}{value['expected']:>12,.1f}{value['high']:>10,.1f}  {unit}".rstrip()


def say(told):
    card = facts.gpu(None if told["gpu"] == "none" else told["gpu"])
    where = f"{told['gpus']} × {card['name']}" if card else f"a CPU, cores: {told['cores']}" if told["cores"] else "this machine's CPU"
    note = "" if told["calibrated"] or not card else "; uncalibrated: no GPU has been measured with this repository yet"
    print(f"plan        {told['recipe']} on {where}{note}")
    print(f"rows        {told['rows']:,}, {told['tokens']:,} tokens ({told['tokens_from']}), {told['trained_share']:.0%} of them trained")
    print(
        f"steps       {told['steps']:,}: {told['epochs']:g} epochs at a global batch of {told['global_batch']}, {told['warmup_steps']} of warm-up; "
        f"{told['efficiency']:.0%} of the computed tokens are data"
    )
    print(f"adapter     {told['trainable_parameters']:,} trainable parameters\n")
    print(f"{'':<34}{'low':>9}{'expected':>12}{'high':>10}")
    if card:
        print(line("peak memory of a device", told["vram_gib"], "GiB"))
        for part, size in told["vram_gib"]["parts"].items():
            print(f"  {part:<41}{size:>12,.2f}")
    print(line("time", told["minutes"], "minutes"))
    if "cost" in told:
        print(line("cost", told["cost"], f"USD, at {told['cost']['price_usd_h']:g} an hour and GPU"))
    for what, size in (("disk", told["disk_gib"]), ("RAM of the merge", told["ram_gib"])):
        print(f"{what:<43}{size:>12,.1f}{'':>10}  GiB")
    print()
    if card:
        fits = f"{told['gpus']} × any of {', '.join(told['fits']) or 'no GPU that is known here'}"
        print(textwrap.fill(fits, 110, initial_indent="fits on     ", subsequent_indent=" " * 12, break_on_hyphens=False))
    for n, s in enumerate(told["savings"]):
        told_of = [(s["gib"], "GiB"), (s["minutes"], "minutes")]
        won, lost = ([f"{abs(v):g} {unit}" for v, unit in told_of if v * sign > 0] for sign in (1, -1))
        print(f"{'' if n else 'saves most':<12}{s['change']}: saves {' and '.join(won)}{', costs ' if lost else ''}{' and '.join(lost)}")
    print(f"record      {told['track_record'] or 'no run has been measured on this machine yet'}")


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.plan", description="what a run will need, before a GPU is rented")
    parser.add_argument("path", help="a recipe's name, or any Axolotl recipe's file")
    parser.add_argument("--gpu", help="a key of recipes/facts/gpus.yml (the recipe's x_hardware)")
    parser.add_argument("--gpus", type=int, help="how many of them (the recipe's x_hardware)")
    parser.add_argument("--cores", type=int, help="of a machine without a GPU (this one's)")
    parser.add_argument("--price", type=float, help="of one GPU for an hour")
    parser.add_argument("--rows", type=int, help="how many, where the dataset is not on this machine")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    given = Path(args.path)
    name, cfg = (given.stem, recipe.read(given)) if given.suffix in (".yml", ".yaml") else (args.path, recipe.load(args.path))
    gpu, count = recipe.hardware(cfg)
    told = predict(cfg | {"x_cores": args.cores}, name, args.gpu or gpu, args.gpus or count, args.price, args.rows)
    print(json.dumps(told, indent=2)) if args.json else say(told)
    return 0


if __name__ == "__main__":
    process.command(main)
