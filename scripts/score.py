"""Did it learn? The held-out prompts at any stage: what each row's checks say, the perplexity of the reference replies, ten fixed prompts.

    python -m scripts.score pirate-nano                         # every stage that stands: base adapter merged gguf ollama
    python -m scripts.score pirate-nano merged --limit 10       # a quick look; nothing that counts is written
    python -m scripts.score pirate-nano --ten                   # the ten fixed prompts, side by side, as they were last answered
    python -m scripts.score pirate-nano --tasks "arc_easy"      # lm-eval's tasks, on the merged model

→ outputs/NAME/eval/STAGE.jsonl and ten-STAGE.jsonl, every reply; receipt score.json, with 95 % intervals over the rows. Replies are greedy, and the
same each time; --sample draws them with the Modelfile's parameters. A stage that was scored earlier stays in the receipt as long as the rows and all
that it was made from are the same. What a row can ask of its reply: scripts/scoring/checks.py.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from scripts import data, process, recipe
from scripts.scoring import asking, backends, checks, record, servers, tasks


def ten_of(name):
    """([path], rows) of the family's fixed prompts, which have no reply; both empty where it has none."""
    path = record.fixed_of(name)
    rows = record.read(path) if path.is_file() else []
    for n, row in enumerate(rows, 1):
        if fault := data.row_fault({"messages": [*(row.get("messages") or []), {"role": "assistant", "content": "…"}]}):
            raise ValueError(f"{path}:{n}: {fault}")
    return [path] * path.is_file(), [{"id": f"ten-{n}"} | row for n, row in enumerate(rows, 1)]


def ready(name, cfg, named):
    """(stages that can be scored, [(stage, why not), …]). Raises ValueError with all that is missing of those `named`, or where nothing stands."""
    stand, missing = [], []
    for stage in named or backends.STAGES:
        try:
            backends.check(name, stage, cfg)
            if stage == "ollama":
                servers.held(name)
            stand.append(stage)
        except ValueError as error:
            missing.append((stage, str(error)))
    if missing and (named or not stand):
        raise ValueError("; ".join(dict.fromkeys(why for _, why in missing)))
    return stand, missing


def job(args, cfg):
    """What every stage is asked, and how. Raises ValueError for faulty rows, all of them at once."""
    (paths, rows), (ten_path, ten) = asking.held_out(args.name, cfg), ten_of(args.name)
    twins = checks.twins(recipe.family(args.name))
    checks.refuse(paths, bool(twins))
    modelfile = recipe.modelfile(args.name)
    found = recipe.read_modelfile(modelfile) if modelfile.is_file() else {"parameters": {}}
    chosen = backends.options(found, args.sample)
    how = "sampled: " + " ".join(f"{k}={v}" for k, v in chosen.items() if k not in backends.FIXED) if args.sample else "greedy"
    asked = {"prompts": len(rows[: args.limit]), "seed": chosen["seed"], "decoding": how}
    shared = list(dict.fromkeys([*paths, *ten_path, *twins]))
    speaks = asking.styled(rows[: args.limit], twins)
    return {
        "rows": rows[: args.limit],
        "ten": ten[: args.limit],
        "shared": shared,
        "system": found.get("system"),
        "chosen": chosen,
        "asked": asked,
        "speaks": speaks,
    }


def answer(opened, job, voice, tick):
    """(lines of STAGE.jsonl, lines of ten-STAGE.jsonl, tokens generated, seconds of it) of an opened stage."""
    (replies, likelihood), rows = opened, job["rows"]
    prompts = asking.as_served([data.prompt(r) for r in rows] + [r["messages"] for r in job["ten"]], job["system"])
    start = time.perf_counter()
    said = replies(prompts, job["chosen"], tick)
    seconds = time.perf_counter() - start
    losses = likelihood(rows, tick) if likelihood else [None] * len(rows)
    lines = asking.lines(rows, prompts[: len(rows)], said[: len(rows)], losses, voice)
    ten = [
        {"id": r["id"], "prompt": r["messages"][-1]["content"], "reply": text, "ended": ended}
        for r, (text, ended, _) in zip(job["ten"], said[len(rows) :])
    ]
    return lines, ten, sum(tokens for _, _, tokens in said), seconds


