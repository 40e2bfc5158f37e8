"""What the causes measure a log with: columns, windows held against their noise, blocks, and figures as people write them."""

import math
from itertools import pairwise
from statistics import fmean, median

HUGE = 1e100  # far beyond any float32 that a trainer logs


def column(log, key, least=None):
    """[(step, value)] of the finite values of one key, in order of step. Kept in log["columns"], where there is one: a log may have 10,000 rows."""
    kept = log.get("columns", {})
    if key not in kept:
        pairs = [(row["step"], row[key]) for row in log["rows"] if key in row]
        kept[key] = [(step, v) for step, v in pairs if v.__class__ in (float, int) and -HUGE < v < HUGE]
    return kept[key] if least is None else [(step, v) for step, v in kept[key] if v >= least]


def window(values, share, least):
    """How many values a share of them is, at least so many."""
    return max(least, int(len(values) * share))


def falls(losses):
    """[(fall, its standard error, rows)] of the mean from the first rows to the last, as shares of the last half's mean: positive where it fell.

    Four windows at the start (a fiftieth, a twentieth, a tenth, a third), for learning may be over early; each against the last half, the third against
    the last third. The noise is that of the last half (two-sample standard error). [] for losses about zero, which have no shares.
    """
    n = len(losses)
    late = losses[n // 2 :]
    level = fmean(late)
    if level <= 0:
        return []
    noise = math.sqrt(fmean((x - level) ** 2 for x in late))
    found = []
    for k in (max(3, n // 50), max(4, n // 20), max(5, n // 10), n // 3):
        end = late if k < n // 3 else losses[-(n // 3) :]
        found.append(((fmean(losses[:k]) - fmean(end)) / level, noise * math.sqrt(1 / k + 1 / len(end)) / level, k))
    return found


def jitter(values):
    """The noise from one value to the next (robust: the median of the absolute differences, scaled to a normal's standard deviation)."""
    return 1.4826 * median(abs(b - a) for a, b in pairwise(values)) / math.sqrt(2) if len(values) > 2 else 0.0


def blocks(values, count):
    """The medians of so many blocks of equal size, oldest first."""
    size = len(values) // count
    return [median(values[i * size : (i + 1) * size]) for i in range(count)]


def sci(x):
    """5e-05 → 5e-5, 0.002 → 2e-3, 0.4567 → 0.457."""
    if x == 0 or 0.01 <= abs(x) < 1e4:
        return f"{x:.3g}"
    digits, power = f"{x:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def percent(share):
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def of(log, key, new, old=None):
    """`key: old → new` of a recipe, with the value that stands there (or `old`, as it was seen in the log)."""
    here = (log["beside"].get("recipe") or {}).get(key, old)
    try:
        here = sci(float(here)) if key == "learning_rate" else here  # YAML takes 2e-3 for a text
    except (TypeError, ValueError):
        pass
    return f"{key}: {new}" if here is None else f"{key}: {here} → {new}"


def ends(log, key):
    """(first, last) of a column: from 100 rows on the means of the first and the last tenth, since single steps say little. None where it is empty."""
    values = [v for _, v in column(log, key)]
    n = len(values) // 10 if len(values) >= 100 else 1
    return (fmean(values[:n]), fmean(values[-n:])) if values else None


def told(log):
    """The log in figures: loss 0.9456 → 0.9146, eval loss …, grad_norm …, learning_rate …, memory."""
    parts = [f"{key.replace('_', ' ')} {pair[0]:.4f} → {pair[1]:.4f}" for key in ("loss", "eval_loss") if (pair := ends(log, key))]
    if norms := [v for _, v in column(log, "grad_norm")]:
        size = f"about {sci(median(norms))}" if len(norms) >= 100 else f"{sci(norms[0])} → {sci(norms[-1])}"
        parts.append(f"grad_norm {size if any(norms) else 0}")
    if rates := [v for _, v in column(log, "learning_rate")]:
        parts.append(f"learning_rate {sci(rates[0] if len(rates) < 100 else max(rates))} → {sci(rates[-1])}")
    if space := [v for _, v in column(log, "memory_gib")]:
        parts.append(f"memory {median(space):.2f} GiB")
    return ", ".join(parts)
