"""Diagnose: the two seeds and the real chain; generated logs, healthy and faulty, in several strengths; logs that cannot be read; and its speed."""

import json
import math
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from conftest import ROOT, one_line, room

from scripts.signs import causes, log

LOGS = Path(__file__).parent / "logs"


def cosine(x, warm=0.03):
    return x / warm if x < warm else (1 + math.cos(math.pi * (x - warm) / (1 - warm))) / 2


def decay(start, end, tau):
    """A loss from `start` to `end` as training goes from 0 to 1, most of it in the first `tau`."""
    return lambda x: end + (start - end) * math.exp(-x / tau)


def made(  # a log_history as the Trainer writes one
    loss,
    seed=0,
    steps=300,
    every=1,
    noise=0.04,
    evals=None,
    at=(),
    rate=cosine,
    peak=2e-4,
    norm=0.4,
    epochs=2.0,
    until=None,
    more=None,
):
    """`loss`, `evals`, `rate` are functions of the part of the run that is done; `until` the step that the log ends at; `more(step, row)` changes a row."""
    rng, rows = random.Random(seed), []
    for step in range(1, (until or steps) + 1):
        x = step / steps
        if step % every == 0:
            row = {"epoch": epochs * x, "step": step, "loss": loss(x) * (1 + noise / math.sqrt(every) * rng.gauss(0, 1))}
            row |= {"learning_rate": peak * rate((step - 1) / steps), "grad_norm": norm * math.exp(0.2 * rng.gauss(0, 1))}
            rows.append(row)
            if more:
                more(step, row)
        if step in [round(a * steps) for a in at]:
            rows.append({"epoch": epochs * x, "step": step, "eval_loss": evals(x), "eval_runtime": 3.1})
    return {
        "log_history": rows,
        "max_steps": steps,
        "global_step": until or steps,
        "num_train_epochs": math.ceil(epochs),
        "epoch": epochs * (until or steps) / steps,
    }


def drop(*keys):
    return lambda step, row: [row.pop(key, None) for key in keys]


def each(**values):
    """Change rows: each value is a function (step, row) whose result takes the key's place."""
    return lambda step, row: row.update({key: f(step, row) for key, f in values.items()})


def changed(state, f):
    f(state)
    return state


FALLS = decay(2.3, 1.3, 0.15)
SLIGHT = decay(1.02, 0.96, 0.3)
QUARTERS = (0.25, 0.5, 0.75, 1)


def jumps(seed):
    """Memory that reaches a new high now and then, as an allocator's does with rows of unequal length."""
    rng, high = random.Random(seed), [0.0]

    def f(step, row):
        high[0] = max(high[0], rng.expovariate(1))
        return 20 + high[0] * 0.5

    return f


def reward(state):
    for row in state["log_history"]:
        row |= {"loss": 0.0, "reward": 0.5, "grad_norm": 0.0 if row["step"] < 30 else 0.2}


def summed(state):
    state["log_history"].append({"step": state["global_step"], "epoch": 2.0, "train_loss": 1.4, "train_runtime": 90.1, "total_flos": 1e15})


def twice(state):
    """A resumed run whose log was appended to: steps 101 to 150 stand twice, first with what was lost."""
    lost = [dict(row, loss=9.9) for row in state["log_history"] if 100 < row["step"] <= 150]
    state["log_history"] = (
        [r for r in state["log_history"] if r["step"] <= 100] + lost + [r for r in state["log_history"] if r["step"] > 100]
    )


