"""Figures that were published of the run a recipe is modelled on, beside what `make plan` says and what was measured here.

    from scripts.runs import published
    published.part("pirate", None)      # None for a recipe without such figures

The figures, and what is known and not known of that run, stand in recipes/facts/published.yml; every other number is computed here.
"""

from pathlib import Path

from scripts import facts, recipe
from scripts.manual import costs
from scripts.rules import learning
from scripts.runs import gather, page, words
from scripts.signs import numbers
from scripts.steps import memory

NO_GPU = "no GPU has been measured"
STEPS = 10_000  # so many that a share of them is exact enough


def part(name, found):
    """What the page says of it, as texts and rows, or None. `found` is the gathered run of this recipe, None where it was never run."""
    of = facts.table("published.yml")["runs"].get(name)
    if not of:
        return None
    told, why = costs.plans([recipe.load(name)], recipe.load(name), name, [])[0]
    twin = gather.run(of["twin"]) if gather.ran(of["twin"]) else None
    values = figures(of, recipe.load(name), twin)
    claims = [(c["claim"], c["word"], filled(c["why"], values)) for c in of["claims"]]
    return {
        "what": of["what"],
        "source": of["source"],
        "twin": of["twin"],
        "why": why,
        "rows": compared(of, recipe.load(name), told, found, twin) if told else [],
        "told": ", ".join(f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in of["told"].items()),
        "untold": "; ".join(of["untold"]),
        "supposed": supposed(of),
        "tokens": tokens(of, told) if told else "",
        "claims": claims,
        "points": points(),
    }


def filled(text, values):
    """A claim's reason with its figures; what only the twin's run could tell is left open where there is none."""
    try:
        return text.format(**values)
    except KeyError:
        return f"not known here: {values['twin']} has not been run on this machine"


def near(log, epoch):
    """The log's row with a loss that is nearest to an epoch."""
    rows = [r for r in log["rows"] if "loss" in r and "epoch" in r]
    return min(rows, key=lambda r: abs(r["epoch"] - epoch), default={})


def pair(log, epochs, key, form):
    found = [near(log, epoch).get(key) for epoch in epochs] if log else [None]
    return None if None in found else " → ".join(form(x) for x in found)


def share_of_peak(epoch, epochs, warmup):
    """The cosine's rate at an epoch, as a share of its peak."""
    return learning.multiplier({"lr_scheduler": "cosine"}, round(epoch / epochs * STEPS), STEPS, round(warmup * STEPS))


def compared(of, cfg, told, found, twin):
    """[(figure, published, by the plan of this recipe, measured here)]."""
    at, log, done = of["log"]["epoch"], of["log"], of["figures"]
    own = ((found or {}).get("stages") or {}).get("train")
    own = own if own and own["machine"].get("gpus") else None
    gib = (own or {"figures": {}})["figures"].get("gpu_memory_gib")
    space = page.told_as(told["vram_gib"]) if "vram_gib" in told else page.DASH
    active = max((r.get("memory/max_active (GiB)", 0) for r in found["log"]["rows"]), default=0) if own and found["log"] else 0
    run, name = (found["log"], found["name"]) if found and found["log"] else ((twin or {}).get("log"), of["twin"])

    def here(key, form):
        said = pair(run, at, key, form)
        return f"{said} ({name})" if said else "not run here"

    rates = [share_of_peak(epoch, done["epochs"], float(cfg.get("warmup_ratio") or 0.03)) for epoch in at]
    peak = float(cfg["learning_rate"])
    size = told["trainable_parameters"] * 2 / 1e6
    arrow = " → ".join
    return [
        ("GiB active on a device", f"{done['gib_active']}", space, (f"{active:.2f}" if active else "not recorded") if own else NO_GPU),
        ("GiB reserved on a device", f"{done['gib_reserved']}", space, f"{gib:.2f}" if gib else NO_GPU),
        ("minutes", f"{done['minutes']}", page.told_as(told["minutes"]), f"{own['seconds'] / 60:.2f}" if own else NO_GPU),
        (
            "epochs",
            f"{done['epochs']}",
            f"{told['epochs']:g}",
            f"{float(near(run, 9e9).get('epoch', 0)):.2f} ({name})" if run else "not run here",
        ),
        ("MB of the adapter", "–".join(map(str, done["adapter_mb"])), f"{size:.0f}", adapter_file(name)),
        (f"loss at epochs {at[0]} and {at[1]}", arrow(map(str, log["loss"])), "not predicted", here("loss", "{:.3f}".format)),
        ("grad norm there", arrow(map(str, log["grad_norm"])), "not predicted", here("grad_norm", "{:.3f}".format)),
        (
            "learning rate there",
            arrow(map(numbers.sci, log["learning_rate"])),
            arrow(numbers.sci(peak * r) for r in rates),
            here("learning_rate", numbers.sci),
        ),
    ]


def adapter_file(name):
    path = Path("outputs", name, "adapter/adapter_model.safetensors")
    return f"{path.stat().st_size / 1e6:.1f} ({name})" if path.is_file() else "not run here"


