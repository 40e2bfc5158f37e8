"""All that is known of a run, from what it left in outputs/NAME: receipts, log, verdict, scores, replies.

    from scripts.runs import gather
    found = gather.run("pirate-nano")

A run need not have ended, or ended well. What is missing is None or empty; what is damaged is a ValueError naming the file and what to do.
Nothing is hashed and nothing of the training level is imported.
"""

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scripts import receipt, recipe
from scripts.runs import words
from scripts.signs import causes, log

STAGES = ["preprocess", "train", "merge", "gguf", "modelfile", "ollama", "score"]
SCORED = ["base", "adapter", "merged", "gguf", "ollama"]  # in the order in which they are made
MAKES = {"score": "eval"}  # the target that makes a receipt, where it has another name
ALIVE = 300  # seconds since the log was last written to, after which a run without an end counts as stopped
NUMBER = (int, float)
EACH, MAYBE = "*", "?"  # in a shape: of every key; of a key that need not be there
INTERVAL = {"mean": NUMBER, "low": NUMBER, "high": NUMBER, "n": NUMBER}
RECEIPT = {
    "made": str,
    "seconds": NUMBER,
    "peak_memory_gib": NUMBER,
    "inputs": {EACH: str},
    "outputs": {EACH: str},
    "versions": {EACH: str},
}
RECEIPT |= {"figures": dict, "machine": {"gpus": list}, "commit?": (str, type(None))}
FIGURES = {  # what reports read of them
    "preprocess": {"rows": NUMBER, "tokens": NUMBER, "trained_tokens?": NUMBER},
    "train": dict.fromkeys(["steps", "epochs", "ranks", "global_batch", "first_loss", "last_loss"], NUMBER)
    | {"eval_losses": list, "base_memory_gib?": NUMBER, "peak_memory_gib?": NUMBER},
    "gguf": {EACH: NUMBER},
    "modelfile": {"from?": str},
    "score": {"stages": {EACH: dict}, "tasks?": {EACH: {EACH: NUMBER}}},
}
SCORES = {"seconds?": NUMBER, "tokens_per_s?": NUMBER, "ppl?": {"mean": NUMBER, "n": NUMBER, "low?": NUMBER, "high?": NUMBER}}


def ran(name):
    """Whether there is anything to gather: a recipe that was snapshotted, and a log, a trained adapter or a score."""
    folder = Path("outputs", name)
    return (folder / "recipe.yml").is_file() and (bool(logs(folder)) or any((folder / f"{s}.json").is_file() for s in ("train", "score")))


def run(name):
    """Everything known of outputs/NAME.

    {"name", "recipe": the keys that were run, "key": see there, "data": {path: sha256}, "stages": {stage: receipt or None},
    "earlier": [stages whose receipts are of an earlier run: None above], "log": signs.log or None, "verdict": signs.judge or None,
    "score": figures or None, "replies": {stage: rows}, "ten": {stage: rows}, "began": ISO-UTC or None, "run": id,
    "state": "finished" | "running" | "stopped", "health": what health.jsonl says of the run as a whole, {} without it}

    Raises ValueError with one line where nothing was trained or scored yet, and for what is damaged.
    """
    folder = Path("outputs", name)
    if not (folder / "recipe.yml").is_file():
        recipe.load(name)  # its error names the recipes that there are
        raise ValueError(f"{name}: not run yet; {recipe.command('train', name)}")
    receipts = read_receipts(folder, name)
    history = read_log(folder)
    if not history and not receipts["train"] and not receipts["score"]:
        raise ValueError(f"{folder}: nothing was trained yet, there is no log and no receipt of it; {recipe.command('train', name)}")
    health = whole(folder / "health.jsonl")
    began = beginning(health, receipts)
    earlier = [s for s in STAGES[1:] if began and receipts[s] and moment(receipts[s]["made"]) < moment(began)]
    score = scores(receipts["score"], "score" in earlier)
    receipts |= dict.fromkeys(earlier)
    found = {"name": name, "run": f"{began or 'unknown'} {name}", "began": began, "recipe": recipe.read(folder / "recipe.yml")}
    found |= {
        "key": key(folder),
        "health": health,
        "data": hashes(folder),
        "stages": receipts,
        "earlier": earlier,
        "log": history,
        "score": score,
    }
    found |= {"state": state(folder, receipts, history), "verdict": causes.judge(history) if history else None}
    shown = score["stages"] if score else []
    return found | {"replies": rows_of(folder, "{}.jsonl", shown, name), "ten": rows_of(folder, "ten-{}.jsonl", shown, name)}


def read_receipts(folder, name):
    """{stage: receipt or None}. Raises ValueError naming every damaged one."""
    found, faults = {}, []
    for stage in STAGES:
        path = folder / f"{stage}.json"
        found[stage] = receipt.read(path)
        if path.exists() and (fault := damage(stage, found[stage])):
            faults.append(
                f"{path}: not a whole receipt ({fault}); `rm '{path}'`, then {recipe.command(MAKES.get(stage, stage), name)} makes it anew"
            )
    if faults:
        raise ValueError("; ".join(faults))
    return found


