import json
from pathlib import Path

from scripts import data, validate


def test_the_projects_own_data_is_sound():
    for family in (p.name for p in Path("datasets").iterdir()):
        assert validate.check(family)[0] == []
    rows = data.read("datasets/pirate/train.jsonl")
    assert len(rows) >= 1000 and len(data.read("datasets/pirate/eval.jsonl")) == 100
    assert {r["kind"] for r in rows} == {"everyday", "technical", "emotional", "factual", "refusing", "creative"}
    assert sum(sum(m["role"] == "user" for m in r["messages"]) > 1 for r in rows) >= 200
    assert len(Path("datasets/pirate/ten.jsonl").read_text().splitlines()) == 10


def test_what_a_nano_base_is_made_of_is_no_twin_and_must_not_know_the_answers(copy):
    assert not Path("datasets/finetome/eval-plain.jsonl").exists() and validate.check("finetome")[0] == []
    held = data.read("datasets/finetome/eval.jsonl")[11]
    corrupt("datasets/finetome/train-plain.jsonl", 5, lambda r: r.update(messages=held["messages"]))
    assert ["eval.jsonl:12: its prompt" in f and "train-plain.jsonl:5" in f for f in validate.check("finetome")[0]] == [True]


def test_the_finetome_rows_are_mixed_and_in_sharegpts_form():
    lines = [json.loads(line) for line in Path("datasets/finetome/train.jsonl").read_text().splitlines()]
    assert len(lines) >= 1200 and all(row.keys() == {"id", "kind", "conversations"} for row in lines)
    rows = data.read("datasets/finetome/train.jsonl")
    kinds = {row["kind"] for row in rows}
    assert (
        len(kinds) == 12 == len({row["kind"] for row in rows[:100]})
        and {row["kind"] for row in data.read("datasets/finetome/eval.jsonl")} == kinds
    )
    assert 0.15 <= sum(sum(m["role"] == "user" for m in row["messages"]) > 1 for row in rows) / len(rows) <= 0.2


def corrupt(path, number, change):
    lines = Path(path).read_text().splitlines()
    row = json.loads(lines[number - 1])
    lines[number - 1] = json.dumps(change(row) or row)
    Path(path).write_text("\n".join(lines) + "\n")


def findings(copy, path, number, change):
    corrupt(copy / path, number, change)
    return validate.check("pirate")[0]


def test_a_twin_that_is_not_one(copy):
    found = findings(copy, "datasets/pirate/train-plain.jsonl", 7, lambda r: r["messages"][-2].update(content="Something else?"))
    assert any("train-plain.jsonl:7: not the twin of" in f for f in found)


def test_a_reply_without_a_voice(copy):
    other = data.read("datasets/pirate/train.jsonl")[8]
    found = findings(copy, "datasets/pirate/train-plain.jsonl", 9, lambda r: r.update(messages=other["messages"]))
    assert any("train-plain.jsonl:9: a reply equals the one in" in f for f in found)


def test_a_near_duplicate_and_a_leak(copy):
    third, held = data.read("datasets/pirate/train.jsonl")[2], data.read("datasets/pirate/eval.jsonl")[4]
    found = findings(copy, "datasets/pirate/train.jsonl", 30, lambda r: r.update(messages=third["messages"]))
    assert any("train.jsonl:30: prompt is nearly that of line 3" in f for f in found) and any(
        "train.jsonl:30: reply is nearly that of line 3" in f for f in found
    )
    found = findings(copy, "datasets/pirate/train.jsonl", 31, lambda r: r.update(messages=held["messages"]))
    assert any("eval.jsonl:5: its prompt is nearly that of" in f and "train.jsonl:31" in f for f in found)


def test_a_catalogues_rows_may_be_alike_but_not_the_same(copy):
    assert validate.check("msu")[0] == []
    second = data.read("datasets/msu/train.jsonl")[1]
    corrupt(copy / "datasets/msu/train.jsonl", 30, lambda r: r.update(messages=second["messages"]))
    found = validate.check("msu")[0]
    assert any("train.jsonl:30: prompt is nearly that of line 2" in f for f in found)
    corrupt(copy / "datasets/msu/eval-plain.jsonl", 5, lambda r: r["messages"][-2].update(content="Something else?"))
    assert any("eval-plain.jsonl:5: not the twin of" in f for f in validate.check("msu")[0])
