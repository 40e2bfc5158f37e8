"""What lint takes from Axolotl, held to the Axolotl that is installed."""

import copy
import json
from pathlib import Path

import pytest

from scripts import recipe, schema
from scripts.rules import learning, reading

BASE = {k: v for k, v in recipe.read("recipes/pirate.yml").items() if k != "plugins" and not k.startswith(("x_", "liger_"))}
INFINITY, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def axolotl():
    """validate(changes) → the pirate with these changes as Axolotl reads it; ValueError where it refuses."""
    import os

    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    return lambda changes: validate_config(DictDefault(copy.deepcopy(BASE) | copy.deepcopy(changes)))


def test_the_schema_is_that_of_the_installed_axolotl():
    assert json.loads(schema.TARGET.read_text()) == json.loads(json.dumps(schema.build()))


def test_it_is_written_only_if_it_differs(copy, capsys):
    before = schema.TARGET.stat().st_mtime_ns
    assert schema.main([]) == 0 and capsys.readouterr().out.rstrip().endswith("as before")
    assert schema.TARGET.stat().st_mtime_ns == before
    schema.TARGET.write_text("{}")
    assert schema.main([]) == 0 and "keys of axolotl" in capsys.readouterr().out and len(schema.TARGET.read_text()) > 100_000
    assert schema.main(["more"]) == 2


def test_templates_end_as_they_do():
    found = reading.schema()["x-chat-templates"]
    assert {n: found[n]["end"] for n in ("llama3", "chatml", "gemma", "phi_4", "alpaca", "mistral_v1")} == {
        "llama3": "<|eot_id|>",
        "chatml": "<|im_end|>",
        "gemma": "<end_of_turn>",
        "phi_4": "<|im_end|>",
        "alpaca": "eos_token",
        "mistral_v1": "eos_token",
    }
    assert found["qwen_25"]["tools"] and not found["llama3"]["tools"]


VALUES = {
    "max_steps": ["3", "3.0", "1e3", 3.0, 3.5, True, None, "x", [], -1, "1_0"],
    "num_epochs": ["2e0", 1, 0.5, True, None, "x", NAN],
    "bf16": ["true", "yes", 1, 0, 2, "auto", "full", None, "False"],
    "tf32": ["on", "Y", "off", "t", "", 0.0, None],
    "output_dir": [3, None, True, ""],
    "sequence_len": [None, "512", 512.0, INFINITY],
    "lora_alpha": [16.0, 16.5, "16"],
    "lora_dropout": ["0.05", 1, None, {}],
    "val_set_size": [0, None],
    "chat_template": ["chatml", "foo", "tokenizer_default_fallback_chatml", 3],
    "special_tokens": [[], {}, {"pad_token": "x"}, {"pad_token": 3}, "x"],
    "eot_tokens": ["x", ["x"], [3], None],
    "deepspeed": [[], {}, {"a": 1}, None, 3],
    "plugins": ["x", {}, None],
    "lora_target_modules": ["all-linear", ["q_proj"], [1], {}],
    "gradient_checkpointing": ["offload", "unsloth", True, None],
    "datasets": [
        [],
        {},
        [{"path": "a"}],
        [{"path": 3}],
        [{"path": "a", "type": {"field_output": 3}}],
        [{"path": "a", "shards": "x"}],
        [{"path": "a", "roles": "x"}],
    ],
    "eval_strategy": [False, None],
    "seed": ["7", 7.5],
    "optimizer": ["adamw_torch", None],
    "lr_scheduler": ["linear", None],
    "learning_rate": ["2e-4", "x", 1, None],
    "adapter": ["foo", "qlora"],
    "attn_implementation": ["sdpa", "flash", "a/b", None],
    "lr_scheduler_kwargs": [{}, {"a": 1}, [], "x"],
}


@pytest.mark.parametrize("key", VALUES)
def test_values_are_read_as_axolotl_reads_them(axolotl, key):
    """Both take a value and read the same, or both refuse it. Lint also refuses what no run survives: numbers that are not finite."""
    for value in VALUES[key]:
        read, wrong = reading.typed(BASE | {key: value})
        try:
            theirs = axolotl({key: value})
        except (ValueError, TypeError) as error:
            assert wrong, (key, value, str(error)[:300])
            continue
        if value is NAN:
            assert wrong
            continue
        assert not wrong, (key, value, wrong)
        if isinstance(read[key], (bool, int, float)):
            assert theirs[key] == read[key] and isinstance(theirs[key], bool) is isinstance(read[key], bool), (key, value)


def test_what_lint_calls_unknown_axolotl_drops(axolotl):
    """Under `rl: dpo` a dataset loses what only supervised ones have, and the other way round."""
    entry = {
        "path": "a",
        "type": "chat_template.default",
        "field_messages": "m",
        "field_chosen": "c",
        "roles": {"user": ["x"]},
        "strange": 1,
    }
    for rl, packed in (("dpo", False), ("kto", False), (None, True)):
        changes = {
            "rl": rl,
            "datasets": [entry],
            "sample_packing": packed,
            "remove_unused_columns": False,
            "strange": 1,
            "pad_to_sequence_len": True,
        }
        theirs = axolotl(changes)
        node = {"type": "object", "properties": reading.schema()["properties"] | {"datasets": reading.datasets_node(changes)}}
        found = {at for at, *_ in reading.unknown(changes, node)}
        assert ("strange",) in found and "strange" not in theirs
        assert {key for *_, key in found if key != "strange"} == set(entry) - set(theirs["datasets"][0]) - {"strange"}, rl


SCHEDULES = [
    {"lr_scheduler": "cosine"},
    {"lr_scheduler": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1.5}},
    {"lr_scheduler": "linear"},
    {"lr_scheduler": "polynomial", "lr_scheduler_kwargs": {"power": 3, "lr_end": 1e-6}},
    {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 20, "num_stable_steps": 30, "min_lr_ratio": 0.1}},
    {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 20}},
    {"cosine_min_lr_ratio": 0.1},
    {"cosine_min_lr_ratio": 0.1, "cosine_constant_lr_ratio": 0.6},
]


@pytest.mark.parametrize("cfg", SCHEDULES, ids=lambda cfg: "-".join(map(str, cfg.values())))
@pytest.mark.parametrize("warmup", [0, 10])
def test_learning_rates_are_those_of_the_schedulers(cfg, warmup):
    import torch
    from axolotl.utils import schedulers
    from transformers.optimization import get_scheduler

    steps, optimizer = 100, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    low, until = cfg.get("cosine_min_lr_ratio"), cfg.get("cosine_constant_lr_ratio")
    if until:
        made = schedulers.get_cosine_schedule_with_warmup_decay_constant(optimizer, warmup, steps, until, low)
    elif low:
        made = schedulers.get_cosine_schedule_with_min_lr(optimizer, warmup, steps, low)
    else:
        made = get_scheduler(cfg["lr_scheduler"], optimizer, warmup, steps, scheduler_specific_kwargs=cfg.get("lr_scheduler_kwargs"))
    for step in range(steps):
        ours = learning.multiplier(cfg | {"learning_rate": 2e-4}, step, steps, warmup)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"] / 2e-4, abs=1e-6), step
        optimizer.step()
        made.step()


def test_the_recipes_name_the_schema_for_editors():
    for path in Path("recipes").glob("*.yml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=schema/axolotl.json\n")
