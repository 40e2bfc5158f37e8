"""The model card: what the hub's front matter asks for, and what the receipts say of the model. scripts/push.md lays it out.

    from scripts.sending import card
    card.write("adapter", to, found, asked, sums)      # README.md, as bytes

Every figure is a receipt's; what was not measured is left out.
"""

from pathlib import Path

from scripts import data, recipe
from scripts.runs import page, words
from scripts.sending import licence

REPOS = {
    "adapter": "{}",
    "merged": "{}-merged",
    "gguf": "{}-GGUF",
}  # a repository each: as `from_pretrained`, `hf download` and `ollama run hf.co/…` expect it
RELATIONS = {"adapter": ("adapter", "peft"), "merged": ("finetune", "transformers"), "gguf": ("quantized", "gguf")}
TEMPLATE = Path(__file__).parent.parent / "push.md"


def repo(kind, to):
    return REPOS[kind].format(to)


def write(kind, to, found, asked, what):
    """The card of one repository. `found` is gather.run's, `asked` the licence, `what` all that is pushed, so that cards name only what there is."""
    import jinja2
    import yaml

    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    body = env.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        content(kind, to, found, asked, what)
        | {"yaml": yaml.safe_dump(words.public(found["recipe"]), sort_keys=False, allow_unicode=True, width=110)}
    )
    return f"---\n{front(kind, to, found, asked, what)}\n---\n{body.strip()}\n".encode()


def front(kind, to, found, asked, what):
    """The YAML on top, as the hub's own class writes it."""
    from huggingface_hub import ModelCardData

    cfg, (relation, library) = found["recipe"], RELATIONS[kind]
    base = licence.base_id(found["name"], cfg)
    of = repo("merged", to) if kind == "gguf" and "merged" in what else base
    other = asked.get("hub") == "other"
    terms = {"license": asked.get("hub", asked["id"])} | ({"license_name": asked["id"], "license_link": asked["link"]} if other else {})
    sets = [d["path"] for d in cfg.get("datasets") or [] if isinstance(d, dict) and on_hub(d.get("path"))]
    tags = ["galley", "axolotl", *([cfg["adapter"]] if cfg.get("adapter") else []), *(["gguf"] if kind == "gguf" else [])]
    return ModelCardData(
        base_model=of,
        base_model_relation=relation if of else None,
        library_name=library,
        pipeline_tag="text-generation",
        datasets=sets or None,
        tags=tags,
        model_name=repo(kind, to).split("/")[1],
        eval_results=results(kind, found) or None,
        **terms,
    ).to_yaml()


def on_hub(path):
    """Whether a recipe's dataset is one of the hub rather than a file."""
    return str(path).count("/") == 1 and not Path(str(path)).exists() and not Path(str(path)).suffix


def results(kind, found):
    """[EvalResult] of this kind's held-out prompts: shares with their intervals, and perplexity."""
    from huggingface_hub import EvalResult

    of = (found["score"] or {"stages": {}})["stages"].get(kind, {})
    held = ", ".join(str(p) for p in recipe.datasets(found["recipe"])[1]) or "held-out rows"
    common = {"task_type": "text-generation", "dataset_type": recipe.family(found["name"]), "dataset_name": held}
    made = []
    for check in words.checks({kind: of}):
        name = f"{words.CHECKS.get(check, check)} (share of {of[check]['n']} replies; 95 % interval {of[check]['low']:g} to {of[check]['high']:g})"
        made.append(EvalResult(**common, metric_type=check, metric_name=name, metric_value=of[check]["mean"]))
    if ppl := of.get("ppl"):
        name = f"perplexity of {ppl['n']} reference replies" + (
            f" (95 % interval {page.spread(ppl).replace('–', ' to ')})" if "low" in ppl else ""
        )
        made.append(EvalResult(**common, metric_type="perplexity", metric_name=name, metric_value=ppl["mean"]))
    return made


