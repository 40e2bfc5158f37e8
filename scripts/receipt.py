"""Receipts: `outputs/NAME/STAGE.json`, written last. No receipt, not done. Make's stamp, the provenance, and what reports read.

A receipt says what went in and came out (sha256), with which versions, on which machine, in how many seconds, at what peak memory, and the figures.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = [
    "axolotl",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "flash-attn",
    "accelerate",
    "sentencepiece",
    "scikit-learn",
]
START = time.time()


def write(path, inputs, outputs, figures, sha256):
    """Write the receipt of the stage that is now done.

    `inputs` and `outputs` are paths (files or folders), hashed with `sha256`; `figures` is what the stage measured.
    Seconds count from the start of this process; peak memory is the largest resident set of it or of a child.
    """
    path = Path(path)
    body = {
        "stage": path.stem,
        "recipe": path.parent.name,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - START, 3),
        "peak_memory_gib": round(peak_memory() / 2**30, 3),
        "inputs": {str(p): sha256(p) for p in inputs},
        "outputs": {str(p): sha256(p) for p in outputs},
        "figures": figures,
        "versions": versions(),
        "machine": machine(),
        "commit": commit(),
    }
    tmp = path.with_name(f".{path.name}.new")  # always the same name: the next receipt takes what a killed run left of it
    try:
        with open(tmp, "w", encoding="utf-8") as out:
            out.write(json.dumps(body, indent=2) + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(tmp, path)
    except OSError as error:  # a full disk; a write's own error names no file
        tmp.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    return body


def read(path):
    """The receipt as a dict, or None where there is none. A receipt that is not JSON is as good as none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def holds(path, sha256):
    """Whether all that a receipt names is there and as it says."""
    made = read(path)
    return bool(made) and all(Path(p).exists() and sha256(p) == digest for p, digest in (made["inputs"] | made["outputs"]).items())


def peak_memory():
    """Bytes: the largest resident set of this process or of any of its ended children (Linux counts KiB)."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def versions():
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def machine():
    model = ""
    try:
        model = next(line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": round(pages / 2**30, 1),
        "gpus": gpus(),
    }


def gpus():
    """Names of the NVIDIA GPUs that this process may use, asked of the driver: [] where there is none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not shutil.which("nvidia-smi"):
        return []
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    names = asked.stdout.split("\n")[:-1] if asked.returncode == 0 else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names if visible is None else names[: len(visible.split(","))]


def commit():
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return asked.stdout.strip() or None
