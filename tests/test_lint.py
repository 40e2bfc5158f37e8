import copy as deep
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, room, run

from scripts import data, lint
from scripts.rules import rules

GONE = object()
WORDS = "harbour lantern copper violin meadow thunder pocket ribbon winter saddle marble garden candle river basket mirror orchard pepper anchor feather".split()


def row(n, **more):
    """A conversation unlike the others."""
    words = [WORDS[(n * 7 + i * (1 + n % 5)) % len(WORDS)] + str(n) for i in range(12)]
    turns = [{"role": "user", "content": " ".join(words[:6])}, {"role": "assistant", "content": " ".join(words[6:])}]
    return {"messages": turns, **more}


def turns(*pairs):
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


ENTRY = {"path": "train.jsonl", "ds_type": "json", "type": "chat_template"}
GOOD = {
    "base_model": "meta-llama/Llama-3.1-8B-Instruct",
    "load_in_4bit": True,
    "adapter": "qlora",
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "chat_template": "llama3",
    "special_tokens": {"pad_token": "<|finetune_right_pad_id|>"},
    "datasets": [ENTRY],
    "test_datasets": [ENTRY | {"path": "eval.jsonl", "split": "train"}],
    "output_dir": "outputs/r/training",
    "sequence_len": 512,
    "num_epochs": 2,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "optimizer": "adamw_torch",
    "lr_scheduler": "cosine",
    "learning_rate": 2e-4,
    "warmup_ratio": 0.1,
    "evals_per_epoch": 2,
    "saves_per_epoch": 1,
    "seed": 42,
    "bf16": True,
    "attn_implementation": "flash_attention_2",
    "x_hardware": {"gpu": "a100-80g", "count": 1},
}
CPU = {"x_hardware": {"gpu": "none", "count": 1}, "bf16": False, "attn_implementation": "sdpa"}
CPU |= {f"lora_{k}_kernel": False for k in ("qkv", "mlp", "o")} | {"plugins": ["scripts.cpu.CpuPlugin"]}
SGD = {"optimizer": "sgd"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with 40 rows to train on and 5 to evaluate with."""
    monkeypatch.chdir(tmp_path)
    data.view.cache_clear()  # a process reads a dataset once, and these have the same names in every test
    write_rows("train.jsonl", [row(n) for n in range(40)])
    write_rows("eval.jsonl", [row(n) for n in range(100, 105)])
    return tmp_path


def write_rows(path, rows):
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in rows))


def dump(cfg):
    return yaml.dump(cfg, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)


def changed(changes):
    cfg = deep.deepcopy(GOOD) | changes
    return {k: v for k, v in cfg.items() if v is not GONE}


def findings(cfg, name="r.yml"):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(cfg if isinstance(cfg, str) else dump(changed(cfg)))
    return lint.check(name)[0]


def names(found, level=None):
    return {f["rule"] for f in found if level in (None, f["level"])}


def test_a_good_recipe_has_no_findings(here):
    assert findings({}) == []


# rule, what trips it, what nearly does
CASES = [
    ("bad-yaml", {3: "x"}, {"x_3": "x"}),
    ("unknown-key", {"lora_aplha": 16}, {"x_lora_aplha": 16}),
    ("unknown-key", {"datasets": [ENTRY | {"pth": "x"}]}, {"datasets": [ENTRY | {"name": "x"}]}),
    ("unknown-key", {"x_hardware": {"gpu": "none", "cuont": 2}}, {"x_hardware": {"gpu": "none", "count": 2}}),
    ("unknown-key", {"liger_rope": True}, {"liger_rope": True, "plugins": ["axolotl.integrations.liger.LigerPlugin"]}),
    ("unknown-key", {"strange": 1}, {"strange": 1, "plugins": ["elsewhere.Plugin"]}),
    ("unknown-key", {"rope_scaling": {"type": "linear"}}, {"rope_scaling": None}),
    (
        "unknown-key",
        {"rl": "dpo", "datasets": [{"path": "a/b", "roles": {"user": ["x"]}}]},
        {"datasets": [{"path": "a/b", "roles": {"user": ["x"]}}]},
    ),
    ("unknown-key", {"fsdp": ["full_shard"]}, {"fsdp_config": {"offload_params": True}}),
    ("deprecated-key", {"attn_implementation": GONE, "flash_attention": True}, {"flash_attention": None}),
    ("deprecated-key", {"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}),
    ("bad-type", {"lora_r": "x"}, {"lora_r": "16"}),
    ("bad-type", {"lora_r": 0}, {"lora_r": 1, "lora_alpha": 1}),
    ("bad-type", {"max_steps": "1e3"}, {"max_steps": 40.0}),
    ("bad-type", {"optimizer": "adam_torch"}, {"optimizer": "adamw_torch_fused"}),
    ("bad-type", {"lr_scheduler": "cosin"}, {"lr_scheduler": "rex"}),
    ("bad-type", {"adapter": "loraa"}, {"adapter": "loraa", "plugins": ["elsewhere.Plugin"]}),
    ("bad-type", {"eval_strategy": False}, {"eval_strategy": "no"}),
    ("bad-type", {"output_dir": None}, {"gradient_checkpointing": None}),
    ("bad-type", {"learning_rate": GONE}, {"learning_rate": "2e-4"}),
    ("bad-type", {"datasets": [{"path": "a/b", "type": "sharegpt"}]}, {"datasets": [{"path": "a/b", "type": "chat_template"}]}),
    ("bad-type", {"datasets": GONE}, {"datasets": GONE, "pretraining_dataset": [{"path": "a/b"}]}),
    ("bad-type", {"x_hardware": {"count": 0}}, {"x_hardware": {"count": 1}}),
    ("missing-file", {"deepspeed": "ds/zero2.json"}, {"deepspeed": "eval.jsonl"}),
    (
        "missing-file",
        {"chat_template": "jinja", "chat_template_jinja": "t.jinja"},
        {"chat_template": "jinja", "chat_template_jinja": "{{ x }}"},
    ),
    ("missing-file", {"datasets": [ENTRY | {"path": "./rows"}]}, {"datasets": [ENTRY | {"path": "org/rows"}]}),
    ("bad-waiver", {"x_waive": {"no-sead": "why"}}, {"x_waive": {"no-seed": "why"}}),
    ("bad-waiver", {"x_waive": {"no-seed": " "}}, {"x_waive": {}}),
    ("bad-refusal", {"x_refused": {"no-sead": "why"}}, {"seed": GONE, "x_refused": {"no-seed": "why"}}),
    ("bad-refusal", {"seed": GONE, "x_refused": {"no-seed": " "}}, {"x_refused": {}}),
    ("bad-refusal", {"x_refused": {"no-seed": "it finds nothing here"}}, {"x_refused": None}),
    ("no-gradient", {"lora_dropout": 1.0}, {"lora_dropout": 0.99}),
    ("no-gradient", {"lora_alpha": 0}, {"lora_alpha": 1}),
    ("no-gradient", {"learning_rate": 0}, {"learning_rate": 1e-9}),
    (
        "no-gradient",
        {"lora_target_modules": ["q_proj", "lm_head"], "liger_fused_linear_cross_entropy": True},
        {"lora_target_modules": ["q_proj", "lm_head"], "liger_fused_linear_cross_entropy": False},
    ),
    ("undertrained", {"max_steps": 4}, {"max_steps": 5}),
    ("undertrained", {"num_epochs": 0.5}, {"num_epochs": 1}),
    (
        "undertrained",
        {"max_steps": 1, "x_hardware": {"gpu": "t4", "count": 4}, "bf16": False},
        {"max_steps": 2, "x_hardware": {"gpu": "t4", "count": 4}, "bf16": False},
    ),
    (
        "undertrained",
        {"max_steps": 4, "test_datasets": GONE, "val_set_size": 0.1},
        {"max_steps": 5, "test_datasets": GONE, "val_set_size": 0.1},
    ),
    ("overtrained", {"num_epochs": 5.1}, {"num_epochs": 5}),
    ("overtrained", {"num_epochs": 9}, {"num_epochs": 9, "rl": "orpo"}),
    (
        "lr-exhausted",
        {"lr_scheduler": "polynomial", "lr_scheduler_kwargs": {"power": 6}},
        {"lr_scheduler": "polynomial", "lr_scheduler_kwargs": {"power": 2}},
    ),
    (
        "lr-exhausted",
        {"cosine_min_lr_ratio": 0.005, "cosine_constant_lr_ratio": 0.5},
        {"cosine_min_lr_ratio": 0.1, "cosine_constant_lr_ratio": 0.5},
    ),
    (
        "lr-exhausted",
        {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_stable_steps": 2, "num_decay_steps": 2}},
        {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
    ),
    ("lr-range", {"learning_rate": 2e-5}, {"learning_rate": 5e-5}),
    ("lr-range", {"learning_rate": 2e-3}, {"learning_rate": 2e-3} | SGD),
    ("lr-range", {"adapter": GONE, "load_in_4bit": False}, {"adapter": GONE, "load_in_4bit": False, "learning_rate": 2e-5}),
    ("no-warmup", {"warmup_ratio": 0}, {"warmup_ratio": GONE}),
    ("no-warmup", {"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_ratio": 0, "warmup_steps": 2}),
    ("warmup-too-long", {"warmup_ratio": 0.6}, {"warmup_ratio": 0.5}),
    ("tiny-batch", {"gradient_accumulation_steps": 3}, {"gradient_accumulation_steps": 2, "x_hardware": {"gpu": "a100-80g", "count": 2}}),
    ("tiny-batch", {"gradient_accumulation_steps": 1, "sample_packing": False}, {"gradient_accumulation_steps": 1, "sample_packing": True}),
    ("tiny-batch", {"micro_batch_size": 1, "x_hardware": GONE}, {"micro_batch_size": 1, "x_hardware": GONE, "deepspeed": "eval.jsonl"}),
    ("weak-adapter", {"lora_r": 64, "lora_alpha": 15}, {"lora_r": 64, "lora_alpha": 16}),
    ("weak-adapter", {"lora_r": 4, "lora_alpha": 33}, {"lora_r": 4, "lora_alpha": 32}),
    ("weak-adapter", {"lora_r": 64, "lora_alpha": 8}, {"lora_r": 64, "lora_alpha": 8, "peft_use_rslora": True}),
    (
        "narrow-targets",
        {"lora_target_linear": GONE, "lora_target_modules": ["q_proj", "v_proj"]},
        {"lora_target_modules": ["q_proj", "v_proj"]},
    ),
    (
        "narrow-targets",
        {"lora_target_linear": GONE, "lora_target_modules": ["qkv_proj"]},
        {"lora_target_linear": GONE, "lora_target_modules": ["q_proj", "up_proj"]},
    ),
    ("eval-missing", {"test_datasets": GONE}, {"test_datasets": GONE, "val_set_size": 0.1}),
    ("eval-never", {"evals_per_epoch": GONE}, {"evals_per_epoch": GONE, "eval_strategy": "epoch"}),
    ("eval-never", {"evals_per_epoch": 1, "num_epochs": 1}, {"evals_per_epoch": 1, "num_epochs": 2}),
    ("eval-never", {"evals_per_epoch": GONE, "eval_steps": 11}, {"evals_per_epoch": GONE, "eval_steps": 10}),
    ("eval-never", {"saves_per_epoch": GONE, "save_steps": 11}, {"saves_per_epoch": GONE, "save_steps": 0.5}),
    ("save-without-limit", {"saves_per_epoch": 3}, {"saves_per_epoch": 2}),
    ("save-without-limit", {"saves_per_epoch": GONE, "save_steps": 2}, {"saves_per_epoch": GONE, "save_steps": 2, "save_total_limit": 2}),
    ("no-seed", {"seed": GONE}, {"seed": None}),  # Axolotl sets an empty one to 42
    (
        "eot-untrained",
        {"base_model": "meta-llama/Llama-3.1-8B"},
        {"base_model": "meta-llama/Llama-3.1-8B", "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    ("eot-untrained", {"base_model": "meta-llama/Llama-3.1-8B"}, {"base_model": "meta-llama/Llama-3.1-8B", "chat_template": "alpaca"}),
    ("pad-is-eos", {"special_tokens": {"pad_token": "<|eot_id|>"}}, {"special_tokens": {"pad_token": "<|end_of_text|>"}}),
    ("pad-is-eos", {"special_tokens": GONE}, {"special_tokens": GONE, "base_model": "Qwen/Qwen3-0.6B", "chat_template": "qwen3"}),
    (
        "packing-without-flash",
        {"sample_packing": True, "attn_implementation": GONE},
        {"sample_packing": True, "attn_implementation": "kernels-community/flash-attn3@v1"},
    ),
    (
        "packing-without-flash",
        {"sample_packing": True, "attn_implementation": "fp8"},
        {"sample_packing": True, "attn_implementation": GONE, "sage_attention": True},
    ),
    (
        "packing-slow",
        {"sample_packing": True, "attn_implementation": "sdpa"},
        {"sample_packing": True, "attn_implementation": "sdpa", "sdpa_varlen": True},
    ),
    ("zero3-qlora", {"deepspeed": "deepspeed_configs/zero3_bf16.json"}, {"deepspeed": "deepspeed_configs/zero2.json"}),
    (
        "zero3-qlora",
        {"deepspeed": {"zero_optimization": {"stage": 3}}},
        {"deepspeed": {"zero_optimization": {"stage": 3}}, "adapter": "lora", "load_in_4bit": False},
    ),
    (
        "kernels-conflict",
        {"adapter": "lora", "load_in_4bit": False, "load_in_8bit": True, "lora_o_kernel": True},
        {"lora_o_kernel": True, "peft_use_dora": True},
    ),
    (
        "kernels-conflict",
        {"chunked_cross_entropy": True, "cut_cross_entropy": True},
        {"chunked_cross_entropy": True, "cut_cross_entropy": False},
    ),
    ("kernels-twice", {"lora_mlp_kernel": True, "liger_glu_activation": True}, {"lora_mlp_kernel": True, "liger_glu_activation": False}),
    ("bf16-unsupported", {"x_hardware": {"gpu": "t4", "count": 1}}, {"x_hardware": {"gpu": "t4", "count": 1}, "bf16": "auto"}),
    ("cpu-kernels", CPU | {"lora_qkv_kernel": True}, CPU),
    (
        "cpu-kernels",
        CPU | {f"lora_{k}_kernel": GONE for k in ("qkv", "mlp", "o")},
        CPU | {"lora_qkv_kernel": GONE, "lora_mlp_kernel": GONE},
    ),
    ("cpu-kernels", CPU | {"attn_implementation": "flash_attention_2"}, CPU | {"attn_implementation": "flex_attention"}),
    ("cpu-eval-gradients", CPU | {"plugins": []}, CPU | {"plugins": [], "test_datasets": GONE}),
    ("trust-remote-code", {"trust_remote_code": True}, {"trust_remote_code": False}),
    ("trust-remote-code", {"datasets": [ENTRY | {"trust_remote_code": "yes"}]}, {"datasets": [ENTRY | {"trust_remote_code": "no"}]}),
    ("unsafe-weights", {"save_safetensors": False}, {"save_safetensors": True}),
    ("telemetry", {"wandb_project": "x"}, {"wandb_project": "x", "wandb_mode": "offline"}),
    ("telemetry", {"hub_model_id": "me/x"}, {"wandb_project": "x", "use_wandb": False}),
    ("secret-in-recipe", {"x_note": "hf_" + "a" * 20}, {"x_note": "hf_" + "a" * 9}),
    ("secret-in-recipe", {"comet_api_key": "0123456789abcdef"}, {"special_tokens": {"pad_token": "0123456789abcdef"}}),
    ("secret-in-recipe", {"x_hook": "https://me:pass@example.com"}, {"x_hook": "https://example.com/a@b"}),
    ("truncated", {"sequence_len": 25}, {"sequence_len": 40}),
]


@pytest.mark.parametrize("rule, trips, near", CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_rule_trips_and_nearly_does(here, rule, trips, near):
    found = [f for f in findings(trips) if f["rule"] == rule]
    assert found and all(f["level"] == rules()[rule][1] and f["message"] and f["fix"] and f["line"] > 0 for f in found), found
    assert rule not in names(findings(near))


ASK, REPLY = ("user", "one two three"), ("assistant", "four five six seven")
JINJA = {"chat_template": "jinja", "chat_template_jinja": "{{ messages }}"}
ROWS = [
    ("bad-row", [{"messages": "x"}], [row(1)], {}),
    ("bad-row", [{"text": 3}], [{"text": "x"}], {"type": "completion"}),
    ("empty-reply", [turns(ASK, ("assistant", " "))], [turns(ASK, ("assistant", "-"))], {}),
    (
        "empty-reply",
        [turns(ASK, ("assistant", ""))],
        [{"messages": [turns(ASK)["messages"][0], {"role": "assistant", "content": "", "tool_calls": [{}]}]}],
        {},
    ),
    ("empty-reply", [{"instruction": "x", "output": ""}], [{"instruction": "x", "output": "y"}], {"type": "alpaca"}),
    ("untrimmed", [turns(ASK, ("assistant", "a b c d "))], [turns(ASK, ("assistant", "a b c  d"))], JINJA),
    ("duplicate-rows", [row(1), row(1)], [row(1), row(2)], {}),
    (
        "near-duplicates",
        [row(1), turns(*[(m["role"], m["content"] + " x" * (m["role"] == "user")) for m in row(1)["messages"]])],
        [row(1), row(2)],
        {},
    ),
    ("train-eval-leak", [row(100)], [row(99)], {}),
    ("role-order", [turns(ASK, REPLY, REPLY)], [turns(("system", "x"), ASK, REPLY, ("tool", "x"), REPLY)], {}),
    ("role-order", [turns(REPLY)], [turns(("observer", "x"), ASK, REPLY)], {}),
    ("role-order", [turns(ASK, REPLY, ASK)], [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}], {}),
    ("truncated", [turns(ASK, ("assistant", "word " * 700))], [turns(ASK, ("assistant", "word " * 300))], {}),
    ("short-replies", [turns(ASK, ("assistant", "A")), row(1), row(2)], [turns(ASK, ("assistant", "A")), row(1), row(2), row(3)], {}),
]


@pytest.mark.parametrize("rule, bad, good, changes", ROWS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_rule_on_rows_trips_and_nearly_does(here, rule, bad, good, changes):
    kind, cfg = changes.get("type"), {k: v for k, v in changes.items() if k != "type"}
    for name, rows in (("bad.jsonl", bad), ("good.jsonl", good)):
        write_rows(name, rows)
        found = findings(cfg | {"datasets": [ENTRY | {"path": name} | ({"type": kind} if kind else {})]})
        assert (rule in names(found)) is (name == "bad.jsonl"), found
        assert all(f["path"] in (name, "r.yml", "eval.jsonl") and f["line"] > 0 for f in found)


@pytest.fixture
def house(here):
    """A folder with recipes/, and modelfiles/ that fit GOOD's llama3 template."""
    (here / "modelfiles").mkdir()
    (here / "modelfiles/r.Modelfile").write_text((ROOT / "modelfiles/pirate.Modelfile").read_text())
    return here


HOUSE = [
    ("name-mismatch", {"output_dir": "outputs/s/training"}, {"output_dir": "outputs/r/training"}, "", ""),
    ("name-mismatch", {"datasets": [{"path": "datasets/s/x.jsonl"}]}, {"datasets": [{"path": "datasets/r/x.jsonl"}]}, "", ""),
    ("template-mismatch", {"chat_template": "chatml"}, {"chat_template": "llama3"}, "", ""),
    ("template-mismatch", {"eot_tokens": ["<|eom_id|>"]}, {"eot_tokens": ["<|end_of_text|>"]}, "", ""),
    ("template-mismatch", {}, {}, ("PARAMETER stop <|eot_id|>\n", ""), ("PARAMETER stop <|start_header_id|>\n", "")),
    ("bos-in-template", {}, {}, ('"""{{-', '"""<|begin_of_text|>{{-'), ("# Word", "# <|begin_of_text|>")),
    ("tools-in-template", {"chat_template": "llama4"}, {"chat_template": "llama3"}, "", ""),
]


@pytest.mark.parametrize("rule, trips, near, bad, good", HOUSE, ids=lambda x: x if isinstance(x, str) and x else "")
def test_a_rule_on_the_recipes_siblings_trips_and_nearly_does(house, rule, trips, near, bad, good):
    path, text = house / "modelfiles/r.Modelfile", (ROOT / "modelfiles/pirate.Modelfile").read_text()
    for cfg, edit, wanted in ((trips, bad, True), (near, good, False)):
        path.write_text(text.replace(*edit) if edit else text)
        assert (rule in names(findings(cfg, "recipes/r.yml"))) is wanted
    assert rule not in names(findings(trips, "elsewhere/r.yml"))  # another folder's recipes have no siblings here


def test_a_recipe_without_a_modelfile_is_told_so(house):
    assert "name-mismatch" in names(findings({"output_dir": "outputs/s/x"}, "recipes/s.yml"))
    assert "name-mismatch" not in names(findings({"output_dir": "outputs/r-nano/x"}, "recipes/r-nano.yml"))


def test_duplicate_keys_and_the_second_line(here):
    (found,) = findings(dump(changed({})) + "seed: 1\n")
    assert (found["rule"], found["line"]) == ("duplicate-key", len(Path("r.yml").read_text().splitlines()))


def test_every_rule_is_tested_and_in_the_readme():
    tested = {c[0] for c in CASES + ROWS + HOUSE} | {"duplicate-key"}
    assert tested == set(rules())
    shown = re.search(r"<!-- rules -->\n(.*)\n<!-- /rules -->", (ROOT / "recipes/README.md").read_text(), re.S)[1]
    assert shown == lint.table() and all(line.count(" | ") == 5 for line in shown.splitlines()[2:])
    assert f"{len(tested)} rules" in (ROOT / "README.md").read_text()


def test_findings_name_the_line_of_their_key(here):
    found = findings({"lora_r": "x", "datasets": [ENTRY | {"pth": 1}]})
    lines = Path("r.yml").read_text().splitlines()
    assert {lines[f["line"] - 1].strip(" -") for f in found} == {"lora_r: x", "pth: 1"}


def test_merged_and_aliased_keys_are_read_and_found(here):
    text = dump(changed({"lora_r": GONE, "lora_alpha": GONE})) + "<<: *b\n"
    (found,) = findings("x_base: &b\n  lora_r: 16\n  lora_alpha: 1\n  seed: 3\n" + text)
    assert (found["rule"], found["line"]) == ("weak-adapter", 3)


def test_a_waived_finding_is_counted_and_silent(here, capsys):
    assert names(findings({"seed": GONE, "x_waive": {"no-seed": "a test"}})) == set()
    assert lint.main(["r.yml"]) == 0 and "0 errors, 0 warnings, 1 waived" in capsys.readouterr().out
    assert names(findings({"seed": GONE, "x_waive": {"no-seed": True}})) == {"no-seed", "bad-waiver"}


# --- recipes in other styles ---

OTHER = {
    "full": "base_model: Qwen/Qwen3-0.6B\ndatasets: [{path: org/set, type: alpaca}]\nval_set_size: 0.1\nevals_per_epoch: 4\nlearning_rate: 1e-5\nnum_epochs: 3",
    "dpo": "rl: dpo\ndatasets:\n  - {path: org/pairs, split: train, type: chat_template.default, field_chosen: chosen, field_rejected: rejected}",
    "kto": "rl: kto\nrl_beta: 0.5\nkto_desirable_weight: 0.2\nremove_unused_columns: false\ndatasets: [{path: org/kto, type: llama3.ultra, split: train}]",
    "grpo": "rl: grpo\ntrl: {beta: 0.001, use_vllm: true, reward_funcs: [mine.reward]}\ndatasets: [{path: org/maths, type: mine.prompt}]",
    "multimodal": "processor_type: AutoProcessor\nskip_prepare_dataset: true\nremove_unused_columns: false\ndatasets: [{path: org/pictures, type: chat_template, field_messages: messages}]",
    "pretraining": "pretraining_dataset: [{path: org/web, name: en, type: pretrain, text_column: text}]\nmax_steps: 1000\nsample_packing: true\nattn_implementation: flash_attention_2",
    "gptq": "gptq: true\nadapter: lora\nlora_r: 8\nlora_alpha: 32\nlora_target_modules: [k_proj, o_proj, q_proj, v_proj, up_proj]\ndatasets: [{path: org/set, type: alpaca}]",
    "zero3": "deepspeed: deepspeed_configs/zero3_bf16.json\nflash_attention: true\ndatasets: [{path: org/set, name: b, type: completion, field: text}]",
    "fsdp": "fsdp_version: 2\nfsdp_config: {offload_params: false, state_dict_type: FULL_STATE_DICT}\ndatasets: [{path: s3://bucket/rows.jsonl, type: {field_instruction: q, field_output: a}}]",
    "plug-in": "plugins: [mine.Plugin]\nmine_strength: 3\nadapter: mine\ndatasets: [{path: org/set, type: mine}]",
}


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_any_axolotl_recipe_is_taken_and_what_is_not_checked_is_said(here, text):
    base = "" if "base_model" in text else "base_model: org/model\nlearning_rate: 2e-5\n"
    found = findings(base + text + "\n")
    assert names(found, "error") <= {"missing-file"}, found  # the DeepSpeed config
    notes = [f for f in found if f["level"] == "note"]
    assert 1 <= len(notes) <= 3 and all(set(re.findall(r"[a-z0-9]+-[a-z0-9-]+", f["fix"])) <= set(rules()) for f in notes), notes


# --- mending ---


def test_fix_touches_the_faulty_lines_only(copy):
    good = Path("recipes/pirate.yml").read_text()
    bad = good.replace("lora_alpha: 32", "lora_aplha: 32").replace("liger_glu_activation: false ", "liger_glu_activation: true ")
    bad = bad.replace("seed: 42\n", "").replace("# --- export ---", "save_safetensors: false   # pickle\n\n# --- export ---")
    Path("recipes/pirate.yml").write_text(bad)
    before = Path("recipes/pirate-nano.yml").stat().st_mtime_ns
    result = room("lint", "--fix")
    assert result.returncode == 0 and "recipes/pirate.yml: 4 mended" in result.stdout, result.stdout + result.stderr
    wanted = bad.replace("lora_aplha", "lora_alpha").replace("liger_glu_activation: true ", "liger_glu_activation: false ")
    assert Path("recipes/pirate.yml").read_text() == wanted.replace("save_safetensors: false ", "save_safetensors: true ") + "seed: 42\n"
    assert Path("recipes/pirate-nano.yml").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "text, change, after",
    [
        ("a: 1 # x\r\nb: 2\r\n", ("set", "a", False), "a: false # x\r\nb: 2\r\n"),
        ("a: 1\r\n", ("set", "b", 2), "a: 1\r\nb: 2\r\n"),
        ('"a":   "x"  # y', ("rename", "a", "b"), 'b:   "x"  # y'),
        ("a:\nb: 1\n", ("set", "a", True), "a: true\nb: 1\n"),
        ("a: é\nb: 1\n", ("set", "b", 2), "a: é\nb: 2\n"),
        ("a:\n  - 1\n  - 2\nb: 1\n", ("set", "a", "sdpa"), None),  # would take the lines' ends along
        ("a: &x 1\nb: *x\n", ("set", "b", 2), None),
        ("a: &x 1\nb: *x\n", ("set", "a", 2), None),
        ("{a: 1}\n", ("set", "b", 2), None),
        ("{a: 1, c: 3}\n", ("set", "a", 2), "{a: 2, c: 3}\n"),
        ("a: 1\n...\n", ("set", "b", 2), None),
        ("x: &x {a: 1}\n<<: *x\n", ("set", "a", 2), "x: &x {a: 1}\n<<: *x\na: 2\n"),
    ],
)
def test_an_edit_changes_one_value_or_nothing(text, change, after):
    assert lint.edited(text, change) == after


