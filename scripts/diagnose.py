"""Judge a training run from its log: whether it learned, what is wrong with it, and which key to change. Ours or a foreign one, finished or not.

    python -m scripts.diagnose pirate-nano                     # outputs/pirate-nano
    python -m scripts.diagnose path/to/checkpoint-500 --json   # any folder of transformers, TRL or Axolotl, or its trainer_state.json

Verdicts: healthy, weak, dead, overfit, unfinished. Reads logs only, no weights. Exit 0 where it could judge (--strict: 1 for dead, overfit and weak), 1 where
there is nothing to read.
"""

import argparse
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path

from scripts import process
from scripts.signs import causes, log
from scripts.signs.numbers import told

COLOUR = {"healthy": "\033[32m", "unfinished": "\033[36m", "weak": "\033[33m", "overfit": "\033[33m", "dead": "\033[31m"}
WIDE = 120  # columns


def place(run):
    """What was meant: a path, or the name of a run in outputs/."""
    named = Path("outputs", run)
    return named if not Path(run).exists() and named.is_dir() else Path(run)


def wrapped(text, width, **how):
    """The text in lines that part no number from its %."""
    return [line.replace("\u00a0", " ") for line in textwrap.wrap(text.replace(" %", "\u00a0%"), width, **how)]


def said(found, judged, colour=False):
    """The report as lines: the verdict, then each finding with its evidence and what to do."""
    width = max(60, min(WIDE, shutil.get_terminal_size((WIDE, 24)).columns))
    paint = (lambda text, code: f"{code}{text}\033[0m") if colour else (lambda text, code: text)
    steps = f"{found['step']:,} steps" if found["ended"] else f"{found['step']:,} of {found['steps'] or 'unknown'} steps"
    steps += f" in {len(found['rows'])} row{'s' * (len(found['rows']) > 1)}"
    verdict = f"{judged['verdict']:<12}"
    figures = f", {told(found)}" * found["ended"]  # the finding `unfinished` tells them
    lines = wrapped(f"{found['source']}: {steps}{figures}", width - 12)
    yield paint(verdict, COLOUR[judged["verdict"]]) + lines[0]
    yield from (" " * 12 + line for line in lines[1:])
    for f in judged["findings"]:
        yield ""
        evidence = wrapped(f["evidence"], width - 24)
        yield paint(f"{f['cause']:<24}", "\033[1m") + evidence[0]
        first, *listed = re.split(r" (?=\(\d\) )", f["fix"])  # (1) …; (2) …: a line for each
        fix = wrapped(f"→ {first}", width - 24, subsequent_indent="  ")
        for item in listed:
            fix += wrapped(item, width - 24, initial_indent="  ", subsequent_indent=" " * 6)
        yield from (" " * 24 + line for line in evidence[1:] + fix)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.diagnose", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run's name, its folder, a checkpoint, a trainer_state.json or a health.jsonl")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--strict", action="store_true", help="exit 1 for dead, overfit and weak")
    args = parser.parse_args(argv)
    found = log.read(place(args.run))
    judged = causes.judge(found)
    if args.json:
        print(json.dumps(judged, indent=2, ensure_ascii=False))
    else:
        print("\n".join(said(found, judged, sys.stdout.isatty())))
    return int(args.strict and judged["verdict"] in ("dead", "overfit", "weak"))


if __name__ == "__main__":
    process.command(main)
