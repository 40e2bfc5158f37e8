"""The watch, on real trainings: by Axolotl under torchrun, and (what would take minutes there) by the Trainer alone on a Llama of two narrow layers."""

import math
import shutil
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from conftest import clone, one_line, room, run
from scripts import files, health, receipt, train
from scripts.watch import accuracy, bar, lines, pace, quiet, weights

PLUGINS = '''
import os, time, torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback


class NoGradient(BasePlugin):
    def post_trainer_create(self, cfg, trainer):
        for p in trainer.model.parameters():
            if p.requires_grad:
                p.register_hook(torch.zeros_like)


class SlowThenNan(BasePlugin):
    """Rank 1 sleeps in each forward pass; at step 20 a weight of both becomes NaN."""

    def add_callbacks_post_trainer(self, cfg, trainer):
        if os.environ["RANK"] == "1":
            trainer.model.get_input_embeddings().register_forward_pre_hook(lambda *_: time.sleep(0.5))

        class Poison(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **_):
                if state.global_step == 20:
                    next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = float("nan")

        return [Poison()]
'''


@pytest.fixture(scope="module")
def ward(chain, tmp_path_factory):
    """A copy of the repository with pirate-nano on 96 rows, prepared."""
    place = clone(tmp_path_factory.mktemp("ward"), nano=True)
    (place / "scripts/spoil.py").write_text(PLUGINS)
    for name, rows in (("train", 96), ("eval", 8)):
        path = place / f"datasets/pirate/{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))
    made = run("make", "preprocess", "RECIPE=pirate-nano", cwd=place)
    assert made.returncode == 0, made.stdout + made.stderr
    return place


def patient(ward, name, *plugins, without=(), **changes):
    """A recipe of its own on the prepared rows: 12 steps an epoch. Returns its folder."""
    cfg = yaml.safe_load((ward / "recipes/pirate-nano.yml").read_text().replace("outputs/pirate-nano/", f"outputs/{name}/"))
    cfg |= {"num_epochs": 1, "saves_per_epoch": 6, **changes}
    cfg["plugins"] = [p for p in [*cfg["plugins"], *plugins] if p not in without]
    (ward / f"recipes/{name}.yml").write_text(yaml.safe_dump(cfg))
    folder = ward / "outputs" / name
    folder.mkdir()
    (folder / "recipe.yml").write_text(yaml.safe_dump({k: v for k, v in cfg.items() if k != "export" and not k.startswith("x_")}))
    shutil.copy(ward / "outputs/pirate-nano/data.sha256", folder)
    (folder / "prepared").symlink_to("../pirate-nano/prepared")
    return folder


