"""The progress line of a training: where it is, loss and trend, speed, time left, memory; and above it whatever the watch has to say."""

import json
import math
import re
import sys
from pathlib import Path
from statistics import fmean

WIDTH = 24  # of the bar itself, less on a narrow terminal


def follower(path):
    """A `follow(line, bar)` for process.run: the log's lines move the bar and lift warnings above it, the figures come from health.jsonl at `path`."""
    at, losses, last = [None, 0], [], {}

    def follow(line, bar):
        if line.startswith("health: "):
            bar.write(f"health      {line.removeprefix('health: ')}", file=sys.stderr)
        if found := re.match(r" *\d+%\|.*\| (\d+)/(\d+) \[[\d:]+<", line):
            done, total = map(int, found.groups())
            if total == last.get("steps", max(total, bar.total or 0)):  # evaluations have shorter bars of their own
                bar.total, bar.n = total, done
        for row in news(path, at):
            last.update(row.get("run") or row)
            losses.extend([row["loss"]] if isinstance(row.get("loss"), float) else [])
            bar.total, bar.n = last["steps"], last.get("step", 0)
        if bar.disable:
            return
        left = bar.format_interval(last["left_s"]) if "left_s" in last else "?"
        rest = f" {bar.n}/{bar.total or '?'}  {bar.format_interval(bar.format_dict['elapsed'])}<{left}{figures(last, losses)}"
        columns = bar.ncols or 80
        title = bar.desc if columns > len(bar.desc) + WIDTH + len(rest) else bar.desc.rstrip() + " "
        bar.bar_format = f"{title}{{bar:{max(4, min(WIDTH, columns - len(title) - len(rest) - 1))}}}{rest}"
        bar.refresh()

    return follow


def news(path, at):
    """The lines of runs and logs in health.jsonl since `at` ([inode, offset], moved on here). A run that begins or resumes writes it anew."""
    try:
        stat = Path(path).stat()
    except FileNotFoundError:
        return []
    if [stat.st_ino, stat.st_size] == at:
        return []
    with open(path, "rb") as f:
        f.seek(at[1] if at[0] == stat.st_ino else 0)
        whole, _, cut = f.read().rpartition(b"\n")
        at[:] = stat.st_ino, f.tell() - len(cut)
    return [row for row in map(json.loads, whole.splitlines()) if row.keys() & {"run", "loss"}]


def figures(row, losses):
    """`  loss 4.47 ↓  2,083 tok/s  1.2 GiB`, as far as it is known."""
    text = ""
    if losses:
        text += f"  loss {fmean(losses[-10:]):.2f}{trend(losses)}" if isinstance(row.get("loss"), float) else f"  loss {row['loss']}"
    if "tokens_per_s" in row:
        text += f"  {row['tokens_per_s']:,.0f} tok/s"
    if "memory_gib" in row:
        text += f"  {row['memory_gib']:.1f} GiB"
    return text


def trend(losses):
    """Where the mean loss of the last steps (a fifth of them, 50 at most) went from that of as many before: ↓, → (within 0.5 %) or ↑."""
    n = min(50, max(4, len(losses) // 5))
    if len(losses) < 2 * n:
        return ""
    change = fmean(losses[-n:]) / fmean(losses[-2 * n : -n]) - 1
    return " →" if math.isclose(change, 0, abs_tol=0.005) else " ↓" if change < 0 else " ↑"
