"""Train a run that did not learn and then its remedies, one after the other, until one of them has learned enough; and say what each came to.

    python -m scripts.ladder                              # undertrained, then -conservative, -aggressive and -int8
    python -m scripts.ladder undertrained-nano            # their nano twins, on a CPU (--read: only judge the runs that are there)
    UNTIL=optimal python -m scripts.ladder undertrained   # not content with the minimum
    python -m scripts.ladder undertrained-dead-nano --steps 25 100   # what more steps bring to a run that the watch would stop as dead

A phase is `make train RECIPE=…`, judged from its log alone; one that stands is not trained again, and one that health stopped as dead is a phase that failed.
Writes reports/NAME/ladder.md and ladder.json after every phase. Exit 1, with what is missing, if no phase met the criteria.

How the figures are taken. Train loss: from the first row logged to the mean of the last tenth, since single steps scatter. Eval loss: from the first evaluation
(Axolotl's is before the first step, of the untouched base) to the last, or with early stopping to the lowest, whose checkpoint is the result; its perplexity is
exp(eval loss). Token accuracy: the share of held-out reply tokens that the model would have chosen itself (the formula is in scripts/watch/accuracy.py), from and to
the same steps; in a foreign log TRL's `mean_token_accuracy`. grad_norm: the median of all rows. Coverage: how often the rows were seen, as the Trainer counts.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median

import yaml

from scripts import files, process, receipt, recipe
from scripts.runs import book, gather
from scripts.signs import causes, log
from scripts.signs.numbers import column, sci
from scripts.watch import lines

PHASES = {"as it was": "", "conservative": "-conservative", "aggressive": "-aggressive", "int8": "-int8"}  # in the order of the report
# "Success Metrics" of the report on the run of 500 steps that did not learn, for a model that begins at a loss of 2.7. Falls in nats, accuracy as a share; grad_norm
# must be larger, perplexity smaller. What is optimal meets the minimum too.
METRICS = {
    "minimum": {"loss": 0.5, "eval_loss": 0.2, "accuracy": 0.05, "grad_norm": 0.0},
    "optimal": {"loss": 1.0, "perplexity": 6.0},
}
ACCURACIES = ("eval_token_accuracy", "eval_mean_token_accuracy", "mean_token_accuracy")  # ours; TRL's
SAID = {
    "loss": "the train loss falls by more than {:g}",
    "eval_loss": "the eval loss by more than {:g}",
    "accuracy": "token accuracy rises by more than {:.0%} points",
    "grad_norm": "grad_norm is over {:g}",
    "perplexity": "perplexity is under {:g}",
}
HEAD = ["phase", "steps", "coverage", "train loss", "eval loss", "token accuracy", "grad_norm", "verdict", "minimum", "optimal", "minutes"]
UNSET = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKECMDGOALS")  # of the make that called us, whose RECIPE is not the phase's


def phases(name):
    """{phase: recipe} of a family, or of its nano twins, with a variant's changes. Raises ValueError if one of the recipes is not there."""
    stem, *changes = name.split("+")
    nano = "-nano" if stem.endswith("-nano") else ""
    found = {title: "+".join([f"{recipe.family(stem)}{suffix}{nano}", *changes]) for title, suffix in PHASES.items()}
    for one in found.values():
        recipe.load(one)
    return found


