"""lm-eval's tasks on the merged model, through Axolotl's own integration: a recipe with `lm_eval_tasks`, run by `axolotl lm-eval`."""

import json
import os
import re
import sys
from pathlib import Path

import yaml

from scripts import process

PLUGIN = "axolotl.integrations.lm_eval.LMEvalPlugin"


def results(path):
    """{task: {metric: number}} of one of lm-eval's results_*.json; its metrics are named `acc,none`: metric and filter."""
    found = {}
    for task, given in json.loads(Path(path).read_text(encoding="utf-8"))["results"].items():
        numbers = {k.removesuffix(",none"): v for k, v in given.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        found |= {task: numbers} if numbers else {}  # a group may have none
    return found


def wrapped(task, folder):
    """A task file as a group of one task, for lm-eval 0.4.11 stumbles over a bare one: it looks its name up in the index of its own tasks."""
    if not task.endswith(".yaml"):
        return task
    if not Path(task).is_file():
        raise ValueError(f"{task}: no such task file; TASKS takes names that lm-eval knows (`lm-eval ls tasks`) or paths of task files")
    name = re.search(r"^task: *([\w.-]+) *$", Path(task).read_text(encoding="utf-8"), re.MULTILINE)
    if not name:
        return task
    path = folder / f"task-{Path(task).name}"
    path.write_text(yaml.safe_dump({"include": task, "group": f"{name[1]}-file", "task": [{"task": name[1], "task_alias": name[1]}]}), encoding="utf-8")
    return str(path)


def run(name, cfg, tasks, offline):
    """Run lm-eval tasks, by name, `name:shots` or path of a task's YAML. Returns {task: {metric: number}}; raises ValueError where there are none.

    The half precision is the weights' own: Axolotl's command knows bfloat16 and else float16, on a CPU too.
    """
    folder = Path("outputs", name)
    path = folder / "eval/lm-eval.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads((folder / "merged/config.json").read_text(encoding="utf-8"))
    own = {
        "plugins": [*(cfg.get("plugins") or []), PLUGIN],
        "lm_eval_tasks": [wrapped(task, path.parent) for task in tasks],
        "lm_eval_model": str(folder / "merged"),
        "lm_eval_batch_size": 8,
        "lm_eval_post_train": False,
        "bf16": (stored.get("dtype") or stored.get("torch_dtype")) != "float16",
        "output_dir": str(folder / "eval/tasks"),
    }
    path.write_text(yaml.safe_dump(cfg | own, sort_keys=False, width=120), encoding="utf-8")
    before = set(path.parent.rglob("results_*.json"))
    process.run(
        [sys.executable, "-c", "from axolotl.cli.main import main; main()", "lm-eval", path],
        folder / "logs/lm-eval.log",
        f"lm-eval {name}",
        env={"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": offline},
    )
    found = {}
    for made in sorted(set(path.parent.rglob("results_*.json")) - before):
        found |= results(made)
    if not found:
        raise ValueError(f"lm-eval wrote no results for {' '.join(tasks)}; the whole log is in {folder}/logs/lm-eval.log")
    return found