HEALTHY = {
    "fine-tune": lambda s: made(FALLS, s, evals=decay(1.5, 1.35, 0.3), at=QUARTERS),
    "base is good already": lambda s: made(SLIGHT, s, noise=0.08),
    "base is good already, with evals": lambda s: made(SLIGHT, s, noise=0.08, evals=decay(1.0, 0.96, 0.5), at=(0.1, 0.4, 0.7, 1)),
    "one row a batch, very noisy": lambda s: made(decay(1.6, 1.3, 0.2), s, noise=0.25),
    "no learning seen for noise": lambda s: made(SLIGHT, s, noise=0.2, steps=120),
    "eight steps": lambda s: made(FALLS, s, steps=8),
    "two rows": lambda s: made(FALLS, s, steps=20, every=10),
    "a row every ten steps": lambda s: made(FALLS, s, steps=250, every=10),
    "packed, smooth": lambda s: made(decay(1.1, 0.95, 0.2), s, noise=0.015),
    "in warm-up": lambda s: made(lambda x: 1.4, s, steps=2000, until=80, rate=lambda x: cosine(x, 0.05)),
    "constant rate": lambda s: made(FALLS, s, rate=lambda x: 1.0),
    "constant with warm-up": lambda s: made(FALLS, s, rate=lambda x: min(1.0, x / 0.1)),
    "one eval": lambda s: made(FALLS, s, evals=lambda x: 1.4, at=(1,)),
    "two evals": lambda s: made(FALLS, s, evals=lambda x: 1.4 - 0.02 * x, at=(0.5, 1)),
    "evals of a small set": lambda s: made(
        FALLS, s, evals=lambda x: 1.4 - 0.1 * x + 0.01 * math.sin(40 * x), at=[i / 10 for i in range(1, 11)]
    ),
    "evals stand at the end": lambda s: made(
        FALLS, s, evals=lambda x: round(1.35 + 0.1 * (1 - x) ** 4, 4), at=[i / 20 for i in range(1, 21)]
    ),
    "last epoch costs 2 %": lambda s: made(
        FALLS, s, epochs=3.0, evals=lambda x: 1.30 if x < 0.5 else 1.28 if x < 0.9 else 1.305, at=(0.33, 0.67, 1)
    ),
    "fp16, scaler at first": lambda s: made(FALLS, s, more=each(grad_norm=lambda step, row: math.inf if step < 9 else row["grad_norm"])),
    "fp16, skips now and then": lambda s: made(
        FALLS, s, more=each(grad_norm=lambda step, row: math.nan if step % 60 < 2 else row["grad_norm"])
    ),
    "plain transformers": lambda s: changed(made(FALLS, s, every=10, more=drop("grad_norm")), summed),
    "numbers as text": lambda s: made(
        FALLS, s, more=each(loss=lambda step, row: f"{row['loss']:.4f}", learning_rate=lambda step, row: str(row["learning_rate"]))
    ),
    "TRL": lambda s: made(FALLS, s, more=each(mean_token_accuracy=lambda step, row: 0.6 + step / 3000, entropy=lambda step, row: 1.2)),
    "a spike that passes": lambda s: made(lambda x: FALLS(x) + (4 if 0.5 < x < 0.512 else 0), s),
    "staircase of epochs": lambda s: made(lambda x: (1.3, 0.9, 0.6)[min(2, int(3 * x))] + 0.9 * math.exp(-x / 0.02), s, epochs=3.0),
    "grouped by length": lambda s: made(
        lambda x: FALLS(x) * (1 + 0.08 * ((x * 12) % 1 - 0.5)), s, more=each(step_s=lambda step, row: 1 + ((step / 25) % 1))
    ),
    "linear to zero": lambda s: made(FALLS, s, every=10, rate=lambda x: 1 - x - 1 / 300),
    "warm-up, stable, decay": lambda s: made(FALLS, s, rate=lambda x: min(1.0, x / 0.05, (1 - x) / 0.2)),
    "cosine with restarts": lambda s: made(FALLS, s, rate=lambda x: cosine((3 * x) % 1, 0.02)),
    "resumed, rows twice": lambda s: changed(made(FALLS, s), twice),
    "a piece of a run": lambda s: changed(made(lambda x: 0.93, s, noise=0.01), lambda t: t.update(log_history=t["log_history"][180:])),
    "memory of an allocator": lambda s: made(FALLS, s, more=each(memory_gib=jumps(s))),
    "resident set, noisy": lambda s: made(
        FALLS, s, more=each(memory_gib=lambda step, row: 3 + min(step, 20) / 20 + 0.05 * math.sin(step * 1.7))
    ),
    "throughput by length": lambda s: made(FALLS, s, more=each(tokens_per_s=lambda step, row: 2000 * row["grad_norm"] ** 0.7)),
    "slow for a while": lambda s: made(FALLS, s, more=each(tokens_per_s=lambda step, row: 300 if 120 < step < 200 else 2000 + step % 7)),
    "ranks alike": lambda s: made(FALLS, s, more=each(ranks_s=lambda step, row: [1.0, 1.05, 0.97, 1.0 + 0.1 * (step % 3)])),
    "learned by heart": lambda s: made(
        lambda x: 2 * math.exp(-9 * x), s, more=lambda step, row: (row.update(loss=round(row["loss"], 3)), row.pop("grad_norm"))
    ),
    "norm misreported": lambda s: made(FALLS, s, more=each(grad_norm=lambda step, row: 0.0)),
    "rewards, not losses": lambda s: changed(made(FALLS, s), reward),
    "preferences": lambda s: made(lambda x: 0.6931 if x < 0.05 else decay(0.6931, 0.5, 0.3)(x - 0.05), s, noise=0.01),
    "data without a length": lambda s: changed(made(FALLS, s, epochs=1.0), lambda t: t.update(num_train_epochs=9223372036854775807)),
}


