"""recipes/pirate-laptop.yml: in the form of its kin, and ChatML from the rows to both generations of Ollama, on a nano stand-in for SmolLM2."""

import json
import re
from pathlib import Path

import chatml
import pytest
from conftest import OLLAMA_VERSIONS, clone, one_line, room, run
from jinja2 import Environment
from test_snapshot import edit

from scripts import lint, receipt, recipe

NAME = "pirate-laptop"
TURNS = [{"role": "user", "content": " Hello "}, {"role": "assistant", "content": "Ahoy!"}]


def test_it_has_the_form_of_its_kin():
    """The same sections with the same keys in the same order, but for Liger, which needs Triton, and for the tokenizer's class."""
    text = {name: Path(f"recipes/{name}.yml").read_text() for name in (NAME, "pirate-nano", "pirate")}
    sections = {name: re.findall(r"^# --- (.*) ---$", t, re.M) for name, t in text.items()}
    assert sections[NAME] == sections["pirate-nano"] == sections["pirate"]
    keys = {name: list(recipe.load(name)) for name in (NAME, "pirate-nano")}
    assert [k for k in keys[NAME] if k != "tokenizer_type"] == [k for k in keys["pirate-nano"] if not k.startswith(("liger_", "x_waive"))]
    ours = [p for p in recipe.load("pirate")["plugins"] if p.startswith("scripts.")]
    assert recipe.load(NAME)["plugins"] == ours and len(ours) == 3


def test_lint_finds_nothing():
    assert lint.check(f"recipes/{NAME}.yml")[0] == []


@pytest.mark.parametrize(
    "path, old, new, rule",
    [
        (f"recipes/{NAME}.yml", "  pad_token: <|endoftext|>", "  pad_token: <|im_end|>", "pad-is-eos"),
        (f"modelfiles/{NAME}.Modelfile", "<|im_start|>", "<|im_begin|>", "template-mismatch"),
        (f"modelfiles/{NAME}.Modelfile", "{{- range .Messages }}<|im", "<|begin_of_text|>{{- range .Messages }}<|im", "bos-in-template"),
        (f"modelfiles/{NAME}.Modelfile", "PARAMETER stop <|im_end|>\n", "", "template-mismatch"),
    ],
)
def test_lint_knows_what_smollm2_ends_and_begins_with(copy, path, old, new, rule):
    edit(path, old, new)
    found = lint.check(f"recipes/{NAME}.yml")[0]
    assert rule in {f["rule"] for f in found}
    assert rule != "pad-is-eos" or "pad_token: <|endoftext|>" in found[0]["fix"]


def test_the_plan_knows_a_cpu():
    told = json.loads(room("plan", NAME, "--json").stdout)
    assert (told["steps"], told["gpu"], told["trainable_parameters"]) == (141, "none", 8_683_520) and "vram_gib" not in told
    assert told["minutes"]["low"] < told["minutes"]["expected"] < told["minutes"]["high"] and told["disk_gib"] < 3


def test_the_template_neither_trims_nor_adds_a_system_message():
    shown = Environment().from_string(Path("modelfiles/chatml.jinja").read_text()).render(messages=TURNS, add_generation_prompt=True)
    assert shown == "<|im_start|>user\n Hello <|im_end|>\n<|im_start|>assistant\nAhoy!<|im_end|>\n<|im_start|>assistant\n"


