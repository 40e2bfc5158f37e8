"""Runs against each other in figures: repeats of one recipe pooled, differences with their intervals.

    from scripts.runs import gather, versus
    groups = versus.pooled([gather.run("pirate-nano"), gather.run("pirate-nano+lora_r=16")])
    versus.scores(groups)

Two kinds of noise are told apart. Another draw of prompts would give other scores: `scoring.statistics.paired` over the rows that both runs answered. Another seed would
give another adapter: Student's t over runs that differ in `seed` only. One run a side says nothing of the second.
"""

import json
import math
import statistics as plain

from scripts.runs import book, gather
from scripts.scoring import statistics

OWN = {"output_dir", "dataset_prepared_path", "seed"}  # what two repeats may differ in
MEASURES = {  # column of the experiments' log: what it is called
    "steps": "steps",
    "minutes": "minutes",
    "base_memory_gib": "memory before the first step, GiB",
    "peak_memory_gib": "peak memory, GiB",
    "tokens_per_s": "tokens a second",
    "first_loss": "first loss",
    "last_loss": "last loss",
    "first_eval_loss": "eval loss before",
    "eval_loss": "eval loss",
}
WORDS = {"status": "verdict", "machine": "machine", "ranks": "ranks", "commit": "commit", "base": "base"}  # shown where they differ


def flat(value, at=""):
    """{"datasets.0.path": …} of a recipe: each leaf under its path, so that two recipes can be compared key by key."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not inside:
        return {at: value}
    return {k: v for key, item in inside for k, v in flat(item, f"{at}.{key}" if at else str(key)).items()}


def meaning(found):
    """{key: value} of all that makes a run what it is: its recipe, the bytes of its data, and those of a base that is a folder."""
    made = (found["stages"]["train"] or {}).get("inputs") or {}
    base = {"base (sha256)": made[b][:12]} if (b := str(found["recipe"].get("base_model"))) in made else {}
    return (
        flat({k: v for k, v in found["recipe"].items() if k not in OWN})
        | {f"{p} (sha256)": d[:12] for p, d in found["data"].items()}
        | base
    )


def pooled(found):
    """[{"label": "A", "names", "seeds", "runs", "lines", "meaning"}]: runs in the order given, those that differ in `seed` only as one group."""
    groups = []
    for run in found:
        seed, sense = run["recipe"].get("seed"), meaning(run)
        group = next((g for g in groups if g["meaning"] == sense and seed not in g["seeds"] and seed is not None), None)
        if not group:
            group = {"label": chr(ord("A") + len(groups)), "meaning": sense} | {k: [] for k in ("names", "seeds", "runs", "lines")}
            groups.append(group)
        for key, value in (("names", run["name"]), ("seeds", seed), ("runs", run), ("lines", book.line(run))):
            group[key].append(value)
    return groups


def keys(groups):
    """{key: [value in each group]} where they differ; None where a group lacks it."""
    rows = {k: [g["meaning"].get(k) for g in groups] for k in dict.fromkeys(k for g in groups for k in g["meaning"])}
    if len({json.dumps(sorted(map(str, g["seeds"]))) for g in groups}) > 1:
        rows["seed"] = [", ".join(map(str, g["seeds"])) for g in groups]
    return {k: row for k, row in rows.items() if any(v != row[0] for v in row)}


def measures(groups):
    """{what: [figure or text in each group]}: a figure is {"mean", "n"}, with {"low", "high"} over seeds where there are several."""
    found = {}
    for column, what in MEASURES.items():
        row = [over([line[column] for line in g["lines"]]) for g in groups]
        found |= {what: row} if any(row) else {}
    for column, what in WORDS.items():
        row = [", ".join(dict.fromkeys(str(line[column]) for line in g["lines"] if line[column] is not None)) for g in groups]
        found |= {what: row} if len(set(row)) > 1 or column == "status" else {}
    return found


def over(values, most=math.inf):
    """The mean over repeats with its 95 % t interval, cut at 0 and `most`; None where a repeat lacks it."""
    if not values or any(v is None for v in values):
        return None
    if len(values) == 1:
        return {"mean": float(values[0]), "n": 1}
    mean, low, high = statistics.student(values)
    return {"mean": mean, "low": max(0.0, low), "high": min(most, high), "n": len(values)}


def seeds(before, after):
    """Two samples of runs: {"difference", "low", "high", "p", "n"} by Student's t with one spread for both (a side may be a single run); None for one run each."""
    free = len(before) + len(after) - 2
    if free < 1:
        return None
    from scipy import stats

    squares = sum((x - plain.fmean(side)) ** 2 for side in (before, after) for x in side)
    error, off = math.sqrt(squares / free * (1 / len(before) + 1 / len(after))), plain.fmean(after) - plain.fmean(before)
    half = float(stats.t.ppf((1 + statistics.LEVEL) / 2, free)) * error
    p = 2 * float(stats.t.sf(abs(off) / error, free)) if error else float(not off)
    return {"difference": off, "low": off - half, "high": off + half, "p": p, "n": [len(before), len(after)]}


