"""A recipe's model at every stage, behind one interface: replies to conversations, and where there are weights the likelihood of the reference replies.

    paths = check("pirate-nano", "merged", cfg)                  # what is scored there; ValueError where it does not stand
    with opened("pirate-nano", "merged", cfg) as (replies, likelihood):
        replies(conversations, options(modelfile), tick)         # [(text, whether it ended by itself, tokens), …]
        likelihood(rows, tick)                                   # [(nll of the reply tokens in nats, how many), …]; None without weights

`tick(n)` is called as replies come. base and merged are read as they are, the adapter on the base as training rounded it, the GGUF by llama-server;
Ollama is asked as anybody asks it.
"""

import functools
from pathlib import Path

from scripts import files, receipt, recipe

WEIGHTS, SERVED = ("base", "adapter", "merged"), ("gguf", "ollama")
STAGES = WEIGHTS + SERVED
FIXED = {"seed": 1, "num_predict": 300}  # tokens that a reply may take
GREEDY = {"temperature": 0.0, "top_k": 1, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
USUAL = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1}  # Ollama's, where the Modelfile says nothing


@functools.cache
def sha256(path):
    return files.sha256(path)


def options(modelfile, sample=False):
    """How replies are drawn, by the names that Ollama and llama-server share: greedy, or with the Modelfile's parameters."""
    given = modelfile["parameters"]
    return FIXED | ({k: type(v)(given[k][-1]) if k in given else v for k, v in USUAL.items()} if sample else GREEDY)


def missing(folder, stage, command):
    states = sorted(folder.glob("training/checkpoint-*/trainer_state.json"), key=lambda p: p.stat().st_mtime)
    last = receipt.read(states[-1]) if states and stage == "train" else None
    if last:
        return f"{folder}: training has not finished (step {last['global_step']} of {last['max_steps']}); {command} goes on"
    return f"{folder}: no {stage}.json, so there is nothing to score; {command} makes it"


def hold(name, stage, *scored):
    """The paths `scored`, if the stage's receipt stands by them. Raises ValueError where it is missing, or where parts were made anew since."""
    folder, command = Path("outputs", name), recipe.command(stage, name)
    made = receipt.read(folder / f"{stage}.json")
    if not made:
        raise ValueError(missing(folder, stage, command))
    for path, digest in (made["inputs"] | made["outputs"]).items():
        there = Path(path).exists()
        if not there and Path(path) in scored:
            raise ValueError(f"{path}: is gone; {command} makes it again")
        if there and sha256(path) != digest:
            raise ValueError(f"{path}: has changed since {folder}/{stage}.json was written; {command} brings them together")
    return list(scored)


def check(name, stage, cfg):
    """Paths of what is scored at a stage. Raises ValueError, one line with the command that mends it, where it does not stand."""
    folder, base = Path("outputs", name), Path(str(cfg["base_model"]))
    if stage in ("base", "adapter"):
        if recipe.is_local(cfg) and not (base / "config.json").is_file():
            raise ValueError(f"{base}: no base model there; {recipe.command('base', name)} makes the nano one")
        below = [base if base.is_dir() else folder / "recipe.yml"]  # a base of the hub is known by its name
        return below + (hold(name, "train", folder / "adapter") if stage == "adapter" else [])
    if stage == "merged":
        return hold(name, "merge", folder / "merged")
    modelfile, *_ = hold(name, "modelfile", folder / "gguf/Modelfile")
    gguf = folder / "gguf" / recipe.read_modelfile(modelfile)["from"]
    if stage == "ollama":
        hold(name, "ollama", gguf, modelfile)
    return hold(name, "gguf", gguf) + [modelfile]


def opened(name, stage, cfg, parallel=1):
    """A context manager that yields (replies, likelihood or None). Servers answer `parallel` prompts at a time.

    More than one is faster, and no longer the same bytes each time: llama.cpp's sums depend on what else is in the batch.
    """
    from scripts.scoring import servers, weights

    folder = Path("outputs", name)
    if stage == "gguf":
        return servers.llama(folder, cfg, parallel)
    if stage == "ollama":
        return servers.ollama(name, parallel)
    return weights.opened(stage, folder, cfg)
