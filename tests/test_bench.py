from scripts import bench


def test_a_failing_command_is_a_finding_not_a_time():
    import pytest

    with pytest.raises(ValueError, match="make nothing-there failed"):
        bench.seconds("make", "nothing-there")


def test_stage_times_come_from_receipts(chain):
    rows = list(bench.stage_rows())
    assert [r[0] for r in rows] == [
        "stage base",
        "stage preprocess",
        "stage train",
        "stage merge",
        "stage gguf",
        "stage modelfile",
    ] and all(r[1] > 0 for r in rows)