def test_a_healthy_run_says_nothing_and_leaves_a_whole_record(ward):
    folder = patient(ward, "well-nano")
    made = room("train", "well-nano", cwd=ward)
    assert (made.returncode, made.stderr) == (0, ""), made.stderr
    assert made.stdout.startswith("train       12 steps, eval loss ") and made.stdout.count("\n") == 1 and "healthy" not in made.stdout
    assert "health: " not in (folder / "logs/train.log").read_text()
    first, *rest, end = lines.read(folder / "health.jsonl")
    assert first["run"] | {"began": 0} == first["run"] | {"began": 0, "steps": 12, "epochs": 1.0, "ranks": 1, "global_batch": 8, "rows": 96}
    assert 0.3 < first["run"]["base_memory_gib"] < 8
    assert first["run"]["trainable"] == 933888 and first["run"]["resumed_from"] == 0 and first["run"]["device"] == "cpu"
    logged = [line for line in rest if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, 13))
    for line in logged:
        assert line.keys() == {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_s", "step_s", "memory_gib", "left_s"}
        assert line["tokens_per_s"] > 0 and line["step_s"] > 0 and 0.3 < line["memory_gib"] < 8
    history = receipt.read(folder / "adapter/trainer_state.json")["log_history"]
    total = [h["tokens/total"] for h in history if "tokens/total" in h][-1]
    assert sum(line["tokens_per_s"] * line["step_s"] for line in logged) == pytest.approx(total, rel=1e-3)
    assert logged[0]["left_s"] > logged[-1]["left_s"] == 0
    evals = [line for line in rest if "eval_loss" in line]
    assert [line["step"] for line in evals] == [0, 6, 12] and all(len(line["adapter"]) == 21 for line in evals)
    q = [line["adapter"]["layers.0.self_attn.q_proj"] for line in evals]
    assert q[0]["share"] == 0 < q[1]["share"] < q[2]["share"] < 1 and q[0]["base"] == q[2]["base"] > 0
    assert end["end"]["verdict"] == "healthy" and end["end"]["step"] == 12
    assert end["end"]["own_s"] <= 0.01 * end["end"]["seconds"], end  # the watch costs less than 1 % of the training
    figures = receipt.read(folder / "train.json")["figures"]
    assert figures["base_memory_gib"] == first["run"]["base_memory_gib"] < figures["peak_memory_gib"]
    assert figures["peak_memory_gib"] == max(line["memory_gib"] for line in logged)
    assert figures["verdict"] == "healthy" and figures["step_s"] == statistics.median(line["step_s"] for line in logged)


def test_the_adapter_is_the_same_without_the_watch(ward):
    folder = patient(ward, "alone-nano", without=["scripts.health.HealthPlugin"])
    made = room("train", "alone-nano", cwd=ward)
    assert made.returncode == 0, made.stderr
    assert not (folder / "health.jsonl").exists() and receipt.read(folder / "train.json")["figures"]["verdict"] == "healthy"
    adapter = "adapter/adapter_model.safetensors"
    assert files.sha256(folder / adapter) == files.sha256(ward / "outputs/well-nano" / adapter)


def test_a_run_without_a_gradient_is_stopped_and_not_resumed(ward):
    folder = patient(ward, "dead-nano", "scripts.spoil.NoGradient")
    said = one_line(
        room("train", "dead-nano", cwd=ward), "outputs/dead-nano: stopped at step 5 of 12: no gradient: grad_norm is 0.0", "q_proj"
    )
    assert "gradient_checkpointing" in said and "checkpoint-5 is kept; going on would have cost" in said and "minutes" in said
    assert train.whole(folder / "training/checkpoint-5/adapter_model.safetensors") and train.state(folder / "training/checkpoint-5")
    assert not (folder / "training/adapter_model.safetensors").exists() and not (folder / "train.json").exists()
    found, end = lines.read(folder / "health.jsonl")[-2:]
    assert found["finding"]["severity"] == "dead" and found["finding"]["cost"] and end["end"]["verdict"] == "dead"
    before = files.sha256(folder)
    again = one_line(room("train", "dead-nano", cwd=ward), "proven dead at step 5: no gradient", "rm -r outputs/dead-nano/training")
    assert "change the recipe" in again and files.sha256(folder) == before
    key = receipt.read(folder / "training/run.json")["key"]
    train.refuse_dead(folder, "another recipe's")
    with pytest.raises(ValueError, match="proven dead"):
        train.refuse_dead(folder, key)
    train.clear_stale(folder / "training", "another recipe's", 1)  # what was found of the one says nothing of the other
    assert not (folder / "health.jsonl").exists() and not list((folder / "training").glob("checkpoint-*"))
    train.refuse_dead(folder, "another recipe's")


def test_two_ranks_one_slow_then_nan(ward):
    """Both are found on two ranks: the slow one by name, in a line above the rest; then NaN stops the whole torchrun with a checkpoint."""
    folder = patient(ward, "slow-nano", "scripts.spoil.SlowThenNan", num_epochs=2)
    made = room("train", "slow-nano", cwd=ward, GPUS="2")
    warned, stopped = made.stderr.strip().splitlines()
    assert made.returncode == 1
    assert warned.startswith("health      slow rank: rank 1 takes ") and "going on costs" in warned
    assert "stopped at step 2" in stopped and "nan loss" in stopped and "learning_rate" in stopped
    timed = [line["ranks_s"] for line in lines.read(folder / "health.jsonl") if "ranks_s" in line]
    assert len(timed) >= 5 and statistics.median(b - a for a, b in timed) > 0.2
    assert lines.dead(folder / "health.jsonl")["step"] in (21, 22, 23, 24)
    step = lines.dead(folder / "health.jsonl")["step"]
    assert all((folder / f"training/checkpoint-{step}" / name).exists() for name in ("trainer_state.json", "adapter_model.safetensors"))
    assert "stopped by health: nan loss" in (folder / "logs/train.log").read_text()


# --- the Trainer alone ---


def model_of(rank=4, seed=0, **lora):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=rank, target_modules="all-linear", **lora))


