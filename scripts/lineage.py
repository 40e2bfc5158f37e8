"""The chain from the data's bytes to the model in Ollama, a line a link, and whether it holds.

    python -m scripts.lineage pirate-nano             # exit 1 where a link is broken
    python -m scripts.lineage pirate-nano --json      # the same with whole hashes

Two things are proven. Each stage was made from what the one before it made: the sha256 that a receipt read is the one that the earlier receipt wrote.
And what is on disk is still that: every file and folder is hashed again. A running Ollama is asked which GGUF its model holds.
"""

import argparse
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts import data, files, process, receipt, recipe
from scripts.runs import gather, words

STAGES = ["base", "preprocess", "train", "merge", "gguf", "modelfile", "ollama"]


def receipts(name):
    """{stage: receipt or None} in the chain's order. Raises ValueError for a damaged one, or where nothing was made."""
    folder = Path("outputs", name)
    if not (folder / "recipe.yml").is_file():
        raise ValueError(f"{folder}: nothing was made under this name; `make status` lists what was")
    base, found = Path(f"{recipe.read(folder / 'recipe.yml')['base_model']}.json"), {}
    if base.is_relative_to("outputs/nano"):
        found["base"] = receipt.read(base)
        if base.exists() and (fault := gather.damage("base", found["base"])):
            raise ValueError(f"{base}: not a whole receipt ({fault}); `rm '{base}'`, then {recipe.command('base', name)} makes it anew")
    made = gather.read_receipts(folder, name)
    stages = {stage: made[stage] for stage in STAGES[1:]}
    if (source := recipe.unscaled(name)) != name:  # another run's adapter, scaled
        theirs = gather.read_receipts(Path("outputs", source), source)
        stages = {"preprocess": theirs["preprocess"], "train": theirs["train"], "strength": made["train"]} | {s: made[s] for s in STAGES[3:]}
    return found | stages


def place(name, stage):
    """(the path of a stage's receipt, the command that makes it)."""
    if stage == "base":
        return f"{recipe.read(f'outputs/{name}/recipe.yml')['base_model']}.json", recipe.command(stage, name)
    own = recipe.unscaled(name) if stage in ("preprocess", "train") else name
    stage = "train" if stage == "strength" else stage
    return f"outputs/{own}/{stage}.json", recipe.command(stage, own)


def broken(stage, path, expected, found, why, fix):
    return {"stage": stage, "path": path, "expected": expected, "found": found, "why": why, "fix": fix}


def verb(one, path):
    return "wrote" if one and path in one["outputs"] else "read"


def hashes(name, made):
    """({path: (sha256, the stage that says so)}, breaks between one receipt and the next)."""
    known, breaks = {}, []
    for stage, one in made.items():
        for path, digest in one["inputs"].items() if one else ():
            said, by = known.setdefault(path, (digest, stage))
            if said != digest:
                why = f"{stage} read it as {digest[:12]}, {by} {verb(made[by], path)} {said[:12]}"
                breaks.append(broken(stage, path, said, digest, why, place(name, stage)[1]))
        known |= {path: (digest, stage) for path, digest in one["outputs"].items()} if one else {}
    snapshot = Path("outputs", name, "data.sha256")  # beside the data, the chat template and the DeepSpeed config
    if snapshot.exists() and known.get(str(snapshot), [None])[0] == files.sha256(snapshot):
        known |= {path: (digest, "train") for path, digest in gather.hashes(snapshot.parent).items() if path not in known}
    return known, breaks


def digests(paths):
    """{path: sha256 of what is on disk, or None where it is gone}. An 8B chain has 60 GB: with a bar, and several files at a time."""
    from tqdm import tqdm

    sizes = {p: sum(f.stat().st_size for f in (Path(p).rglob("*") if Path(p).is_dir() else [Path(p)]) if f.is_file()) for p in paths}
    bar = tqdm(
        total=sum(sizes.values()), desc=f"{'hashing':<28}", unit="B", unit_scale=True, delay=2, leave=False, disable=not sys.stderr.isatty()
    )
    with bar, ThreadPoolExecutor(4) as pool:
        found = {}
        for path, digest in zip(paths, pool.map(lambda p: files.sha256(p) if Path(p).exists() else None, paths)):
            found[path] = digest
            bar.update(sizes[path])
    return found


def fix(name, stage, path, made):
    """What to do about a file or folder that is not what a receipt says."""
    if path == f"outputs/{name}/recipe.yml":
        return f"the recipe says something else by now: {recipe.command('train', name)} trains it, or put recipes/{name.split('+')[0]}.yml back"
    if verb(made[stage], path) == "wrote":
        where, command = place(name, stage)
        return f"`rm '{where}'` and {command} make it anew"
    commit = (made[stage] or {}).get("commit") or "-dirty"
    back = (
        "put it back as it was"
        if path.startswith(("outputs/", "/")) or commit.endswith("-dirty")
        else f"`git checkout {commit} -- {path}` puts it back"
    )
    return f"{back}, or {recipe.command('train', name)} takes what is there now"


def on_disk(name, known, made):
    """(breaks between a receipt and the disk, how many hashes were compared)."""
    breaks, now = [], digests(list(known))
    for path, (digest, stage) in known.items():
        if now[path] != digest:
            why = f"{stage} {verb(made[stage], path)} {digest[:12]}, " + (f"on disk is {now[path][:12]}" if now[path] else "it is gone")
            breaks.append(broken(stage, path, digest, now[path], why, fix(name, stage, path, made)))
    return breaks


def gaps(name, made):
    """Breaks where a stage has no receipt though a later one has."""
    last = max((n for n, one in enumerate(made.values()) if one), default=0)
    missing = [s for s in list(made)[:last] if not made[s]]
    return [broken(s, (at := place(name, s))[0], None, None, "no receipt, though later stages have one", at[1]) for s in missing]


