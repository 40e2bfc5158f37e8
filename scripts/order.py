"""Axolotl plug-in: the order of the rows is a function of the seed and the epoch. Named in a recipe: `plugins: [scripts.order.OrderPlugin]`.

The Trainer's samplers draw an epoch's order from torch's global generator, whose state at an epoch's begin depends on all dropout drawn before. A run that is
resumed in a later epoch begins that epoch with another state, so it trains on other rows than the interrupted run would have: some twice, some never.
(transformers/trainer.py, `_run_epoch`: the state of the checkpoint is restored only after the skipped batches.) With a generator of the sampler's own, seeded
anew at each epoch, a resumed run ends with the same adapter as an uninterrupted one.
"""

import math

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


class OrderPlugin(BasePlugin):
    def add_callbacks_post_trainer(self, cfg, trainer):
        return [Order()]


class Order(TrainerCallback):
    def on_epoch_begin(self, args, state, control, train_dataloader=None, **_):
        steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        epoch = state.global_step // steps  # `state.epoch` ends a little below a whole number where the last batch is small
        for sampler in drawing(train_dataloader):
            sampler.generator = torch.Generator().manual_seed(args.seed + 1_000_003 * epoch)  # alike on all ranks


def drawing(loader):
    """The samplers within a data loader that draw from a generator: RandomSampler, LengthGroupedSampler, also under Axolotl's packing."""
    found, seen = [], [loader]
    for part in seen:
        inner = (getattr(part, name, None) for name in ("batch_sampler", "sampler", "base_dataloader"))
        seen += [x for x in inner if x is not None and not any(x is y for y in seen)]
        if part is not loader and hasattr(part, "generator") and "DataLoader" not in type(part).__name__:
            found.append(part)
    return found
