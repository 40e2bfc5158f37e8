"""All that the rules look at, of one recipe: what it says, the machine, base, template and Modelfile it names, and the rows of its local datasets."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

from scripts import data, facts, recipe
from scripts.rules import keys, machine, of, prompt, reading, rows, rules

HUGE = 2**30  # bytes of a dataset; beyond, reading it is no matter of a second


def case(path):
    """All that the rules look at, of one recipe. Raises ValueError where it is none."""
    c = SimpleNamespace(path=path, name=path.stem, family=recipe.family(path.stem), notes=[], views=[], rule_names=set(rules()))
    c.text, c.raw, c.odd = reading.read(path)  # as written, and …
    c.cfg, c.wrong = reading.typed(c.raw)  # … as Axolotl reads it: what does not fit is None, and bad-type's to name
    c.at, c.twice = recipe.positions(path)
    c.schema = reading.schema()
    c.note = lambda at, what, names: c.notes.append((at, what, names))
    c.entries = lambda key: [(i, spec) for i, spec in enumerate(c.cfg.get(key) or []) if isinstance(spec, dict)]
    c.leaves = list(leaves(c.cfg))
    c.secrets = {at: value for at, value in leaves(c.raw) if machine.is_secret(at, value)}
    c.hide = lambda text: machine.hidden(text, c.secrets.values())
    c.plugins = [p for p in c.cfg.get("plugins") or [] if p]
    known = {keys.package(p) for p in c.schema["x-plugins"]}
    c.foreign = [p for p in c.plugins if not p.startswith(("scripts.", *known))]
    c.ours = path.resolve().parent == Path("recipes").resolve()
    c.lora = c.cfg.get("adapter") in ("lora", "qlora")
    c.supervised = not any(c.cfg.get(key) for key in ("rl", "reward_model", "process_reward_model", "pretraining_dataset"))
    c.held_out = bool(c.cfg.get("test_datasets") or (c.cfg.get("val_set_size") or 0) > 0)
    c.evaluates = c.held_out and c.cfg.get("eval_strategy") != "no"
    c.attention = attention(c)
    c.stage = facts.zero(c.cfg)
    equipped(c)
    counted(c)
    return c


def leaves(value, at=()):
    """Every scalar of a recipe with its place: (("datasets", 0, "path"), "x.jsonl")."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield at, value
    else:
        for key, item in items:
            yield from leaves(item, (*at, key))


def attention(c):
    """The attention that Axolotl will use, or None where the recipe leaves it to transformers."""
    flags = (name for flag, name in c.schema["x-attention-flags"].items() if c.cfg.get(flag))
    hybrid = "flash_attention_2" if c.cfg.get("gemma4_hybrid_attn_impl") else None
    return re.split("[:@]", c.cfg.get("attn_implementation") or next(flags, hybrid) or "")[0].strip() or None


