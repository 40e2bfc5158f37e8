"""What is wrong with a training run, judged from its log. Each cause is a function of the log (log.py) that returns a finding or None.

    judge(log)  →  {"verdict", "so_far", "findings": [{"cause", "evidence", "fix", "severity"}, …]}, most important first

A finding's severity is `dead` (proven: going on is in vain), `warning`, or `note`. The verdict says what the run is worth: dead, overfit, weak, unfinished,
healthy. Every threshold is set so that a healthy run raises nothing; a log that is too short or too noisy for a cause raises nothing either.
"""

import math
from itertools import takewhile
from statistics import fmean, median

from scripts.signs.log import number
from scripts.signs.machine import memory, slow_rank, throughput
from scripts.signs.numbers import (
    blocks,
    column,
    falls,
    jitter,
    of,
    percent,
    sci,
    told,
    window,
)
from scripts.signs.proof import broken, dead, finding, odd

MAKES = {"nan loss": "dead", "exploding loss": "dead", "overfitting": "overfit", "identical eval losses": "weak"}
MAKES |= {"flat train loss": "weak", "learning rate used up": "weak", "coverage": "weak"}  # the others change no verdict
SYMPTOMS = {"identical eval losses", "flat train loss"}  # of a missing gradient, or of NaN


def judge(log):
    """The verdict on a log, also on one that still grows (`ended` False). `so_far` is the verdict without regard to being unfinished."""
    log = log | {"columns": {}}
    found = [f for cause in CAUSES if (f := cause(log))]
    if found and found[0]["severity"] == "dead":
        root, mended = found[0]["cause"], "once there is a gradient" if found[0]["cause"] == "no gradient" else "once the loss is a number"
        found = [f for f in found if f["cause"] not in SYMPTOMS] + [f for f in found if f["cause"] in SYMPTOMS]
        for f in (f for f in found[1:] if f["cause"] in MAKES):
            f["fix"] = f"follows from {root}: mend that first" if f["cause"] in SYMPTOMS else f"{mended}: {f['fix']}"
    made = {made_of(f) for f in found}
    so_far = next((v for v in ("dead", "overfit", "weak") if v in made), "healthy")
    verdict = "unfinished" if so_far == "healthy" and not log["ended"] else so_far
    return {"verdict": verdict, "so_far": so_far, "findings": found + [unfinished(log, so_far)] * (not log["ended"])}


def made_of(f):
    """The verdict that a finding makes."""
    return ("dead" if f["severity"] == "dead" else "weak") if f["cause"] == "no gradient" else MAKES.get(f["cause"], "healthy")


def proven(log):
    """`no gradient` and `nan loss`: see proof.py. Besides, `nan loss` when: a run ended in a row that is none, or its eval loss became NaN after numbers."""
    rows, told_b = log["rows"], [row for row in log["rows"] if row.get("adapter") and row["step"] >= 5]
    if f := dead(rows):
        return f
    if told_b:
        norms = {name: number(v.get("b")) for name, v in told_b[-1]["adapter"].items() if isinstance(v, dict)}
        norms = {name: norm for name, norm in norms.items() if norm is not None}
        if f := dead(list(takewhile(lambda row: row["step"] <= told_b[-1]["step"], rows)), norms):
            return f
    if log.get("proven"):
        return log["proven"]
    if log["ended"] and (f := broken(rows, 1)):
        return f
    evals = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    if len(evals) > 1 and odd(evals[-1][1]) and not odd(evals[0][1]):
        good = [e for e in evals if not odd(e[1])][-1]
        what = f"eval loss is NaN at step {evals[-1][0]}; the last number was {good[1]:.4f} at step {good[0]}"
        todo = f"go back to a checkpoint up to step {good[0]}; {slower(log)}, max_grad_norm: 1.0, bf16: true instead of fp16: true"
        return finding("nan loss", what, todo, "dead")
    return None


