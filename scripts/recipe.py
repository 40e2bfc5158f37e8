"""Recipes: plain Axolotl YAML, found by name, with overrides that make variants.

pirate                      recipes/pirate.yml
pirate+lora_r=16            the same with one key changed: a variant, in an output folder of its own
"""

import difflib
import math
import os
import re
from pathlib import Path

import yaml

ROOT = Path("recipes")
STRENGTH = "x_strength"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it: ten times as fast


def names():
    return sorted(p.stem for p in ROOT.glob("*.yml"))


def split(name):
    """`pirate+lora_r=16+seed=1` → ("pirate", {"lora_r": 16, "seed": 1})."""
    recipe, *sets = name.split("+")
    changes = {}
    for item in sets:
        key, eq, value = item.partition("=")
        if not eq or not re.fullmatch(r"\w+", key) or not re.fullmatch(r"[\w.,\[\]-]+", value):
            raise ValueError(
                f"SET: {item!r} is not key=value in letters, digits and . , - [ ]; write larger changes as a recipe of their own"
            )
        changes[key] = yaml.safe_load(value)
    return recipe, changes


def family(name):
    """The part before the dash: `pirate-nano+lora_r=16` → `pirate`. It owns the dataset, the Modelfile and the nano base."""
    return re.split(r"[-+]", name)[0]


def words(name):
    """How make is asked for a recipe or a variant: ["RECIPE=pirate", "SET=lora_r=16 seed=1"]."""
    own, *changes = name.split("+")
    return [f"RECIPE={own}", f"SET={' '.join(changes)}"]


def command(goal, name):
    """The same as one types it, between backticks: `make train RECIPE=pirate SET="lora_r=16 seed=1"`."""
    own, *changes = name.split("+")
    return f"`make {goal} RECIPE={own}" + (f' SET="{" ".join(changes)}"`' if changes else "`")


def unscaled(name):
    """`pirate-nano+x_strength=2.0` → `pirate-nano`, whose adapter that variant scales; any other name as it is."""
    return "+".join(part for part in name.split("+") if not part.startswith(f"{STRENGTH}="))


def strength(name):
    """How many times as strong as trained a variant's adapter is, None where it is as trained. Raises ValueError where that is no factor."""
    given = [part.partition("=")[2] for part in name.split("+") if part.startswith(f"{STRENGTH}=")]
    try:
        factor = float(given[0]) if given else None
    except ValueError:
        factor = math.nan
    if given and (len(given) > 1 or not 0 < factor < math.inf):
        raise ValueError(f"{STRENGTH}={' and '.join(given)}: not one positive number; `make strength RECIPE={unscaled(name)} BY=2.0` doubles")
    return factor


def meaning(cfg):
    """The keys that decide what is made of a recipe: all but `export` and those that are ours."""
    return {k: v for k, v in cfg.items() if k == STRENGTH or k != "export" and not k.startswith("x_")}


def read(path):
    """A recipe file as a dict. Raises ValueError with file and line where it is no YAML mapping."""
    path = Path(path)
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        begun = getattr(error, "context_mark", None)
        where = f" in what line {begun.line + 1} begins" if begun and mark and begun.line != mark.line else ""
        raise ValueError(
            f"{path}:{mark.line + 1 if mark else 1}: broken YAML: {getattr(error, 'problem', None) or error}{where}; mend it there"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:1: not UTF-8 text ({error}); save it as UTF-8") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}:1: a recipe is a mapping of Axolotl's keys, this is {type(loaded).__name__}")
    return loaded


def positions(path):
    """({("datasets", 0, "path"): line, …}, [(line, key that stands twice), …]) of a YAML file that `read` takes."""
    found, twice = {(): 1}, []

    def walk(node, at, merged=False):
        if isinstance(node, yaml.MappingNode):
            merge = "tag:yaml.org,2002:merge"  # `<<`: what is merged in gives way to what is written here
            for key, value in sorted(node.value, key=lambda pair: pair[0].tag == merge):
                here, line = (*at, key.value), key.start_mark.line + 1
                if key.tag == merge:
                    for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                        walk(other, at, merged=True)
                elif here not in found or not merged:
                    twice.extend([(line, key.value)] if here in found else [])
                    found[here] = line
                    walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                found[*at, i] = item.start_mark.line + 1
                walk(item, (*at, i))

    walk(yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=LOADER), ())
    return found, twice


def load(name):
    """The recipe of that name with its variant's changes, its output folders under outputs/NAME/."""
    recipe, changes = split(name)
    path = ROOT / f"{recipe}.yml"
    if not path.is_file():
        near = difflib.get_close_matches(recipe, names(), 1)
        raise ValueError(f"no recipe {recipe!r}{f' (did you mean {near[0]}?)' if near else ''}; there are: {', '.join(names())}")
    cfg = read(path)
    if factor := strength(name):  # in no recipe file: a run is trained the same at any strength (scripts/strength.py)
        changes[STRENGTH] = cfg[STRENGTH] = factor
    for key, value in changes.items():
        if key not in cfg:
            near = difflib.get_close_matches(key, cfg, 1)
            raise ValueError(f"SET: {path} has no key {key!r}{f' (did you mean {near[0]}?)' if near else ''}; write it there first")
        cfg[key] = value
    cfg["output_dir"], cfg["dataset_prepared_path"] = f"outputs/{name}/training", f"outputs/{name}/prepared"
    return cfg


def datasets(cfg):
    """(training, evaluation) paths of the local dataset files; those on the hub are left to Axolotl."""

    def local(key):
        return [
            Path(d["path"])
            for d in cfg.get(key) or []
            if isinstance(d, dict) and re.search(r"\.(jsonl?|csv|parquet|txt)$", str(d.get("path")))
        ]

    return local("datasets"), local("test_datasets")


