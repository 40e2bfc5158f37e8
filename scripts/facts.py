"""Facts that need no network: shapes and tokens of base models, memory and speed of GPUs (recipes/facts/*.yml, with their sources).

A base that is not among them is looked up in its own folder, or in the hub's cache on this machine.
"""

import json
import os
import re
from functools import lru_cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent / "recipes/facts"  # also for recipes outside this folder
# Share of the GPU's dense bf16 peak that training steps reach, recomputation counted as work: low, expected, high. Published points lie between 0.4 and 0.9.
EFFICIENCY = (0.25, 0.5, 0.95)
START = (0.7, 2, 6)  # minutes: imports, reading and quantizing the weights, compiling kernels, saving
CPU = (8e9, 25e9, 60e9)  # FLOP/s of a core, fp32, in small matrices
GIB = 2**30
QUANT_BITS = {"IQ": 4, "Q2": 3, "Q3": 4, "Q4": 4.9, "Q5": 5.7, "Q6": 6.6, "Q8": 8.5, "F1": 16, "BF": 16}  # a weight, llama.cpp's tables
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache
def table(name):
    """recipes/facts/NAME, parsed once a process."""
    return yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader=LOADER)


def base(model):
    """What is known of a base model without loading it (see recipes/facts/bases.yml for the keys): {} where nothing is.

    From its folder, from the facts that come with the repository, or from the hub's cache on this machine, in this order.
    """
    model = str(model)
    known = table("bases.yml")
    if (Path(model) / "config.json").is_file():
        return from_config(Path(model))
    if model.startswith("outputs/nano/"):  # not made yet
        size = known["nano"].get(Path(model).name.partition("-")[2])
        return {"name": model, **size} if size else {}
    name = known["aliases"].get(model, model)
    if name in known["models"]:
        mirror = model.split("/")[0] != name.split("/")[0]  # mirrors ask for no licence form
        return {"name": name, **known["models"][name]} | ({"gated": False} if mirror else {})
    cached = sorted(cache_of(model).glob("snapshots/*/config.json"))
    return from_config(cached[-1].parent) if cached else {}


def cache_of(model):
    """Where the hub's client keeps a model on this machine."""
    home = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface") / "hub")
    return home / f"models--{model.replace('/', '--')}"


