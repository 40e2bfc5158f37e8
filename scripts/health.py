"""Axolotl plug-in that watches a training while it runs, and speaks only when something is wrong. Named in a recipe: `plugins: [scripts.health.HealthPlugin]`.

It writes outputs/NAME/health.jsonl (for a foreign recipe: in its output_dir): a line for each log, the adapter's norms at each evaluation, and what
was found. A run that is proven dead (no gradient, or NaN in its weights) is stopped, with a checkpoint and exit 1; anything else is said once, in one
line. What the signs mean is judged in scripts/signs/, from health.jsonl alone.

What fails in the watch itself is said once and ends the watch, not the training; and nothing here changes what is trained.
"""

import math
import time
from datetime import UTC, datetime

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from scripts.signs import causes, log
from scripts.watch import lines, weights
from scripts.watch.accuracy import Accuracy, share
from scripts.watch.pace import Pace, memory
from scripts.watch.quiet import Quiet, say

LOGGED = ("epoch", "loss", "grad_norm", "learning_rate", "reward")  # by the Trainer
PROOF = 5  # optimizer steps after which every lora_B must have moved
ASKED = 3  # times that the weights are looked at for it
LOST = 20  # logs without a loss or a gradient, after which a run is dead even if its adapter is finite (signs/proof.py, `broken`)
MEET = 3  # steps between two meetings of the ranks
JUDGED = 100  # times a run at most, beside each evaluation …
SHARE = 400  # … and at most one second of judging in so many


class HealthPlugin(BasePlugin):
    watch = None

    def add_callbacks_post_trainer(self, cfg, trainer):
        self.watch = Watch(trainer, lines.place(cfg.output_dir))
        return [self.watch]

    def post_train(self, cfg, model):
        if self.watch:
            self.watch.leave()


