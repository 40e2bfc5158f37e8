import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from conftest import ROOT, one_line, room

from scripts import data, questions

ASKED = [  # what every dialect below must come to
    ("Which is largest, if any?", ["the Moon", "the Sun", 'the "Rock"', "a pea"], "B"),
    ("Two plus\ntwo?", ["3", "5", "4", "22"], "C"),
    ("Which river, by length?", ["Nile", "Seine", "Elbe", "Rhine"], "A"),
    ("Which is a dog?", ["a rose", "a stone", "a song", "a poodle"], "D"),
]
LISTS = [json.dumps(options) for _, options, _ in ASKED]


def write(path, header, cells, delimiter=",", newline="\r\n", bom=False):
    """A CSV file with every field quoted, as spreadsheets may write it."""
    rows = [header, *cells]
    text = newline.join(delimiter.join('"' + str(c).replace('"', '""') + '"' for c in row) for row in rows) + newline
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    return path


def spread(answer):
    return [[question, *options, answer(letter, options)] for question, options, letter in ASKED]


def index(first):
    return lambda letter, options: "ABCD".index(letter) + first


BY_LETTER, BY_TEXT = spread(lambda letter, options: letter), spread(lambda letter, options: options["ABCD".index(letter)])
PLAIN = ["question", "option_a", "option_b", "option_c", "option_d", "answer"]


@pytest.mark.parametrize(
    "header, cells, how",
    [
        (PLAIN, BY_LETTER, {}),
        (["Nr; Frage", *PLAIN], [[n, *row] for n, row in enumerate(BY_LETTER, 1)], {"delimiter": ";", "bom": True}),
        (["PROMPT", "A", "B", "C", "D", "Correct"], BY_LETTER, {"delimiter": "\t", "newline": "\n"}),
        (["Query", "Option 1", "Option 2", "Option 3", "Option 4", "Label"], spread(index(1)), {"delimiter": "|"}),
        (["question", "opa", "opb", "opc", "opd", "cop"], spread(index(0)), {"newline": "\r"}),
        (["Question", "choice1", "choice2", "choice3", "choice4", "Correct Answer"], BY_TEXT, {}),
        (["q", "A", "B", "C", "D", "Key"], spread(lambda letter, options: f" ({letter.lower()}) "), {}),
        (["question", "choices", "label"], [[q, listed, index(0)(x, [])] for (q, _, x), listed in zip(ASKED, LISTS)], {"delimiter": ";"}),
        (["question", "options", "answer"], [[q, repr(o), x] for q, o, x in ASKED], {}),
        (["question", "choices", "answer"], [[q, "\n".join(o), f"option {x}"] for q, o, x in ASKED], {}),
        (["question", "answer", "label", "B", "A", "C", "D"], [[q, "?", x, o[1], o[0], o[2], o[3]] for q, o, x in ASKED], {}),
    ],
)
def test_dialects_come_to_the_same(tmp_path, header, cells, how):
    rows, faults = questions.read(write(tmp_path / "q.csv", header, cells, **how))
    assert faults == []
    assert [(row["question"], row["options"], row["answer"]) for row in rows] == ASKED


def test_short_answers_and_what_else_is_accepted(tmp_path):
    path = write(
        tmp_path / "q.csv", ["Q", "A", "Topic", "Also"], [["Who?", "I", "us", "me | myself|"], ["Why, then?", "So.\r\nThus.", "", ""]]
    )
    rows, faults = questions.read(path)
    made = [questions.chat(f"x-{n}", row, held=True) for n, row in enumerate(rows)]
    assert faults == [] and [data.row_fault(row) for row in made] == [None, None]
    assert [row["checks"] for row in made] == [{"f1": ["I", "me", "myself"]}, {"f1": ["So.\nThus."]}]
    assert [row["kind"] for row in made] == ["us", "question"]
    assert "checks" not in questions.chat("x", rows[0])


