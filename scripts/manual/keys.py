"""The keys that recipes/facts/keys.yml explains, by any of their names, with their schema and their value in a recipe.

from scripts.manual import keys
keys.called("training.batch_size")     # micro_batch_size
"""

import difflib

import yaml

from scripts import facts
from scripts.rules import reading


def groups():
    """{group: {key: what is known of it}}."""
    return facts.table("keys.yml")["groups"]


def known():
    """{key: what is known of it}."""
    return {key: entry for group in groups().values() for key, entry in group.items()}


def called(asked):
    """The key that is meant: itself, another trainer's name of it, or a legal one that keys.yml lacks. Raises ValueError for none of these."""
    entries, legal = known(), reading.schema()["properties"]
    names = {name: key for key, entry in entries.items() for name in (*entry.get("alias", []), key)}
    last = asked.rpartition(".")[2]  # of lora.r, training.epochs
    for name in (asked, last):
        if name in names:
            return names[name]
    if asked in legal or "." in asked and node(asked):
        return asked
    if last in (elsewhere := facts.table("keys.yml")["elsewhere"]):
        raise ValueError(f"{asked} is no key of a recipe here: {elsewhere[last]}")
    near = difflib.get_close_matches(last, [*names, *legal], 1, 0.7)
    raise ValueError(f"unknown key {asked!r}{f' (did you mean {near[0]!r}?)' if near else ''}; `make explain` lists those that are known")


def node(key):
    """The schema of a key, also of one in the entries of a list (`datasets.type`); {} where there is none."""
    first, *rest = key.split(".")
    found = reading.schema()["properties"].get(first, {})
    for part in rest:
        kinds = [item for kind in reading.variants(found) for item in reading.variants(kind.get("items") or {})]
        found = next((kind["properties"][part] for kind in kinds if part in kind.get("properties", {})), {})
    return found


def default(key):
    """What holds where the key is not set, in words."""
    own = node(key).get("default")
    return known().get(key, {}).get("default") or ("not told by Axolotl's schema" if own is None else written(own))


def value(cfg, key):
    """(whether the recipe sets the key, its value there); of a list's entries the first's."""
    for part in key.split("."):
        cfg = next((item for item in cfg if isinstance(item, dict)), {}) if isinstance(cfg, list) else cfg
        if not isinstance(cfg, dict) or part not in cfg:
            return False, None
        cfg = cfg[part]
    return True, cfg


def effective(cfg, key):
    """A top-level key's value as Axolotl reads it, its schema's default where it is not set."""
    now, of = cfg.get(key), reading.schema()["properties"].get(key, {})
    now = of.get("default") if now is None else now
    return reading.fitted(now, of, (key,), []) if now is not None else None


def written(x):
    """A value as YAML writes it, on one line: true, [q_proj, v_proj], 2e-4."""
    if isinstance(x, str):
        return x
    if isinstance(x, float):
        digits, _, power = f"{x:e}".partition("e")
        return f"{float(digits):g}e{int(power)}" if 0 < abs(x) < 1e-3 else f"{x:g}"
    return " ".join(
        yaml.safe_dump(x, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False).removesuffix("\n...\n").split()
    )


def shortened(text, width):
    return text if len(text) <= width else text[: width - 2].rstrip() + " …"
