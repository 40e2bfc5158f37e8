"""Axolotl plug-in for machines without a GPU; where there is one it does nothing. Named in a recipe: `plugins: [scripts.cpu.CpuPlugin]`.

Two jobs:
1. Ranks without a driver: nobody may ask CUDA about its peers, the model belongs on the CPU, and one rank alone goes without DeepSpeed:
   it has nothing to shard, and Axolotl would start NCCL for it. (axolotl/utils/trainer.py, `setup_deepspeed_env`)
   Beside an Apple GPU that last part is all: Axolotl and accelerate take the GPU by themselves.
2. No repacked weights: on CPUs with AVX512-BF16, bitsandbytes 0.50 repacks each `Linear4bit` for inference at the first evaluation and never
   unpacks it. The packed product has no autograd kernel, so training goes on without the gradient through the frozen weights,
   and the loss still falls a little. (bitsandbytes/nn/modules.py, `Linear4bit.forward`)
"""

import os

import torch
from axolotl.integrations.base import BasePlugin


class CpuPlugin(BasePlugin):
    def register(self, cfg):
        if no_gpu():
            os.environ.update(ACCELERATE_USE_CPU="true", DS_ACCELERATOR="cpu")
            torch.cuda.can_device_access_peer = lambda *_: False
        if not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            cfg["deepspeed"] = None

    def load_datasets(self, cfg, preprocess=False):
        if no_gpu() and not preprocess:
            cfg.device_map = {"": "cpu"}  # else every rank asks for "its" GPU
        return None  # Axolotl loads the datasets itself

    def post_model_load(self, cfg, model):
        if no_gpu() and cfg.get("load_in_4bit"):
            never_repack(model)


def no_gpu():
    """Neither CUDA nor an Apple GPU."""
    return not torch.cuda.is_available() and not torch.backends.mps.is_available()


def never_repack(model):
    """Keep every 4-bit weight in the form that training differentiates through."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
