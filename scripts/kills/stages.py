"""The stages that are to be killed: a scratch repository for them, what each makes, an older version of it, and how things stand after a kill."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from scripts import files, receipt

NAME, OUT, KEPT = "pirate-nano", Path("outputs/pirate-nano"), Path("kept")
PLACE = {
    "preprocess": OUT / "prepared",
    "train": OUT / "adapter",
    "merge": OUT / "merged",
    "gguf": OUT / "gguf",
    "modelfile": OUT / "gguf/Modelfile",
    "ollama": None,  # in the server
}
ORDER = list(PLACE)
FOLDERS = (OUT, OUT / "gguf", OUT / "training")  # where names come and go
SNAPSHOTS = ["recipe.yml", "data.sha256", "export.yml", "prompt.sha256"]
SOURCES = ["Makefile", "pyproject.toml", "requirements", "recipes", "datasets", "modelfiles", "scripts"]


def scratch(folder, cut=True):
    """Copy what the stages read to a folder, the data cut to 48 rows: 12 steps, a checkpoint every other one; or the finished outputs as well."""
    for item in SOURCES:
        (shutil.copytree if Path(item).is_dir() else shutil.copy2)(item, folder / item)
    (folder / ".venv").symlink_to(Path(".venv").resolve())
    (folder / "tmp").mkdir()
    if not cut:
        shutil.copytree("outputs/nano", folder / "outputs/nano")
        for place in (folder / OUT, folder / KEPT):
            shutil.copytree(OUT, place)
        return
    for name, rows in (("train", 48), ("eval", 8)):
        path = folder / f"datasets/pirate/{name}.jsonl"
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]), encoding="utf-8")
    path = folder / f"recipes/{NAME}.yml"
    path.write_text(re.sub(r"(?m)^saves_per_epoch:.*", "saves_per_epoch: 3", path.read_text(encoding="utf-8")), encoding="utf-8")


def keep():
    """Put a copy of the undisturbed run's outputs aside."""
    shutil.copytree(OUT, KEPT)


def models(url):
    """{name: digest} of what the Ollama server holds."""
    import httpx

    return {m["name"]: m["digest"] for m in httpx.get(f"{url}/api/tags", timeout=30).json()["models"]}


def made(stage, url):
    """What stands in the stage's place: {name: digest}, or None. A trainer's state holds its seconds, so it never comes out the same twice."""
    if stage == "ollama":
        return {k: v for k, v in models(url).items() if k == f"{NAME}:latest"} or None
    place = PLACE[stage]
    if not place.exists():
        return None
    inside = place.rglob("*") if place.is_dir() else [place]
    beside = {"trainer_state.json"} | ({"Modelfile"} if stage == "gguf" else set())
    return {str(p.relative_to(OUT)): files.sha256(p) for p in inside if p.is_file() and p.name not in beside}


def drop(stage, url):
    """Take away what the stage made, and its receipt."""
    (OUT / f"{stage}.json").unlink(missing_ok=True)
    if stage == "train":
        shutil.rmtree(OUT / "training", ignore_errors=True)
    if stage == "ollama":
        import httpx

        httpx.request("DELETE", f"{url}/api/delete", json={"model": NAME}, timeout=30)
    elif PLACE[stage].is_dir():
        shutil.rmtree(PLACE[stage])
    else:
        PLACE[stage].unlink(missing_ok=True)


def age(stage, url):
    """Turn what the stage made into an older version: another, whole, with a receipt that holds but is older than what it was made from."""
    if stage == "ollama":
        import httpx

        asked = {"model": NAME, "from": NAME, "parameters": {"temperature": 0.123}, "stream": False}
        httpx.post(f"{url}/api/create", json=asked, timeout=60).raise_for_status()
        return
    path = OUT / f"{stage}.json"
    body = receipt.read(path)
    for out in map(Path, body["outputs"]):
        with open(next(iter(sorted(out.rglob("*.json"))), out / "older") if out.is_dir() else out, "ab") as f:
            f.write(b"\n")
        body["outputs"][str(out)] = files.sha256(out)
    path.write_text(json.dumps(body), encoding="utf-8")
    os.utime(path, (1, 1))
    if stage == "train":
        shutil.rmtree(OUT / "training")


def back_to(stage, url):
    """The outputs as the undisturbed run had them before the stage."""
    before = ORDER[: ORDER.index(stage)]
    shutil.rmtree(OUT)
    OUT.mkdir()
    places = [PLACE[s].relative_to(OUT) for s in before] + ([Path("training")] if "train" in before else [])
    for part in [*SNAPSHOTS, *(f"{s}.json" for s in before), *places]:
        if (KEPT / part).is_dir():
            shutil.copytree(KEPT / part, OUT / part, dirs_exist_ok=True)
        else:
            shutil.copy2(KEPT / part, OUT / part)
    drop(stage, url)


def stands(stage, reference, old, url):
    """nothing, old, new or half: what is in the stage's place."""
    now = made(stage, url)
    return "nothing" if now is None else "new" if now == reference else "old" if now == old else "half"


def beside(stage):
    """Where the old work waits between the two renames that bring the new."""
    return PLACE[stage].with_name(f".{PLACE[stage].name}.old")


def unsound():
    """Receipts that do not hold."""
    return [p.name for p in sorted(OUT.glob("*.json")) if not receipt.holds(p, files.sha256)]


def status(stage):
    """What `make status` says of the stage: stands, stale or -."""
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    told = subprocess.run(["make", "status"], capture_output=True, text=True, env=env)
    rows = [line.split() for line in told.stdout.splitlines() if line.startswith(f"{NAME} ")]
    if told.returncode or not rows:
        raise ValueError(f"make status fails: {told.stderr.strip()[-200:]}")
    return rows[0][1 + ORDER.index(stage)]
