"""The tracing itself is put to the test: fake tensors against real ones, PEFT's own count, and a count by hand."""

import json

import pytest

from conftest import one_line, room
from scripts import calibrate


def nano(adapter="qlora", on="cf", rows=2, dropout=0.05):
    return calibrate.point(f"nano {adapter} 128 {rows} 8 {dropout} {on or '-'}")


@pytest.mark.parametrize("adapter, on", [("qlora", "cf"), ("qlora", "f"), ("lora", "c"), ("lora", "-")])
def test_fake_tensors_take_byte_for_byte_what_real_ones_take(adapter, on):
    fake = calibrate.trace(nano(adapter, on), cuda=False)
    real = calibrate.trace(nano(adapter, on), fake=False, cuda=False)
    assert fake == real and fake["peak_bytes"] == sum(fake["parts"].values())


def test_the_adapter_is_as_large_as_pefts_own_count():
    p = calibrate.point("8B qlora 512 1 64 0.05 c")
    model = calibrate.build(p)
    assert model.get_nb_trainable_parameters()[0] == 167_772_160
    assert sum(w.numel() for w in model.parameters() if not w.requires_grad) == 8_030_261_248  # Llama 3.1 8B


def test_weights_are_counted_as_nf4_by_hand():
    hidden, layers, heads, kv, dim, intermediate, vocab = calibrate.BASES["nano"]
    matrices = [hidden * heads * dim] * 2 + [hidden * kv * dim] * 2 + [hidden * intermediate] * 3

    def up(size):
        return -(-size // 512) * 512

    # 4 bits each; a byte for every 64; a float32 for every 256 of those; the two codes; an offset
    nf4 = sum(up(n // 2) + up(n // 64) + up(4 * -(-n // 64 // 256)) + up(4 * 16) + up(4 * 256) + up(4) for n in matrices)
    rest = 2 * up(2 * vocab * hidden) + (2 * layers + 1) * up(2 * hidden)
    shared = 2 * up(4 * dim // 2) + up(8 * 2 * 128)  # RoPE's frequencies, twice; the batch
    assert calibrate.trace(nano())["parts"]["weights"] == layers * nf4 + rest + shared


def test_without_the_fused_loss_three_float32_copies_of_the_logits_are_the_peak():
    tokens, (hidden, layers, *_, vocab) = 8 * 128, calibrate.BASES["nano"]
    got = calibrate.trace(nano(on="c", rows=8, dropout=0))
    resident = sum(got["parts"][part] for part in ("weights", "adapter", "gradients", "optimizer"))
    kept = tokens * (2 * hidden * layers + 4 * hidden)  # layer inputs in bfloat16, the last norm's in float32
    assert got["peak_at"] == "loss: aten._log_softmax_backward_data.default"
    assert got["peak_bytes"] - resident == pytest.approx(12 * vocab * tokens + kept, rel=0.02)


def test_checkpointing_and_the_fused_loss_save_memory():
    peak = {on: calibrate.trace(nano(on=on, rows=8))["peak_bytes"] for on in ("cf", "c", "f", "-")}
    assert peak["cf"] < min(peak["c"], peak["f"]) and max(peak["c"], peak["f"]) < peak["-"]


def test_what_runs_on_a_gpu_runs():
    found = calibrate.measure(nano(), "cpu")
    assert found["seconds_per_step"] > 0 and found["tokens_per_second"] > 0


def test_a_point_with_kernels_goes_to_the_screen(copy):
    (copy / "reports/calibration/points.txt").write_text("# nano\nnano qlora 128 2 8 0.05 cfk\n")
    done = room("calibrate", "--only", "1", cwd=copy)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["kernels"] and line["kind"] == "trace" and line["adapter_parameters"] == 8 * 2 * (2 * 128 + 2 * 96 + 3 * 192)
    assert "nano" not in (copy / "reports/calibration/trace.jsonl").read_text()


def test_a_wrong_point_is_one_line(copy):
    (copy / "reports/calibration/points.txt").write_text("# nano\n7B qlora 128 2 8 0.05 cf\n")
    one_line(room("calibrate", "--only", "1", cwd=copy), "points.txt:2", "7B")


def test_the_committed_traces_are_those_of_the_points():
    lines = [json.loads(line) for line in (calibrate.FOLDER / "trace.jsonl").read_text().splitlines()]
    wanted = [calibrate.point(line) for line in (calibrate.FOLDER / "points.txt").read_text().splitlines()[1:]]
    assert [{key: line[key] for key in calibrate.KEYS} for line in lines] == wanted
    assert all(line["peak_bytes"] == sum(line["parts"].values()) for line in lines)
