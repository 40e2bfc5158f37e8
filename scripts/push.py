"""Publish a model: adapter, merged weights and GGUF files with their cards on the Hugging Face Hub, and the model in Ollama on Ollama's registry.

    python -m scripts.push pirate --to user/Llama-pirate            # a dry run: file by file what would be sent where, and what is missing
    python -m scripts.push pirate --to user/Llama-pirate --go       # sends it; after an interruption the same command goes on

Three repositories: user/NAME (adapter), user/NAME-merged, user/NAME-GGUF. Nothing is sent unless the chain of receipts holds from the data's bytes to
the file that is sent, and the base's licence is met. HF_ENDPOINT names another hub, OLLAMA_REGISTRY another registry.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

from scripts import files, process, recipe
from scripts.runs import gather
from scripts.sending import card, hub, licence, registry

WHAT = ("adapter", "merged", "gguf", "ollama")
NEEDS = {
    "adapter": ["train"],
    "merged": ["merge"],
    "gguf": ["gguf", "modelfile"],
    "ollama": ["gguf", "modelfile"],
}  # receipts; registry.faults tells of Ollama's
CALLED = {"train": "adapter", "merge": "merged model", "gguf": "GGUF", "modelfile": "Modelfile"}
BEFORE = ["data", "recipe", "base", "preprocess", "train", "merge", "gguf", "modelfile", "ollama"]  # the stages, as lineage names them
LAST = {"adapter": "train", "merged": "merge", "gguf": "modelfile", "ollama": "ollama"}
PRIVATE_TO_US = {"trainer_state.json"}  # the log of the run, with this machine's paths in it
SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
MIB = 2**20


def checked(to):
    """user/name, as the hub and Ollama take it. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]{0,79}", to or "") or re.search(r"--|\.\.|[-.]$|\.git$", to):
        raise ValueError(f"TO={to}: not user/name; your name on the hub and the model's, in letters, digits and - _ .: TO=ann/Llama-pirate")
    return to


def broken(name, what):
    """Sentences on each link of the receipt chain, up to what is sent, that does not hold. The judge is `make receipt`'s own."""
    seen = sys.stderr.isatty()  # where there is somebody to see it, its bar: an 8B chain takes a minute to hash
    asked = subprocess.run(
        [sys.executable, "-m", "scripts.lineage", name, "--json"],
        stdout=subprocess.PIPE,
        stderr=None if seen else subprocess.PIPE,
        text=True,
    )
    if not asked.stdout:
        raise ValueError("nothing was sent, the receipts cannot be read: " + ("see above" if seen else asked.stderr.strip()))
    upto = max(BEFORE.index(LAST[kind]) for kind in what)
    return [f"{b['path']}: {b['why']}; {b['fix']}" for b in json.loads(asked.stdout)["breaks"] if BEFORE.index(b["stage"]) <= upto]


def entry(path, source, digest=None):
    """A file to be sent: {"path" in the repository, "source": Path or bytes, "size", "sha256"}."""
    if isinstance(source, bytes):
        return {"path": path, "source": source, "size": len(source), "sha256": hashlib.sha256(source).hexdigest()}
    return {"path": path, "source": source, "size": source.stat().st_size, "sha256": digest or files.sha256(source)}


def folder_entries(folder, digest):
    """The files of a folder that a receipt names, each with its own hash; that they add up to the receipt's is checked. Raises ValueError."""
    from tqdm import tqdm

    found = sorted(p for p in folder.rglob("*") if p.is_file())
    with tqdm(found, desc=f"{'hashing':<28}", delay=2, leave=False, disable=not sys.stderr.isatty()) as bar:
        made = [entry(p.relative_to(folder).as_posix(), p) for p in bar]
    if hashlib.sha256("".join(f"{e['sha256']}  {e['path']}\n" for e in made).encode()).hexdigest() != digest:
        raise ValueError(f"{folder}: it changed while it was read; run the same command again")
    return [e for e in made if e["path"] not in PRIVATE_TO_US]


