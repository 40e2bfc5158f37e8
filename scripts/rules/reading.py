"""A recipe as Axolotl reads it: YAML that is safe to parse, values as its schema takes them, and what does not fit."""

import json
import math
import os
import re
from functools import lru_cache
from pathlib import Path

import yaml

from scripts import recipe

SCHEMA = Path(__file__).parent.parent.parent / "recipes/schema/axolotl.json"
LARGEST, DEEPEST, MOST = 1_000_000, 100, 100_000  # bytes, levels and values of a recipe; beyond lies an accident or an attack on the parser
WORDS = {w: v for v, words in ((True, "true t yes y on 1"), (False, "false f no n off 0")) for w in words.split()}  # pydantic's booleans
JSON = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array", type(None): "null"}
RL_DATASETS = {
    "dpo": "DPODataset",
    "ipo": "DPODataset",
    "simpo": "DPODataset",
    "kto": "KTODataset",
}  # axolotl/utils/config, validate_config


@lru_cache
def schema():
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def read(path):
    """(text, mapping with text keys only, places of the other keys). Raises ValueError where it is no recipe at all."""
    if not os.path.isfile(path):
        raise ValueError(f"{path}:1: not a file; give a recipe")
    if os.path.getsize(path) > LARGEST:
        raise ValueError(f"{path}:1: {os.path.getsize(path):,} bytes are no recipe; keep rows in a file of their own")
    text = Path(path).read_bytes().decode("utf-8", "replace")
    depth, opened = 0, yaml.CollectionStartEvent
    try:  # the parser in C recurses without a guard, so what nests by thousands must not reach it
        for event in yaml.parse(text, Loader=recipe.LOADER) if len(text) > 4000 else ():
            depth += isinstance(event, opened) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"{path}:{event.start_mark.line + 1}: nested deeper than {DEEPEST} levels; no key of Axolotl's is")
    except yaml.YAMLError:
        pass  # said better below
    try:
        found, odd = recipe.read(path), []
        return text, plain(found, (), odd, [0]), odd
    except ValueError as error:  # such as `2026-13-01`, no date to YAML, which names no file
        said = str(error) if str(error).startswith(f"{path}:") else f"{path}:1: {error}"
        raise ValueError(said if "; " in said else f"{said}; mend it there") from None


def plain(value, at, odd, count):
    """A copy without aliases, whose mappings have text keys only; the places of other keys go to `odd`."""
    count[0] += 1
    if len(at) > DEEPEST or count[0] > MOST:
        raise ValueError(f"more than {MOST:,} values or {DEEPEST} levels, or an alias that contains itself; write out what aliases say")
    if isinstance(value, dict):
        odd += [(*at, key) for key in value if not isinstance(key, str)]
        return {key: plain(item, (*at, key), odd, count) for key, item in value.items() if isinstance(key, str)}
    return [plain(item, (*at, i), odd, count) for i, item in enumerate(value)] if isinstance(value, list) else value


def variants(node):
    """The alternatives that a schema node allows, references followed."""
    if "$ref" in node:
        return variants(schema()["$defs"][node["$ref"].rsplit("/", 1)[1]])
    return [v for part in node["anyOf"] for v in variants(part)] if "anyOf" in node else [node]


def scalar(value, kind):
    """A scalar as pydantic reads it for a JSON type (`"2e-4"` is a number to Axolotl, text to YAML 1.1). Raises ValueError where it does not."""
    if kind == "string" and isinstance(value, str) or kind == "null" and value is None:
        return value
    if kind not in ("boolean", "integer", "number") or not isinstance(value, (bool, int, float, str)):
        raise ValueError
    text = str(int(value)) if isinstance(value, bool) else str(value).strip().lower()
    if kind == "boolean":
        text = text.removesuffix(".0") if isinstance(value, float) else text
        if text not in WORDS:
            raise ValueError
        return WORDS[text]
    number = float(text)
    if kind == "number" and math.isfinite(number):
        return number
    whole = isinstance(value, (int, float)) or re.fullmatch(r"[-+]?\d[\d_]*(\.0*)?", text)
    if not whole or not abs(number) < 2**63 or number != int(number):  # no float compares with NaN
        raise ValueError
    return int(number) if isinstance(value, float) else int(text.partition(".")[0])


