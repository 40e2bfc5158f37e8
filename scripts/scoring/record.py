"""What scoring leaves: outputs/NAME/eval/STAGE.jsonl and ten-STAGE.jsonl, and the receipt score.json, which never mixes models."""

import json
import shutil
import textwrap
from itertools import zip_longest
from pathlib import Path

from scripts import files, receipt, recipe
from scripts.scoring import backends


def replies_of(name, stage, folder="eval"):
    """Paths of a stage's replies: to the held-out prompts, to the ten fixed ones."""
    return [Path("outputs", name, folder, f"{prefix}{stage}.jsonl") for prefix in ("", "ten-")]


def fixed_of(name):
    """Path of the fixed prompts of the recipe's family, which need not have any."""
    return Path("datasets", recipe.family(name), "ten.jsonl")


def keep(paths, contents):
    """Write each list of objects to its path, a line each, whole or not at all."""
    for path, lines in zip(paths, contents):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as out:
            out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read(path):
    """The objects of a JSONL file, a line each. Raises ValueError naming the first line that is none."""
    found = []
    for n, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        try:
            found += [dict(json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{n}: not a JSON object ({error}); mend or delete the line") from None
    return found


def still(name, cfg, shared, asked):
    """The figures to go on from: `asked`, and those stages and tasks of the receipt that still stand, which is to say: the same rows, prompts and
    decoding, on what lies there now, every reply in place. `asked` None: as before, where there is a before."""
    made = receipt.read(Path("outputs", name, "score.json")) or {"inputs": {}, "outputs": {}, "figures": {}}
    known, was = made["inputs"] | made["outputs"], made["figures"]
    asked = {k: v for k, v in was.items() if k not in ("stages", "tasks")} if asked is None else asked

    def same(paths, digest=backends.sha256):
        return all(known.get(str(p)) == digest(str(p)) for p in paths)

    def holds(stage, replies=()):
        try:
            return same(backends.check(name, stage, cfg)) and same(replies, files.sha256)
        except (ValueError, OSError):
            return False

    alike = same(shared) and all(was.get(k) == v for k, v in asked.items())
    stages = {s: f for s, f in was.get("stages", {}).items() if alike and holds(s, replies_of(name, s))}
    return asked | {"stages": stages} | ({"tasks": was["tasks"]} if was.get("tasks") and holds("merged") else {})


def write(name, cfg, shared, figures):
    """The receipt, its stages in their order. Replies of stages that it does not count are removed."""
    figures = figures | {"stages": {s: figures["stages"][s] for s in backends.STAGES if s in figures["stages"]}}
    scored = {*figures["stages"], *(["merged"] if "tasks" in figures else [])}
    inputs = dict.fromkeys(str(p) for p in [*shared, *(p for s in backends.STAGES if s in scored for p in backends.check(name, s, cfg))])
    outputs = [str(p) for s in figures["stages"] for p in replies_of(name, s)]
    receipt.write(
        Path("outputs", name, "score.json"), inputs, outputs, figures, lambda p: files.sha256(p) if p in outputs else backends.sha256(p)
    )
    for path in (p for s in backends.STAGES if s not in figures["stages"] for p in replies_of(name, s)):
        path.unlink(missing_ok=True)


def side_by_side(name):
    """Lines: the ten fixed prompts, and what the base and the last stage answered, beside each other."""
    there = [s for s in backends.STAGES if replies_of(name, s)[1].is_file()]
    if not there:
        raise ValueError(f"outputs/{name}/eval: no replies to the fixed prompts yet; {recipe.command('eval', name)} asks for them")
    columns = list(dict.fromkeys([there[0], there[-1]]))
    wide = (shutil.get_terminal_size((160, 24)).columns - 3) // len(columns)
    out = [" │ ".join(f"{s:<{wide}}" for s in columns).rstrip()]
    for answers in zip(*(read(replies_of(name, s)[1]) for s in columns)):
        texts = [a["reply"] + ("" if a["ended"] else " […]") for a in answers]
        wrapped = [[part for line in text.splitlines() for part in textwrap.wrap(line, wide) or [""]] for text in texts]
        out += ["", f">>> {answers[0]['prompt']}"]
        out += [" │ ".join(f"{part:<{wide}}" for part in parts).rstrip() for parts in zip_longest(*wrapped, fillvalue="")]
    return out
