"""What a comparison of runs says, in sentences: whether a difference is more than noise, and of which noise.

from scripts.runs import sentences, versus
sentences.told(versus.pooled(found))
"""

import statistics as plain

from scripts import recipe
from scripts.runs import gather, versus

SURE = 0.05  # a p below it is called more than noise


def points(share):
    """0.06 → 6 points; 0.004 → 0.4 points."""
    x = abs(100 * share)
    text = f"{x:.0f}" if x >= 9.95 or abs(x - round(x)) < 0.05 else f"{x:.1f}"
    return f"{text} point{'s' * (text != '1')}"


def likely(p):
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def signed(x, form):
    return f"{x:{form}}".replace("-", "−")


def span(figure):
    """An interval of shares in points: −17.3 to 7."""
    return " to ".join(signed(100 * figure[k], ".3g") for k in ("low", "high"))


def told(groups, scores):
    """What the comparison says: each later group against the first, the spread of repeats, then what limits it. `scores` are versus.scores of the groups."""
    first, said = groups[0], [repeats(g) for g in groups if len(g["runs"]) > 1]
    for n, group in enumerate(groups[1:], 1):
        who = f"{group['label']} against {first['label']}"
        stage, off = last(scores, "passed", n)
        said.append(f"{who}: {verdict(stage, off, first, group) if off else losses(first, group)}")
        stage, off = last(scores, "ppl", n)
        said += [f"{who}: {likelihood(stage, off)}"] if off and off["prompts"] else []
    ways = {str(r["score"].get("decoding")) for g in groups for r in g["runs"] if r["score"]}
    if len(ways) > 1:
        said.append(f"their replies were drawn in different ways ({', '.join(sorted(ways))}), and the differences are of that too")
    return said + [line for g in groups for r, row in zip(g["runs"], g["lines"]) for line in limits(r, row)]


def last(scores, check, n):
    """(stage, difference) of the last stage after the base where group `n` and the first have a check's figure; (None, None) where none has."""
    found = [(stage, of[check]["differences"][n]) for stage, of in scores.items() if stage != "base" and check in of]
    return next((pair for pair in reversed(found) if pair[1]), (None, None))


def repeats(group):
    """The spread of runs that differ in `seed` only."""
    figure = versus.over([line["eval_loss"] for line in group["lines"]])
    shown = [f"eval loss {figure['mean']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"] if figure else []
    for stage in [s for s in gather.SCORED if s != "base"]:
        if passed := versus.figures(group, stage, "passed"):
            figure = versus.over([f["mean"] for f in passed], most=1)
            shown.append(f"{stage} passes {100 * figure['mean']:.1f} % ({span(figure)})")
    return f"{group['label']} is {len(group['runs'])} runs that differ in the seed only: {', '.join(shown) or 'no figures'}; mean and 95 % t interval over the seeds"


def verdict(stage, apart, first, group):
    """Whether a stage passes more than noise would make it, and which noise that is."""
    rows, runs = apart["prompts"], apart["seeds"]
    if not rows:
        return f"{stage} was not scored on the same rows, so the scores are not comparable; {losses(first, group)}"
    less = "more" if rows["difference"] > 0 else "less"
    what = f"{stage} passes " + (f"{points(rows['difference'])} {less}" if rows["difference"] else "as many")
    sure = f"95 % interval {span(rows)}, {likely(rows['p'])}, {rows['n']} prompts"
    sure += f"; over {runs['n'][0]} and {runs['n'][1]} seeds {span(runs)}, {likely(runs['p'])}" if runs else ""
    return f"{what} ({sure}): {than(rows['p'] < SURE, runs['p'] < SURE if runs else None)}"


def likelihood(stage, apart):
    """Whether the reference replies have become more or less likely than noise would make them: perplexity of one over that of the other."""
    rows, runs = apart["prompts"], apart["seeds"]
    if rows["low"] is None:
        return f"{stage}'s perplexity × {rows['ratio']:.3f}, of one prompt"
    sure = f"95 % interval {rows['low']:.3f} to {rows['high']:.3f}, {rows['n']} prompts"
    sure += f"; over {runs['n'][0]} and {runs['n'][1]} seeds {runs['low']:.3f} to {runs['high']:.3f}, {likely(runs['p'])}" if runs else ""
    over_prompts, over_seeds = (not f["low"] <= 1 <= f["high"] if f else None for f in (rows, runs))
    return f"{stage}'s perplexity × {rows['ratio']:.3f} ({sure}): {than(over_prompts, over_seeds)}"


def than(prompts, seeds):
    """Which noise a difference is more than; `seeds` is None where there is one a side."""
    if seeds is None:
        return f"{'more' if prompts else 'no more'} than the noise of the prompts; one seed each, so the seed's noise is not in it"
    if prompts and seeds:
        return "more than the noise of the prompts and of the seeds"
    if prompts or seeds:
        return f"more than the noise of the {'prompts' if prompts else 'seeds'}, not more than that of the {'seeds' if prompts else 'prompts'}"
    return "no more than the noise of prompts and seeds"


def losses(first, group):
    """Where there are no scores to compare: the eval losses, and what may be said of them."""
    lacking = [r["name"] for g in (first, group) for r in g["runs"] if not set((r["score"] or {"stages": ()})["stages"]) - {"base"}]
    why = f"{' and '.join(lacking)} not scored (`make eval`), so only losses are compared: " if lacking else ""
    if why_not := other_rows(first, group):
        return f"{why}{why_not}"
    before, after = ([line["eval_loss"] for line in g["lines"]] for g in (first, group))
    if None in before or None in after:
        return f"{why}not both were evaluated in training, so there is no loss to compare either"
    off = plain.fmean(after) - plain.fmean(before)
    what = f"{why}eval loss {plain.fmean(after):.4f} against {plain.fmean(before):.4f}, " + (
        f"{abs(off):.4f} {'higher' if off > 0 else 'lower'}" if off else "the same"
    )
    if not (runs := versus.seeds(before, after)):
        return f"{what}; one seed each, so nothing tells whether another seed would differ as much"
    more = "more" if runs["p"] < SURE else "no more"
    return f"{what} (95 % interval {signed(runs['low'], '.4f')} to {signed(runs['high'], '.4f')}, {likely(runs['p'])}, {runs['n'][0]} and {runs['n'][1]} seeds): {more} than the noise of the seeds"


def other_rows(first, group):
    """Why two eval losses are not of the same thing, or None."""

    def of(sense, parts):
        kept = {k: v for k, v in sense.items() if k.startswith(parts)}
        return kept, {sense.get(f"{v} (sha256)") for v in kept.values()}

    held = ("test_datasets",) if any(k.startswith("test_datasets") for k in first["meaning"]) else ("datasets", "val_set_size")
    for said, parts in (("bases are", ("base",)), ("chat templates are", ("chat_template",)), ("evaluation rows are", held)):
        if of(first["meaning"], parts) != of(group["meaning"], parts):
            return f"their {said} not the same, so their losses are not comparable"
    return None


def limits(run, line):
    """What a reader must know of a run before its figures are believed."""
    if run["state"] == "stopped":
        log = run["log"] or {}
        yield (
            f"{run['name']} stopped at step {log.get('step', 0)}"
            + (f" of {log['steps']}" if log.get("steps") else "")
            + ": its figures are of that point"
        )
    if "score" in run["earlier"]:
        yield f"the scores of {run['name']} are of an earlier run and left out; {recipe.command('eval', run['name'])} makes them anew"
    if line["minutes"] is None and run["stages"]["train"]:
        yield f"{run['name']} was resumed: its minutes are not known as a whole"
