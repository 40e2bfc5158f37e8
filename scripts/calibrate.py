"""Measure the memory of LoRA and QLoRA training steps over a grid, so that a planner's formula can be fitted and put to the test.

    python -m scripts.calibrate             # a GPU: run every point → reports/calibration/grid.jsonl; none: trace it → trace.jsonl
    python -m scripts.calibrate --trace     # trace, also where there is a GPU
    python -m scripts.calibrate --only 3    # the first three points, to the screen alone

The model is transformers' Llama with PEFT's adapter, set up as Axolotl 0.21 does it for `adapter: lora` or `qlora` with `bf16: true`.
A trace runs whole steps (forward, loss, backward, AdamW) on tensors that have shapes but no data, and adds up the bytes of those that live.
"""

import argparse
import gc
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from scripts import files, process, receipt
from scripts.steps.model import ACCUMULATION, BASES, build, prepare
from scripts.steps.tracing import as_on_cuda, tracker

FOLDER = Path("reports/calibration")
KEYS = ["base", "adapter", "sequence_len", "micro_batch", "r", "dropout", "checkpointing", "fused_loss", "kernels"]
WARM_UP, TIMED = 3, 5


def point(line, where="a point"):
    """`8B qlora 2048 1 64 0.05 cf` → the keys of a record."""
    try:
        short, adapter, tokens, rows, r, dropout, on = line.split()
        base = {name[-len(short) :]: name for name in BASES}[short]
        return dict(zip(KEYS, [base, adapter, int(tokens), int(rows), int(r), float(dropout), *(flag in on for flag in "cfk")]))
    except (ValueError, KeyError):
        raise ValueError(f"{where}: {line!r} is not BASE ADAPTER TOKENS ROWS R DROPOUT FLAGS, as in `8B qlora 2048 1 64 0.05 cf`") from None


def trace(p, fake=True, cuda=True):
    """Bytes at the peak of a later step's last micro batch. For the test: fake=False takes real CPU tensors, cuda=False CPU's own ways."""
    from unittest.mock import patch

    import bitsandbytes as bnb
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, live = build(p), tracker()
    llama = model.get_base_model().model
    llama.register_forward_pre_hook(lambda *_: setattr(live, "phase", "forward"))
    llama.register_forward_hook(lambda *_: setattr(live, "phase", "loss"))
    llama.norm.register_forward_pre_hook(lambda _, args: args[0].register_hook(lambda _: setattr(live, "phase", "layers")) and None)
    swaps = {
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,  # else CUDA's autocast is off
        "torch.cuda.is_bf16_supported": lambda: True,
        "torch.utils.checkpoint.DefaultDeviceType._default_device_type": "cuda",
        "transformers.masking_utils.find_packed_sequence_indices": lambda *_: None,  # it looks at values
    } | dict(as_on_cuda(p["kernels"]) if cuda else {})
    with ExitStack() as stack:
        for mode in [*(patch(name, new) for name, new in swaps.items()), *[FakeTensorMode()] * fake]:
            stack.enter_context(mode)
        stack.enter_context(patch.dict(bnb.functional.name2qmap, dynamic=torch.ones(256)))  # made from values, once a process
        stack.enter_context(live)
        trainable, optimizer, micro_batch = prepare(model, p, "cpu")
        for w in trainable:
            live.name(w, "adapter")
            w.grad = torch.zeros_like(w)  # of the micro batches before
            live.name(w.grad, "gradients")
        live.phase = "step"
        optimizer.step()
        live.peak, live.phases = 0, {}  # from here on as in every later step
        micro_batch()
        live.phase = "step"
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
    return {"peak_bytes": live.peak, "peak_at": live.at, "parts": live.parts, "phases": live.phases}


def measure(p, device):
    """Real steps with random weights: time, and on a GPU peak memory. Out of memory is a result too."""
    import torch

    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    try:
        trainable, optimizer, micro_batch = prepare(build(p), p, device)
        for n in range(WARM_UP + TIMED):
            if n == WARM_UP:
                sync()
                began = time.perf_counter()
            for _ in range(ACCUMULATION):
                micro_batch()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        sync()
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    seconds = (time.perf_counter() - began) / TIMED
    found = {"seconds_per_step": seconds, "tokens_per_second": ACCUMULATION * p["micro_batch"] * p["sequence_len"] / seconds}
    if device == "cuda":
        found |= {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    return found


def record(p, real):
    """One line of the results."""
    import torch

    counts = {True: 0, False: 0}  # of weights that train, and that do not
    for w in build(p).parameters():
        counts[w.requires_grad] += w.numel()
    if real:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    found = (
        {"device": "cuda", "gpu": torch.cuda.get_device_name()} | measure(p, "cuda") if real else {"device": "fake cpu, as cuda"} | trace(p)
    )
    known = {"kind": "step" if real else "trace", **p, "packing": False, "attention": "sdpa", "accumulation": ACCUMULATION}
    return known | found | {"weights_bf16_bytes": 2 * counts[False], "adapter_parameters": counts[True], "versions": receipt.versions()}


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.calibrate", description="Measure the memory of training steps over a grid.")
    parser.add_argument("--only", type=int, metavar="N", help="the first N points, to the screen alone")
    parser.add_argument("--trace", action="store_true", help="trace, also where there is a GPU")
    args = parser.parse_args(argv)
    import torch
    from tqdm import tqdm

    real, lines = torch.cuda.is_available() and not args.trace, []
    path = FOLDER / ("grid.jsonl" if real else "trace.jsonl")
    todo = [point(line, f"{FOLDER}/points.txt:{n}") for n, line in enumerate((FOLDER / "points.txt").read_text().splitlines(), 1) if n > 1]
    for p in tqdm(todo[: args.only], desc="calibrate", leave=False, disable=not sys.stderr.isatty()):
        lines.append(json.dumps(record(p, real)))
        if args.only:
            print(lines[-1])
        else:  # after every point: what comes later may fail
            files.write_if_changed(path, "\n".join(lines) + "\n")
    if not args.only:
        print(f"calibrate   {path}: {len(lines)} points")
    return 0


if __name__ == "__main__":
    process.command(main)
