"""The plug-in's two jobs, on the real bitsandbytes and PEFT; that several ranks train is shown in test_train.py."""

import os

import pytest
import torch

from scripts import cpu


def gradients(chain, repack):
    """The q_proj gradients of a QLoRA model before and after an evaluation."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        chain.parent / "nano/pirate",
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
        ),
    )
    torch.manual_seed(0)
    model = get_peft_model(
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False),
        LoraConfig(r=8, target_modules="all-linear", init_lora_weights="gaussian"),
    )
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    if not repack:
        cpu.never_repack(model)
    x = torch.randint(10, 4000, (2, 32), generator=torch.Generator().manual_seed(1))

    def backward():
        model.train()
        model.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    before = backward()
    model.eval()
    with torch.no_grad():
        model(input_ids=x)
    return before, backward()


def test_gradients_after_an_evaluation_equal_those_before(chain):
    before, after = gradients(chain, repack=False)
    assert before and all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.skipif("avx512_bf16" not in open("/proc/cpuinfo").read(), reason="the defect needs a CPU with AVX512-BF16")
def test_without_the_plug_in_they_would_not(chain):
    before, after = gradients(chain, repack=True)
    assert any(not torch.allclose(before[n], after[n], rtol=0.05) for n in before)


def test_it_is_active_only_where_there_is_no_gpu(monkeypatch):
    plugin, cfg = cpu.CpuPlugin(), {"deepspeed": "x.json"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    untouched = dict(os.environ), torch.cuda.can_device_access_peer
    plugin.register(cfg)
    plugin.load_datasets(cfg)
    plugin.post_model_load(cfg, None)
    assert cfg == {"deepspeed": "x.json"} and (dict(os.environ), torch.cuda.can_device_access_peer) == untouched


def test_one_rank_goes_without_deepspeed_and_two_with_it(monkeypatch):
    for name in ("ACCELERATE_USE_CPU", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", None)
    for ranks, deepspeed in (("1", None), ("2", "x.json")):
        monkeypatch.setenv("WORLD_SIZE", ranks)
        cfg = {"deepspeed": "x.json"}
        cpu.CpuPlugin().register(cfg)
        assert cfg["deepspeed"] == deepspeed and torch.cuda.can_device_access_peer(0, 1) is False


def test_beside_an_apple_gpu_only_deepspeed_goes(monkeypatch):
    """Played: there is no such machine here. What the plug-in leaves alone is what Axolotl and accelerate choose by themselves."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    plugin, cfg = cpu.CpuPlugin(), {"deepspeed": "x.json", "load_in_4bit": True}
    untouched = dict(os.environ), torch.cuda.can_device_access_peer
    plugin.register(cfg)
    plugin.load_datasets(cfg)
    plugin.post_model_load(cfg, None)
    assert cfg == {"deepspeed": None, "load_in_4bit": True} and (dict(os.environ), torch.cuda.can_device_access_peer) == untouched


def test_it_needs_no_bitsandbytes_where_nothing_is_quantized(monkeypatch):
    """On a Mac Axolotl does not bring it."""
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    cpu.CpuPlugin().post_model_load({"load_in_4bit": False}, None)
    with pytest.raises(ImportError):
        cpu.CpuPlugin().post_model_load({"load_in_4bit": True}, None)
