import random

import pytest

from conftest import ROOT, make
from scripts import base, data, files


@pytest.fixture(scope="module")
def nano():
    make("base", "RECIPE=pirate")
    return ROOT / "outputs/nano/pirate"


def test_it_is_small_whole_and_llama_shaped(nano):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(nano), AutoTokenizer.from_pretrained(nano)
    assert 4e6 <= sum(p.numel() for p in model.parameters()) <= 8e6 and model.config.model_type == "llama"
    for token in ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>"):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
    )


def test_its_tokenizer_is_sentencepieces_own(nano):
    """The Hugging Face form, rebuilt from the scores, against sentencepiece itself: 300 random texts of words, blanks, unicode and bytes."""
    import sentencepiece
    from tokenizers import Tokenizer

    tok, sp = (
        Tokenizer.from_file(str(nano / "tokenizer.json")),
        sentencepiece.SentencePieceProcessor(model_file=str(nano / "tokenizer.model")),
    )
    words = " ".join(m["content"] for r in data.read("datasets/pirate/eval-plain.jsonl") for m in r["messages"]).split()
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(
            rng.choice([rng.choice(words), " ", "  ", "\n", "\t", chr(rng.randrange(32, 0x2FFF)), chr(rng.randrange(0x1F300, 0x1F600))])
            for _ in range(rng.randrange(1, 30))
        )
        assert tok.encode(text, add_special_tokens=False).ids == sp.encode(text), repr(text)


def test_the_same_seed_makes_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "EPOCHS", 1)
    monkeypatch.setattr(base, "TOKENS", 0)
    rows = data.read("datasets/pirate/train-plain.jsonl")[:60]
    digests = []
    for n in (1, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        tok = base.save_tokenizer(
            base.sentencepiece_model([m["content"] for r in data.read("datasets/pirate/train-plain.jsonl") for m in r["messages"]]),
            open("modelfiles/llama3.jinja").read(),
            folder,
        )
        base.train(tok, rows, folder)
        digests.append(files.sha256(folder / "model.safetensors"))
    assert digests[0] == digests[1]
