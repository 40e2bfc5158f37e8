"""Rules on the keys themselves: known, of the right type, said once, and the files they name."""

import difflib
import json
import os
import re
from pathlib import Path

from scripts.rules.reading import datasets_node, described, fits, schema, unknown, variants

SUFFIXES = (".jsonl", ".json", ".csv", ".txt", ".parquet", ".arrow", ".jinja", ".yml", ".yaml")


def bad_yaml(c):
    """error | the file is no YAML mapping with text as keys, or no file that can be read | nothing else can be looked at
    | the YAML specification | mend the line that is named"""
    for at in c.odd:
        yield at, f"the key {at[-1]!r} is no text but of type {type(at[-1]).__name__}", "put it in quotes, or delete it"


def unknown_key(c):
    """error | a key that Axolotl, or a plug-in that the recipe lists, does not have, or has no more
    | Axolotl drops it without a word, and the run goes on without it; of some that are gone it stops after its 20 s of imports
    | tried with Axolotl 0.21, whose schema is in schema/axolotl.json | spell it as the nearest legal key, which is named, or delete it"""
    known = schema()["properties"]
    top = {"type": "object", "properties": known | {"datasets": datasets_node(c.cfg)}}
    strange = []
    for n, (at, key, legal) in enumerate(unknown(c.raw, top)):
        if len(at) == 1 and c.foreign:
            strange.append(key)
            continue
        near = (difflib.get_close_matches(key, sorted(legal), 1, 0.8) or [None])[0] if n < 50 else None  # each costs a millisecond
        typo = near and difflib.SequenceMatcher(None, key, near).ratio() > 0.88
        sure = typo and len(at) == 1 and near not in c.raw and fits(c.raw[key], known[near])
        todo = f"did you mean {near!r}?" if near else "delete it" + ", or begin it with x_ if it is your own" * (len(at) == 1)
        if at[0] in ("fsdp", "fsdp_config") and not typo:
            todo = "it is FSDP1's, which Axolotl no longer has: use fsdp_config with FSDP2's keys"
        yield at, f"unknown key {key!r}{f' in {dotted(at[:-1])}' if len(at) > 1 else ''}", todo, ("rename", key, near) if sure else None
    if strange:
        c.note("plugins", f"the keys of {', '.join(c.foreign)} are not known here, {', '.join(strange)} may be among them", ["unknown-key"])
    for key, value in c.raw.items():
        owner, gone = known.get(key, {}).get("x-plugin"), known.get(key, {}).get("x-removed")
        if gone and value not in (None, False):
            yield key, f"{key!r} was removed: {' '.join(gone.replace('`', '').split()).rstrip('.')}", "delete it"
        if owner and value not in (None, False) and not any(p.startswith(package(owner)) for p in c.plugins):
            yield key, f"{key!r} belongs to a plug-in that the recipe does not list, and is dropped", f"add {owner} to plugins"


def package(plugin):
    return plugin.rpartition(".")[0]


def dotted(at):
    return ".".join(map(str, at))


def duplicate_key(c):
    """error | the same key twice in one mapping | YAML parsers take the last one and say nothing | the YAML specification forbids it
    | delete one of the two"""
    for line, key in c.twice:
        yield line, f"{key!r} stands here a second time", "delete one of the two"


def deprecated_key(c):
    """warning | a key that Axolotl will drop | it works until the next upgrade | Axolotl's schema, and the warnings of its validators
    | use the key that took its place"""
    known = schema()["properties"]
    for key in (k for k, value in c.raw.items() if value is not None and "x-deprecated" in known.get(k, {})):
        said = " ".join(known[key]["x-deprecated"].replace("`", "").split())
        use = re.search(r"\buse (.*?)( instead)?(\. |\.?$)", said, re.I)
        heir = use and use[1] in known and use[1] not in c.raw and use[1]
        yield key, f"{key!r} is deprecated", f"use {use[1]}" if use else said, ("rename", key, heir) if heir else None


def bad_type(c):
    """error | a value that Axolotl does not take: of another type, out of range, not among the choices; or a required key that is missing
    | Axolotl stops after its 20 s of imports, or once the model is loaded | Axolotl's schema, read as pydantic reads it
    | write what the key takes, which is named"""
    for at, value, node in c.wrong:
        if at[0] == "adapter" and c.foreign:
            continue  # theirs, perhaps
        missing = len(at) == 1 and at[0] not in c.raw
        shown = c.hide(json.dumps(value, default=str, ensure_ascii=False))
        choices = [v for k in variants(node) for v in k.get("enum", []) if isinstance(v, str)]
        near = (difflib.get_close_matches(str(value), choices, 1, 0.7) or [None])[0]
        todo = f"did you mean {near!r}?" if near else "write it" if missing else "mend the value"
        if isinstance(value, bool) and (choices or any(k.get("type") == "string" for k in variants(node))):
            todo = "put it in quotes: YAML reads a bare yes, no, on or off as true or false"
        what = "is missing" if missing else f"is {shown[:60] + ' …' * (len(shown) > 60)}"
        yield at, f"{dotted(at)} {what}; Axolotl takes {described(node)}", todo
    for key in ("datasets", "test_datasets"):
        for i, spec in c.entries(key):
            if str(spec.get("type")).startswith("sharegpt"):
                yield (
                    (key, i, "type"),
                    f"type {spec['type']} was removed",
                    "type: chat_template, with field_messages and message_property_mappings",
                )
    if c.raw.get("datasets") is None and c.raw.get("pretraining_dataset") is None:
        yield (), "neither datasets nor pretraining_dataset", "say what to train on"


