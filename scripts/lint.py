"""Find what is wrong with recipes before a GPU is rented: every finding at once, one line each.

    python -m scripts.lint                     # all of recipes/
    python -m scripts.lint my.yml --json       # any Axolotl recipe, as [{path, line, rule, level, message, fix}]
    python -m scripts.lint --fix               # writes the unambiguous mends, and touches nothing else in the file

The rules are the functions in scripts/rules/; keys and types come from Axolotl's own schema (recipes/schema/axolotl.json, `make schema`).
A finding that is meant is waived in the recipe: `x_waive: {rule: reason}`. A recipe that is there to be refused says what for: `x_refused: {rule: reason}`; over
a folder these findings are expected, and one that does not come is an error; named itself, the recipe is refused. What could not be looked at is a note. Exit 1 on an error.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

import yaml

from scripts import files, process, recipe
from scripts.rules import machine, rules
from scripts.rules.case import case

README = Path("recipes/README.md")
COLOUR = {"error": "\033[31m", "warning": "\033[33m", "note": "\033[2m", "refused": "\033[36m"}


def check(path, named=True):
    """(findings, how many were waived) of one file: findings are {path, line, rule, level, message, fix, change}.

    A file that is not `named` is one of a folder: what its x_refused names is then of the level `refused`, which fails nothing.
    """
    path = Path(path)
    try:
        c = case(path)
    except (ValueError, OSError) as error:
        said = (
            str(error).removeprefix(f"{path}:") if isinstance(error, ValueError) else f"1: {error.strerror}; give a file that can be read"
        )
        line, what, todo = re.fullmatch(r"(\d+): (.*?)(?:; ([^;]*))?", said, re.S).groups()
        return [finding(path, int(line), "bad-yaml", "error", what, todo or "mend it there")], 0
    found, notes, c.found = [], [], set()
    ordered = sorted(rules().items(), key=lambda rule: rule[0] == "bad-refusal")  # it asks what the others found
    for name, (function, level, *_) in ordered:
        for key, message, todo, *change in function(c):
            file, line = key if isinstance(key, tuple) and key and isinstance(key[0], Path) else (path, line_of(c, key))
            found.append(finding(file, line, name, level, message, todo, *change, hide=c.hide))
            c.found.add(name)
    kept = [f for f in found if f["rule"] not in reasons(c, "x_waive")]
    refused = {} if named else reasons(c, "x_refused")
    for f in (f for f in kept if f["rule"] in refused):
        f |= {"level": "refused", "fix": f"as it should be: {c.hide(' '.join(refused[f['rule']].split()))}", "change": None}
    kept.sort(key=lambda f: (f["path"] != str(path), f["path"], f["line"]))
    for at, what, names in c.notes:
        notes.append(finding(path, line_of(c, at), "unchecked", "note", what, f"not checked: {', '.join(names)}", hide=c.hide))
    return kept + notes, len(found) - len(kept)


def reasons(c, key):
    """{rule: reason} of x_waive or x_refused, as far as there are reasons."""
    return {rule: reason for rule, reason in (c.cfg.get(key) or {}).items() if isinstance(reason, str) and reason.strip()}


def line_of(c, key):
    """The line of a key, or of the nearest thing above it that stands in the file; a number is a line already."""
    if isinstance(key, int):
        return key
    at = key if isinstance(key, tuple) else (key,)
    while at and at not in c.at:
        at = at[:-1]
    return c.at.get(at, 1)


def finding(path, line, rule, level, message, fix, change=None, hide=machine.hidden):
    """A finding, its texts on one line each, in which no secret is shown."""
    message, fix = (" ".join(hide(text).split()) for text in (message, fix))
    return {"path": str(path), "line": line, "rule": rule, "level": level, "message": message, "fix": fix, "change": change}


def edited(text, change):
    """The text with one change to a top-level key; None where that would touch anything else (an alias, a value shared by `<<`, a mapping in braces)."""
    (kind, key, new), root = change, yaml.compose(text, Loader=recipe.LOADER)
    nodes = {k.value: (k, v) for k, v in root.value}
    before = yaml.load(text, Loader=recipe.LOADER)
    if kind == "rename":
        (start, end), wanted = marks(nodes[key][0]), {new if k == key else k: v for k, v in before.items()}
        text = text[:start] + new + text[end:]
    elif key in nodes:
        (start, end), wanted = marks(nodes[key][1]), before | {key: new}
        text = text[:start] + " " * (text[start - 1] == ":") + json.dumps(new) + text[end:]
    else:
        newline, wanted = "\r\n" if "\r\n" in text else "\n", before | {key: new}
        text += newline * (not text.endswith("\n")) + f"{key}: {json.dumps(new)}{newline}"
    try:
        return text if yaml.load(text, Loader=recipe.LOADER) == wanted else None
    except yaml.YAMLError:
        return None


def marks(node):
    return node.start_mark.index, node.end_mark.index


def mend(path, found):
    """Write the findings' unambiguous changes into the file, and touch no other byte of it. Returns how many."""
    changes, done = [f["change"] for f in found if f["change"] and f["path"] == str(path)], 0
    text = Path(path).read_bytes().decode("utf-8") if changes else ""
    for change in changes:
        if (better := edited(text, change)) is not None:
            text, done = better, done + 1
    if done:
        with files.replacing(Path(path).resolve()) as out:
            out.write(text)
    return done


