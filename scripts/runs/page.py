"""What a run's page says, as plain texts and rows for the templates to lay out.

    from scripts.runs import page
    page.content(found, book.line(found, told), told, None)

Nothing here knows HTML or Markdown. A part that a run does not have says so in words.
"""

import re

from scripts import recipe
from scripts.facts import allocated
from scripts.runs import words
from scripts.scoring import record

DASH = "–"
LOSSES = (("first_eval_loss", "eval_loss"), ("first_loss", "last_loss"))
SENTENCES = {  # of the verdicts of scripts/signs: the tone of the page's head, and what they mean
    "healthy": ("good", "it learned as it should"),
    "weak": ("warn", "it ended, and what it learned is less than it could be"),
    "overfit": ("warn", "it learned its rows better than what they are examples of"),
    "dead": ("bad", "it learned nothing, or lost what it had learned"),
}


def content(found, row, told, why):
    """Everything on the page but the pictures. `row` is the run's line in the log; `told` what `make plan` says, else `why` not."""
    return {
        "name": found["name"],
        "verdict": opinion(found),
        "cards": cards(found, row),
        "facts": facts(found, row),
        "stages": stages(found),
        "hashes": hashes(found),
        "versions": versions(found),
        "data": found["data"],
        "earlier": found["earlier"],
        "scores": scores(found["score"]),
        "tasks": tasks(found["score"]),
        "replies": replies(found["ten"]),
        "fixed": record.fixed_of(found["name"]).is_file(),
        "plan": prediction(found, row, told, why),
        "quants": quants(found["stages"]),
        "commands": commands(found, row),
    }


def opinion(found):
    """The page's first line: {"word", "tone", "sentence", "findings"}."""
    judged, log = found["verdict"], found["log"]
    at = (f"at step {log['step']:,}" + (f" of {log['steps']:,}" if log["steps"] else "")) if log else ""
    if found["state"] == "running":
        said = ("in progress", "calm", f"{at or 'before its first logged step'}. This is what there was when the page was made")
    elif not judged:
        said = ("not judged", "calm", "it left no log")
    elif judged["verdict"] == "unfinished":
        said = ("unfinished", "warn", f"it stopped {at}")
    else:
        said = (judged["verdict"], *SENTENCES.get(judged["verdict"], ("warn", "see `make diagnose`")))
    return dict(zip(("word", "tone", "sentence"), said)) | {"findings": judged["findings"] if judged else []}


def cards(found, row):
    """[(label, figure, what it is of)] of the page's head."""
    made = (found["stages"]["train"] or {}).get("figures") or {}
    held, trained = (" → ".join(f"{row[k]:.3f}" for k in keys if row[k] is not None) for keys in LOSSES)
    shown = [("Eval loss", held, "before → after" if "→" in held else "evaluated once")]
    if not held:
        shown = [("Training loss", trained or DASH, "first → last; not evaluated")]
    kept = [(s, of["passed"]) for s, of in (found["score"] or {"stages": {}})["stages"].items() if "passed" in of]
    kept = [kept[0], kept[-1]] if len(kept) > 1 else kept
    ranges = ", ".join(f"{s}\u00a0{words.extent(f)}\u00a0%" for s, f in kept)
    shown.append(("Score", " → ".join(words.share(f["mean"]) for _, f in kept) or DASH, ranges or "not scored"))
    shown.append(("Time", *spent(found, row, made)))
    kind = "reserved on a GPU" if made.get("gpu_memory_gib") else "resident set"
    if before := made.get("base_memory_gib"):
        most = made.get("peak_memory_gib", before)
        kind += f"; {words.gib(before)} before the first step, {words.gib(most - before)} more in training"
        kind += ", the rest in loading and saving" if (row["peak_memory_gib"] or 0) > most + 0.01 else ""
    shown.append(("Peak memory", known(row["peak_memory_gib"], words.gib), kind if row["peak_memory_gib"] else "not recorded"))
    shown.append(("Steps", known(row["steps"], "{:,}".format), known(row["epochs"], "{:.2f} epochs".format, "")))
    return [*shown, ("Adapter", known(row["lora_r"], "r {}".format), known(row["lora_alpha"], "alpha {}".format, ""))]


def spent(found, row, made):
    """(time, what it is the time of) of the training."""
    if since := made.get("resumed_from_step"):
        return words.seconds(found["stages"]["train"]["seconds"]), f"since step {since:,}, where it went on"
    if row["minutes"] is None:
        return DASH, "not recorded"
    note = known(made and row["predicted_minutes"], lambda told: f"predicted {words.seconds(60 * told)}", "training")
    took = found["stages"]["train"]["seconds"] if made else 60 * row["minutes"]
    return words.seconds(took), note if made else "until it stopped"


