"""Questions in CSV, as people have them, to chat rows: multiple choice answered by a letter, or short answers.

    python -m scripts.questions mcq     # datasets/mcq/questions.csv, test.csv → train.jsonl, eval.jsonl beside them

Any usual delimiter; BOM or none; header names in any case (NAMES, OPTION). The right option is told by letter, index or text, alike over a
file. Nothing is written while a row is at fault. Held-out rows carry `checks`: {"choice": letter}, or {"f1": [answer, others accepted …]}.
"""

import ast
import csv
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

from scripts import files, process

LETTERS = "ABCDEFGH"
NAMES = {  # by preference: where a file has both the letter and the text, the letter it is
    "question": "question prompt query stem q input",
    "choices": "choices options",
    "answer": "label correctoption correctletter correctanswer correct correctindex answerkey answeridx key cop answer target output a",
    "subject": "subject topic category domain kind subjectname",
    "also": "also aliases alternatives accepted",  # between bars
}
OPTION = re.compile(r"(?:option|opt|choice|op)?([a-h]|\d)$")  # A … D, option_a, Option 1, choice4, opa
LETTER = re.compile(r"(?:option|choice)?[\s_(]*([a-h])[).:]?$", re.I)  # B, b), (B), option B
MARKED = re.compile(r"\(?([A-H1-8])[).:]\s+(.+)", re.I)  # A) x, (b) x, 1. x


def columns(header):
    """{role: position, "options": [positions in order]} of the header names that are known."""
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    found = {role: plain.index(name) for role, names in NAMES.items() for name in reversed(names.split()) if name in plain}
    options = sorted((n for n, name in enumerate(plain) if OPTION.match(name)), key=lambda n: plain[n][-1])
    return {"options": options} | {role: n for role, n in found.items() if n not in options} if len(options) > 1 else found


def table(path):
    """(header, [(line, fields)]) of a CSV file; `line` is where a record begins. ValueError with file and line for what is no CSV."""
    rows, line = [], 1
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        delimiter = max(",;\t|", key=lambda d: len(columns(next(csv.reader(text.lstrip().splitlines()[:1], delimiter=d), []))))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for fields in reader:
            rows += [(line, cells)] if any(cells := [re.sub(r"\r\n?", "\n", field).strip() for field in fields]) else []
            line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{1 + error.object.count(10, 0, error.start)}: not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f'{path}:{line}: not CSV ({error}); a quote inside a quoted field is written ""') from None
    if len(rows) < 2:
        raise ValueError(f"{path}:1: no questions; it needs a header and a question a row")
    return rows[0][1], rows[1:]


def listed(text):
    """The options in one field: a JSON or Python list (or a mapping with one, `text`), one a line, between bars, or between semicolons."""
    try:
        found = ast.literal_eval(text) if text[:1] in ("[", "{") else re.split(r"\n|\|", text)
        found = found.get("text") or [] if isinstance(found, dict) else found
    except (ValueError, SyntaxError, RecursionError):
        return []
    found = text.split(";") if len(found) == 1 and text[:1] not in ("[", "{") else found
    return [str(option).strip() for option in found]


def plain(options):
    """Options without the letters or numbers that they carry themselves, in their order: `A) x`, `B) y`."""
    marked = [MARKED.fullmatch(option) for option in options]
    in_order = [m and m[1].upper() in (LETTERS[n : n + 1], str(n + 1)) for n, m in enumerate(marked)]
    return [m[2] for m in marked] if options and all(in_order) else options


def right(row, how):
    """The letter of a row's right option, read as `how`: "letter", "text", or the index of the first (0, 1). None if it does not fit."""
    answer, options, at = " ".join(row["answer"].split()).casefold(), [option.casefold() for option in row["options"]], -1
    if how == "letter" and (match := LETTER.match(answer)):
        at = LETTERS.index(match[1].upper())
    elif how == "text" and (text := answer if answer in options else MARKED.sub(r"\2", answer)) in options:
        at = options.index(text)
    elif how in (0, 1) and answer.isdecimal():
        at = int(answer) - how
    return LETTERS[at] if 0 <= at < min(len(options), len(LETTERS)) else None


