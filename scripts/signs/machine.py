"""Causes that cost time or memory and change nothing of what is learned: throughput, memory, ranks. They never change a verdict."""

from itertools import pairwise
from statistics import median

from scripts.signs.numbers import blocks, column, percent, sci, window
from scripts.signs.proof import finding


def throughput(log):
    """When: the last fifth of the rows is slower than the first third by a quarter, in the median and in four rows of five against the first third's lower
    quartile; over 40 rows, after the first tenth. Why: what remains takes longer than planned. Source: medians of 8 rows of unequal length vary by about 10 %."""
    key = next((k for k in ("tokens_per_s", "tokens/train_per_sec_per_gpu", "step_s") if len(column(log, k, 1e-9)) >= 40), None)
    if not key:
        return None
    rows = column(log, key, 1e-9)
    rows = rows[len(rows) // 10 :]
    speeds = [1 / v if key == "step_s" else v for _, v in rows]
    early, late = speeds[: len(speeds) // 3], speeds[-window(speeds, 0.2, 20 if key == "step_s" else 8) :]
    quartile = sorted(early)[len(early) // 4]
    slower = 1 - median(late) / median(early)
    if slower < 0.25 or sum(v < quartile for v in late) < 0.8 * len(late):
        return None
    unit = "{:.3g} s a step → {:.3g} s" if key == "step_s" else "{:,.0f} tokens/s → {:,.0f}"
    pair = [1 / median(x) if key == "step_s" else median(x) for x in (early, late)]
    what = f"{unit.format(*pair)}, {percent(slower)} slower than in steps {rows[0][0]} to {rows[len(early) - 1][0]}"
    todo = "look for another process on the machine, a card that throttles (nvidia-smi -q -d PERFORMANCE), data that is read too slowly (dataloader_num_workers), memory near its limit"
    return finding("throughput drift", what, todo)


def memory(log):
    """When: in eight blocks of the rows after the first tenth, memory grows in six of the seven steps, by 5 % and 0.2 GiB in all, and in the second half at
    least half as much as in the first. Why: it ends with out of memory. Source: an allocator's high-water mark rises ever more slowly, a leak steadily."""
    rows = column(log, "memory_gib", 1e-9)
    rows = rows[len(rows) // 10 :]
    if len(rows) < 24:
        return None
    levels = blocks([v for _, v in rows], 8)
    grown, second, first = levels[-1] - levels[0], levels[-1] - levels[4], levels[4] - levels[0]
    if sum(b > a for a, b in pairwise(levels)) < 6 or grown < max(0.2, 0.05 * levels[0]) or second < 0.5 * first:
        return None
    pace = grown / (7 / 8 * (rows[-1][0] - rows[0][0]))  # GiB a step, between the middles of the outer blocks
    what = f"memory {levels[0]:.2f} → {levels[-1]:.2f} GiB, in every part of the run, {sci(1000 * pace)} GiB in 1,000 steps"
    if log["steps"] and log["steps"] > log["step"]:
        what += f"; {levels[-1] + pace * (log['steps'] - log['step']):.1f} GiB at the last step"
    return finding(
        "memory drift",
        what,
        "something keeps tensors from step to step: a plug-in or callback that collects losses without .item(); for a fragmented allocator torch_empty_cache_steps: 50",
    )


def slow_rank(log):
    """When: one rank's median step takes 1.2 times the median of the others, over five rows. Why: all ranks wait for it at every step.
    Source: ranks of one machine with rows of unequal length differ by some 5 %."""
    timed = [row["ranks_s"] for row in log["rows"] if len(row.get("ranks_s") or []) > 1 and None not in row["ranks_s"]]
    timed = [one for one in timed if len(one) == len(timed[-1])]
    if len(timed) < 5:
        return None
    own = [median(rank) for rank in zip(*timed)]
    slow = max(range(len(own)), key=own.__getitem__)
    others = median(v for n, v in enumerate(own) if n != slow)
    if own[slow] <= 1.2 * others:
        return None
    what = f"rank {slow} takes {own[slow]:.3g} s a step, the others {others:.3g} s: everyone waits {percent(1 - others / own[slow])} of the time"
    return finding(
        "slow rank",
        what,
        f"look at rank {slow}'s card and machine: clocks, heat, PCIe, other processes; rows of unequal length: sample_packing: true",
    )
