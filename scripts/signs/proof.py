"""The proof that a run learns nothing: no gradient, or weights that are NaN. Cheap enough to ask for at every step.

dead(rows, {"layers.0.self_attn.q_proj": 0.0, …})  →  a finding {"cause", "evidence", "fix", "severity"}, or None
"""

import math
import re
from itertools import islice, takewhile

from scripts.signs.numbers import falls

GRADIENT = {
    "labels": "every label masked (-100): roles_to_train, train_on_eot, train_on_inputs and the chat template (`make xray` shows what carries the loss)",
    "reentrant": "gradient_checkpointing: true that cuts the graph: it needs gradient_checkpointing_kwargs: {use_reentrant: false}, "
    "or enable_input_require_grads() on the model",
    "adapter": "an adapter that is frozen, not attached, or multiplied by 0: lora_target_linear: true, or lora_target_modules that name modules of this base; "
    "lora_dropout below 1, lora_alpha above 0",
    "detached": "a loss that a plug-in, a custom trainer or torch.no_grad() detaches from the graph",
    "repack": "on a CPU, 4-bit weights that bitsandbytes repacks at an evaluation: plugins: [scripts.cpu.CpuPlugin]",
}
NAN = (
    "weights that are NaN do not recover: go back to a checkpoint before that. Then, most likely first: a smaller learning_rate with max_grad_norm: 1.0; "
    "bf16: true instead of fp16: true; no rows in which all labels are masked (-100): roles_to_train, train_on_eot (`make xray`)"
)


def finding(cause, evidence, fix, severity="warning"):
    return {"cause": cause, "evidence": evidence, "fix": fix, "severity": severity}


def dead(rows, lora_b=None):
    """The proof that a run learns nothing, cheap enough for every step: a finding of `no gradient` or `nan loss`, or None.

    `rows` as in a log (of a run that learns only the last are looked at); `lora_b` {module: norm of its lora_B now}, where it is known. Some zero modules are a
    warning only.
    """
    last = list(islice(trained(rows), 25))
    if any("reward" in row for row in last):  # reinforcement learning: no gradient where all rewards are alike, and a loss about zero
        return None
    return broken(rows, 3, lora_b) or zero_norm(rows, lora_b) or zero_adapter(last, lora_b)


def broken(rows, least, lora_b=None):
    """`nan loss` when: the loss of the last three rows is no number, or 0.0 beside a grad_norm that is none (the Trainer writes 0 for NaN,
    `logging_nan_inf_filter`); or twenty rows without a finite grad_norm; or a lora_B that is NaN.
    Why: weights that are NaN stay NaN. Source: transformers/trainer.py; fp16's loss scaler begins at 2^16 and halves, so 16 skipped steps are its own affair."""
    bad = streak(trained(rows), lambda row: odd(row["loss"]) or row["loss"] == 0 and odd(row.get("grad_norm", 0.0)))
    skipped = streak(trained(rows), lambda row: odd(row["loss"]) or odd(row.get("grad_norm", 0.0)))
    nothing = streak(trained(rows), lambda row: row["loss"] == 0 and "grad_norm" not in row)
    if len(nothing) >= 5:  # without grad_norm: 0.0 after a loss that was large is no loss
        before = next((row["loss"] for row in trained(rows) if row["loss"]), math.inf)
        bad = nothing if odd(before) or before > 0.1 else bad
    lost = [name for name, norm in (lora_b or {}).items() if odd(norm)]
    if len(bad) >= least:
        what, seen = ("loss is NaN or infinite" if odd(bad[0]["loss"]) else "loss is 0.0, which is how NaN is logged,"), bad
    elif len(skipped) >= 20:
        what, seen = "grad_norm is NaN or infinite, so that every step is skipped or breaks the weights,", skipped
    elif lost:
        what, seen = f"lora_B of {modules(lost)} is NaN", list(islice(trained(rows), 1))
    else:
        return None
    first, end = (seen[-1]["step"], seen[0]["step"]) if seen else (0, 0)
    good = next((row for row in trained(rows) if row["step"] < first and row["loss"] and not odd(row["loss"])), None)
    when = f"{what} {f'at step {end}' if first == end else f'from step {first} to step {end}'}"
    since = f"; the last loss before was {good['loss']:.4f} at step {good['step']}" if good else "; there was none before"
    return finding("nan loss", when + since * (seen is not skipped), NAN, "dead")


