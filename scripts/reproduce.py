"""Run a recipe again from its receipts, in a clean folder, and explain every difference.

    python -m scripts.reproduce pirate-nano             # to the last stage that has a receipt
    python -m scripts.reproduce pirate-nano --to merge  # KEEP=1 keeps the folder

The clean folder holds the project as it was at the receipts' commit, the recipe as it was run (outputs/NAME/recipe.yml), the data byte for byte, and this machine's
packages and tool cache. There `make` does it all again. Ollama is left out: its model would take the place of the one that is there.
The same: the same bytes, but for what a file records of where and when it was written (`RECORDS`).
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from scripts import files, process, receipt, recipe
from scripts.runs import apart, gather, words

STAGES = ["preprocess", "train", "merge", "gguf", "modelfile"]
PARTS = ["Makefile", "pyproject.toml", "requirements", "recipes", "datasets", "modelfiles", "scripts"]  # what `make` needs
UNSET = "BASE NNODES NODE_RANK MASTER FORCE ASK MAKEFLAGS MFLAGS MAKEOVERRIDES DEBUG".split()  # the caller's choices are not the run's


def git(*args, **more):
    return subprocess.run(["git", *map(str, args)], capture_output=True, **more)


def lay_out(commit, tree):
    """The project in the folder `tree`: as at the receipts' commit, or else as it is here. Returns what it is, in words."""
    if commit and not commit.endswith("-dirty") and not git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
        archive = git("archive", commit, check=True).stdout
        subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
        said = f"commit {commit}"
    else:
        for part in PARTS:
            if Path(part).is_dir():
                shutil.copytree(part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif Path(part).exists():
                shutil.copy2(part, tree / part)
        why = f"commit {commit} is not in this clone" if commit and "-dirty" not in commit else f"made at {commit or 'no commit'}"
        said = f"the files as they are here ({why})"
    (tree / ".venv").symlink_to(Path(".venv").resolve())
    for path in (tree / "requirements").glob("*"):
        os.utime(path, (0, 0))  # the packages are taken as they are, and their versions compared
    return said


def holder(path, digest):
    """The newest commit whose `path` has these bytes, or None."""
    listed = git("log", "--all", "-n", 500, "--format=%h", "--", path, text=True).stdout.split()
    with tempfile.NamedTemporaryFile() as kept:
        for commit in listed:
            Path(kept.name).write_bytes(git("show", f"{commit}:{path}").stdout)
            if files.sha256(kept.name) == digest:
                return commit
    return None


def lost(name, path, digest):
    """One line on a file whose bytes are gone: which, and where they may be."""
    commit, now = holder(path, digest), files.sha256(path)[:12] if Path(path).is_file() else "gone"
    back = f"`git checkout {commit} -- {path}` brings them back" if commit else "no commit has them; put the file back from where it came"
    return f"{path}: no longer the bytes that {name} was made from ({digest[:12]}, now {now}); {back}"


def bring(name, made, tree):
    """Take the data as the receipts have it into `tree`. Raises ValueError naming every file whose bytes are gone. Returns those that the commit had not."""
    folder, faults, brought = Path("outputs", name), [], []
    read = {path: digest for one in made.values() for path, digest in one["inputs"].items()}
    changed = [p for s in ("recipe.yml", "data.sha256", "export.yml") if (p := f"{folder}/{s}") in read and files.sha256(p) != read[p]]
    wanted = {p: digest for p, digest in read.items() if not p.startswith(("outputs/", "/")) and not Path(p).is_dir()}
    if f"{folder}/data.sha256" not in changed:
        wanted |= gather.hashes(folder)
    for path, digest in wanted.items():
        here, there = Path(path), tree / path
        if there.is_file() and files.sha256(there) == digest:
            continue
        if here.is_file() and files.sha256(here) == digest:
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(here, there)
            brought.append(path)
        else:
            faults.append(lost(name, path, digest))
    if not faults:  # the list of the data's hashes changes with the data
        faults = [f"{p}: rewritten since {name} was made; put the recipe back as it was, or make it again first" for p in changed]
    if faults:
        raise ValueError("; ".join(faults))
    return brought


def pin(name, made, tree):
    """Write the recipe into `tree` as it was run: the snapshot, its quant types, and ranks that give the same global batch. A local base is linked."""
    folder, path = Path("outputs", name), tree / "recipes" / f"{recipe.split(name)[0]}.yml"
    cfg, export = recipe.read(folder / "recipe.yml"), recipe.read(folder / "export.yml")
    own = {k: v for k, v in recipe.read(path).items() if k.startswith("x_")} if path.is_file() else {}
    if "train" in made:
        one = int(cfg.get("micro_batch_size") or 1) * int(cfg.get("gradient_accumulation_steps") or 1)
        own["x_hardware"] = (own.get("x_hardware") or {}) | {"count": made["train"]["figures"]["global_batch"] // one}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(cfg | ({"export": export} if export else {}) | own, sort_keys=False, width=120), encoding="utf-8")
    base = Path(cfg["base_model"])
    if recipe.is_local(cfg) and not base.is_absolute() and not base.is_relative_to("outputs/nano"):
        (tree / base).parent.mkdir(parents=True, exist_ok=True)
        (tree / base).symlink_to(base.resolve())


def again(name, made, tree, stage):
    """`make` the stages in `tree`; its output goes to outputs/NAME/logs/reproduce.log. Raises ChildProcessError with the last line that says what went wrong."""
    quant = re.search(r"^QUANT=(.*)$", Path("outputs", name, "prompt.sha256").read_text(encoding="utf-8"), re.M)
    env = dict.fromkeys(UNSET, "") | {"QUANT": quant[1] if quant else "", "MAKELEVEL": "0"}
    env |= {"GPUS": str(made["train"]["figures"]["ranks"])} if "train" in made else {"GPUS": ""}
    said = []

    def follow(line, bar):
        said.extend([line] if not line.startswith("make") else [])
        bar.total, bar.n = len(made), sum((tree / "outputs" / name / f"{s}.json").exists() for s in made)
        bar.refresh()

    cmd = ["make", "-C", tree, stage, *recipe.words(name)]
    try:
        process.run(cmd, Path("outputs", name, "logs/reproduce.log"), f"reproduce {name}", env=env, follow=follow)
    except ChildProcessError as error:
        why = said[-1] if said else str(error)
        raise ChildProcessError(
            f"{why}; that was `make {stage}` in the clean folder, all of it is in outputs/{name}/logs/reproduce.log; KEEP=1 keeps the folder"
        ) from None


def judge(name, made, tree, commit):
    """Each stage against its receipt: [{"stage", "seconds": (then, now), "same", "aside", "apart", "figures", "why": [reasons]}]."""
    found, strayed = [], None
    for stage, then in made.items():
        now = receipt.read(tree / "outputs" / name / f"{stage}.json") | {"commit": commit}
        one = {"stage": stage, "seconds": (then["seconds"], now["seconds"])} | apart.outputs(then, now, Path("."), tree)
        one["why"] = apart.reasons(then, now)
        base = [p for p in then["inputs"] if p.startswith("outputs/nano/") and then["inputs"][p] != now["inputs"].get(p)]
        one["why"] += [f"{p} was {then['inputs'][p][:12]}, is {now['inputs'].get(p, 'none')[:12]}: another base" for p in base]
        if not one["same"] and strayed:
            one["why"].insert(0, f"it follows from {strayed}")
        strayed = strayed or (stage if not one["same"] else None)
        found.append(one)
    return found


def say(name, found, where):
    """A line a stage, each difference, and what may have made it."""
    for one in found:
        then, now = (words.seconds(s) for s in one["seconds"])
        aside = f", {' and '.join(one['aside'])} aside" if one["aside"] else ""
        print(f"{one['stage']:<12}{'bitwise the same' + aside if one['same'] else 'differs'}; {then} then, {now} now")
        for text in [*one["apart"], *one["figures"]]:
            print(f"{'':<12}{text}")
        known = one["why"] or ["nothing in versions, machine, commit or inputs: a sum's order under threads, or a seed that is not set"]
        if not one["same"] or one["figures"]:
            print(f"{'  because':<12}{'; '.join(known)}")
        elif one["why"]:
            print(f"{'  although':<12}{'; '.join(one['why'])}")
    print(f"reproduce   {name}: {sum(one['same'] for one in found)} of {len(found)} stages bitwise the same{where}")


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reproduce", description="run a recipe again from its receipts, in a clean folder"
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--to", choices=STAGES, help="the last stage to make (the last that has a receipt)")
    args = parser.parse_args(argv)
    name, folder, keep = args.name, Path("outputs", args.name), os.environ.get("KEEP") == "1"
    if not (folder / "recipe.yml").is_file():
        raise ValueError(f"{folder}: nothing was made under this name; `make status` lists what was")
    if (source := recipe.unscaled(name)) != name:
        raise ValueError(f"{name}: only scaled, exactly, from {source}; {recipe.command('reproduce', source)} runs that one again")
    receipts = gather.read_receipts(folder, name)
    until = args.to or next((s for s in reversed(STAGES) if receipts[s]), None)
    wanted = STAGES[: STAGES.index(until) + 1] if until else STAGES[:1]
    if lacking := [s for s in wanted if not receipts[s]]:
        raise ValueError(f"{folder}/{lacking[0]}.json: no receipt to reproduce; {recipe.command(lacking[0], name)} first")
    made = {s: receipts[s] for s in wanted}
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    tree = Path(tempfile.mkdtemp(prefix="galley-again-"))
    try:
        files.need_disk(tree, 1.2 * size)
        commit = (made.get("train") or made["preprocess"])["commit"]
        said = lay_out(commit, tree)
        brought = bring(name, made, tree)
        pin(name, made, tree)
        print(f"reproduce   {name} to {until}, from {said}" + (f"; {', '.join(brought)} as here" if brought else ""), flush=True)
        again(name, made, tree, until)
        found = judge(name, made, tree, said.removeprefix("commit ") if said.startswith("commit ") else receipt.commit())
        say(name, found, f"; the folder is {tree}" if keep else "")
    finally:
        if not keep:
            shutil.rmtree(tree, ignore_errors=True)
    return int(not all(one["same"] for one in found))


if __name__ == "__main__":
    process.command(main)
