"""Rules on how much is learned: rows, steps, rates, the adapter; and on seeing what happens and keeping it."""

import math
import re

ADAM = re.compile(r"^(?!schedule_free|galore|q_galore|apollo).*adam")  # those have rates of their own
ATTENTION = re.compile(r"(^|[._])([qkvo]|qkv|w[qkvo])(_?proj)?$|query_key_value|Wqkv|W_pack|c_attn")
ESTIMATE = 0.85  # rows that are packed are counted by an estimate of their tokens, which is within 15 %


def undertrained(c):
    """error | the run ends before every row was seen once | the rest of the data was prepared, and paid for, in vain
    | a run of 500 steps of 8 that saw 9 % of its 45,000 rows | raise `max_steps`, or drop it and set `num_epochs`"""
    if c.plan and c.plan["epochs"] and c.plan["epochs"] < (ESTIMATE if c.sequences else 1):
        limited = (c.cfg.get("max_steps") or 0) > 0
        seen = f"{c.plan['steps']} steps × {c.batch} sequences see {'about ' * bool(c.sequences)}{c.plan['epochs']:.1%} of {c.rows:,} rows"
        todo = f"one epoch takes {math.ceil(c.plan['per_epoch'])} steps: raise max_steps, or drop it and set num_epochs"
        yield "max_steps" if limited else "num_epochs", seen, todo if limited else "num_epochs: 1 or more"


def no_gradient(c):
    """error | an adapter that no gradient can reach: `lora_dropout: 1`, `lora_alpha: 0`, `learning_rate: 0`, or `lm_head` under a loss that reads the head's frozen weight
    | at any number of steps nothing changes | tried with Axolotl 0.21, undertrained-dead-nano.yml; liger_kernel/transformers/model/llama.py
    | `lora_dropout: 0.05`, `lora_alpha` of half to twice `lora_r`; lm_head out of the targets"""
    cfg, targets = c.cfg, c.cfg.get("lora_target_modules")
    if c.lora and (cfg.get("lora_dropout") or 0) >= 1:
        yield "lora_dropout", f"lora_dropout {cfg['lora_dropout']:g} makes the adapter's input zero", "lora_dropout: 0.05"
    if c.lora and cfg.get("lora_alpha") == 0:
        yield "lora_alpha", "lora_alpha 0 makes the adapter's output zero", f"lora_alpha: {cfg.get('lora_r') or 16}"
    if cfg.get("learning_rate") == 0:
        yield "learning_rate", "a learning rate of 0 changes nothing", "begin with 2e-4 for an adapter, 1e-5 for all weights"
    if c.lora and cfg.get("liger_fused_linear_cross_entropy") and "lm_head" in (targets if isinstance(targets, list) else []):
        what = "liger_fused_linear_cross_entropy reads lm_head's frozen weight, past its adapter"
        yield "lora_target_modules", what, "liger_fused_linear_cross_entropy: false, or lm_head out of the targets"


def overtrained(c):
    """warning | more than 5 epochs over fewer than 5,000 rows | a small set is learned by heart, and the model forgets how to say anything else
    | a run of 35 epochs over 496 rows, which hallucinated | 2 or 3 epochs, more rows, or the checkpoint with the lowest eval loss"""
    if c.plan and c.plan["epochs"] and round(c.plan["epochs"], 1) > 5 and c.rows < 5000 and c.supervised:  # the last step is rounded up
        key = "max_steps" if (c.cfg.get("max_steps") or 0) > 0 else "num_epochs"
        todo = "2 or 3 epochs, more rows, or keep the checkpoint with the lowest eval loss"
        yield key, f"{c.plan['epochs']:.1f} epochs over {c.rows:,} rows", todo


def multiplier(cfg, step, steps, warmup):
    """The learning rate at a step, of its peak: the schedules of transformers/optimization.py and axolotl/utils/schedulers.py that can come near zero,
    else None."""
    kind, more = cfg.get("lr_scheduler") or "cosine", cfg.get("lr_scheduler_kwargs") or {}
    if cfg.get("jagged_restart_steps"):
        return None
    floor = number(more.get("min_lr_ratio"), 0) if kind == "warmup_stable_decay" else 0
    if step < warmup:
        return floor + (1 - floor) * step / warmup
    x = (step - warmup) / max(1, steps - warmup)
    if kind == "cosine":
        low, until = cfg.get("cosine_min_lr_ratio") or 0, cfg.get("cosine_constant_lr_ratio")
        if low and until:  # at its floor before the end
            x = min(1, (step - warmup) / max(1, int(steps * until) - warmup))
        cycles = 0.5 if low else number(more.get("num_cycles"), 0.5)
        return low + (1 - low) * (1 + math.cos(2 * math.pi * cycles * x)) / 2
    if kind == "linear":
        return 1 - x
    if kind == "polynomial":
        end = number(more.get("lr_end"), 1e-7) / (cfg.get("learning_rate") or 1)
        return end + (1 - end) * (1 - x) ** number(more.get("power"), 1)
    if kind == "warmup_stable_decay":
        decay = number(more.get("num_decay_steps"), 0)
        stable = number(more.get("num_stable_steps"), steps - warmup - decay)
        x = min(1, max(0, (step - warmup - stable) / max(1, decay)))
        return floor + (1 - floor) * (1 + math.cos(math.pi * x)) / 2
    return None