def known(x, form, otherwise=DASH):
    return form(x) if x else otherwise


def facts(found, row):
    """[(what, said)] of what was run, from the receipts and the recipe."""
    cfg, before, commit = found["recipe"], found["stages"]["preprocess"], row["commit"] or "not recorded"
    has = {k: cfg.get(k, "not set") for k in ("optimizer", "lr_scheduler", "learning_rate", "seed")}
    shown = [("Base", row["base"]), ("Method", (cfg.get("adapter") or "all weights") + (", 4-bit base" if cfg.get("load_in_4bit") else ""))]
    shown.append(("Schedule", "{optimizer}, {lr_scheduler} from {learning_rate}, seed {seed}".format(**has)))
    if before:
        of = before["figures"]
        learned = known(of["tokens"] and of.get("trained_tokens"), lambda n: f", {words.share(n / of['tokens'])} of them learned", "")
        shown.append(("Data", f"{of['rows']:,} rows with those for evaluation, {of['tokens']:,} tokens{learned}"))
    shown.append(("Batch", f"{row['global_batch'] or '?'} sequences a step, of up to {row['sequence_len'] or '?'} tokens"))
    shown.append(("Machine", f"{row['machine'] or 'not recorded'}; ranks: {row['ranks'] or 'not recorded'}"))
    shown.append(("Began", known(found["began"], lambda at: at.replace("T", " ").replace("Z", " UTC"), "not recorded")))
    return [*shown, ("Commit", commit.replace("-dirty", ", with changes that no commit holds"))]


def versions(found):
    """The packages that trained it, or that prepared its data."""
    made = found["stages"]["train"] or found["stages"]["preprocess"] or {"versions": {}}
    return ", ".join(f"{name} {version}" for name, version in made["versions"].items())


def stages(found):
    """[(stage, time, peak memory, when, first hash of what came out)] of the receipts that there are."""
    rows = []
    for stage, made in found["stages"].items():
        if made:
            first, *more = [digest[:12] for digest in made["outputs"].values()] or [DASH]
            memory, when = words.gib(made.get("peak_memory_gib") or 0), made["made"][:16].replace("T", " ")
            rows.append((stage, words.seconds(made["seconds"]), memory, when, first + (f" + {len(more)}" if more else "")))
    return rows


def hashes(found):
    """All that went into the stages and came out of them, with its sha256, as a text."""
    lines = []
    for stage, made in found["stages"].items():
        for way in ("inputs", "outputs") if made else ():
            lines += [f"{stage:<12}{way[:-1]:<8}{digest}  {words.public(path)}" for path, digest in made[way].items()]
    return "\n".join(lines)


def scores(score):
    """{"heads": stages, "rows": [(check, what it asks, [(figure, 95 % interval) of each stage])], "how"}, or None."""
    if not score or not score["stages"]:
        return None
    of = score["stages"].values()
    rows = []
    for check in words.checks(score["stages"]):
        cells = [known(f.get(check), lambda x: (words.share(x["mean"]), words.extent(x)), (DASH, "")) for f in of]
        rows.append((check, words.CHECKS.get(check, ""), cells))
    if any("ppl" in f for f in of):
        cells = [known(f.get("ppl"), lambda x: (f"{x['mean']:.4g}", spread(x)), (DASH, "")) for f in of]
        rows.append(("perplexity", "of the reference replies; less is better", cells))
    if any(f.get("tokens_per_s") for f in of):
        rows.append(("tokens/s", "while replying", [(known(f.get("tokens_per_s"), "{:,.0f}".format), "") for f in of]))
    how = f"{score.get('prompts', '?')} prompts, decoding {score.get('decoding', 'not recorded')}, seed {score.get('seed', 'not recorded')}"
    if accuracy := score.get("classifier_accuracy"):
        how += f"; what tells the voice is right for {words.share(accuracy)} of held-out replies and their plain twins"
    return {"heads": list(score["stages"]), "rows": rows, "how": how.replace(" %", "\u00a0%")}


def tasks(score):
    """[(task, metric, figure)] of lm-eval's tasks, with their standard error."""
    rows = []
    for task, of in (score or {}).get("tasks", {}).items():
        for metric in [m for m in of if not re.search(r"_stderr\b", m)]:
            error = next((v for m, v in of.items() if m == re.sub(r"(,|$)", r"_stderr\1", metric, count=1)), None)
            rows.append((task, metric, f"{of[metric]:.4g}" + (f" ± {error:.2g}" if error is not None else "")))
    return rows


