"""lm-eval's tasks on the merged model, through Axolotl's own integration: a recipe with `lm_eval_tasks`, run by `axolotl lm-eval`."""

import json
import os
import re
import sys
from pathlib import Path

import yaml

from scripts import process

PLUGIN = "axolotl.integrations.lm_eval.LMEvalPlugin"
# Axolotl starts the `lm_eval` on PATH, and has no word for a folder of task files; lm-eval 0.4.11 takes one, but no path of a file (a KeyError).
LM_EVAL = '#!/bin/sh\nexec "$LM_EVAL" "$@" ${TASK_FILES:+--include_path "$TASK_FILES"}\n'


def results(path):
    """{task: {metric: number}} of one of lm-eval's results_*.json; its metrics are named `acc,none`: metric and filter."""
    found = {}
    for task, given in json.loads(Path(path).read_text(encoding="utf-8"))["results"].items():
        numbers = {k.removesuffix(",none"): v for k, v in given.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        found |= {task: numbers} if numbers else {}  # a group may have none
    return found


def named(tasks):
    """(names, folder of task files or None) of what was asked for: lm-eval's own names, and paths of task files, which must lie in one folder."""
    names, folders = [], set()
    for task in tasks:
        if task.endswith(".yaml"):
            if not Path(task).is_file():
                raise ValueError(
                    f"{task}: no such task file; TASKS takes names that lm-eval knows (`lm-eval ls tasks`) or paths of task files"
                )
            name = re.search(r"^(?:task|group): *[\"']?([\w.-]+)", Path(task).read_text(encoding="utf-8"), re.MULTILINE)
            if not name:
                raise ValueError(f"{task}:1: has no `task:` with a name; lm-eval finds a task by it")
            task = name[1]
            folders.add(str(Path(tasks[len(names)]).parent))
        names.append(task)
    if len(folders) > 1:
        raise ValueError(f"task files in {' and '.join(sorted(folders))}: put them into one folder, or run them one after another")
    return names, next(iter(folders), None)


def run(name, cfg, tasks, offline):
    """Run lm-eval tasks, by name, `name:shots` or path of a task's YAML. Returns {task: {metric: number}}; raises ValueError where there are none.

    The half precision is the weights' own: Axolotl's command knows bfloat16 and else float16, on a CPU too.
    """
    names, files_in = named(tasks)
    folder = Path("outputs", name)
    recipe, stub = folder / "eval/lm-eval.yml", folder / "eval/bin/lm_eval"
    stub.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads((folder / "merged/config.json").read_text(encoding="utf-8"))
    own = {
        "plugins": [*(cfg.get("plugins") or []), PLUGIN],
        "lm_eval_tasks": names,
        "lm_eval_model": str(folder / "merged"),
        "lm_eval_batch_size": 8,
        "lm_eval_post_train": False,
        "bf16": (stored.get("dtype") or stored.get("torch_dtype")) != "float16",
        "output_dir": str(folder / "eval/tasks"),
    }
    recipe.write_text(yaml.safe_dump(cfg | own, sort_keys=False, width=120), encoding="utf-8")
    stub.write_text(LM_EVAL)
    stub.chmod(0o755)
    before = set(recipe.parent.rglob("results_*.json"))
    process.run(
        [sys.executable, "-c", "from axolotl.cli.main import main; main()", "lm-eval", recipe],
        folder / "logs/lm-eval.log",
        f"lm-eval {name}",
        env={
            "PATH": f"{stub.parent.resolve()}{os.pathsep}{os.environ['PATH']}",
            "LM_EVAL": str(Path(sys.executable).with_name("lm_eval")),
            "TASK_FILES": files_in or "",
            "HF_HUB_OFFLINE": offline,
        },
    )
    found = {}
    for made in sorted(set(recipe.parent.rglob("results_*.json")) - before):
        found |= results(made)
    if not found:
        raise ValueError(f"lm-eval wrote no results for {' '.join(tasks)}; the whole log is in {folder}/logs/lm-eval.log")
    return found
