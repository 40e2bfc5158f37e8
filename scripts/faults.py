"""Kill the stages at random moments, and prove that nothing half-made is ever taken for whole and that make then finishes.

    python -m scripts.faults --kills 100 --report       # `make fault-test`: half an hour; reports/faults.json
    python -m scripts.faults --kills 9 --stages merge   # a few, of one stage

All of it happens in a scratch copy of the repository, on 48 rows of pirate-nano. An undisturbed run is the reference. Then each stage is started as a terminal
would, and SIGINT, SIGTERM and SIGKILL in turn hit the whole foreground group, our python alone or make alone; every other time an older version of the stage's
work is in place. After each kill: all processes end by themselves, every receipt holds, in place is nothing, the old work or the reference and never anything
between, and `make status` knows. Now and then make is left to finish: the result is the reference's, bit for bit, and nothing temporary stays behind.
"""

import argparse
import getpass
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from scripts import files, process, receipt
from scripts.kills import processes, stages

# The stages' shares of the kills: those that take long or write much get most.
SHARE = {"preprocess": 18, "train": 28, "merge": 20, "gguf": 18, "modelfile": 8, "ollama": 8}
SIGNS = ["SIGINT", "SIGTERM", "SIGKILL"]
TARGETS = {"group": "the group", "python": "our python", "make": "make"}
COUNTS = ["kills", "second_half", *TARGETS, "nothing", "old", "new", "half", "finished", "faults"]
FINISH_AFTER = 5  # kills
ALSO = {"train": ["+checkpoint-12", "+adapter_model.safetensors"]}  # the last checkpoint; the result, before its tokenizer
REPORT = Path("reports/faults.json")


