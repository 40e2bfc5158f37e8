"""health.jsonl, the watch's own record of a run: where it lies, how it is written, cut for a resumed run, and asked whether the run was stopped as dead."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path


def place(output_dir):
    """outputs/NAME/health.jsonl for our own layout, whose training folder is deleted to start anew; for a foreign recipe in its output_dir."""
    folder = Path(output_dir)
    ours = folder.name == "training" and folder.parent.parent.name == "outputs"
    return (folder.parent if ours else folder) / "health.jsonl"


def read(path):
    """The lines that are whole; a killed run may leave the last one cut. [] where there is no file."""
    found = []
    with suppress(FileNotFoundError):
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def begin(path, run, step):
    """Open the record of a run that goes on from `step` (0: a new one): what was written up to there stays, the line of this run follows."""
    kept = [line for line in read(path) if "run" in line or line.get("step", math.inf) <= step] if step else []
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}")
    tmp.write_text("".join(json.dumps(line) + "\n" for line in [*kept, {"run": run}]), encoding="utf-8")
    os.replace(tmp, path)
    return kept


def write(path, line):
    with open(path, "a", encoding="utf-8") as out:
        out.write(json.dumps(plain(line)) + "\n")


def plain(value):
    """As JSON knows it: NaN and the infinities as strings."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def dead(path):
    """The finding (with its "step", and the run's "steps") for which the last run was stopped as dead, or None."""
    steps, found = None, None
    for line in read(path):
        if "run" in line:
            steps, found = line["run"].get("steps"), None
        elif line.get("finding", {}).get("severity") == "dead":
            found = {**line["finding"], "step": line["step"], "steps": steps}
    return found