def fitted(value, node, at, wrong):
    """The value as Axolotl reads it; where it does not fit, None, and (place, value, node) goes to `wrong`."""
    kinds = variants(node)
    if len(kinds) > 1:
        tries = []
        for kind in sorted(
            kinds, key=lambda k: k.get("type") != JSON.get(type(value))
        ):  # pydantic prefers the value's own type, then what converts
            tries.append((faults := [], fitted(value, kind, at, faults)))
            if not faults:
                return tries[-1][1]
        faults, read = max(tries, key=lambda t: (max(len(f[0]) for f in t[0]), -len(t[0])))
        deep = any(len(f[0]) > len(at) for f in faults)  # the value has the right shape, and something in it is wrong
        wrong += faults if deep else [(at, value, node)]
        return read if deep else None
    kind = kinds[0]
    if "enum" in kind or "const" in kind:
        fits = any(type(value) is type(v) and value == v for v in kind.get("enum", [kind.get("const")]))
    elif kind.get("type") == "object" and isinstance(value, dict):
        known, rest = kind.get("properties", {}), kind.get("additionalProperties")
        wrong += [((*at, key), None, known[key]) for key in kind.get("required", []) if key not in value]
        rest = rest if isinstance(rest, dict) else {}
        return {key: fitted(item, known.get(key, rest), (*at, key), wrong) for key, item in value.items()}
    elif kind.get("type") == "array" and isinstance(value, list):
        if kind.get("minItems", 0) <= len(value) <= kind.get("maxItems", len(value)):
            return [fitted(item, item_node(kind, i), (*at, i), wrong) for i, item in enumerate(value)]
        fits = False
    elif kind.get("type") in (None, "object", "array"):
        fits = kind.get("type") is None
    else:
        try:
            value = scalar(value, kind["type"])
            fits = bool(re.search(kind["pattern"], value)) if "pattern" in kind else in_range(value, kind)
        except ValueError:
            fits = False
    if not fits:
        wrong.append((at, value, node))
    return value if fits else None


def item_node(kind, i):
    """The schema of a list's item."""
    first, rest = kind.get("prefixItems", []), kind.get("items")
    return first[i] if i < len(first) else rest if isinstance(rest, dict) else {}


def in_range(value, kind):
    return not isinstance(value, (int, float)) or (
        kind.get("minimum", value) <= value <= kind.get("maximum", value)
        and ("exclusiveMinimum" not in kind or value > kind["exclusiveMinimum"])
        and ("exclusiveMaximum" not in kind or value < kind["exclusiveMaximum"])
    )


def unknown(value, node, at=()):
    """(place, key, legal keys) of every key that no alternative knows."""
    kinds = variants(node)
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from unknown(item, {"anyOf": [item_node(k, i) for k in kinds if k.get("type") == "array"] or [{}]}, (*at, i))
    elif isinstance(value, dict):
        shapes = [k for k in kinds if k.get("type") == "object"]
        if not shapes or any(not k.get("properties") for k in shapes):
            return  # an open mapping
        legal = {name for k in shapes for name in k["properties"]}
        for key, item in value.items():
            if key in legal:
                yield from unknown(item, {"anyOf": [k["properties"][key] for k in shapes if key in k["properties"]]}, (*at, key))
            elif at or not key.startswith("x_"):
                yield (*at, key), key, legal


def datasets_node(cfg, key="datasets"):
    """The schema of this recipe's datasets: under `rl`, or for made-up rows, Axolotl keeps the keys of one class and drops all others."""
    entries = cfg.get(key) if isinstance(cfg.get(key), list) else []
    made = [isinstance(spec, dict) and spec.get("type") == "_synthetic" for spec in entries]
    rl = cfg["rl"] if isinstance(cfg.get("rl"), str) else None
    refs = [{"$ref": f"#/$defs/{'SyntheticDataset' if m else RL_DATASETS.get(rl, 'SFTDataset')}"} for m in made]
    return {"anyOf": [{"type": "array", "minItems": 1, "prefixItems": refs}, {"type": "null"}]}


def typed(cfg):
    """(the recipe with every value as Axolotl reads it and None for what does not fit, [(place, value, node) of those])."""
    properties, wrong = schema()["properties"], []
    properties = properties | {key: datasets_node(cfg, key) for key in ("datasets", "test_datasets")}
    read = {key: fitted(value, properties.get(key, {}), (key,), wrong) for key, value in cfg.items()}
    return read, wrong + [((key,), None, properties[key]) for key in schema()["required"] if key not in cfg]


def fits(value, node):
    fitted(value, node, (), wrong := [])
    return not wrong


def described(node):
    """`integer, number or one of …`: what a schema node takes."""
    said = []
    for kind in variants(node):
        if "enum" in kind or "const" in kind:
            values = [v for v in kind.get("enum", [kind.get("const")]) if v is not None]
            said.append(
                f"one of {', '.join(map(str, values[:8]))}{' …' if len(values) > 8 else ''}" if len(values) > 1 else repr(values[0])
            )
        elif kind.get("type") not in (None, "null"):
            named = {"object": "a mapping", "array": "a list", "integer": "an integer", "string": "text", "boolean": "true or false"}
            least = (
                f" of at least {kind['minimum']}"
                if "minimum" in kind
                else f" above {kind['exclusiveMinimum']}"
                if "exclusiveMinimum" in kind
                else ""
            )
            said.append(named.get(kind["type"], f"a {kind['type']}") + least)
    said = list(dict.fromkeys(said))
    return " or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said) or "another value"
