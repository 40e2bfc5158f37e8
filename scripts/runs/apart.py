"""How far two makings of a stage are apart, and what may be the reason: the same recipe run twice, here or on two machines.

    from scripts.runs import apart
    found = apart.outputs(then, now, Path("."), Path("/tmp/clean"))      # two receipts, and the folders that their paths are of
    apart.reasons(then, now)

The same are the same bytes, but for what a file records of where and when it was written (`RECORDS`).
"""

import json
import math
import re
from pathlib import Path

from scripts import files

CLOCK = re.compile(r"runtime|per_second|seconds|memory|_per_s\b|_per_s$|step_s$|tokens/")
RECORDS = {  # a file that is the same but for one thing, and that thing in words
    "state.json": ("the data files' paths and times", lambda of: {k: v for k, v in of.items() if k != "_fingerprint"}),
    "trainer_state.json": ("clock times", lambda of: clockless(of)),
    "adapter_config.json": ("the order of a set", lambda of: of | {"target_modules": sorted(of.get("target_modules") or [])}),
}


def clockless(value):
    """Without what a clock or a memory counter said."""
    if isinstance(value, dict):
        return {k: clockless(v) for k, v in value.items() if not CLOCK.search(k)}
    return [clockless(v) for v in value] if isinstance(value, list) else value


def outputs(then, now, here, there):
    """What two receipts of a stage made: {"same": bool, "aside": [what was set aside], "apart": [differences in words], "figures": [the same of figures]}.

    `here` and `there` are the folders that the receipts' paths are of. What is no longer on disk as the receipt says is compared by its sha256 alone.
    """
    found = {"aside": [], "apart": []}
    for path in dict.fromkeys([*then["outputs"], *now["outputs"]]):
        old, new = then["outputs"].get(path), now["outputs"].get(path)
        name = Path(path).name
        if not old or not new:
            found["apart"].append(f"{name} was made {'then' if old else 'now'} only")
        elif old != new and not ((here / path).exists() and files.sha256(here / path) == old):
            found["apart"].append(f"{name}: sha256 {old[:12]} then, {new[:12]} now; what was made then is no longer on disk to look closer")
        elif old != new:
            closer(here / path, there / path, found)
    found["aside"] = sorted(set(found["aside"]))
    return found | {"same": not found["apart"], "figures": figures(then["figures"], now["figures"])}


def closer(one, other, found):
    """Compare two files, or two folders file by file."""
    names = {p.relative_to(f) for f in (one, other) for p in f.rglob("*") if p.is_file()} if one.is_dir() else {Path()}
    for name in sorted(names):
        a, b = one / name, other / name
        if not a.exists() or not b.exists():
            found["apart"].append(f"{a.name} was made {'then' if a.exists() else 'now'} only")
        elif files.sha256(a) != files.sha256(b):
            what, rest = RECORDS.get(a.name, (None, None))
            if what and rest(json.loads(a.read_text(encoding="utf-8"))) == rest(json.loads(b.read_text(encoding="utf-8"))):
                found["aside"].append(what)
            else:
                found["apart"].append(distance(a, b))


def distance(a, b):
    """How far two files are apart, in words: weights by their largest and their relative difference, all else by size."""
    if a.suffix != ".safetensors":
        was, is_ = a.stat().st_size, b.stat().st_size
        return f"{a.name}: other bytes, {was:,} of them" if was == is_ else f"{a.name}: {was:,} bytes then, {is_:,} now"
    from safetensors import safe_open

    largest, off, norm = 0.0, 0.0, 0.0
    with safe_open(a, framework="pt") as x, safe_open(b, framework="pt") as y:
        if odd := sorted(set(x.keys()) ^ set(y.keys())):
            return f"{a.name}: {len(odd)} tensors are in one of them only (first: {odd[0]})"
        for key in x.keys():
            old, new = x.get_tensor(key).double(), y.get_tensor(key).double()
            if old.shape != new.shape:
                return f"{a.name}: {key} was {tuple(old.shape)}, now {tuple(new.shape)}"
            delta = new - old
            largest, off, norm = max(largest, delta.abs().max().item()), off + delta.norm().item() ** 2, norm + old.norm().item() ** 2
    return f"{a.name}: max |Δ| {largest:.1e}, ‖Δ‖/‖W‖ {math.sqrt(off / norm) if norm else math.inf:.1e}"


def figures(then, now):
    """The figures that differ, without those of a clock: `eval_losses 4.944 then, 4.951 now` (of a list its last that differs)."""
    found = []
    for key in dict.fromkeys([*then, *now]):
        old, new = then.get(key), now.get(key)
        if old == new or CLOCK.search(key):
            continue
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            at = max(n for n in range(len(old)) if old[n] != new[n])
            key, old, new = f"{key}[{at}]", old[at], new[at]
        found.append(f"{key} {short(old)} then, {short(new)} now")
    return found


def short(value):
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)[:60]


def reasons(then, now):
    """What of versions, machine, commit, ranks and resuming differs between two receipts, in words."""
    found, was, is_ = [], then["machine"], now["machine"]
    for name in dict.fromkeys([*then["versions"], *now["versions"]]):
        old, new = then["versions"].get(name, "none"), now["versions"].get(name, "none")
        found += [f"{name} {old} then, {new} now"] if old != new else []
    if was.get("cpu") != is_.get("cpu"):
        found.append(f"{was.get('cpu')} then, {is_.get('cpu')} now: other vector instructions add in another order")
    if was.get("cores") != is_.get("cores"):
        found.append(
            f"{was.get('cores')} cores then, {is_.get('cores')} now: as many threads share a sum, and each split rounds its own way"
        )
    if was.get("gpus") != is_.get("gpus"):
        found.append(f"{listed(was.get('gpus'))} then, {listed(is_.get('gpus'))} now")
    if then["commit"] != now["commit"]:
        found.append(f"commit {then['commit'] or 'unknown'} then, {now['commit'] or 'unknown'} now")
    for key, said in (("ranks", "ranks"), ("global_batch", "sequences a step")):
        old, new = then["figures"].get(key), now["figures"].get(key)
        found += [f"{old} {said} then, {new} now: gradients are summed in another order"] if old != new else []
    for one, when in ((then, "then"), (now, "now")):
        if step := one["figures"].get("resumed_from_step"):
            found.append(f"{when} it went on from the checkpoint of step {step}")
    return found


def listed(gpus):
    return ", ".join(f"{gpus.count(g)} × {g}" for g in dict.fromkeys(gpus)) if gpus else "no GPU"