def test_a_row_of_multiple_choice():
    row = {"question": "Which?", "options": ["this", "that"], "answer": "B", "subject": "logic", "also": ""}
    assert questions.chat("t-1", row, held=True) == {
        "id": "t-1",
        "kind": "logic",
        "messages": [{"role": "user", "content": "Which?\nA) this\nB) that"}, {"role": "assistant", "content": "B"}],
        "checks": {"choice": "B"},
    }


def test_an_option_that_is_called_like_a_letter(tmp_path):
    cells = [["Which blood group?", "O", "A", "AB", "B", "B"], ["Which city?", "Rome", "Oslo", "Bern", "Kyiv", "Bern"]]
    rows, faults = questions.read(write(tmp_path / "q.csv", PLAIN, cells))
    assert faults == [] and [row["answer"] for row in rows] == ["D", "C"]  # by text, as the whole file


def test_an_option_stands_on_one_line(tmp_path):
    path = write(tmp_path / "q.csv", PLAIN, [["Which poem?", "an ode\nto joy", "a  sonnet", "a song", "a hymn", "An Ode\nto Joy"]])
    rows, faults = questions.read(path)
    assert faults == [] and rows[0]["answer"] == "A" and rows[0]["options"][:2] == ["an ode to joy", "a sonnet"]


def test_options_in_one_field_that_are_none(tmp_path):
    cells = [["One?", "[1, 2", "A"], ["Two?", "", "A"], ["Nine?", "1|2|3|4|5|6|7|8|9", "A"], ["Fine?", "yes|no", "B"]]
    _, faults = questions.read(write(tmp_path / "q.csv", ["question", "choices", "answer"], cells))
    told = dict(fault.removeprefix(f"{tmp_path}/q.csv:").split(": ", 1) for fault in faults if "a question needs two to eight" in fault)
    assert {line: what[:9] for line, what in told.items()} == {"2": "0 options", "3": "0 options", "4": "9 options"}
    assert len(faults) == 3


def test_an_empty_last_column_is_no_option(tmp_path):
    cells = [["One?", "a", "b", "c", "", "B"], ["Two?", "a", "b", "c", "d", "D"]]
    rows, faults = questions.read(write(tmp_path / "q.csv", PLAIN, cells))
    assert faults == [] and [len(row["options"]) for row in rows] == [3, 4]


GOOD = 'question,a,b,c,d,answer\n"Two\nlines, really?",x,y,z,w,B\nAnd this?,1st,2nd,3rd,4th,C\n'  # three lines of file, then the fourth


@pytest.mark.parametrize(
    "line, words",
    [
        (",k,l,m,n,A", "question is empty"),
        ("Which?,k,l,m,n,", "answer is empty"),
        ("Which?,k,,m,n,A", "option before the last is empty"),
        ("Which?,k,l,K,n,A", "an option stands there twice"),
        ("Which?,k,,,,A", "1 options; a question needs two to eight"),
        ("Which?,k,l,m,n,E", "answer 'E' names no option"),
        ("Which?,k,l,m,n,2", "answer '2' names no option"),
        ("Which?,k,l,m,,D", "answer 'D' names no option"),
        ("Which, then?,k,l,m,n,A", "7 fields, the header has 6"),
        ("Which?,k,l,m,A", "5 fields, the header has 6"),
        ("and THIS?,2nd,1st,3rd,4th,C", "question of line 4 again"),
    ],
)
def test_a_fault_is_named_with_file_and_line(tmp_path, line, words):
    path = tmp_path / "q.csv"
    path.write_text(GOOD + "\n" + line + "\n")  # a blank line is no row
    _, faults = questions.read(path)
    assert len(faults) == 1 and faults[0].startswith(f"{path}:6: ") and words in faults[0] and "\n" not in faults[0]


