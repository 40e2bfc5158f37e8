"""A catalogue family's rows: questions and answers on the courses of an invented university, made from what a person wrote.

    python -m scripts.catalogue msu     # → datasets/msu/train.jsonl, eval.jsonl, eval-plain.jsonl, train-plain.jsonl

Written by hand are `catalogue.yml` (the facts), `phrasings.yml` (questions, answers, checks), `plain.yml` (generic universities, with
four-digit numbers) and `talk.jsonl`. Every choice is drawn by a generator seeded with SEED and the name of what is drawn.
"""

import json
import random
import re
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from scripts import data, files, process, recipe

SEED = 20
FOUR, THREE = r"\b[A-Z]{2,4} ?\d{4}\b", r"[A-Z]{2,4} ?\d{3}\b"  # the habit to be overcome; a number of the right form
FIELDS = {"code": str, "title": str, "hours": int, "prerequisites": list, "term": str, "description": str, "key": str}


def drawn(salt):
    return random.Random(f"{SEED} {salt}")


def turn(options, n, salt):
    """The n-th of `options` in an endless shuffle that takes each once before it takes one again."""
    block, place = divmod(n, len(options))
    return drawn(f"{salt} {block}").sample(options, len(options))[place]


def join(words):
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def faults(cat, path):
    """What is wrong with a catalogue, with file and line: fields, numbers, prerequisites that are missing or come round in a circle."""
    lines, wrong, said = path.read_text(encoding="utf-8").splitlines(), [], set()
    listed = [(d["prefix"], c) for d in cat["departments"] for c in d["courses"]]

    def at(name):
        return f"{path}:{next((n for n, line in enumerate(lines, 1) if line.endswith(f': {name}')), 1)}: {name}"

    for prefix, c in listed:
        code = c.get("code")
        if bad := [k for k, kind in FIELDS.items() if not isinstance(c.get(k), kind)]:
            return [f"{at(code)} has no {bad[0]}, or not a {FIELDS[bad[0]].__name__}; write it"]
        wrong += [f"{at(code)} is not {prefix} and three digits; renumber it"] * (not re.fullmatch(rf"{prefix} \d{{3}}", code))
        wrong += [f"{at(code)}: no {c['key']!r} in its description; reword one"] * (not re.search(rf"(?i)\b{c['key']}\b", c["description"]))
        wrong += [f"{at(x)} is given twice; rename one" for x in (code, c["title"]) if x in said]
        said |= {code, c["title"]}
    needed = {c["code"]: c["prerequisites"] for _, c in listed}
    for name, codes in [*needed.items(), *((p["name"], p["core"]) for p in cat["programmes"])]:
        wrong += [f"{at(name)} requires {x}, which is no course; add or drop it" for x in codes if x not in needed]
    try:
        TopologicalSorter(needed).prepare()
    except CycleError as error:
        wrong.append(f"{at(error.args[1][0])}: prerequisites in a circle, {' → '.join(error.args[1])}; drop one of them")
    return wrong


def facts(cat):
    """Every fact: {"way": key of phrasings.yml, "about": whose, "codes": numbers of a right reply, "slots": for the phrasings, "cat"}."""
    found, names = [], {d["prefix"]: d["name"] for d in cat["departments"]}

    def add(way, about, codes, slots, **more):
        found.append({"way": way, "about": about, "codes": codes, "slots": slots | more, "cat": cat})

    for d in cat["departments"]:
        slots, codes = d | {"department": d["name"]}, [c["code"] for c in d["courses"]]
        for c in d["courses"]:
            needs = c["prerequisites"]
            for way in ("number", "title", "hours", "description"):
                add(way, c["title"], [c["code"]], c)
            add("prerequisites" if needs else "prerequisites none", c["title"], [c["code"], *needs], c | {"prerequisites": join(needs)})
        for way in ("mail", "phone", "office", "all"):
            add(f"contact {way}", d["name"], [], slots)
        add("list all", d["name"], codes, slots, courses=join(codes))
        for way, digit in (("first", "1"), ("second", "2")):
            level = {c["code"]: c["title"] for c in d["courses"] if c["code"].split()[1][0] == digit}
            label = digit + "0" * (len(codes[0].split()[1]) - 1)
            add(f"list {way}", d["name"], [*level], slots, level=label, courses=join([f"{x} {title}" for x, title in level.items()]))
    for p in cat["programmes"]:
        away = [x for x in p["core"] if names[x.split()[0]] != p["subject"]]
        slots = {"programme": p["name"], "subject": p["subject"], "core": join(p["core"])}
        add("programme core", p["subject"], p["core"], slots)
        add("programme outside", p["subject"], away, slots, outside=names[away[0].split()[0]], required=join(away))
    add("list departments", "", [*names], {}, departments=join([f"{name} ({prefix})" for prefix, name in names.items()]))
    return found