def content(kind, to, found, asked, what):
    """What scripts/push.md lays out."""
    cfg, stages = found["recipe"], found["stages"]
    chosen = ((stages["modelfile"] or {}).get("figures") or {}).get("from", "")
    return {
        "kind": kind,
        "title": repo(kind, to).split("/")[1],
        "to": to,
        "repos": {k: repo(k, to) for k in REPOS if k in what},
        "ollama": "ollama" in what,
        "name": found["name"],
        "base": licence.base_id(found["name"], cfg),
        "local": words.public(str(cfg["base_model"])),
        "asked": {"shows": None, "notice": None} | asked,
        "four_bit": bool(cfg.get("load_in_4bit")),
        "quant": Path(chosen).stem.rsplit("-", 1)[-1] if chosen else None,
        "verdict": found["verdict"]["verdict"] if found["verdict"] else None,
        "training": training(found),
        "data": rows(found),
        "terms": {folder: said for folder in folders(found) if (said := licence.sentence(folder))},
        "scores": page.scores(found["score"]),
        "scored": next((Path(p).name for p in (stages["score"] or {"inputs": ()})["inputs"] if p.endswith(".gguf")), None),
        "quants": page.quants(stages),
        "versions": page.versions(found),
        "made": [
            (stage, path, digest)
            for stage in ("train", "merge", "gguf")
            if stages[stage]
            for path, digest in stages[stage]["outputs"].items()
        ],
        "command": recipe.command("train", found["name"]).strip("`"),
        "commit": ((stages["train"] or {}).get("commit") or "").removesuffix("-dirty"),
    }


def training(found):
    """[(what, figure)] of the training, from its receipt and the recipe that it ran."""
    cfg, made = found["recipe"], found["stages"]["train"]
    of, losses = made["figures"], made["figures"]["eval_losses"]
    shown = [("Method", f"{cfg.get('adapter') or 'all weights'}{', base in 4 bits (NF4)' if cfg.get('load_in_4bit') else ''}")]
    shown += [("LoRA", f"r {cfg['lora_r']}, alpha {cfg.get('lora_alpha', 'not set')}")] if cfg.get("lora_r") else []
    shown.append(
        (
            "Schedule",
            f"{cfg.get('optimizer')}, {cfg.get('lr_scheduler')} from {cfg.get('learning_rate')}, seed {cfg.get('seed', 'not set')}",
        )
    )
    shown.append(("Steps", f"{of['steps']:,} of {of['global_batch']} sequences, {of['epochs']:.2f} epochs"))
    if before := found["stages"]["preprocess"]:
        shown.append(("Tokens", f"{before['figures']['tokens']:,} in {before['figures']['rows']:,} rows, those for evaluation among them"))
    shown.append(("Training loss", f"{of['first_loss']:.3f} → {of['last_loss']:.3f}"))
    shown += [("Evaluation loss", " → ".join(f"{x:.3f}" for x in dict.fromkeys((losses[0], losses[-1]))))] if losses else []
    shown.append(
        ("Time", words.seconds(made["seconds"]) + (f", since step {of['resumed_from_step']:,}" if of.get("resumed_from_step") else ""))
    )
    shown.append(("Machine", words.machine(made, of["ranks"])))
    shown += [("GPU memory", words.gib(of["gpu_memory_gib"]) + " reserved")] if of.get("gpu_memory_gib") else []
    return shown


def rows(found):
    """[(file or id on the hub, rows or "", sha256 or "")] of what it learned from and was evaluated on."""
    cfg, sets = found["recipe"], recipe.datasets(found["recipe"])
    files = [str(p) for kind in sets for p in kind]
    shown = [(p, f"{data.view(p, '{}')['count']:,}" if Path(p).is_file() else "", found["data"].get(p, "")) for p in dict.fromkeys(files)]
    ids = [d["path"] for key in ("datasets", "test_datasets") for d in cfg.get(key) or [] if isinstance(d, dict) and on_hub(d.get("path"))]
    return [(words.public(p), n, digest) for p, n, digest in shown] + [(i, "", "") for i in dict.fromkeys(ids)]


def folders(found):
    return dict.fromkeys(p.parent for kind in recipe.datasets(found["recipe"]) for p in kind)