def supposed(of):
    """[(what is supposed of the untold, the plan's interval in GiB, how the published figures lie in it)]."""
    common = facts.table("published.yml")["common"]["qlora"] | of["told"] | {"deepspeed": {"zero_optimization": {"stage": 2}}}
    rows = []
    for item in of["supposed"]:
        cfg = common | {k: v for k, v in item.items() if k != "as"}
        expected, low, high = memory.interval(memory.parts(cfg, facts.base(of["base"]), of["gpus"], 10**6))
        told = {"low": low, "expected": expected, "high": high}
        rows.append((item["as"], page.told_as(told), *(page.within(of["figures"][k], told) for k in ("gib_active", "gib_reserved"))))
    return rows


def tokens(of, told):
    """How many tokens the published minutes are by the plan's speeds: a sentence."""
    common, base = facts.table("published.yml")["common"]["qlora"] | of["told"], facts.base(of["base"])
    cfg = common | {"sequence_len": 4096, "micro_batch_size": 2, "gradient_accumulation_steps": 1}

    def took(n):
        computed = {"train": n, "evals": 0, "longest": 4096, "cores": 1}
        return facts.minutes(cfg, base, facts.gpu(of["gpu"]), of["gpus"], computed, n / (of["gpus"] * 8192), [])

    one, two = took(0), took(1e6)  # minutes are linear in the tokens: slow, expected, fast
    low, expected, high = ((of["figures"]["minutes"] - a) / (b - a) for a, b in zip(one, two))
    ours = told["tokens"] * told["epochs"] / 1e6
    return f"{low:.0f} to {high:.0f} million tokens, {expected:.0f} as expected; the rows of this recipe are {ours:.2f} million in {told['epochs']:g} epochs"


def figures(of, cfg, twin):
    """{name: figure} for the reasons in published.yml."""
    log, base = of["log"], facts.base(of["base"])
    rates = [2e-4 * share_of_peak(epoch, of["figures"]["epochs"], 0.02) for epoch in log["epoch"]]
    start = round(log["epoch"][1] / of["figures"]["epochs"] * 100)
    rest = [share_of_peak(x / 100, 1, 0.02) for x in range(start, 101)]
    trained = facts.adapter_parameters(base, of["told"] | {"lora_target_linear": True})
    found = {
        "lr_low": numbers.sci(rates[0]),
        "lr_high": numbers.sci(rates[1]),
        "left": words.share(sum(rest) / len(rest)),
        "twin": of["twin"],
    }
    found |= {
        "adapter_16": round(trained * 2 / 1e6),
        "adapter_32": round(trained * 4 / 1e6),
        "base_gb": f"{facts.parameters(base) * 2 / 1e9:.1f}",
    }
    found["fall"] = f"{log['loss'][0] - log['loss'][1]:.3f}"
    if twin and twin["log"]:
        losses, norms = ([v for _, v in numbers.column(twin["log"], key)] for key in ("loss", "grad_norm"))
        found |= {"jitter": f"{numbers.jitter(losses) * 2**0.5:.2f}", "norm_low": f"{min(norms):.2f}", "norm_high": f"{max(norms):.2f}"}
        found |= {"last_loss": f"{losses[-1]:.2f}", "batch": twin["log"]["global_batch"]}
    sizes = {
        p.stat().st_size
        for folder in ("nano/pirate", f"{of['twin']}/merged")
        for p in [Path("outputs", folder, "model.safetensors")]
        if p.is_file()
    }
    return found | ({"merged_bytes": f"{sizes.pop():,}"} if len(sizes) == 1 else {})


def points():
    """[(what, published, the plan's low–high, how it lies)] of all runs that the plan is held to."""
    table, rows = facts.table("published.yml"), []
    for p in table["memory"]:
        expected, low, high = memory.interval(memory.parts(p["options"], facts.base(p["base"]), p.get("gpus", 1), 10**6))
        told = {"low": low, "expected": expected, "high": high}
        rows.append((p["of"], f"{p['gib']} GiB", page.told_as(told), page.within(p["gib"], told)))
    for p in table["speed"]:
        low, expected, high = speeds(p)
        told = {"low": low, "expected": expected, "high": high}
        rows.append((p["of"], f"{p['tokens_s']:,} tokens/s", f"{expected:,.0f} ({low:,.0f}–{high:,.0f})", page.within(p["tokens_s"], told)))
    return rows


def speeds(point):
    """Tokens a second by the plan, low, expected, high, over a run long enough for its start not to count."""
    cfg, steps = point["options"], 10_000
    n = steps * cfg["micro_batch_size"] * cfg["gradient_accumulation_steps"] * cfg["sequence_len"]
    computed = {"train": n, "evals": 0, "longest": cfg["sequence_len"], "cores": 1}
    return [n / 60 / m for m in facts.minutes(cfg, facts.base(point["base"]), facts.gpu(point["gpu"]), 1, computed, steps, [])]
