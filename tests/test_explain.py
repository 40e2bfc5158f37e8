import inspect
import json
import re
import resource
from pathlib import Path

import pytest
import yaml

from conftest import one_line, room, run
from scripts import explain, recipe
from scripts.manual import costs, keys
from scripts.rules import reading, rules

FIELDS = {"is", "more", "default", "when", "with", "formula", "source", "here", "mind", "rules", "try", "like", "cost", "alias"}
GUIDE = {  # the keys of the guide that this grew from, by the names it has for them
    **{"lora.r": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout", "target_modules": "lora_target_modules"},
    **{"training.epochs": "num_epochs", "batch_size": "micro_batch_size", "gradient_accumulation_steps": "gradient_accumulation_steps"},
    **{"learning_rate": "learning_rate", "warmup_ratio": "warmup_ratio", "scheduler": "lr_scheduler", "val_ratio": "val_set_size"},
    **{"max_seq_length": "sequence_len", "fp16": "fp16", "bf16": "bf16", "logging_steps": "logging_steps"},
    **{"save_steps": "save_steps", "eval_steps": "eval_steps", "save_total_limit": "save_total_limit"},
}
OTHERS = """weight_decay max_steps sample_packing gradient_checkpointing load_in_4bit load_in_8bit adapter peft_use_rslora peft_use_dora optimizer deepspeed seed
train_on_inputs chat_template eot_tokens special_tokens roles_to_train""".split()


def entries():
    return keys.known().items()


def test_entries_name_legal_keys_only_and_say_what_they_must():
    legal = reading.schema()["properties"]
    for key, entry in entries():
        assert keys.node(key) or key in legal, key
        assert entry.keys() <= FIELDS and entry.get("is") and len(entry["is"]) <= 70, key
        assert entry.get("try") or entry.get("cost"), f"{key}: neither values to plan with nor a word on the cost"
        assert "not told" not in keys.default(key), f"{key}: the schema has no default, so say what holds without it"
        for part in ("when", "with"):
            assert all(isinstance(a, str) and isinstance(b, str) for a, b in entry.get(part, {}).items()), (key, part)
        assert all(isinstance(entry.get(f, ""), str) for f in ("more", "default", "formula", "source", "mind", "cost")), key
        assert not entry.get("formula") or entry.get("source") or entry.get("here"), f"{key}: where is the formula from?"


def test_values_to_plan_with_are_ones_that_axolotl_takes():
    properties = reading.schema()["properties"]
    for key, entry in entries():
        for item in entry.get("try", []):
            for k, wanted in (item if isinstance(item, dict) else {key: item}).items():
                assert k == "as" or str(wanted) in costs.FACTOR or wanted is None or reading.fits(wanted, properties[k]), (key, k, wanted)
        assert all(other == "QUANT=" or keys.called(other) == other for other in entry.get("with", {})), key


@pytest.mark.parametrize("name", recipe.names())
def test_every_key_of_the_recipes_has_an_entry(name):
    cfg = recipe.read(f"recipes/{name}.yml")
    nested = [f"datasets.{k}" for spec in cfg.get("datasets") or [] for k in spec if k in ("type", "roles_to_train", "train_on_eot")]
    assert sorted({*cfg, *nested} - set(keys.known())) == []


def test_every_rule_of_lint_is_told_of_at_a_key():
    told = {rule for _, entry in entries() for rule in entry.get("rules", [])}
    of_all_keys = {"bad-yaml", "unknown-key", "duplicate-key", "deprecated-key", "bad-type"}
    elsewhere = {
        "bos-in-template",
        "trust-remote-code",
        "unsafe-weights",
        "telemetry",
        "secret-in-recipe",
    }  # of the Modelfile, of keys that stay unset
    assert told <= set(rules()) and told | of_all_keys | elsewhere == set(rules())


def test_a_rule_that_names_a_key_is_told_of_at_that_key():
    for rule, (function, *_) in rules().items():
        for key in re.findall(r'yield \(?"(\w+)"', inspect.getsource(function)):
            assert key not in keys.known() or rule in keys.known()[key].get("rules", []), (rule, key)


@pytest.mark.parametrize(
    "asked, key", [*GUIDE.items(), ("use_rslora", "peft_use_rslora"), ("datasets.type", "datasets.type"), ("lr", "learning_rate")]
)
def test_other_names(asked, key):
    assert keys.called(asked) == key and key in keys.known()


def test_the_keys_that_were_asked_for_are_there():
    assert all(keys.called(key) in keys.known() for key in [*GUIDE, *OTHERS])
    names = [name for key, entry in entries() for name in (key, *entry.get("alias", []))]
    assert len(names) == len(set(names)), "one name for two keys"


@pytest.mark.parametrize(
    "asked, words",
    [
        ("lora_aplha", ["unknown key 'lora_aplha'", "did you mean 'lora_alpha'?", "make explain"]),
        ("xyzzy", ["unknown key 'xyzzy'"]),
        ("temperature", ["no key of a recipe", "PARAMETER temperature"]),
        ("training.max_new_tokens", ["PARAMETER num_predict"]),
    ],
)
def test_unknown_keys(asked, words):
    one_line(room("explain", asked), *words)


def test_a_legal_key_without_an_entry_is_told_in_the_schemas_words():
    assert "neftune_noise_alpha" not in keys.known()
    said = room("explain", "neftune_noise_alpha", "pirate").stdout
    assert "Axolotl's schema says: NEFT" in said and "not set in recipes/pirate.yml" in said and "takes       a number" in said
    assert "datasets.split" not in keys.known() and "of dataset split to load" in room("explain", "datasets.split", "pirate").stdout


@pytest.mark.parametrize("key", ["lora_r", "micro_batch_size", "sequence_len", "num_epochs"])
def test_the_costs_are_those_of_make_plan(key):
    told = json.loads(room("explain", key, "pirate", "--json").stdout)
    own = {None: json.loads(room("plan", "pirate", "--json").stdout)}
    assert len(told["plans"]) >= 3 and told["plans"] != []
    for row in told["plans"]:
        now = row["value"].endswith("(now)")
        value, _, more = row["value"].partition(", ")
        changes = [] if now else [f"{key}={value}", *([more.replace(" ", "=")] if more else [])]
        name = "+".join(["pirate", *changes])
        theirs = own[None] if now else json.loads(room("plan", name, "--json").stdout)
        same = (
            "trainable_parameters",
            "minutes",
            "cost",
            "steps",
            "epochs",
            "warmup_steps",
            "global_batch",
            "disk_gib",
            "vram_gib",
            "efficiency",
        )
        assert {k: row["plan"][k] for k in same} == {k: theirs[k] for k in same}, row["value"]
        assert now or any(row["plan"][k] != own[None][k] for k in same), "a value that changes nothing need not be tried"


def test_the_table_shows_what_differs_and_nothing_else():
    lines = room("explain", "lora_r", "pirate").stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("lora_r "))
    head, *rows = lines[at:]
    assert (
        "parameters" in head
        and "GiB of a GPU" in head
        and "adapter" in head
        and not any(w in head for w in ("steps", "epochs", "batch", "data"))
    )
    assert [row.split()[0] for row in rows] == ["8", "16", "32", "64", "128"] and rows[3].startswith("64 (now)   167,772,160 ")
    assert all(row.index("MiB") == rows[0].index("MiB") for row in rows) and "320 MiB" in rows[3] and " 83,886,080 " in rows[2]
    said = room("explain", "lora_alpha", "pirate").stdout
    assert "nothing that `make plan` of pirate on 4 × a100-80g counts, with 16, 64" in said and "\nlora_alpha  " not in said


