"""How strong should an adapter be? The trained one at several strengths, in memory: what it does of its task, against what was forgotten.

    make dial RECIPE=msu-nano                        # 0.25 to 4 times ΔW as trained, on the base as training rounded it; 0 is that base alone
    python -m scripts.dial msu-nano 1 1.25 1.5       # strengths of your own (make dial BY="1 1.25 1.5"); --limit N: a quick look at N rows

→ reports/NAME/dial.json, dial.png. The task is the share of held-out rows that pass all their checks, as `make eval` counts it at the stage `adapter`; where
no strength passes more of them than the base does, it is what their replies have become more likely (learned), in nats a token: the logarithm of the base's
perplexity over theirs. Forgotten is what replies that the base knew have become less likely, in the same way. They are rows that the recipe never trained: general.jsonl of its family, under a nano base again.jsonl (from what it has read), else eval-plain.jsonl; where these have
checks, it is also counted how many pass.

The knee is Kneedle's (Satopää, Albrecht, Irwin, Raghavan 2011, Finding a "Kneedle" in a Haystack): with both axes of the curve, task over forgetting,
scaled to 0…1, the point that lies farthest above the chord from (0, 0) to (1, 1); and a knee only if behind it the curve comes back towards the chord by
more than the mean distance of two points (their sensitivity S = 1; nine points are not smoothed). Before it strength is cheap, behind it dear.
`make strength BY=…` then makes the one that is wanted.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

from scripts import data, files, process, recipe
from scripts.runs import canvas, words
from scripts.scoring import asking, backends, checks, scaling, statistics

STRENGTHS = [0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]


def strengths_of(given):
    """The strengths to try, in order. Raises ValueError for what is no factor."""
    try:
        found = sorted({float(x) for x in given} or STRENGTHS)
    except ValueError:
        found = [0]
    if not all(0 < x < math.inf for x in found):
        raise ValueError(f'strengths {" ".join(given)}: positive numbers, such as BY="0.5 1 2"')
    return found


def known(name, cfg):
    """Path of the rows that the base knew and the recipe never trained. Raises ValueError where the family has none."""
    folder, nano = Path("datasets", recipe.family(name)), str(cfg["base_model"]).startswith("outputs/nano/")
    names = [*(["again"] if nano else []), "general", "eval-plain"]
    found = [path for n in names if (path := folder / f"{n}.jsonl").is_file() and path not in recipe.datasets(cfg)[0]]
    if not found:
        raise ValueError(
            f"{folder}: no {' or '.join(f'{n}.jsonl' for n in names)}; write rows that the base knows and training leaves alone"
        )
    return found[0]


def job(args, cfg):
    """What is asked at every strength."""
    (paths, rows), path = asking.held_out(args.name, cfg), known(args.name, cfg)
    twins, other = checks.twins(recipe.family(args.name)), asking.numbered([path])[: args.limit]
    rows = rows[: args.limit]
    checks.refuse([*paths, path], bool(twins))
    modelfile = recipe.modelfile(args.name)
    found = recipe.read_modelfile(modelfile) if modelfile.is_file() else {"parameters": {}}
    asked = [r for r in other if r.get("checks")]
    prompts = asking.as_served([data.prompt(r) for r in rows], found.get("system"))
    return {
        "rows": rows,
        "prompts": prompts,
        "known": other,
        "asked": asked,
        "paths": [*paths, path],
        "chosen": backends.options(found),
        "voice": checks.style(recipe.family(args.name))[0] if asking.styled(rows, twins) else None,
    }


def measured(job, replies, likelihood, tick):
    """{"task", "task_ppl", "ppl", "remembered"} at the strength that the model has now."""
    said = replies(job["prompts"] + [data.prompt(r) for r in job["asked"]], job["chosen"], tick)
    n = len(job["rows"])
    task = asking.lines(job["rows"], job["prompts"], said[:n], [None] * n, job["voice"])
    kept = asking.lines(job["asked"], [data.prompt(r) for r in job["asked"]], said[n:], [None] * len(said[n:]), None)
    return {
        "task": statistics.interval([line["passed"] for line in task]),
        "task_ppl": statistics.perplexity(*zip(*likelihood(job["rows"], tick))),
        "ppl": statistics.perplexity(*zip(*likelihood(job["known"], tick))),
        "remembered": statistics.interval([line["passed"] for line in kept]) if kept else None,
    }


def sweep(name, cfg, job, strengths):
    """[{"strength", "task", "task_ppl", "ppl", "remembered", "learned", "forgotten"}] from the base, 0, upwards."""
    from tqdm import tqdm

    from scripts.scoring import weights

    folder, found = Path("outputs", name), []
    model, tokenizer = weights.load("adapter", folder, cfg)
    (replies, likelihood), turn = weights.speaker(model, tokenizer, folder, cfg), scaling.turning(model)
    total = (1 + len(strengths)) * sum(len(job[k]) for k in ("rows", "rows", "asked", "known"))
    form = "{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}<{remaining}"
    with tqdm(desc=f"{f'dial {name}':<28}", total=total, bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:
        for strength in [0, *strengths]:
            turn(strength)
            found.append({"strength": strength} | measured(job, replies, likelihood, bar.update))
    for row in found:
        row["learned"] = round(math.log(found[0]["task_ppl"]["mean"] / row["task_ppl"]["mean"]), 4)
        row["forgotten"] = round(math.log(row["ppl"]["mean"] / found[0]["ppl"]["mean"]), 4)
    return found


def knee(points):
    """Index of the knee among [(cost, gain)] of a curve that rises and flattens, or None (see above)."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    spans = [(min(v), max(v)) for v in zip(*points)]
    if len(points) < 3 or any(low == high for low, high in spans):
        return None
    x, y = ([(points[i][axis] - low) / (high - low) for i in order] for axis, (low, high) in enumerate(spans))
    above = [b - a for a, b in zip(x, y)]
    best = max(range(len(above)), key=above.__getitem__)
    return order[best] if above[best] > 0 and above[best] - min(above[best:]) > 1 / (len(points) - 1) else None


