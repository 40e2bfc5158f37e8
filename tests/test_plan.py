import json
from pathlib import Path

import pytest

from conftest import one_line, room, run
from scripts import facts, plan, recipe
from scripts.runs import published
from scripts.steps import memory, packing
from test_snapshot import edit

POINTS = facts.table("published.yml")  # what others have published, and the options that come nearest to theirs


@pytest.mark.parametrize("point", POINTS["memory"], ids=lambda p: p["of"])
def test_published_memory_lies_within(point):
    gpus = point.get("gpus", 1)
    expected, low, high = memory.interval(memory.parts(point["options"], facts.base(point["base"]), gpus, 10**6))
    assert low <= point["gib"] <= high and low <= expected <= high, (round(low, 2), round(expected, 2), round(high, 2))
    assert high < 1.8 * low + 1, "an interval that contains everything says nothing"


def traced():
    """(error of the plan, the trace) of every step in reports/calibration/trace.jsonl: transformers, PEFT and bitsandbytes on tensors without data."""
    for line in Path("reports/calibration/trace.jsonl").read_text().splitlines():
        t = json.loads(line)
        cfg = {k: t[k] for k in ("adapter", "sequence_len")} | {
            "load_in_4bit": t["adapter"] == "qlora",
            "lora_r": t["r"],
            "lora_dropout": t["dropout"],
        }
        cfg |= {
            "micro_batch_size": t["micro_batch"],
            "gradient_checkpointing": t["checkpointing"],
            "lora_target_linear": True,
            "sample_packing": True,
        }
        cfg |= {"liger_fused_linear_cross_entropy": t["fused_loss"], "lora_mlp_kernel": t["kernels"], "lora_qkv_kernel": t["kernels"]}
        parts = memory.parts(cfg, facts.base(t["base"]), 1, 10**6)
        yield (sum(parts.values()) - parts["runtime"]) / t["peak_bytes"] - 1, t


def test_traced_steps_take_what_the_plan_says():
    errors = sorted(error for error, _ in traced())
    assert len(errors) >= 24 and -0.01 < errors[0] and errors[-1] < 0.01, (errors[0], errors[-1])


@pytest.mark.parametrize("point", POINTS["speed"], ids=lambda p: p["of"])
def test_published_speed_lies_within(point):
    low, _, high = published.speeds(point)
    assert low <= point["tokens_s"] <= high, (low, high)


# The FineTome study on a T4 with Unsloth (seed 003, T1 to T4): GiB, which its notebook calls GB, and seconds
STUDY = {"1b-r16": (2.564, 2594), "1b-r64": (2.955, 2650), "1b-r64-30k": (3.367, 2647), "3b-r64-30k": (4.43, 3515)}
OUTSIDE = {"1b-r64-30k"}  # T3 is T2 on other rows, and began with 2.98 GiB taken (3.367 less the 0.385 it calls LoRA's), about T2's peak: not its own, it seems


@pytest.mark.parametrize("run", STUDY)
def test_the_plan_of_the_finetome_study_holds_what_it_measured(run):
    told = json.loads(room("plan", f"finetome-{run}", "--json").stdout)
    gib, minutes = STUDY[run][0], STUDY[run][1] / 60
    assert told["vram_gib"]["low"] <= gib and (gib <= told["vram_gib"]["high"]) == (run not in OUTSIDE), told["vram_gib"]
    assert told["minutes"]["low"] <= minutes <= told["minutes"]["high"]
    rows = 30_000 if run.endswith("30k") else 10_000  # the slice of the hub's dataset says how many
    assert told["rows"] == rows and told["tokens_from"].startswith("supposed") and "t4" in told["fits"]


def test_the_whole_plan_as_json():
    told = json.loads(room("plan", "pirate", "--gpus", "2", "--price", "2", "--json").stdout)
    assert (
        told["rows"] == 1124 and told["trainable_parameters"] == 167_772_160 and told["global_batch"] == 8 and told["calibrated"] is False
    )
    space = told["vram_gib"]
    assert space["low"] < space["expected"] < space["high"] and sum(space["parts"].values()) == pytest.approx(space["expected"], abs=0.05)
    assert told["minutes"]["low"] < told["minutes"]["expected"] < told["minutes"]["high"] and told["steps"] > 0 and told["disk_gib"] > 50
    assert told["cost"]["expected"] == pytest.approx(told["minutes"]["expected"] / 60 * 2 * 2, abs=0.01)
    assert "a100-80g" in told["fits"] and "t4" not in told["fits"] and 0 < len(told["savings"]) <= 3