def trained(path, model=None, spoil=None, kind=None, **args):
    """Train by the plain Trainer with the watch; returns (Watch, Trainer). `spoil(watch)` comes first; `kind` is another Trainer class."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": [1 + (i + j) % 60 for j in range(12)]} for i in range(16)]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    args = {"max_steps": 8, "logging_steps": 1, "learning_rate": 1e-3, "save_strategy": "no", **args}
    args = TrainingArguments(path / "x", use_cpu=True, report_to="none", disable_tqdm=True, per_device_train_batch_size=2, **args)
    trainer = (kind or Trainer)(model=model or model_of(), args=args, train_dataset=rows, eval_dataset=rows[:4])
    watch = health.HealthPlugin().add_callbacks_post_trainer(type("Cfg", (), {"output_dir": str(path / "x")}), trainer)[0]
    trainer.add_callback(watch)
    if spoil:
        spoil(watch)
    trainer.train()
    return watch, trainer


def fail(*_):
    raise RuntimeError("a mistake of ours")


@pytest.mark.parametrize("part", ["begin", "moves", "figures", "prove", "tell", "warn", "evaluated", "end", "entered"])
def test_what_fails_in_the_watch_is_said_once_and_the_training_goes_on(part, tmp_path, capsys):
    spoil = (lambda watch: setattr(watch, part, fail)) if part != "entered" else (lambda watch: setattr(pace, "stamp", fail))
    stamp = pace.stamp
    try:
        watch, trainer = trained(tmp_path, spoil=spoil, eval_strategy="steps", eval_steps=4)
    finally:
        pace.stamp = stamp
    assert trainer.state.global_step == 8 and watch.leave() is None
    said = capsys.readouterr()
    assert said.out.count("health: the watch itself failed (RuntimeError: a mistake of ours); the training goes on without it") == 1
    assert said.err.count("RuntimeError: a mistake of ours") == 1 and "Traceback" in said.err
    assert not any("end" in line for line in lines.read(tmp_path / "x/health.jsonl")), "a record that is not whole has no end"


def test_a_plain_trainers_run_is_watched_beside_it(tmp_path, capsys):
    watch, trainer = trained(tmp_path, spoil=lambda watch: watch.trainer.evaluate(), eval_strategy="steps", eval_steps=4)
    trainer.evaluate()  # before the training and after it: not the watch's
    found = lines.read(tmp_path / "x/health.jsonl")
    assert found[0]["run"]["global_batch"] == 2 and found[0]["run"]["epochs"] == 1.0 and found[-1]["end"]["verdict"] == "healthy"
    timed = [line["tokens_per_s"] * line["step_s"] for line in found if "tokens_per_s" in line]
    assert timed == pytest.approx([24] * 8, rel=1e-2), "without Axolotl's count, that of the forward passes"
    assert [line["step"] for line in found if "eval_loss" in line] == [4, 8]
    assert "health" not in capsys.readouterr().out and not trainer.model._forward_hooks and not trainer.model._forward_pre_hooks


def test_the_token_accuracy_of_each_evaluation_is_written_down(tmp_path):
    """As counted by hand from the finished model's logits; tokens without a label don't count, and the evaluations outside of the training neither."""
    model = model_of()
    watch, trainer = trained(tmp_path, model, eval_strategy="steps", eval_steps=4, eval_on_start=True, learning_rate=3e-2, per_device_eval_batch_size=3)
    found = [line for line in lines.read(tmp_path / "x/health.jsonl") if "eval_loss" in line]
    ids = torch.tensor([row["input_ids"] for row in trainer.eval_dataset])
    with torch.no_grad():
        right = model.eval()(input_ids=ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
    assert [line["step"] for line in found] == [0, 4, 8] and found[0]["eval_token_accuracy"] < found[-1]["eval_token_accuracy"]
    assert found[-1]["eval_token_accuracy"] == pytest.approx(right.float().mean().item())
    counted = accuracy.Accuracy(trainer, lambda part, *given: part(*given))
    labels = torch.where(torch.arange(12) < 6, -100, ids)
    model(input_ids=ids, labels=labels)
    assert accuracy.share(counted.counts(), "cpu", 1) == pytest.approx(right[:, 5:].float().mean().item())
    model.train()(input_ids=ids, labels=labels)
    assert accuracy.share(counted.counts(), "cpu", 1) is None and accuracy.share(None, "cpu", 1) is None
    counted.stop()


def test_without_a_gradient_more_steps_change_nothing_and_are_not_taken(tmp_path):
    """All of the adapter's input dropped out: the watch stops at step 5 whatever was asked for; without it, 32 steps end where 8 do, to the last digit."""
    ends = {}
    for steps in (8, 32):
        watch, trainer = trained(tmp_path / f"watched-{steps}", model_of(lora_dropout=1.0), max_steps=steps)
        assert watch.dead and trainer.state.global_step == 5 and watch.finding["cause"] == "no gradient"
        trainer.remove_callback(watch)
        trainer.train()
        assert trainer.state.global_step == steps and all(h["grad_norm"] == 0 for h in trainer.state.log_history if "grad_norm" in h)
        ends[steps] = trainer.evaluate()["eval_loss"]
    assert ends[8] == ends[32]