@pytest.mark.parametrize(
    "content, line, words",
    [
        ("question,answer\nWas ist Käse?,Milch\n".encode("latin1"), 2, "not UTF-8"),
        (b'question,answer\n"Who?" he said,nobody\n', 2, "not CSV"),
        (b'question,answer\nWho?,I\n"Why,so\n', 3, "not CSV"),
        (b"", 1, "no questions"),
        (b"question,answer\n\n,\n", 1, "no questions"),
        (b"topic,answer\nx,y\n", 1, "no column for the question among topic, answer"),
        (b"question,a,b,c,d\nWho?,k,l,m,n\n", 1, "no column for the answer"),
        (b"question,a,b,c,d,answer\nWho?,k,l,m,n,1\nWhy?,k,l,m,n,3\n", 2, "indices from 0 or from 1"),
    ],
)
def test_what_is_wrong_with_a_whole_file(tmp_path, content, line, words):
    path = tmp_path / "q.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}:{line}: .*{words}"):
        questions.read(path)


def test_all_faults_are_told_and_nothing_is_written(copy):
    folder = copy / "datasets/exam"
    folder.mkdir()
    (folder / "questions.csv").write_text(GOOD + ",k,l,m,n,A\nWhich?,k,l,m,A\n")
    (folder / "test.csv").write_text("question;a;b;c;d;answer\nWhich?;k;l;;n;A\n")
    result = room("questions", "exam", cwd=copy)
    told = result.stderr.splitlines()
    assert result.returncode == 1 and [t.split(" ")[0] for t in told] == [
        "datasets/exam/questions.csv:5:",
        "datasets/exam/questions.csv:6:",
        "datasets/exam/test.csv:2:",
    ]
    assert sorted(p.name for p in folder.iterdir()) == ["questions.csv", "test.csv"]
    (folder / "questions.csv").write_text(GOOD)
    one_line(room("questions", "exam", cwd=copy), "datasets/exam/test.csv:2:", "option before the last")
    (folder / "test.csv").unlink()
    one_line(room("questions", "exam", cwd=copy), "datasets/exam/test.csv", "No such file")
    assert room("questions", cwd=copy).returncode == 2


@pytest.mark.parametrize("family", ["mcq", "saq"])
def test_the_projects_own_rows_are_made_from_its_csv(copy, family):
    folder = copy / "datasets" / family
    for name in ("train", "eval"):
        (folder / f"{name}.jsonl").unlink()
    result = room("questions", family, cwd=copy)
    assert result.returncode == 0 and f"{family}: train 420, eval 80" in result.stdout, result.stderr
    for name, source in (("train", "questions"), ("eval", "test")):
        assert (folder / f"{name}.jsonl").read_bytes() == Path(ROOT, "datasets", family, f"{name}.jsonl").read_bytes()
        rows, asked = data.read(folder / f"{name}.jsonl"), questions.read(folder / f"{source}.csv")[0]
        assert [r["messages"][0]["content"].startswith(q["question"]) for r, q in zip(rows, asked, strict=True)] == [True] * len(asked)
        assert all(("checks" in row) is (name == "eval") for row in rows)
        assert len({row["id"] for row in rows}) == len(rows)
    shapes = {(key, type(value)) for row in data.read(folder / "eval.jsonl") for key, value in row["checks"].items()}
    assert shapes == {("choice", str)} if family == "mcq" else shapes == {("f1", list)}
    before = (folder / "train.jsonl").stat().st_mtime_ns
    assert room("questions", family, cwd=copy).returncode == 0 and (folder / "train.jsonl").stat().st_mtime_ns == before


def asked(family, name):
    rows, faults = questions.read(f"datasets/{family}/{name}.csv")
    assert faults == []
    return rows


@pytest.mark.parametrize("name, count", [("questions", 42), ("test", 8)])
def test_subjects_are_balanced(name, count):
    for family in ("mcq", "saq"):
        subjects = Counter(row["subject"] for row in asked(family, name))
        assert len(subjects) == 10 and set(subjects.values()) == {count}