def looks_local(path):
    """Whether a path means a file here rather than a name on the hub or an address."""
    return "://" not in path and (path.startswith(("/", "./", "../", "~")) or path.endswith(SUFFIXES) or path.count("/") > 1)


def missing_file(c):
    """error | a dataset, chat template, DeepSpeed config or base folder that is not there
    | found out by the trainer otherwise, on a rented machine | Axolotl reads paths from the folder it is started in
    | put it there, or mend the path"""
    places = [((key, i, "path"), spec.get("path")) for key in ("datasets", "test_datasets") for i, spec in c.entries(key)]
    places += [((key,), c.cfg.get(key)) for key in ("base_model", "deepspeed", "resume_from_checkpoint", "lora_model_dir")]
    jinja = c.cfg.get("chat_template_jinja")
    if c.cfg.get("chat_template") in ("jinja", None) and jinja and "{" not in jinja and "\n" not in jinja:
        places.append((("chat_template_jinja",), jinja))
    for at, path in places:
        if not isinstance(path, str) or at == ("base_model",) and path.startswith("outputs/nano/"):  # `make base` makes it
            continue
        if (looks_local(path) or at[0] == "chat_template_jinja") and not os.path.exists(os.path.expanduser(path)):
            above = [folder for folder in (c.path.parent, c.path.parent.parent) if os.path.exists(folder / path)]
            todo = "`axolotl fetch deepspeed_configs`, or mend the path" if at[0] == "deepspeed" else "put it there, or mend the path"
            yield at, f"{path}: no such file or folder", f"start from {above[0].resolve()}, where it is" if above else todo


def name_mismatch(c):
    """error | an output folder or dataset that belongs to another recipe, or no Modelfile of the family
    | a copied recipe overwrites its model's outputs, or learns its rows | the recipe's name is the only key here
    | name the recipe's own, or waive it where sharing is meant"""
    if not c.ours:
        return
    for key in ("output_dir", "dataset_prepared_path"):
        parts = Path(c.cfg.get(key) or "").parts
        if parts and c.name not in parts:
            yield key, f"{c.cfg[key]} is not {c.name}'s", f"{key}: outputs/{c.name}/{parts[-1]}"
    for key in ("datasets", "test_datasets"):
        for i, spec in c.entries(key):
            parts = Path(spec.get("path") or "").parts
            if parts[:1] == ("datasets",) and len(parts) > 2 and parts[1] not in (c.name, c.family):
                yield (key, i, "path"), f"{spec['path']} is {parts[1]}'s", f"datasets/{c.family}/{parts[-1]}"
    if not c.modelfile_path:
        yield (
            (),
            f"no modelfiles/{c.name}.Modelfile, nor its family's",
            "copy modelfiles/pirate.Modelfile, or `make ollama` cannot serve it",
        )


def bad_waiver(c):
    """warning | x_waive names no rule, or gives no reason | what is waived should be findable, and meant | a waiver is a decision
    | `x_waive: {rule: reason}`"""
    for name, reason in (c.cfg.get("x_waive") or {}).items():
        near = difflib.get_close_matches(name, c.rule_names, 1)
        if name not in c.rule_names:
            yield (
                ("x_waive", name),
                f"no rule is called {name!r}",
                f"did you mean {near[0]!r}?" if near else "see the table in recipes/README.md",
            )
        elif not isinstance(reason, str) or not reason.strip():
            yield ("x_waive", name), f"{name} is waived without a reason", "say why; until then it is not waived"


def bad_refusal(c):
    """error | x_refused names no rule, gives no reason, or names one that finds nothing here
    | a recipe that shows a mistake must go on making it, or it shows nothing | `make lint` over all recipes
    | `x_refused: {rule: reason}`, or delete it there"""
    for name, reason in (c.cfg.get("x_refused") or {}).items():
        near = difflib.get_close_matches(name, c.rule_names, 1)
        if name not in c.rule_names:
            todo = f"did you mean {near[0]!r}?" if near else "see the table in recipes/README.md"
            yield ("x_refused", name), f"no rule is called {name!r}", todo
        elif not isinstance(reason, str) or not reason.strip():
            yield ("x_refused", name), f"{name} is refused without a reason", "say what the recipe shows by it"
        elif name not in c.found:
            yield ("x_refused", name), f"{name} finds nothing here, so the recipe no longer shows it", "mend the recipe, or delete it there"