def model_entries(kind, found):
    """What of outputs/NAME goes into a repository, card and licence apart."""
    folder, stages = Path("outputs", found["name"]), found["stages"]
    if kind == "gguf":
        text = folder / "gguf/Modelfile"
        return [
            *(entry(Path(p).name, Path(p), digest) for p, digest in stages["gguf"]["outputs"].items()),
            entry("Modelfile", text),
            *parts(text),
        ]
    [(path, digest)] = stages[NEEDS[kind][0]]["outputs"].items()
    return [named(e, found) for e in folder_entries(Path(path), digest)]


def parts(modelfile):
    """The Modelfile's TEMPLATE, SYSTEM and PARAMETERs as the files that `ollama run hf.co/user/name` reads (huggingface.co/docs/hub/ollama)."""
    said = recipe.read_modelfile(modelfile)
    made = [entry(word, said[word].encode()) for word in ("template", "system") if said.get(word)]
    numbers = {k: [number(v) for v in values] for k, values in said["parameters"].items()}
    params = {k: v if k == "stop" else v[-1] for k, v in numbers.items()}
    return [*made, entry("params", (json.dumps(params, indent=2) + "\n").encode())] if params else made


def number(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def named(e, found):
    """An adapter_config.json that names a folder of this machine as its base names the hub's instead: nobody else has the folder."""
    base = licence.base_id(found["name"], found["recipe"])
    if e["path"] != "adapter_config.json" or not base or not recipe.is_local(found["recipe"]):
        return e
    said = json.loads(e["source"].read_text(encoding="utf-8"))
    return entry(e["path"], (json.dumps(said | {"base_model_name_or_path": base}, indent=2) + "\n").encode())


def parcels(found, to, what, asked):
    """([{"kind", "repo", "files"}] of the repositories, sentences on what is missing)."""
    made, missing = [], []
    terms = [entry(path, source) for path, source in licence.texts(found["name"], found["recipe"], asked).items()] if asked else []
    terms += [entry("NOTICE", licence.notice(asked))] if asked.get("notice") else []
    for kind in what:
        lacking = [s for s in NEEDS[kind] if not found["stages"][s]]
        missing += [f"no {CALLED[s]} yet: {recipe.command(s, found['name'])}" for s in lacking]
        if kind != "ollama" and not lacking and asked:
            readme = entry("README.md", card.write(kind, to, found, asked, what))
            made.append({"kind": kind, "repo": card.repo(kind, to), "files": [readme, *terms, *model_entries(kind, found)]})
    return made, list(dict.fromkeys(missing))


def lacks(found, to, what, asked, made, secret):
    """Sentences on all that keeps this from being sent, apart from what has not been made."""
    name, cfg, wrong = found["name"], found["recipe"], []
    base = licence.base_id(name, cfg)
    if not asked:
        wrong.append(f"the licence of {base or cfg['base_model']} is not known: add it to `licences:` in recipes/facts/bases.yml")
    elif fault := licence.name_fault(to, asked):
        wrong.append(fault)
    if asked.get("copy") and not licence.texts(name, cfg, asked):
        get = f'`hf download {base} --include "LICENSE*" "USE_POLICY*"`, or put it at recipes/facts/{asked["id"]}.txt'
        wrong.append(f"the text of the {asked['name']}, which must go with the weights: {get}")
    for parcel in made:
        for e in parcel["files"]:
            body = e["source"] if isinstance(e["source"], bytes) else e["source"].read_bytes() if e["size"] < 20 * MIB else b""
            if SECRET.search(body) or secret and secret.encode() in body:
                wrong.append(f"{parcel['repo']}/{e['path']} would hold a token; delete it where it comes from, and revoke it")
    if set(what) - {"ollama"}:
        wrong += [] if secret else [f"no token for the hub: {hub.LOOKED}"]
        wrong += ["HF_HUB_OFFLINE is set: unset it"] if hub.offline() else []
    if "ollama" in what and found["stages"]["gguf"] and found["stages"]["modelfile"]:
        make = recipe.command("ollama", name)
        wrong += registry.faults(process.ollama_url(), found["stages"]["ollama"], to, recipe.family(name), make)
    return wrong


def other_scores(found):
    """Whether the scores are of other files than those that are sent; cards then leave them out."""
    of = found["stages"]["score"]
    made = {p: d for s in ("train", "merge", "gguf", "modelfile") if found["stages"][s] for p, d in found["stages"][s]["outputs"].items()}
    return bool(of) and any(made.get(p, d) != d for p, d in of["inputs"].items())


def say(name, to, what, made, asked, digest, left, missing, args):
    """File by file what goes where, under which licence, and what is missing."""
    print(f"push        {name}: " + ("sending" if args.go else "a dry run, nothing is sent; GO=1 sends it"))
    if asked:
        print(f"licence     {asked['name']}, {asked['link']}")
    for parcel in made:
        size = sum(e["size"] for e in parcel["files"]) / MIB
        seen = "private" if args.private else "public"
        print(f"{parcel['kind']:<12}{hub.endpoint()}/{parcel['repo']} ({seen}, if new): {len(parcel['files'])} files, {size:,.1f} MiB")
        for e in parcel["files"]:
            source = "written for it" if isinstance(e["source"], bytes) else e["source"]
            print(f"            {e['path']:<34}{e['size'] / MIB:>10,.2f} MiB  {e['sha256'][:12]}  {source}")
    if "ollama" in what:
        print(
            f"ollama      {recipe.ollama_name(name)} → {registry.page(to)} (public): the model that `make ollama` proved, {digest or 'not made yet'}"
        )
    if left:
        print(f"left out    {left}")
    for line in missing:
        print(f"missing     {line}")


def deliver(name, to, what, made, secret, private):
    """Send it all under one bar; returns the addresses. Raises ValueError with one line, without the token."""
    from tqdm import tqdm

    model, url = recipe.ollama_name(name), process.ollama_url()
    with tqdm(desc=f"{'sending':<12}", unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty()) as bar:
        try:
            api, at = hub.client(secret), None
            for parcel in made:
                at = parcel["repo"]
                parcel["new"] = hub.prepare(api, at, parcel["files"], private)
            bar.reset(sum(e["size"] for p in made for e in p["new"]) + (registry.layers(url, model) if "ollama" in what else 0))
            for parcel in made:
                at = parcel["repo"]
                if parcel["new"]:
                    hub.send(api, at, parcel["new"], bar, f"{parcel['kind']} of {name}, sent by Galley")
        except Exception as error:
            raise ValueError(hub.told(error, at, secret)) from None
        if "ollama" in what:
            registry.push(url, model, to, bar)
    return [f"{hub.endpoint()}/{p['repo']}" for p in made] + ([registry.page(to)] if "ollama" in what else [])


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.push", description="publish a model on the hub and Ollama's registry")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--to", required=True, metavar="USER/NAME")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, metavar="WHAT", help=" ".join(WHAT))
    parser.add_argument("--go", action="store_true", help="send it")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    args = parser.parse_args(argv)
    name, to, what = args.name, checked(args.to), [kind for kind in WHAT if kind in args.what]
    found, secret = gather.run(name), hub.token()
    if breaks := broken(name, what):
        raise ValueError("nothing was sent, the chain of receipts does not hold: " + "; ".join(breaks))
    asked, left = licence.of(name, found["recipe"]), None
    if other_scores(found):
        found["score"], left = None, f"the scores, which are of other files than these; {recipe.command('eval', name)}"
    made, missing = parcels(found, to, what, asked)
    missing += lacks(found, to, what, asked, made, secret)
    if args.private and "ollama" in what:
        missing.append('a way to keep it private: Ollama\'s registry has none; PRIVATE=1 WHAT="adapter merged gguf"')
    if args.go and missing:
        raise ValueError("nothing was sent; missing: " + "; ".join(missing))
    digest = ((found["stages"]["ollama"] or {"figures": {}})["figures"].get("digest") or "")[:12]
    say(name, to, what, made, asked, digest, left, missing, args)
    if args.go:
        places = deliver(name, to, what, made, secret, args.private)
        for p in made:
            print(
                f"{p['kind']:<12}sent {len(p['new'])} of {len(p['files'])} files, {sum(e['size'] for e in p['new']):,} bytes; the others stood there"
            )
        print(f"push        {' '.join(places)}")
    return 0


if __name__ == "__main__":
    process.command(main)