def zero_norm(rows, lora_b):
    """`no gradient` when: grad_norm is exactly 0 in the last five rows, or in all of them from step 5 on; not where the log shows that something was learned
    all the same, for then the norm is misreported. Why: nothing changes, at any number of steps.
    Source: a run of 500 steps with grad_norm 0.0; DeepSpeed 0.14.3 reported 0 wrongly (deepspeedai/DeepSpeed, issue 5692)."""
    zeros = streak(trained(rows), lambda row: row.get("grad_norm") == 0)
    always = zeros and all(row["grad_norm"] == 0 for row in rows if "grad_norm" in row)
    if not (len(zeros) >= 5 or len(zeros) >= 2 and always and zeros[0]["step"] >= 5) or always and learned(rows):
        return None
    evidence = f"grad_norm is 0.0 in {'all' if always else 'the last'} {len(zeros)} rows, steps {zeros[-1]['step']} to {zeros[0]['step']}"
    evidence += f"; loss {float(zeros[-1]['loss']):.4f} → {float(zeros[0]['loss']):.4f}"
    if lora_b and always and any(norm > 0 for norm in lora_b.values()):
        some = modules([name for name, norm in lora_b.items() if norm > 0])
        evidence += f", yet lora_B is not 0 in {some}: loaded from before, or the norm is misreported"
        todo = "compare the lora_B norms of two evaluations: if they stand still, "
        return finding("no gradient", evidence, todo + look(zeros[0]["loss"]))
    evidence += f"; lora_B is 0 in every layer: {modules(lora_b)}" if lora_b and always else ""
    return finding("no gradient", evidence, look(zeros[0]["loss"]), "dead")


def zero_adapter(last, lora_b):
    """`no gradient` when: after five steps with a learning rate lora_B is still exactly 0, where it begins (all of them: dead; some: a warning).
    Why: Adam's first step already moves every weight that has a gradient. Source: LoRA (Hu 2021), section 4.1: B begins at zero."""
    at_work = [row for row in last if row.get("learning_rate", 1) > 0 and not odd(row.get("grad_norm", 0.0))]
    if not lora_b or len(at_work) < 2 or len(at_work) < 5 and last[0]["step"] - at_work[-1]["step"] < 5:
        return None
    zero = [name for name, norm in lora_b.items() if norm == 0]
    if not zero:
        return None
    every = len(zero) == len(lora_b)
    which = "every one of" if every else f"{len(zero)} of"
    evidence = f"lora_B is still 0 in {which} {len(lora_b)} modules at step {last[0]['step']}: {modules(zero)}"
    part = "" if every else "these learn nothing (but experts of a mixture may only wait for their first token); "
    return finding("no gradient", evidence, part + look(last[0]["loss"]), "dead" if every else "warning")


def look(loss):
    """What to look for where there is no gradient, the likeliest first."""
    rest = ("reentrant", "adapter", "detached")
    order = ("labels", *rest, "repack") if loss == 0 else (*rest, "labels", "repack")
    return "more steps will not help. Look for, most likely first: " + "; ".join(f"({n}) {GRADIENT[key]}" for n, key in enumerate(order, 1))


def learned(rows):
    """Whether a log shows learning whatever its grad_norm says: eval losses that differ by 0.1 %, or a train loss that fell by 2 % and five standard errors."""
    evals = [row["eval_loss"] for row in rows if not odd(row.get("eval_loss", math.nan))]
    losses = [row["loss"] for row in rows if not odd(row.get("loss", math.nan))]
    if len(evals) > 1 and max(evals) - min(evals) > 1e-3 * abs(evals[0]):
        return True
    return len(losses) >= 20 and any(fall > max(0.02, 5 * error) for fall, error, k in falls(losses) if k >= 4)


def trained(rows):
    """The rows of training steps, newest first."""
    return (row for row in reversed(rows) if "loss" in row)


def streak(rows, test):
    """The rows, from the first on, that pass the test."""
    return list(takewhile(test, rows))


def odd(x):
    """NaN or infinite, also as text."""
    return isinstance(x, str) or not math.isfinite(x)


def modules(names):
    """`layers.0.self_attn.q_proj`, … as `q_proj, k_proj in layers 0-31`."""
    kinds = {}
    for name in names:
        layer = re.search(r"\.?(\d+)\.", name)
        kinds.setdefault(name.rsplit(".", 1)[-1], set()).add(int(layer[1]) if layer else -1)
    alike = {}
    for kind, layers in kinds.items():
        alike.setdefault(tuple(sorted(layers)), []).append(kind)
    return "; ".join(
        f"{', '.join(kind)}{f' in layers {spans(layers)}' if layers != (-1,) else ''}" for layers, kind in islice(alike.items(), 4)
    ) + (" …" * (len(alike) > 4))


def spans(numbers):
    """(0, 1, 2, 5) → 0-2, 5."""
    runs = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
