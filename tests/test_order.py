"""The order of the rows; that a killed run ends in the same adapter is shown in test_train.py."""

from types import SimpleNamespace

import pytest
import torch

from scripts import order


class Around:
    """A loader as accelerate leaves it after a resume: batch samplers around batch samplers."""

    def __init__(self, loader):
        self.loader, self.batch_sampler = loader, SimpleNamespace(batch_sampler=loader.batch_sampler)

    def __len__(self):
        return len(self.loader)


def orders(sampler, around, step):
    """The rows' order of the epoch that begins at `step`, whatever the global generator has been through."""
    loader = around(torch.utils.data.DataLoader(range(20), batch_size=2, sampler=sampler))
    args = SimpleNamespace(gradient_accumulation_steps=2, seed=42)
    order.Order().on_epoch_begin(args, SimpleNamespace(global_step=step), None, train_dataloader=loader)
    torch.rand(torch.randint(100, ()).item() + 1)
    return list(sampler)


@pytest.mark.parametrize("around", [lambda loader: loader, Around])
def test_an_epochs_order_follows_from_seed_and_epoch(around):
    from transformers.trainer_pt_utils import LengthGroupedSampler

    for make in (lambda: torch.utils.data.RandomSampler(range(20)), lambda: LengthGroupedSampler(2, lengths=[3, 9] * 10)):
        first, again, second = orders(make(), around, 0), orders(make(), around, 3), orders(make(), around, 5)
        assert first == again, "the same epoch, begun or gone on with"
        assert first != second and sorted(second) == list(range(20)), "another epoch"