def exploding(log):
    """When: the median of the last rows (a twentieth, at least 5; 10 while it runs) is 1.5 times the first rows' and 0.5 nats above, or has lost three
    quarters of what was learned and doubled; and six times the noise. Why: the model is worse than before, and seldom comes back.
    Source: 0.5 nats is a perplexity 1.6 times as high; spikes that pass within the window raise nothing."""
    losses = [v for _, v in column(log, "loss")]
    wide = window(losses, 0.05, 5 if log["ended"] else 10)
    if len(losses) < wide + 5 or any("reward" in row for row in log["rows"][-5:]):
        return None
    start, last = median(losses[: window(losses, 0.05, 3)]), median(losses[-wide:])
    best = min([start, *blocks(losses, len(losses) // wide)])
    clear = last - best > max(0.5, 6 * jitter(losses))
    worse, lost = last > 1.5 * start and last - start > 0.5, last > 2 * best and last - best > 0.75 * (start - best)
    if not clear or not (worse or lost):
        return None
    steps = [s for s, _ in column(log, "loss")]
    turned = steps[max(i for i, v in enumerate(losses) if v <= (best + last) / 2)]
    what = (
        f"loss {last:.4f} over the last {wide} rows, after {start:.4f} at the start and {best:.4f} at best; it rose from step {turned} on"
    )
    todo = f"go back to a checkpoint before step {turned}, or begin anew, with {slower(log)}, max_grad_norm: 1.0, warmup_ratio: 0.1"
    return finding("exploding loss", what, todo)


def slower(log):
    """A third of the learning rate, as a change of the recipe."""
    rate = max((v for _, v in column(log, "learning_rate")), default=None)
    return of(log, "learning_rate", sci(rate / 3), sci(rate)) if rate else of(log, "learning_rate", "a third")


def overfitting(log):
    """When: the eval loss has left its minimum (3 % and 0.01 over two evaluations or more, 5 % over one) while the train loss went on falling.
    Why: from there on the rows are learned by heart. Source: small sets move by about 1 % from one evaluation to the next; a third epoch often costs 2 %."""
    evals, losses = column(log, "eval_loss"), column(log, "loss")
    if len(evals) < 3:
        return None
    at, (step, low) = min(enumerate(evals), key=lambda pair: pair[1][1])
    after = [v for _, v in evals[at + 1 :]]
    if not after or low <= 0 or after[-1] - low < 0.01 or after[-1] < low * (1.03 if len(after) > 1 else 1.05) or min(after) < low * 1.005:
        return None
    wide = window(losses, 0.1, 3)
    before = [v for s, v in losses if s <= step][-wide:] or [v for _, v in losses[:wide]]
    later = [v for _, v in losses[-wide:]]
    if losses and fmean(later) >= fmean(before):
        return None
    epoch = next((row["epoch"] for row in log["rows"] if row["step"] == step and "epoch" in row), None)
    trained = f", while the train loss went {fmean(before):.4f} → {fmean(later):.4f}" if losses else ""
    rose = f"{', '.join(f'{v:.4f}' for v in after[-4:])} (+{percent(after[-1] / low - 1)})"
    less = epoch is not None and log["epochs"] and max(1, round(epoch)) < log["epochs"]
    fewer = of(log, "num_epochs", max(1, round(epoch)), f"{log['epochs']:g}") if less else f"max_steps: {step}"
    todo = (
        f"keep the checkpoint nearest to step {step}; {fewer}, or early_stopping_patience: 2 with load_best_model_at_end: true; more rows"
    )
    return finding("overfitting", f"eval loss {low:.4f} at step {step}, then {rose}{trained}", todo)


def identical(log):
    """When: eval losses in a row are the same number: two, or three where they are rounded to four places and others differ; at a learning rate that works.
    Why: a model that changes cannot keep it to the last digit. Source: a run with 2.9310 at steps 150, 300 and 450, whose gradient was 0."""
    evals = column(log, "eval_loss")
    best, run = [], []
    for e in evals:
        run = [*run, e] if run and abs(e[1] - run[-1][1]) <= 1e-7 * abs(e[1]) else [e]
        best = max(best, run, key=len)
    rounded = len(best) < len(evals) and all(round(v, 4) == v for _, v in evals)
    if len(best) < (3 if rounded else 2) or best[-1][0] - best[0][0] < 5:
        return None
    rates = column(log, "learning_rate")
    between = [v for s, v in rates if best[0][0] < s <= best[-1][0]]
    if between and max(between) < 0.1 * max(v for _, v in rates):  # the end of a schedule: next to nothing changes, and rightly
        return None
    at = ", ".join(str(s) for s, _ in best[:6]) + " …" * (len(best) > 6)
    what = f"eval loss {best[0][1]:.4f} at steps {at}: the model did not change, or is not the one evaluated"
    todo = "compare the lora_B norms of two checkpoints: if they differ, the evaluation does not see the adapter; if not, there is no gradient, "
    todo += "or a learning_rate of about 0"
    return finding("identical eval losses", what, todo)


def flat(log):
    """When: no fall of the train loss can be seen from the start on (2.5 standard errors, over four windows), and one of 3 % can be ruled out: by eval losses
    that improved by less than 0.5 % from an early first one, or by the noise alone where it is small enough. Why: the run only fluctuates about a plateau.
    Source: a dead run fell by 0.7 %, a healthy one by 3.3 % in a sixteenth of an epoch; simulated plateaus and decays at 1.5 to 8 % noise (tests)."""
    losses, steps = [v for _, v in column(log, "loss")], [s for s, _ in column(log, "loss")]
    if len(losses) < 20 or any("reward" in row for row in log["rows"][-5:]):
        return None
    if steps[0] > 3 * max(1, steps[1] - steps[0]):  # a piece of a run, whose start is not there
        return None
    rates = [v for _, v in column(log, "learning_rate")]
    if not log["ended"] and (rates and rates[-1] > 1.01 * rates[len(rates) // 2] or log["steps"] and log["step"] < log["steps"] / 4):
        return None  # in warm-up, or too early to say
    seen = falls(losses)
    if not seen or any(fall > 2.5 * error for fall, error, _ in seen) or seen[-1][0] < -0.05:
        return None
    evals = column(log, "eval_loss")
    gained = 1 - min(v for _, v in evals) / evals[0][1] if len(evals) > 1 and evals[0][1] > 0 else None
    if gained is not None and gained >= 0.005:
        return None
    early = gained is not None and evals[0][0] <= 0.15 * log["step"] and evals[-1][0] >= 0.5 * log["step"]
    sharp = len(losses) >= 50 and seen[2][1] <= 0.006 and all(fall + 2 * error < 0.03 for fall, error, _ in seen[1:])
    if not early and not sharp:
        return None
    first, last = fmean(losses[: len(losses) // 3]), fmean(losses[-(len(losses) // 3) :])
    what = f"loss {first:.4f} in the first third of {len(losses)} rows, {last:.4f} in the last: {percent(abs(seen[-1][0]))} at an uncertainty of {percent(2 * seen[-1][1])}"
    what += f"; eval loss {evals[0][1]:.4f} → {evals[-1][1]:.4f}" if len(evals) > 1 else ""
    peak, adapter = max(rates, default=0), (log["beside"].get("recipe") or {"adapter": "lora"}).get("adapter")
    better = "2e-4" if adapter and peak < 1e-4 else sci(2 * peak)  # an adapter's range is 1e-4 to 3e-4: lr-range of `make lint`
    todo = of(log, "learning_rate", better, sci(peak)) if peak else "a higher learning_rate"
    more = "then lora_target_linear: true or a larger lora_r; and look whether the rows teach anything the base does not do already"
    return finding("flat train loss", what, f"{todo}; {more}")


def used_up(log):
    """When: the learning rate is below 1 % of its peak for more than 20 % of all steps; or it is 0 while steps remain, or was never more.
    Why: those steps cost as much as the others and teach nothing. Source: the rule lr-exhausted of `make lint`; plain cosine spends 6 % there, linear 1 %."""
    rates = column(log, "learning_rate")
    total = log["steps"] if log["steps"] and not log["ended"] else log["step"]
    if len(rates) < 5 or not total:
        return None
    values = [v for _, v in rates]
    peak = max(values)
    past = values.index(peak)
    cure = "a schedule that ends with the run: lr_scheduler: cosine spends 6 % of the steps there, with cosine_min_lr_ratio: 0.1 none"
    if peak == 0 and (rates[-1][0] >= 20 or log["ended"]):
        what = f"learning_rate is 0 in all {len(rates)} rows, up to step {rates[-1][0]}"
        return finding("learning rate used up", what, of(log, "learning_rate", "2e-4", "0") + " for an adapter; or shorten the warm-up")
    spent = sum(rates[i][0] - rates[i - 1][0] for i in range(past + 1, len(rates)) if values[i] < 0.01 * peak)
    zero = list(takewhile(lambda pair: pair[1] == 0, reversed(rates)))
    left = (log["steps"] or 0) - rates[-1][0]
    if len(zero) >= 3 and left > 0.05 * (log["steps"] or 0) and not log["ended"]:
        what = f"learning_rate is 0 since step {zero[-1][0]}, with {left} of {log['steps']} steps to go"
        todo = f"begin anew with max_steps or num_epochs as meant (a resumed schedule keeps its old end); {cure}"
        return finding("learning rate used up", what, todo)
    if spent <= 0.2 * total:
        return None
    what = f"{percent(spent / total)} of the {total} steps run at under 1 % of the peak learning rate of {sci(peak)}"
    return finding("learning rate used up", what, cure)


def coverage(log):
    """When: the run saw, or will have seen when it ends, less than half of its data once. Why: the rest was prepared and paid for in vain, and what was
    learned is of a part. Source: the rule undertrained of `make lint`; a run of 500 steps of 8 that saw 8.9 % of 45,000 rows."""
    step, steps, epoch = log["step"], log["steps"] or log["step"], log["epoch"]
    if not step or not epoch or not log["steps"] and not log["ended"]:
        return None
    share, per_epoch = epoch * steps / step, math.ceil(step / epoch - 1e-9)
    if share >= 0.5:
        return None
    batch, rows = log["global_batch"], log["examples"]
    what = f"{steps} steps see {percent(share)} of the data"
    if batch and rows:
        kind = "sequences" if (log["beside"].get("recipe") or {}).get("sample_packing") else "rows"
        what = f"{min(rows, steps * batch):,} of {rows:,} {kind}, {percent(share)}: {steps} steps of {batch}"
    limited = "max_steps" in (log["beside"].get("recipe") or {"max_steps": 0})
    steps_or_epochs = f"{of(log, 'max_steps', per_epoch, steps)} is one epoch; or drop it and set num_epochs: 1"
    return finding("coverage", what, steps_or_epochs if limited else of(log, "num_epochs", 1))


def unfinished(log, so_far):
    """When: the log has no end and its steps are not done."""
    total = log["steps"] and f" of {log['steps']} ({percent(log['step'] / log['steps'])})"
    done = f"step {log['step']}{total or ', and no end is logged'}"
    if log["epoch"] is not None:
        done += f", epoch {log['epoch']:.2f}" + (f" of {log['epochs']:g}" if log["epochs"] else "")
    todo = "let it go on; if it was stopped, the same command goes on from the last checkpoint (auto_resume_from_checkpoints: true)"
    todo = todo if so_far == "healthy" else "mend what stands above before it goes on"
    return finding("unfinished", f"{done}; {so_far} so far: {told(log)}", todo, "note")


CAUSES = (proven, exploding, overfitting, identical, used_up, flat, coverage, throughput, memory, slow_rank)