def number(value, default):
    """A number of an open mapping, which no schema has looked at."""
    return value if isinstance(value, (int, float)) and 0 <= value < 1e6 else default


def lr_exhausted(c):
    """error | the learning rate is below 1 % of its peak for more than 20 % of the steps
    | those steps cost as much as the others and teach nothing | a run that ended at 5e-10, with nothing learned; transformers' schedules, recomputed
    | a schedule that ends with the run; `cosine_min_lr_ratio: 0.1`"""
    if c.plan and c.plan["steps"] > 1:
        steps, warmup = c.plan["steps"], c.plan["warmup"]
        shares = [multiplier(c.cfg, i * steps // 400, steps, warmup) for i in range(400)]
        spent = sum(s is not None and s < 0.01 and i * steps // 400 >= warmup for i, s in enumerate(shares)) / 400
        if spent > 0.2:
            what = f"{spent:.0%} of the {steps} steps run at under 1 % of the peak learning rate"
            yield "lr_scheduler", what, "lr_scheduler: cosine spends 6 % there, with cosine_min_lr_ratio: 0.1 none"


def lr_range(c):
    """warning | Adam on an adapter outside 5e-5 … 1e-3, on all weights outside 1e-6 … 1e-4
    | an adapter's best rate is about ten times that of full fine-tuning, so a rate copied from one to the other is wrong
    | LoRA Without Regret (Thinking Machines, 2025); two adapters trained at 2e-5 and 5e-5
    | begin with 2e-4 for an adapter, 1e-5 for all weights"""
    rate, adam = c.cfg.get("learning_rate"), ADAM.search(c.cfg.get("optimizer") or "adamw")
    if rate is None or not adam or not c.supervised or c.cfg.get("adapter") and not c.lora:
        return
    low, high = (5e-5, 1e-3) if c.lora else (1e-6, 1e-4)
    if not low <= rate <= high:
        what = f"{rate:g} is {'low' if rate < low else 'high'} for {'an adapter' if c.lora else 'full fine-tuning'}"
        yield "learning_rate", what, f"begin with {'1e-4 to 3e-4' if c.lora else '5e-6 to 2e-5'}"


def no_warmup(c):
    """warning | warm-up is set to 0 | Adam's first steps have no statistics and go at full rate
    | Axolotl warms up over 3 % of the steps unless told otherwise | `warmup_ratio: 0.03`, or leave it out"""
    key = "warmup_steps" if c.cfg.get("warmup_steps") is not None else "warmup_ratio"  # Axolotl looks at the steps first
    if c.cfg.get(key) == 0 and c.cfg.get("lr_scheduler") != "constant":
        yield key, "the learning rate starts at its peak", "warmup_ratio: 0.03, or leave it out"


def warmup_too_long(c):
    """warning | warm-up takes more than half of the steps | the peak is reached late or never | arithmetic | `warmup_ratio: 0.03` to 0.1"""
    if c.plan and c.plan["warmup"] > c.plan["steps"] / 2 and c.plan["steps"] > 4:
        key = "warmup_steps" if c.cfg.get("warmup_steps") is not None else "warmup_ratio"
        yield key, f"{c.plan['warmup']} of {c.plan['steps']} steps are warm-up", "warmup_ratio: 0.03 to 0.1"


def tiny_batch(c):
    """warning | a step averages fewer than 8 conversations (packed ones counted) | with a handful of examples the gradient is mostly noise
    | QLoRA (Dettmers 2023) trains 7B to 65B with 16 and more | raise `gradient_accumulation_steps`"""
    if not c.batch or not c.supervised or c.cfg.get("sample_packing") and not c.sequences:
        return
    size = c.batch * (c.rows / c.sequences if c.sequences else 1)
    if round(size, 1) < 8:
        one = "" if c.cfg.get("x_hardware") else " on one GPU"
        packed = f", {size:.1f} conversations" * bool(c.sequences)
        todo = f"gradient_accumulation_steps: {math.ceil(8 / size * (c.cfg.get('gradient_accumulation_steps') or 1))}"
        yield "gradient_accumulation_steps", f"a global batch of {c.batch} sequence{'s' * (c.batch != 1)}{packed}{one}", todo


def weak_adapter(c):
    """warning | alpha/r (rsLoRA: alpha/√r) is under 0.25 or over 8
    | it scales every update as the learning rate does; it is not a strength against the base
    | LoRA (Hu 2021), rsLoRA (Kalajdzievski 2023) | `lora_alpha` of half to twice `lora_r` (rsLoRA: √r), and tune the learning rate rather"""
    r, alpha, rs = c.cfg.get("lora_r"), c.cfg.get("lora_alpha"), c.cfg.get("peft_use_rslora")
    if c.lora and r and alpha is not None:
        divisor = math.sqrt(r) if rs else r
        if not 0.25 <= alpha / divisor <= 8:
            todo = f"lora_alpha: {math.ceil(divisor / 2)} to {int(2 * divisor)}, and tune the learning rate rather"
            yield "lora_alpha", f"{'alpha/√r' if rs else 'alpha/r'} is {alpha / divisor:.3g}: every update is scaled by it", todo


def narrow_targets(c):
    """warning | an adapter on attention only | the MLP holds two thirds of the weights; adapters without it learn less, also at equal size
    | QLoRA (Dettmers 2023), section 4; LoRA Without Regret | `lora_target_linear: true`, at a smaller `lora_r` if memory is short"""
    targets = c.cfg.get("lora_target_modules")
    more = c.cfg.get("lora_target_linear") or c.cfg.get("lora_target_parameters")
    if c.lora and not more and isinstance(targets, list) and targets and all(t and ATTENTION.search(t) for t in targets):
        yield "lora_target_modules", f"only {', '.join(targets)}", "lora_target_linear: true, at a smaller lora_r if memory is short"


def eval_missing(c):
    """warning | no rows are held out | the training loss alone never tells when to stop | a run of 35 epochs, of which nothing was measured
    | `val_set_size: 0.05`, or `test_datasets` with rows of their own"""
    if not c.held_out and c.supervised:
        yield "val_set_size", "nothing is held out", "val_set_size: 0.05, or test_datasets with rows of their own"


def eval_never(c):
    """error | rows are held out and no key says when to evaluate; or `eval_steps` or `save_steps` lie beyond the last step
    | the rows lie idle, or are seen once at the end, where it is too late; a killed run is lost whole
    | tried with Axolotl 0.21: `evals_per_epoch: 1` in one epoch never evaluates, nor does leaving it out | `evals_per_epoch: 2`"""
    cfg, often = c.cfg, (c.cfg.get("evals_per_epoch") or 0) * (c.cfg.get("num_epochs") or 1)
    if c.evaluates and not (cfg.get("eval_steps") or cfg.get("eval_strategy") or cfg.get("evaluation_strategy") or often > 1):
        once = f"{cfg['evals_per_epoch']} × {cfg.get('num_epochs') or 1:g} is not more than 1, so Axolotl drops it" if often else ""
        yield "evals_per_epoch", f"rows are held out, and nothing says when to evaluate{': ' * bool(once)}{once}", "evals_per_epoch: 2"
    for key in ("eval_steps", "save_steps"):
        every = cfg.get(key) or 0
        if c.plan and every > 1 and every > c.plan["steps"] / (ESTIMATE if c.sequences else 1) and (key == "save_steps" or c.evaluates):
            todo = f"{key}: {max(1, c.plan['steps'] // 4)}, or {key[:4]}s_per_epoch: 2"
            yield key, f"{key} {every:g} in a run of {c.plan['steps']} steps", todo


def save_without_limit(c):
    """warning | more than four checkpoints and no `save_total_limit`
    | Axolotl then keeps the last four and drops the others, often the best, unasked; each is adapter and optimizer, or the whole model three times over
    | axolotl/core/builders/base.py | `save_total_limit: 2`, or as many as there is room for"""
    every, epochs = c.cfg.get("save_steps"), (c.plan or {}).get("epochs") or c.cfg.get("num_epochs") or 1
    if every:
        count = 1 / every if 0 < every < 1 else c.plan["steps"] / every if c.plan else 0
    else:
        count = epochs * (c.cfg.get("saves_per_epoch") or 1)
    if count > 4 and not c.cfg.get("save_total_limit") and c.cfg.get("save_strategy") not in ("no", "best"):
        what = f"about {count:.0f} checkpoints are written, and Axolotl keeps the last four"
        yield "save_total_limit", what, "save_total_limit: 2, or as many as there is room for", ("set", "save_total_limit", 2)


def no_seed(c):
    """warning | no `seed` | Axolotl shuffles the rows, and draws those held out, anew at each preprocessing, so two runs cannot be compared
    | axolotl/utils/data/shared.py | `seed: 42`"""
    if "seed" not in c.raw:
        yield "seed", "no seed is set, so the rows are shuffled anew each time", "seed: 42", ("set", "seed", 42)
