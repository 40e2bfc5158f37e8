"""How sure a score is: 95 % intervals over the rows, and the difference of two runs over the same rows.

    interval([1, 1, 0, 1])                    # {"mean": 0.75, "low": …, "high": …, "n": 4}
    perplexity(nll, tokens)                   # the same, of exp(Σ nll / Σ tokens)
    paired(before, after)                     # {"difference": after − before, "low", "high", "p", "n"}

All of it is about the rows: another draw of such prompts would give other figures, and that much the intervals tell. They can't tell what another
training seed would give; for that, train with several (`make train SET="seed=1"`) and take `student` over the runs.
"""

import math
import statistics as plain

LEVEL, SEED, RESAMPLES = 0.95, 1, 9999
BLOCK = 5_000_000  # numbers held at once while resampling


def bootstrap(columns, statistic, n):
    """(low, high) of a statistic of rows: BCa where it is defined, else percentiles (Efron 1987, Better Bootstrap Confidence Intervals)."""
    import numpy as np
    from scipy import stats

    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"):
            found = stats.bootstrap(
                columns,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=RESAMPLES,
                batch=max(1, BLOCK // n),
                confidence_level=LEVEL,
                method=method,
                rng=np.random.default_rng(SEED),
            ).confidence_interval
        if np.isfinite(found.low) and np.isfinite(found.high):
            break
    return float(found.low), float(found.high)


def wilson(hits, n):
    """(low, high) of a proportion (Wilson 1927). It says something also where all rows agree and resampling them can't."""
    from scipy import stats

    found = stats.binomtest(hits, n).proportion_ci(LEVEL, "wilson")
    return float(found.low), float(found.high)


def rounded(**figures):
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}


def interval(values):
    """The mean of scores in [0, 1], a value a row, and its interval.

    Rows that all have the same score get Wilson's interval: exact for 0 and 1, and for other scores too wide rather than too narrow, for nothing
    in [0, 1] with that mean varies more than a proportion.
    """
    import numpy as np

    x = np.asarray(values, dtype=float)
    mean, n = float(x.mean()), len(x)
    low, high = wilson(round(mean * n), n) if np.ptp(x) == 0 else bootstrap((x,), np.mean, n)
    return rounded(mean=mean, low=low, high=high, n=n)


def perplexity(nll, tokens):
    """exp(Σ nll / Σ tokens) over rows, nll in nats. Its interval resamples rows, for tokens of one reply are not independent.

    A single row has no interval; low and high are left out.
    """
    import numpy as np

    def figure(a, b, axis=-1):
        return np.exp(a.sum(axis=axis) / b.sum(axis=axis))

    a, b = np.asarray(nll, dtype=float), np.asarray(tokens, dtype=float)
    found = {"mean": float(figure(a, b)), "n": len(a)}
    if len(a) > 1:
        found["low"], found["high"] = bootstrap((a, b), figure, len(a))
    return rounded(**found)


def student(values):
    """(mean, low, high) of two numbers or more, such as runs with other seeds: Student's t with n − 1 degrees of freedom."""
    from scipy import stats

    mean, n = plain.fmean(values), len(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * plain.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def paired(before, after):
    """Two runs over the same rows, scores in [0, 1]: the mean of after − before, its interval, and how likely chance alone makes it as large.

    p is of a permutation test, two-sided: each row's two scores may be swapped (permutation_type "samples"). Runs that differ in no row get ± Wilson's
    upper bound for the share of rows that might differ. What it can't tell is the noise of training: two seeds of one recipe differ too, and a small
    p means that these two models differ on such prompts, not that the recipes do. Raises ValueError where the rows are not the same number.
    """
    import numpy as np
    from scipy import stats

    a, b = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} rows; compare runs over the same prompts")
    d, n = b - a, len(a)
    if not d.any():
        high = wilson(0, n)[1]
        return rounded(difference=0.0, low=-high, high=high, p=1.0, n=n)
    low, high = bootstrap((d,), np.mean, n) if np.ptp(d) else (float(d[0]), float(d[0]))
    p = stats.permutation_test(
        (b, a),
        lambda x, y, axis=-1: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BLOCK // n),
        rng=np.random.default_rng(SEED),
    ).pvalue
    return rounded(difference=float(d.mean()), low=low, high=high, p=float(p), n=n)