def test_numbers_of_this_recipe_in_the_formulae():
    assert "here 32 / 64 = 0.5" in room("explain", "alpha", "pirate").stdout
    said = room("explain", "lora_alpha", "pirate+lora_r=16").stdout
    assert "here 32 / 16 = 2" in said and "pirate+lora_r=16" in said
    assert "32, in SET of pirate+lora_alpha=32" in room("explain", "lora_alpha", "pirate+lora_alpha=32").stdout
    assert "here 1 × 2 × 4 = 8" in room("explain", "micro_batch_size", "pirate").stdout
    assert "here 1 × 4 × 2 = 8" in room("explain", "micro_batch_size", "pirate", "--gpus", "2").stdout
    assert "64 × 2,621,440 = 167,772,160" in " ".join(room("explain", "r", "pirate").stdout.split())


def test_a_key_that_the_recipe_lacks_is_planned_too():
    told = json.loads(room("explain", "max_steps", "pirate", "--json").stdout)
    assert told["set"] is False and [row["value"] for row in told["plans"]] == ["not set (now)", "14", "56"]
    assert [row["plan"]["epochs"] for row in told["plans"]] == [2.0, 1.0, 4.0]


def test_any_axolotl_recipe_and_what_the_plan_cannot_tell(tmp_path):
    path = tmp_path / "mine.yml"
    cfg = recipe.read("recipes/pirate.yml") | {"lora_r": 8}
    path.write_text(yaml.safe_dump(cfg))
    said = room("explain", "lora_r", path).stdout
    assert re.search(rf"here        8, in {re.escape(str(path))}:\d+\n", said) and "\n8 (now) " in said
    path.write_text(yaml.safe_dump(cfg | {"datasets": [{"path": "somebody/rows", "type": "chat_template"}]}))
    said = " ".join(room("explain", "lora_r", path).stdout.split())
    assert "`make plan` cannot tell of mine: somebody/rows: not a local file" in said and "weak-adapter" in said
    assert "\n8 (now) " in room("explain", "lora_r", path, "--rows", "45000").stdout
    one_line(room("explain", "lora_r", "nothing"), "no recipe 'nothing'")