def figures(group, stage, check):
    """The check's figure of each run in the group; [] where one lacks it."""
    found = [((r["score"] or {"stages": {}})["stages"].get(stage) or {}).get(check) for r in group["runs"]]
    return found if all(isinstance(f, dict) for f in found) else []


def answers(group, stage, check):
    """{(id, prompt): the row's value, a mean over repeats}, or None where the repeats did not answer the same rows."""
    tables = []
    for run in group["runs"]:
        of = {
            (r.get("id"), r["prompt"]): r.get("passed") if check == "passed" else (r.get("checks") or {}).get(check)
            for r in run["replies"].get(stage) or []
        }
        tables.append({k: float(v) for k, v in of.items() if isinstance(v, (bool, int, float))})
    return {k: plain.fmean(t[k] for t in tables) for k in tables[0]} if all(t.keys() == tables[0].keys() for t in tables) else None


def difference(one, other, stage, check):
    """{"prompts": paired over rows, "seeds": t over runs or None} of a check, other − one; {"prompts": None} where the rows are not the same.

    A perplexity is not a mean over rows: both are of other / one.
    """
    means = [[f["mean"] for f in figures(g, stage, check)] for g in (one, other)]
    if check == "ppl":
        runs = seeds(*([math.log(x) for x in side] for side in means))
        exp = {"ratio" if k == "difference" else k: math.exp(runs[k]) for k in ("difference", "low", "high")} if runs else {}
        return {"prompts": ratio(one, other, stage), "seeds": runs and exp | {"p": runs["p"], "n": runs["n"]}}
    before, after = answers(one, stage, check), answers(other, stage, check)
    same = before and after and before.keys() == after.keys()
    rows = statistics.paired(list(before.values()), [after[k] for k in before]) if same else None
    return {"prompts": rows, "seeds": seeds(*means)}


def scores(groups):
    """{stage: {check: {"figures": [in each group], "differences": [None, each other group's from the first]}}}."""
    found, first = {}, groups[0]
    for stage in gather.SCORED:
        checks = list(
            dict.fromkeys(k for g in groups for r in g["runs"] for k in ((r["score"] or {"stages": {}})["stages"].get(stage) or {}))
        )
        for check in [c for c in checks if any(figures(g, stage, c) for g in groups)]:
            row = [figures(g, stage, check) for g in groups]
            shown = [
                None if not f else f[0] if len(f) == 1 else over([x["mean"] for x in f], most=1 if check != "ppl" else math.inf)
                for f in row
            ]
            apart = [difference(first, g, stage, check) if n and row[0] and row[n] else None for n, g in enumerate(groups)]
            found.setdefault(stage, {})[check] = {"figures": shown, "differences": apart}
    return found


def ratio(one, other, stage):
    """Perplexity of other / one over the same rows: {"ratio", "low", "high", "n"}, the interval over rows; None where the rows are not the same."""
    import numpy as np

    sums = []
    for group in (one, other):
        rows = [
            {(r.get("id"), r["prompt"]): (r["nll"], r["tokens"]) for r in run["replies"].get(stage) or [] if r.get("tokens")}
            for run in group["runs"]
        ]
        if not rows[0] or any(r.keys() != rows[0].keys() for r in rows) or sums and rows[0].keys() != sums[0].keys():
            return None
        if sums and any(rows[0][k][1] != sums[0][k][1] for k in sums[0]):  # other tokens: another tokenizer, and a perplexity of something else
            return None
        sums.append({k: np.mean([r[k] for r in rows], axis=0) for k in rows[0]})
    a, b = (np.array([of[k] for k in sums[0]]).T for of in sums)

    def figure(x, m, y, n, axis=-1):
        return np.exp(y.sum(axis=axis) / n.sum(axis=axis) - x.sum(axis=axis) / m.sum(axis=axis))

    low, high = statistics.bootstrap((*a, *b), figure, a.shape[1]) if a.shape[1] > 1 else (None, None)
    return {"ratio": float(figure(*a, *b)), "low": low, "high": high, "n": a.shape[1]}
