import json

import pytest

from scripts import data

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "not JSON"),
        (b"\xff".decode("latin1").encode("latin1"), "not JSON"),
        ("[]", "`messages` must be a list"),
        ('{"messages": []}', "`messages` must be a list"),
        (json.dumps({"messages": GOOD["messages"][:1]}), "the last message is by 'user'"),
        (json.dumps({"messages": GOOD["messages"] + GOOD["messages"][1:]}), "message 3 has role 'assistant' after 'assistant'"),
        (json.dumps({"messages": [{"role": "user", "content": " "}, GOOD["messages"][1]]}), r"message 1 \(user\) is empty"),
        (json.dumps({"messages": [{"role": "user", "content": " a"}, GOOD["messages"][1]]}), "begins or ends with blanks"),
        (json.dumps({"messages": [{"role": "human", "content": "a"}, GOOD["messages"][1]]}), "role 'human'"),
    ],
)
def test_a_faulty_row_is_named_with_file_and_line(tmp_path, line, words):
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(ValueError, match=rf"d.jsonl:2: .*{words}"):
        data.read(path)


def test_missing_and_empty_files_say_so(tmp_path):
    with pytest.raises(ValueError, match="no such dataset"):
        data.read(tmp_path / "none.jsonl")
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no rows"):
        data.read(tmp_path / "e.jsonl")


def test_all_faults_at_once(tmp_path):
    (tmp_path / "d.jsonl").write_text("{\n" * 30)
    with pytest.raises(ValueError, match="d.jsonl:1:.*d.jsonl:10:.*and 20 more"):
        data.read(tmp_path / "d.jsonl")


def test_near_finds_what_is_alike_and_only_that():
    sets = [
        data.shingles(t, 2) for t in ("how do I boil an egg", "How do I boil an egg?", "how do I fry an egg", "what is the sun made of")
    ]
    assert [(i, j) for i, j, _ in data.near(sets, 0.6)] == [(1, 0)]
    assert [(i, j) for i, j, _ in data.near(sets[:1], 0.6, sets[1:])] == [(0, 0)]
