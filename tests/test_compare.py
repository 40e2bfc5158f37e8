import json
import math
import os
import shutil
from pathlib import Path

import pytest

from conftest import one_line, room
from scripts import compare, data, files, receipt
from scripts.runs import sentences, versus
from scripts.scoring import statistics
from test_snapshot import edit

NANO = "pirate-nano"


def twin(name, off=0.0, **keys):
    """Another run: the real chain's outputs under another name, its recipe changed, its losses moved by `off`."""
    folder = Path("outputs", name)
    shutil.copytree(f"outputs/{NANO}", folder, ignore=shutil.ignore_patterns("training", "prepared", "gguf", "merged"))
    for path in [*folder.glob("*.json"), folder / "recipe.yml"]:
        path.write_text(path.read_text().replace(f"outputs/{NANO}/", f"outputs/{name}/").replace(f'"{NANO}"', f'"{name}"'))
    for key, value in keys.items():
        was = next(line for line in (folder / "recipe.yml").read_text().splitlines() if line.startswith(f"{key}: "))
        edit(folder / "recipe.yml", was, f"{key}: {value}")
    state, made = json.loads((folder / "adapter/trainer_state.json").read_text()), receipt.read(folder / "train.json")
    for row in state["log_history"]:
        row |= {k: row[k] + off for k in ("loss", "eval_loss") if k in row}
    made["figures"]["eval_losses"] = [x + off for x in made["figures"]["eval_losses"]]
    (folder / "adapter/trainer_state.json").write_text(json.dumps(state))
    health = [json.loads(line) for line in (folder / "health.jsonl").read_text().splitlines()]
    for row in health:
        row |= {k: row[k] + off for k in ("loss", "eval_loss") if k in row}
    (folder / "health.jsonl").write_text("".join(json.dumps(row) + "\n" for row in health))
    (folder / "train.json").write_text(json.dumps(made))
    return folder


def scored(name, passes, rows=100, stage="merged"):
    """What `make eval` leaves: row n passes where passes(n)."""
    folder, found = Path("outputs", name), []
    (folder / "eval").mkdir(exist_ok=True)
    for n, row in enumerate(data.read("datasets/pirate/eval.jsonl")[:rows]):
        ok = bool(passes(n))
        found.append({"id": row["id"], "kind": row["kind"], "prompt": row["messages"][-2]["content"], "reply": "Aye", "ended": True})
        found[-1] |= {"checks": {"style": ok, "ends": True}, "passed": ok, "nll": 40.0 + n % 7 + 3 * ok, "tokens": 10 + n % 5}
    (folder / f"eval/{stage}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    figures = {k: statistics.interval([r["passed"] for r in found]) for k in ("passed", "style")} | {
        "ends": statistics.interval([1] * rows)
    }
    figures["ppl"] = statistics.perplexity([r["nll"] for r in found], [r["tokens"] for r in found])
    figures |= {"seconds": 1.0, "tokens_per_s": 10.0}
    told = {"prompts": rows, "seed": 1, "decoding": "greedy", "stages": {stage: figures}}
    receipt.write(folder / "score.json", ["datasets/pirate/eval.jsonl"], [folder / "eval"], told, files.sha256)


def compared(*names):
    out = room("compare", *names, "--json")
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_what_differs_is_shown_and_nothing_else(chained):
    Path(f"outputs/{NANO}/score.json").unlink(missing_ok=True)
    loss = receipt.read(f"outputs/{NANO}/train.json")["figures"]["eval_losses"][-1]
    other = twin(f"{NANO}+lora_r=16", off=0.02, lora_r=16)
    out = room("compare", NANO, other.name)
    assert out.returncode == 0 and out.stderr == "", out.stderr
    lines = out.stdout.splitlines()
    assert lines[:2] == [f"compare     A  {NANO}", f"            B  {NANO}+lora_r=16"] and max(map(len, lines)) <= 120
    told = compared(NANO, other.name)
    assert told["recipe"] == {"lora_r": [64, 16]} and told["scores"] == {}
    losses = [figure["mean"] for figure in told["run"]["eval loss"]]
    assert losses == pytest.approx([loss, loss + 0.02], abs=1e-4) and told["run"]["steps"][0] == {"mean": 281, "n": 1}
    assert any(line.split() == ["lora_r", "64", "16"] for line in lines) and any(
        line.split() == ["eval", "loss", f"{losses[0]:.4g}", f"{losses[1]:.4g}"] for line in lines
    )
    said = " ".join(out.stdout.split())
    assert (
        f"B against A: {NANO} and {NANO}+lora_r=16 not scored (`make eval`), so only losses are compared: eval loss {losses[1]:.4f} against {losses[0]:.4f}, 0.0200 higher;"
        in said
    )
    assert "one seed each, so nothing tells whether another seed would differ as much" in said


