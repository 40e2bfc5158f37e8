"""Pictures of runs as PNG bytes: curves, the adapter's strength, scores. On a light or a dark ground, wide or narrow.

    from scripts.runs import draw
    draw.curves([("pirate-nano", log)])              # one run, or several over each other

Each is None where there is nothing to draw. A wide one is made to be read at 900 pixels, a narrow one at 390.
"""

import math
import re

from scripts.runs import words
from scripts.runs.canvas import SERIES, THEMES, WIDE, figure, heading, inside, line, mean, number, points, scale

PANELS = {  # row's key: (title, smoothed, from zero)
    "learning_rate": ("learning rate", False, True),
    "grad_norm": ("gradient norm before clipping", True, False),
    "tokens_per_s": ("throughput, tokens a second", True, True),
    "memory_gib": ("peak memory, GiB", False, True),
}


def curves(runs, theme="light", width=WIDE):
    """PNG of the curves of [(label, signs.log), …] by step: loss, and as logged learning rate, gradient norm, throughput, memory. Runs of one label share a colour."""
    shown = [key for key in PANELS if any(points(log, key) for _, log in runs)]
    if not any(points(log, "loss") or points(log, "eval_loss") for _, log in runs):
        return None
    columns = 2 if width >= WIDE else 1
    rows = math.ceil(len(shown) / columns)
    with figure(theme, 2.7 + 1.55 * rows, width) as (fig, png):
        grid = fig.add_gridspec(1 + rows, columns, height_ratios=[2.7] + [1.55] * rows)
        axes = [fig.add_subplot(grid[0, :])]
        for n in range(len(shown)):
            alone = n == len(shown) - 1 and n % columns == 0
            axes.append(fig.add_subplot(grid[1 + n // columns, slice(None) if alone else n % columns], sharex=axes[0]))
        losses(axes[0], runs, theme)
        last = max([1, *(r["step"] for _, log in runs for r in log["rows"])])
        axes[0].set_xlim(-0.02 * last, 1.02 * last)
        for ax, key in zip(axes[1:], shown):
            title, smoothed, zero = PANELS[key]
            heading(ax, title)
            for colour, (_, log) in zip(hues(runs, theme), runs):
                line(ax, points(log, key), colour, smoothed, len(runs) > 1)
            scale(ax, [y for _, log in runs for _, y in points(log, key)], zero)
        for ax in axes[-columns if shown and len(shown) % columns == 0 else -1 :]:
            ax.set_xlabel("step")
    return png.getvalue()


def hues(runs, theme):
    """A colour a run, by its label."""
    labels = list(dict.fromkeys(label for label, _ in runs))
    return [SERIES[theme][labels.index(label) % 7] for label, _ in runs]


def losses(ax, runs, theme):
    """The large panel: every logged loss thin, their running mean thick, evaluations as dots, epochs as thin lines."""
    one, named = len(runs) == 1, set()
    for colour, (label, log) in zip(hues(runs, theme), runs):
        of = SERIES[theme][1] if one else colour
        trained, held = points(log, "loss"), points(log, "eval_loss")
        width = line(ax, trained, colour, True, not one, label=None if one or label in named else label)
        named.add(label)
        if trained and one:
            ax.plot([], [], color=colour, lw=1.8, label=f"training, mean of {width}" if width > 1 else "training")
        if held:
            ax.plot(*zip(*held), color=of, lw=1, ls=(0, (4, 2)), marker="o", ms=4, label="evaluation" if one else None, zorder=4)
        for at, (x, y) in enumerate([held[0], held[-1]] if one and len(held) > 1 else []):
            ax.annotate(f"{y:.3f}", (x, y), (0, 6) if at else (5, 4), textcoords="offset points", ha="right" if at else "left", color=of)
        if lost := [r["step"] for r in log["rows"] if "loss" in r and not math.isfinite(number(r["loss"]))]:
            ax.axvline(lost[0], color=of, lw=1, ls=":")
            inside(ax, f"not a number from step {lost[0]}", lost[0], 0.9, of)
    ax.margins(y=0.1)
    wide = ax.figure.get_figwidth() >= WIDE
    heading(ax, ("loss, nats a token" if wide or not one else "loss") + ("" if one else "; dashed: evaluation"))
    scale(ax, [y for _, log in runs for key in ("loss", "eval_loss") for _, y in points(log, key)], False)
    if one:
        epochs(ax, runs[0][1], theme)
        ax.legend(loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=2, columnspacing=1.2, borderpad=0.2, fontsize=8)
    else:
        ax.figure.legend(loc="outside upper left", ncols=max(1, min(3, 90 // max(map(len, named)))) if wide else 1)


def epochs(ax, log, theme):
    """Thin lines where an epoch ends, not more than ten of them."""
    known = [(r["step"], r["epoch"]) for r in log["rows"] if r.get("epoch")]
    whole = range(1, int(known[-1][1]) + 1) if known else []
    for n in [e for e in whole if e % max(1, -(-len(whole) // 10)) == 0]:
        at = next(step for step, epoch in known if epoch >= n)
        ax.axvline(at, color=THEMES[theme]["line"], lw=1, zorder=0)
        inside(ax, f"epoch {n}", at, 0.015, THEMES[theme]["soft"], fontsize=7.5)


def strength(log, theme="light", width=WIDE):
    """PNG of ‖ΔW‖/‖W‖: by kind of matrix and layer at the last evaluation that recorded it, and its growth from one to the next."""
    kept = shares(log)
    if not kept:
        return None
    last = kept[-1][1]
    kinds, layers = list(dict.fromkeys(k for k, _ in last)), sorted({n for _, n in last})
    across, growth = width >= WIDE, len(kept) > 1
    high = max(1.9, 1.1 + 0.26 * len(kinds))
    with figure(theme, high if across or not growth else high + 2.2, width) as (fig, png):
        form = {"ncols": 2, "width_ratios": [3, 2]} if across else {"nrows": 2, "height_ratios": [high, 2.2]}
        left, right = fig.subplots(**form) if growth else (fig.subplots(), None)
        heat(fig, left, last, kinds, layers, theme)
        heading(left, f"‖ΔW‖ / ‖W‖ at step {kept[-1][0]}, %")
        for n, kind in enumerate(kinds if right else []):
            of = [(step, [v for (k, _), v in found.items() if k == kind]) for step, found in kept]
            means = [(step, 100 * mean(values)) for step, values in of if values]
            right.plot(*zip(*means), color=SERIES[theme][n % 7], lw=1.5, ls="-" if n < 7 else ":", marker="o", ms=2.5, label=kind)
        if right:
            heading(right, "its growth, mean over layers, %")
            scale(right, [y for got in right.lines for y in got.get_ydata()], True)
            right.locator_params(axis="x", nbins=5)
            right.set_xlabel("step")
            right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return png.getvalue()


def heat(fig, ax, last, kinds, layers, theme):
    """Kinds of matrices by layers; the figures stand in the fields where there is room for them."""
    from matplotlib.colors import LinearSegmentedColormap

    values = [[100 * last.get((kind, layer), math.nan) for layer in layers] for kind in kinds]
    most = max(v for row in values for v in row if v == v) or 1
    colours = LinearSegmentedColormap.from_list("strength", [THEMES[theme]["low"], THEMES[theme]["high"]])
    shown = ax.imshow(values, cmap=colours, vmin=0, vmax=most, aspect="auto", interpolation="nearest")
    ax.set_yticks(range(len(kinds)), kinds)
    every = max(1, -(-len(layers) // 12))
    ax.set_xticks(range(0, len(layers), every), layers[::every])
    ax.set_xlabel("layer")
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if len(layers) > 10:
        fig.colorbar(shown, ax=ax, pad=0.02).outline.set_visible(False)
        return
    for y, row in enumerate(values):
        for x, v in enumerate(row):
            ax.text(
                x, y, f"{v:.2g}" if v == v else "–", ha="center", va="center", color=THEMES[theme]["paper" if v > 0.55 * most else "ink"]
            )


def shares(log):
    """[(step, {(kind of matrix, layer): ‖ΔW‖/‖W‖}), …] of the evaluations that recorded it; a layer's experts are averaged."""
    kept = []
    for row in log["rows"]:
        found = {}
        for name, norms in (row.get("adapter") or {}).items():
            if (where := re.search(r"layers\.(\d+)\.(.+)", name)) and math.isfinite(number(norms.get("share"))):
                found.setdefault((where[2].split(".")[-1], int(where[1])), []).append(number(norms["share"]))
        if found:
            kept.append((row["step"], {key: mean(values) for key, values in found.items()}))
    return kept


def scores(stages, theme="light", width=WIDE):
    """PNG of {label: {check: {"mean", "low", "high", "n"}}}: a dot and its 95 % interval for each check and label."""
    kinds = words.checks(stages)
    if not kinds:
        return None
    with figure(theme, 0.75 + len(kinds) * (0.14 + 0.085 * len(stages)), width) as (fig, png):
        ax = fig.subplots()
        for n, (label, of) in enumerate(stages.items()):
            colour, at = SERIES[theme][n % 7], (n - (len(stages) - 1) / 2) * 0.75 / max(3, len(stages))
            some = [
                (100 * of[k]["mean"], y + at, 100 * of[k]["low"], 100 * of[k]["high"])
                for y, k in enumerate(kinds)
                if isinstance(of.get(k), dict)
            ]
            for x, y, low, high in some:
                ax.plot([low, high], [y, y], color=colour, lw=1.6, solid_capstyle="butt", clip_on=False)
            ax.plot(
                [x for x, *_ in some], [y for _, y, *_ in some], color=colour, lw=0, marker="o", ms=4, label=label, clip_on=False, zorder=3
            )
        ax.set_yticks(range(len(kinds)), kinds)
        ax.set_ylim(len(kinds) - 0.5, -0.5)
        ax.set_xlim(0, 100)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0f} %")
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.grid(True, axis="x")
        for y in range(1, len(kinds)):
            ax.axhline(y - 0.5, color=THEMES[theme]["line"], lw=0.8)
        fig.legend(loc="outside upper left", ncols=len(stages) if width >= WIDE else 3)
    return png.getvalue()
