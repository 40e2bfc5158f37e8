"""Token accuracy of an evaluation: how many of the held-out rows' learned tokens the model would have chosen itself, given the true ones before each.

    accuracy = Σ [argmax logits(t) = label(t + 1)] / Σ [label(t + 1) ≠ −100]

over all tokens of all held-out rows and ranks. (TRL's `mean_token_accuracy` is the mean of the same share over batches, so short batches count as much as long
ones.) It is counted from the logits that the evaluation computes anyway; in training there may be none, Liger's fused loss makes none.
"""

import math

import torch


class Accuracy:
    """Counts while the model evaluates. Without logits or labels, or where a GPU holds only a part of the row, nothing is counted."""

    def __init__(self, trainer, quiet):
        self.seen, self.device, self.hook = [], trainer.args.device, None
        if not getattr(trainer.args, "torch_compile", False):  # a compiled model would trace the hook
            self.hook = trainer.model.register_forward_hook(lambda *given: quiet(self.left, *given), with_kwargs=True)

    @torch.no_grad()
    def left(self, model, args, kwargs, output):
        labels, logits = kwargs.get("labels"), getattr(output, "logits", None)
        if model.training or labels is None or logits is None or logits.shape[:2] != labels.shape:
            return
        wanted = labels[:, 1:]
        right = (logits[:, :-1].argmax(-1) == wanted) & (wanted != -100)
        self.seen.append(torch.stack([right.sum(), (wanted != -100).sum()]))

    def counts(self):
        """[right, all] since the last call, on the training's device."""
        seen, self.seen = self.seen, []
        return torch.stack(seen).sum(0).float() if seen else torch.zeros(2, device=self.device)

    def stop(self):
        if self.hook:
            self.hook.remove()


def share(counts, device, ranks):
    """The accuracy over all ranks, which must all ask; None where nothing was counted, or where one of them could not count (`counts` None)."""
    counts = torch.full((2,), math.nan, device=device) if counts is None else counts
    if ranks > 1:
        torch.distributed.all_reduce(counts)
    right, total = counts.tolist()
    return right / total if total > 0 else None