def test_the_page_and_its_curves(chained):
    other = twin(f"{NANO}+lora_r=16", off=0.02, lora_r=16)
    scored(NANO, lambda n: n % 2)
    scored(other.name, lambda n: n % 3)
    page = Path(compared(NANO, other.name)["page"])
    assert page == Path(f"reports/compare/{NANO}_{other.name}/README.md")
    text, png = page.read_text(), page.with_name("curves.png").read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20]) > 1000 and "](curves.png)" in text
    for part in (
        "| lora_r | 64 | 16 |",
        f"# {NANO} against {NANO}+lora_r=16",
        "## Scores",
        "| merged  passed |",
        f'make compare RUNS="{NANO} {other.name}"',
    ):
        assert part in text, text
    from PIL import Image

    with Image.open(page.with_name("curves.png")) as picture:
        alone = len(picture.convert("RGB").getcolors(1 << 20))
    assert alone > 10, "an empty picture has one or two"
    assert room("compare", NANO, other.name).returncode == 0
    assert (page.read_text(), page.with_name("curves.png").read_bytes()) == (text, png), "the same runs give the same bytes"


def test_more_than_noise_and_no_more(chained):
    """20 of 100 rows better is more than noise; 3 better and 2 worse is not. Interval and p are those of statistics.paired over the very rows."""
    for name, passes in ((NANO, lambda n: n < 50), (f"{NANO}+lora_r=16", lambda n: n < 70), (f"{NANO}+lora_r=8", lambda n: 2 <= n < 53)):
        if name != NANO:
            twin(name, lora_r=name.split("=")[1])
        scored(name, passes)
    told = compared(NANO, f"{NANO}+lora_r=16", f"{NANO}+lora_r=8")
    good, likelier, even, _ = told["sentences"]
    wanted = statistics.paired([n < 50 for n in range(100)], [n < 70 for n in range(100)])
    assert told["scores"]["merged"]["passed"]["differences"][1] == {"prompts": wanted, "seeds": None} and wanted["p"] < 0.001
    assert good == (
        f"B against A: merged passes 20 points more (95 % interval {sentences.span(wanted)}, p < 0.001, 100 prompts): "
        "more than the noise of the prompts; one seed each, so the seed's noise is not in it"
    )
    assert even.startswith("C against A: merged passes 1 point more (95 % interval −")
    assert even.endswith("100 prompts): no more than the noise of the prompts; one seed each, so the seed's noise is not in it")
    assert told["scores"]["merged"]["ends"]["differences"][1]["prompts"]["difference"] == 0
    ppl = told["scores"]["merged"]["ppl"]
    ratio, (one, other, _) = ppl["differences"][1]["prompts"], [f["mean"] for f in ppl["figures"]]
    assert ratio["ratio"] == pytest.approx(other / one, abs=2e-4) and ratio["low"] < ratio["ratio"] < ratio["high"]
    assert likelier.startswith(f"B against A: merged's perplexity × {ratio['ratio']:.3f} (95 % interval {ratio['low']:.3f} to ")


def groups_of(*names):
    return versus.pooled(compare.gathered(names))


def test_seeds_are_repeats_and_their_noise_is_told(chained):
    """Against scipy's own t tests. Prompts alone would call the difference real; two seeds that differ as much as that do not."""
    from scipy import stats

    rates = {NANO: 50, f"{NANO}+seed=1": 60, f"{NANO}+lora_r=16": 66, f"{NANO}+lora_r=16+seed=1": 76, f"{NANO}+lora_r=16+seed=2": 71}
    for name, passing in rates.items():
        if name != NANO:
            twin(name, off=passing / 1000, **dict(change.split("=") for change in name.split("+")[1:]))
        scored(name, lambda n, passing=passing: n < passing)
    groups = groups_of(*rates)
    assert [g["names"] for g in groups] == [[NANO, f"{NANO}+seed=1"], [n for n in rates if "lora_r" in n]] and groups[1]["seeds"] == [
        42,
        1,
        2,
    ]
    assert versus.keys(groups) == {"lora_r": [64, 16], "seed": ["42, 1", "42, 1, 2"]}
    found = versus.scores(groups)["merged"]["passed"]
    before, after = ([rates[n] / 100 for n in g["names"]] for g in groups)
    theirs = stats.ttest_ind(after, before)
    runs, prompts = found["differences"][1]["seeds"], found["differences"][1]["prompts"]
    assert (runs["p"], runs["low"], runs["high"]) == pytest.approx((theirs.pvalue, *theirs.confidence_interval()))
    alone = stats.t.interval(0.95, 2, loc=0.71, scale=stats.sem(after))
    assert (found["figures"][1]["low"], found["figures"][1]["high"]) == pytest.approx(alone) and found["figures"][1]["n"] == 3
    assert prompts["difference"] == pytest.approx(0.16, abs=1e-4) and prompts["p"] < 0.01 and 0.05 < runs["p"] < 0.2
    ppl = versus.scores(groups)["merged"]["ppl"]["differences"][1]
    logs = [[math.log(r["score"]["stages"]["merged"]["ppl"]["mean"]) for r in g["runs"]] for g in reversed(groups)]
    theirs = stats.ttest_ind(*logs)
    assert [ppl["seeds"][k] for k in ("p", "low", "high")] == pytest.approx([theirs.pvalue, *map(math.exp, theirs.confidence_interval())])
    assert "; over 2 and 3 seeds " in sentences.likelihood("merged", ppl)
    said = sentences.told(groups, {"merged": {"passed": found}})
    assert (
        said[0].startswith("A is 2 runs that differ in the seed only: eval loss ")
        and said[1].startswith("B is 3 runs")
        and len(said) == 3
    )
    assert "over 2 and 3 seeds " in said[2] and said[2].endswith(": more than the noise of the prompts, not more than that of the seeds")
    real = {"prompts": prompts, "seeds": runs | {"p": 0.01}}
    assert sentences.verdict("merged", real, *groups).endswith(": more than the noise of the prompts and of the seeds")
    one = versus.pooled([r for g in groups for r in g["runs"]][1:3])  # a run each: nothing is known of the seed
    assert versus.seeds([0.5], [0.6]) is None and sentences.losses(*one).endswith("whether another seed would differ as much")
    single = versus.seeds([0.5, 0.6], [0.9])  # its own spread is taken for both sides
    assert (single["low"] + single["high"]) / 2 == pytest.approx(0.35) and single["p"] == pytest.approx(
        2 * stats.t.sf(0.35 / (0.005 * 1.5) ** 0.5, 1)
    )