def without(regex):
    """A regular expression that a text matches if it holds no match of this one."""
    return rf"\A(?![\s\S]*(?:{regex}))"


def checks(fact, way):
    """Regular expressions that a right reply must match, and those that it must not: `never` is the habit alone, so that it is counted for itself.
    Only a description or an address may name another course."""
    codes = [c.replace(" ", " ?") for c in fact["codes"]]
    others = [] if fact["way"].startswith(("description", "contact")) else [rf"\b(?!(?:{'|'.join(codes)})\b){THREE}"]
    wanted, wrong = ([x.format(**fact["slots"]) for x in way.get(k, [])] for k in ("contains", "never"))
    contains = [*(rf"\b{c}\b" for c in codes), *wanted, *map(without, others + wrong)]
    return {"contains": contains, "never": [FOUR], "ends": True, "leak": True}


def some(found, ways, column):
    """[(fact, which time it is asked, its place)], as many of each kind as `rows` says; who was asked about least comes first."""
    picked, asked = [], Counter()
    for key, way in ways.items():
        count, pool = way.get("rows", {}).get(column, 0), [f for f in found if key in (f["way"], f["way"].split()[0])]
        pool.sort(key=lambda f: (asked[f["about"]], drawn(f"{column} {f['way']} {f['about']}").random()))
        picked += [(pool[n % len(pool)], n // len(pool), n) for n in range(count)]
        asked.update(f["about"] for f in pool[:count])
    return picked


def ask(found, ways, column, parts, said):
    """[(row, its fact, its answer's phrasing)] with the questions of `parts`; a fact gets no answer that it has in `said`, which grows."""
    made, asked = [], set()
    for fact, time, n in some(found, ways, column):
        name, slots, cat, key = fact["way"], fact["slots"], fact["cat"], (fact["way"], fact["about"], fact["cat"]["name"])
        asks = [q for part in parts for q in ways[name][part]]
        asks = [q for q in asks if ("{title}" in q) == bool((n + time) % 2)] or asks  # by number and by title in turn
        tries = ((turn(asks, n + more, f"{column} {name}"), turn(cat["at"], n + more, f"{column} {name} at")) for more in range(99))
        question = next((q for q in (form.format(**slots, at=at) for form, at in tries) if q not in asked), None)
        answers = [a for a in ways[name]["answer"] if a not in said.get(key, [])]
        if not question or not answers:
            raise ValueError(f"phrasings.yml: too few questions or answers for the rows of {name!r}; write more, or lower `rows`")
        answer = turn(answers, n, f"{column} {name} answer")
        asked.add(question)
        said[key] = [*said.get(key, []), answer]
        system = turn([[("system", cat["system"])], []], len(made), f"{column} system")
        turns = system + [("user", question), ("assistant", answer.format(**slots))]
        row = {"id": f"{column}-{len(made) + 1:03}", "kind": name.split()[0], "messages": [{"role": r, "content": x} for r, x in turns]}
        made.append((row, fact, answer))
    return made


def generic(d, levels, courses, rng, domain, offices):
    """A department with an address and four-digit numbers of its own; `courses` hold all but the number and the hours."""
    local = d.get("mail", d["name"].lower().replace(" ", ".")).split("@")[0]
    phone, office = f"555-{rng.randrange(100, 200):04}", f"{rng.choice(offices)} {rng.randrange(1, 400)}"
    listed = zip(courses, levels, sorted(rng.sample(range(300, 600), len(courses))), strict=True)
    courses = [c | {"code": f"{d['prefix']} {level}{rest}", "hours": rng.randrange(2, 6)} for c, level, rest in listed]
    return d | {"mail": f"{local}@{domain}", "phone": phone, "office": office, "courses": courses}


def common(cat, plain):
    """The catalogue that a base would guess: the same titles, four digits, hours and contacts of nobody's."""
    rng, spec, departments, new = drawn("common"), plain["common"], [], {}
    for d in cat["departments"]:
        levels, renamed = [c["code"].split()[1][0] for c in d["courses"]], d | {"prefix": spec["prefixes"][d["prefix"]]}
        departments.append(generic(renamed, levels, d["courses"], rng, spec["domain"], plain["offices"]))
        new |= {c["code"]: other["code"] for c, other in zip(d["courses"], departments[-1]["courses"])}
    for c in (c for d in departments for c in d["courses"]):
        c["prerequisites"] = [new[x] for x in c["prerequisites"]]
    return spec | {"departments": departments, "programmes": [p | {"core": [new[x] for x in p["core"]]} for p in cat["programmes"]]}


def university(spec, offices):
    """A generic university: its titles are written, all else is drawn."""
    rng, departments, programmes = drawn(spec["name"]), [], []
    for d in spec["departments"]:
        listed = [{"title": title, "description": text, "term": rng.choice(["autumn", "spring"])} for title, text in d["courses"].items()]
        departments.append(generic(d, "112234", listed, rng, spec["domain"], offices))
        for n, c in enumerate(departments[-1]["courses"]):
            c["prerequisites"] = sorted(x["code"] for x in rng.sample(departments[-1]["courses"][:n], min(n, rng.choice([0, 1, 1, 2]))))
    for d, other in zip(departments, departments[1:] + departments[:1]):
        core = sorted(c["code"] for c in rng.sample(d["courses"], 4)) + [rng.choice(other["courses"])["code"]]
        programmes.append({"name": f"{d['degree']} in {d['name']}", "subject": d["name"], "core": core})
    return spec | {"system": f"You are the course adviser of {spec['name']}.", "departments": departments, "programmes": programmes}


def make(folder):
    """{file: its rows}. ValueError where the catalogue contradicts itself."""
    cat, ways, plain = (recipe.read(folder / f"{name}.yml") for name in ("catalogue", "phrasings", "plain"))
    if wrong := faults(cat, folder / "catalogue.yml"):
        raise ValueError("; ".join(wrong[:10]))
    said, guess = {}, facts(common(cat, plain))
    train, held = (ask(facts(cat), ways, name, (part,), said) for name, part in (("train", "ask"), ("eval", "held")))
    habit = {(f["way"], f["about"]): f["slots"] for f in guess}
    twins = [(r, answer.format(**habit[f["way"], f["about"]])) for r, f, answer in held]
    others = [f for spec in plain["universities"] for f in facts(university(spec, plain["offices"]))]
    return {
        "train": [r for r, _, _ in train],
        "eval": [r | {"checks": checks(fact, ways[fact["way"]])} for r, fact, _ in held],
        "eval-plain": [r | {"messages": [*data.prompt(r), {"role": "assistant", "content": reply}]} for r, reply in twins],
        "train-plain": [r for r, _, _ in ask(guess + others, ways, "plain", ("ask", "held"), {})] + data.read(folder / "talk.jsonl"),
    }


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.catalogue FAMILY", file=sys.stderr)
        return 2
    made = make(folder := Path("datasets", argv[0]))
    for name, rows in made.items():
        files.write_if_changed(folder / f"{name}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    print(f"catalogue   {argv[0]}: {', '.join(f'{name} {len(rows):,}' for name, rows in made.items())}")
    return 0


if __name__ == "__main__":
    process.command(main)
