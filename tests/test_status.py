from pathlib import Path

from conftest import room
from test_snapshot import edit


def table():
    out = room("status")
    assert out.returncode == 0, out.stderr
    head, *rows = [line.split() for line in out.stdout.splitlines()]
    return {row[0]: dict(zip(head, row[1:])) for row in rows}


def test_nothing_made_yet(copy):
    assert set(table()["pirate"].values()) == {"-"}


def test_stands_then_stale_from_where_the_change_bites(chained):
    assert [table()["pirate-nano"][s] for s in ("preprocess", "train", "merge", "gguf", "modelfile")] == ["stands"] * 5
    edit("recipes/pirate-nano.yml", "[Q4_K_M, Q8_0]", "[Q4_K_M]")
    assert [table()["pirate-nano"][s] for s in ("merge", "gguf", "modelfile")] == ["stands", "stale", "stale"]
    edit("recipes/pirate-nano.yml", "[Q4_K_M]", "[Q4_K_M, Q8_0]")
    edit("modelfiles/pirate.Modelfile", "temperature 0.7", "temperature 0.6")
    assert [table()["pirate-nano"][s] for s in ("train", "gguf", "modelfile")] == ["stands", "stands", "stale"]
    edit("recipes/pirate-nano.yml", "lora_r: 64", "lora_r: 32")
    assert table()["pirate-nano"]["train"] == "stale"


def test_a_missing_file_is_missing_and_what_follows_is_stale(chained):
    import shutil

    shutil.rmtree("outputs/pirate-nano/merged")
    found = table()["pirate-nano"]
    assert (found["train"], found["merge"], found["gguf"]) == ("stands", "-", "stale")


def test_variants_are_rows_of_their_own(chained):
    assert room("snapshot", "pirate-nano+lora_r=16").returncode == 0
    assert table()["pirate-nano+lora_r=16"]["train"] == "-" and Path("outputs/pirate-nano/train.json").exists()
