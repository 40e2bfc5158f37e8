"""Check a family's dataset: rows, twins, near-duplicates, leaks from evaluation into training. Every finding names file and line.

python -m scripts.validate            # all families under datasets/
python -m scripts.validate pirate
"""

import sys
from pathlib import Path

from scripts import data, process

PROMPT_LIMIT, REPLY_LIMIT = 0.6, 0.3  # Jaccard similarity of word pairs in prompts, of word triples in replies
SAME = 0.99  # the limit for both where the rows are drawn from a catalogue, which tells like facts in like words
SHORT = 6  # words; replies with fewer, such as a letter or a name, are alike by right


def twins(path, rows, plain_path, plain):
    """Row by row: the same id, kind, roles and user turns; another reply."""
    found = []
    if len(rows) != len(plain):
        found.append(f"{plain_path}:{len(plain)}: {len(plain)} rows, {path} has {len(rows)}; each row needs its twin")
    for n, (a, b) in enumerate(zip(rows, plain), 1):
        same = [(m["role"], m["content"] if m["role"] != "assistant" else None) for m in a["messages"]]
        if (a.get("id"), same) != (b.get("id"), [(m["role"], m["content"] if m["role"] != "assistant" else None) for m in b["messages"]]):
            found.append(f"{plain_path}:{n}: not the twin of {path}:{n}; only the replies may differ")
        elif any(x == y for x, y in zip(a["messages"], b["messages"]) if x["role"] == "assistant"):
            found.append(f"{plain_path}:{n}: a reply equals the one in {path}:{n}; the twin is the reply without the voice")
    return found


def question(row):
    return next(m["content"] for m in row["messages"] if m["role"] == "user")


def answers(row):
    return " ".join(m["content"] for m in row["messages"] if m["role"] == "assistant")


def duplicates(path, rows, limits=(PROMPT_LIMIT, REPLY_LIMIT)):
    seen, found = {}, []
    for n, row in enumerate(rows, 1):
        if row.get("id") in seen:
            found.append(f"{path}:{n}: id {row.get('id')!r} is already line {seen[row.get('id')]}'s")
        seen[row.get("id")] = n
    for what, text, size, limit in [("prompt", question, 2, limits[0]), ("reply", answers, 3, limits[1])]:
        said = [(n, text(r)) for n, r in enumerate(rows, 1) if what == "prompt" or len(text(r).split()) >= SHORT]
        for i, j, alike in data.near([data.shingles(words, size) for _, words in said], limit):
            found.append(f"{path}:{said[i][0]}: {what} is nearly that of line {said[j][0]} ({alike:.0%} alike); drop one")
    return found


def leaks(train_path, train, eval_path, held):
    pairs = data.near([data.shingles(question(r), 2) for r in held], PROMPT_LIMIT, [data.shingles(question(r), 2) for r in train])
    return [
        f"{eval_path}:{i + 1}: its prompt is nearly that of {train_path}:{j + 1} ({alike:.0%} alike); a held-out prompt must be unseen"
        for i, j, alike in pairs
    ]


def check(family):
    """(findings, counts) of datasets/FAMILY; the twins are checked where there are any. A catalogue's train-plain is of other catalogues."""
    folder = Path("datasets", family)
    listed = (folder / "catalogue.yml").exists()
    paths = {n: folder / f"{n}.jsonl" for n in ("train", "train-plain", "eval", "eval-plain")}
    rows, found = {}, []
    base = paths["train-plain"].exists() and not (paths["train"].exists() or paths["eval"].exists())  # a nano base's rows, no family's
    for name, path in paths.items():
        if path.exists() or name in ("train", "eval") and not base:
            try:
                rows[name] = data.read(path)
            except ValueError as error:
                found.append(str(error))
    twinned = {"train-plain", "eval-plain"} <= rows.keys()  # else train-plain is what a nano base is made of, and nobody's twin
    for name in ("train", "eval"):
        if name in rows:
            found += duplicates(paths[name], rows[name], *[(SAME, SAME)] * listed)
            if twinned and not (listed and name == "train"):
                found += twins(paths[name], rows[name], paths[f"{name}-plain"], rows[f"{name}-plain"])
    for name in ("train", *(["train-plain"] if not twinned else [])):
        if name in rows and "eval" in rows:
            found += leaks(paths[name], rows[name], paths["eval"], rows["eval"])
    return found, {name: len(r) for name, r in rows.items()}


def main(argv):
    families = argv or sorted(p.name for p in Path("datasets").iterdir() if p.is_dir())
    failed = False
    for family in families:
        found, counts = check(family)
        for line in found:
            print(line, file=sys.stderr)
        failed |= bool(found)
        print(f"validate    {family}: {', '.join(f'{n} {c:,}' for n, c in counts.items())}; {len(found)} finding{'s' * (len(found) != 1)}")
    return int(failed)


if __name__ == "__main__":
    process.command(main)
