"""Run every nano twin, and what the claims need, a run to a core; then make the reports anew.

    python -m scripts.matrix --list     # what would run, what stands already, and how long it may take
    python -m scripts.matrix            # `make matrix`: hours; stopped and started again, it goes on where it was
    python -m scripts.matrix --jobs 1   # one after another

A run is made by make's own stages, so that what stands is not made again. The twins get a page each; repeats with other seeds a line in reports/experiments.csv.
A nano model is too small to be shared by cores: one thread takes a step in less time than two do, so each run has one, and as many go on at once as there are cores.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock

from scripts import process, recipe
from scripts.runs import book, claims, gather, words
from scripts.watch import lines

USUAL = 180  # seconds of a run, until one was measured
NEEDS = 3 * 2**30  # bytes of memory that a run may take
# What stands on these runs, made last. The ladder's exit 1 says that no phase met its criteria, which is a result.
AFTER = [("ladder", "undertrained-nano", "UNTIL=optimal"), ("ladder", "undertrained-dead-nano", "STEPS=25 100"), ("dial", "msu-nano")]
TRAINED = defaultdict(Lock)  # one at a time of a run and of what is made from its adapter (x_strength)


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
    if not found or subprocess.run([sys.executable, "-m", "scripts.snapshot", name]).returncode:
        return False
    return found[-1]["key"] == gather.key(f"outputs/{name}")


def make(goal, name, *more):
    """`make GOAL` of a run, its output in outputs/matrix/NAME.log. Returns its exit status."""
    log = Path("outputs/matrix", f"{name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BASE", "GPUS")} | {"OMP_NUM_THREADS": "1"}
    with open(log, "a", encoding="utf-8") as out:
        return subprocess.run(["make", goal, *recipe.words(name), *more], env=env, stdout=out, stderr=out).returncode


def one(name):
    """Train and score a run; one that the watch stops as proven dead is done too. Raises ValueError with what failed."""
    stages = "STAGES=base adapter" if name in twins() else "STAGES=adapter"
    with TRAINED[recipe.unscaled(name)]:
        code = make("eval", name, stages)
    if code and not lines.dead(Path("outputs", name, "health.jsonl")):
        raise ValueError(f"{name}: failed; see outputs/matrix/{name}.log")


def reported(name):
    """The log's line for a run that is done: a twin's comes with its page."""
    if name not in twins():
        book.record(book.line(gather.run(name)))
    elif make("report", name):
        raise ValueError(f"{name}: no report; see outputs/matrix/{name}.log")
    return [row for row in book.read() if row["recipe"] == name][-1]


def at_once():
    """As many runs as there are cores for, and memory."""
    free = 1024 * int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1])
    return max(1, min(len(os.sched_getaffinity(0)), free // NEEDS))


def say(name, row):
    loss = " → ".join(f"{float(row[k]):.3f}" for k in ("first_eval_loss", "eval_loss") if row[k])
    score = f"score {words.share(float(row['score']))}" if row["score"] else ""
    print(f"{name:<44}{row['status']:<12}{loss:<18}{score}", flush=True)


def told(name, done, bar):
    """The line of a run that is done, on the screen; the fault of one that failed, as a list."""
    try:
        done.result()
        row = reported(name)
    except (ValueError, OSError) as error:
        return [str(error)]
    bar.clear()
    say(name, row)
    return []


def main(argv):
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="python -m scripts.matrix", description="run all nano twins, and what the claims need")
    parser.add_argument("--list", action="store_true", help="what would run, and how long it may take")
    parser.add_argument("--jobs", type=int, default=at_once(), metavar="N", help="runs at once (as many as cores, if memory allows)")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error("--jobs takes a whole number from 1 on")
    rows, names, faults = book.read(), wanted(), []
    left = [name for name in names if not logged(name, rows)]
    hours = words.seconds(len(left) * seconds(rows) / args.jobs)
    print(f"matrix      {len(left)} of {len(names)} runs to do, {args.jobs} at once, about {hours}; what they say: outputs/matrix/")
    if args.list:
        print("\n".join(f"{'to do' if name in left else 'stands':<12}{name}" for name in names))
        return 0
    form = "{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}<{remaining}"
    with (
        tqdm(desc=f"{'matrix':<28}", total=len(left), bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        for family in dict.fromkeys(name.split("+")[0] for name in left):
            make("base", family)  # first, for runs side by side may share it
        going = {pool.submit(one, name): name for name in left}
        try:
            for done in as_completed(going):
                faults += told(going[done], done, bar)
                bar.update()
        except BaseException:  # Ctrl-C: what has not begun does not begin
            pool.shutdown(cancel_futures=True)
            raise
    for goal, name, *more in AFTER if left and not faults else []:
        make(goal, name, *more)
    book.renew()
    print("\n".join(faults), end="\n" * bool(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    process.command(main)
