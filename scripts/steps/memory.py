"""The memory of one training step, term by term: what `make plan` adds up. All sizes in bytes.

The terms of activations were read off steps traced through transformers, PEFT, bitsandbytes and Axolotl's kernels (`make calibrate`); what each stands
for is in reports/calibration/README.md, and tests/test_plan.py holds this file to every traced step.
"""

import re

from scripts import facts

FUSED = ("liger_fused_linear_cross_entropy", "cut_cross_entropy", "chunked_cross_entropy")  # losses that never hold all logits
MOVING = (
    "activations kept",
    "one layer at work",
    "forward of the last layer",
    "loss",
    "logits and loss",
)  # of `parts`: grow with the tokens


def optimizer_bytes(cfg):
    """Bytes of state a trainable weight: two fp32 moments; one byte each in 8-bit ones (Dettmers 2021), one moment for Lion and SGD with momentum."""
    name = str(cfg.get("optimizer") or "adamw_torch")
    moments = 1 if re.search(r"lion|sgd|muon", name) else 0.02 if "adafactor" in name else 2
    return moments * (1 if "8bit" in name else 0.5 if "4bit" in name else 4)


def layer(cfg, base):
    """(S, M): bytes a token that autograd keeps of one decoder layer, and alternatives of what is alive in its backward pass, each (a token, once)."""
    h, i, n = base["hidden"], base["intermediate"], base["heads"]
    a, k, r = n * base["head_dim"], base["kv_heads"] * base["head_dim"], int(cfg.get("lora_r") or 8) if cfg.get("adapter") else 0
    dropped, nf4 = float(cfg.get("lora_dropout") or 0) > 0, quantized(cfg)
    w = matrix(cfg, base)
    scaled = w + w / 16  # with its scales in fp32
    if kernels(cfg):
        kept = (18 * h + 7 * a if dropped else 12 * h + 4 * a) + 4 * i + 4 * k + 4 * n + 8
        return kept, [(kept + 6 * h + 2 * i, w), (kept + 4 * h + 2 * i, w + w / 32)]
    kept = (
        (23 * h + 7 * a + 9 * i if dropped else (12 * h + 4 * a if nf4 or not r else 18 * h + 6 * a) + 8 * i) + 4 * k + 14 * r + 4 * n + 8
    )
    if not nf4:
        return kept, [(kept + 10 * h + (10 if dropped else 6) * i, 0)]
    if dropped:
        return kept, [(kept + 10 * h + 2 * i, 0), (kept + 10 * h - i - 2 * r, scaled)]
    return kept, [(kept + 2 * h + 4 * i - 2 * r, 0), (kept + 8 * h - 2 * r, scaled), (kept + 2 * h + 2 * i, w)]


def quantized(cfg):
    return facts.four_bit(cfg) or bool(cfg.get("load_in_8bit"))


def matrix(cfg, base):
    """The largest linear layer as the step holds it for a moment, dequantized to bf16; 0 where nothing is quantized."""
    return 2 * max(x * y for x, y in facts.linears(base).values()) if quantized(cfg) else 0


def kernels(cfg):
    return bool(cfg.get("lora_mlp_kernel") and cfg.get("lora_qkv_kernel"))