def test_few_logs_do_not_hide_a_missing_gradient(tmp_path):
    """logging_steps: 500, and found after five steps all the same."""
    model = model_of()
    for p in model.parameters():
        if p.requires_grad:
            p.register_hook(torch.zeros_like)
    watch, trainer = trained(tmp_path, model, max_steps=40, logging_steps=500, save_strategy="steps", save_steps=500)
    assert trainer.state.global_step == 5 and (tmp_path / "x/checkpoint-5/trainer_state.json").exists()
    with pytest.raises(SystemExit) as left:
        watch.leave()
    assert left.value.code == 1 and lines.dead(tmp_path / "x/health.jsonl")["cause"] == "no gradient"


def test_an_adapter_that_the_optimizer_does_not_hold_is_found_by_its_weights(tmp_path):
    """grad_norm is as it should be, and no lora_B moves in five steps with a learning rate (the first has none: warm-up)."""
    from transformers import Trainer

    class Elsewhere(Trainer):
        def create_optimizer(self, *_):
            self.optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1e-3)
            return self.optimizer

    watch, trainer = trained(tmp_path, kind=Elsewhere, max_steps=40, logging_steps=500, warmup_steps=5)
    found = lines.dead(tmp_path / "x/health.jsonl")
    assert trainer.state.global_step == found["step"] == 6 and "lora_B is still 0 in every one of 14 modules" in found["evidence"]
    assert all(line["grad_norm"] > 0 for line in lines.read(tmp_path / "x/health.jsonl") if "loss" in line)


RANKS = """
import sys
from pathlib import Path
sys.path[:0] = [".", "tests"]
import torch
from test_health import fail, model_of, trained

model = model_of()
for p in model.parameters():
    if p.requires_grad:
        p.register_hook(torch.zeros_like)
broken = lambda watch: watch.trainer.args.process_index == 1 and setattr(watch, "begin", fail)
watch, trainer = trained(Path(sys.argv[1]), model, broken, max_steps=40)
print(f"rank {trainer.args.process_index} stopped at {trainer.state.global_step}", flush=True)
watch.leave()
"""


def test_a_rank_whose_watch_has_failed_still_stops_with_the_others(tmp_path):
    """Else one rank would wait for the other forever."""
    (tmp_path / "ranks.py").write_text(RANKS)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run(*launcher, tmp_path / "ranks.py", tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 1 and "rank 0 stopped at 6" in done.stdout and "rank 1 stopped at 6" in done.stdout, done.stdout + done.stderr
    assert "a mistake of ours" in done.stderr and done.stdout.count("stopped by health: no gradient") == 1
    found = lines.read(tmp_path / "x/health.jsonl")
    assert found[-1]["end"]["verdict"] == "dead" and not any("ranks_s" in line for line in found)


def test_layers_that_do_not_learn_are_named_and_the_run_goes_on(tmp_path, capsys):
    model = model_of()
    next(p for n, p in model.named_parameters() if "layers.1.mlp.up_proj.lora_B" in n).register_hook(torch.zeros_like)
    watch, trainer = trained(tmp_path, model, max_steps=10)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("health: ")]
    assert trainer.state.global_step == 10 and len(said) == 1, said
    assert said[0].startswith("health: no gradient: lora_B is still 0 in 1 of 14 modules") and "up_proj in layers 1" in said[0]