@pytest.mark.parametrize("name", ["questions", "test"])
def test_the_right_option_is_told_by_neither_letter_nor_length(name):
    rows = asked("mcq", name)
    letters = Counter(row["answer"] for row in rows)
    assert all(abs(n / len(rows) - 0.25) <= 0.02 for n in letters.values()) and set(letters) == set("ABCD")
    for pick in (max, min):  # whoever takes the longest (or the shortest) option, ties by lot, is right about a quarter of the time
        hits = 0
        for row in rows:
            lengths = [len(option) for option in row["options"]]
            best = pick(lengths)
            hits += (lengths["ABCD".index(row["answer"])] == best) / lengths.count(best)
        assert abs(hits / len(rows) - 0.25) < 1.96 * (0.25 * 0.75 / len(rows)) ** 0.5, (pick, hits / len(rows))


def test_short_answers_are_short():
    for name in ("questions", "test"):
        rows = asked("saq", name)
        sentences = [row for row in rows if row["answer"].endswith(".")]
        assert len(sentences) <= len(rows) / 5
        assert all(len(row["answer"].split()) <= 5 for row in rows if row not in sentences)
        assert all(len(row["answer"].split()) <= 12 for row in sentences)
    assert sum(bool(row["also"]) for row in asked("saq", "test")) > 40


def plain(family):
    """What the nano base of both families learns from, the rows of one form."""
    return [row for row in data.read("datasets/qa/train-plain.jsonl") if row["id"].startswith(f"plain-{family}-")]


def test_one_base_for_both():
    ids = [row["id"] for row in data.read("datasets/qa/train-plain.jsonl")]
    assert len(set(ids)) == len(ids) == len(plain("mcq")) + len(plain("saq")) == 784


def test_no_question_is_asked_twice_in_any_file():
    sets, words = {}, {}
    for family in ("mcq", "saq"):
        for name in ("questions", "test"):
            rows = asked(family, name)
            sets[f"{family}/{name}"] = [data.shingles(row["question"], 2) for row in rows]
            words[f"{family}/{name}"] = {row["question"].casefold() for row in rows}
        rows = plain(family)
        words[f"{family}/plain"] = {row["messages"][0]["content"].split("\n")[0].casefold() for row in rows}
        assert len({row["messages"][0]["content"] for row in rows}) == len(rows) > 300
    for one, other in combinations(words, 2):
        assert not words[one] & words[other] or {one, other} == {"mcq/plain", "saq/plain"}, (one, other)
    for one in sets:
        assert data.near(sets[one], 0.6) == [], one
    for one, other in combinations(sets, 2):
        assert data.near(sets[one], 0.6, sets[other]) == [], (one, other)


def test_plain_rows_say_more_than_the_answer():
    """The nano base answers in sentences; the letter or the bare answer is what fine-tuning has to teach."""
    for family in ("mcq", "saq"):
        for row in plain(family):
            said = data.reply(row)
            assert said.endswith(".") and len(said.split()) >= (3 if family == "mcq" else 8), said
            if family == "mcq":
                assert [line[:3] for line in row["messages"][0]["content"].split("\n")[1:]] == ["A) ", "B) ", "C) ", "D) "]


@pytest.mark.parametrize(
    "field, answer",
    [("A) x\nB) y", "B"), ("a. x|b. y", "B) y"), ("(1) x; (2) y", "y"), ("x; y", "B"), ("{'text': ['x', 'y'], 'label': ['A', 'B']}", "B")],
)
def test_options_in_one_field_lose_the_letters_that_they_carry(tmp_path, field, answer):
    rows, faults = questions.read(write(tmp_path / "q.csv", ["question", "choices", "answer"], [["Which?", field, answer]]))
    assert not faults and [(r["options"], r["answer"]) for r in rows] == [(["x", "y"], "B")]
