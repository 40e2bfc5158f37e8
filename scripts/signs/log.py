"""The log of a training run, ours or a foreign one, in one form: the Trainer's trainer_state.json, our health.jsonl, or both merged.

    read("outputs/pirate-nano")  →  {"source", "rows", "step", "steps", "epoch", "epochs", "examples", "global_batch", "ended", "beside"}

`rows` are dicts of numbers in order of `step`, one a step: `loss`, `grad_norm`, `learning_rate`, `eval_loss` … under the Trainer's own names, and from
health.jsonl `tokens_per_s`, `step_s`, `memory_gib` (GiB), `ranks_s` (seconds), `adapter` (norms). Where a step was logged twice, as after a resume, the
later line stands. What is not known is None. `beside` holds the recipe that lies beside the log, where there is one; `proven` the finding that stopped the
run, which may be of weights that no log shows.
"""

import json
import math
import re
from datetime import datetime
from pathlib import Path

from scripts import receipt, recipe

STATE, HEALTH = "trainer_state.json", "health.jsonl"
SUMMARY = {"train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}  # the Trainer's last line
ALIKE = 1e-3  # two logs of one run differ by rounding only


def read(path):
    """The log of a run folder, an output_dir, a checkpoint, an adapter, a trainer_state.json or a health.jsonl.

    Raises ValueError, in one line, where there is none, or none that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; give a run's folder, a {STATE} or a {HEALTH}")
    lived, states = places(path)
    if not lived and not states:
        raise ValueError(
            f"{path}: no run: neither {HEALTH} nor a {STATE} in it or in its checkpoints; give the folder that the trainer wrote to"
        )
    health = health_of(lived) if lived else None
    state = newest(states, health)
    if not health and not state:
        raise ValueError(f"{lived}: not a {HEALTH}: no line of it is a run's or a step's; give the one that a run wrote")
    log = joined(path, state, health)
    if not any("loss" in row or "eval_loss" in row for row in log["rows"]):
        wait = "wait for its first step" if not log["ended"] else "only the summary of the end, or nothing; train with `logging_steps: 1`"
        raise ValueError(f"{path}: holds no losses; {wait}")
    return log


def places(path):
    """(health.jsonl or None, [trainer_state.json …], the likeliest first) that belong to a path."""
    if path.is_file():
        return (path, []) if path.suffix == ".jsonl" else (None, [path])
    checkpoints = [*path.glob(f"checkpoint-*/{STATE}"), *path.glob(f"training/checkpoint-*/{STATE}")]
    checkpoints.sort(key=lambda p: int((re.findall(r"\d+", p.parent.name) or [0])[-1]), reverse=True)
    own = [p for p in (path / STATE, path / "training" / STATE) if p.is_file()]
    kept = path / "adapter" / STATE  # of the last run that was finished: an older one, where checkpoints are
    near = [path / HEALTH, *([path.parent / HEALTH] if path.name == "training" else [])]
    return next((p for p in near if p.is_file()), None), own + checkpoints or [kept] * kept.is_file()


def newest(states, health):
    """The furthest of the first two states that are whole and of the same run as `health`, or None; raises the first one's fault where none is whole."""
    fault, found = None, []
    for path in states:
        try:
            state = state_of(path)
        except ValueError as error:
            fault = fault or error
            continue
        if not health or same_run(path, state, health):
            found.append(state)
        if len(found) == 2:
            break
    if fault and not found and not health:
        raise fault
    return max(found, key=lambda state: state["step"], default=None)


def state_of(path):
    """A trainer_state.json as {"rows", "step", "steps", "epoch", "epochs", "ended"}."""
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError both
        raise ValueError(f"{path}:{getattr(error, 'lineno', 1)}: damaged JSON ({error}); give the {STATE} of another checkpoint") from None
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise ValueError(f"{path}: no {STATE}: it has no list `log_history`; give the one that the trainer wrote")
    rows, steps, step = merged(history), sane(whole(state.get("max_steps"))), sane(whole(state.get("global_step")))
    last = rows[-1]["step"] if rows else 0
    control = ((state.get("stateful_callbacks") or {}).get("TrainerControl") or {}).get("args") or {}
    summed = any(isinstance(entry, dict) and "train_runtime" in entry for entry in history)
    step = max(step or 0, last)
    epochs = sane(state.get("num_train_epochs"))
    return {
        "rows": rows,
        "step": step,
        "steps": steps,
        "epoch": sane(state.get("epoch")) if step == state.get("global_step") else None,
        "epochs": epochs if epochs and epochs < 1e6 else None,  # the Trainer's largest integer, where the data has no length
        "ended": bool(summed or control.get("should_training_stop") is True or steps and step >= steps),
    }


def health_of(path):
    """A health.jsonl as {"rows", "run", "began", "ended"}, or None where no line is one of its. Lines that are no JSON (the last one while it is written) are left out."""
    lines = []
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and ("run" in entry or "step" in entry or "end" in entry):
            lines.append(entry)
    if not lines:
        return None
    kept, run, began, ended, proven = [], {}, None, False, None
    for line in lines:
        if isinstance(line.get("run"), dict):
            run, ended, proven, began = line["run"], False, None, began or line["run"].get("began")
            kept = [entry for entry in kept if (number(entry.get("step")) or 0) <= (number(run.get("resumed_from")) or 0)]
        elif "end" in line:
            ended = True
        elif "finding" not in line:
            kept.append(line)
        elif isinstance(line["finding"], dict) and line["finding"].get("severity") == "dead":
            proven = {key: str(line["finding"].get(key)) for key in ("cause", "evidence", "fix", "severity")}
    return {"rows": merged(kept), "run": run, "began": began, "ended": ended, "proven": proven}


def same_run(path, state, health):
    """Whether a trainer state belongs to a health.jsonl: not older than its beginning, and with the same losses at the same steps."""
    try:
        if Path(path).stat().st_mtime + 2 < datetime.fromisoformat(health["began"]).timestamp():
            return False
    except (TypeError, ValueError):  # a log that does not say when it began
        pass
    there = {row["step"]: row["loss"] for row in health["rows"] if "loss" in row}
    both = [(row["loss"], there[row["step"]]) for row in state["rows"] if "loss" in row and row["step"] in there]
    return all(abs(a - b) <= ALIKE * max(1, abs(a)) or math.isnan(a) or math.isnan(b) or a == b for a, b in both)


def joined(path, state, health):
    """The log, from either or both."""
    rows = merged([*(state["rows"] if state else []), *(health["rows"] if health else [])])
    state, run = state or {}, health["run"] if health else {}
    step = max(state.get("step") or 0, rows[-1]["step"] if rows else 0)
    timed = [row["epoch"] for row in rows if "epoch" in row]
    epoch = state.get("epoch") if step == state.get("step") else None
    near = beside(path)
    log = {"source": str(path), "rows": rows, "step": step, "steps": sane(whole(run.get("steps"))) or state.get("steps") or None}
    log |= {
        "epoch": epoch if epoch is not None else timed[-1] if timed else None,
        "epochs": sane(run.get("epochs")) or state.get("epochs"),
    }
    log["global_batch"] = sane(whole(run.get("global_batch"))) or near.pop("global_batch", None)
    log["examples"] = sane(whole(run.get("rows"))) or counted(log)
    ended = health["ended"] or bool(log["steps"] and step >= log["steps"]) if health else state.get("ended")
    return log | {"ended": bool(ended), "beside": near, "proven": health.get("proven") if health else None}


def merged(entries):
    """Log entries as rows, one a step, in order."""
    rows = {}
    for entry in entries:
        step = whole(entry.get("step")) if isinstance(entry, dict) else None
        if step is not None and step >= 0:
            rows.setdefault(step, {"step": step}).update(cleaned(entry))
    return [rows[step] for step in sorted(rows)]


def cleaned(entry):
    """An entry's numbers (also those written as text), its list of ranks and its adapter, under the names of this page."""
    row = {}
    for key, value in entry.items():
        if key == "step" or key in SUMMARY:
            continue
        if key in ("ranks_s", "adapter"):
            kind = list if key == "ranks_s" else dict
            row |= {key: [number(x) for x in value] if kind is list else value} if isinstance(value, kind) else {}
        elif (n := sane(value) if key == "epoch" else number(value)) is not None:
            row[key] = n
    if "memory_gib" not in row:  # Axolotl's, whose spelling changed over time
        reserved = next((value for key, value in row.items() if key.startswith("memory/") and "reserved" in key), 0)
        row |= {"memory_gib": reserved} if reserved else {}
    if "eval_loss" not in row:  # several evaluation sets, each with a name
        named = [value for key, value in row.items() if re.fullmatch(r"eval_.+_loss", key)]
        row |= {"eval_loss": sum(named) / len(named)} if named else {}
    return row


def number(value):
    """A float or int, also of text such as "2.5e-4" or "nan"; None for what is neither."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def sane(value):
    """A number that a count or a part can be, or None."""
    n = number(value)
    return n if n is not None and 0 <= n < math.inf else None


def whole(value):
    """A whole number, or None."""
    n = number(value)
    return int(n) if n is not None and math.isfinite(n) and n == int(n) else None


def beside(path):
    """{"recipe": the recipe.yml that lies with the log, or {}, "global_batch": sequences a step where it is known}."""
    start = path if path.is_dir() else path.parent
    depth = 3 if start.name.startswith("checkpoint-") else 2 if start.name in ("training", "adapter") else 1
    folder = next((p for p in [start, *start.resolve().parents][:depth] if (p / "recipe.yml").is_file()), None)
    if not folder:
        return {"recipe": {}}
    try:
        cfg = recipe.read(folder / "recipe.yml")
    except (ValueError, OSError):  # the log can be judged without it
        return {"recipe": {}}
    made = (receipt.read(folder / "train.json") or {}).get("figures") or {}
    try:
        own = cfg if "x_hardware" in cfg else recipe.load(folder.resolve().name)  # a snapshot leaves out the machine
    except (ValueError, OSError):
        own = cfg
    many = "x_hardware" not in own and any(own.get(key) for key in ("deepspeed", "fsdp_config", "fsdp", "ddp_timeout"))
    try:
        batch = made.get("global_batch") or (None if many else recipe.global_batch(own))
    except (ValueError, TypeError):
        batch = None
    return {"recipe": cfg, "global_batch": batch}


def counted(log):
    """Training rows (packed: sequences) from the steps' part of an epoch, which the Trainer logs, and the global batch; None where it does not come out whole."""
    timed = [row for row in log["rows"] if row.get("epoch", 0) > 0 and row["step"] > 0]
    timed += [{"step": log["step"], "epoch": log["epoch"]}] if log["epoch"] and log["step"] else []
    inner = [row for row in timed if row["epoch"] < 1] or timed[:1]  # later epochs count the last, incomplete step of the earlier ones
    rounded = inner and inner[-1]["epoch"] < 0.5 and inner[-1]["epoch"] == round(inner[-1]["epoch"], 2)  # as older versions logged it
    if not inner or not log["global_batch"] or rounded:
        return None
    n = inner[-1]["step"] * log["global_batch"] / inner[-1]["epoch"]
    return round(n) if abs(n - round(n)) < 1e-3 * max(1, n / 1e4) else None