def moments(cfg, base, tokens, trained):
    """(kept, {moment: bytes on top of it}): the peak is at one of three moments, a layer's backward, the loss, or the last layer's forward.

    `tokens` of one micro batch, `trained` weights. With checkpointing each layer's input is kept, and one layer is computed again (Chen 2016).
    """
    h, i, layers = base["hidden"], base["intermediate"], base["layers"]
    kept, working = layer(cfg, base)
    fused = any(cfg.get(key) for key in FUSED)
    copies = 2 * trained if cfg.get("adapter") else 0  # autocast holds the adapter in bf16 too, all of it or layer by layer
    nf4, dropped = quantized(cfg), float(cfg.get("lora_dropout") or 0) > 0
    w = matrix(cfg, base)
    backward = max(a_token * tokens + once for a_token, once in working)
    if cfg.get("gradient_checkpointing"):
        offloaded = cfg.get("activation_offloading") or cfg["gradient_checkpointing"] == "offload"
        saved = 2 * h * tokens * (2 if offloaded else layers)
        forward = (6 * h + 12 * i if dropped else 8 * h + 8 * i) * tokens
        if nf4:
            forward = max((4 * h + 8 * i) * tokens, (4 * h + 4 * i) * tokens + w * 17 / 16)
        forward = (8 * h + 6 * i) * tokens + w if kernels(cfg) else forward + copies
        loss, backward = (24 * h if fused else 12 * base["vocab"] + 4 * h) * tokens, backward + copies / layers
    else:
        saved = (kept * layers + 2 * h) * tokens + copies
        forward = (8 * h - i) * tokens + w * 17 / 16 if nf4 else (8 * h + (10 if dropped else 4) * i) * tokens
        forward = (8 * h + 2 * i) * tokens + w if kernels(cfg) else forward
        loss, backward = (22 * h if fused else 12 * base["vocab"] + 4 * h) * tokens, backward - (kept + 8 * h) * tokens
    names = {"one layer at work": backward + 16 * tokens, "loss" if fused else "logits and loss": loss + 16 * tokens}
    return saved, names | {"forward of the last layer": forward + 8 * tokens}


def parts(cfg, base, gpus, longest):
    """{part: bytes} of the peak memory of one device in a training step, PyTorch's own allocations and the runtime beneath them.

    Weights as QLoRA stores them (Dettmers 2023, section 3: NF4 in blocks of 64, an 8-bit scale a block, an fp32 scale for 256 of those: 0.5159 bytes a weight);
    adapter and gradients in fp32 as PEFT casts them, bf16 with fp32 masters under DeepSpeed; ZeRO shards over `gpus` (Rajbhandari 2020, section 5).
    """
    linear, stage, spread = facts.linear_parameters(base), facts.zero(cfg), max(1, gpus)
    others, row = facts.parameters(base) - linear, int(cfg.get("sequence_len") or 512)
    trained = facts.adapter_parameters(base, cfg) if cfg.get("adapter") else facts.parameters(base)
    row = row if cfg.get("sample_packing") or cfg.get("pad_to_sequence_len") else min(longest, row)
    saved, at = moments(cfg, base, int(cfg.get("micro_batch_size") or 1) * row, trained)
    peak = max(at, key=at.get)
    size = 4 if stage is None and cfg.get("adapter") else 2
    lifted = facts.four_bit(cfg) and cfg.get("attn_implementation") in (
        "sdpa",
        "eager",
    )  # Axolotl then leaves them in fp32, as PEFT made them
    found = {
        "weights": linear
        * (0.5 + 1 / 64 + 1 / 4096 if facts.four_bit(cfg) else 1 if cfg.get("load_in_8bit") else 2)
        / (spread if stage == 3 else 1),
        "embedding, head, norms": others * (4 if lifted else 2),
        "adapter": trained * size if cfg.get("adapter") else 0,
        "gradients": trained * size / (spread if stage and stage >= 2 else 1),
        "optimizer": trained * (optimizer_bytes(cfg) + (4 if stage is not None else 0)) / (spread if stage else 1),
        "activations kept": saved + 4 * base["head_dim"] * row,
        peak: at[peak],
        "runtime": (0.6 + (0.6 if spread > 1 else 0)) * facts.GIB,
    }
    return {k: v for k, v in found.items() if v}


def interval(found):
    """(expected, low, high) GiB of what `parts` found. Low: what PyTorch must hold; high: what the driver may show, with the allocator's blocks and fragments."""
    total, runtime = sum(found.values()), found["runtime"]
    logits = found.get("logits and loss", 0)  # how often they are copied differs between versions: 10 to 17 bytes a logit
    moving = sum(found.get(k, 0) for k in MOVING)
    low, high = (total - runtime) * 0.955 - 0.05 * moving, total * 1.04 + 0.2 * moving + 0.4 * logits + 0.6 * facts.GIB
    return total / facts.GIB, low / facts.GIB, high / facts.GIB
