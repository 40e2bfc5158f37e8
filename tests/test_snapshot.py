import os
from pathlib import Path

import pytest
import yaml

from conftest import one_line, room


def snap(name="pirate-nano", *args, **env):
    return room("snapshot", name, *args, **env)


def times(folder=Path("outputs/pirate-nano")):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def edit(path, old, new):
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_a_change_touches_what_it_means_and_nothing_else(copy):
    assert snap().returncode == 0
    before = times()
    touched = lambda: {n for n, t in times().items() if before.get(n) != t}  # noqa: E731
    edit("recipes/pirate-nano.yml", "# --- base ---", "# --- the base ---")
    assert snap().returncode == 0 and touched() == set()
    edit("recipes/pirate-nano.yml", "[Q4_K_M, Q8_0]", "[Q8_0]")
    assert snap().returncode == 0 and touched() == {"export.yml"}
    edit("modelfiles/pirate.Modelfile", "temperature 0.7", "temperature 0.6")
    assert snap().returncode == 0 and touched() == {"export.yml", "prompt.sha256"}
    edit("datasets/pirate/eval.jsonl", "ghost", "gull")
    assert snap().returncode == 0 and touched() == {"export.yml", "prompt.sha256", "data.sha256"}
    edit("recipes/pirate-nano.yml", "lora_r: 64", "lora_r: 32")
    assert snap().returncode == 0 and touched() == {"export.yml", "prompt.sha256", "data.sha256", "recipe.yml"}


def test_the_quant_type_asked_for_is_part_of_the_prompt_side(copy):
    snap()
    before = times()
    snap(QUANT="Q8_0")
    assert {n for n, t in times().items() if before[n] != t} == {"prompt.sha256"}


def test_gpus_do_not_change_the_meaning(copy):
    snap()
    before = times()
    snap(GPUS="2")
    assert times() == before


def test_a_chosen_base_is_kept_until_another_is_chosen(copy):
    base = lambda: yaml.safe_load(Path("outputs/pirate/recipe.yml").read_text())["base_model"]  # noqa: E731
    assert snap("pirate").returncode == 0 and base() == "meta-llama/Llama-3.1-8B-Instruct"
    snap("pirate", BASE="NousResearch/Meta-Llama-3.1-8B-Instruct")
    assert base() == "NousResearch/Meta-Llama-3.1-8B-Instruct"
    snap("pirate")
    assert base() == "NousResearch/Meta-Llama-3.1-8B-Instruct"


def test_a_machine_that_cannot_train_it_is_refused_at_once(copy, monkeypatch):
    one_line(snap("pirate", "--train"), "pirate needs 4 × a100-80g, this machine has 0 GPUs", "make train RECIPE=pirate-nano")
    fake = copy / "bin/nvidia-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'NVIDIA A100'\n")
    fake.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    path = f"{fake.parent}:{os.environ['PATH']}"
    one_line(snap("pirate", "--train", PATH=path), "this machine has 1 GPU;", "make train RECIPE=pirate GPUS=1")
    assert snap("pirate", "--train", PATH=path, GPUS="1").returncode == 0
    one_line(snap("pirate", "--train", PATH=path, GPUS="3"), "do not divide the global batch of 8")


def test_missing_files_and_unknown_recipes(copy):
    one_line(snap("pirrate"), "did you mean pirate?", "pirate-nano")
    Path("datasets/pirate/eval.jsonl").unlink()
    one_line(snap(), "datasets/pirate/eval.jsonl: no such file")
    edit("recipes/pirate-nano.yml", "lora_r: 64", "lora_r: [64")
    one_line(snap(), "recipes/pirate-nano.yml:", "broken YAML")


@pytest.mark.parametrize("asked", ["0", "x", "-1", "1.5"])
def test_gpus_is_a_number_of_ranks(copy, asked):
    one_line(room("snapshot", "pirate-nano", "--train", GPUS=asked), f"GPUS={asked}: a whole number of ranks")
