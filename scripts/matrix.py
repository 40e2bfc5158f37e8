"""Run every nano twin, and what the claims need, one after another; then make the reports anew.

    python -m scripts.matrix --list     # what would run, what stands already, and how long it may take
    python -m scripts.matrix            # `make matrix`: hours; stopped and started again, it goes on where it was

A run is made by make's own stages, so that what stands is not made again. The twins get a page each; repeats with other seeds a line in reports/experiments.csv.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from scripts import process, recipe
from scripts.runs import book, claims, gather, words

USUAL = 180  # seconds of a run, until one was measured
EXPECTED = "x_expect"  # a twin that is meant to fail says so: {verdict: dead}


def twins():
    return [name for name in recipe.names() if name.endswith("-nano")]


def wanted():
    """Twins first, then the repeats that the claims ask for."""
    return list(dict.fromkeys(twins() + claims.names(claims.read())))


def seconds(rows):
    """What a run has taken here so far, as the log tells of the nano runs."""
    took = [60 * float(row["minutes"]) for row in rows if "-nano" in row["recipe"] and row["minutes"]]
    return statistics.median(took) + 60 if took else USUAL  # the rest: preparing, loading, scoring


def logged(name, rows):
    """Whether the log has the run, scored, of the recipe and data as they are now. Its outputs may be gone; the log is kept with the repository."""
    found = [row for row in rows if row["recipe"] == name and (row["scored"] or row["status"] == "dead")]
    return bool(found) and not make_snapshot(name) and found[-1]["key"] == gather.key(f"outputs/{name}")


def make_snapshot(name):
    return subprocess.run([sys.executable, "-m", "scripts.snapshot", name], stdout=subprocess.DEVNULL).returncode


def make(goal, name, *more):
    """`make GOAL` of a run, its output in a file. Returns its exit status."""
    own, *changes = name.split("+")
    log = Path("outputs/matrix.log")
    log.parent.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BASE", "GPUS")}
    with open(log, "a", encoding="utf-8") as out:
        out.write(f"\n>>> make {goal} {name}\n")
        out.flush()
        return subprocess.run(
            ["make", goal, f"RECIPE={own}", f"SET={' '.join(changes)}", *more], env=env, stdout=out, stderr=out
        ).returncode


def one(name):
    """Train, score and report one run. Returns the log's line for it, or raises ValueError with what failed."""
    dead = (recipe.load(name).get(EXPECTED) or {}).get("verdict") == "dead"
    failed = make("train", name) if dead else make("eval", name, "STAGES=base adapter" if name in twins() else "STAGES=adapter")
    if bool(failed) != dead:
        raise ValueError(
            f"{name}: {'was trained to its end, though it is meant to be stopped' if dead else 'failed'}; see outputs/matrix.log"
        )
    if name in twins():
        if make("report", name):
            raise ValueError(f"{name}: no report; see outputs/matrix.log")
    else:
        book.record(book.line(gather.run(name)))
    return next(row for row in reversed(book.read()) if row["recipe"] == name)


def say(name, row):
    loss = " → ".join(f"{float(row[k]):.3f}" for k in ("first_eval_loss", "eval_loss") if row[k])
    score = f"score {words.share(float(row['score']))}" if row["score"] else ""
    print(f"{name:<44}{row['status']:<12}{loss:<18}{score}", flush=True)


def main(argv):
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m scripts.matrix", description="run all nano twins, and what the claims need")
    parser.add_argument("--list", action="store_true", help="what would run, and how long it may take")
    args = parser.parse_args(argv)
    rows, names, faults = book.read(), wanted(), []
    left = [name for name in names if not logged(name, rows)]
    print(
        f"matrix      {len(left)} of {len(names)} runs to do, about {words.seconds(len(left) * seconds(rows))}; what they say: outputs/matrix.log"
    )
    if args.list:
        print("\n".join(f"{'to do' if name in left else 'stands':<12}{name}" for name in names))
        return 0
    with tqdm(
        total=len(left),
        bar_format="{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}<{remaining}",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:
        for name in left:
            bar.set_description_str(f"{name:<28}")
            try:
                row = one(name)
                bar.clear()
                say(name, row)
            except ValueError as error:
                faults.append(str(error))
            bar.update()
    book.renew()
    print("\n".join(faults), end="\n" * bool(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    process.command(main)