def test_half_and_double_are_values_of_their_kind():
    assert [costs.scaled(x, "half") for x in (8, 0.05, 2e-4)] == [4, 0.025, 1e-4]
    assert all(costs.scaled(x, "half") is costs.IMPOSSIBLE for x in (1, 3, None, True, 0, "cosine")) and costs.scaled(1, "double") == 2
    assert [keys.written(x) for x in (2e-4, 0.05, True, None, ["q_proj"], "2e-4", 1.0)] == [
        "2e-4",
        "0.05",
        "true",
        "null",
        "[q_proj]",
        "2e-4",
        "1",
    ]


@pytest.mark.parametrize("name", recipe.names())
def test_every_page_of_a_recipe_is_narrow_plain_text(name, monkeypatch):
    """Planned once for all keys: what differs between keys is not the width of a plan's figures."""
    cfg, path = recipe.load(name), f"recipes/{name}.yml"
    told = costs.plans([cfg], cfg, name, [])[0]
    monkeypatch.setattr(costs, "plans", lambda recipes, *_: [told] * len(recipes))
    pages = [explain.page(explain.explained(key, cfg, name, []), name, key, path) for key in keys.known()] + [explain.listing(cfg, path)]
    assert all(len(line) <= 120 and line.isprintable() and line == line.rstrip() for page in pages for line in page)


def test_make_explain_lists_the_keys_and_explains_one():
    made = run("make", "explain")
    assert made.returncode == 0 and "\nThe adapter\n" in made.stdout and "\x1b" not in made.stdout, made.stderr
    assert (
        all(re.search(rf"^  {re.escape(key)} ", made.stdout, re.M) for key in keys.known())
        and max(map(len, made.stdout.splitlines())) <= 120
    )
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    made = run("make", "explain", "KEY=lora_r", "RECIPE=pirate-nano", "JSON=1")
    assert made.returncode == 0 and json.loads(made.stdout)["value"] == 64, made.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 3, "two seconds, also on a machine that is busy with something else"


def test_nothing_heavy_is_needed():
    code = "import sys, scripts.explain, scripts.manual.costs; print([m for m in ('torch', 'numpy', 'tokenizers', 'transformers') if m in sys.modules])"
    made = run(Path(".venv/bin/python"), "-c", code)
    assert made.stdout.strip() == "[]", made.stderr
