"""The bytes of living tensors, added up operation by operation, where CPU tensors stand in for those of CUDA."""

PARTS = {"weights": "weights", "forward": "activations", "loss": "activations", "layers": "temporary", "step": "optimizer"}  # of a phase


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
