import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import ROOT, one_line, room, run
from scripts import files, receipt, train
from scripts.watch import lines
from test_snapshot import edit


@pytest.fixture
def short(chained):
    """pirate-nano on 48 rows, two epochs, six checkpoints: seconds a run, everything else as it is."""
    for name, rows in (("train", 48), ("eval", 8)):
        lines = Path(f"datasets/pirate/{name}.jsonl").read_text().splitlines()[:rows]
        Path(f"datasets/pirate/{name}.jsonl").write_text("\n".join(lines) + "\n")
    edit("recipes/pirate-nano.yml", "saves_per_epoch: 2", "saves_per_epoch: 3")
    shutil.rmtree("outputs/pirate-nano/training")
    return chained


def test_it_trained_to_the_end_and_learned(chain):
    figures = receipt.read(chain / "train.json")["figures"]
    assert figures["steps"] == 281 and figures["global_batch"] == 8 and figures["lora_B_matrices"] == 21 and figures["lora_B_norm_min"] > 0
    assert figures["eval_losses"][-1] < figures["eval_losses"][0] - 0.5


def test_kill_9_and_make_again_ends_in_the_same_adapter(short):
    """Killed in the second epoch, whose order of rows a resumed run must draw as the interrupted one did (scripts/order.py)."""
    made = run("make", "train", "RECIPE=pirate-nano")
    assert made.returncode == 0, made.stdout + made.stderr
    whole = files.sha256("outputs/pirate-nano/adapter/adapter_model.safetensors")
    record = lines.read("outputs/pirate-nano/health.jsonl")
    for p in ("outputs/pirate-nano/training", "outputs/pirate-nano/adapter"):
        shutil.rmtree(p)
    Path("outputs/pirate-nano/train.json").unlink()
    child = subprocess.Popen(
        ["make", "train", "RECIPE=pirate-nano"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.time() + 400
    while not list(Path("outputs/pirate-nano/training").glob("checkpoint-8/trainer_state.json")):
        assert time.time() < until and child.poll() is None
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)  # make alone: what it started must end by itself
    child.wait()
    time.sleep(3)
    assert not Path("outputs/pirate-nano/train.json").exists()
    again = run("make", "train", "RECIPE=pirate-nano")
    assert again.returncode == 0, again.stdout + again.stderr
    figures = receipt.read("outputs/pirate-nano/train.json")["figures"]
    assert 8 <= figures["resumed_from_step"] < 12 and figures["steps"] == 12 and figures["verdict"] == "healthy"
    assert files.sha256("outputs/pirate-nano/adapter/adapter_model.safetensors") == whole
    after = lines.read(
        "outputs/pirate-nano/health.jsonl"
    )  # one record of two processes, each step once, and what was not logged stays away
    assert [line["run"]["resumed_from"] for line in after if "run" in line] == [0, figures["resumed_from_step"]]
    for key in ("loss", "eval_loss"):
        was, found = ({x["step"]: x[key] for x in log if key in x} for log in (record, after))
        extra = set(found) - set(was)  # a resumed run begins with an evaluation
        assert was and all(found[step] == was[step] for step in was) and extra <= ({8, 10} if key == "eval_loss" else set())
        assert len(found) == sum(key in x for x in after), "each step once"
    assert "end" in after[-1] and sum("end" in line for line in after) == 1


def test_a_finished_run_is_not_trained_further(chained):
    """Its receipt is gone (or the clock stepped back): the last checkpoint must not become the start of one more step."""
    before = receipt.read("outputs/pirate-nano/train.json")["figures"]
    Path("outputs/pirate-nano/train.json").unlink()
    made = room("train", "pirate-nano")
    assert made.returncode == 0, made.stderr
    after = receipt.read("outputs/pirate-nano/train.json")["figures"]
    assert after["steps"] == before["steps"] == 281 and after["eval_losses"] == before["eval_losses"]
    training = Path("outputs/pirate-nano/training")
    (training / "adapter_model.safetensors").write_bytes(b"half")  # killed after the last checkpoint, before the result was saved
    assert not train.stands(training) and not (training / "checkpoint-281").exists()


def test_two_deepspeed_ranks_end_where_one_does(chained):
    """The same global batch on two CPU ranks under ZeRO-1: the eval loss within 2 %."""
    one = receipt.read("outputs/pirate-nano/train.json")["figures"]["eval_losses"][-1]
    Path("outputs/pirate-nano/train.json").unlink()
    shutil.rmtree("outputs/pirate-nano/training")
    made = run("make", "train", "RECIPE=pirate-nano", "GPUS=2")
    assert made.returncode == 0, made.stdout + made.stderr
    figures = receipt.read("outputs/pirate-nano/train.json")["figures"]
    assert figures["ranks"] == 2 and figures["global_batch"] == 8 and figures["steps"] == 281
    assert "DeepSpeed" in Path("outputs/pirate-nano/logs/train.log").read_text()
    assert abs(figures["eval_losses"][-1] - one) / one < 0.02, (figures["eval_losses"], one)


def test_axolotl_takes_the_recipe_verbatim(short):
    """Without make, without torchrun, without our wrapper."""
    shutil.rmtree("outputs/pirate-nano/prepared")  # Axolotl would take it for the shortened data's: it hashes names, not bytes
    done = run(
        ".venv/bin/axolotl", "train", "recipes/pirate-nano.yml", AXOLOTL_DO_NOT_TRACK="1", PATH=f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    assert train.finished(Path("outputs/pirate-nano/training"))["global_step"] == 12
    assert lines.read("outputs/pirate-nano/health.jsonl")[-1]["end"]["verdict"] == "healthy"


def test_two_nodes_train_together(short):
    """Two launchers on loopback, one rank each, as two machines would."""
    from scripts import process

    assert run("make", "preprocess", "RECIPE=pirate-nano").returncode == 0
    port = str(process.free_port())
    second = short / "node1"  # the second machine has a clone of its own
    shutil.copytree(short, second, symlinks=True, ignore=shutil.ignore_patterns("node1"))
    nodes = [
        subprocess.Popen(
            [str(ROOT / ".venv/bin/python"), "-m", "scripts.train", "pirate-nano"],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "NNODES": "2", "NODE_RANK": str(n), "MASTER": "127.0.0.1", "MASTER_PORT": port, "GPUS": "1"},
        )
        for n, place in enumerate((short, second))
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    figures = receipt.read("outputs/pirate-nano/train.json")["figures"]
    assert figures["steps"] == 12 and figures["lora_B_norm_min"] > 0 and "node 1 done" in said[1]


def test_a_run_that_stopped_short_is_not_done(tmp_path):
    with pytest.raises(ValueError, match="stopped at before the first checkpoint"):
        train.finished(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5/trainer_state.json").write_text(json.dumps({"global_step": 5, "max_steps": 12}))
    with pytest.raises(ValueError, match="stopped at step 5 of 12; run the same command again"):
        train.finished(tmp_path)


def test_a_run_that_early_stopping_ended_is_done_and_its_best_checkpoint_is_the_result(tmp_path):
    """Patience 2, run out at step 75 of 100; the best was at 25. Interrupted at step 75 it would not be done."""
    callback = {"args": {"early_stopping_patience": 2}, "attributes": {"early_stopping_patience_counter": 2}}
    last = {"global_step": 75, "max_steps": 100, "best_model_checkpoint": "outputs/x/training/checkpoint-25"}
    for step, weight in ((25, "best"), (75, "last")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
            (folder / name).write_text(weight if "model" in name else "same")
    for source in (25, 75):
        (tmp_path / "checkpoint-75/trainer_state.json").write_text(json.dumps(last | {"stateful_callbacks": {"EarlyStoppingCallback": callback}}))
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
            shutil.copy(tmp_path / f"checkpoint-{source}" / name, tmp_path)
        assert train.finished(tmp_path)["global_step"] == 75 and train.stands(tmp_path)
    callback["attributes"]["early_stopping_patience_counter"] = 1
    (tmp_path / "checkpoint-75/trainer_state.json").write_text(json.dumps(last | {"stateful_callbacks": {"EarlyStoppingCallback": callback}}))
    with pytest.raises(ValueError, match="stopped at step 75 of 100"):
        train.finished(tmp_path)
    assert not train.stands(tmp_path) and (tmp_path / "checkpoint-75").exists()


def test_an_adapter_that_learned_nothing_is_refused(chain, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(chain / "adapter/adapter_model.safetensors")
    name = next(k for k in tensors if "lora_B" in k)
    for value, count in ((0.0, 1), (float("nan"), 1)):
        save_file({**tensors, name: tensors[name] * 0 + value}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=rf"{count} of 21 lora_B matrices are zero or not finite \(first: .*lora_B"):
            train.adapter_figures(tmp_path / "a.safetensors")


def test_only_whole_checkpoints_of_this_very_run_count(chain, tmp_path):
    training = tmp_path / "training"
    train.clear_stale(training, "key", 4)
    good = training / "checkpoint-1"
    good.mkdir()
    shutil.copy(chain / "adapter/adapter_model.safetensors", good)
    for name in ("trainer_state.json", "optimizer.pt", "rng_state.pth"):
        (good / name).write_text("{}")
    for n, lost in ((4, "optimizer.pt"), (5, "rng_state.pth")):
        shutil.copytree(good, training / f"checkpoint-{n}", ignore=shutil.ignore_patterns(lost))
    for n, broken in ((2, "trainer_state.json"), (3, "adapter_model.safetensors")):
        shutil.copytree(good, training / f"checkpoint-{n}")
        path = training / f"checkpoint-{n}" / broken
        path.write_bytes(path.read_bytes()[:-1] if n == 3 else b"{")
    train.clear_stale(training, "key", 4)
    assert [p.name for p in training.glob("checkpoint-*")] == ["checkpoint-1"]
    with pytest.raises(ValueError, match="made on 4 ranks, this run has 2; go on with the same GPUS"):
        train.clear_stale(training, "key", 2)
    assert [p.name for p in training.glob("checkpoint-*")] == ["checkpoint-1"]
    (training / "run.json").rename(training / "run.away")
    with pytest.raises(ValueError, match="a run that `make` did not start"):
        train.clear_stale(training, "key", 4)
    (training / "run.away").rename(training / "run.json")
    train.clear_stale(training, "another key", 4)
    assert not list(training.glob("checkpoint-*"))


def test_gpus_that_do_not_divide_are_refused(chained):
    one_line(room("train", "pirate-nano", GPUS="3"), "do not divide the global batch of 8")


def test_a_base_made_anew_is_another_run(chained):
    """What was learned on the old base must not be taken for trained on the new."""
    folder = Path("outputs/pirate-nano")
    cfg, before = train.recipe.read(folder / "recipe.yml"), train.run_key(folder, train.recipe.read(folder / "recipe.yml"))
    path = Path("outputs/nano/pirate/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert train.run_key(folder, cfg) != before


def test_several_nodes_need_an_address(chained):
    one_line(room("train", "pirate-nano", NNODES="2"), "NNODES=2 without MASTER")
