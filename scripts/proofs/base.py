"""The base as training saw it: where its files lie, and what NF4 made of its weights."""

from pathlib import Path

from scripts import recipe


def folder(cfg):
    """The base's folder: local, or the hub cache's snapshot (training has downloaded it)."""
    if recipe.is_local(cfg):
        return Path(cfg["base_model"])
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(cfg["base_model"], allow_patterns=["*.safetensors", "*.json", "tokenizer.model"]))


def tokenizer_files(folder):
    """The tokenizer and the chat template, as training saves them."""
    return [path for path in sorted(folder.iterdir()) if path.name.startswith(("tokenizer", "special_tokens", "chat_template"))]


def rounded(cfg, name):
    """Whether QLoRA rounded this matrix of the base: those of the layers, not the embedding and not the head."""
    return bool(cfg.get("load_in_4bit")) and ".layers." in name


def round_trip(weight):
    """What QLoRA training saw of a weight: NF4 in blocks of 64, its scales quantized too (bitsandbytes), on the device that the merge uses."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed, state = quantize_4bit(weight.contiguous().to(device), blocksize=64, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(packed, state).to("cpu", weight.dtype)