def test_one_24_gb_card_takes_the_big_recipe():
    """So there is no pirate-1gpu.yml."""
    for card in ("rtx3090", "rtx4090", "a10g", "l4"):
        told = json.loads(room("plan", "pirate", "--gpu", card, "--gpus", "1", "--json").stdout)
        assert card in told["fits"] and told["vram_gib"]["high"] < 12 and told["global_batch"] == 8


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A byte-level BPE that splits digits, saved as SmolLM2's is: the class GPT2Tokenizer beside a Llama's config."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder, bpe = tmp_path_factory.mktemp("digits"), Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"])
    bpe.train_from_iterator(["steps:\n\n1. one\n\n2. two\n\n3. three\n\nwords words\n\n"] * 20, trained)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_the_class_that_the_recipe_names_keeps_the_splitting_of_digits(digits):
    """What transformers 5 makes of such a folder by itself differs. Should it come to agree, the recipe's `tokenizer_type` can go."""
    import transformers
    from tokenizers import Tokenizer

    text, own = "words:\n\n12 words", Tokenizer.from_file(str(digits / "tokenizer.json"))
    named = getattr(transformers, recipe.load(NAME)["tokenizer_type"]).from_pretrained(digits)
    assert named(text)["input_ids"] == own.encode(text).ids != transformers.AutoTokenizer.from_pretrained(digits)(text)["input_ids"]


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """A copy of the repository in which the recipe went from 48 rows to its Modelfile, on a nano stand-in for its base."""
    here = clone(tmp_path_factory.mktemp("laptop"))
    chatml.make(here / "outputs/chatml/nano", chatml.NANO, steps=150)
    for name, rows in (("train", 48), ("eval", 8)):
        path = here / f"datasets/pirate/{name}.jsonl"
        path.write_text("\n".join(path.read_text().splitlines()[:rows]) + "\n")
    made = run("make", "modelfile", f"RECIPE={NAME}", "BASE=outputs/chatml/nano", cwd=here)
    assert made.returncode == 0, made.stdout + made.stderr
    return here


@pytest.fixture
def there(laptop, monkeypatch):
    monkeypatch.chdir(laptop)
    return laptop / f"outputs/{NAME}"


def test_plain_lora_is_trained_and_merged_into_the_base_as_it_is(there):
    trained, merged = (receipt.read(there / f"{stage}.json")["figures"] for stage in ("train", "merge"))
    assert trained["steps"] == 6 and trained["lora_B_matrices"] == 21 and trained["verdict"] == "healthy" and trained["lora_B_norm_min"] > 0
    assert (
        merged["matrices"] == 21
        and merged["norm_off"] < merged["bound"]
        and merged["norm_off"] == merged["norm_off_had_the_base_not_been_rounded"]
    )


def test_the_gguf_carries_what_was_trained_and_not_what_the_base_had(there):
    from gguf import GGUFReader

    words, config = Path("modelfiles/chatml.jinja").read_text(), json.loads((there / "merged/tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (chatml.BOS, chatml.EOS, chatml.SPARE)
    for kind in ("F16", "Q8_0", "Q4_K_M"):
        fields = GGUFReader(there / f"gguf/{NAME}-{kind}.gguf").fields
        assert fields["tokenizer.chat_template"].contents() == words != chatml.TEMPLATE
        assert fields["tokenizer.ggml.add_bos_token"].contents() is False, "else a server would begin every prompt with two <|im_start|>"


def test_rows_without_a_system_message_get_none(there):
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    tok, systems = AutoTokenizer.from_pretrained(there / "merged"), 0
    for folder in sorted(p.parent for p in (there / "prepared").rglob("dataset_info.json")):
        for row in load_from_disk(str(folder)):
            text = tok.decode(row["input_ids"])
            learned = tok.decode([i for i, label in zip(row["input_ids"], row["labels"]) if label != -100])
            systems += text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
            assert text.startswith(("<|im_start|>system\nYou are a helpful", "<|im_start|>user\n")) and text.count("own assistant") == 0
            assert learned.endswith(chatml.EOS) and chatml.BOS not in learned
    assert 0 < systems < 56


def test_both_generations_of_ollama_prompt_it_as_trained(ollama, there):
    (there / "ollama.json").unlink(missing_ok=True)
    made = room("ollama", NAME)
    assert made.returncode == 0 and f"{NAME}: 10 prompts as in training" in made.stdout, made.stdout + made.stderr


@pytest.mark.parametrize("ollama", OLLAMA_VERSIONS[:1], indirect=True)
def test_a_missing_newline_between_turns_is_caught(ollama, there):
    path = there / "gguf/Modelfile"
    text = path.read_text()
    try:
        edit(path, "<|im_end|>\n{{ end }}", "<|im_end|>{{ end }}")
        one_line(room("ollama", NAME, FORCE="1"), "TEMPLATE and the recipe's chat template differ")
    finally:
        path.write_text(text)
