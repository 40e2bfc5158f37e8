"""Train a recipe's adapter with Axolotl under torchrun, on one CPU rank or on many GPUs, and prove that it finished and learned.

    python -m scripts.train pirate-nano           # → outputs/pirate-nano/adapter/, receipt train.json
    GPUS=2 python -m scripts.train pirate-nano    # two ranks, the same global batch
    NNODES=2 NODE_RANK=0 MASTER=10.0.0.1 …        # on each node, with its own NODE_RANK

Axolotl works in outputs/NAME/training/ and goes on from its last whole checkpoint. Only a finished, non-zero adapter is copied to adapter/.
"""

import hashlib
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

from scripts import files, process, receipt, recipe
from scripts.signs import causes, log
from scripts.watch import bar, lines

RESERVED = "memory/device_reserved (GiB)"  # as Axolotl logs it
ADAPTER_FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
]


def torchrun(cfg, folder, gpus, nodes):
    """The command, the same for every size of machine: `axolotl train --launcher torchrun` does no more, 15 s of imports later."""
    if nodes > 1 and not os.environ.get("MASTER"):
        raise ValueError(f"NNODES={nodes} without MASTER; give every node the address of node 0: MASTER=10.0.0.1")
    rank, master, port = os.environ.get("NODE_RANK") or 0, os.environ.get("MASTER"), os.environ.get("MASTER_PORT") or 29500
    several = ["--nnodes", nodes, "--node_rank", rank, "--master_addr", master, "--master_port", port]
    where = ["--standalone"] if nodes == 1 else several
    steps = recipe.accumulation(cfg, gpus, nodes)
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *where,
        "--nproc_per_node",
        gpus,
        "-m",
        "axolotl.cli.train",
        folder / "recipe.yml",
        f"--gradient_accumulation_steps={steps}",
        # Only node 0 writes whole checkpoints, so a run of several nodes starts over.
        f"--auto_resume_from_checkpoints={str(nodes == 1).lower()}",
    ]


def made_from(folder, cfg):
    """What a run is made from: recipe, data, and a base that is a folder here (it may be made anew; one of the hub is known by its name)."""
    base = Path(cfg["base_model"])
    return [folder / "recipe.yml", folder / "data.sha256", *([base] if base.is_dir() else [])]


def run_key(folder, cfg):
    return hashlib.sha256("".join(map(files.sha256, made_from(folder, cfg))).encode()).hexdigest()


def clear_stale(training, key, ranks, keep=True):
    """Keep the checkpoints that this run may go on from: of the same recipe and data (`key`), and whole; the trainer writes trainer_state.json last.

    `keep` is False on several nodes, where no checkpoint is whole. Raises ValueError if they were made on another number of ranks: the optimizer's state is sharded by it, and hours of work are not to be thrown away.
    """
    mark = training / "run.json"
    made = receipt.read(mark) or {}
    if not made and list(training.glob("checkpoint-*")):
        raise ValueError(f"{training}: holds checkpoints of a run that `make` did not start; move them away, or `rm -r {training}`")
    if made.get("key") != key or not keep:
        for checkpoint in training.glob("checkpoint-*"):  # before run.json: without it they would be a stranger's
            shutil.rmtree(checkpoint)
        shutil.rmtree(training, ignore_errors=True)
        (training.parent / "health.jsonl").unlink(missing_ok=True)  # of another run
    for checkpoint in training.glob("checkpoint-*"):
        optimizer = [*checkpoint.glob("optimizer*"), *checkpoint.glob("global_step*")]  # under DeepSpeed a folder
        if (
            state(checkpoint) is None
            or not whole(checkpoint / "adapter_model.safetensors")
            or not optimizer
            or not [*checkpoint.glob("rng_state*")]
        ):
            shutil.rmtree(checkpoint)
    if made.get("ranks", ranks) != ranks and list(training.glob("checkpoint-*")):
        raise ValueError(
            f"{training}: its checkpoints were made on {made['ranks']} ranks, this run has {ranks}; go on with the same GPUS and NNODES, or `rm -r {training}` to start over"
        )
    training.mkdir(parents=True, exist_ok=True)
    files.write_if_changed(mark, json.dumps({"key": key, "ranks": ranks}))