def test_a_learning_rate_far_too_high_ends_in_nan_and_is_stopped(tmp_path):
    watch, trainer = trained(tmp_path, max_steps=60, learning_rate=1e30, max_grad_norm=0)
    found = lines.dead(tmp_path / "x/health.jsonl")
    assert found["cause"] == "nan loss" and trainer.state.global_step == found["step"] < 10
    assert any(line.get("loss") == "nan" for line in lines.read(tmp_path / "x/health.jsonl"))


def test_one_bad_batch_is_no_dead_run_and_does_not_spoil_the_later_losses(tmp_path, capsys):
    """A loss of NaN whose step was skipped, as fp16's scaler does: the weights are finite. The Trainer itself would log NaN ever after."""
    from transformers import Trainer

    class Bad(Trainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            return loss * math.nan if self.state.global_step == 2 else loss

    watch, trainer = trained(tmp_path, kind=Bad)
    losses = [line["loss"] for line in lines.read(tmp_path / "x/health.jsonl") if "loss" in line]
    assert losses[2] == "nan" and all(isinstance(x, float) for x in losses[:2] + losses[3:]) and len(losses) == 8
    assert trainer.state.global_step == 8 and not watch.dead and lines.dead(tmp_path / "x/health.jsonl") is None


def test_a_resumed_run_goes_on_in_its_record(tmp_path):
    path = tmp_path / "x/health.jsonl"
    trained(tmp_path, save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4)
    whole = lines.read(path)
    lines.write(path, {"step": 3, "finding": {"cause": "slow rank"}})
    path.write_text(path.read_text() + '{"step": 9, "loss": 1.')  # killed while it wrote
    kept = lines.begin(path, {"resumed_from": 4}, 4)
    found = lines.read(path)
    assert found == [*kept, {"run": {"resumed_from": 4}}] and [x["step"] for x in kept if "loss" in x] == [1, 2, 3, 4]
    assert kept[0] == whole[0] and not any("end" in x for x in kept) and {"step": 3, "finding": {"cause": "slow rank"}} in kept
    assert lines.begin(path, {"resumed_from": 0}, 0) == [] and len(lines.read(path)) == 1


def test_the_records_place():
    assert lines.place("outputs/pirate/training") == Path("outputs/pirate/health.jsonl")
    assert lines.place("./elsewhere/out") == Path("elsewhere/out/health.jsonl") and lines.read("nowhere.jsonl") == []


def test_a_rank_times_its_forward_passes_and_its_waiting_for_data(tmp_path):
    from transformers import Trainer, TrainingArguments, default_data_collator

    def slowly(rows):
        time.sleep(0.05)
        return default_data_collator(rows)

    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    model = model_of()
    args = TrainingArguments(tmp_path, use_cpu=True, report_to="none", disable_tqdm=True, per_device_train_batch_size=2)
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=slowly)
    clocks = pace.Pace(trainer, 2, quiet.Quiet())
    batches = iter(trainer.get_train_dataloader())
    assert len(trainer.get_batch_samples(batches, 3, "cpu")[0]) == 3 and clocks.waited >= 0.15
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda *_: time.sleep(0.1))
    before = clocks.waited
    model.train()(input_ids=torch.ones(2, 3, dtype=torch.long))
    model.eval()(input_ids=torch.ones(2, 3, dtype=torch.long))  # evaluations don't count
    hook.remove()
    assert len(clocks.spans) == 1 and clocks.tokens == 12
    assert clocks.own() >= before + 0.1 and clocks.own() == 0
    clocks.stop()
    assert "get_batch_samples" not in vars(trainer)


# --- the adapter's norms ---


