import json
from pathlib import Path

import pytest

from conftest import room
from scripts import receipt, score


def test_the_judge_knows_the_voice_and_is_refused_where_there_is_none(copy):
    classifier, accuracy = score.judge("pirate")
    assert accuracy >= 0.95
    voice, plain = classifier.predict(["Arr, ye'll be wantin' a sharp knife fer that, matey.", "You will want a sharp knife for that."])
    assert (voice, plain) == (1, 0)
    for name in ("train", "eval"):  # twins without a voice: the judge must say that it can't tell
        Path(f"datasets/pirate/{name}.jsonl").write_text(Path(f"datasets/pirate/{name}-plain.jsonl").read_text())
    with pytest.raises(ValueError, match="style classifier tells only 50% of held-out replies"):
        score.judge("pirate")


def test_it_learned(chain):
    """The base speaks plainly, the tuned model like a pirate, and replies end."""
    done = room("score", "pirate-nano", "base", "merged")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = receipt.read(chain / "score.json")["figures"]
    assert figures["prompts"] == 100
    assert figures["base"]["style"] <= 0.05 and figures["merged"]["style"] >= 0.80
    assert figures["merged"]["ended"] >= 0.95
    assert len([json.loads(line) for line in open(chain / "replies-merged.jsonl")]) == 100


def test_and_so_it_speaks_through_ollama(ollama, chain):
    assert room("ollama", "pirate-nano").returncode == 0
    done = room("score", "pirate-nano", "ollama")
    assert done.returncode == 0, done.stdout + done.stderr
    said = receipt.read(chain / "score.json")["figures"]["ollama"]
    assert said["style"] >= 0.80 and said["ended"] >= 0.95, said
