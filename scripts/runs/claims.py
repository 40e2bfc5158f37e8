"""What the reports of others claim, held to our own runs: recipes/facts/claims.yml and the experiments' log make the second table of reports/README.md.

    from scripts.runs import claims
    claims.names(claims.read())            # every run that the claims need
    claims.table(claims.read(), rows)      # Markdown; `rows` are those of reports/experiments.csv

A claim is of one of two kinds. Of runs: `runs: [A, B]`, `figure` (a column of the log) and what it `says` of A against B: higher, lower, or same (`within` so much).
Each is run with the seeds 1 to SEEDS. Runs of one seed see the same rows in the same order, so the difference is taken seed by seed: its mean and 95 % t interval.
Of a figure: `file`, `key` (a path of keys with dots) and `between: [low, high]`, in a report that a command has written.
"""

import json
from pathlib import Path

from scripts import recipe
from scripts.scoring import statistics

CLAIMS = Path("recipes/facts/claims.yml")
SEEDS = 5
SAYS = ("higher", "lower", "same")
SHARES = ("score", "style", "contains", "never")  # columns that are shown in percent


def read(path=CLAIMS):
    """The claims, in their order. Raises ValueError with one line for one that cannot be judged."""
    found = recipe.read(path).get("claims") if Path(path).is_file() else []
    for n, claim in enumerate(found or [], 1):
        of_runs = len(claim.get("runs") or []) == 2 and claim.get("figure") and claim.get("says") in SAYS
        of_file = claim.get("file") and claim.get("key") and len(claim.get("between") or []) == 2
        if not (claim.get("claim") and claim.get("source") and (of_runs or of_file)) or (
            claim.get("says") == "same" and "within" not in claim
        ):
            raise ValueError(
                f"{path}: claim {n} wants claim, source, and either runs: [A, B], figure, says: {' | '.join(SAYS)} (same: within), or file, key, between"
            )
    return found or []


def names(claims):
    """The runs that the claims need, each once: NAME+seed=1 to NAME+seed=SEEDS, seed by seed, so that all claims have some early."""
    of = list(dict.fromkeys(name for claim in claims for name in claim.get("runs") or []))
    return [f"{name}+seed={seed}" for seed in range(1, SEEDS + 1) for name in of]


def differences(claim, rows):
    """[A − B for each seed that both have] of the claim's figure, from the latest run of each name."""
    latest = {row["recipe"]: row for row in sorted(rows, key=lambda r: r["run"])}
    pairs = [[latest.get(f"{name}+seed={seed}", {}) for name in claim["runs"]] for seed in range(1, SEEDS + 1)]
    alike = [(a[claim["figure"]], b[claim["figure"]]) for a, b in pairs if a and b and a.get("scored") == b.get("scored")]
    return [float(a) - float(b) for a, b in alike if a and b]


def interval(found):
    """(mean, low, high) over the seeds; (mean, None, None) of a single one."""
    return statistics.student(found) if len(found) > 1 else (found[0], None, None)


def judged(claim, rows):
    """(what was measured, verdict) as text. A verdict is holds, does not hold, the opposite holds, not told apart, they differ …, or not measured yet, which it is before all SEEDS are there."""
    if "file" in claim:
        return of_file(claim)
    found = differences(claim, rows)
    if not found:
        return "", "not measured yet"
    mean, low, high = interval(found)
    unit, form = (" points", "{:+.1f}") if claim["figure"] in SHARES else ("", "{:+.3f}")
    shown = [form.format(100 * x if unit else x).replace("-", "−") for x in (mean, low, high) if x is not None]
    n = f"{len(found)} seed{'s' * (len(found) > 1)}"
    text = f"{claim['figure'].replace('_', ' ')} {shown[0]}{unit}" + (f" ({shown[1]} to {shown[2]}), {n}" if low is not None else f", {n}")
    if len(found) < SEEDS:
        return text, f"not measured yet: {len(found)} of {SEEDS} seeds"
    if claim["says"] == "same":
        return text, alike(low, high, claim["within"])
    up = claim["says"] == "higher"
    if low > 0 or high < 0:
        return text, "holds" if (low > 0) == up else "the opposite holds"
    return text, "not told apart"


def alike(low, high, within):
    """The verdict on two runs that are said to differ by no more than `within`, from the interval of their difference."""
    if -within <= low and high <= within:
        return "holds"
    if low > within or high < -within:
        return "does not hold"
    return f"they differ; whether by more than {within:g} is open" if low > 0 or high < 0 else "not told apart"


def of_file(claim):
    path = Path(claim["file"])
    if not path.is_file():
        return "", "not measured yet"
    value = json.loads(path.read_text(encoding="utf-8"))
    for key in str(claim["key"]).split("."):
        value = value[int(key)] if isinstance(value, list) else value.get(key) if isinstance(value, dict) else None
        if value is None:
            return "", f"{path} has no {claim['key']}"
    low, high = claim["between"]
    return f"{claim.get('what', claim['key'])} {value:.4g}", "holds" if low <= value <= high else "does not hold"


def table(claims, rows):
    """The Markdown table; "" without claims."""
    if not claims:
        return ""
    lines = ["| claim | source | what we measured | verdict |", "|---|---|---|---|"]
    for claim in claims:
        text, verdict = judged(claim, rows)
        runs = " against ".join(f"`{name}`" for name in claim.get("runs") or []) or f"`{claim['file']}`"
        lines.append(
            f"| {claim['claim']} | {claim['source']} | {text or '–'}<br>{runs} | **{verdict}**{'. ' + claim['note'] if claim.get('note') else ''} |"
        )
    return "\n".join(lines)
