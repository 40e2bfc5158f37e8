"""Rows put to a model, and what came of them: the prompts as they are asked, a line a reply, figures over the lines."""

from pathlib import Path

from scripts import data, recipe
from scripts.scoring import checks, statistics


def numbered(paths):
    """The rows of several files; those without an id are numbered."""
    return [{"id": f"{path.stem}-{n}", "kind": None} | row for path in paths for n, row in enumerate(data.read(path), 1)]


def held_out(name, cfg):
    """(paths, rows) of the held-out conversations: the recipe's own test_datasets, else its family's eval.jsonl."""
    paths = [p for p in recipe.datasets(cfg)[1] if p.suffix == ".jsonl"] or [Path("datasets", recipe.family(name), "eval.jsonl")]
    return paths, numbered(paths)


def styled(rows, twins):
    """Whether any of these rows asks for the family's voice."""
    return bool(twins) and any(not r.get("checks") or r["checks"].get("style") for r in rows)


def as_served(prompts, system):
    """The prompts as a server would send them: with the Modelfile's system message where they have none of their own."""
    return [p if not system or p[0]["role"] == "system" else [{"role": "system", "content": system}, *p] for p in prompts]


def lines(rows, prompts, said, losses, voice):
    """A line a row for STAGE.jsonl. `said`: [(text, ended, tokens)]; `losses`: [(nll, tokens) or None]; `voice`: texts → whether each has it, or None."""
    voices, found = voice([text for text, _, _ in said]) if voice else [None] * len(rows), []
    for row, prompt, (text, ended, _), speaks, loss in zip(rows, prompts, said, voices, losses):
        judged = checks.judge(row, prompt[0]["content"] if prompt[0]["role"] == "system" else None, text, ended, speaks)
        line = {"id": row["id"], "kind": row["kind"], "prompt": prompt[-1]["content"], "reply": text, "ended": ended, "checks": judged}
        found.append(line | {"passed": checks.passed(row, judged)} | ({"nll": round(loss[0], 4), "tokens": loss[1]} if loss else {}))
    return found


def figures(lines):
    """A stage's figures from its lines: each check, all together, perplexity."""
    asked = [key for key in checks.KEYS if any(key in line["checks"] for line in lines)]
    found = {key: statistics.interval([line["checks"][key] for line in lines if key in line["checks"]]) for key in asked}
    found["passed"] = statistics.interval([line["passed"] for line in lines])
    measured = [line for line in lines if line.get("tokens")]
    if measured:
        found["ppl"] = statistics.perplexity([line["nll"] for line in measured], [line["tokens"] for line in measured])
    return found
