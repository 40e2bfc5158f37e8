import json

import pytest

from scripts import facts
from scripts.steps import memory

LLAMA = "meta-llama/Llama-3.1-8B"
FAMILIES = {  # one base of each shape, and the transformers config that builds it
    LLAMA: ("LlamaConfig", {}),
    "meta-llama/Llama-3.2-1B": ("LlamaConfig", {}),
    "mistralai/Mistral-7B-v0.3": ("MistralConfig", {}),
    "Qwen/Qwen2.5-7B": ("Qwen2Config", {}),
    "Qwen/Qwen3-8B": ("Qwen3Config", {}),
    "google/gemma-2-2b": ("Gemma2Config", {}),
    "microsoft/phi-4": ("Phi3Config", {"pad_token_id": 0}),
}


@pytest.mark.parametrize("base", FAMILIES)
def test_counts_are_those_of_transformers_and_peft(base):
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    kind, more = FAMILIES[base]
    b = facts.base(base)
    config = getattr(transformers, kind)(
        hidden_size=b["hidden"],
        num_hidden_layers=b["layers"],
        num_attention_heads=b["heads"],
        num_key_value_heads=b["kv_heads"],
        head_dim=b["head_dim"],
        intermediate_size=b["intermediate"],
        vocab_size=b["vocab"],
        tie_word_embeddings=b["tied"],
        **more,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == b["parameters"]
        for r, targets in ((64, list(facts.linears(b))), (8, list(facts.linears(b))[:2])):
            tuned = get_peft_model(model, LoraConfig(r=r, target_modules=targets, task_type="CAUSAL_LM"))
            counted = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
            assert facts.adapter_parameters(b, {"lora_r": r, "lora_target_modules": targets}) == counted
            model = tuned.unload()


def test_the_arithmetic_that_every_planner_must_reproduce():
    b = facts.base(LLAMA)
    assert facts.adapter_parameters(b, {"lora_r": 64, "lora_target_linear": True}) == 167_772_160
    assert facts.linear_parameters(b) == pytest.approx(6.98e9, rel=0.001)
    parts = memory.parts({"adapter": "qlora", "lora_r": 64, "lora_target_linear": True}, b, 1, 512)
    assert parts["weights"] == pytest.approx(3.6e9, rel=0.01) and parts["embedding, head, norms"] == pytest.approx(2.1e9, rel=0.01)


def test_another_base_is_read_from_its_config(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "vocab_size": 100,
                "intermediate_size": 128,
            }
        )
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    b = facts.base(tmp_path)
    assert (b["hidden"], b["kv_heads"], b["head_dim"], b["eos"]) == (64, 4, 16, "<end>") and facts.base("nobody/knows-this") == {}


def test_a_nano_base_that_is_not_made_yet(tmp_path, monkeypatch):
    """Its facts are what scripts/base.py will make, in each of its sizes."""
    from scripts import base

    monkeypatch.chdir(tmp_path)
    for size, (hidden, mlp, layers) in base.SIZES.items():
        b = facts.base("outputs/nano/any" + f"-{size}" * bool(size))
        assert (b["hidden"], b["intermediate"], b["layers"], b["vocab"], b["max_position"]) == (hidden, mlp, layers, base.VOCAB, base.CONTEXT)
        assert (b["heads"], b["kv_heads"], b["head_dim"] * b["heads"]) == (base.HEADS, base.KV_HEADS, hidden)
        assert (b["bos"], b["eos"], b["pad"], b["template"]) == (base.BOS, "<|eot_id|>", base.PAD, str(base.TEMPLATE))
    assert facts.base("outputs/nano/any-other") == {}


def test_a_base_in_the_hub_cache_and_a_mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--one/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8, "num_attention_heads": 2}))
    assert facts.base("some/one")["hidden"] == 8
    mirror = facts.base("NousResearch/Meta-Llama-3-8B")
    assert mirror["name"] == "meta-llama/Meta-Llama-3-8B" and not mirror["gated"]


@pytest.mark.parametrize(
    "called, key",
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx4060ti-16g"),
        ("Tesla V100-SXM2-32GB", "v100-32g"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
    ],
)
def test_gpus_by_the_drivers_name(called, key):
    assert facts.gpu_called(called) == key


def test_an_unknown_gpu():
    with pytest.raises(ValueError, match="does not know this GPU"):
        facts.gpu_called("Voodoo 2")
    with pytest.raises(ValueError, match="unknown GPU 'a100'; .* knows t4, "):
        facts.gpu("a100")


def test_every_gpu_has_what_the_planner_reads():
    for key, g in facts.gpus().items():
        assert g["memory_gib"] > 5 and g["bandwidth_gb_s"] > 100 and (g.get("bf16_tflops") or g.get("fp16_tflops")) > 10 and g["source"], (
            key
        )
        assert isinstance(g["bf16"], bool) and g.get("usable_gib", 0) <= g["memory_gib"], key
