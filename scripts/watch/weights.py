"""The adapter's weights, as they stand while it is trained. Matrices that this rank does not hold whole (ZeRO-3, FSDP) are left out."""

import torch


def short(name):
    """`base_model.model.model.layers.0.self_attn.q_proj` → `layers.0.self_attn.q_proj`."""
    return name.replace("_orig_mod.", "").removeprefix("base_model.model.").removeprefix("model.")


def whole(weight):
    return weight.ndim == 2 and weight.numel() > 0 and not weight.is_meta and type(weight).__name__ != "DTensor"


def listed(found):
    """{name: a tensor of figures} → {name: figures}, asking the device once."""
    device = next(iter(found.values())).device if found else None
    return dict(zip(found, torch.stack([v.to(device) for v in found.values()]).tolist(), strict=True)) if found else {}


@torch.no_grad()
def lora_b(model):
    """{layer: ‖B‖} of every LoRA matrix B, in PEFT's names for them."""
    named = ((n.partition(".lora_"), p) for n, p in model.named_parameters())
    return listed({short(layer): p.float().norm() for (layer, _, kind), p in named if kind.startswith("B.") and whole(p)})


@torch.no_grad()
def norms(model, base):
    """{layer: {"a": ‖A‖, "b": ‖B‖, "delta": ‖s·B·A‖, "base": ‖W‖, "share": delta / base}}, Frobenius norms.

    ‖B·A‖² = tr(AᵀBᵀBA) = Σ (BᵀB) ∘ (AAᵀ): two r × r Gram matrices instead of a product as large as the layer. s is PEFT's own scaling, also
    rsLoRA's. (DoRA scales W + s·B·A anew, column by column; its delta here is still s·B·A.) W is the frozen weight as the training sees it;
    `base` keeps {layer: ‖W‖} between calls. In double precision: products of floats may be TF32.
    """
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or hasattr(layer, "parameter_name"):  # a stack of experts is no single product
            continue
        for key in set(layer.active_adapters) & layer.lora_A.keys():
            a, b = layer.lora_A[key].weight, layer.lora_B[key].weight
            if whole(a) and whole(b):
                a, b, name = a.double(), b.double(), short(name)
                product = ((b.T @ b) * (a @ a.T)).sum().clamp_min(0).sqrt()
                found[name] = torch.stack([a.norm(), b.norm(), layer.scaling[key] * product])
                if name not in base:
                    base[name] = frozen(layer.get_base_layer())
    figures = listed(found)
    base.update(listed({name: norm for name, norm in base.items() if torch.is_tensor(norm)}))
    return {
        name: {"a": a, "b": b, "delta": delta} | ({"base": base[name], "share": delta / base[name]} if base[name] else {})
        for name, (a, b, delta) in figures.items()
    }


def frozen(layer):
    """‖W‖ of a frozen layer, dequantized where it is NF4 or 8-bit; 0 where it cannot be told."""
    weight, kind = layer.weight, type(layer.weight).__name__
    if kind == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        if getattr(weight.quant_state, "packing_format_for_cpu", False):  # repacked for inference; scripts/cpu.py prevents it
            return torch.zeros(())
        weight = dequantize_4bit(weight.data, weight.quant_state)
    elif kind == "Int8Params":
        from bitsandbytes.functional import int8_vectorwise_dequant

        weight = int8_vectorwise_dequant(weight.data, layer.state.SCB if weight.SCB is None else weight.SCB)
    return torch.linalg.vector_norm(weight, dtype=torch.float32) if whole(weight) else torch.zeros(())