def adapter(step, row):
    """A row of health.jsonl's evaluations: 14 modules, of which those of the layers below `row['cut']` never moved."""
    names = [f"layers.{n}.self_attn.{kind}_proj" for n in range(7) for kind in "qv"]
    cut = row.pop("cut")
    row["adapter"] = {name: {"a": 1.0, "b": 0.0 if int(name.split(".")[1]) < cut else 0.3 + step / 1e4} for name in names}


def norms(cut):
    def f(step, row):
        row.pop("grad_norm") if cut == 7 else None
        if step in (0, 100, 200):
            row["cut"] = cut
            adapter(step, row)

    return f


def grows(start, rate):
    return each(memory_gib=lambda step, row: start + rate * step + 0.02 * math.sin(step * 2.3))


def after(step0, key, value):
    return lambda step, row: row.update({key: value(row)}) if step >= step0 else None


def turns(state, evals):
    """Put these eval losses at equal distances into a log."""
    steps = [round((i + 1) * state["max_steps"] / len(evals)) for i in range(len(evals))]
    state["log_history"] += [{"step": step, "epoch": step / 100, "eval_loss": loss} for step, loss in zip(steps, evals, strict=True)]


def half(x):
    """A schedule that was meant for a run half as long."""
    return cosine(2 * x) if x < 0.5 else 0.0