def is_local(cfg):
    """Whether the base is a folder here (or meant to be) rather than a hub id."""
    base = str(cfg["base_model"])
    return Path(base).exists() or base.startswith(("outputs/", "./", "../", "/"))


def environment(cfg):
    """For Axolotl's processes: with a nano base nothing is asked of the hub (each question would wait for an answer)."""
    return {"HF_HUB_OFFLINE": "1"} if str(cfg["base_model"]).startswith("outputs/") else {}


def hardware(cfg):
    """(GPU kind or None, count) that the recipe was written for."""
    hw = cfg.get("x_hardware") or {}
    gpu = hw.get("gpu", "none")
    return (None if gpu in (None, "none") else str(gpu)), int(hw.get("count", 1))


def ranks(cfg):
    """GPUS=n, else the count of the recipe's own machine."""
    asked = os.environ.get("GPUS")
    if asked and not (asked.isdecimal() and int(asked)):
        raise ValueError(f"GPUS={asked}: a whole number of ranks, 1 or more")
    return int(asked) if asked else hardware(cfg)[1]


def global_batch(cfg):
    """Sequences per optimizer step: micro batch × gradient accumulation × ranks of the recipe's own machine."""
    return int(cfg.get("micro_batch_size") or 1) * int(cfg.get("gradient_accumulation_steps") or 1) * hardware(cfg)[1]


def schedule(cfg, rows, sequences=None):
    """{"per_epoch", "steps", "epochs", "warmup"}: optimizer steps as Axolotl counts them, or None without `rows` and `max_steps`.

    `rows` are training rows, `sequences` the packed ones where `sample_packing` is on (axolotl/utils/trainer.py, `calculate_total_num_steps`:
    unpacked it rounds up, packed it drops what does not fill a batch). `epochs` is how often the data is really seen.
    """
    batch, wanted, limit = global_batch(cfg), float(cfg.get("num_epochs") or 1), int(cfg.get("max_steps") or 0)
    if cfg.get("sample_packing") and sequences:
        per_epoch = max(1, sequences // batch)
        steps = int(per_epoch * wanted)
    elif rows:
        per_epoch, steps = rows / batch, math.ceil(rows * wanted / batch)
    elif limit > 0:
        per_epoch, steps = None, limit
    else:
        return None
    steps = limit if limit > 0 else max(1, steps)
    warmup = cfg.get("warmup_steps")
    if warmup is None:
        ratio = cfg.get("warmup_ratio")
        warmup = int(ratio * steps) if ratio is not None else min(int(0.03 * steps), 100)  # the builder's own default
    warmup = int(warmup * steps) if 0 < warmup < 1 else int(warmup)
    warmup = 2 if warmup == 1 else warmup  # axolotl/core/builders/base.py: a single step of warm-up would train at a rate of 0
    return {"per_epoch": per_epoch, "steps": steps, "epochs": steps / per_epoch if per_epoch else None, "warmup": warmup}


def accumulation(cfg, gpus, nodes=1):
    """Gradient accumulation steps that keep the global batch on `nodes` × `gpus` ranks. Raises ValueError if they don't divide it."""
    micro, batch = int(cfg.get("micro_batch_size") or 1), global_batch(cfg)
    if batch % (micro * gpus * nodes):
        fit = [n for n in range(1, batch + 1) if batch % (micro * n * nodes) == 0]
        raise ValueError(
            f"GPUS={gpus}: {nodes} × {gpus} ranks × micro batch {micro} do not divide the global batch of {batch}; "
            f'GPUS can be {", ".join(map(str, fit)) or "none"}, or change SET="micro_batch_size=…"'
        )
    return batch // (micro * gpus * nodes)


def modelfile(name):
    """The recipe's own Modelfile, else its family's."""
    recipe = split(name)[0]
    own, shared = Path("modelfiles", f"{recipe}.Modelfile"), Path("modelfiles", f"{family(name)}.Modelfile")
    return own if own.is_file() else shared


def ollama_name(name):
    """What `ollama run` takes: the recipe's name, a variant's changes as its tag."""
    recipe, *sets = name.split("+")
    return recipe if not sets else f"{recipe}:" + re.sub(r"[^\w.-]", "-", "+".join(sets))[:80]


def read_modelfile(path):
    """A Modelfile's instructions: {"from": str, "template": str, "system": str, "license": str, "parameters": {name: [str, …]}}.

    Ollama's syntax: INSTRUCTION value, a value over several lines in triple quotes, # comments.
    Raises ValueError with the line of an instruction that Ollama does not know.
    """
    text, found = Path(path).read_text(encoding="utf-8"), {"parameters": {}}
    token = re.compile(r'[ \t]*(?:#[^\n]*|(\w+)[ \t]+(?:"""(.*?)"""|([^\n]*)))?(?:\n|\Z)', re.S)
    at = 0
    while at < len(text):
        match = token.match(text, at)
        line = text.count("\n", 0, at) + 1
        if not match or match.end() == at:
            raise ValueError(f"{path}:{line}: not `INSTRUCTION value`; see Ollama's Modelfile reference")
        at, word = match.end(), (match[1] or "").lower()
        value = match[2] if match[2] is not None else (match[3] or "").strip().removeprefix('"').removesuffix('"')
        if word == "parameter":
            name, _, value = value.partition(" ")
            found["parameters"].setdefault(name, []).append(value.strip().strip('"'))
        elif word in ("from", "template", "system", "license", "adapter", "message", "requires"):
            found[word] = value
        elif word:
            raise ValueError(
                f"{path}:{line}: unknown instruction {match[1]}; Ollama knows FROM, TEMPLATE, SYSTEM, PARAMETER, LICENSE, ADAPTER, MESSAGE"
            )
    return found
