"""The experiments' log, reports/experiments.csv, a line a run; and reports/README.md, the index that is made from it.

    from scripts.runs import book
    book.record(book.line(found))

Both are written under one lock and replaced whole: several reports at once lose nothing. The same runs give the same bytes.
"""

import csv
import io
import math
import statistics
from pathlib import Path
from urllib.parse import quote

from scripts import facts, files, recipe
from scripts.runs import claims, words

LOG, INDEX = Path("reports/experiments.csv"), Path("reports/README.md")
COLUMNS = (
    "run made recipe key base machine ranks commit status steps epochs rows global_batch sequence_len lora_r lora_alpha learning_rate seed "
    "minutes base_memory_gib peak_memory_gib tokens_per_s first_loss last_loss first_eval_loss eval_loss scored base_score score score_low score_high style contains never ppl "
    "predicted_minutes predicted_gib"
).split()
PAGE = """\
# Measured results

| recipe | machine | time | peak memory | eval loss | score | verdict | pages |
|---|---|---|---|---|---|---|---|
{rows}

The latest run of each recipe and variant, also one that failed. `make report RECIPE=NAME` makes its page, its line in
[experiments.csv](experiments.csv), and this table. The score is the share of held-out prompts whose reply passed all of its checks,
of the untouched base and at the last stage that was scored, with its 95 % interval. The verdict is `make diagnose`'s. Repeats with other seeds stand in the log.
{claims}
What else is measured: `make bench` writes [bench.json](bench.json), the figures of the README's table; `make xray` writes
`NAME/xray.html`, what the model will be taught, token by token; `make eval` writes `outputs/NAME/score.json` with every reply beside it.
[calibration/](calibration/README.md) holds what training steps need, traced or measured, against what `make plan` says.
"""

CLAIMED = """
## Claims, and what became of them

What the experience reports say that this project grew from, tried on the nano twins. Two runs of one seed, the same rows and the same batch see them in the same order; differences are
the first run's minus the second's, seed by seed, their mean with its 95 % t interval. A nano model is no 8B: what holds or not here is said of the mechanism, not of every size.

{table}

`make matrix` trains what the table needs ({n} runs are logged, a nano run's training takes {middle:.1f} minutes of a core in the median) and makes it anew; the claims stand in [claims.yml](../recipes/facts/claims.yml).
"""


def line(found, told=None):
    """{column: figure or None} of a gathered run, `told` being what `make plan` says of it, if it can be held to that."""
    cfg, made, log = found["recipe"], found["stages"]["train"], found["log"] or {}
    done, before = (made or {}).get("figures") or {}, made or found["stages"]["preprocess"]
    row = {
        "run": found["run"],
        "made": (made or {}).get("made"),
        "recipe": found["name"],
        "key": found["key"],
        "base": words.public(str(cfg.get("base_model"))),
    }
    row |= {"machine": machine(found), "ranks": done.get("ranks") or found["health"].get("ranks")}
    row |= {"commit": (before or {}).get("commit"), "status": (found["verdict"] or {}).get("verdict", "unknown")}
    row |= {"steps": done.get("steps", log.get("step")), "epochs": rounded(done.get("epochs", log.get("epoch")), 3)}
    row |= {"rows": log.get("examples") or (told or {}).get("rows"), "global_batch": done.get("global_batch") or log.get("global_batch")}
    row |= {key: cfg.get(key) for key in ("sequence_len", "lora_r", "lora_alpha", "seed")}
    row |= {"learning_rate": rounded(cfg.get("learning_rate"), 12), "minutes": rounded(minutes(found), 2)}
    row |= {"base_memory_gib": rounded(done.get("base_memory_gib"), 2), "peak_memory_gib": rounded(peak(found), 2)}
    row |= {"tokens_per_s": rounded(middle(log, "tokens_per_s"), 1)}
    row |= zip(["first_loss", "last_loss", "first_eval_loss", "eval_loss"], (rounded(x, 4) for x in losses(log, done, cfg)))
    row |= told_of(told) | scored(found["score"])
    return {column: row.get(column) for column in COLUMNS}


def machine(found):
    """What it was trained on, as the train receipt says, else health.jsonl; without a GPU also as the receipt of the preprocessing says."""
    made, health = found["stages"]["train"], found["health"]
    if not made and health.get("device", "cpu") != "cpu":
        return f"{health.get('ranks', 1)} × {health['device']}"
    made = made or found["stages"]["preprocess"]
    return words.machine(made, made["figures"].get("ranks")) if made else health.get("device")


def minutes(found):
    """Of the whole training, None where it is not known: a resumed run's receipt tells of its last part only."""
    made, health = found["stages"]["train"], found["health"]
    if made:
        return None if made["figures"].get("resumed_from_step") else made["seconds"] / 60
    return None if health.get("resumed_from") or "seconds" not in health else health["seconds"] / 60


def peak(found):
    """GiB: what the GPU reserved, or without one the largest resident set."""
    made = found["stages"]["train"]
    if made:
        return made["figures"].get("gpu_memory_gib") or made.get("peak_memory_gib")
    return max((float(r["memory_gib"]) for r in (found["log"] or {"rows": []})["rows"] if r.get("memory_gib")), default=None)


def middle(log, key):
    found = [x for r in log.get("rows", []) if (x := rounded(r.get(key), 6)) is not None]
    return statistics.median(found) if found else None