def replies(ten):
    """{"heads": [first and last stage], "rows": [(prompt, [(reply, whether it ended) or None])]}, or None."""
    if not ten:
        return None
    heads = list(ten) if len(ten) == 1 else [list(ten)[0], list(ten)[-1]]
    prompts = dict.fromkeys(r["prompt"] for stage in heads for r in ten[stage])
    said = {stage: {r["prompt"]: (r["reply"], r.get("ended", True)) for r in ten[stage]} for stage in heads}
    return {"heads": heads, "rows": [(p, [said[stage].get(p) for stage in heads]) for p in prompts]}


def prediction(found, row, told, why):
    """{"why"} or {"rows": [(what, predicted, measured, how they compare)], "from": how sure the plan is of itself}."""
    made = found["stages"]["train"]
    if why or not made:
        return {"why": why if made else "training did not end, so that there is nothing to hold one to", "rows": []}
    rows = [("steps", f"{told['steps']:,}", f"{row['steps']:,}", "as predicted" if told["steps"] == row["steps"] else "differs")]
    took = row["minutes"]
    measured = f"{took:.2f}" if took is not None else "not known: resumed"
    rows.append(("minutes", told_as(told["minutes"]), measured, within(took, told["minutes"])))
    if "vram_gib" in told:
        space = allocated(told["vram_gib"])
        gib = made["figures"].get("gpu_memory_gib")
        rows.append(("GiB reserved on a GPU", told_as(space), f"{gib:.2f}" if gib else "not recorded", within(gib, space)))
    sure = "calibrated on this kind of machine" if told["calibrated"] else "uncalibrated: nothing was measured on this kind of machine"
    return {"why": None, "rows": rows, "from": sure}


def spread(of):
    """Its interval; of a single row there is none."""
    return f"{of['low']:.4g}–{of['high']:.4g}" if {"low", "high"} <= of.keys() else ""


def told_as(of):
    return f"{of['expected']:.2f} ({of['low']:.2f}–{of['high']:.2f})"


def within(x, of):
    if not x:
        return ""
    if of["low"] <= x <= of["high"]:
        return "within the interval"
    return f"{x / of['high']:.1f} × the highest" if x > of["high"] else f"{x / of['low']:.1f} × the lowest"


def quants(receipts):
    """[[type, size, of F16, divergence, generated and prompt tokens a second]] with their heads, or None."""
    of = (receipts["gguf"] or {"figures": {}})["figures"]
    chosen = ((receipts["modelfile"] or {}).get("figures") or {}).get("from", "")
    rows = []
    for kind in [k.removesuffix("_mib") for k in of if k.endswith("_mib")]:
        size, kld, nmse = of[f"{kind}_mib"], of.get(f"{kind}_kld"), of.get(f"{kind}_nmse")
        off = f"{kld:.1e} nats (KL)" if kld is not None else f"{nmse:.1e} (NMSE)" if nmse is not None else DASH
        part = words.share(size / of["F16_mib"]) if of.get("F16_mib") else DASH
        speeds = [f"{of[f'{kind}_{s}']:,.0f}" if of.get(f"{kind}_{s}") else DASH for s in ("tokens_per_s", "prompt_tokens_per_s")]
        rows.append([kind + (" → Ollama" if f"-{kind}.gguf" in chosen else ""), f"{size:,.1f} MiB", part, off, *speeds])
    heads = ["type", "size", "of F16", "off by", "tokens/s", "prompt tokens/s"]
    keep = [i for i in range(6) if any(r[i] != DASH for r in rows)]
    return {"heads": [heads[i] for i in keep], "rows": [[r[i] for i in keep] for r in rows]} if rows else None


def commands(found, row):
    """The shell lines that make the run again."""
    own, *changes = found["name"].split("+")
    more = f' SET="{" ".join(changes)}"' if changes else ""
    try:
        cfg = recipe.load(found["name"])
        more += f" GPUS={row['ranks']}" if row["ranks"] and row["ranks"] != recipe.hardware(cfg)[1] else ""
        more += f" BASE={row['base']}" if str(cfg["base_model"]) != str(found["recipe"].get("base_model")) else ""
    except ValueError:  # the recipe is gone: an older commit has it
        pass
    commit = (row["commit"] or "").removesuffix("-dirty")
    goals = [f"make {goal} RECIPE={own}{more}" for goal in ("train", "modelfile", "eval", "report")]
    return "\n".join(([f"git checkout {commit}"] if commit else []) + goals)
