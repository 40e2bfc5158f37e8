"""Figures of runs as people read them, and what of them may be shown to others.

from scripts.runs import words
words.interval({"mean": 0.92, "low": 0.85, "high": 0.96, "n": 100})     # 92 % (85–96)
"""

from pathlib import PurePath

CHECKS = {  # in the order in which they are shown
    "passed": "every check of its row passed",
    "exact": "the reply is the expected one",
    "choice": "the right one was chosen",
    "contains": "holds what it must hold",
    "never": "holds nothing that it must not",
    "f1": "words shared with the reference",
    "style": "in the voice of the data",
    "ends": "ends by itself",
    "leak": "shows nothing of prompt or template",
}


def checks(stages):
    """The checks that {stage: {check: figure}} holds, the whole row's first. Perplexity is none: it is no share."""
    found = {k for of in stages.values() for k, f in of.items() if isinstance(f, dict) and k != "ppl"}
    return sorted(found, key=lambda k: (list(CHECKS).index(k) if k in CHECKS else len(CHECKS), k))


def share(x):
    """A share of 1 in percent; never 0 of what is there, never 100 of what is not whole."""
    text = f"{100 * x:.0f}"
    return f"{100 * x:.1f} %" if text in ("0", "100") and x not in (0, 1) else f"{text} %"


def interval(figure):
    """{"mean", "low", "high"} of shares: 92 % (85–96), the interval in percent too."""
    return f"{share(figure['mean'])} ({extent(figure)})"


def extent(figure):
    return f"{100 * figure['low']:.0f}–{100 * figure['high']:.0f}"


def seconds(x):
    """0.1 s, 47 s, 13 min 32 s, 2 h 05 min."""
    if x < 10:
        return f"{x:.1f} s"
    if x < 3600:
        return (f"{x // 60:.0f} min " if x >= 60 else "") + f"{x % 60:.0f} s"
    return f"{x // 3600:.0f} h {x % 3600 // 60:02.0f} min"


def gib(x):
    return f"{x:.2f} GiB" if x < 10 else f"{x:.1f} GiB"


def machine(made, ranks=None):
    """A receipt's machine: 4 × NVIDIA A100-SXM4-80GB, or AMD EPYC, 2 cores."""
    of = made["machine"]
    if gpus := of.get("gpus"):
        return f"{ranks or len(gpus)} × {gpus[0]}"
    return f"{of.get('cpu') or 'CPU'}, {of.get('cores')} core{'s' * (of.get('cores') != 1)}"


def public(value):
    """A copy without this machine's folders: /home/ann/models/llama becomes …/llama, in lists and mappings too."""
    if isinstance(value, dict):
        return {public(k): public(v) for k, v in value.items()}
    if isinstance(value, list):
        return [public(v) for v in value]
    return f"…/{PurePath(value).name}" if isinstance(value, str) and value.startswith(("/", "~/")) else value
