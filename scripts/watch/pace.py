"""What a training takes: the time of its steps, what a rank does by itself, memory."""

import os
import resource
import time
from pathlib import Path

import torch


class Pace:
    """Clocks of one rank.

    `busy` is training time: evaluating and saving don't count. `own` is what a rank does by itself, its forward passes and its waiting for data:
    everything else of a step ends together, in the collectives, so that on the clock all ranks are as slow as the slowest.
    """

    def __init__(self, trainer, ranks, quiet):
        self.trainer, self.ranks, self.gpu = trainer, ranks, trainer.args.device.type == "cuda"
        self.since, self.busy, self.tokens, self.waited, self.spans, self.start = time.perf_counter(), 0.0, 0, 0.0, [], None
        self.hooks = []
        if not getattr(trainer.args, "torch_compile", False):  # a compiled model would trace the hooks
            entered, left = (lambda *given: quiet(self.entered, *given)), (lambda *given: quiet(self.left, *given))
            self.hooks = [trainer.model.register_forward_pre_hook(entered, with_kwargs=True), trainer.model.register_forward_hook(left)]
        if ranks > 1 and hasattr(trainer, "get_batch_samples"):
            get = trainer.get_batch_samples
            trainer.get_batch_samples = lambda batches, *rest, **named: get(self.waiting(batches), *rest, **named)

    def stop(self):
        for hook in self.hooks:
            hook.remove()
        self.trainer.__dict__.pop("get_batch_samples", None)

    def tick(self, work):
        """The time since the last tick was training, or was not."""
        now = time.perf_counter()
        self.busy += (now - self.since) * work
        self.since = now

    def entered(self, model, args, kwargs):
        if model.training:
            ids = kwargs.get("input_ids", args[0] if args else None)
            self.tokens += ids.numel() * self.ranks if torch.is_tensor(ids) else 0
            self.start = stamp(self.gpu)

    def left(self, model, args, output):
        if model.training and self.start is not None:
            self.spans.append((self.start, stamp(self.gpu)))
            self.start = None

    def waiting(self, batches):
        """The Trainer's batches; fetching them is timed here and not around the Trainer's own call, which also adds up tokens over all ranks."""
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - began
            yield batch

    def own(self):
        """Own seconds since the last call. GPU times are asked for only here, when the Trainer's log has waited for the device anyway."""
        seconds = self.waited + sum(b - a if isinstance(a, float) else a.elapsed_time(b) / 1000 for a, b in self.spans)
        self.waited, self.spans = 0.0, []
        return seconds


def stamp(gpu):
    """Now: seconds, or on a GPU an event in its stream, which nobody waits for."""
    if not gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def memory(gpu, now=False):
    """Bytes: the most that this rank's GPU has reserved, or what it has reserved now; without a GPU the process's resident set as it is now."""
    if gpu:
        return torch.cuda.memory_reserved() if now else torch.cuda.max_memory_reserved()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux: the peak
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