def from_config(folder):
    """A base's facts from its config.json and tokenizer_config.json."""
    cfg = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    cfg = {**cfg, **(cfg.get("text_config") or {})}
    words, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    words = json.loads(words.read_text(encoding="utf-8")) if words.is_file() else {}
    tokens = {k: v["content"] if isinstance(v, dict) else v for k in ("bos", "eos", "pad") for v in [words.get(f"{k}_token")]}
    heads = cfg.get("num_attention_heads") or 1
    return {
        "name": folder.name,
        "family": cfg.get("model_type"),
        "instruct": None,
        "hidden": cfg.get("hidden_size"),
        "layers": cfg.get("num_hidden_layers"),
        "heads": heads,
        "kv_heads": cfg.get("num_key_value_heads") or heads,
        "head_dim": cfg.get("head_dim") or (cfg.get("hidden_size") or 0) // heads,
        "intermediate": cfg.get("intermediate_size"),
        "vocab": cfg.get("vocab_size"),
        "tied": bool(cfg.get("tie_word_embeddings")),
        "max_position": cfg.get("max_position_embeddings"),
        "tokenizer": str(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None,
        "template": str(template) if template.is_file() else None,
        **tokens,
    }


def gpus():
    return table("gpus.yml")


def gpu(kind):
    """Facts of a GPU by its key in recipes/facts/gpus.yml, {} for None. Raises ValueError for an unknown one."""
    known = gpus()
    if kind and kind not in known:
        raise ValueError(f"unknown GPU {kind!r}; recipes/facts/gpus.yml knows {', '.join(known)}: take one of them, or add yours there")
    return known[kind] if kind else {}


def gpu_called(name):
    """The key of the GPU that the driver calls so. Raises ValueError if it is not known."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    words += [a + b for a, b in zip(words, words[1:])]  # "4060 Ti" is one word in a key

    def fits(key):
        model, *rest = key.removeprefix("rtx").split("-")
        return (model in words) * (1 + len(model) + sum(r in words or f"{r}b" in words for r in rest) - 0.1 * len(rest))

    best = max(gpus(), key=fits)
    if not fits(best):
        raise ValueError(f"{name}: recipes/facts/gpus.yml does not know this GPU; add it there")
    return best


def linears(base):
    """{module: (in features, out features)} of one decoder layer, as transformers names them."""
    h, i = base["hidden"], base["intermediate"]
    q, kv = base["heads"] * base["head_dim"], base["kv_heads"] * base["head_dim"]
    if base.get("fused"):  # Phi-3 and Phi-4: one matrix for q, k, v, one for gate and up
        return {"qkv_proj": (h, q + 2 * kv), "o_proj": (q, h), "gate_up_proj": (h, 2 * i), "down_proj": (i, h)}
    attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
    return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


def linear_parameters(base):
    """Weights of all linear layers of all decoder layers: what NF4 quantizes and `lora_target_linear` adapts."""
    return base["layers"] * sum(a * b for a, b in linears(base).values())


def adapter_parameters(base, cfg):
    """Trainable parameters of the recipe's LoRA: r · (in + out) for each adapted matrix of each layer (Hu 2021, section 4.1)."""
    shapes, named = linears(base), cfg.get("lora_target_modules") or []
    named = [named] if isinstance(named, str) else named
    everything = cfg.get("lora_target_linear") or "all-linear" in named
    chosen = [s for m, s in shapes.items() if everything or any(str(n).endswith(m) for n in named)]
    tables = sum(any(str(n).endswith(m) for n in named) for m in ("embed_tokens", "lm_head"))  # not among the linear ones
    return int(cfg.get("lora_r") or 8) * (base["layers"] * sum(a + b for a, b in chosen) + tables * (base["vocab"] + base["hidden"]))


def parameters(base):
    """All weights: the linears, embedding and head (once if tied), norms. Exact where recipes/facts/bases.yml has it."""
    tables = base["vocab"] * base["hidden"] * (1 if base.get("tied") else 2)
    return base.get("parameters") or linear_parameters(base) + tables + (2 * base["layers"] + 1) * base["hidden"]


def four_bit(cfg):
    return bool(cfg.get("load_in_4bit") or cfg.get("adapter") == "qlora")


def zero(cfg):
    """The ZeRO stage of the recipe's DeepSpeed config, inline or in a file; of a file that is not here, what its name says. None: no DeepSpeed."""
    config = cfg.get("deepspeed")
    if isinstance(config, str):
        named = re.search(r"zero(\d)", config)
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return int(named[1]) if named else None
    stage = config.get("zero_optimization") if isinstance(config, dict) else None
    return stage.get("stage") if isinstance(stage, dict) else None


def minutes(cfg, base, gpu, gpus, computed, steps, held):
    """Minutes of training and evaluation: FLOPs over the peak's usable share, and what NF4 adds in memory traffic.

    A token costs 2 FLOPs a weight forward, 2 for the gradient of its input, 2 again if the layer is recomputed, and in full fine-tuning 2 for the weight's own
    gradient (Kaplan 2020, appendix B; Korthikanti 2022); attention adds 4 · tokens · context · width forward, half of it under the causal mask.
    """
    full = not cfg.get("adapter")
    recompute = bool(cfg.get("gradient_checkpointing"))
    weights = linear_parameters(base) + base["hidden"] * base["vocab"] + (adapter_parameters(base, cfg) if not full else 0)
    context = min(int(cfg.get("sequence_len") or 512), computed["longest"])
    attention = 2 * base["layers"] * base["heads"] * base["head_dim"] * context
    token = (2 * weights + attention) * (2 + recompute + full)
    flops = token * computed["train"] + (2 * weights + attention) * sum(held) * computed["evals"]
    if not gpu:
        peaks = [f * computed["cores"] for f in CPU]
        return [flops / p / 60 + s * steps / 60 + 0.5 for p, s in zip(peaks, (0.25, 0.12, 0.05))]
    peak = gpu.get("bf16_tflops") or gpu.get("fp16_tflops")
    traffic = 0.0
    if four_bit(cfg):  # each matrix is read as NF4, written as bf16 and read again, in every pass of every micro batch
        passes = steps * int(cfg.get("gradient_accumulation_steps") or 1) * (2 + recompute)
        traffic = passes * linear_parameters(base) * 4.5 / (gpu["bandwidth_gb_s"] * 1e9 * 0.7)
    return [flops / (peak * 1e12 * e * gpus) / 60 + traffic / 60 + s for e, s in zip(EFFICIENCY, reversed(START))]


def disk(cfg, base):
    """GiB: base, merged and F16 at 2 bytes a weight, the quantized files, checkpoints of adapter and optimizer."""
    weights = parameters(base)
    quants = (cfg.get("export") or {}).get("quantize") or []
    kept = int(cfg.get("save_total_limit") or 4)  # four is what Axolotl keeps unless told otherwise
    trained = adapter_parameters(base, cfg) if cfg.get("adapter") else weights
    models = weights * 2 * (2 + bool(quants)) + sum(weights * QUANT_BITS.get(str(q).upper()[:2], 8) / 8 for q in quants)
    return (models + trained * 12 * kept + trained * 4) / GIB


def merge_ram(base):
    """GiB at the merge's peak: Axolotl's imports, and twice the largest shard (measured: 2.14 shards of 5 GB; files on the hub have up to 5 GB)."""
    return 1.2 + 2 * min(5e9, parameters(base) * 2) / GIB


def allocated(vram):
    """{"low", "expected", "high"} GiB of a plan's `vram_gib` as PyTorch's allocator counts: the runtime lies beneath it. `low` has none in it."""
    return {k: gib - (0 if k == "low" else vram["parts"]["runtime"]) for k, gib in vram.items() if k != "parts"}
