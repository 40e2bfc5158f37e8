"""What the pictures of runs are drawn with: figures with our own settings, axes that can be read, lines thinned to what a panel can show.

Drawn without a display and without matplotlib's own settings of this machine: the same figures give the same bytes.
"""

import io
import logging
import math
import os
from contextlib import contextmanager
from itertools import accumulate

from scripts import files

THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1d2126", "soft": "#5c6570", "line": "#e1e4e8", "low": "#f1f5fb", "high": "#174a96"},
    "dark": {"paper": "#1b1f25", "ink": "#e4e7eb", "soft": "#9aa4b0", "line": "#323942", "low": "#222a35", "high": "#8fbcff"},
}
SERIES = {  # told apart by the colour-blind too (after Okabe and Ito 2008, Color Universal Design), and legible on its ground
    "light": ["#2368c4", "#d55e00", "#00805c", "#a2559c", "#8a6d00", "#38a3d8", "#5c6570"],
    "dark": ["#6ea4f5", "#ff9147", "#3fc79a", "#de8fd3", "#e3c14a", "#7fd0f7", "#a3acb7"],
}
WIDE, NARROW = 7.5, 3.9  # inches: for a page, and for a telephone, with the panels below each other
DPI, POINTS = 180, 1500


@contextmanager
def figure(theme, high, wide):
    """Yield (an empty figure of so many inches with our settings, the file that it is written to when the block ends)."""
    os.environ.setdefault("MPLCONFIGDIR", str(files.CACHE / "matplotlib"))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache otherwise
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings(THEMES[theme])}):
        fig, png = Figure((wide, high), dpi=DPI, layout="constrained"), io.BytesIO()
        yield fig, png
        agg = FigureCanvasAgg(fig)
        agg.draw()
        drawn = Image.frombuffer("RGBA", agg.get_width_height(), agg.buffer_rgba()).convert("RGB")
        drawn.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)  # a third of the bytes


def settings(colours):
    """matplotlib's, for one of the themes."""
    found = {"font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 9, "legend.fontsize": 8.5, "legend.frameon": False}
    found |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True}
    found |= dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], colours["paper"])
    found |= dict.fromkeys(["text.color", "axes.titlecolor", "ytick.labelcolor"], colours["ink"])
    found |= dict.fromkeys(["axes.labelcolor", "xtick.color", "ytick.color"], colours["soft"])
    return found | dict.fromkeys(["axes.edgecolor", "grid.color"], colours["line"]) | {"legend.handlelength": 1.4}


def heading(ax, text):
    ax.set_title(text, loc="left")


def inside(ax, text, x, height, colour, **more):
    """A remark to the left of a step; `height` as a share of the panel's."""
    ax.annotate(text, (x, height), (-3, 0), xycoords=ax.get_xaxis_transform(), textcoords="offset points", ha="right", color=colour, **more)


def scale(ax, ys, zero):
    """Ticks that can be read; a logarithmic axis where the largest figure is more than fifty times the median."""
    from matplotlib.ticker import MaxNLocator

    ys = sorted(ys)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8 if ax.figure.get_figwidth() >= WIDE else 5))
    if not zero and ys and ys[0] > 0 and ys[-1] > 50 * ys[len(ys) // 2]:
        ax.set_yscale("log")
        return
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.yaxis.set_major_formatter(lambda v, _: plain(v))
    if zero and ys:
        ax.set_ylim(0, 1.08 * ys[-1] or 1)


def plain(v):
    """A tick's figure: 1,200, 0.25, 1.5e-3."""
    return f"{v:,.0f}" if v == round(v) else f"{v:.3g}" if abs(v) >= 0.01 else f"{v:.1e}".replace(".0e", "e").replace("e-0", "e-")


def line(ax, found, colour, smoothed, faint, **more):
    """A line; where `smoothed`, the figures thin and their running mean thick. Returns over how many figures the mean is taken."""
    width = max(1, len(found) // 25) | 1 if smoothed else 1
    if not found:
        return width
    xs, ys = zip(*found)
    if width > 1:
        ax.plot(*zip(*thinned(found)), color=colour, lw=0.6, alpha=0.18 if faint else 0.4)
    ax.plot(*zip(*thinned(list(zip(xs, running(ys, width))))), color=colour, lw=1.6, marker="o" if len(found) == 1 else None, **more)
    return width


def running(ys, width):
    """The mean of the `width` figures around each; fewer at the ends, so that nothing is shifted."""
    half, sums = width // 2, [0, *accumulate(ys)]
    ends = [(max(0, i - half), min(len(ys), i + half + 1)) for i in range(len(ys))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in ends]


def thinned(found):
    """No more points than a panel has pixels, roughly: the least and the greatest of each stretch, in their order."""
    size = -(-len(found) // POINTS) * 2
    stretches = [found[i : i + size] for i in range(0, len(found), size)] if size > 2 else []
    ends = [{min(s, key=lambda p: p[1]), max(s, key=lambda p: p[1])} for s in stretches]
    return [p for pair in ends for p in sorted(pair)] or found


def points(log, key):
    """[(step, figure)] of the log's rows that have it, as a number."""
    return [(r["step"], number(r[key])) for r in log["rows"] if key in r and math.isfinite(number(r[key]))]


def number(value):
    """A float; NaN for what is none, as health.jsonl writes NaN and infinity as words."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def mean(values):
    return sum(values) / len(values)