def dense(layer, key="default"):
    """(‖s·B·A‖, ‖W‖) without Grams or dequantization: the product itself, and the frozen layer applied to the identity."""
    a, b, base = layer.lora_A[key].weight.float(), layer.lora_B[key].weight.float(), layer.get_base_layer()
    with torch.no_grad():
        w = base(torch.eye(base.in_features)) - (0 if base.bias is None else base.bias)
        return (layer.scaling[key] * b @ a).norm().item(), w.float().norm().item()


def compare(model, count):
    from peft.tuners.lora import LoraLayer

    found = weights.norms(model, {})
    layers = {weights.short(n): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert found.keys() == layers.keys() == weights.lora_b(model).keys() and len(found) == count
    for name, layer in layers.items():
        delta, base = dense(layer)
        told = found[name]
        assert (told["delta"], told["base"], told["share"]) == pytest.approx((delta, base, delta / base), rel=1e-3), name
        assert told["b"] == pytest.approx(weights.lora_b(model)[name]) and told["a"] == pytest.approx(
            layer.lora_A.default.weight.norm().item()
        )


def test_norms_of_the_trained_adapter_equal_a_dense_computation(chain):
    """On the base as QLoRA has it, NF4 with its scales quantized too, and on the plain one."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    for config in (four, None):
        base = AutoModelForCausalLM.from_pretrained(
            chain.parent / "nano/pirate", dtype=torch.float32, device_map={"": "cpu"}, quantization_config=config
        )
        compare(PeftModel.from_pretrained(base, chain / "adapter"), 21)


def test_norms_of_scaled_adapters_and_of_sharded_weights():
    for lora in ({"use_rslora": True}, {"use_dora": True, "lora_alpha": 64}):
        model = model_of(rank=3, **lora)
        for n, p in model.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p)
        compare(model, 14)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.lora_B.default.weight.data = torch.empty(0)  # as ZeRO-3 leaves it between two uses
    layer.get_base_layer().weight.data = torch.empty(0)
    assert len(weights.norms(model, {})) == len(weights.lora_b(model)) == 13


# --- the progress line ---


def test_the_progress_line(tmp_path):
    from tqdm import tqdm

    class Terminal:
        text, encoding = "", "utf-8"

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    path, screen = tmp_path / "health.jsonl", Terminal()
    follow = bar.follower(path)
    with tqdm(desc=f"{'train pirate-nano':<28}", file=screen, ncols=120, leave=False) as line:
        follow("Loading weights: 100%|██████████| 291/291 [00:01<00:00, 21.10it/s]", line)
        lines.begin(path, {"steps": 281}, 0)
        for step in range(1, 121):
            lines.write(path, {"step": step, "loss": 5 - step / 200, "tokens_per_s": 2083.4, "left_s": 80.2, "memory_gib": 1.23})
        lines.write(path, {"step": 120, "eval_loss": 4.4, "adapter": {}})
        follow(" 43%|████▎     | 120/281 [01:02<01:20,  2.0it/s]", line)
        told = screen.text.split("\r")[-1]
        assert "train pirate-nano" in told and "120/281" in told and "<01:20  loss 4.42 ↓  2,083 tok/s  1.2 GiB" in told and "█" in told
        lines.write(path, {"step": 121, "loss": math.nan, "left_s": 79})
        follow("100%|██████████| 25/25 [00:01<00:00, 21.10it/s]", line)  # an evaluation's bar
        assert "121/281" in screen.text.split("\r")[-1] and "loss nan" in screen.text.split("\r")[-1]
        lines.begin(path, {"steps": 281}, 100)  # resumed: the figures start over
        lines.write(path, {"step": 101, "loss": 4.5, "left_s": 90})
        follow("x", line)
        assert "101/281" in screen.text.split("\r")[-1] and "<01:30" in screen.text.split("\r")[-1]
        lines.write(path, {"step": 102, "loss": 4.5, "tokens_per_s": 2083.4, "left_s": 80.2, "memory_gib": 1.23})
        line.ncols = 80
        follow("x", line)
        assert len(screen.text.split("\r")[-1].rstrip()) <= 80 and screen.text.rstrip().endswith("1.2 GiB")


def test_where_the_loss_goes():
    assert bar.trend([5, 5, 5]) == "" and bar.trend([5.0] * 20) == " →"
    assert bar.trend([5 - n / 100 for n in range(100)]) == " ↓" and bar.trend([5 + n / 100 for n in range(100)]) == " ↑"
