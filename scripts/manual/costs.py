"""What another value of a key would cost: the recipe as it is and with other values, each asked of `make plan`, side by side.

from scripts.manual import costs
rows = costs.compared(recipe.load("pirate"), "lora_r", "pirate", [])
costs.table("lora_r", rows)
"""

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from scripts import facts
from scripts.manual import keys

WIDTH = 120
FACTOR = {"half": 0.5, "double": 2}
IMPOSSIBLE = object()  # half of an odd number, double of a text
COLUMNS = {  # what a plan has under that head, with the recipe that it is of; None where there is nothing
    "parameters": lambda told, cfg: f"{told['trainable_parameters']:,}",
    "GiB of a GPU": lambda told, cfg: "{low:.1f}–{high:.1f}".format(**told["vram_gib"]) if "vram_gib" in told else None,
    "minutes": lambda told, cfg: "{expected:.2f} ({low:.1f}–{high:.1f})".format(**told["minutes"]),
    "USD": lambda told, cfg: f"{told['cost']['expected']:.2f}" if "cost" in told else None,
    "adapter": lambda told, cfg: adapter_size(told, cfg),
    "steps": lambda told, cfg: f"{told['steps']:,}",
    "epochs": lambda told, cfg: f"{told['epochs']:g}",
    "warm-up": lambda told, cfg: f"{told['warmup_steps']:,}",
    "batch": lambda told, cfg: f"{told['global_batch']:,}",
    "data": lambda told, cfg: f"{told['efficiency']:.0%}",
    "disk": lambda told, cfg: f"{told['disk_gib']:.1f} GiB",
}
NOTES = {
    "GiB of a GPU": "GiB: low–high",
    "minutes": "minutes: expected (low–high)",
    "epochs": "epochs: how often each row is seen",
    "batch": "batch: sequences a step",
    "data": "data: the share of the computed tokens that is not padding",
}


def compared(cfg, key, name, options):
    """[(value, recipe with it, the plan's JSON or None, why not)], the present value first; of numbers, in their order. `options` are the plan's own."""
    told, why = plans([cfg], cfg, name, options)[0]
    set_here, now = keys.value(cfg, key)
    rows = [(f"{keys.written(now) if set_here else 'not set'} (now)", cfg, told, why)]
    others = variants(cfg, key, told) if told else []
    rows += [(title, other, *made) for (title, other), made in zip(others, plans([c for _, c in others], cfg, name, options))]
    values = [keys.effective(c, key) for _, c, _, _ in rows]
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) and len(set(values)) == len(values)
    return [row for _, row in sorted(zip(values, rows), key=lambda pair: pair[0])] if plain else rows


def plans(recipes, own, name, options):
    """(the plan's JSON or None, the line that says why not) of each recipe, asked at once.

    A file has the recipe's own name, in a folder of its own, so that tokens which `make preprocess` counted count for all alike; not so with another base.
    """

    def ask(cfg):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name if cfg.get('base_model') == own.get('base_model') else 'other'}.yml")
            path.write_text(yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True), encoding="utf-8")
            said = subprocess.run([sys.executable, "-m", "scripts.plan", path, *options, "--json"], capture_output=True, text=True)
        why = said.stderr.strip().partition("\n")[0].removeprefix(f"{path.stem}: ")
        return (json.loads(said.stdout), None) if not said.returncode else (None, why)

    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(ask, recipes))


def variants(cfg, key, told):
    """[(what it is called, the recipe with it)] of the values that keys.yml would try, without the present one and those that cannot be."""
    entry, found, now = keys.known().get(key, {}), [], cfg
    if keys.effective(cfg, key) is None and entry.get("like"):
        now = cfg | {key: told[entry["like"]]}
    for item in entry.get("try", []):
        item = dict(item) if isinstance(item, dict) else {key: item}
        title = item.pop("as", None)
        change = {k: scaled(keys.effective(now, k), v) for k, v in item.items()}
        same = all((keys.effective(cfg, k) or None) == (v or None) for k, v in change.items())
        if IMPOSSIBLE in change.values() or same:
            continue
        more = [f"{k} {keys.written(v)}" for k, v in change.items() if k != key and cfg.get(k) != v and v is not None]
        found.append((title or ", ".join([keys.written(change[key]), *more]), cfg | change))
    return found


def scaled(now, wanted):
    """The value wanted: itself, or half or double of the present one; IMPOSSIBLE where that is no value of its kind."""
    if not isinstance(wanted, str) or wanted not in FACTOR:
        return wanted
    if not isinstance(now, (int, float)) or isinstance(now, bool) or not now:
        return IMPOSSIBLE
    then = now * FACTOR[wanted]
    whole = isinstance(now, int)
    return IMPOSSIBLE if whole and then != int(then) else int(then) if whole else float(f"{then:.6g}")


def adapter_size(told, cfg):
    """The adapter's file: PEFT writes its matrices as they are held, in 32 bits, or under DeepSpeed on GPUs in 16. None without an adapter."""
    if not cfg.get("adapter"):
        return None
    size = told["trainable_parameters"] * (2 if told["gpu"] != "none" and facts.zero(cfg) is not None else 4) / 2**20
    return f"{size:,.0f} MiB" if size >= 10 else f"{size:.1f} MiB"


def table(key, rows):
    """(lines, notes on their heads) of the columns in which the plans differ, aligned; no lines where none does."""
    cells = {head: [told and figure(told, cfg) for _, cfg, told, _ in rows] for head, figure in COLUMNS.items()}
    shown = {head: column for head, column in cells.items() if len({c for c, row in zip(column, rows) if row[2]}) > 1}
    if not shown and all(told for *_, told, _ in rows):
        return [], []
    titles = [keys.shortened(title, 36) for title, *_ in rows]
    wide = max(map(len, (*titles, key))) + 1
    widths = {head: max(len(head), *(len(c or "–") for c in column)) + 2 for head, column in shown.items()}
    lines = [f"{key:<{wide}}" + "".join(f"{head:>{widths[head]}}" for head in shown)]
    for n, (title, (_, _, told, why)) in enumerate(zip(titles, rows)):
        said = "".join(f"{column[n] or '–':>{widths[head]}}" for head, column in shown.items()) if told else f"  {why}"
        lines.append(keys.shortened(f"{title:<{wide}}{said}", WIDTH))
    return lines, [note for head, note in NOTES.items() if head in shown]