def run(stage, args, cfg, job, voice):
    """(figures, lines of STAGE.jsonl, lines of ten-STAGE.jsonl) of one stage, with a bar over the prompts."""
    from tqdm import tqdm

    start, total = time.perf_counter(), len(job["rows"]) * (1 + (stage in backends.WEIGHTS)) + len(job["ten"])
    form = "{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}<{remaining}"
    with (
        tqdm(desc=f"{f'score {args.name} {stage}':<28}", total=total, bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar,
        backends.opened(args.name, stage, cfg, args.parallel) as opened,
    ):
        lines, ten, tokens, seconds = answer(opened, job, voice, bar.update)
    found = asking.figures(lines) | {"tokens_per_s": round(tokens / seconds, 1), "seconds": round(time.perf_counter() - start, 2)}
    return found, lines, ten


def line_of(stage, found):
    """One stage, for people: `score       merged   style  99% (95–100)  …  ppl 140.8 (133.2–149.0)  645 tokens/s`."""
    cells = []
    for key, at in found.items():
        if key == "ppl":
            cells.append(f"ppl {at['mean']:.1f}" + (f" ({at['low']:.1f}–{at['high']:.1f})" if "low" in at else ""))
        elif isinstance(at, dict):
            cells.append(f"{key} {at['mean']:>4.0%} ({100 * at['low']:.0f}–{100 * at['high']:.0f})")
    cells += [""] * ("ppl" not in found)  # a server has no perplexity to tell
    return f"score       {stage:<9}" + "".join(f"{cell:<22}" for cell in cells) + f"{found['tokens_per_s']:>7,.0f} tokens/s"


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.score", description="score a recipe's model on held-out prompts")
    parser.add_argument("name")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{' '.join(backends.STAGES)}; all that stand where none is named")
    parser.add_argument("--sample", action="store_true", help="draw replies with the Modelfile's parameters instead of greedily")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N rows; replies go to eval/limit-N, and no receipt is written"
    )
    parser.add_argument(
        "--parallel", type=int, default=1, metavar="N", help="prompts that a server gets at a time; above 1 replies may vary"
    )
    parser.add_argument("--tasks", default="", metavar="TASK …", help="lm-eval's tasks, by name, name:shots or path of a task's YAML")
    parser.add_argument("--ten", action="store_true", help="show the replies to the ten fixed prompts; nothing is run")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    if wrong := sorted(set(args.stages) - set(backends.STAGES)):
        parser.error(f"no stage {' '.join(wrong)}; there are: {' '.join(backends.STAGES)}")
    if args.parallel < 1 or (args.limit is not None and args.limit < 1):
        parser.error("--limit and --parallel take whole numbers from 1 on")
    return args


def main(argv):
    args = parse(argv)
    name, folder, whole = args.name, Path("outputs", args.name), args.limit is None
    if args.ten:
        print("\n".join(record.side_by_side(name)))
        return 0
    if not (folder / "recipe.yml").is_file():
        recipe.load(name)  # says so, where there is no such recipe
        raise ValueError(f"{folder}: nothing was made there yet; {recipe.command('eval', name)} makes it")
    cfg, say = recipe.read(folder / "recipe.yml"), (lambda _: None) if args.json else print
    todo = job(args, cfg)
    stages, missing = ready(name, cfg, args.stages) if args.stages or not args.tasks else ([], [])
    for stage, why in missing:
        say(f"score       {stage:<9}-  {why}")
    hub = os.environ.get("HF_HUB_OFFLINE", "0")
    os.environ["HF_HUB_OFFLINE"] = hub if hub != "0" else "1"  # what is scored is here; lm-eval's tasks may come from the hub
    voice = None
    if stages and todo["speaks"]:
        voice, accuracy = checks.style(recipe.family(name))
        todo["asked"]["classifier_accuracy"] = round(accuracy, 4)
    figures = record.still(name, cfg, todo["shared"], todo["asked"] if stages else None) if whole else todo["asked"] | {"stages": {}}
    for stage in stages:
        figures["stages"][stage], *lines = run(stage, args, cfg, todo, voice)
        record.keep(record.replies_of(name, stage, "eval" if whole else f"eval/limit-{args.limit}"), lines)
        if whole:
            record.write(name, cfg, todo["shared"], figures)
        say(line_of(stage, figures["stages"][stage]))
    if args.tasks:
        made = tasks.run(name, cfg, args.tasks.split(), hub)
        figures["tasks"] = figures.get("tasks", {}) | made
        record.write(name, cfg, todo["shared"], figures)
        for task, metrics in made.items():
            say(f"score       {'tasks':<9}{task}  " + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
    if args.json:
        print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    process.command(main)
