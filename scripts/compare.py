"""Runs side by side: what differs in their recipes, what came of it, and whether the difference is more than noise.

    python -m scripts.compare pirate-nano pirate-nano+lora_r=16            # the later ones against the first
    python -m scripts.compare pirate-nano pirate-nano+seed=1 …             # runs that differ in the seed only are repeats, and pooled
    python -m scripts.compare A B --json

Writes reports/compare/A_B/README.md (of repeats A_B_5-seeds) with the curves over each other, curves.png. Scores come from `make eval`, all else from receipts and logs.
"""

import argparse
import hashlib
import json
import os
import sys
import textwrap
from pathlib import Path

from scripts import files, process
from scripts.runs import draw, gather, sentences, versus, words

WIDE, FIRST = 120, 12  # columns of the terminal, and of what stands in front of a table


def gathered(names):
    """The runs by name. Raises ValueError naming every one that is missing, damaged or still in progress."""
    found, faults = [], []
    for name in names:
        try:
            run = gather.run(name)
        except ValueError as error:
            faults.append(str(error))
            continue
        at = run["log"] or {"step": 0, "steps": None}
        if run["state"] == "running":
            whole = f" of {at['steps']}" if at["steps"] else ""
            faults.append(f"{name}: in progress, at step {at['step']}{whole}; compare it when it has ended")
        found.append(run)
    if faults:
        raise ValueError("; ".join(faults))
    return found


def value(figure):
    """A measure as text: a number, with its interval over seeds where there is one."""
    if not isinstance(figure, dict):
        return "–" if figure in (None, "") else str(figure)
    shown = [
        f"{figure[k]:,.0f}" if abs(figure[k]) >= 1000 or figure[k] == round(figure[k]) else f"{figure[k]:.4g}"
        for k in ("mean", "low", "high")
        if k in figure
    ]
    return shown[0] if len(shown) == 1 or shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def score(check, figure):
    if not figure:
        return "–"
    return (
        (f"{figure['mean']:.2f} ({figure['low']:.2f}–{figure['high']:.2f})" if "low" in figure else f"{figure['mean']:.2f}")
        if check == "ppl"
        else words.interval(figure)
    )


def apart(found, over):
    """A difference from the first group as text, over the "prompts" or the "seeds"."""
    f = (found or {}).get(over)
    if not f:
        return "other rows" if found and over == "prompts" else "–"
    if "ratio" in f:
        return f"× {f['ratio']:.3f}" + (f" ({f['low']:.3f}–{f['high']:.3f})" if f["low"] else "")
    return f"{sentences.signed(100 * f['difference'], '+.1f')} ({sentences.span(f)}), {sentences.likely(f['p'])}"


def tables(groups, scores):
    """[(title, head, rows of text)] of everything that is shown."""
    heads = [g["label"] for g in groups]
    found = [("recipe", heads, [[k, *("–" if v is None else str(v) for v in row)] for k, row in versus.keys(groups).items()])]
    found.append(("run", heads, [[k, *map(value, row)] for k, row in versus.measures(groups).items()]))
    shown, off = [], []
    for stage, checks in scores.items():
        for check, of in checks.items():
            later = of["differences"][1:]
            shown.append([f"{stage}  {check}", *(score(check, f) for f in of["figures"])])
            off += [[f"{stage}  {check}", *(apart(d, "prompts") for d in later)]] if any(later) else []
            off += [["  over seeds", *(apart(d, "seeds") for d in later)]] if any(d and d["seeds"] for d in later) else []
    found.append(("scores", heads, shown))
    found.append(("apart", [f"{h} − {heads[0]}" for h in heads[1:]], off))
    return [(title, head, rows) for title, head, rows in found if rows]


def laid_out(title, head, rows):
    """A table's lines, aligned, in as many blocks of columns as 120 characters take."""
    cut = [[cell if len(cell) <= 60 else cell[:59] + "…" for cell in row] for row in [["", *head], *rows]]
    wide = [max(len(row[n]) for row in cut) for n in range(len(cut[0]))]
    lines, at = [], 1
    while at < len(wide):
        to = at + 1
        while to < len(wide) and FIRST + wide[0] + sum(w + 2 for w in wide[at : to + 1]) <= WIDE:
            to += 1
        for n, row in enumerate(cut):
            text = "  ".join(f"{cell:<{w}}" for cell, w in [(row[0], wide[0]), *zip(row[at:to], wide[at:to])])
            lines.append(f"{title if not n and at == 1 else '':<{FIRST}}{text}".rstrip())
        at = to
    return lines


