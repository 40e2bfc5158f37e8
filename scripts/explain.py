"""A key of a recipe: what it is, its value here, when to raise or lower it, what it goes together with, and what `make plan` says the change costs.

    python -m scripts.explain                          # every key that is known, with its value in recipes/pirate.yml
    python -m scripts.explain lora_r pirate            # one of them
    python -m scripts.explain epochs my.yml --json     # other trainers' names are understood; any Axolotl recipe

What is known of the keys stands in recipes/facts/keys.yml, their types in recipes/schema/axolotl.json. Each line of the table is `make plan` of the recipe with that
value and nothing else changed. A key that Axolotl has and keys.yml lacks is told in the words of Axolotl's schema.
"""

import argparse
import json
import math
import textwrap
from pathlib import Path

from scripts import facts, process, recipe
from scripts.manual import costs, keys
from scripts.rules import reading, rules

WIDTH, INDENT = 110, " " * 12


def here(key, cfg, told):
    """The key's formula with this recipe's numbers, or None where it has none or the recipe does not tell. `told` is its plan or None."""
    figure = keys.known().get(key, {}).get("here")
    r, alpha, length = (keys.effective(cfg, k) for k in ("lora_r", "lora_alpha", "sequence_len"))
    if figure in ("scale", "both scales"):
        plain, root = (f"{alpha} / {r} = {alpha / r:.3g}", f"{alpha} / √{r} = {alpha / math.sqrt(r):.3g}") if r and alpha else (None, None)
        return plain and f"{root} instead of {plain}" if figure == "both scales" else root if cfg.get("peft_use_rslora") else plain
    base = facts.base(cfg.get("base_model"))
    if figure == "parameters" and cfg.get("adapter") and r and base.get("hidden"):
        trained = facts.adapter_parameters(base, cfg)
        return f"{r} × {trained // r:,} = {trained:,}"
    if figure == "attention" and base.get("hidden"):
        weights = 2 * (facts.linear_parameters(base) + base["hidden"] * base["vocab"])
        own = 2 * base["layers"] * base["heads"] * base["head_dim"] * length  # under the causal mask: Korthikanti 2022
        return f"{length:,} tokens, and attention's own arithmetic is {own / (own + weights):.1%} of a token's"
    return of_plan(figure, cfg, told) if told else None


def of_plan(figure, cfg, told):
    steps, batch = told["steps"], told["global_batch"]
    micro = keys.effective(cfg, "micro_batch_size")
    if figure == "batch":
        return f"{micro} × {batch // (micro * told['gpus'])} × {told['gpus']} = {batch}"
    if figure == "steps":
        return f"{told['rows']:,} rows{', packed' * bool(cfg.get('sample_packing'))}, {steps:,} steps of {batch}: {told['epochs']:g} epochs"
    if figure == "warmup":
        return f"{told['warmup_steps']:,} of {steps:,} steps"
    if figure == "decay":
        rate = (keys.effective(cfg, "weight_decay") or 0) * (keys.effective(cfg, "learning_rate") or 0)
        return f"in all {steps:,} steps it takes off {1 - (1 - rate) ** steps:.2g} of a weight at most"
    return None


def explained(key, cfg, name, options):
    """All that is said of one key of a recipe, as data; `options` are `make plan`'s own."""
    entry, of, (set_here, now) = keys.known().get(key, {}), keys.node(key), keys.value(cfg, key)
    rows = costs.compared(cfg, key, name, options) if entry.get("try") or entry.get("here") else []
    told = next((made for _, c, made, _ in rows if c is cfg), None)
    words = {k: entry.get(k) for k in ("is", "more", "when", "with", "formula", "source", "mind", "cost")}
    words["is"] = words["is"] or f"no words of ours on it; Axolotl's schema says: {' '.join((of.get('description') or 'nothing').split())}"
    looked = {rule: dict(zip(("level", "when"), rules()[rule][1:3])) for rule in entry.get("rules", [])}
    told_of = {"here": here(key, cfg, told), "lint": looked, "no_plan": next((why for _, c, _, why in rows if c is cfg), None)}
    rows = rows if entry.get("try") else []
    shown, notes = costs.table(key, rows) if len(rows) > 1 else ([], [])
    plans = [{"value": title, "plan": made, "why": why, "adapter": made and costs.adapter_size(made, c)} for title, c, made, why in rows]
    told_of |= {"plans": plans, "table": shown, "notes": notes}
    return {"key": key, "set": set_here, "value": now, "takes": reading.described(of), "default": keys.default(key)} | words | told_of


