from scripts import bench, receipt


def test_a_failing_command_is_a_finding_not_a_time():
    import pytest

    with pytest.raises(ValueError, match="make nothing-there failed"):
        bench.seconds("make", "nothing-there")


def test_stage_times_come_from_receipts(chain):
    rows = list(bench.stage_rows())
    trained = receipt.read(chain.parent / "nano/pirate.json")["seconds"] >= 1  # else the base came from the tool cache, in no time
    stages = ["base"] * trained + ["preprocess", "train", "merge", "gguf", "modelfile"]
    assert [r[0] for r in rows] == [f"stage {stage}" for stage in stages] and all(r[1] > 0 for r in rows)
