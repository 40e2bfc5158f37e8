import json
from pathlib import Path

import pytest

from conftest import room
from scripts import files, matrix, recipe
from scripts.runs import book, claims, gather

BETTER = {
    "claim": "Rank 64 beats rank 8",
    "source": "a report",
    "runs": ["pirate-nano", "pirate-nano+lora_r=8"],
    "figure": "eval_loss",
    "says": "lower",
}


def rows(a, b, figure="eval_loss"):
    """A line of the log for each seed of both runs."""
    found = []
    for name, values in zip(BETTER["runs"], (a, b)):
        found += [{"recipe": f"{name}+seed={n}", "run": f"2026 {name} {n}", figure: str(v)} for n, v in enumerate(values, 1)]
    return found


@pytest.mark.parametrize(
    "says, a, b, verdict",
    [
        ("lower", [4.0, 4.1, 4.2, 4.0, 4.1], [5.0, 5.2, 5.1, 5.0, 5.1], "holds"),
        ("higher", [4.0, 4.1, 4.2, 4.0, 4.1], [5.0, 5.2, 5.1, 5.0, 5.1], "the opposite holds"),
        ("lower", [4.0, 5.1, 4.2, 4.0, 4.1], [5.0, 4.2, 4.3, 4.1, 4.0], "not told apart"),
        ("same", [4.00, 4.01, 4.02, 4.0, 4.0], [4.01, 4.01, 4.02, 4.0, 4.0], "holds"),
        ("same", [4.0, 4.1, 4.2, 4.0, 4.1], [5.0, 5.2, 5.1, 5.0, 5.1], "does not hold"),
        ("same", [4.0, 5.1, 4.2, 4.0, 4.1], [5.0, 4.2, 4.3, 4.1, 4.0], "not told apart"),
        ("same", [4.03, 4.06, 4.04, 4.07, 4.05], [4.0, 4.0, 4.0, 4.0, 4.0], "they differ; whether by more than 0.05 is open"),
        ("lower", [4.0, 4.0], [5.0, 5.0], "not measured yet: 2 of 5 seeds"),
        ("lower", [], [5.0], "not measured yet"),
    ],
)
def test_a_claim_of_runs(says, a, b, verdict):
    assert claims.judged(BETTER | {"says": says, "within": 0.05}, rows(a, b))[1] == verdict


def test_the_interval_is_students_over_the_seeds():
    mean, low, high = claims.interval([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.3027, s/√n = 0.57735
    assert (mean, round(low, 4), round(high, 4)) == (2.0, -0.4841, 4.4841)
    text, _ = claims.judged(BETTER | {"figure": "score", "says": "higher"}, rows([0.5, 0.6], [0.4, 0.5], "score"))
    assert text == "score +10.0 points (+10.0 to +10.0), 2 seeds"
    late = [{"recipe": "pirate-nano+seed=1", "run": "2027", "eval_loss": "3.0"}]
    assert claims.differences(BETTER, rows([4.0], [5.0]) + late) == [-2.0], "the latest run of a name counts"
    assert claims.differences(BETTER, [row | {"scored": row["recipe"][:14]} for row in rows([4.0], [5.0])]) == [], "other stages, other scores"


def test_a_claim_of_a_figure(tmp_path):
    claim = {"claim": "x", "source": "y", "file": str(tmp_path / "f.json"), "key": "a.1", "between": [3.9, 4.1]}
    assert claims.judged(claim, []) == ("", "not measured yet")
    (tmp_path / "f.json").write_text(json.dumps({"a": [1, 4.0]}))
    assert claims.judged(claim, []) == ("a.1 4", "holds")
    assert claims.judged(claim | {"between": [1, 2]}, [])[1] == "does not hold"
    assert "has no a.z" in claims.judged(claim | {"key": "a.z"} | {"file": str(write(tmp_path / "g.json", {"a": {}}))}, [])[1]


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def test_the_projects_own_claims_can_be_judged_and_their_runs_exist():
    for name in claims.names(claims.read()):
        recipe.load(name)


@pytest.mark.parametrize("change", [{"says": "better"}, {"runs": ["one"]}, {"source": ""}, {"says": "same"}])
def test_a_claim_that_cannot_be_judged_is_one_line(tmp_path, change):
    path = tmp_path / "claims.yml"
    path.write_text(json.dumps({"claims": [BETTER | change]}))
    with pytest.raises(ValueError, match="claim 1 wants claim, source, and either runs"):
        claims.read(path)


def test_every_twin_and_what_the_claims_need_seed_by_seed(copy):
    Path("recipes/facts/claims.yml").write_text(json.dumps({"claims": [BETTER, BETTER | {"figure": "score"}]}))
    needed = matrix.wanted()
    assert set(n for n in recipe.names() if n.endswith("-nano")) < set(needed) and len(needed) == len(set(needed))
    repeats = [n for n in needed if "+seed=" in n]
    assert len(repeats) == 2 * claims.SEEDS and repeats[:2] == ["pirate-nano+seed=1", "pirate-nano+lora_r=8+seed=1"]


def test_what_stands_is_known_by_its_recipe_and_data(copy):
    done = room("snapshot", "pirate-nano+seed=1")
    assert done.returncode == 0, done.stderr
    line = dict.fromkeys(book.COLUMNS) | {
        "run": "2026 x",
        "recipe": "pirate-nano+seed=1",
        "status": "healthy",
        "scored": "adapter",
        "minutes": 2.0,
    }
    book.record(line | {"key": gather.key("outputs/pirate-nano+seed=1")})
    assert matrix.logged("pirate-nano+seed=1", book.read()) and not matrix.logged("pirate-nano+seed=2", book.read())
    assert "`pirate-nano+seed=1`" not in book.INDEX.read_text(), "a repeat is no row of its own"
    Path("recipes/facts/claims.yml").write_text(json.dumps({"claims": [BETTER]}))
    told = room("matrix", "--list")
    assert told.returncode == 0 and "stands      pirate-nano+seed=1\n" in told.stdout and "to do       pirate-nano+seed=2\n" in told.stdout
    path = Path("recipes/pirate-nano.yml")
    files.write_if_changed(path, path.read_text().replace("learning_rate: 2e-3", "learning_rate: 1e-3"))
    assert not matrix.logged("pirate-nano+seed=1", book.read()), "another recipe now"


def test_the_index_shows_the_claims(copy):
    Path("recipes/facts/claims.yml").write_text(json.dumps({"claims": [BETTER | {"note": "A note."}]}))
    book.renew()
    text = book.INDEX.read_text()
    assert "| Rank 64 beats rank 8 | a report | –<br>`pirate-nano` against `pirate-nano+lora_r=8` | **not measured yet**. A note. |" in text
    Path("recipes/facts/claims.yml").unlink()
    book.renew()
    assert "Claims" not in book.INDEX.read_text()
