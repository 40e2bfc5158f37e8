"""The whole chain as a person runs it: make, and make again."""

import os
from pathlib import Path

import pytest

from conftest import CACHE, OLLAMA_VERSIONS, one_line, run
from scripts import receipt


def test_every_stage_left_a_receipt_that_continues_the_one_before(chain):
    before = {}
    for stage in ("preprocess", "train", "merge", "gguf", "modelfile"):
        made = receipt.read(chain / f"{stage}.json")
        assert made["recipe"] == "pirate-nano" and made["seconds"] > 0 and made["outputs"]
        root = str(Path.cwd()) + "/"
        assert not any(root in p for p in [*made["inputs"], *made["outputs"]]), "receipts travel: paths are relative"
        for path, digest in made["inputs"].items():
            assert before.get(path, digest) == digest, (stage, path)
        before |= made["outputs"]


def test_nothing_to_do_does_nothing(ollama, chain):
    first = run("make", "ollama", "RECIPE=pirate-nano")
    assert first.returncode == 0, first.stdout + first.stderr
    before = {p: p.stat().st_mtime_ns for p in chain.glob("*.json")}
    again = run("make", "ollama", "RECIPE=pirate-nano")
    assert (again.returncode, again.stdout) == (0, "ollama      pirate-nano stands: ollama run pirate-nano\n")
    assert {p: p.stat().st_mtime_ns for p in chain.glob("*.json")} == before


def test_the_modelfile_alone_is_remade_when_it_alone_changes(chained):
    receipts = lambda: {p.name: p.stat().st_mtime_ns for p in Path("outputs/pirate-nano").glob("*.json")}  # noqa: E731
    before = receipts()
    made = run("make", "modelfile", "RECIPE=pirate-nano", "QUANT=Q8_0")
    assert made.returncode == 0, made.stdout + made.stderr
    assert {n for n, t in receipts().items() if before.get(n) != t} == {"modelfile.json"}


def test_a_variant_never_touches_the_original(chained):
    from scripts import files

    before = files.sha256("outputs/pirate-nano")
    made = run("make", "-n", "gguf", "RECIPE=pirate-nano", "SET=lora_r=16 learning_rate=1e-4")
    assert made.returncode == 0, made.stderr
    assert "scripts.train pirate-nano+lora_r=16+learning_rate=1e-4" in made.stdout
    made = run("make", "preprocess", "RECIPE=pirate-nano", "SET=lora_r=16 learning_rate=1e-4")
    assert made.returncode == 0, made.stdout + made.stderr
    assert (
        Path("outputs/pirate-nano+lora_r=16+learning_rate=1e-4/preprocess.json").exists() and files.sha256("outputs/pirate-nano") == before
    )


@pytest.mark.parametrize("goal", ["train", "merge", "gguf", "ollama", "chat"])
def test_the_big_recipe_is_refused_here_at_once_with_what_to_run_instead(copy, goal):
    one_line(run("make", goal), "recipe pirate needs 4 × a100-80g, this machine has 0 GPUs; run `make train RECIPE=pirate-nano` instead")
    assert not list(Path("outputs").glob("*/prepared"))


def test_clean_wants_to_be_told_which(chained):
    assert "say which" in run("make", "clean").stderr and Path("outputs/pirate-nano").exists()
    assert run("make", "clean", "RECIPE=pirate-nano").returncode == 0
    assert not Path("outputs/pirate-nano").exists() and Path("outputs/nano").exists()


def test_the_demo_ends_in_a_conversation_through_ollama(chain):
    binary = CACHE / f"ollama-{OLLAMA_VERSIONS[0]}/bin/ollama"
    done = run("make", "demo", **({"OLLAMA": str(binary)} if binary.exists() else {}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ollama, model pirate-nano" in done.stdout and done.stdout.count(">>> ") == 3


def test_the_demo_without_ollama_ends_in_llama_server_and_says_how_to_get_it(chain):
    done = run("make", "demo", OLLAMA="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "llama-server" in done.stdout and "make ollama-server" in done.stdout and done.stdout.count(">>> ") == 3


def test_every_receipt_names_its_machine_and_versions(chain):
    made = receipt.read(chain / "train.json")
    assert made["versions"]["axolotl"] == "0.21.0" and made["machine"]["cores"] == len(os.sched_getaffinity(0))
