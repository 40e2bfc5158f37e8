"""A trained adapter, so many times as strong: which one can be made so, and a loaded one, in memory.

ΔW = s·B·A is linear in B, so an adapter of LoRA pairs alone is scaled by B alone. Of what was trained whole there is no ΔW beside it to be scaled.
"""

import json

CONFIG = "adapter_config.json"


def refuse(adapter, names=()):
    """Raise ValueError for an adapter that is more than pairs of A and B, by its config or by the names of its tensors."""
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    more = {"modules_to_save": config.get("modules_to_save"), "use_dora": config.get("use_dora"), "lora_bias": config.get("lora_bias")}
    more |= {
        "bias": (config.get("bias") or "none") != "none" and config["bias"],
        "trainable_token_indices": config.get("trainable_token_indices"),
    }
    more |= {"peft_type": config.get("peft_type") != "LORA" and config.get("peft_type")}
    if found := [f"{key}: {value}" for key, value in more.items() if value]:
        raise ValueError(f"{adapter / CONFIG}: {', '.join(found)}; only what LoRA adds to a weight can be scaled, so train it without")
    if strange := [n for n in names if not n.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise ValueError(f"{adapter}: holds {strange[0]}, which is no lora_A or lora_B; only what LoRA adds to a weight can be scaled")


def turning(model):
    """A function that makes a loaded PEFT model's adapter so many times as strong as it was trained; 0 leaves the base alone."""
    trained = [(m, dict(m.scaling)) for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)]

    def turn(by):
        for module, scaling in trained:
            module.scaling.update({name: by * s for name, s in scaling.items()})

    return turn