def figures(run):
    """What a log (scripts/signs/log.py) says of a phase: {"steps", "coverage", "loss": [from, to], "eval_loss", "accuracy", "grad_norm", "perplexity", "verdict"}.
    What is not logged is None."""
    losses, evals = column(run, "loss"), column(run, "eval_loss")
    best = bool((run["beside"].get("recipe") or {}).get("early_stopping_patience"))
    at = min(evals, key=lambda e: e[1])[0] if best and evals else evals[-1][0] if evals else None
    rights = next((found for key in ACCURACIES if len(found := column(run, key)) > 1), [])
    last = dict(rights).get(at, rights[-1][1] if rights else None)
    norms = [v for _, v in column(run, "grad_norm")]
    return {
        "steps": run["step"],
        "coverage": run["epoch"],
        "loss": [losses[0][1], fmean(v for _, v in losses[-max(1, len(losses) // 10) :])] if len(losses) > 1 else None,
        "eval_loss": [evals[0][1], dict(evals)[at]] if len(evals) > 1 else None,
        "accuracy": [rights[0][1], last] if rights else None,
        "grad_norm": median(norms) if norms else None,
        "perplexity": math.exp(min(700, dict(evals)[at])) if evals else None,
        "verdict": causes.judge(run)["verdict"],
    }


def lacks(found, level):
    """What a phase lacks of a level, as sentences: [] where it is met. A fall must be larger than its threshold, as the report writes it."""
    missing = []
    for key, least in (METRICS["minimum"] | METRICS[level]).items():
        value, name = found[key], key.replace("accuracy", "token accuracy").replace("_l", " l")
        if value is None:
            missing.append(f"{name} is not logged, or only once")
        elif key == "grad_norm" and not value > least:
            missing.append(f"{name} is {sci(value)}: there is no gradient")
        elif key == "perplexity" and not value < least:
            missing.append(f"{name} is {value:.1f}, under {least:g} is wanted")
        elif key == "accuracy" and not value[1] - value[0] > least:
            missing.append(f"{name} {moved(100 * (value[1] - value[0]), 1)} points, more than {100 * least:g} up are wanted")
        elif key in ("loss", "eval_loss") and not value[0] - value[1] > least:
            missing.append(f"{name} {moved(value[1] - value[0], 3)}, more than {least:g} down is wanted")
    return missing


def moved(change, digits):
    return f"{'rose' if change > 0 else 'fell'} by {abs(change):.{digits}f}"


def train(name):
    """`make train` of a phase, its lines on the screen. False if it was stopped as dead; raises ChildProcessError if it failed in any other way."""
    env = {key: value for key, value in os.environ.items() if key not in UNSET}
    code = subprocess.run(["make", "train", *recipe.words(name)], env=env).returncode
    if code and not lines.dead(Path("outputs", name, "health.jsonl")):
        raise ChildProcessError(f"{recipe.command('train', name)} failed, for the reason above; mend that, and `make ladder` goes on from there")
    return not code


def minutes(folder, done):
    """As the experiments' log has them; of a dead phase, which has no receipt of its own, by the watch's own clock."""
    made = receipt.read(folder / "train.json") if done else None
    return book.rounded(book.minutes({"stages": {"train": made}, "health": gather.whole(folder / "health.jsonl")}), 2)


def row(title, name, done):
    """A phase's line of the report: its figures, and what it lacks of each level."""
    folder = Path("outputs", name)
    found = figures(log.read(folder))
    lacking = {level: lacks(found, level) for level in METRICS}
    return {"phase": title, "recipe": name, **found, "minutes": minutes(folder, done), "lacks": lacking}


def pair(values, digits=3):
    return f"{values[0]:.{digits}f} → {values[1]:.{digits}f}" if values else "–"


def cells(one):
    """A phase's figures as text, in the order of HEAD."""
    return [
        one["phase"],
        f"{one['steps']:,}",
        f"{100 * one['coverage']:.1f} %" if one["coverage"] is not None else "–",
        pair(one["loss"]),
        pair(one["eval_loss"]),
        pair([100 * v for v in one["accuracy"]], 1) + " %" if one["accuracy"] else "–",
        sci(one["grad_norm"]) if one["grad_norm"] is not None else "–",
        one["verdict"],
        *("no" if one["lacks"][level] else "yes" for level in METRICS),
        f"{one['minutes']:.1f}" if one["minutes"] is not None else "–",
    ]


def ended(rows, until):
    """The last sentence: which phase met the criteria, or what the nearest one lacks."""
    if not rows[-1]["lacks"][until]:
        return f"{rows[-1]['recipe']} meets the {until} criteria"
    nearest = min(rows, key=lambda one: (len(one["lacks"][until]), one["perplexity"] or math.inf))
    return f"{len(rows)} phases, and none meets the {until} criteria; nearest is {nearest['recipe']}: {'; '.join(nearest['lacks'][until])}"


def page(name, rows, until):
    """The report as Markdown."""
    wanted = {level: ", ".join(SAID[key].format(value) for key, value in METRICS[level].items()) for level in METRICS}
    wanted = {level: text.replace("% p", " p") for level, text in wanted.items()}
    how = f"`make ladder RECIPE={name}{' UNTIL=optimal' * (until == 'optimal')}`"
    lines = [f"# {name}: the ladder", ""]
    lines += [f"{how}: a run that did not learn, then its remedies, until one meets the {until} criteria. {ended(rows, until)}.", ""]
    lines += [f"| {' | '.join(HEAD)} |", f"|{'|'.join(['---'] + ['--:'] * 6 + ['---'] * 3 + ['--:'])}|"]
    lines += [f"| {' | '.join(cells(one))} |" for one in rows] + [""]
    lines += [f"- `{one['recipe']}` lacks of the {until}: {'; '.join(one['lacks'][until]) or 'nothing'}." for one in rows] + [""]
    lines += [f"Minimum: {wanted['minimum']}. Optimal: all that, {wanted['optimal']}."]
    lines += ["They are the “Success Metrics” of the report on the run; scripts/ladder.py says how each figure is taken.", ""]
    return "\n".join(lines)


def unwatched(name, counts):
    """Train a recipe without the watch and without early stopping, once for each number of steps; what came of it, also as reports/NAME/steps.json.

    {"runs": [{"steps", "eval_loss": [first, …, last], "grad_norm": the largest}], "largest_change": of an eval loss over all runs, in nats}
    """
    cfg, runs = recipe.load(name), []
    cfg["plugins"] = [plugin for plugin in cfg["plugins"] if not plugin.startswith("scripts.health.")]
    cfg.pop("early_stopping_patience", None)
    for steps in counts:
        folder = Path("outputs", name, f"unwatched-{steps}")
        shutil.rmtree(folder, ignore_errors=True)
        files.write_if_changed(folder / "recipe.yml", yaml.safe_dump(cfg | {"max_steps": steps, "output_dir": str(folder / "training")}))
        command = [sys.executable, "-m", "axolotl.cli.train", folder / "recipe.yml"]
        process.run(command, folder / "train.log", f"{name}, {steps} steps", recipe.environment(cfg))
        rows = receipt.read(folder / f"training/checkpoint-{steps}/trainer_state.json")["log_history"]
        losses, norms = ([row[key] for row in rows if key in row] for key in ("eval_loss", "grad_norm"))
        runs.append({"steps": steps, "eval_loss": losses, "grad_norm": max(norms)})
    every = [loss for one in runs for loss in one["eval_loss"]]
    found = {"runs": runs, "largest_change": max(every) - min(every)}
    files.write_if_changed(Path("reports", name, "steps.json"), json.dumps(found, indent=2) + "\n")
    return found


def say(rows):
    every = [HEAD, *map(cells, rows)]
    widths = [max(len(line[n]) for line in every) for n in range(len(HEAD))]
    print()
    for line in every:
        texts = [f"{text:<{w}}" if n in (0, 7, 8, 9) else f"{text:>{w}}" for n, (text, w) in enumerate(zip(line, widths))]
        print("  ".join(texts).rstrip())
    print()


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ladder", description="a run that did not learn, then its remedies until one has learned"
    )
    parser.add_argument("name", nargs="?", default="undertrained", help="a family of recipes, or its nano twins (undertrained)")
    parser.add_argument("--read", action="store_true", help="judge the runs that are there, and train nothing")
    parser.add_argument("--steps", nargs="+", type=int, metavar="N", help="no ladder: this one recipe without the watch, for so many steps")
    args, until = parser.parse_args(argv), os.environ.get("UNTIL") or "minimum"
    if args.steps:
        found = unwatched(args.name, args.steps)
        for one in found["runs"]:
            losses = f"{one['eval_loss'][0]:.6f} → {one['eval_loss'][-1]:.6f}"
            print(f"unwatched   {args.name}, {one['steps']} steps: eval loss {losses}, grad_norm at most {sci(one['grad_norm'])}")
        print(f"so          eval losses differ by at most {found['largest_change']:.3g}; reports/{args.name}/steps.json")
        return 0
    if until not in METRICS:
        raise ValueError(f"UNTIL={until}: it is minimum or optimal")
    name, rows = args.name, []
    for title, one in phases(name).items():
        print(f"ladder      {title}: {one}", flush=True)
        rows.append(row(title, one, Path("outputs", one, "train.json").exists() if args.read else train(one)))
        folder = Path("reports", name)
        files.write_if_changed(folder / "ladder.json", json.dumps({"until": until, "metrics": METRICS, "phases": rows}, indent=2) + "\n")
        files.write_if_changed(folder / "ladder.md", page(name, rows, until))
        if not rows[-1]["lacks"][until]:
            break
    say(rows)
    if rows[-1]["lacks"][until]:
        raise ValueError(f"{ended(rows, until)}; {folder}/ladder.md has every phase")
    print(f"ladder      {ended(rows, until)}; {folder}/ladder.md")
    return 0


if __name__ == "__main__":
    process.command(main)
