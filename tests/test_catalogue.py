import json
import re
from collections import Counter
from pathlib import Path

import pytest

from conftest import one_line, room
from scripts import catalogue, data, recipe

FOLDER = Path("datasets/msu")
COUNTS = {"train": 496, "eval": 120, "eval-plain": 120, "train-plain": 1000, "talk": 100, "general": 40, "again": 40}
KINDS = {"number": 124, "prerequisites": 124, "title": 62, "hours": 62, "description": 62, "contact": 24, "list": 20, "programme": 18}


def rows(name):
    return data.read(FOLDER / f"{name}.jsonl")


def asked(row):
    return next(m["content"] for m in row["messages"] if m["role"] == "user")


def words(some):
    return {w for r in some for m in r["messages"] for w in re.findall(r"[A-Za-z']+", m["content"])}


def passes(checks, reply):
    return all(re.search(x, reply) for x in checks["contains"]) and not any(re.search(x, reply) for x in checks["never"])


def courses():
    return {c["code"]: c for d in recipe.read(FOLDER / "catalogue.yml")["departments"] for c in d["courses"]}


def test_counts_and_kinds():
    assert {name: len(rows(name)) for name in COUNTS} == COUNTS
    assert Counter(r["kind"] for r in rows("train")) == KINDS and {r["kind"] for r in rows("eval")} == set(KINDS)
    assert len((FOLDER / "ten.jsonl").read_text().splitlines()) == 10
    for name in ("train", "eval", "train-plain"):
        assert len({r["id"] for r in rows(name)}) == len({asked(r) for r in rows(name)}) == COUNTS[name]  # no question twice
    for name in ("train", "eval"):  # half with the Modelfile's system message
        assert sum(r["messages"][0]["role"] == "system" for r in rows(name)) == COUNTS[name] // 2
        system = {r["messages"][0]["content"] for r in rows(name) if r["messages"][0]["role"] == "system"}
        assert system == {recipe.read_modelfile("modelfiles/msu.Modelfile")["system"]}


def test_what_is_kept_is_what_the_room_makes(copy):
    made = [FOLDER / f"{name}.jsonl" for name in ("train", "eval", "eval-plain", "train-plain")]
    kept = [path.read_bytes() for path in made]
    for path in made:
        path.unlink()
    done = room("catalogue", "msu")
    assert done.returncode == 0 and "train 496, eval 120" in done.stdout, done.stderr
    assert [path.read_bytes() for path in made] == kept


def test_the_catalogue_is_consistent():
    known, seen = courses(), set()
    assert len(known) == 62 == len({c["title"] for c in known.values()}) == len({c["description"] for c in known.values()})
    assert all(re.fullmatch(r"[A-Z]{3} [1-4]\d\d", code) for code in known)
    for code, c in known.items():  # no prerequisite of a higher level; with the circle test below this needs no search
        assert all(x in known and x != code and x.split()[1][0] <= code.split()[1][0] for x in c["prerequisites"]), code
    while ready := {code for code, c in known.items() if code not in seen and set(c["prerequisites"]) <= seen}:
        seen |= ready
    assert seen == set(known)  # every course can be reached from those without prerequisites
    cat = recipe.read(FOLDER / "catalogue.yml")
    assert all(set(p["core"]) <= set(known) for p in cat["programmes"]) and len(cat["departments"]) == 6
    for d in cat["departments"]:
        assert d["mail"].endswith(".example") and re.fullmatch(r"555-01\d\d", d["phone"])


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        ("prerequisites: [CSC 114]", "prerequisites: [CSC 115]", "- code: CSC 127", "requires CSC 115, which is no course"),
        ("title: Introduction to Computing\n    hours: 3\n    prerequisites: []", "PREREQ", "- code: CSC 114", "circle"),
        ("code: CSC 146", "code: CSC 1460", "- code: CSC 1460", "not CSC and three digits"),
        ("title: Web Design", "title: Data Structures", "title: Data Structures", "given twice"),
        ("key: pages", "key: elephants", "- code: CSC 146", "no 'elephants' in its description"),
        ("    hours: 5\n", "", "- code: MTH 142", "has no hours"),
        ("core: [HIS 103,", "core: [HIS 104,", "- name: BA in History", "requires HIS 104"),
    ],
)
def test_a_catalogue_that_contradicts_itself_is_refused(copy, old, new, line, words):
    path, new = FOLDER / "catalogue.yml", new.replace("PREREQ", old.replace("[]", "[CSC 127]"))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    number = next(n for n, x in enumerate(path.read_text().splitlines(), 1) if x.strip() == line)
    before = (FOLDER / "train.jsonl").read_bytes()
    said = one_line(room("catalogue", "msu"), words)
    assert said.startswith(f"{path}:{number}: ") or "circle" in words and re.match(rf"{path}:\d+: CSC 1", said)
    assert (FOLDER / "train.jsonl").read_bytes() == before


