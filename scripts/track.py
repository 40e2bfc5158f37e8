"""Append what was predicted and what was measured of a finished run to reports/calibration/runs.jsonl, this machine's own record.

    python -m scripts.track pirate-nano       # after `make train`, which calls it

`make plan` prints how its predictions fared. A run that was resumed, or was trained on several nodes, has no whole time and is left out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from scripts import facts, files, process, receipt

RUNS = Path("reports/calibration/runs.jsonl")


def entry(made, told):
    """One line of the record from a train receipt and a plan."""
    figures = made["figures"]
    line = {
        "recipe": made["recipe"],
        "made": made["made"],
        "machine": made["machine"]["gpus"] or made["machine"]["cpu"],
        "ranks": figures["ranks"],
    }
    line |= {"minutes": round(made["seconds"] / 60, 2), "predicted_minutes": told["minutes"]}
    line |= {"steps": figures["steps"], "predicted_steps": told["steps"]}
    if (space := figures.get("gpu_memory_gib")) and "vram_gib" in told:
        line |= {"gib": space, "predicted_gib": {k: round(gib, 2) for k, gib in facts.allocated(told["vram_gib"]).items()}}
    return line


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.track NAME", file=sys.stderr)
        return 2
    made = receipt.read(f"outputs/{argv[0]}/train.json")
    if not made or made["figures"]["resumed_from_step"] or int(os.environ.get("NNODES") or 1) > 1:
        return 0
    gpus = made["machine"]["gpus"]
    asked = [sys.executable, "-m", "scripts.plan", argv[0], "--gpus", str(made["figures"]["ranks"]), "--json"]
    told = subprocess.run([*asked, *(["--gpu", facts.gpu_called(gpus[0])] if gpus else [])], capture_output=True, text=True)
    if told.returncode:
        raise ValueError(f"no prediction to hold the run to: {told.stderr.strip()}")
    RUNS.parent.mkdir(parents=True, exist_ok=True)
    before = RUNS.read_text(encoding="utf-8") if RUNS.exists() else ""
    with files.replacing(RUNS) as out:  # whole or not at all: on a full disk an appended line is cut, and `make plan` reads it
        out.write(before + json.dumps(entry(made, json.loads(told.stdout))) + "\n")
    return 0


if __name__ == "__main__":
    process.command(main)