def equipped(c):
    """The machine, the base, the chat template and the Modelfile: c.gpu, c.cpu, c.ranks, c.base, c.template, c.modelfile."""
    hardware = c.cfg.get("x_hardware") or {}
    kind = None if hardware.get("gpu") == "none" else hardware.get("gpu")
    c.cpu, c.gpu = bool(hardware) and kind is None, {}
    try:
        c.gpu = facts.gpu(kind)
    except ValueError as error:
        c.note(("x_hardware", "gpu"), str(error).partition("; ")[0], ["bf16-unsupported"])
    split = [int(c.cfg.get(key) or 1) for key in ("tensor_parallel_size", "context_parallel_size")]  # these GPUs share their rows
    many = any(value and re.match("ddp|deepspeed$|fsdp_config$|dp_shard_size$", key) for key, value in c.cfg.items()) or max(split) > 1
    c.ranks = max(1, (hardware.get("count") or 1) // max(1, split[0] * split[1])) if hardware or not many else None
    try:
        c.base = facts.base(c.cfg["base_model"]) if c.cfg.get("base_model") else {}
    except (OSError, ValueError, AttributeError, TypeError):  # a folder whose config.json is none, or a name too long for a path
        c.base = {}
    if not c.base and c.cfg.get("base_model") and not str(c.cfg["base_model"]).startswith("outputs/nano/"):  # `make base` makes it
        c.note("base_model", f"nothing is known here of {c.cfg['base_model']}", ["eot-untrained", "pad-is-eos"])
    c.modelfile_path, c.modelfile = recipe.modelfile(c.name) if c.ours and recipe.modelfile(c.name).is_file() else None, {}
    c.template = prompt.chat_template(c)
    try:
        c.modelfile = recipe.read_modelfile(c.modelfile_path) if c.modelfile_path else {}
    except ValueError as error:
        c.note((), str(error).partition("; ")[0], ["template-mismatch", "bos-in-template", "tools-in-template"])
    if c.modelfile.get("template") and not c.template:
        what = "the chat template is the tokenizer's own, which is not read here"
        c.note("chat_template", what, ["template-mismatch", "tools-in-template"])


def counted(c):
    """Look at the local datasets: c.views, and c.rows, c.sequences (packed), c.batch, c.plan as far as they follow."""
    unseen, missing = [], False
    for key in ("datasets", "test_datasets"):
        for i, spec in c.entries(key):
            path = str(spec.get("path"))
            try:
                seen = os.path.isfile(path) and os.path.getsize(path) < HUGE and data.view(path, json.dumps(spec, default=str))
            except OSError:
                seen = None
            if seen and (seen["kind"] or seen["faults"] or not seen["count"]):
                c.views.append(((key, i), key == "test_datasets", seen))
            elif keys.looks_local(path) and not os.path.exists(path):
                missing = missing or key == "datasets"
            else:
                unseen.append((key, i, path))
    train = [(c.cfg["datasets"][at[1]], view) for at, is_eval, view in c.views if not is_eval]
    rows_seen = sum(view["count"] // max(1, spec.get("shards") or 1) for spec, view in train)
    # Of a slice on the hub the rows are known, but not how long they are.
    hub = [data.named(c.cfg[key][i]) for key, i, _ in unseen if key == "datasets"]
    known = not missing and (not hub or all(hub) and not c.cfg.get("sample_packing"))
    c.rows = rows_seen + sum(hub) if known and (rows_seen or hub) else None
    share = c.cfg.get("val_set_size") or 0
    c.rows = c.rows and max(1, int(c.rows - (share if share >= 1 else share * c.rows)))  # what is held out is not trained on
    lengths = [data.tokens(turns) for _, view in train for _, turns in view["rows"]] if c.cfg.get("sample_packing") else []
    c.sequences = None
    if c.rows and lengths:  # packed to 95 %
        c.sequences = max(1, round(sum(lengths) / len(lengths) * c.rows / (0.95 * (c.cfg.get("sequence_len") or 512))))
    cfg = c.cfg | {"x_hardware": {"count": c.ranks or 1}}
    c.batch = recipe.global_batch(cfg) if c.ranks else None
    try:
        c.plan = recipe.schedule(cfg, c.rows if c.ranks else None, c.sequences if c.ranks else None)
    except ArithmeticError:  # more epochs or warm-up than a float can count
        c.plan = None
    blind(c, unseen, missing)


def blind(c, unseen, missing):
    """Say what could not be looked at, and so which rules are silent."""
    steps = [] if c.plan else ["lr-exhausted", "eval-never", "warmup-too-long", "save-without-limit"]
    for at, _, view in c.views:
        if (n := rows.compared(view)) < view["count"] - len(view["faults"]):
            what = f"{view['path']}: the first {n:,} of {view['count']:,} rows are compared with each other"
            c.note(at, what, ["near-duplicates and train-eval-leak beyond them"])
    if unseen:
        shown = ", ".join(path for *_, path in unseen[:3]) + " …" * (len(unseen) > 3)
        what = f"{shown}: on the hub, or in a form that is not read here"
        amount = ["undertrained", "overtrained"] * (not c.rows)
        c.note(unseen[0][:2], what, [*amount, *["tiny-batch"] * bool(c.cfg.get("sample_packing")), *steps, *of(rows)])
    elif not c.ranks:
        c.note((), "several GPUs, and x_hardware does not say how many", ["undertrained", "overtrained", "tiny-batch", *steps])
