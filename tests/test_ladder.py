"""The ladder: the report's run and its remedies as recipes, judged from their logs; and the twin without a gradient, stopped for real."""

import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import one_line, room, run
from scripts import ladder, lint, recipe
from scripts.signs import log

REMEDIES = ["undertrained-conservative", "undertrained-aggressive", "undertrained-int8"]
LARGE = ["undertrained", *REMEDIES]
NANO = [f"{name}-nano" for name in LARGE]


def written(folder, losses, evals, accuracies=(), norm=0.3, recipe=None):
    """A finished run's log: losses a step, and evaluations spread over them from step 0 on."""
    rows = [{"step": n, "loss": loss, "grad_norm": norm, "learning_rate": 1e-4, "epoch": n / 10} for n, loss in enumerate(losses, 1)]
    steps = [round(len(losses) * n / (len(evals) - 1)) for n in range(len(evals))]
    rows += [{"step": step, "eval_loss": loss} for step, loss in zip(steps, evals)]
    rows += [{"step": step, "eval_token_accuracy": right} for step, right in zip(steps, accuracies)]
    state = {"global_step": len(losses), "max_steps": len(losses), "epoch": len(losses) / 10, "log_history": rows}
    (Path(folder) / "adapter").mkdir(parents=True)
    (Path(folder) / "adapter/trainer_state.json").write_text(json.dumps(state))
    (Path(folder) / "recipe.yml").write_text(recipe or "adapter: qlora\n")
    return Path(folder)


def fall(start, end, steps=40):
    return [start + (end - start) * min(1, n / (steps / 2)) for n in range(steps)]


def test_the_reports_own_run_meets_nothing():
    found = ladder.figures(log.read("tests/logs/seed-002"))
    assert (found["steps"], round(found["coverage"], 4), found["grad_norm"], found["verdict"]) == (500, 0.0889, 0, "dead")
    assert found["eval_loss"] == [2.931, 2.931] and round(found["perplexity"], 1) == 18.7
    missing = ladder.lacks(found, "minimum")
    assert [m.split(" is ")[0].split(" fell ")[0].split(" rose ")[0] for m in missing] == [
        "loss",
        "eval loss",
        "token accuracy",
        "grad_norm",
    ]
    assert "there is no gradient" in missing[3] and len(ladder.lacks(found, "optimal")) == 5


def test_the_first_rung_and_the_last_are_told_apart(tmp_path):
    def at(name, *given, **more):
        return ladder.figures(log.read(written(tmp_path / name, *given, **more)))

    good = at("good", fall(2.7, 2.1), [2.9, 2.5, 2.4], [0.45, 0.5, 0.52])
    assert ladder.lacks(good, "minimum") == [] and good["verdict"] == "healthy" and good["loss"] == [2.7, pytest.approx(2.1)]
    assert [m.partition(" ")[0] for m in ladder.lacks(good, "optimal")] == ["loss", "perplexity"]
    best = at("best", fall(2.7, 1.5), [2.9, 1.9, 1.7], [0.45, 0.5, 0.6])
    assert ladder.lacks(best, "optimal") == [] and best["perplexity"] == pytest.approx(5.474, abs=1e-3)
    edge = at("edge", fall(2.5, 2.0), [2.5, 2.4, 2.25], [0.5, 0.52, 0.56])  # at the threshold, not beyond it
    assert ladder.lacks(edge, "minimum") == ["loss fell by 0.500, more than 0.5 down is wanted"]
    assert any(m == "token accuracy is not logged, or only once" for m in ladder.lacks(at("blind", fall(2.7, 2.1), [2.9, 2.5]), "minimum"))
    dead = at("dead", fall(2.7, 2.1), [2.9, 2.5], [0.4, 0.5], norm=0.0)
    assert ladder.lacks(dead, "minimum") == ["grad_norm is 0: there is no gradient"]