NAN = float("nan")
DIES = {"loss": lambda row: 0.0, "grad_norm": lambda row: NAN}
FAULTY = {  # {what: (cause, verdict, log)}
    "no gradient from the start": ("no gradient", "dead", lambda s: made(lambda x: 2.7, s, more=each(grad_norm=lambda *_: 0.0))),
    "no gradient, five steps": ("no gradient", "dead", lambda s: made(lambda x: 2.7, s, until=5, more=each(grad_norm=lambda *_: 0.0))),
    "no gradient, logged every 25": (
        "no gradient",
        "dead",
        lambda s: made(lambda x: 2.7, s, every=25, until=50, more=each(grad_norm=lambda *_: 0)),
    ),
    "gradient lost on the way": ("no gradient", "dead", lambda s: made(FALLS, s, more=after(150, "grad_norm", lambda row: 0.0))),
    "lora_B stands at 0": ("no gradient", "dead", lambda s: made(lambda x: 2.7, s, more=norms(7))),
    "lora_B stands at 0 in some": ("no gradient", "weak", lambda s: made(FALLS, s, more=norms(3))),
    "labels all masked": ("no gradient", "dead", lambda s: made(lambda x: 0.0, s, more=each(grad_norm=lambda *_: 0.0))),
    "NaN, as it is": ("nan loss", "dead", lambda s: made(FALLS, s, more=after(200, "loss", lambda row: NAN))),
    "NaN, as text": ("nan loss", "dead", lambda s: made(FALLS, s, more=after(290, "loss", lambda row: "nan"))),
    "NaN in the last row": ("nan loss", "dead", lambda s: made(FALLS, s, every=10, more=after(300, "loss", lambda row: NAN))),
    "NaN, logged as 0": (
        "nan loss",
        "dead",
        lambda s: made(FALLS, s, more=lambda n, row: row.update({k: f(row) for k, f in DIES.items()}) if n > 50 else 0),
    ),
    "NaN from the start": ("nan loss", "dead", lambda s: made(FALLS, s, until=4, more=each(loss=lambda *_: 0.0, grad_norm=lambda *_: NAN))),
    "NaN, plain transformers": ("nan loss", "dead", lambda s: made(lambda x: FALLS(x) if x < 0.4 else 0, s, more=drop("grad_norm"))),
    "every step skipped": ("nan loss", "dead", lambda s: made(lambda x: 2.3, s, more=each(grad_norm=lambda *_: math.inf))),
    "eval loss became NaN": ("nan loss", "dead", lambda s: made(FALLS, s, evals=lambda x: 1.4 if x < 0.6 else NAN, at=QUARTERS)),
    "loss jumps tenfold": ("exploding loss", "dead", lambda s: made(lambda x: FALLS(x) if x < 0.7 else 11.0, s)),
    "loss doubles slowly": ("exploding loss", "dead", lambda s: made(lambda x: 1.2 if x < 0.4 else 1.2 + 2.5 * (x - 0.4), s)),
    "all that was learned is lost": (
        "exploding loss",
        "dead",
        lambda s: made(lambda x: FALLS(x) - 0.4 * x if x < 0.8 else 2.25, s, noise=0.02),
    ),
    "loss explodes in the middle of a run": ("exploding loss", "dead", lambda s: made(lambda x: FALLS(x) if x < 0.2 else 8.0, s, until=90)),
    "flat, smooth": ("flat train loss", "weak", lambda s: made(lambda x: 1.5, s, steps=600, noise=0.02)),
    "flat, logged every ten": ("flat train loss", "weak", lambda s: made(lambda x: 1.5, s, steps=2000, every=10, noise=0.06)),
    "flat, noisy, evals flat": (
        "flat train loss",
        "weak",
        lambda s: made(lambda x: 1.5, s, noise=0.08, evals=lambda x: 1.5 - 0.002 * x, at=(0.1, 0.4, 0.7, 1)),
    ),
    "flat so far": ("flat train loss", "weak", lambda s: made(lambda x: 1.5, s, steps=2000, noise=0.02, until=900)),
    "three evals alike": ("identical eval losses", "weak", lambda s: made(SLIGHT, s, evals=lambda x: 2.931, at=(0.3, 0.6, 0.9))),
    "two evals alike": ("identical eval losses", "weak", lambda s: made(SLIGHT, s, evals=lambda x: 2.9310479164123535, at=(0.4, 0.8))),
    "twenty evals alike": (
        "identical eval losses",
        "weak",
        lambda s: made(SLIGHT, s, evals=lambda x: 2.931, at=[i / 20 for i in range(1, 21)]),
    ),
    "overfit, 3 epochs": (
        "overfitting",
        "overfit",
        lambda s: changed(made(decay(2, 0.3, 0.3), s, epochs=3), lambda t: turns(t, [1.1, 1.05, 1.25])),
    ),
    "overfit, a little": (
        "overfitting",
        "overfit",
        lambda s: changed(made(decay(2, 0.7, 0.3), s), lambda t: turns(t, [1.3, 1.1, 1.08, 1.1, 1.12])),
    ),
    "overfit, 35 epochs": (
        "overfitting",
        "overfit",
        lambda s: changed(made(decay(2, 0.01, 0.3), s, epochs=35), lambda t: turns(t, [1.0, 1.3, 1.9, 2.6, 3.1])),
    ),
    "overfit while it runs": (
        "overfitting",
        "overfit",
        lambda s: changed(made(decay(2, 0.3, 0.3), s, until=299), lambda t: turns(t, [1.2, 1.1, 1.2, 1.3])),
    ),
    "schedule of half the length": ("learning rate used up", "weak", lambda s: made(FALLS, s, rate=half)),
    "rate falls too soon": ("learning rate used up", "weak", lambda s: made(FALLS, s, rate=lambda x: (1 - x) ** 4)),
    "rate is 0 while it runs": ("learning rate used up", "weak", lambda s: made(FALLS, s, rate=lambda x: max(0, 1 - 2 * x), until=160)),
    "rate is 0 throughout": ("learning rate used up", "weak", lambda s: made(FALLS, s, peak=0.0)),
    "9 % of the data": ("coverage", "weak", lambda s: made(FALLS, s, epochs=0.09)),
    "45 % of the data": ("coverage", "weak", lambda s: made(FALLS, s, epochs=0.45)),
    "20 % of the data, running": ("coverage", "weak", lambda s: made(FALLS, s, epochs=0.2, until=100)),
    "slower and slower": (
        "throughput drift",
        "healthy",
        lambda s: made(FALLS, s, more=each(tokens_per_s=lambda n, row: (2000 - 4 * n) * row["grad_norm"] ** 0.2)),
    ),
    "half as fast at last": (
        "throughput drift",
        "healthy",
        lambda s: made(FALLS, s, more=each(step_s=lambda n, row: (1 if n < 200 else 2) + n % 5 / 10)),
    ),
    "a leak of 10 %": ("memory drift", "healthy", lambda s: made(FALLS, s, more=grows(10, 0.004))),
    "a leak that doubles": ("memory drift", "healthy", lambda s: made(FALLS, s, more=grows(10, 0.04))),
    "one rank at 1.3": (
        "slow rank",
        "healthy",
        lambda s: made(FALLS, s, more=each(ranks_s=lambda n, row: [1.0, 1.02, 1.3 + n % 3 / 50, 0.99])),
    ),
    "one of two ranks at 2": ("slow rank", "healthy", lambda s: made(FALLS, s, more=each(ranks_s=lambda n, row: [2.0, 1.0]))),
}