def in_ollama(name, done):
    """(what the running Ollama says of the model, breaks). `/api/show` names the model's weights by their sha256: the GGUF's own."""
    import httpx

    model, url, breaks = done["figures"].get("model"), process.ollama_url(), []
    try:
        held = {m["name"].removesuffix(":latest"): m["digest"] for m in httpx.get(f"{url}/api/tags", timeout=3).json()["models"] or []}
        shown = httpx.post(f"{url}/api/show", json={"model": model}, timeout=30).json().get("modelfile", "") if model in held else ""
    except (httpx.HTTPError, ValueError, KeyError, AttributeError):
        return f"as recorded; no Ollama runs at {url} to be asked", []
    if model not in held:
        return f"as recorded; the Ollama at {url} has no model of that name", []
    weights = (re.findall(r"sha256-([0-9a-f]{64})", shown) or [None])[0]
    gguf = next((digest for path, digest in done["inputs"].items() if path.endswith(".gguf")), None)
    for what, expected, found in (("model", done["figures"].get("digest"), held[model]), ("weights in Ollama", gguf, weights)):
        if expected != found:
            why = f"the {what}: {str(expected)[:12]} was proven, Ollama at {url} has {str(found)[:12]}"
            breaks.append(broken("ollama", model, expected, found, why, recipe.command("ollama", name)))
    return f"the Ollama at {url} has {'another one' if breaks else 'this very one'}", breaks


def links(name, made, known):
    """[{"stage", "path", "sha256", "rows", "made", "seconds", "commit", "machine"}] from the data to Ollama; the last four are of the stage's receipt."""

    def link(stage, path, digest, one=None, rows=None):
        return {"stage": stage, "path": path, "sha256": digest, "rows": rows} | {
            k: (one or {}).get(k) for k in ("made", "seconds", "commit", "machine")
        }

    cfg, folder, found = recipe.read(f"outputs/{name}/recipe.yml"), f"outputs/{name}", []
    sets = [str(p) for kind in recipe.datasets(cfg) for p in kind]
    for path in dict.fromkeys([*sets, *gather.hashes(Path(folder))]):
        rows = data.view(path, "{}")["count"] if path in sets and Path(path).is_file() else None
        found.append(link("data", path, known.get(path, [None])[0], rows=rows))
    found.append(link("recipe", f"{folder}/recipe.yml", known.get(f"{folder}/recipe.yml", [None])[0]))
    base = str(cfg["base_model"])  # one of the hub is a folder of its cache by the time of the merge
    here = [base, *(p for p in (made["merge"] or {"inputs": ()})["inputs"] if p != f"{folder}/adapter")]
    found.append(link("base", base, next((known[p][0] for p in here if p in known), None), made.get("base")))
    for stage in [s for s in made if s not in ("base", "ollama")]:
        found += [link(stage, path, digest, made[stage]) for path, digest in made[stage]["outputs"].items()] if made[stage] else []
    if made["ollama"]:
        found.append(link("ollama", made["ollama"]["figures"].get("model"), made["ollama"]["figures"].get("digest"), made["ollama"]))
    return found


def cells(name, row):
    """A link as text: stage, path, short hash, time or rows, seconds, commit, machine."""
    line = [row["stage"], str(row["path"]).removeprefix(f"outputs/{name}/"), (row["sha256"] or "-")[:12]]
    if row["rows"]:
        return [*line, f"{row['rows']:,} rows"]
    return (
        [*line, row["made"][:16].replace("T", " "), words.seconds(row["seconds"]), row["commit"] or "none", words.machine(row)]
        if row["made"]
        else line
    )


def say(name, rows, breaks, end, compared):
    """The table, then what is broken on stderr, or that all holds."""
    table = [["lineage", name, "sha256", "made (UTC)", "took", "commit", "machine"], *(cells(name, row) for row in rows)]
    wide = [10, *(max(len(line[n]) for line in table if len(line) > n) for n in range(1, 7))]
    bad, before = {b["path"] for b in breaks}, None
    for line, row in zip(table, [None, *rows]):
        text = "  ".join(f"{cell:<{w}}" for cell, w in zip(["" if line[0] == before else line[0], *line[1:]], wide)).rstrip()
        print(f"\033[31m{text}\033[0m" if sys.stdout.isatty() and row and row["path"] in bad else text)
        before = line[0]
    print(f"ends        {end}")
    for b in breaks:
        print(f"broken      {b['stage']}: {b['path']}: {b['why']}; {b['fix']}", file=sys.stderr)
    if not breaks:
        print(f"holds       {compared} hashes: each stage was made from what the one before it made, and all of it is still on disk")


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.lineage", description="the chain from the data's bytes to the model in Ollama")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="{name, links, breaks, end}, whole hashes")
    args = parser.parse_args(argv)
    made = receipts(args.name)
    known, breaks = hashes(args.name, made)
    breaks = gaps(args.name, made) + breaks + on_disk(args.name, known, made)
    rows = links(args.name, made, known)
    order = [stage for stage in made if stage != "base"]
    done = [stage for stage in order if made[stage]]
    following = order[order.index(done[-1]) + 1 :] if done else order
    if following:
        end = f"{'with ' + done[-1] if done else 'before it began'}; next is {place(args.name, following[0])[1]}"
    else:
        said, others = in_ollama(args.name, made["ollama"])
        breaks, end = breaks + others, f"in Ollama: {said}"
    if args.json:
        print(json.dumps({"name": args.name, "links": rows, "breaks": breaks, "end": end}, indent=2))
    else:
        say(args.name, rows, breaks, end, len(known))
    return int(bool(breaks))


if __name__ == "__main__":
    process.command(main)
