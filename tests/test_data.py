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


SHAREGPT = {"id": "a", "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
MAPPED = {"type": "chat_template", "field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}}


def test_sharegpt_is_read_as_messages(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(SHAREGPT) + "\n")
    turns = [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert data.read(path) == [{"id": "a", "messages": [{"role": role, "content": text} for role, text in turns]}]
    assert data.view(str(path), json.dumps(MAPPED))["rows"] == [(1, turns)]
    assert data.standard(GOOD) is GOOD


@pytest.mark.parametrize(
    "said, words",
    [
        ([], "`conversations` of"),
        ([{"from": "gpt", "value": "b"}], "message 1 has role 'assistant' after None"),
        ([{"from": ["human"], "value": "a"}], "`conversations` of"),
        ([{"from": "human", "value": "a"}], "the last message is by 'user'"),
        ([{"from": "human", "value": ""}, {"from": "gpt", "value": "b"}], r"message 1 \(user\) is empty"),
    ],
)
def test_a_faulty_sharegpt_row_is_named_too(tmp_path, said, words):
    (tmp_path / "d.jsonl").write_text(json.dumps({"conversations": said}) + "\n")
    with pytest.raises(ValueError, match=f"d.jsonl:1: .*{words}"):
        data.read(tmp_path / "d.jsonl")


SLICES = ["train[:4]", "train[2:]", "train[-3:]", "train[10%:35%]", "train[-25%:]", "train[:50]", "train", None]


def test_a_slice_names_the_rows_that_datasets_takes(tmp_path):
    """Axolotl hands `split` to load_dataset, whose reader resolves the slice."""
    from datasets.arrow_reader import ReadInstruction

    for split in SLICES:
        part = ReadInstruction.from_spec(split or "train").to_absolute({"train": 23})[0]
        assert data.sliced(list(range(23)), split) == list(range(23))[part.from_ or 0 : 23 if part.to is None else part.to], split


def test_rows_of_slices_are_counted_and_shown(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 10)
    entries = [{"path": str(path), "split": "train[:4]"}, {"path": str(path), "split": "train"}]
    assert data.count(entries, [path, path]) == 14 and data.count([], []) == data.count(None, []) == 0
    assert data.count([*entries, {"path": "somebody/rows", "split": "train[:4]"}], [path, path]) is None
    view = data.view(
        str(path), json.dumps(MAPPED | {"split": "train[7:]", "field_messages": "messages", "message_property_mappings": None})
    )
    assert (view["count"], [n for n, _ in view["rows"]]) == (3, [8, 9, 10])