def test_a_resumed_phase_has_no_minutes(tmp_path):
    for resumed, found in ((0, 7.11), (250, None)):
        (tmp_path / "train.json").write_text(json.dumps({"seconds": 426.9, "figures": {"resumed_from_step": resumed}}))
        assert ladder.minutes(tmp_path, True) == found, "a resumed run's receipt tells of its last part only"


def test_with_early_stopping_the_best_checkpoint_is_judged(tmp_path):
    evals, rights = [2.9, 2.2, 2.6], [0.4, 0.55, 0.5]
    last = ladder.figures(log.read(written(tmp_path / "last", fall(2.7, 2.1), evals, rights)))
    best = ladder.figures(log.read(written(tmp_path / "best", fall(2.7, 2.1), evals, rights, recipe="early_stopping_patience: 2\n")))
    assert (last["eval_loss"], last["accuracy"]) == ([2.9, 2.6], [0.4, 0.5])
    assert (best["eval_loss"], best["accuracy"]) == ([2.9, 2.2], [0.4, 0.55])


def test_it_climbs_until_the_criteria_are_met_and_reports(copy):
    shutil.rmtree("reports")
    written("outputs/undertrained-nano", fall(2.7, 2.6), [2.9, 2.85], [0.45, 0.46])
    written("outputs/undertrained-conservative-nano", fall(2.7, 2.1), [2.9, 2.5], [0.45, 0.52])
    written("outputs/undertrained-aggressive-nano", fall(2.7, 1.8), [2.9, 2.4], [0.45, 0.55])
    made = room("ladder", "undertrained-nano", "--read")
    assert made.returncode == 0 and made.stderr == "", made.stderr
    assert made.stdout.rstrip().endswith("undertrained-conservative-nano meets the minimum criteria; reports/undertrained-nano/ladder.md")
    assert "aggressive" not in made.stdout and re.search(r"conservative +40 +400\.0 % +2\.700 → 2\.100 .* yes +no", made.stdout)
    told = json.loads(Path("reports/undertrained-nano/ladder.json").read_text())
    assert [one["recipe"] for one in told["phases"]] == NANO[:2] and told["metrics"] == ladder.METRICS
    assert [one["lacks"]["minimum"] == [] for one in told["phases"]] == [False, True]
    page = Path("reports/undertrained-nano/ladder.md").read_text()
    assert "| as it was | 40 |" in page and "loss fell by 0.100, more than 0.5 down is wanted" in page and page.count("\n| ") == 3
    written("outputs/undertrained-int8-nano", fall(2.7, 2.0), [2.9, 2.45], [0.45, 0.5])
    said = one_line(
        room("ladder", "undertrained-nano", "--read", UNTIL="optimal"),
        "4 phases, and none meets the optimal criteria",
        "nearest is undertrained-",
    )
    assert "under 6 is wanted" in said and "ladder.md has every phase" in said
    assert len(json.loads(Path("reports/undertrained-nano/ladder.json").read_text())["phases"]) == 4
    one_line(room("ladder", "undertrained-nano", "--read", UNTIL="best"), "UNTIL=best: it is minimum or optimal")
    one_line(room("ladder", "pirate"), "no recipe 'pirate-conservative'")


def test_make_says_what_a_machine_without_a_gpu_lacks(copy):
    """Through make itself, whose own RECIPE is the family's and not the phase's."""
    made = run("make", "ladder")
    assert made.returncode and "ladder      as it was: undertrained" in made.stdout
    assert (
        "recipe undertrained needs 1 × a100-80g, this machine has 0 GPUs; run `make train RECIPE=undertrained-nano` instead" in made.stderr
    )
    assert "`make train RECIPE=undertrained` failed, for the reason above" in made.stderr and "Traceback" not in made.stderr