def say(groups, shown, said, page):
    for n, g in enumerate(groups):
        seeds = f"  (seeds {', '.join(map(str, g['seeds']))})" if len(g["runs"]) > 1 else ""
        text = textwrap.wrap(f"{g['label']}  {', '.join(g['names'])}{seeds}", WIDE - FIRST, subsequent_indent=" " * 3)
        print("\n".join(f"{'compare' if not n and not i else '':<{FIRST}}{line}" for i, line in enumerate(text)))
    for table in shown:
        print("\n" + "\n".join(laid_out(*table)))
    print()
    for sentence in said:
        print(
            "\n".join(
                textwrap.wrap(
                    sentence, WIDE, initial_indent=f"{'so' if sentence is said[0] else '':<{FIRST}}", subsequent_indent=" " * FIRST
                )
            )
        )
    print(f"page        {page}")


def markdown(groups, shown, said, curves):
    """The page, with the same tables."""

    def row(cells):
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    who = [
        f"- **{g['label']}**: "
        + ", ".join(f"`{n}`" for n in g["names"])
        + (f" (seeds {', '.join(map(str, g['seeds']))})" if len(g["runs"]) > 1 else "")
        for g in groups
    ]
    parts = [f"# {' against '.join(g['names'][0] for g in groups)}", "\n".join(who), "\n".join(f"- {s}" for s in said)]
    titles = {
        "recipe": "What differs in the recipe",
        "run": "The runs",
        "scores": "Scores",
        "apart": f"Differences from {groups[0]['label']}, in points",
    }
    for title, head, rows in shown:
        parts += [f"## {titles[title]}", "\n".join(map(row, [["", *head], ["---"] * (len(head) + 1), *rows]))]
    parts += (
        ["## Curves", "![Loss, learning rate, gradient norm, throughput and memory of the runs over each other](curves.png)"]
        if curves
        else []
    )
    parts.append(NOTE.format(names=" ".join(n for g in groups for n in g["names"])))
    return "\n\n".join(parts) + "\n"


NOTE = """\
Intervals are 95 %. Those of a score, and the p of a difference, are over the prompts: a bootstrap and a permutation test over the rows that both answered. Where runs differ in the
seed only, they are repeats: figures are then means with a t interval over the seeds. One difference in twenty looks real by chance.

Made by `make compare RUNS="{names}"`."""


def write(folder, page, curves):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "curves.png"
    if curves:
        tmp = path.with_name(f".{path.name}.{os.getpid()}")
        tmp.write_bytes(curves)
        os.replace(tmp, path)
    else:
        path.unlink(missing_ok=True)
    files.write_if_changed(folder / "README.md", page)


def place(groups):
    """reports/compare/A_B, of repeats A_B_5-seeds; a long list of names is cut, and told apart by its hash."""
    seeds = sorted({len(g["runs"]) for g in groups})
    text = "_".join([*(g["names"][0] for g in groups), *([f"{'-'.join(map(str, seeds))}-seeds"] if seeds[-1] > 1 else [])])
    return Path("reports/compare", text if len(text) <= 120 else f"{text[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.compare", description="runs side by side, the later ones against the first")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="{groups, recipe, run, scores, sentences, page}")
    args = parser.parse_args(argv)
    names = list(dict.fromkeys(args.names))
    if len(names) < 2:
        print('usage: make compare RUNS="A B …": two runs or more; `make status` lists them', file=sys.stderr)
        return 2
    groups = versus.pooled(gathered(names))
    scores, folder = versus.scores(groups), place(groups)
    shown, said = tables(groups, scores), sentences.told(groups, scores)
    titles = [f"{g['label']}  {g['names'][0]}" + (f", {len(g['runs'])} seeds" if len(g["runs"]) > 1 else "") for g in groups]
    logs = [(title, run["log"]) for title, g in zip(titles, groups) for run in g["runs"] if run["log"]]
    curves = draw.curves(logs) if logs else None
    write(folder, markdown(groups, shown, said, curves), curves)
    if args.json:
        who = [{k: g[k] for k in ("label", "names", "seeds")} for g in groups]
        told = {"groups": who, "recipe": versus.keys(groups), "run": versus.measures(groups), "scores": scores}
        print(json.dumps(told | {"sentences": said, "page": str(folder / "README.md")}, indent=2, default=str))
    else:
        say(groups, shown, said, folder / "README.md")
    return 0


if __name__ == "__main__":
    process.command(main)
