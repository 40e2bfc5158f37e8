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

FOLDER = Path("reports/calibration")
KEYS = ["base", "adapter", "sequence_len", "micro_batch", "r", "dropout", "checkpointing", "fused_loss", "kernels"]
SHAPE = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size"]
BASES = {
    "meta-llama/Llama-3.2-1B": (2048, 16, 32, 8, 64, 8192, 128256),
    "meta-llama/Llama-3.2-3B": (3072, 28, 24, 8, 128, 8192, 128256),
    "meta-llama/Llama-3.1-8B": (4096, 32, 32, 8, 128, 14336, 128256),
    "nano": (64, 2, 4, 2, 16, 128, 512),  # for the tests
}
ACCUMULATION = 2  # the second micro batch finds the gradients of the first: the peak of every recipe that accumulates
WARM_UP, TIMED = 3, 5
PARTS = {"weights": "weights", "forward": "activations", "loss": "activations", "layers": "temporary", "step": "optimizer"}  # of a phase


def point(line, where="a point"):
    """`8B qlora 2048 1 64 0.05 cf` → the keys of a record."""
    try:
        short, adapter, tokens, rows, r, dropout, on = line.split()
        base = {name[-len(short) :]: name for name in BASES}[short]
        return dict(zip(KEYS, [base, adapter, int(tokens), int(rows), int(r), float(dropout), *(flag in on for flag in "cfk")]))
    except (ValueError, KeyError):
        raise ValueError(f"{where}: {line!r} is not BASE ADAPTER TOKENS ROWS R DROPOUT FLAGS, as in `8B qlora 2048 1 64 0.05 cf`") from None


def build(p):
    """The model with its adapter on the meta device: shapes and dtypes, no bytes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    shape = dict(zip(SHAPE, BASES[p["base"]]))
    config = LlamaConfig(**shape, tie_word_embeddings="3.2" in p["base"], max_position_embeddings=p["sequence_len"])
    with torch.device("meta"):
        # Axolotl lets PEFT lift norms, embeddings and head to float32 and then takes them back to bfloat16: here they never leave it.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").requires_grad_(False)
        if p["adapter"] == "qlora":
            replace_with_bnb_linear(model, ["lm_head"], BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16))
            model.is_loaded_in_4bit = True
        if p["checkpointing"]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        lora = LoraConfig(r=p["r"], lora_alpha=32, lora_dropout=p["dropout"], target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, lora).train()  # PEFT makes the adapter float32, and Axolotl leaves it so


def fill(model, device):
    """Give every parameter its bytes, matrix by matrix, quantizing on the way: the whole is never there in bfloat16."""
    import bitsandbytes as bnb
    import torch

    torch.manual_seed(0)
    done = {}  # a tied head is the same parameter
    how = {"blocksize": 64, "compress_statistics": True, "quant_type": "nf4", "quant_storage": torch.bfloat16}
    for module in model.modules():
        nf4 = isinstance(module, bnb.nn.Linear4bit)
        for name, old in module.named_parameters(recurse=False):
            if id(old) not in done:
                weight = torch.empty(old.shape, dtype=torch.bfloat16 if nf4 else old.dtype, device=device).normal_(std=0.02)
                weight, state = bnb.functional.quantize_4bit(weight, **how) if nf4 else (weight, None)
                done[id(old)] = torch.nn.Parameter(weight, requires_grad=old.requires_grad)
                done[id(old)].quant_state = state
            module._parameters[name] = done[id(old)]
        for name, old in module.named_buffers(recurse=False):
            module._buffers[name] = torch.ones(old.shape, dtype=old.dtype, device=device)


def fuse(model, on):
    """Axolotl's LoRA kernels. Once they have patched the attention, every model of this process must be told whether to use them."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    if on or hasattr(LlamaAttention, "_original_forward"):
        from axolotl.monkeypatch import lora_kernels
        from axolotl.utils.dict import DictDefault

        lora_kernels.get_attention_cls_from_config = lambda _: LlamaAttention  # it would ask the hub
        lora_kernels.patch_self_attn_lora(DictDefault())
        lora_kernels.apply_lora_kernel_patches(model, DictDefault(lora_qkv_kernel=on, lora_o_kernel=on, lora_mlp_kernel=on))