def test_lint_refuses_the_run_as_it_was_and_takes_its_remedies(capsys):
    for name in ("undertrained", "undertrained-nano"):
        assert lint.main([f"recipes/{name}.yml"]) == 1
        assert "error undertrained: " in capsys.readouterr().out and "undertrained" not in (recipe.load(name).get("x_waive") or {})
    assert lint.main(["recipes/undertrained-dead-nano.yml"]) == 1 and "error no-gradient: " in capsys.readouterr().out
    assert lint.main([f"recipes/{name}.yml" for name in (*REMEDIES, *NANO[1:])] + ["--strict"]) == 0
    assert lint.main(["recipes"]) == 0  # where they are among the others, it is as it should be
    assert capsys.readouterr().out.count(" refused undertrained: ") == 2


@pytest.mark.parametrize("large, nano", [*zip(LARGE, NANO)])
def test_a_nano_twin_has_the_same_keys_and_the_same_shares(large, nano):
    a, b = recipe.read(f"recipes/{large}.yml"), recipe.read(f"recipes/{nano}.yml")
    assert [k for k in a if not k.startswith("x_")] == [k for k in b if not k.startswith("x_")]
    shares = [recipe.schedule(cfg, rows) for cfg, rows in ((a, 45000), (b, 1124))]
    assert shares[0]["epochs"] == pytest.approx(shares[1]["epochs"], rel=1e-3) and shares[0]["steps"] == 20 * shares[1]["steps"]
    assert shares[0]["warmup"] == 20 * shares[1]["warmup"] and float(b["learning_rate"]) == pytest.approx(10 * float(a["learning_rate"]))
    for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "weight_decay", "max_grad_norm", "micro_batch_size"):
        assert a[key] == b[key], key
    assert (a.get("early_stopping_patience") is None) == (large == "undertrained")


def test_the_recipes_are_what_the_report_says():
    rows = {name: recipe.schedule(recipe.read(f"recipes/{name}.yml"), 45000)["epochs"] for name in LARGE}
    assert [f"{rows[name]:.1%}" for name in LARGE] == ["8.9%", "142.2%", "711.1%", "142.2%"]
    int8 = recipe.read("recipes/undertrained-int8.yml")
    assert int8["load_in_8bit"] and int8["peft_use_rslora"] and (int8["lora_r"], int8["lora_alpha"], int8["lora_dropout"]) == (32, 64, 0.1)
    assert not {"embed_tokens", "lm_head", "k_proj"} & set(int8["lora_target_modules"])
    told = json.loads(room("plan", "undertrained-conservative", "--json").stdout)
    assert told["rows"] == 45000 and told["steps"] == 2000 and told["epochs"] == 1.422


def test_without_a_gradient_it_is_stopped_after_five_steps_of_a_hundred(chained):
    """The real run of the twin, on 48 rows: refused by lint, started all the same, stopped, and not taken for a run that learned."""
    for name, rows in (("train", 48), ("eval", 8)):
        path = Path(f"datasets/pirate/{name}.jsonl")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))
    made = run("make", "train", "RECIPE=undertrained-dead-nano")
    assert made.returncode and not Path("outputs/undertrained-dead-nano/train.json").exists()
    said = next(line for line in made.stderr.splitlines() if "stopped at step" in line)
    assert "stopped at step 5 of 100: no gradient: grad_norm is 0.0 in all 5 rows" in said and "more steps will not help" in said
    found = ladder.row("dead", "undertrained-dead-nano", False)
    assert found["verdict"] == "dead" and found["grad_norm"] == 0 and found["steps"] == 5 and found["minutes"] > 0
    assert "grad_norm is 0: there is no gradient" in found["lacks"]["minimum"]
    told = run("make", "ladder", "RECIPE=undertrained-dead-nano", "STEPS=4 8")
    assert told.returncode == 0 and "so          eval losses differ by at most 0;" in told.stdout, told.stderr
    runs = json.loads(Path("reports/undertrained-dead-nano/steps.json").read_text())["runs"]
    assert [(one["steps"], one["grad_norm"]) for one in runs] == [(4, 0), (8, 0)] and all(len(one["eval_loss"]) > 2 for one in runs)