def notation(path, rows):
    """How a file tells the right option: the reading that fits most rows. ValueError where indices could count from 0 or from 1."""
    fits = {how: sum(right(row, how) is not None for row in rows) for how in ("letter", "text", 0, 1)}
    best = max(fits, key=fits.get)
    if best == 0 and fits[0] == fits[1]:
        raise ValueError(f"{path}:2: its answers may be indices from 0 or from 1; give letters, or the options' texts")
    return best


def wrong(row, how):
    """What is wrong with one question, each in a few words and with what to do."""
    options, strange = row["options"], how is not None and row["answer"] and right(row, how) is None
    tests = [
        (not (row["question"] and row["answer"]), f"the {'answer' if row['question'] else 'question'} is empty; write it or drop the row"),
        (how is not None and not 2 <= len(options) <= len(LETTERS), f"{len(options)} options; a question needs two to eight"),
        ("" in options, "an option before the last is empty; write it or move the others up"),
        (len({*map(str.casefold, filter(None, options))}) < sum(map(bool, options)), "an option stands there twice; change one"),
        (strange and options[1:], f"the answer {row['answer'][:40]!r} names no option in the way of the other rows; mend it"),
    ]
    return [what for bad, what in tests if bad]


def read(path):
    """([{question, answer, subject, also, options}], faults) of a user's file; a fault is one line that begins with file:line."""
    header, records = table(path)
    at, faults, rows, seen = columns(header), [], {}, {}
    for role in sorted({"question", "answer"} - {*at}):
        raise ValueError(f"{path}:1: no column for the {role} among {', '.join(header)}; call it `{role}`")
    for line, fields in records:
        if len(fields) != len(header):
            faults.append((line, f"{len(fields)} fields, the header has {len(header)}; quote a field that holds the delimiter"))
            continue
        row = {role: fields[at[role]] if role in at else "" for role in NAMES}
        options = [fields[n] for n in at["options"]] if "options" in at else listed(row["choices"]) if "choices" in at else []
        while options and not options[-1]:  # a column E that few questions need
            options.pop()
        rows[line] = row | {"options": plain([" ".join(option.split()) for option in options])}
    how = notation(path, rows.values()) if {"options", "choices"} & {*at} else None
    for line, row in rows.items():
        faults += [(line, what) for what in wrong(row, how)]
        first = seen.setdefault((row["question"].casefold(), *sorted(row["options"])), line)
        faults += [(line, f"the question of line {first} again; drop one")] if first != line else []
    done = [row | {"answer": right(row, how) or row["answer"]} for row in rows.values()]
    return done, [f"{path}:{line}: {what}" for line, what in sorted(faults)]


def chat(name, row, held=False):
    """A row of the dataset: the question and the options one a line, and the reply; where `held` its check, of one type a file."""
    asked = "\n".join([row["question"], *(f"{letter}) {option}" for letter, option in zip(LETTERS, row["options"]))])
    check = {"choice": row["answer"]} if row["options"] else {"f1": [row["answer"], *filter(None, map(str.strip, row["also"].split("|")))]}
    said = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["answer"]}]
    return {"id": name, "kind": row["subject"] or "question", "messages": said} | ({"checks": check} if held else {})


def main(argv):
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python -m scripts.questions FAMILY     (datasets/FAMILY/questions.csv and test.csv)", file=sys.stderr)
        return 2
    family, folder = argv[0], Path("datasets", argv[0])
    (train, faults), (held, more) = (read(folder / name) for name in ("questions.csv", "test.csv"))
    if faults or more:
        print(*faults, *more, sep="\n", file=sys.stderr)
        return 1
    for name, rows, prefix in (("train", train, family), ("eval", held, f"eval-{family}")):
        made = [json.dumps(chat(f"{prefix}-{n:03}", row, name == "eval"), ensure_ascii=False) for n, row in enumerate(rows, 1)]
        files.write_if_changed(folder / f"{name}.jsonl", "\n".join(made) + "\n")
    letters = sorted(Counter(row["answer"] for row in train + held if row["options"]).items())
    print(f"questions   {family}: train {len(train):,}, eval {len(held):,}", *(f"{name} {n}" for name, n in letters), sep=", ")


if __name__ == "__main__":
    process.command(main)
