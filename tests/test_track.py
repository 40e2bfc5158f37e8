import json
from pathlib import Path

from conftest import room
from scripts import plan, receipt, track


def test_a_run_is_held_to_its_plan(chained):
    track.RUNS.unlink(missing_ok=True)  # the copy brings this machine's own record along
    assert room("track", "pirate-nano").returncode == 0
    line = json.loads(track.RUNS.read_text().splitlines()[-1])
    figures = receipt.read("outputs/pirate-nano/train.json")
    assert line["steps"] == line["predicted_steps"] == figures["figures"]["steps"] and line["minutes"] == round(figures["seconds"] / 60, 2)
    assert line["predicted_minutes"]["low"] < line["predicted_minutes"]["high"] and "gib" not in line, "no GPU here"
    assert "1 run: time within low–high" in plan.track_record()
    assert "record      1 run" in room("plan", "pirate-nano").stdout


def test_a_resumed_run_has_no_whole_time(chained):
    track.RUNS.unlink(missing_ok=True)
    path = Path("outputs/pirate-nano/train.json")
    made = receipt.read(path)
    path.write_text(json.dumps(made | {"figures": made["figures"] | {"resumed_from_step": 12}}))
    assert room("track", "pirate-nano").returncode == 0 and not track.RUNS.exists()


def test_memory_is_compared_beneath_the_runtime():
    made = {
        "recipe": "x",
        "made": "now",
        "seconds": 60,
        "machine": {"gpus": ["NVIDIA L4"], "cpu": "c"},
        "figures": {"ranks": 1, "steps": 3, "gpu_memory_gib": 8.0},
    }
    told = {
        "steps": 3,
        "minutes": {"low": 1, "expected": 1, "high": 2},
        "vram_gib": {"low": 7, "expected": 8.6, "high": 10, "parts": {"runtime": 0.6}},
    }
    assert track.entry(made, told)["predicted_gib"] == {"low": 7, "expected": 8.0, "high": 9.4}