def table():
    """The table of rules for recipes/README.md."""
    rows = [f"| `{name}` | {' | '.join(row)} |" for name, (_, *row) in rules().items()]
    return "\n".join(["| rule | level | when | why | source | fix |", "|---|---|---|---|---|---|", *rows])


def counted(n, word):
    return f"{n} {word}{'s' * (n != 1)}"


def say(found, waived, recipes):
    colour = sys.stdout.isatty()
    for f in found:
        level = f"{COLOUR[f['level']]}{f['level']}\033[0m" if colour else f["level"]
        print(f"{f['path']}:{f['line']}: {level} {f['rule']}: {f['message']}; {f['fix']}")
    parts = [counted(sum(f["level"] == level for f in found), level) for level in ("error", "warning")]
    refused = sum(f["level"] == "refused" for f in found)
    parts += [f"{n} {what}" for n, what in ((waived, "waived"), (refused, "refused as they should be")) if n]
    print(f"lint        {counted(recipes, 'recipe')}: {', '.join(parts)}")


def recipes_of(paths):
    """The files to look at: those named, and the YAML files of folders; each once. Raises ValueError where there is nothing."""
    found = {}
    for path in paths:
        inside = sorted([*path.glob("*.yml"), *path.glob("*.yaml")]) if path.is_dir() else [path]
        if not inside or not os.path.exists(path):
            raise ValueError(
                f"{path}: {'no recipes (*.yml) in it' if os.path.exists(path) else 'no such file or folder'}; give a YAML file"
            )
        found |= {p.resolve(): p for p in inside if p.resolve() not in found}
    return list(found.values())


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.lint", description="find what is wrong with recipes before a GPU is rented")
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="recipes, or folders of them (recipes/)")
    parser.add_argument("--json", action="store_true", help="a list of {path, line, rule, level, message, fix}")
    parser.add_argument("--strict", action="store_true", help="exit 1 on warnings too")
    parser.add_argument("--fix", action="store_true", help="write the unambiguous mends")
    parser.add_argument("--table", action="store_true", help="write the table of rules into recipes/README.md")
    args = parser.parse_args(argv)
    if args.table:
        text = README.read_text(encoding="utf-8")
        files.write_if_changed(README, re.sub(r"(?<=<!-- rules -->\n).*?(?=<!-- /rules -->)", lambda _: table() + "\n", text, flags=re.S))
        print(f"lint        {README}: {len(rules())} rules")
        return 0
    paths, named = recipes_of(args.paths or [Path("recipes")]), {p.resolve() for p in args.paths if not p.is_dir()}
    for path in paths if args.fix else []:
        if done := mend(path, check(path, path.resolve() in named)[0]):
            print(f"lint        {path}: {done} mended", file=sys.stderr if args.json else sys.stdout)
    checked = [check(p, p.resolve() in named) for p in paths]
    # Two recipes on one dataset need its findings once.
    found = list({(f["path"], f["line"], f["rule"], f["level"], f["message"]): f for one, _ in checked for f in one}.values())
    if args.json:
        print(json.dumps([{k: v for k, v in f.items() if k != "change"} for f in found], indent=2))
    else:
        say(found, sum(n for _, n in checked), len(paths))
    return int(any(f["level"] in ("error", "warning")[: 1 + args.strict] for f in found))


if __name__ == "__main__":
    process.command(main)