def judged(rows):
    """(the knee's row or None, what is to be said) of a sweep."""
    base, *others = rows
    passing = max(r["task"]["low"] for r in others) > base["task"]["high"]  # beyond the noise of the prompts
    gains = [r["task"]["mean"] if passing else r["learned"] for r in rows]
    if max(gains) <= gains[0]:
        return None, "no knee: no strength does more of the task than the base does"
    if max(r["forgotten"] for r in others) <= 0:
        best = others[gains[1:].index(max(gains[1:]))]
        return None, f"no knee: nothing was forgotten up to {others[-1]['strength']:g} ×; {best['strength']:g} × does most of the task"
    at = knee([(r["forgotten"], gain) for r, gain in zip(rows, gains)])
    if at is None:
        return None, "no knee: task over forgetting does not flatten anywhere, so the choice is yours"
    found, following = rows[at], rows[at + 1 : at + 2]
    did = f"{words.share(gains[at])} of the task" if passing else f"{gains[at]:.2f} nats a token learned"
    said = f"the knee is at {found['strength']:g} ×: {did} for {found['forgotten']:.2f} nats a token forgotten"
    if following:
        more = gains[at + 1] - gains[at]
        unit = f"{abs(100 * more):.0f} points" if passing else f"{abs(more):.2f} nats"
        cost = following[0]["forgotten"]
        said += f"; {following[0]['strength']:g} × does {unit} {'more' if more > 0 else 'less'}, at {cost:.2f} nats"
    return found, said + ("" if passing else " (no strength passes more rows than the base does, beyond the noise)")


def picture(rows, found, names):
    """PNG: the task and what was forgotten, by strength; 95 % intervals; the base as a dashed line; the knee."""
    base, *others = rows
    learned, forgotten, marked = canvas.SERIES["light"][:3]
    panels = [
        ("task", 100, learned, f"task: rows of {names[0]} that pass, %"),
        ("task_ppl", 1, learned, f"learned: perplexity of the replies of {names[0]}"),
        ("ppl", 1, forgotten, f"forgotten: perplexity of {names[1]}, which the base knew"),
    ]
    panels += [("remembered", 100, forgotten, f"rows of {names[1]} still answered rightly, %")] if base["remembered"] else []
    theme = canvas.THEMES["light"]
    with canvas.figure("light", 0.5 + 1.75 * len(panels), canvas.WIDE) as (fig, png):
        axes = fig.subplots(len(panels), sharex=True)
        for ax, (key, times, colour, title) in zip(axes, panels):
            xs, of = [r["strength"] for r in others], [r[key] for r in others]
            ax.plot(xs, [times * f["mean"] for f in of], color=colour, lw=1.6, marker="o", ms=4, zorder=3)
            ends = [(x, times * f["low"], times * f["high"]) for x, f in zip(xs, of) if "low" in f]
            if ends:
                ax.vlines(*zip(*ends), color=colour, lw=1.6, alpha=0.45)
            level = times * base[key]["mean"]
            ax.axhline(level, color=theme["soft"], lw=1, ls=(0, (4, 2)), zorder=1)
            ax.annotate(
                "base", (1, level), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", color=theme["soft"]
            )
            canvas.heading(ax, title)
            if times == 100:
                ax.set_ylim(-4, 104)
                ax.set_yticks([0, 25, 50, 75, 100])
            elif max(f["mean"] for f in of) > 10 * min(f["mean"] for f in of):
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter(lambda v, _: canvas.plain(v))
            if found:
                ax.axvline(found["strength"], color=marked, lw=1, ls=":", zorder=2)
        axes[0].set_xscale("log")
        for ax in axes:
            ax.minorticks_off()
        axes[-1].set_xticks(xs, [f"{x:g}" for x in xs])
        axes[-1].set_xlabel("strength: times ΔW as trained")
        if found:
            canvas.inside(axes[0], "knee", found["strength"], 0.9, marked)
    return png.getvalue()