def written(folder, state):
    """The log as a checkpoint's trainer_state.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def judged(state, folder):
    return causes.judge(log.read(written(folder, state)))


def named(found):
    return [f["cause"] for f in found["findings"]]


@pytest.mark.parametrize("what", HEALTHY)
def test_a_healthy_run_raises_nothing(what, tmp_path):
    for seed in range(5):
        state = HEALTHY[what](seed)
        found = judged(state, tmp_path)
        whole = state["global_step"] == state["max_steps"]
        assert (found["verdict"], found["so_far"]) == ("healthy" if whole else "unfinished", "healthy"), (seed, found)
        assert named(found) == [] if whole else ["unfinished"], (seed, found)


TRUE_THEN = {"slow for a while", "norm misreported"}  # what is right at the end only


@pytest.mark.parametrize("what", sorted(set(HEALTHY) - TRUE_THEN))
def test_nor_does_it_at_any_moment_while_it_runs(what, tmp_path):
    whole = log.read(written(tmp_path, HEALTHY[what](7)))
    for n in range(1, len(whole["rows"]), 7):
        rows = whole["rows"][:n]
        part = whole | {"rows": rows, "step": rows[-1]["step"], "epoch": rows[-1]["epoch"], "ended": False}
        assert named(causes.judge(part)) == ["unfinished"], (rows[-1]["step"], causes.judge(part))


@pytest.mark.parametrize("what", FAULTY)
def test_a_fault_is_found_and_named(what, tmp_path):
    cause, verdict, state = FAULTY[what]
    for seed in range(5):
        found = judged(state(seed), tmp_path)
        assert cause in named(found), (seed, found)
        assert found["so_far"] == verdict, (seed, found)
        assert all(f["evidence"] and f["fix"] and "\n" not in f["evidence"] + f["fix"] for f in found["findings"])


def test_there_are_enough_of_both():
    assert len(HEALTHY) >= 20 and len(FAULTY) >= 20
    kinds = [cause for cause, *_ in FAULTY.values()]
    assert {"no gradient", "nan loss", "exploding loss", "flat train loss", "identical eval losses", "overfitting"} < set(kinds)
    assert all(kinds.count(kind) >= 2 for kind in kinds)


def test_the_dead_seed_is_dead_for_want_of_a_gradient():
    found = causes.judge(log.read(LOGS / "seed-002"))
    assert found["verdict"] == "dead"
    assert named(found)[:2] == ["no gradient", "coverage"]
    none, few, *symptoms = found["findings"]
    assert "2.7335 → 2.7150" in none["evidence"] and "more steps will not help" in none["fix"]
    order = ["use_reentrant: false", "lora_target_", "detaches", "-100", "scripts.cpu.CpuPlugin"]
    assert [none["fix"].find(word) for word in order] == sorted(
        none["fix"].find(word) for word in order
    ) and "enable_input_require_grads" in none["fix"]
    assert few["evidence"].startswith("4,000 of 45,000 rows, 8.9 %")
    assert few["fix"] == "once there is a gradient: max_steps: 500 → 5625 is one epoch; or drop it and set num_epochs: 1"
    assert "identical eval losses" in [f["cause"] for f in symptoms]
    assert all("follows from no gradient" in f["fix"] for f in symptoms)


def test_without_its_gradient_norms_the_dead_seed_is_weak_and_nobody_says_more_steps_first(tmp_path):
    state = json.loads((LOGS / "seed-002/trainer_state.json").read_text())
    for row in state["log_history"]:
        row.pop("grad_norm", None)
    found = judged(state, tmp_path)
    assert found["verdict"] == "weak" and named(found)[0] == "identical eval losses"
    assert "8.9 %" in found["findings"][-1]["evidence"]


def test_the_good_seed_is_unfinished_and_healthy_so_far():
    found = causes.judge(log.read(LOGS / "seed-004/trainer_state.json"))
    assert (found["verdict"], found["so_far"], named(found)) == ("unfinished", "healthy", ["unfinished"])
    for figure in (
        "300 of 450",
        "67 %",
        "1.33 of 2",
        "healthy so far",
        "0.9456 → 0.9146",
        "0.508 → 0.527",
        "6.07e-5 → 5.3e-5",
        "28.42 GiB",
    ):
        assert figure in found["findings"][0]["evidence"]


def test_the_real_run_is_healthy(chain):
    for place in (chain, chain / "adapter", chain / "adapter/trainer_state.json", chain / "training", chain / "training/checkpoint-281"):
        found = log.read(place)
        assert (found["step"], found["steps"], found["ended"], found["global_batch"], found["examples"]) == (281, 281, True, 8, 1124), place
        assert causes.judge(found) == {"verdict": "healthy", "so_far": "healthy", "findings": []}
    assert causes.judge(log.read(chain / "training/checkpoint-213"))["verdict"] == "unfinished"


def lived(folder, state, began="2026-01-01T00:00:00+00:00", end=True, **run):
    """The same log as health.jsonl."""
    head = {"began": began, "steps": state["max_steps"], "epochs": 2, "ranks": 1, "global_batch": 8, "rows": 1200, "resumed_from": 0} | run
    lines = [
        {"run": head},
        *({k: "nan" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in state["log_history"]),
    ]
    lines += [{"end": {"step": state["global_step"], "verdict": "healthy", "seconds": 9}}] * end
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "health.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_health_and_trainer_state_are_merged(tmp_path):
    state = made(
        FALLS,
        3,
        evals=lambda x: 1.4 - 0.1 * x,
        at=QUARTERS,
        more=each(tokens_per_s=lambda *_: 2000, adapter=lambda *_: {"layers.0.q_proj": {"b": 1.0}}),
    )
    lived(tmp_path, state)
    plain = made(FALLS, 3, evals=lambda x: 1.4 - 0.1 * x, at=QUARTERS, more=each(mean_token_accuracy=lambda *_: 0.6))
    written(tmp_path / "training/checkpoint-300", plain)
    found = log.read(tmp_path)
    assert found["ended"] and found["examples"] == 1200 and found["global_batch"] == 8
    assert len(found["rows"]) == 300 and {"tokens_per_s", "mean_token_accuracy", "adapter", "loss"} <= set(found["rows"][0])
    assert log.read(tmp_path / "training")["examples"] == 1200  # its health.jsonl lies a folder up
    assert causes.judge(found)["findings"] == []


def test_a_run_in_progress_ends_in_half_a_line(tmp_path):
    lived(tmp_path, made(FALLS, 3, until=120), end=False)
    with open(tmp_path / "health.jsonl", "a") as out:
        out.write('{"step": 121, "loss": 1.4, "grad_n')
    found = log.read(tmp_path / "health.jsonl")
    assert (found["step"], found["ended"]) == (120, False)
    assert causes.judge(found)["verdict"] == "unfinished"


def test_what_an_earlier_run_left_is_not_taken_for_this_one(tmp_path):
    old = written(tmp_path / "adapter", made(lambda x: 9.0, 1))
    lived(tmp_path, made(FALLS, 3, until=40), end=False)  # other losses at the same steps
    assert log.read(tmp_path)["step"] == 40
    lived(tmp_path, made(lambda x: 9.0, 1, until=40), began="2026-03-01T00:00:00+00:00", end=False)  # the same losses, begun later
    os.utime(old / "trainer_state.json", (1770000000, 1770000000))
    assert log.read(tmp_path)["step"] == 40
    written(tmp_path / "training/checkpoint-20", made(lambda x: 9.0, 1, until=20))
    assert log.read(tmp_path)["step"] == 40


def test_a_resumed_run_counts_what_it_did_last(tmp_path):
    first, second = made(FALLS, 3, until=200), made(lambda x: 0.5, 4, noise=0, until=160)
    text = lived(tmp_path / "a", first, end=False).joinpath("health.jsonl").read_text()
    second["log_history"] = second["log_history"][100:]
    text += lived(tmp_path / "b", second, end=False, resumed_from=100).joinpath("health.jsonl").read_text()
    (tmp_path / "health.jsonl").write_text(text)
    found = log.read(tmp_path)
    assert found["step"] == 160 and found["rows"][99]["loss"] > 1 and found["rows"][100]["loss"] == 0.5


def test_the_newest_whole_checkpoint_is_read(tmp_path):
    for step in (90, 100, 200):
        written(tmp_path / f"checkpoint-{step}", made(FALLS, 3, until=step))
    assert log.read(tmp_path)["step"] == 200
    (tmp_path / "checkpoint-200/trainer_state.json").write_text('{"log_history": [{"step": 1, "lo')
    assert log.read(tmp_path)["step"] == 100
    written(tmp_path, made(FALLS, 3))
    assert log.read(tmp_path)["step"] == 300


def test_numbers_of_several_evaluation_sets_and_of_older_axolotls(tmp_path):
    rows = [{"step": 5, "loss": "1.5", "memory/device_mem_reserved(gib)": 11.5}, {"step": 5, "eval_a_loss": 1.0, "eval_a_runtime": 3}]
    written(
        tmp_path,
        {"log_history": [*rows, {"step": 5, "eval_b_loss": 2.0}, {"epoch": 1.0, "predict_loss": 3}], "max_steps": 5, "global_step": 5},
    )
    [row] = log.read(tmp_path)["rows"]
    assert (row["loss"], row["memory_gib"], row["eval_a_loss"], row["eval_b_loss"]) == (1.5, 11.5, 1.0, 2.0)


BROKEN = {
    "not-there": (None, ["no such file"]),
    "an empty folder": ("", ["no run"]),
    "half a file": ('{"log_history": [{"step": 1, "loss": 2.0}, {"st', ["trainer_state.json:1: damaged JSON"]),
    "not text": (b"\xff\xfe\x00", ["damaged JSON"]),
    "too deep": ("[" * 100_000, ["damaged JSON"]),
    "something else": ('{"model": "x"}', ["no list `log_history`"]),
    "a list": ("[1, 2]", ["no list `log_history`"]),
    "empty": ('{"log_history": [], "max_steps": 0, "global_step": 0}', ["holds no losses"]),
    "odd entries": (
        '{"log_history": [1, null, {"loss": 2.0}, {"step": "x", "loss": 1}, {"step": -1}], "max_steps": 9}',
        ["holds no losses"],
    ),
    "only a summary": (
        '{"log_history": [{"step": 9, "train_loss": 0.9, "train_runtime": 5.0}], "max_steps": 9, "global_step": 9}',
        ["logging_steps: 1"],
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_is_one_line(what, tmp_path):
    text, words = BROKEN[what]
    if text is not None:
        (tmp_path / what).mkdir()
    if text:
        (tmp_path / what / "trainer_state.json").write_bytes(text.encode() if isinstance(text, str) else text)
    one_line(room("diagnose", tmp_path / what), what, *words)


def test_a_jsonl_of_something_else_and_one_without_a_step_are_one_line(tmp_path):
    one_line(room("diagnose", ROOT / "datasets/pirate/eval.jsonl"), "not a health.jsonl")
    (tmp_path / "health.jsonl").write_text('{"run": {"steps": 100, "resumed_from": 0}}\n')
    one_line(room("diagnose", tmp_path), "wait for its first step")


def test_garbage_never_breaks_the_judgement(tmp_path):
    """Numbers as no run has them, at every key: something is said of them or nothing, but no traceback."""
    rng = random.Random(1)
    keys = [
        "loss",
        "eval_loss",
        "grad_norm",
        "learning_rate",
        "epoch",
        "memory_gib",
        "tokens_per_s",
        "step_s",
        "ranks_s",
        "adapter",
        "reward",
    ]
    values = [
        0,
        -1,
        1e-30,
        1e30,
        1e200,
        NAN,
        math.inf,
        -math.inf,
        2.5,
        "nan",
        "x",
        None,
        True,
        [1.0, None],
        [],
        {},
        {"a.1.b": {"b": 0}},
        {"q": 3},
    ]
    for n in range(400):
        some = rng.sample(values, rng.randint(1, len(values)))
        rows = [
            {"step": s, **{k: rng.choice(some) for k in rng.sample(keys, rng.randint(1, 6))}, "loss": rng.choice([*some, 1.0])}
            for s in range(rng.randint(1, 120))
        ]
        state = {
            "log_history": rows,
            "max_steps": rng.choice([0, 50, 120, None, -1]),
            "global_step": rng.choice([0, 119, None]),
            "epoch": rng.choice([0, NAN, 0.1, "x"]),
        }
        try:
            found = judged(state, tmp_path)
        except ValueError as error:
            assert "holds no losses" in str(error), (n, error)
        else:
            json.dumps(found, allow_nan=False)


def test_the_proof_takes_five_steps_and_names_the_layers():
    rows = [{"step": n, "loss": 2.7, "grad_norm": 0.0, "learning_rate": 1e-5} for n in range(1, 6)]
    assert causes.dead(rows[:4]) is None
    assert causes.dead(rows)["severity"] == "dead"
    busy = [row | {"grad_norm": 0.3} for row in rows]
    b = {f"layers.{n}.self_attn.{kind}": 0.0 for n in range(32) for kind in ("q_proj", "v_proj")}
    assert causes.dead(busy[:4], b) is None and causes.dead(busy, None) is None
    every = causes.dead(busy, b)
    assert (
        every["severity"] == "dead"
        and "every one of 64 modules" in every["evidence"]
        and "q_proj, v_proj in layers 0-31" in every["evidence"]
    )
    some = causes.dead(busy, b | {f"layers.{n}.self_attn.v_proj": 0.2 for n in range(30)})
    assert (
        some["severity"] == "warning"
        and "34 of 64" in some["evidence"]
        and "q_proj in layers 0-31; v_proj in layers 30-31" in some["evidence"]
    )
    assert causes.dead(busy, dict.fromkeys(b, 0.1)) is None
    lost = causes.dead(busy, b | {"layers.3.self_attn.q_proj": NAN})
    assert (lost["cause"], lost["severity"]) == ("nan loss", "dead") and "q_proj in layers 3" in lost["evidence"]


def test_the_proof_waits_for_the_loss_scaler_and_for_a_learning_rate():
    b = {"layers.0.q_proj": 0.0}
    scaler = [{"step": n, "loss": 2.7, "grad_norm": math.inf, "learning_rate": 1e-5} for n in range(1, 10)]
    still = [{"step": n, "loss": 2.7, "grad_norm": 0.5, "learning_rate": 0.0} for n in range(1, 10)]
    assert causes.dead(scaler, b) is None and causes.dead(still, b) is None
    loaded = causes.dead([row | {"grad_norm": 0.0} for row in still], {"layers.0.q_proj": 0.7})
    assert loaded["severity"] == "warning" and "misreported" in loaded["evidence"]  # an adapter that was not new: no proof


def test_a_fix_names_what_the_recipe_says_now(tmp_path):
    (tmp_path / "recipe.yml").write_text(
        "learning_rate: 1e-5\nadapter: lora\nnum_epochs: 5\nmicro_batch_size: 2\ngradient_accumulation_steps: 4\n"
    )
    found = judged(made(lambda x: 1.5, 1, steps=600, noise=0.02, peak=1e-5), tmp_path)
    assert "learning_rate: 1e-5 → 2e-4" in found["findings"][0]["fix"]
    assert "num_epochs: 5 → 1" in judged(made(FALLS, 1, epochs=0.3), tmp_path)["findings"][0]["fix"]
    found = judged(changed(made(decay(2, 0.1, 0.3), 1, epochs=5), lambda t: turns(t, [1.0, 1.2, 1.5, 1.9, 2.2])), tmp_path)
    assert "num_epochs: 5 → 1" in found["findings"][0]["fix"]


def test_the_command(tmp_path):
    dead, good = room("diagnose", LOGS / "seed-002"), room("diagnose", LOGS / "seed-004")
    assert dead.returncode == good.returncode == 0 and not dead.stderr
    assert dead.stdout.startswith("dead        ") and "\nno gradient             grad_norm is 0.0 in all 51 rows" in dead.stdout
    assert good.stdout.startswith("unfinished  ")
    assert all(f"\n                          ({n}) " in dead.stdout for n in range(1, 6))
    assert max(map(len, room("diagnose", LOGS / "seed-002", COLUMNS="70").stdout.splitlines())) <= 70
    assert max(map(len, (dead.stdout + good.stdout).splitlines())) <= 120 and "\033" not in dead.stdout
    told = json.loads(room("diagnose", LOGS / "seed-002", "--json").stdout)
    assert told["verdict"] == "dead" and all({"cause", "evidence", "fix"} <= set(f) for f in told["findings"])
    assert room("diagnose", LOGS / "seed-002", "--strict").returncode == 1
    assert room("diagnose", LOGS / "seed-004", "--strict").returncode == 0
    assert room("diagnose").returncode == 2 and room("diagnose", "--nonsense").returncode == 2


def test_a_run_is_also_known_by_its_name(copy):
    shutil.copytree(LOGS / "seed-004", copy / "outputs/pirate+lora_r=16/adapter")
    assert room("diagnose", "pirate+lora_r=16").stdout.startswith("unfinished  outputs/pirate+lora_r=16: 300 of 450 steps")
    one_line(room("diagnose", "pirat"), "pirat: no such file or folder")


def test_ten_thousand_rows_are_judged_while_a_step_runs(tmp_path):
    state = made(
        FALLS,
        1,
        steps=10_000,
        evals=lambda x: 1.4 - 0.1 * x,
        at=[i / 50 for i in range(1, 51)],
        more=each(tokens_per_s=lambda *_: 2000, memory_gib=lambda *_: 20.0),
    )
    found = log.read(written(tmp_path, state)) | {"ended": False}

    def seconds(f, times):
        taken = []
        for _ in range(times):
            began = time.process_time()
            f()
            taken.append(time.process_time() - began)
        return min(taken)

    assert seconds(lambda: causes.judge(found), 5) < 0.05
    assert seconds(lambda: causes.dead(found["rows"], {"layers.0.q_proj": 0.3}), 20) < 0.0005


def test_what_stopped_a_run_counts_though_no_log_shows_it(tmp_path):
    """Weights between two evaluations: the watch saw them, the log's numbers look well."""
    finding = {"cause": "no gradient", "evidence": "lora_B is still 0 in every one of 21 modules", "fix": "look", "severity": "dead", "cost": "1"}
    rows = [{"step": n, "loss": 4.0 - 0.01 * n, "grad_norm": 0.5} for n in range(1, 7)]
    lines = [{"run": {"steps": 100}}, *rows, {"step": 6, "finding": finding}, {"end": {"step": 6, "verdict": "dead"}}]
    path = tmp_path / "health.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = causes.judge(log.read(path))
    assert judged["verdict"] == "dead" and judged["findings"][0]["evidence"] == finding["evidence"]
    path.write_text(path.read_text() + json.dumps({"run": {"steps": 100, "resumed_from": 0}}) + "\n" + json.dumps(rows[0]) + "\n")
    assert causes.judge(log.read(path))["verdict"] == "unfinished", "begun anew: judged anew"