def test_a_cpu_of_other_cores():
    one, eight = (json.loads(room("plan", "pirate-laptop", "--cores", n, "--json").stdout)["minutes"] for n in ("1", "8"))
    assert one["expected"] / eight["expected"] == pytest.approx(8, rel=0.05) and one["low"] > eight["low"]
    assert "pirate-laptop on a CPU, cores: 8\n" in room("plan", "pirate-laptop", "--cores", "8").stdout


def test_steps_are_those_that_were_trained(chain):
    figures = json.loads((chain / "train.json").read_text())["figures"]
    told = json.loads(room("plan", "pirate-nano", "--json").stdout)
    assert told["steps"] == figures["steps"] and told["tokens_from"] == "counted by `make preprocess`" and "vram_gib" not in told


def test_the_tokenizer_counts_as_axolotl_does(chained):
    Path("outputs/pirate-nano/preprocess.json").rename("outputs/pirate-nano/kept.json")
    told = json.loads(room("plan", "pirate-nano", "--json").stdout)
    counted = json.loads(Path("outputs/pirate-nano/kept.json").read_text())["figures"]["tokens"]
    sizes = plan.lengths(recipe.load("pirate-nano"), facts.base("outputs/nano/pirate"), "pirate-nano")[0]
    assert told["tokens_from"] == "the base's tokenizer" and sum(map(sum, sizes.values())) == pytest.approx(counted, rel=0.01)


def test_packing_fills_bins_as_axolotl_does():
    import random

    import numpy as np
    from axolotl.utils.samplers.multipack import pack_parallel

    rng = random.Random(1)
    for spread, capacity in ((lambda: rng.randint(20, 400), 2048), (lambda: min(1000, int(rng.expovariate(1 / 150)) + 5), 1024)):
        sizes = [spread() for _ in range(2000)]
        theirs = len(pack_parallel(np.array(sizes), capacity, 100_000, 200, 1, safe_mode=True))
        assert packing.packed(sizes, capacity) == pytest.approx(theirs, rel=0.02)


def test_savings_are_true():
    cfg = recipe.load("pirate") | {
        "gradient_checkpointing": False,
        "liger_fused_linear_cross_entropy": False,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }
    base, gpu = facts.base(cfg["base_model"]), facts.gpu("a100-80g")
    sizes = {"train": [200] * 1000, "eval": []}
    now = plan.plan(cfg, base, gpu, 2, sizes)
    found = plan.savings(cfg, base, gpu, 2, sizes, now)
    assert len(found) == 3 and any("gradient_checkpointing: true" in s["change"] for s in found)
    then = plan.plan(cfg | {"gradient_checkpointing": True}, base, gpu, 2, sizes)
    told = next(s for s in found if "gradient_checkpointing: true" in s["change"])
    assert (
        told["gib"] == pytest.approx(now["vram_gib"]["expected"] - then["vram_gib"]["expected"], abs=0.1)
        and told["gib"] > 1 > 0 > told["minutes"]
    )


@pytest.mark.parametrize(
    "args, words",
    [
        (["nothing"], ["no recipe 'nothing'"]),
        (["pirate", "--gpu", "a100"], ["unknown GPU 'a100'", "a100-80g"]),
        (["pirate", "--gpus", "3"], ["3", "divide the global batch of 8"]),
        (["no/such.yml"], ["no/such.yml", "No such file"]),
    ],
)
def test_bad_input(args, words):
    one_line(room("plan", *args), *words)


def test_what_the_plan_cannot_know(copy):
    edit("recipes/pirate.yml", "path: datasets/pirate/train.jsonl", "path: somebody/rows")
    one_line(room("plan", "pirate"), "somebody/rows: not a local file", "--rows")
    told = json.loads(room("plan", "pirate", "--rows", "45000", "--json").stdout)
    assert told["rows"] == 45000 and "supposed" in told["tokens_from"]
    edit("recipes/pirate.yml", "meta-llama/Llama-3.1-8B-Instruct", "nobody/knows")
    one_line(room("plan", "pirate", "--rows", "45000"), "the shapes of nobody/knows are not known here")


def test_what_the_plan_does_not_cover(copy):
    edit("recipes/pirate.yml", "num_epochs: 2", "rl: dpo\nnum_epochs: 2")
    one_line(room("plan", "pirate"), "dpo trains on pairs")
    edit("recipes/pirate.yml", "rl: dpo", "")
    edit("recipes/pirate.yml", "datasets:\n", "pretraining_dataset:\n")
    one_line(room("plan", "pirate"), "no `datasets` to count")


def test_make_plan_reads_well():
    made = run("make", "plan", "RECIPE=pirate", "GPU=rtx4090", "GPUS=1")
    assert made.returncode == 0 and "uncalibrated" in made.stdout and "1 × NVIDIA GeForce RTX 4090" in made.stdout, (
        made.stdout + made.stderr
    )