def fused_loss(hidden, weight, labels):
    """Liger's fused linear cross-entropy; without a GPU a stand-in that takes the same memory: the gradient, and one chunk of logits."""
    if hidden.is_cuda:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(hidden, weight, labels)
    tokens, vocab, width = len(hidden), *weight.shape
    chunk = min(tokens, 1 << (-(-tokens // -(-vocab // width)) - 1).bit_length())
    _held = hidden.new_empty(tokens, width), hidden.new_empty(chunk, vocab)
    return hidden[0, 0].float()  # whose backward makes the gradient anew


def prepare(model, p, device):
    """(trainable weights, optimizer, a function that takes one micro batch through the model as Trainer and accelerate do)."""
    import torch
    from accelerate.utils.operations import convert_to_fp32

    fill(model, device)
    fuse(model, p["kernels"])
    llama, trainable = model.get_base_model(), [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
    ids = torch.ones(p["micro_batch"], p["sequence_len"], dtype=torch.long, device=device)

    def loss():
        # Traces run on fake CPU tensors, but PEFT and checkpointing ask for CUDA's autocast.
        with torch.autocast("cuda", torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
            if p["fused_loss"]:
                hidden = llama.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
                return fused_loss(hidden, llama.lm_head.weight, ids.flatten())
            out = model(input_ids=ids, labels=ids, use_cache=False)
        return convert_to_fp32(out)["loss"]

    return trainable, optimizer, lambda: (loss() / ACCUMULATION).backward()


def workspace(op, args):
    """What two CUDA kernels take for themselves, by their source: bitsandbytes dequantizes a matrix, flash attention sums dQ in float32."""
    if op.startswith("bitsandbytes.gemm_4bit"):
        elements = args[2][0] * args[2][1]
        return 2 * elements + 8 * (elements // 64)
    if op.startswith("aten._scaled_dot_product_flash_attention_backward"):
        return args[1].numel() * (4 if args[1].shape == args[2].shape else 8)  # grouped queries: dK and dV of every head, too
    return 0


def tracker():
    """A dispatch mode that adds up the bytes of living storages, each under the part of the phase that made it."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        alive, now, peak, phase, phases = {}, 0, 0, "weights", {}

        def gone(self, key):
            self.now -= self.alive.pop(key)[0]

        def name(self, tensor, part):
            self.alive[tensor.untyped_storage()._cdata][1] = part

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                    storage = tensor.untyped_storage()
                    key, size = storage._cdata, -(-storage.nbytes() // 512) * 512  # CUDA's allocator hands out multiples of 512
                    if key not in self.alive:
                        self.alive[key] = [size, PARTS[self.phase], weakref.ref(storage, lambda _, key=key: self.gone(key))]
                        self.now += size
            total = self.now + (extra := workspace(str(op), args))
            self.phases[self.phase] = max(self.phases.get(self.phase, 0), total)
            if total > self.peak:
                self.peak, self.at, self.parts = total, f"{self.phase}: {op}", {}
                for size, part, _ in [*self.alive.values(), (extra, "temporary", None)]:
                    self.parts[part] = self.parts.get(part, 0) + size
            return out

    return Live()


def as_on_cuda(kernels):
    """What CPU tensors must do to take the memory CUDA's would. (Backward on fake CUDA tensors needs a driver.)"""
    import bitsandbytes as bnb
    import torch

    def dequantize(packed, state=None):
        out = packed if state is None else bnb.functional.dequantize_4bit(packed.view(-1, 1), state)
        return out.t() if state and len(packed) == 1 else out

    flash = torch.ops.aten._scaled_dot_product_flash_attention
    yield "torch.nn.functional.scaled_dot_product_attention", lambda q, k, v, **_: flash(q, k, v, 0.0, True)[0]
    yield "torch.nn.Dropout.forward", lambda self, x: torch.native_dropout(x, self.p, self.training)[0]
    if kernels:
        import axolotl.monkeypatch.lora_kernels  # noqa: F401 - while tensors are real

        yield "axolotl.kernels.lora.dequantize", dequantize
        yield "axolotl.kernels.lora._gradient_mm", lambda left, right, dtype, _: left.new_empty(len(left), right.shape[1], dtype=dtype)


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
