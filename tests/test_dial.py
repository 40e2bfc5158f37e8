import json
import math
from pathlib import Path

import pytest

from conftest import one_line, room
from scripts import dial, recipe
from scripts.scoring import scaling

GRID = [n / 8 for n in range(9)]


def share(mean, wide=0.05):
    return {"mean": mean, "low": max(0.0, mean - wide), "high": min(1.0, mean + wide), "n": 100}


def rows(tasks, costs, remembered=True):
    """A sweep with these shares and nats."""
    found = []
    for strength, task, cost in zip([0, *dial.STRENGTHS], tasks, costs, strict=True):
        ppl = 5 * math.exp(cost)
        one = {
            "strength": strength,
            "task": share(task),
            "ppl": {"mean": ppl, "low": 0.8 * ppl, "high": 1.25 * ppl, "n": 20},
            "task_ppl": {"mean": 100 * math.exp(-task), "n": 120},
            "learned": task,
            "forgotten": cost,
        }
        found.append(one | {"remembered": share(0.9 * math.exp(-cost)) if remembered else None})
    return found


TASK, COST = [0.02, 0.3, 0.62, 0.7, 0.72, 0.74, 0.75, 0.6, 0.3], [0, 0.02, 0.1, 0.3, 0.6, 1.2, 2.0, 3.1, 4.0]


def test_the_knee_is_where_the_curve_lies_farthest_above_its_chord():
    circle = [(x, math.sqrt(1 - (1 - x) ** 2)) for x in GRID]  # its slope is 1 at 1 − 1/√2 = 0.29
    assert dial.knee(circle) == 2 and GRID[2] == 0.25
    assert dial.knee([(100 * x, 3 + 7 * y) for x, y in circle]) == 2  # units don't matter
    assert dial.knee(circle[::-1]) == 6  # nor the order
    assert dial.knee(list(zip(COST, TASK))) == 3  # falling in the end, too


@pytest.mark.parametrize(
    "points",
    [
        [(x, x) for x in GRID],
        [(x, x**2) for x in GRID],
        [(x, x + 0.05 * math.sin(math.pi * x)) for x in GRID],  # hardly bent
        [(x, 1.0) for x in GRID],
        [(0.0, x) for x in GRID],
        [(0.0, 0.0), (1.0, 1.0)],
    ],
)
def test_no_knee_where_the_curve_has_none(points):
    assert dial.knee(points) is None


def test_what_is_said():
    found, said = dial.judged(rows(TASK, COST))
    assert found["strength"] == 0.75 and said.startswith(
        "the knee is at 0.75 ×: 70 % of the task for 0.30 nats a token forgotten; 1 × does 2 points more, at "
    )
    assert dial.judged(rows([0.02] * 9, COST)) == (None, "no knee: no strength does more of the task than the base does")
    found, said = dial.judged(rows([0.1 * t for t in TASK], COST))  # as many rows pass as by chance, but the replies are likelier
    assert found["strength"] == 0.75 and said.startswith(
        "the knee is at 0.75 ×: 0.07 nats a token learned for 0.30 nats a token forgotten; 1 × does 0.00 nats more, at "
    )
    assert said.endswith("(no strength passes more rows than the base does, beyond the noise)")
    assert dial.judged(rows(TASK, [-c for c in COST]))[1].startswith("no knee: nothing was forgotten up to 4 ×; 2 × does most")
    assert dial.judged(rows([c / 5 for c in COST], COST))[1].startswith("no knee: task over forgetting does not flatten")


def test_the_table_and_the_picture_show_it(copy):
    swept = rows(TASK, COST)
    found, _ = dial.judged(swept)
    lines = dial.table(swept, found)
    assert (
        len(lines) == 10
        and lines[1].startswith("0 base")
        and lines[4].split()[:3] == ["0.75", "knee", "70"]
        and "+0.700" in lines[4]
        and "+0.300" in lines[4]
    )
    drawn = dial.picture(swept, found, ["eval.jsonl", "again.jsonl"])
    assert drawn[:4] == b"\x89PNG" and drawn == dial.picture(swept, found, ["eval.jsonl", "again.jsonl"])
    assert drawn != dial.picture(swept, None, ["eval.jsonl", "again.jsonl"])
    bare = rows(TASK, COST, remembered=False)
    assert dial.picture(bare, None, ["eval.jsonl", "eval-plain.jsonl"])[:4] == b"\x89PNG" and "still right" not in dial.table(bare, None)[0]
    dial.keep("pirate-nano", {"knee": 1}, drawn)
    assert Path("reports/pirate-nano/dial.png").read_bytes() == drawn and json.loads(Path("reports/pirate-nano/dial.json").read_text()) == {
        "knee": 1
    }