def damage(stage, made):
    """What is wrong with a receipt, or None."""
    if not isinstance(made, dict):
        return "not JSON" if made is None else "not a mapping"
    wrong = [*misfits(made, RECEIPT)] or [*misfits(made["figures"], FIGURES.get(stage, {}), "figures.")]
    for name, of in made["figures"]["stages"].items() if stage == "score" and not wrong else ():
        shape = SCORES | {k: INTERVAL for k, f in of.items() if k in words.CHECKS or isinstance(f, dict) and k != "ppl"}
        wrong += misfits(of, shape, f"figures.stages.{name}.")
    if wrong:
        return f"no sound {', '.join(wrong[:5])}"
    try:
        moment(made["made"])
    except ValueError:
        return f"made at {made['made']!r}"
    return None


def misfits(value, shape, at=""):
    """The places in nested mappings that lack what a shape asks for: {key: type or types or shape}."""
    if not isinstance(shape, dict):
        return [] if isinstance(value, shape) else [at.removesuffix(".")]
    if not isinstance(value, dict):
        return [at.removesuffix(".")]
    found = []
    for key, inner in shape.items():
        name = key.removesuffix(MAYBE)
        for k in value if key == EACH else [name] if name in value or name == key else []:
            found += misfits(value.get(k), inner, f"{at}{k}.")
    return found


def read_log(folder):
    """The run's log, or None where it left none. Raises ValueError for a damaged one."""
    return log.read(folder) if logs(folder) else None


def logs(folder):
    """The files of a run's folder that may hold its log."""
    written = [folder / "health.jsonl", folder / "adapter/trainer_state.json", *folder.glob("training/checkpoint-*/trainer_state.json")]
    return [p for p in written if p.is_file()]


def moment(text):
    """An ISO time with its zone; one without a zone is UTC."""
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def whole(path):
    """What a health.jsonl says beside its rows: the last `run` and the `end` line as one, `began` of the first."""
    found, began = {}, []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            kinds = json.loads(line) if line[:6] in ('{"run"', '{"end"') else {}
            if "run" in kinds:
                found = kinds["run"]
                began.append(found["began"])
            elif "end" in kinds:
                found |= kinds["end"]
        except (ValueError, TypeError, KeyError):  # a line half written
            continue
    return found | ({"began": began[0]} if began else {})


def beginning(health, receipts):
    """When the run began, ISO-UTC: as health.jsonl says, else by the train receipt, else the end of preprocessing, else None."""
    try:
        began = moment(health["began"])
    except (ValueError, TypeError, KeyError):
        began = None
    if not began and (made := receipts["train"]):
        began = moment(made["made"]) - timedelta(seconds=made["seconds"])
    if not began and (made := receipts["preprocess"]):
        began = moment(made["made"])
    return began.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if began else None


def state(folder, receipts, history):
    """Whether training finished, goes on, or stopped short. One that was killed minutes ago cannot be told from one that goes on."""
    if receipts["train"]:
        return "finished"
    written = [p.stat().st_mtime for p in (folder / "health.jsonl", folder / "logs/train.log") if p.is_file()]
    ended = history and history["ended"]
    return "running" if not ended and written and time.time() - max(written) < ALIVE else "stopped"


def scores(made, earlier):
    """The score figures; of an earlier run only what does not depend on it, the base's."""
    if not made:
        return None
    figures = made["figures"]
    stages = {s: figures["stages"][s] for s in SCORED if s in figures["stages"] and (s == "base" or not earlier)}
    tasks = {} if earlier else figures.get("tasks") or {}
    return figures | {"stages": stages, "tasks": tasks} if stages or tasks else None


def hashes(folder):
    """{path: sha256} of the data, chat template and DeepSpeed config that the run was made from."""
    path = folder / "data.sha256"
    return (
        dict(line.split("  ", 1)[::-1] for line in path.read_text(encoding="utf-8").splitlines() if "  " in line) if path.is_file() else {}
    )


def key(folder):
    """12 hex digits that change with the recipe's meaning or the bytes of its data: two runs of one key are the same run."""
    parts = [path.read_bytes() for name in ("recipe.yml", "data.sha256") if (path := Path(folder, name)).is_file()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def rows_of(folder, pattern, stages, name):
    """{stage: rows} of the reply files of the stages that were scored. Raises ValueError with the line that is damaged."""
    found = {}
    for stage in stages:
        path = folder / "eval" / pattern.format(stage)
        text = path.read_text(encoding="utf-8", errors="replace").rstrip("\n") if path.is_file() else ""
        lines = text.split("\n") if text else []  # a family without ten prompts has an empty file
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                row["prompt"] + row["reply"]
                found.setdefault(stage, []).append(row)
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{path}:{number}: not a reply as `make eval` writes it; {recipe.command('eval', name)} makes it anew") from None
    return found