def shared(kills, chosen):
    """{stage: kills} by the stages' shares; what rounding leaves goes to the first of them."""
    whole = sum(SHARE[s] for s in chosen)
    parts = {s: kills * SHARE[s] // whole for s in chosen}
    for stage in sorted(chosen, key=lambda s: -SHARE[s])[: kills - sum(parts.values())]:
        parts[stage] += 1
    return parts


def moment(n, rng, stage, old):
    """(share of the stage's usual time, None), mostly in its second half, or every third one (None, a name that comes or goes): where renames happen."""
    if n % 3 == 2:
        place = stages.PLACE[stage] and stages.PLACE[stage].name
        names = [f"+.{place}.new", f"-.{place}.new", f"-{stage}.json" if old else f"+{place}"] if place else []
        return None, rng.choice([*names, f"+{stage}.json", *ALSO.get(stage, [])])
    return (rng.random() if n % 3 else 1 - 0.5 * rng.random() ** 2), None


def undisturbed(last, url, bar):
    """Make the stages up to `last`: {stage: {"seconds", "made", "names"}}, and keep a copy of the outputs."""
    found = {}
    for stage in stages.ORDER[: stages.ORDER.index(last) + 1]:
        bar.set_description_str(f"{'undisturbed: ' + stage:<28}")
        began = time.monotonic()
        if processes.start(stage, stages.NAME, 0).wait():
            raise ChildProcessError(f"the undisturbed `make {stage}` failed: {said()}")
        found[stage] = {"seconds": time.monotonic() - began, "made": stages.made(stage, url), "names": processes.listing(*stages.FOLDERS)}
    stages.keep()
    return found


def standing(last):
    """The same of the outputs that stand here; the later stages do not mind that their data is not cut."""
    found = {}
    for stage in stages.ORDER[: stages.ORDER.index(last) + 1]:
        made = receipt.read(stages.OUT / f"{stage}.json")
        if not made or not receipt.holds(stages.OUT / f"{stage}.json", files.sha256):
            raise ValueError(f"{stages.OUT}: {stage} is not finished; `make {last} RECIPE={stages.NAME}` first, or leave --finished away")
        found[stage] = {"seconds": made["seconds"], "made": stages.made(stage, None), "names": processes.listing(*stages.FOLDERS)}
    return found


def said():
    return " ".join(Path("said").read_text(encoding="utf-8", errors="replace").split())[-300:]


def kill(stage, n, rng, known, old, sign, target):
    """Start the stage and hit it. Returns (when, as a share of its usual time; faults); (None, …) if it ended before, or ended well all the same."""
    share, event = moment(n, rng, stage, old)
    began, child = time.monotonic(), processes.start(stage, stages.NAME, n)
    processes.watch(child, stages.FOLDERS, known["seconds"] * share if share else float("inf"), event)
    if event:
        time.sleep(0.004 * rng.random())
    if child.poll() is not None:
        known["seconds"] = time.monotonic() - began
        return None, [f"make fails unkilled: {said()}"] if child.returncode else []
    when = (time.monotonic() - began) / known["seconds"]
    processes.strike(child.pid, signal.Signals[sign], target)
    wrong = processes.gone(child, n, known["seconds"])
    return (min(when, 1.0) if child.returncode else None), wrong


def half_made(stage, now, old):
    """What must not be after a kill: [] or sentences."""
    wrong = ["what stands in its place is neither the old work nor the new"] if now == "half" else []
    if now == "nothing" and old and not (stage != "ollama" and stages.beside(stage).exists()):
        wrong.append("the old work is gone, and the new is not there")
    unsound = stages.unsound()
    wrong += [f"{name} is there and does not hold" for name in unsound]
    if stages.status(stage) == "stands" and f"{stage}.json" in unsound:
        wrong.append("`make status` says that it stands")
    return wrong


def finished(stage, known, url, run=True):
    """Leave make alone, and see whether all is as if nothing had been: [] or sentences."""
    began, path = time.time(), stages.OUT / f"{stage}.json"
    if run and processes.start(stage, stages.NAME, 0).wait():
        return [f"make does not finish: {said()}"]
    if run and path.exists() and path.stat().st_mtime > began:  # it had something to do; the machine may be busier than before, or less
        known["seconds"] = (known["seconds"] + time.time() - began) / 2
    now = stages.made(stage, url) or {}
    other = sorted(k for k in {*now, *known["made"]} if now.get(k) != known["made"].get(k))
    wrong = [f"make ended with something else than the undisturbed run: {', '.join(other)}"] if other else []
    if stages.unsound() or not path.exists():
        wrong.append("the receipts of a finished run do not hold")
    left = {*processes.listing(*stages.FOLDERS), *(p.name for p in stages.OUT.rglob(".*"))} - known["names"]
    kernels = {f"TMPDIR/torchinductor_{user}" for user in (getpass.getuser(), os.getuid())}  # PyTorch's cache
    left |= {f"TMPDIR/{p.name}" for p in Path("tmp").iterdir()} - kernels
    left |= set(stages.models(url)) - {f"{stages.NAME}:latest"} if stage == "ollama" else set()
    return wrong + ([f"left behind: {', '.join(sorted(left))}"] if left else [])


def torment(stage, kills, known, url, rng, bar):
    """Kill a stage that many times while it runs. Returns ({sign: counts}, violations)."""
    rows, wrong, old, pending, hits, n = {s: dict.fromkeys(COUNTS, 0) for s in SIGNS}, [], None, [], 0, 0
    ways = [(s, t) for t in TARGETS for s in SIGNS]
    stages.back_to(stage, url)
    while hits < kills:
        n += 1
        sign, target = ways[hits % len(ways)]
        when, faults = kill(stage, n, rng, known, old, sign, target)
        where = f"{stage}: {sign} to {TARGETS[target]}"
        if when is not None:
            now = stages.stands(stage, known["made"], old, url)
            faults += half_made(stage, now, old)
            for count in ("kills", now, target, *(["second_half"] if when >= 0.5 else [])):
                rows[sign][count] += 1
            hits, pending = hits + 1, [*pending, sign]
            where += f" at {when:.0%}"
            bar.update()
        whole = when is None or now == "new" and (stages.OUT / f"{stage}.json").exists()
        if whole or hits == kills or len(pending) >= FINISH_AFTER:
            unfinished = finished(stage, known, url, run=when is not None)
            for killed in [] if unfinished else pending:
                rows[killed]["finished"] += 1
            faults += unfinished
            old, pending = renew(stage, old, faults, url), []
        rows[sign]["faults"] += len(faults)
        wrong += [f"{where}: {fault}" for fault in faults]
    return rows, wrong


def renew(stage, old, faults, url):
    """Ready for the next try: nothing in place, or by turns an older version. Returns what the older version is made of, or None."""
    if faults:
        stages.back_to(stage, url)
    elif old is None:
        stages.age(stage, url)
        return stages.made(stage, url)
    else:
        stages.drop(stage, url)
    return None


def table(found):
    """Lines to print: stage × signal."""
    rows = [[stage, sign, *counts.values()] for stage, signs in found.items() for sign, counts in signs.items() if counts["kills"]]
    rows = [["stage", "signal", *COUNTS], *rows, ["total", "", *(sum(r[i] for r in rows) for i in range(2, 2 + len(COUNTS)))]]
    width = [max(len(str(r[i])) for r in rows) for i in range(len(rows[0]))]
    return ["  ".join(str(cell).ljust(w) if i < 2 else str(cell).rjust(w) for i, (cell, w) in enumerate(zip(r, width))) for r in rows]


def asked(argv):
    """The arguments, and the stages among them in their order."""
    parser = argparse.ArgumentParser(prog="python -m scripts.faults", description="kill the stages at random moments")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stages", default=",".join(SHARE), help="of " + ", ".join(SHARE))
    parser.add_argument(
        "--finished", action="store_true", help="the outputs that stand here are the undisturbed run (merge, gguf, modelfile)"
    )
    parser.add_argument("--report", action="store_true", help=f"write {REPORT}")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    named = args.stages.split(",")
    if args.kills < 1 or set(named) - set(SHARE):
        parser.error(f"--kills wants a number of 1 or more, --stages some of {', '.join(SHARE)}")
    if args.finished and set(named) - {"merge", "gguf", "modelfile"}:
        parser.error("--finished is for merge, gguf and modelfile: training on all rows would take too long")
    os.environ["OLLAMA"] = process.ollama_binary() or str(next(files.CACHE.glob("ollama-*/bin/ollama"), ""))
    if "ollama" in named and not process.ollama_binary():
        raise ValueError("no `ollama` to torment; install it (ollama.com), `make ollama-server` where there is Go, or name other --stages")
    return args, [s for s in SHARE if s in named]


def tormented(args, chosen, bar):
    """({stage: {sign: counts}}, violations) of all of it, in a scratch folder that goes with everything that was started there."""
    home, found, wrong = Path.cwd(), {}, []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)))
        stack.callback(processes.end_all)
        stack.callback(os.chdir, home)
        known = standing(chosen[-1]) if args.finished else None
        stages.scratch(folder, cut=not known)
        os.chdir(folder)
        url = stack.enter_context(process.ollama("models", "ollama.log")) if "ollama" in chosen else None
        os.environ["OLLAMA_HOST"] = url or ""
        known = known or undisturbed(chosen[-1], url, bar)
        for stage, kills in shared(args.kills, chosen).items():
            bar.set_description_str(f"{stage:<28}")
            found[stage], more = torment(stage, kills, known[stage], url, random.Random(f"{args.seed} {stage}"), bar)
            wrong += more
    return found, wrong


def main(argv):
    from tqdm import tqdm

    began, (args, chosen) = time.time(), asked(argv)
    form = "{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}"
    with tqdm(total=args.kills, bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:
        found, wrong = tormented(args, chosen, bar)
    rows = [counts for signs in found.values() for counts in signs.values()]
    figures = {k: sum(r[k] for r in rows) for k in COUNTS} | {"seed": args.seed, "minutes": round((time.time() - began) / 60, 1)}
    body = {"figures": figures, "stages": found, "violations": wrong}
    body |= {"machine": receipt.machine(), "versions": receipt.versions(), "commit": receipt.commit()}
    if args.report:
        files.write_if_changed(REPORT, json.dumps(body, indent=1) + "\n")
    print(json.dumps(body) if args.json else "\n".join(table(found)))
    print("\n".join(wrong), end="\n" * bool(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    process.command(main)