def test_a_clean_file_stays_as_it_is(here):
    findings("".join(f"{line}   # why\n\n" for line in yaml.safe_dump(changed({}), default_flow_style=None).splitlines()))
    before, when = Path("r.yml").read_bytes(), Path("r.yml").stat().st_mtime_ns
    assert lint.main(["r.yml", "--fix"]) == 0
    assert (Path("r.yml").read_bytes(), Path("r.yml").stat().st_mtime_ns) == (before, when)


def test_a_waived_finding_is_not_mended(here):
    findings({"seed": GONE, "x_waive": {"no-seed": "a test"}})
    assert lint.main(["r.yml", "--fix"]) == 0 and "\nseed:" not in Path("r.yml").read_text()


# --- the command ---


def test_exit_codes_and_json(here, capsys):
    findings({"seed": GONE})
    assert [lint.main(["r.yml"]), lint.main(["r.yml", "--strict"])] == [0, 1]
    findings({"lora_r": "x", "seed": GONE})
    capsys.readouterr()
    assert lint.main(["r.yml", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [set(f) for f in found] == [{"path", "line", "rule", "level", "message", "fix"}] * 2
    assert lint.main(["r.yml", "--json", "--fix"]) == 1
    assert [f["rule"] for f in json.loads(capsys.readouterr().out)] == ["bad-type"]
    assert lint.main(["r.yml"]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"r\.yml:4: error bad-type: lora_r is \"x\"; Axolotl takes an integer of at least 1; mend the value", first)
    assert last == "lint        1 recipe: 1 error, 0 warnings"


def test_paths(here, capsys):
    findings({"seed": GONE})
    Path("sub").mkdir()
    findings({"seed": GONE}, "sub/a.yaml")
    assert lint.main(["r.yml", "./r.yml", str(here / "r.yml"), "sub", "sub/a.yaml"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out[:-1]] == ["r.yml", "sub/a.yaml"] and "2 recipes" in out[-1]
    (here / "empty").mkdir()
    for path, words in (("none.yml", "no such file or folder"), ("empty", "no recipes"), ("x" * 5000, "too long")):
        with pytest.raises((ValueError, OSError), match=words):
            lint.main([path, "--json"])
    assert capsys.readouterr().out == ""


def test_a_recipe_elsewhere_is_told_from_where_its_files_are_seen(here, monkeypatch):
    findings({}, "sub/r.yml")
    write_rows("sub/train.jsonl", [row(1)])
    monkeypatch.chdir("sub")
    assert "missing-file" in names(lint.check("r.yml")[0])  # eval.jsonl
    (here / "far").mkdir()
    monkeypatch.chdir(here / "far")
    found = [f for f in lint.check("../sub/r.yml")[0] if f["rule"] == "missing-file"]
    assert {f["fix"] for f in found} == {f"start from {here / 'sub'}, where it is", f"start from {here}, where it is"}


def test_all_recipes_of_the_repository_are_clean_and_quickly_so():
    """As `make lint` runs: every recipe, nothing heavy imported, nothing said but notes, what is there to be refused, and the summary. (Its second is in `make bench`.)"""
    code = "import sys; from scripts import lint; code = lint.main(['--strict']); print(*(m for m in ('torch', 'axolotl', 'numpy', 'jinja2') if m in sys.modules)); sys.exit(code)"
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0 and result.stdout.endswith("\n\n"), result.stdout + result.stderr
    assert all(": note " in line or ": refused " in line for line in result.stdout.splitlines()[:-2]), result.stdout


# --- what no one would write ---

HOSTILE = {
    "empty": b"",
    "a comment": b"# nothing\n",
    "a list": b"- base_model: x\n",
    "a word": b"word",
    "binary": bytes(range(256)) * 20,
    "UTF-16": "base_model: x\n".encode("utf-16"),
    "large": b"a: " + b"x" * 5_000_000,
    "tabs": b"a:\n\tb: 1\n",
    "a tag": b"a: !!python/object/apply:os.system [ls]\n",
    "no date": b"a: 2026-13-01\n",
    "an unknown alias": b"a: *b\n",
    "a mapping as key": b"? {a: 1}\n: 2\n",
    "an alias of itself": b"a: &a {b: *a}\n",
    "aliases that multiply": b"a0: &a0 [1,1,1,1,1,1,1,1,1]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
    "deep brackets": b"a: " + b"[" * 50_000 + b"]" * 50_000,
    "deep dashes": b"- " * 90_000,
    "deep, and below the scan": b"a: " + b"[" * 1500 + b"]" * 1500,
    "two documents": b"a: 1\n---\nb: 2\n",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_no_recipe_is_one_error(here, content):
    Path("r.yml").write_bytes(content)
    (found,) = lint.check("r.yml")[0]
    assert (found["rule"], found["level"]) == ("bad-yaml", "error") and found["message"] and found["fix"], found
    assert "\n" not in found["message"] and len(found["message"]) < 300
    assert lint.main(["r.yml", "--fix"]) == 1 and Path("r.yml").read_bytes() == content


def test_keys_that_are_no_text(here):
    found = findings(dump(changed({})) + "1: x\nnull: x\n2026-01-01: x\nno: x\nx_own: {2: y}\n")
    assert [f["rule"] for f in found] == ["bad-yaml"] * 5


def test_a_folder_a_pipe_and_a_vanished_file_are_errors_too(here):
    (here / "d.yml").mkdir()
    import os

    os.mkfifo(here / "p.yml")
    assert [names(lint.check(p)[0]) for p in ("d.yml", "p.yml", "gone.yml")] == [{"bad-yaml"}] * 3


SOURCES = "".join(p.read_text() for p in (ROOT / "scripts/rules").glob("*.py")) + (ROOT / "scripts/recipe.py").read_text()
READ = sorted(
    set(re.findall(r'(?:cfg|raw)(?:\.get\(|\[)"(\w+)"', SOURCES)) | set(re.findall(r'"((?:lora|liger|eval|save|warmup|x)_\w+)"', SOURCES))
)
VALUES = [
    None,
    "x",
    "",
    -1,
    0,
    0.5,
    1e9,
    1e308,
    float("inf"),
    float("nan"),
    10**400,
    True,
    [],
    {},
    [None],
    {"a": None},
    ["x", 3],
    [[]],
    {"type": 3},
    "é\0\n",
]
INSIDE = {
    "datasets": [[{"path": v, "type": w}] for v in VALUES for w in ("alpaca", {"field_output": v}, v)]
    + [[ENTRY | {k: v}] for v in VALUES for k in ("roles", "field_messages", "shards", "message_property_mappings")],
    "x_hardware": [{"gpu": v} for v in VALUES] + [{"count": v} for v in VALUES],
    "x_waive": [{"no-seed": v} for v in VALUES],
    "x_refused": [{"no-seed": v} for v in VALUES],
    "special_tokens": [{"pad_token": v} for v in VALUES],
    "lr_scheduler_kwargs": [{k: v} for v in VALUES for k in ("power", "num_cycles", "lr_end", "num_decay_steps", "num_stable_steps")],
    "deepspeed": [{"zero_optimization": v} for v in VALUES] + [{"zero_optimization": {"stage": v}} for v in VALUES],
}


def test_no_value_of_any_key_that_is_read_makes_it_fall(here):
    assert len(READ) > 70
    schedules = [{}, {"lr_scheduler": "polynomial"}, {"lr_scheduler": "warmup_stable_decay"}]
    for key in READ:
        for value in VALUES + INSIDE.get(key, []):
            for more in schedules if key == "lr_scheduler_kwargs" else [{}]:
                found = findings({key: value, "max_steps": 50} | more if key != "max_steps" else {key: value})
                assert not [f for f in found if "stumbled" in f["message"]]
                json.dumps(found)


FILES = {
    "NUL bytes": b'{"messages"\0: []}\n',
    "UTF-16": json.dumps(row(1)).encode("utf-16"),
    "deep": b"[" * 200_000,
    "a long line": json.dumps(turns(ASK, ("assistant", "word " * 500_000))).encode(),
    "no lines": b"",
    "Latin-1": '{"messages": [{"role": "user", "content": "é"}]}'.encode("latin-1"),
    "numbers": b'{"messages": [{"role": 1, "content": 2}]}\n7\nnull\n"x"\n[]\n{}\n',
    "parts": json.dumps(
        {
            "messages": [
                {"role": "user", "content": [{"text": 5}, {"type": "image"}, 3]},
                {"role": "assistant", "content": {"a": 1}, "tool_calls": [1]},
            ]
        }
    ).encode(),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt", ".parquet"])
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_any_bytes_may_stand_in_a_dataset(here, content, suffix):
    Path(f"d{suffix}").write_bytes(content)
    for kind in ("chat_template", "completion", "alpaca"):
        findings({"datasets": [ENTRY | {"path": f"d{suffix}", "type": kind}]})


def test_crlf_rows_are_rows(here):
    Path("d.jsonl").write_bytes(b"\r\n".join(json.dumps(row(n)).encode() for n in range(40)))
    assert findings({"datasets": [ENTRY | {"path": "d.jsonl"}]}) == []


def test_a_recipe_that_is_there_to_be_refused(here, capsys):
    """Among others it fails nothing and is not mended; named itself it is refused; and what it no longer shows is an error."""
    cfg = {"max_steps": 1, "evals_per_epoch": GONE, "eval_strategy": "epoch", "x_refused": {"undertrained": "it shows this"}}
    findings(cfg, "rs/r.yml")
    capsys.readouterr()
    assert [lint.main(["rs", "--strict"]), lint.main(["rs/r.yml"]), lint.main(["rs", "rs/r.yml"])] == [0, 1, 1]
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert re.fullmatch(r"rs/r.yml:\d+: refused undertrained: 1 steps × 8 sequences see 20.0% of 40 rows; as it should be: it shows this", first)
    assert second == "lint        1 recipe: 0 errors, 0 warnings, 1 refused as they should be"
    findings(cfg | {"max_steps": GONE}, "rs/r.yml")
    assert lint.main(["rs"]) == 1 and "error bad-refusal: undertrained finds nothing here" in capsys.readouterr().out
    findings({"seed": GONE, "x_refused": {"no-seed": "it shows this"}}, "rs/r.yml")
    before = Path("rs/r.yml").read_text()
    assert lint.main(["rs", "--fix"]) == 0 and Path("rs/r.yml").read_text() == before


def test_a_slice_of_a_hub_set_says_how_many_rows_it_has(here):
    def seen(split, **more):
        found = findings({"datasets": [{"path": "org/more", "type": "chat_template", "split": split}], "max_steps": 100, **more})
        (note,) = (f for f in found if f["level"] == "note")
        return [f["message"] for f in found if f["rule"] == "undertrained"], "undertrained" in note["fix"]

    assert seen("train[:45000]") == (["100 steps × 8 sequences see 1.8% of 45,000 rows"], False)
    assert seen("train[44800:45000]") == ([], False)
    assert seen("train[:50%]") == seen("train[:-5]") == seen("train") == ([], True)
    assert seen("train[:45000]", sample_packing=True) == ([], True), "how long they are is not known"


def test_what_cannot_be_counted_is_not_counted(here):
    """One of two datasets is on the hub: nothing is said of how much of the data is seen."""
    (note,) = findings(
        {"datasets": [ENTRY, {"path": "org/more", "type": "alpaca"}], "max_steps": 1, "evals_per_epoch": GONE, "eval_strategy": "epoch"}
    )
    assert note["level"] == "note" and "org/more" in note["message"] and "undertrained" in note["fix"]
    Path("folder").mkdir()
    (note,) = findings({"datasets": [ENTRY, {"path": "./folder"}], "evals_per_epoch": GONE, "eval_strategy": "epoch"})
    assert "./folder" in note["message"] and "tiny-batch" not in note["fix"]


@pytest.mark.parametrize("secret", ["hf_" + "Q" * 30, "0123456789abcdef0123" * 5, 'p"ss\\word-0123456789é' * 5])
def test_secrets_are_never_shown(here, capsys, secret):
    wrong = {
        "lora_r": secret,
        "hf_use_auth_token": secret,
        "comet_api_key": [secret],
        "x_password": secret,
        "wandb_api_key": secret,
        f"x_{secret[:3]}": 1,
    }
    wrong |= {"deepspeed": f"./{secret}.json", "datasets": [ENTRY | {"path": f"./{secret}"}], "base_model": secret, "optimizer": secret}
    findings(wrong)
    for options in ([], ["--json"], ["--fix"]):
        assert lint.main(["r.yml", *options]) == 1
        out = capsys.readouterr().out
        assert "secret-in-recipe" in out and secret[:14] not in out and json.dumps(secret)[1:15] not in out
    Path("r.yml").write_text(f"a: [{'hf_' + 'Q' * 30}\nb: *{'hf_' + 'Q' * 30}")
    assert "QQQ" not in str(lint.check("r.yml"))


def test_views_of_one_file_are_read_once(here):
    findings({})
    before = data.view.cache_info().misses
    lint.check("r.yml")
    assert data.view.cache_info().misses == before