def table(rows, found):
    """The sweep as lines of text."""
    heads = ["strength", "task", "learned", "forgotten", "perplexity", *(["still right"] if rows[0]["remembered"] else [])]
    shown = [heads]
    for r in rows:
        cells = [f"{r['strength']:g}" + (" base" if not r["strength"] else " knee" if r is found else ""), words.interval(r["task"])]
        cells += [f"{r[key]:+.3f}" if r["strength"] else "–" for key in ("learned", "forgotten")]
        cells += [f"{r['ppl']['mean']:.4g}" + (f" ({r['ppl']['low']:.4g}–{r['ppl']['high']:.4g})" if "low" in r["ppl"] else "")]
        shown.append(cells + ([words.interval(r["remembered"])] if r["remembered"] else []))
    wide = [max(map(len, column)) + 2 for column in zip(*shown)]
    return ["".join(f"{cell:<{w}}" for cell, w in zip(cells, [12, *wide[1:]])).rstrip() for cells in shown]


def keep(name, body, png):
    folder = Path("reports", name)
    files.write_if_changed(folder / "dial.json", json.dumps(body, indent=2) + "\n")
    tmp = folder / f".dial.png.{os.getpid()}"
    tmp.write_bytes(png)
    os.replace(tmp, folder / "dial.png")


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.dial", description="an adapter's task against what it forgot, by its strength")
    parser.add_argument("name")
    parser.add_argument(
        "strengths", nargs="*", metavar="BY", help=f"times ΔW as trained; {' '.join(f'{x:g}' for x in STRENGTHS)} unless given"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows of each file; nothing is written")
    parser.add_argument("--json", action="store_true", help="print what dial.json holds")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit takes a whole number from 1 on")
    return args


def main(argv):
    args = parse(argv)
    name, folder, strengths = args.name, Path("outputs", args.name), strengths_of(args.strengths)
    if not (folder / "recipe.yml").is_file():
        recipe.load(name)  # says so, where there is no such recipe
        raise ValueError(f"{folder}: nothing was made there yet; {recipe.command('dial', name)} makes it")
    cfg = recipe.read(folder / "recipe.yml")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of it is here
    backends.check(name, "adapter", cfg)
    scaling.refuse(folder / "adapter")
    todo = job(args, cfg)
    rows = sweep(name, cfg, todo, strengths)
    found, said = judged(rows)
    names = [path.name for path in (todo["paths"][0], todo["paths"][-1])]
    body = {"recipe": name, "inputs": {str(p): backends.sha256(p) for p in [*todo["paths"], folder / "adapter"]}}
    body |= {"task_rows": len(todo["rows"]), "known_rows": len(todo["known"]), "decoding": "greedy"}
    body |= {"strengths": rows, "knee": found and found["strength"], "sentence": said}
    if args.limit is None:
        keep(name, body, picture(rows, found, names))
    if args.json:
        print(json.dumps(body, indent=2))
        return 0
    print(f"dial        {name}: {len(todo['rows'])} rows of {names[0]} against {len(todo['known'])} of {names[1]}, which the base knew")
    print("\n".join(table(rows, found)))
    print(f"so          {said}" + (f"\npicture     reports/{name}/dial.png" if args.limit is None else ""))
    return 0


if __name__ == "__main__":
    process.command(main)