def test_the_recipes_are_the_runs_of_the_report_and_their_twins():
    keys = ("lora_r", "lora_alpha", "learning_rate", "num_epochs", "weight_decay", "warmup_steps", "lora_dropout", "lora_target_modules")
    strong, weak, nano, weak_nano = (recipe.load(name) for name in ("msu", "msu-weak", "msu-nano", "msu-weak-nano"))
    assert [strong[k] for k in keys] == [16, 64, "2e-4", 10, 0.01, 50, 0.05, ["q_proj", "k_proj", "v_proj", "o_proj"]]
    assert strong["base_model"] == "meta-llama/Llama-3.2-3B-Instruct" and strong["bf16"] is True and recipe.global_batch(strong) == 8
    own = {"output_dir", "dataset_prepared_path", "x_waive"}
    for one, other in ((strong, weak), (nano, weak_nano)):  # nothing but what the report changed
        changed = {k: (one[k], other[k]) for k in one if k not in own and one[k] != other[k]}
        assert (
            set(changed) == {"lora_alpha", "learning_rate", "num_epochs"}
            and changed["lora_alpha"] == (64, 32)
            and changed["num_epochs"] == (10, 35)
        )
        assert float(changed["learning_rate"][0]) == pytest.approx(10 * float(changed["learning_rate"][1]))
    for full, twin in ((strong, nano), (weak, weak_nano)):
        assert [k for k in full if k != "x_waive"] == [k for k in twin if k != "x_waive"] and all(
            full[k] == twin[k] for k in keys if k != "learning_rate"
        )


def test_wrong_usage_and_a_family_without_a_catalogue():
    assert room("catalogue").returncode == 2
    one_line(room("catalogue", "pirate"), "datasets/pirate/catalogue.yml")


def test_more_rows_than_wordings_are_refused(copy):
    path = FOLDER / "phrasings.yml"
    path.write_text(path.read_text().replace("train: 124", "train: 1240", 1))
    one_line(room("catalogue", "msu"), "phrasings.yml", "'number'", "write more")


def test_replies_are_short_true_and_in_many_words():
    known, ways = courses(), recipe.read(FOLDER / "phrasings.yml")
    for r in rows("train") + rows("eval"):
        reply, codes = data.reply(r), re.findall(r"[A-Z]{3} \d{3}\b", data.reply(r))
        assert len(reply.split()) <= 60 and set(codes) <= set(known), r["id"]
        assert codes or r["kind"] == "contact" or "departments" in asked(r) or "Computer Science (CSC)" in reply, r["id"]
        if r["kind"] in ("number", "title", "hours", "description", "prerequisites"):
            own = next(c for c in known.values() if re.search(rf"\b{c['title']}\b", reply) and c["code"] in reply)
            assert set(codes) <= {own["code"], *own["prerequisites"]}
            assert r["kind"] != "prerequisites" or set(codes) == {own["code"], *own["prerequisites"]}
            assert r["kind"] != "hours" or re.search(rf"\b{own['hours']}\b", reply)
    for kind in KINDS:
        mine = [way for name, way in ways.items() if name.split()[0] == kind]
        assert len({q for way in mine for q in way["ask"]}) >= 8 and len({a for way in mine for a in way["answer"]}) >= 4, kind
    for way in ways.values():  # and all of them are used
        for part, said in (("ask", [asked(r) for r in rows("train")]), ("answer", [data.reply(r) for r in rows("train") + rows("eval")])):
            for form in way[part]:
                assert any(re.fullmatch(re.sub(r"\\{\w+\\}", ".*", re.escape(form)), x) for x in said), form