def losses(log, done, cfg):
    """[first and last training loss, first and last evaluation loss]; None where there was none. Of a single one it is the last.

    With early stopping the adapter is that of the lowest evaluation, so that one counts as the last. A scaled adapter's (x_strength) are not known: the log is of the one it was scaled from.
    """
    rows = [] if "x_strength" in cfg else log.get("rows", [])
    done = {} if "x_strength" in cfg else done
    trained = [r["loss"] for r in rows if "loss" in r] or [done[k] for k in ("first_loss", "last_loss") if k in done]
    held = [r["eval_loss"] for r in rows if "eval_loss" in r] or done.get("eval_losses") or []
    best = [min(held)] if held and cfg.get("early_stopping_patience") else held[-1:]
    return [y for x, end in ((trained, trained[-1:]), (held, best)) for y in (x[0] if len(x) > 1 else None, *(end or [None]))]


def told_of(told):
    if not told:
        return {}
    gib = facts.allocated(told["vram_gib"])["expected"] if told.get("vram_gib") else None
    return {"predicted_minutes": rounded(told["minutes"]["expected"], 2), "predicted_gib": rounded(gib, 2)}


def scored(score):
    """The figures of the last stage that was scored, and the base's share beside it: a task that the base does too shows nothing."""
    stages = dict((score or {"stages": {}})["stages"])
    base = (stages.pop("base", {}).get("passed") or {}).get("mean")
    if not stages:
        return {}
    stage, of = list(stages.items())[-1]
    whole = of.get("passed") or {}
    ppl = [f["ppl"]["mean"] for f in stages.values() if "ppl" in f]
    found = {"scored": stage, "base_score": base, "score": whole.get("mean"), "score_low": whole.get("low"), "score_high": whole.get("high")}
    found |= {check: (of.get(check) or {}).get("mean") for check in ("style", "contains", "never")} | {"ppl": ppl[-1] if ppl else None}
    return {k: v if k == "scored" else rounded(v, 4) for k, v in found.items()}


def rounded(x, digits):
    """A float of so many digits; None for what is no number, or not finite."""
    try:
        x = float(x)
    except (TypeError, ValueError):
        return None
    return round(x, digits) if math.isfinite(x) else None


def record(row):
    """Put a run's line in the log, in the place of an earlier one of the same run, and make the index anew."""
    with files.locked(LOG.parent):
        runs = {r["run"]: r for r in read()} | {row["run"]: {k: text(row[k]) for k in COLUMNS}}
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS)  # commas, quotes where needed, CRLF: RFC 4180
        writer.writeheader()
        writer.writerows(runs[run] for run in sorted(runs))
        with files.replacing(LOG) as f:
            f.write(out.getvalue())
        files.write_if_changed(INDEX, index(runs.values()))


def renew():
    """Make the index anew from the log: for a page without a run, or other claims."""
    with files.locked(LOG.parent):
        files.write_if_changed(INDEX, index(read()))


def text(x):
    return "" if x is None else f"{x:.12g}" if isinstance(x, float) else str(x)


def read():
    """The log's lines, [{column: text}, …]. Raises ValueError where it is not such a log."""
    if not LOG.is_file():
        return []
    advice = "move it away, then `make report RECIPE=…` of each run begins a new one"
    try:
        head, *rows = list(csv.reader(io.StringIO(LOG.read_text(encoding="utf-8"), newline=""), strict=True)) or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{LOG}: not CSV ({error}); {advice}") from None
    if head != COLUMNS:
        other = (
            ", ".join(repr(c) for c in head if c not in COLUMNS)
            or f"without {', '.join(c for c in COLUMNS if c not in head) or 'their order'}"
        )
        raise ValueError(f"{LOG}:1: its columns are not those of this log ({other[:120]}); {advice}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(COLUMNS):
            raise ValueError(f"{LOG}:{number}: {len(row)} fields instead of {len(COLUMNS)}; mend or delete that line")
    return [dict(zip(COLUMNS, row)) for row in rows]


def index(rows):
    """The text of reports/README.md: a row for the latest run of each recipe and variant, and for recipes that were never run; then the claims."""
    latest = {row["recipe"]: row for row in sorted(rows, key=lambda r: r["run"])}
    shown = sorted({*(name for name in latest if "+seed=" not in name), *recipe.names()})
    said = claims.table(claims.read(), rows)
    took = [float(row["minutes"]) for row in rows if "-nano" in row["recipe"] and row["minutes"]] or [0]
    return PAGE.format(
        rows="\n".join(index_row(name, latest.get(name)) for name in shown),
        claims=CLAIMED.format(table=said, n=len(rows), middle=statistics.median(took)) if said else "",
    )


def index_row(name, row):
    pages = [("report", "README.md"), ("HTML", "index.html"), ("what it was taught", "xray.html")]
    links = " · ".join(f"[{label}]({quote(name)}/{page})" for label, page in pages if Path("reports", name, page).is_file())
    if not row:
        return f"| `{name}` | {meant_for(name)} | | | | | not run yet | {links} |"
    loss = " → ".join(f"{float(row[k]):.3f}" for k in ("first_eval_loss", "eval_loss") if row[k]) or "not evaluated"
    score = {k: float(row[f"score{at}"]) for k, at in (("mean", ""), ("low", "_low"), ("high", "_high")) if row[f"score{at}"]}
    cells = [f"`{name}`", row["machine"] or "not recorded", words.seconds(60 * float(row["minutes"])) if row["minutes"] else ""]
    cells += [words.gib(float(row["peak_memory_gib"])) if row["peak_memory_gib"] else "", loss]
    before = f"{words.share(float(row['base_score']))} → " if row["base_score"] else ""
    cells += [f"{before}{words.interval(score)}, {row['scored']}" if len(score) == 3 else "not scored", row["status"], links]
    return "| " + " | ".join(cells) + " |"


def meant_for(name):
    """The machine that a recipe was written for."""
    try:
        gpu, count = recipe.hardware(recipe.load(name))
    except (ValueError, OSError):
        return "the recipe cannot be read: `make lint`"  # no reason to refuse another run its report
    return f"{count} × {gpu}" if gpu else "any, no GPU needed"