def said(label, text):
    """`label       text`, wrapped under itself."""
    head = f"{label:<12}" if len(label) < 12 else f"{label}: "
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=INDENT, break_on_hyphens=False, break_long_words=False)


def listed(label, items):
    return [line for n, item in enumerate(items) for line in said("" if n else label, item)]


def page(told, name, asked, where):
    """The lines on one key."""
    key = told["key"]
    title = f"{key}{f' ({asked})' if asked != key else ''}: {told['is'].removesuffix('.')}. {told['more'] or ''}"
    now = keys.shortened(keys.written(told["value"]), 200)
    found = said("explain", title) + said("here", f"{now}, in {where}" if told["set"] else f"not set in {where}")
    found += said("default", told["default"]) + said("takes", told["takes"])
    for label, text in (told["when"] or {}).items():
        found += said(label, text)
    found += listed("with", [f"{other}: {text}" for other, text in (told["with"] or {}).items()])
    figure = [f"here {told['here']}" if told["formula"] else told["here"]] if told["here"] else []
    found += said("formula" if told["formula"] else "figure", "; ".join([told["formula"], *figure] if told["formula"] else figure))
    for label in ("source", "mind"):
        found += said(label, told[label]) if told[label] else []
    found += listed("lint", [f"{rule} ({of['level']}): {of['when']}" for rule, of in told["lint"].items()])
    return found + price(told, name)


def price(told, name):
    """The lines on what another value costs: `make plan`'s table, or why there is none."""
    more = f". {told['cost']}" if told["cost"] else ""
    if told["plans"] and told["no_plan"]:
        return said("cost", f"`make plan` cannot tell of {name}: {told['no_plan']}{more}")
    if not told["plans"]:
        return said("cost", told["cost"] or "not known here; `make plan` tells what it counts of it")
    made = next(p["plan"] for p in told["plans"] if p["plan"])
    of = f"`make plan` of {name} on " + (f"{made['gpus']} × {made['gpu']}" if made["gpu"] != "none" else "this machine's CPU")
    if told["table"]:
        return said("cost", "; ".join([of, *told["notes"]]) + more) + ["", *told["table"]]
    others = ", ".join(p["value"] for p in told["plans"] if not p["value"].endswith("(now)"))
    return said("cost", f"nothing that {of} counts{f', with {others}' if others else ''}{more}")


def listing(cfg, where):
    """All keys that are known, in their groups, with their values in a recipe."""
    found = said("explain", f"{len(keys.known())} keys, with their values in {where}; `make explain KEY=lora_r` tells of one")
    for group, entries in keys.groups().items():
        found += ["", group]
        for key, entry in entries.items():
            set_here, now = keys.value(cfg, key)
            found.append(f"  {key:<34}{keys.shortened(keys.written(now), 13) if set_here else '–':<14}{entry['is']}")
    return found


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.explain", description="what a key of a recipe is, and what changing it costs")
    parser.add_argument("key", nargs="?", help="a key of Axolotl's, or its name in another trainer (none: a list)")
    parser.add_argument("path", nargs="?", default="pirate", help="a recipe's name, or any Axolotl recipe's file")
    for option in ("gpu", "gpus", "price", "rows"):
        parser.add_argument(f"--{option}", help="as python -m scripts.plan takes it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    file = args.path.endswith((".yml", ".yaml"))
    path = Path(args.path) if file else recipe.ROOT / f"{recipe.split(args.path)[0]}.yml"
    cfg, name = (recipe.read(path), path.stem) if file else (recipe.load(args.path), args.path)
    if not args.key:
        print(*listing(cfg, path), sep="\n")
        return 0
    key, lines = keys.called(args.key), recipe.positions(path)[0]
    first, *rest = key.split(".")
    line = lines.get((first, *rest)) or lines.get((first, 0, *rest))
    changed = not file and key in recipe.split(args.path)[1]
    options = [x for option in ("gpu", "gpus", "price", "rows") if getattr(args, option) for x in (f"--{option}", getattr(args, option))]
    told = explained(key, cfg, name, options)
    where = f"SET of {name}" if changed else f"{path}:{line}" if line else str(path)
    print(json.dumps(told, indent=2, default=str) if args.json else "\n".join(page(told, name, args.key, where)))
    return 0


if __name__ == "__main__":
    process.command(main)