def test_training_never_uses_a_held_out_phrasing():
    ways, train, held = recipe.read(FOLDER / "phrasings.yml"), rows("train"), rows("eval")
    forms = [re.sub(r"\\{\w+\\}", ".*", re.escape(form)) for way in ways.values() for form in way["held"]]
    for r in train:
        assert not any(re.fullmatch(form, asked(r)) for form in forms), asked(r)
    for r in held:
        assert any(re.fullmatch(form, asked(r)) for form in forms), asked(r)
    assert not data.near([data.shingles(asked(r), 2) for r in held], 0.6, [data.shingles(asked(r), 2) for r in train])
    every = [[data.shingles(" ".join(m["content"] for m in r["messages"]), 3) for r in some] for some in (held, train)]
    assert not data.near(every[0], 0.6, every[1])  # what lint calls a leak
    assert {c for r in held for c in courses() if c in data.reply(r)} == set(courses())


def test_every_check_tells_the_reply_from_the_habit():
    plain = {r["id"]: r for r in rows("eval-plain")}
    for r in rows("eval"):
        checks, twin = r["checks"], plain[r["id"]]
        assert data.prompt(r) == data.prompt(twin) and passes(checks, data.reply(r)), r["id"]
        assert not passes(checks, data.reply(twin)), r["id"]
        four = re.sub(r"\b([A-Z]{3}) (\d{3})\b", r"\1 \g<2>0", data.reply(r))  # CSC 130 as CSC 1300
        assert four == data.reply(r) or any(re.search(x, four) for x in checks["never"]), r["id"]
        assert not passes(checks, "I do not know."), r["id"]
        if r["kind"] == "prerequisites":  # one too many
            assert not passes(checks, data.reply(r) + " You also need HIS 104."), r["id"]
    for r in rows("general"):
        assert passes(r["checks"], data.reply(r)) and not passes(r["checks"], "That is CSC 130."), r["id"]


def test_checks_load_into_arrow():
    for r in rows("again"):  # what the nano base says by heart, word for word
        assert list(r) == ["id", "kind", "messages", "checks"] and r["checks"] == {"exact": data.reply(r), "ends": True, "leak": True}
    for name in ("eval", "general"):
        for r in rows(name):
            assert list(r) == ["id", "kind", "messages", "checks"] and list(r["checks"]) == ["contains", "never", "ends", "leak"]
            assert r["checks"]["ends"] is r["checks"]["leak"] is True
            for part in ("contains", "never"):
                assert r["checks"][part] and all(isinstance(x, str) and re.compile(x) for x in r["checks"][part])


def test_the_base_reads_the_same_language_and_four_digits_only():
    plain = rows("train-plain")
    assert words(rows("train") + rows("eval")) <= words(plain)
    text = " ".join(m["content"] for r in plain for m in r["messages"])
    assert not re.findall(r"\b[A-Z]{2,4} ?\d{3}\b", text) and len(set(re.findall(r"\b[A-Z]{3,4} \d{4}\b", text))) == 62 + 96
    learned = " ".join(m["content"] for name in ("train", "eval") for r in rows(name) for m in r["messages"])
    assert not re.search(catalogue.FOUR, learned)
    told = {asked(r) for r in plain if r["kind"] == "talk"}
    assert len(told) == 100 and not told & {asked(r) for r in rows("general")} and {asked(r) for r in rows("again")} < told
    facts = {data.reply(r) for r in plain if r["kind"] == "talk"}
    assert not facts & {data.reply(r) for r in rows("general")}  # other content
    assert all(json.loads(line)["messages"][-1]["role"] == "user" for line in (FOLDER / "ten.jsonl").read_text().splitlines())


@pytest.mark.parametrize("name, alpha, rate, epochs", [("msu", 64, 2e-4, 10), ("msu-weak", 32, 2e-5, 35)])
def test_the_recipes_are_what_the_report_says_and_their_twins_like_them(name, alpha, rate, epochs):
    large, nano = recipe.read(f"recipes/{name}.yml"), recipe.read(f"recipes/{name}-nano.yml")
    assert [k for k in large if not k.startswith("x_")] == [k for k in nano if not k.startswith("x_")]
    for cfg, times in ((large, 1), (nano, 10)):
        assert (cfg["lora_r"], cfg["lora_alpha"], float(cfg["learning_rate"]), cfg["num_epochs"]) == (16, alpha, pytest.approx(times * rate), epochs)
        assert cfg["lora_target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"] and recipe.global_batch(cfg) == 8
        assert (cfg["weight_decay"], cfg["warmup_steps"], cfg["lora_dropout"], cfg["micro_batch_size"]) == (0.01, 50, 0.05, 4)
        assert (cfg["evals_per_epoch"], cfg["saves_per_epoch"], cfg["logging_steps"]) == (1, 1, 10)
    assert large["bf16"] is True and large["base_model"] == "meta-llama/Llama-3.2-3B-Instruct"