def test_which_rows_the_base_knew(copy):
    def known(name):
        return str(dial.known(name, recipe.load(name)))

    assert known("msu-nano") == "datasets/msu/again.jsonl" and known("msu") == "datasets/msu/general.jsonl"
    assert known("pirate-nano") == "datasets/pirate/eval-plain.jsonl"
    cfg = recipe.load("msu-nano")
    cfg["datasets"][0]["path"] = "datasets/msu/again.jsonl"  # trained, so not told by what is forgotten
    assert str(dial.known("msu-nano", cfg)) == "datasets/msu/general.jsonl"
    Path("datasets/pirate/eval-plain.jsonl").unlink()
    with pytest.raises(
        ValueError, match="datasets/pirate: no again.jsonl or general.jsonl or eval-plain.jsonl; write rows that the base knows"
    ):
        known("pirate-nano")


def test_wrong_strengths_and_nothing_to_dial(copy):
    assert dial.strengths_of([]) == dial.STRENGTHS and dial.strengths_of(["2", "1.0", "2"]) == [1.0, 2.0]
    for wrong in (["0"], ["-1", "2"], ["two"], ["nan"], ["inf"]):
        with pytest.raises(ValueError, match='positive numbers, such as BY="0.5 1 2"'):
            dial.strengths_of(wrong)
    one_line(room("dial", "pirate-nano"), "nothing was made there yet; `make dial RECIPE=pirate-nano` makes it")
    one_line(room("dial", "pirat-nano"), "did you mean pirate-nano?")
    assert room("snapshot", "msu").returncode == 0
    one_line(room("dial", "msu"), "no train.json", "`make train RECIPE=msu` makes it")
    assert room("dial").returncode == 2 and room("dial", "msu", "--limit", "0").returncode == 2


def test_a_turned_adapter_is_a_scaled_one():
    import torch
    from peft import LoraConfig, get_peft_model

    def small():
        torch.manual_seed(1)
        plain = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Linear(16, 8))
        return get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=["0", "1"], init_lora_weights=False)).eval()

    x, turned = torch.randn(5, 12), small()
    turn, trained = scaling.turning(turned), turned(x)
    for by in (2, 0.3, 0, 3):  # each of what was trained, not of the one before
        turn(by)
        scaled = small()
        for name, p in scaled.named_parameters():
            p.data *= by if "lora_B" in name else 1
        assert torch.allclose(turned(x), scaled(x), atol=1e-5) and not torch.allclose(turned(x), trained, atol=1e-3), by
    turn(1)
    assert torch.equal(turned(x), trained)


def test_twice_in_memory_is_twice_on_disk(chained):
    def swept(name, *strengths):
        done = room("dial", name, *strengths, "--limit", "2", "--json")
        assert done.returncode == 0, done.stderr
        return {r["strength"]: r for r in json.loads(done.stdout)["strengths"]}

    assert room("snapshot", "pirate-nano+x_strength=2.0").returncode == 0 and room("strength", "pirate-nano+x_strength=2.0").returncode == 0
    memory, disk = swept("pirate-nano", "1", "2"), swept("pirate-nano+x_strength=2.0", "1")
    assert memory[0]["ppl"] == disk[0]["ppl"] and memory[2]["ppl"]["mean"] == pytest.approx(disk[1]["ppl"]["mean"], rel=1e-4)
    assert (
        len({memory[s]["ppl"]["mean"] for s in (0, 1, 2)}) == 3
        and memory[0]["forgotten"] == 0 < memory[1]["forgotten"] < memory[2]["forgotten"]
    )
    assert not list(Path("reports/pirate-nano").glob("dial.*"))  # a quick look leaves nothing