def test_other_rows_are_not_compared(chained):
    other = twin(f"{NANO}+lora_r=16", lora_r=16)
    scored(NANO, lambda n: n % 2)
    scored(other.name, lambda n: n % 3, rows=90)
    said = " ".join(room("compare", NANO, other.name).stdout.split())
    assert "merged was not scored on the same rows, so the scores are not comparable; eval loss " in said and ", the same" in said
    assert "merged passed other rows" in said and " p = " not in said
    edit(other / "data.sha256", "92b3639d0508", "000000000000")
    assert sentences.losses(*groups_of(NANO, other.name)) == "their evaluation rows are not the same, so their losses are not comparable"
    assert versus.keys(groups_of(NANO, other.name))["datasets/pirate/eval.jsonl (sha256)"] == ["92b3639d0508", "000000000000"]
    edit(other / "recipe.yml", "base_model: outputs/nano/pirate", "base_model: outputs/nano/other")
    assert sentences.losses(*groups_of(NANO, other.name)).startswith("their bases are not the same")


def test_what_cannot_be_compared_is_one_line(chained):
    assert room("compare").returncode == room("compare", NANO).returncode == 2 and room("compare", NANO, NANO).returncode == 2
    one_line(room("compare", NANO, f"{NANO}+lora_r=16"), f'{NANO}+lora_r=16: not run yet; `make train RECIPE={NANO} SET="lora_r=16"`')
    goes = twin(f"{NANO}+seed=1", seed=1)
    (goes / "train.json").unlink()
    began = {
        "began": "2026-11-21T12:00:00Z",
        "steps": 281,
        "epochs": 2,
        "ranks": 1,
        "global_batch": 8,
        "trainable": 1,
        "resumed_from": 0,
        "device": "cpu",
    }
    (goes / "health.jsonl").write_text(json.dumps({"run": began}) + "\n" + json.dumps({"step": 3, "epoch": 0.02, "loss": 4.5}) + "\n")
    shutil.rmtree(goes / "adapter")
    half = twin(f"{NANO}+seed=2", seed=2)
    (half / "train.json").write_text((half / "train.json").read_text()[:200])
    line = one_line(
        room("compare", NANO, goes.name, half.name), f"{goes.name}: in progress, at step 3 of 281; compare it when it has ended"
    )
    assert f"{half}/train.json: not a whole receipt" in line
    os.utime(goes / "health.jsonl", (0, 0))
    os.utime(goes / "logs/train.log", (0, 0))
    groups = groups_of(NANO, goes.name)
    assert f"{goes.name} stopped at step 3 of 281: its figures are of that point" in sentences.told(groups, versus.scores(groups))


def test_many_and_long_columns_stay_within_the_terminal():
    lines = compare.laid_out("run", list("ABCDEFGHIJKL"), [["a measure", *["4.9441 (4.9000 to 5.0000)"] * 12], ["long", *["x" * 200] * 12]])
    assert max(map(len, lines)) <= 120 and "".join(lines).count("4.9441") == 12 and lines[0].startswith("run  ")
    groups = [{"names": ["a-very-long-name+key=value"], "runs": [{}]}] * 20
    assert len(compare.place(groups).name) < 120 and not compare.place(groups).name.endswith("-seeds")