class Watch(TrainerCallback):
    """The Trainer's callback. Rank 0 writes and judges; the others lend their figures, and hear at fixed steps whether to stop.

    What the ranks do together stands outside of `quiet`: a rank whose watch has failed still takes part, or the others would wait for it forever.
    """

    def __init__(self, trainer, path):
        self.trainer, self.path, self.quiet = trainer, path, Quiet()
        self.pace, self.hits, self.running, self.dead = None, None, False, False

    # --- what the Trainer calls, on every rank ---

    def on_train_begin(self, args, state, control, **_):
        self.ranks, self.head, self.first = args.world_size, state.is_world_process_zero, state.global_step
        self.meet, self.finding, self.dead, self.running = self.first + PROOF + 1, None, False, True
        self.quiet(self.begin, args, state)

    def on_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.quiet(self.moves, optimizer)

    def on_step_end(self, args, state, control, **_):
        self.tick(True)
        if state.global_step <= self.first + PROOF + 1:  # one more than PROOF: a warm-up begins at a learning rate of 0
            control.should_log = True

    def on_log(self, args, state, control, logs=None, **_):
        self.tick("loss" in logs)
        if "loss" not in logs or not self.running:  # an evaluation's, or the sum of the run
            return
        self.quiet(self.mend, logs)
        if self.head:
            self.quiet(self.figures, state, logs)
            self.quiet(self.prove)
        stop, ranks_s = self.finding is not None, None
        if self.ranks > 1:
            stop = False
            if state.global_step >= self.meet:
                self.meet = state.global_step + MEET
                ranks_s, stop = self.gather(self.quiet(self.own, state))
        if self.head:
            self.quiet(self.tell, ranks_s, stop)
        if stop:
            self.dead = control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_evaluate(self, args, state, control, metrics=None, **_):
        if self.running:  # there may be evaluations before and after the training
            right = share(self.quiet(lambda: self.hits.counts()), args.device, self.ranks)
            if self.head:
                self.quiet(self.evaluated, state, metrics, right)
        self.tick(False)

    def on_save(self, args, state, control, **_):
        self.tick(False)

    def on_train_end(self, args, state, control, **_):
        self.quiet(self.end, state)
        self.running = False

    def tick(self, work):
        if self.running:
            self.quiet(lambda: self.pace.tick(work))

    def gather(self, seconds):
        """([own seconds a step of each rank] or None, whether rank 0 holds the run for dead)."""
        mine = torch.tensor([math.nan if seconds is None else seconds, self.finding is not None], device=self.trainer.args.device)
        every = [torch.empty_like(mine) for _ in range(self.ranks)]
        torch.distributed.all_gather(every, mine)
        every = torch.stack(every).tolist()
        own = [round(seconds, 5) for seconds, _ in every]
        return None if any(map(math.isnan, own)) else own, every[0][1] > 0

    def leave(self):
        """After the training: exit 1 if it was stopped as dead. All ranks at once: the first that exits has the others ended, even in the middle of a checkpoint."""
        if not self.dead:
            return
        if self.head:
            say(f"stopped by health: {told(self.finding)}; {self.path} has the figures")
        if self.ranks > 1:
            torch.distributed.barrier()
        raise SystemExit(1)

    # --- the parts: each may fail ---

    def begin(self, args, state):
        args.logging_nan_inf_filter = False  # else the Trainer logs the mean of the losses before in place of NaN
        if self.pace:
            self.pace.stop(), self.hits.stop()  # the Trainer began anew, with a smaller batch
        self.pace, self.hits = Pace(self.trainer, self.ranks, self.quiet), Accuracy(self.trainer, self.quiet)
        self.pace.tokens = self.counted = int((getattr(state, "tokens", None) or {}).get("total", 0))  # Axolotl's, from the checkpoint
        self.began, self.logged, self.met = time.perf_counter(), self.first, self.first
        self.moved, self.ask, self.strange, self.base, self.norms_s = 0, ASKED, 0, {}, 0.0
        if self.head:
            run = self.run(args, state)
            kept = lines.begin(self.path, run, self.first)
            self.spoken = {line["finding"]["cause"] for line in kept if "finding" in line}
            rows = log.merged(line for line in kept if not line.keys() & {"run", "finding"})
            self.log = log.joined(self.path, None, {"rows": rows, "run": run, "ended": False})
            self.rows, self.judged, self.judged_at, self.cost = self.log["rows"], self.first, self.began, 0.0

    def run(self, args, state):
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        rows = len(self.trainer.train_dataset) if has_length(self.trainer.train_dataset) else None
        return {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "steps": state.max_steps,
            "epochs": args.num_train_epochs if args.max_steps <= 0 else rows and round(args.max_steps * batch / rows, 3),
            "ranks": self.ranks,
            "global_batch": batch,
            "rows": rows,
            "trainable": sum(getattr(p, "ds_numel", p.numel()) for p in self.trainer.model.parameters() if p.requires_grad),
            "resumed_from": self.first,
            "base_memory_gib": round(memory(self.pace.gpu, now=True) / 2**30, 3),  # the model stands, no step has been made
            "device": torch.cuda.get_device_name(args.device) if self.pace.gpu else "cpu",
        }

    def moves(self, optimizer):
        """Count the steps that can move a weight: not those that fp16's loss scaler skips, nor those of a learning rate of 0."""
        skipped = self.trainer.accelerator.optimizer_step_was_skipped
        self.moved += not skipped and any(group["lr"] > 0 for group in optimizer.param_groups)

    def mend(self, logs):
        """After a loss of NaN: the Trainer empties its sum by subtracting it from itself, and every later loss would be NaN too."""
        if not math.isfinite(logs["loss"]) and torch.is_tensor(getattr(self.trainer, "_tr_loss", None)):
            self.trainer._tr_loss.zero_()

    def figures(self, state, logs):
        """The log's line, as far as this rank knows it."""
        row = {"step": state.global_step} | {key: logs[key] for key in LOGGED if logs.get(key) is not None}
        steps, tokens, busy = state.global_step - self.logged, logs.get("tokens/total", self.pace.tokens), self.pace.busy
        if steps > 0 and busy > 0:
            row |= {"tokens_per_s": round((tokens - self.counted) / busy, 1), "step_s": round(busy / steps, 5)}
        each = (time.perf_counter() - self.began) / max(1, state.global_step - self.first)  # with its share of evaluating and saving
        row |= {"memory_gib": round(memory(self.pace.gpu) / 2**30, 3), "left_s": round(each * (state.max_steps - state.global_step), 1)}
        self.logged, self.counted, self.pace.busy = state.global_step, tokens, 0.0
        self.rows.append(row)

    def own(self, state):
        steps, self.met = state.global_step - self.met, state.global_step
        return self.pace.own() / max(1, steps)

    def prove(self):
        """Is the run dead? The weights are asked when they must have moved, and whenever a figure is not a number."""
        model, row, norms = self.trainer.model, self.rows[-1], None
        self.strange = 0 if all(math.isfinite(row.get(key, 0)) for key in ("loss", "grad_norm")) else self.strange + 1
        if self.strange or self.moved >= PROOF and self.ask:
            norms = weights.lora_b(model)
            self.ask = 0 if all(norms.values()) else self.ask - 1
        found = causes.dead(self.rows, norms)
        if not found or self.finding:
            return
        if found["cause"] == "nan loss" and norms and all(map(math.isfinite, norms.values())) and self.strange < LOST:
            found |= {"severity": "warning", "evidence": found["evidence"] + "; the adapter itself is still finite"}
        if found["severity"] == "dead":
            self.finding = found
        else:
            self.speak(found)

    def tell(self, ranks_s, stop):
        if ranks_s:
            self.rows[-1]["ranks_s"] = ranks_s
        lines.write(self.path, self.rows[-1])
        self.speak(self.finding) if stop else self.warn(False)

    def warn(self, always):
        """Judge the rows so far, where it is time: judging a hundred thousand rows at each of them would take longer than the run."""
        step, now = self.rows[-1]["step"], time.perf_counter()
        early = step - self.judged < self.log["steps"] / JUDGED or now - self.judged_at < SHARE * self.cost
        if self.finding or early and not always:
            return
        for found in self.judge()["findings"]:
            if found["severity"] != "note":
                self.speak({**found, "severity": "warning"})  # what is dead was proven by the weights
        self.judged, self.judged_at, self.cost = step, time.perf_counter(), time.perf_counter() - now

    def judge(self, **more):
        return causes.judge({**self.log, "step": self.rows[-1]["step"], "epoch": self.rows[-1].get("epoch"), **more})

    def speak(self, found):
        """Once a run, one line; that a run is dead is said when it has ended."""
        if found["cause"] in self.spoken and found["severity"] != "dead":
            return
        self.spoken.add(found["cause"])
        left = self.rows[-1].get("left_s", 0)
        hours = f", {left / 3600 * self.ranks:.1f} GPU-hours" if self.pace.gpu else ""
        found["cost"] = f"{left / 60:.1f} more minutes{hours}" if left else "no more time"
        lines.write(self.path, {"step": self.rows[-1]["step"], "finding": found})
        if found["severity"] != "dead":
            say(f"health: {told(found)}")

    def evaluated(self, state, metrics, right):
        """An evaluation's line, with its token accuracy and the adapter's norms layer by layer."""
        losses = {k: v for k, v in metrics.items() if k.endswith("loss")}
        if any(row["step"] == state.global_step and "eval_loss" in row for row in self.rows[-1:]):
            return  # a resumed run repeats the evaluation that it begins with
        began = time.perf_counter()
        row = {"step": state.global_step, "epoch": state.epoch, **losses, "eval_token_accuracy": right, "seconds": metrics.get("eval_runtime")}
        row = {k: v for k, v in row.items() if v is not None} | {"adapter": weights.norms(self.trainer.model, self.base)}
        self.norms_s += time.perf_counter() - began
        self.rows[:] = log.merged([*self.rows, row])
        lines.write(self.path, row)
        self.warn(True)

    def end(self, state):
        self.pace.stop(), self.hits.stop()
        if self.head:
            verdict = "dead" if self.dead else self.judge(ended=True)["verdict"]
            seconds = {"seconds": time.perf_counter() - self.began, "own_s": self.quiet.seconds - self.norms_s, "norms_s": self.norms_s}
            lines.write(self.path, {"end": {"step": state.global_step, "verdict": verdict} | {k: round(v, 4) for k, v in seconds.items()}})


def told(found):
    return f"{found['cause']}: {found['evidence']}; {found['fix']}; going on costs {found.get('cost', 'more')}"