def state(checkpoint):
    return receipt.read(checkpoint / "trainer_state.json")


def whole(path):
    """A safetensors file says in its header how long it is."""
    try:
        with open(path, "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
            return f.tell() + max(t["data_offsets"][1] for k, t in header.items() if k != "__metadata__") == os.fstat(f.fileno()).st_size
    except (OSError, ValueError, MemoryError):
        return False


def finished(training):
    """The last checkpoint's trainer state; raises ValueError if the run stopped short. Neither exit 0 nor adapter_config.json proves an end."""
    found = sorted(training.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    last = state(found[-1]) if found else None
    if not last or last["global_step"] < last["max_steps"] and not stopped_early(last):
        at = f"step {last['global_step']} of {last['max_steps']}" if last else "before the first checkpoint"
        raise ValueError(f"{training}: training stopped at {at}; run the same command again to go on from there")
    return last


def stopped_early(last):
    """Whether `early_stopping_patience` ended the run: so many evaluations in a row did not improve (transformers/trainer_callback.py)."""
    callback = (last.get("stateful_callbacks") or {}).get("EarlyStoppingCallback") or {}
    patience = (callback.get("args") or {}).get("early_stopping_patience")
    return bool(patience) and (callback.get("attributes") or {}).get("early_stopping_patience_counter", 0) >= patience


def stands(training):
    """Whether a whole run lies there already. Going on from a finished run's last checkpoint would train one step too many.

    A last checkpoint whose adapter was not also saved as the result (killed in between) is dropped: the run goes on from the one before. With early stopping
    the result is the best checkpoint's adapter.
    """
    try:
        done = finished(training)
    except ValueError:
        return False
    last = training / f"checkpoint-{done['global_step']}"
    best = training / Path(done.get("best_model_checkpoint") or last).name
    if any(copied(source, training) for source in {last, best}):
        return True
    shutil.rmtree(last)
    return False


def copied(source, target):
    """Whether an adapter lies in `source`, and all of its files, byte for byte, in `target`: the tokenizer is saved after the weights."""
    kept = [f for f in ADAPTER_FILES if (source / f).exists()]
    return bool(kept) and all((target / f).exists() and files.sha256(target / f) == files.sha256(source / f) for f in kept)


def adapter_figures(path):
    """Norms of an adapter: raises ValueError if a lora_B is missing, zero or not finite, for then nothing was learned."""
    from safetensors import safe_open

    norms = {}
    with safe_open(path, framework="pt") as f:
        for key in f.keys():
            norms[key] = f.get_tensor(key).float().norm().item()
    b = {k: v for k, v in norms.items() if "lora_B" in k or "lora_embedding_B" in k}
    dead = [k for k, v in b.items() if not v > 0 or v == float("inf")]  # NaN is not > 0 either
    if not b or dead:
        raise ValueError(
            f"{path}: {len(dead)} of {len(b)} lora_B matrices are zero or not finite (first: {(dead or ['none there'])[0]}); nothing was learned there"
        )
    return {"lora_B_matrices": len(b), "lora_B_norm_min": round(min(b.values()), 5), "lora_B_norm_max": round(max(b.values()), 5)}


def refuse_dead(folder, key):
    """Raise ValueError if this very run was proven dead: going on from its checkpoint would train nothing, hour for hour."""
    made, found = receipt.read(folder / "training/run.json") or {}, lines.dead(folder / "health.jsonl")
    if found and made.get("key") == key:
        raise ValueError(
            f"{folder}: proven dead at step {found['step']}: {found['cause']}: {found['evidence']}; "
            f"change the recipe, which starts anew, or `rm -r {folder / 'training'}` to try the same again"
        )


def stopped_dead(folder, found):
    return (
        f"{folder}: stopped at step {found['step']} of {found['steps']}: {found['cause']}: {found['evidence']}; {found['fix']}; "
        f"checkpoint-{found['step']} is kept; going on would have cost {found['cost']}"
    )


def results(folder, last):
    """(figures for the receipt, findings) of a finished run, from its adapter, its trainer state and its health.jsonl."""
    history = last["log_history"]
    losses = [h["loss"] for h in history if "loss" in h]
    figures = adapter_figures(folder / "training/adapter_model.safetensors") | {
        "steps": last["global_step"],
        "epochs": last["epoch"],
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "eval_losses": [h["eval_loss"] for h in history if "eval_loss" in h],
        "gpu_memory_gib": max((h[RESERVED] for h in history if RESERVED in h), default=None),
    }
    try:
        run = log.read(folder if (folder / "health.jsonl").exists() else folder / "training")
    except ValueError:  # it logged no loss
        return figures, []
    for key in ("tokens_per_s", "step_s"):
        if known := [row[key] for row in run["rows"] if key in row]:
            figures[key] = statistics.median(known)
    bases = [line["run"]["base_memory_gib"] for line in lines.read(folder / "health.jsonl") if "base_memory_gib" in line.get("run", {})]
    if bases:  # what lies between the two is what training added
        peak = max((row["memory_gib"] for row in run["rows"] if "memory_gib" in row), default=bases[-1])
        figures |= {"base_memory_gib": bases[-1], "peak_memory_gib": max(peak, bases[-1])}
    judged = causes.judge({**run, "ended": True})
    return figures | {"verdict": judged["verdict"]}, judged["findings"]


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.train NAME", file=sys.stderr)
        return 2
    name, folder = argv[0], Path("outputs", argv[0])
    cfg, own = recipe.read(folder / "recipe.yml"), recipe.load(name)
    gpus, nodes = recipe.ranks(own), int(os.environ.get("NNODES") or 1)
    key = run_key(folder, cfg)
    training = folder / "training"
    command = torchrun(own, folder, gpus, nodes)
    refuse_dead(folder, key)
    clear_stale(training, key, gpus * nodes, keep=nodes == 1)
    ready = stands(training)
    if ready and copied(training, folder / "adapter") and receipt.holds(folder / "train.json", files.sha256):  # and not an older one
        files.sweep(folder / "adapter")
        (folder / "train.json").touch()  # what it was made from was made anew, and is the same
        print("train       stands: made from the same data, base and recipe")
        return 0
    resumed = max((state(c)["global_step"] for c in training.glob("checkpoint-*")), default=0)
    if not ready:
        try:
            process.run(command, folder / "logs/train.log", f"train {name}", recipe.environment(cfg), bar.follower(folder / "health.jsonl"))
        except ChildProcessError:
            if found := lines.dead(folder / "health.jsonl"):
                raise ValueError(stopped_dead(folder, found)) from None
            raise
    if int(os.environ.get("NODE_RANK") or 0):
        print(f"train       node {os.environ['NODE_RANK']} done; the adapter is on node 0")
        return 0
    last = finished(training)
    figures, findings = results(folder, last)
    figures |= {"resumed_from_step": resumed, "ranks": gpus, "global_batch": recipe.global_batch(own)}
    with files.fresh(folder / "adapter", stamp=folder / "train.json") as tmp:
        for file in ADAPTER_FILES:
            if (training / file).exists():
                shutil.copy2(training / file, tmp / file)
        (tmp / "trainer_state.json").write_text(json.dumps(last))
    receipt.write(folder / "train.json", [*made_from(folder, cfg), folder / "prepared"], [folder / "adapter"], figures, files.sha256)
    evals, weak = figures["eval_losses"], findings and figures["verdict"] != "healthy"
    losses = f", eval loss {evals[0]:.3f} → {evals[-1]:.3f}" if evals else ""
    remark = f"; {figures['verdict']}: {findings[0]['cause']}: {findings[0]['evidence']}" if weak else ""
    print(f"train       {last['global_step']} steps{losses}{remark}")
    return 0


if __name__ == "__main__":
    process.command(main)
