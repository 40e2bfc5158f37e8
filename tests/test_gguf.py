import json
import shutil
from pathlib import Path

import pytest

from conftest import one_line, room
from scripts import gguf, process, receipt


@pytest.fixture(scope="module")
def tokenizer(chain):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chain / "merged")


def test_it_is_the_same_model(chain):
    figures = receipt.read(chain / "gguf.json")["figures"]
    assert figures["F16_nmse"] <= 1e-6 and figures["Q8_0_kld"] < figures["Q4_K_M_kld"] < 0.1 and figures["texts"] > 100
    assert all(figures[f"{kind}_{what}tokens_per_s"] > 0 for kind in ("F16", "Q4_K_M", "Q8_0") for what in ("", "prompt_"))
    assert {p.name for p in (chain / "gguf").glob("*.gguf")} == {f"pirate-nano-{k}.gguf" for k in ("F16", "Q4_K_M", "Q8_0")}


def test_the_file_carries_the_training_template_and_ids(chain, tokenizer):
    for path in (chain / "gguf").glob("*.gguf"):
        assert gguf.metadata(path) == (Path("modelfiles/llama3.jinja").read_text(), tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_another_template_or_another_end_is_caught(chain, tokenizer, tmp_path):
    path = chain / "gguf/pirate-nano-F16.gguf"
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match="its chat template is"):
        gguf.prove_metadata(path, tmp_path, tokenizer)

    class Other:
        bos_token_id, eos_token_id = tokenizer.bos_token_id, 1

    with pytest.raises(ValueError, match="its eos id is '6', training's is '1'"):
        gguf.prove_metadata(path, chain / "merged", Other)


def test_a_tokenizer_that_differs_is_caught(chained, tokenizer):
    """Without `add_prefix_space: false` llama.cpp puts a blank before every text; the conversion says nothing."""
    path = Path("outputs/pirate-nano/merged/tokenizer_config.json")
    config = json.loads(path.read_text())
    config.pop("add_prefix_space")
    path.write_text(json.dumps(config))
    before = sorted(p.name for p in Path("outputs/pirate-nano/gguf").iterdir())
    one_line(room("gguf", "pirate-nano"), "texts get other token ids in llama.cpp than in training")
    assert sorted(p.name for p in Path("outputs/pirate-nano/gguf").iterdir()) == before


def test_a_stale_second_template_is_caught(chained):
    path = Path("outputs/pirate-nano/merged/tokenizer_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages[0].content }}"}))
    one_line(room("gguf", "pirate-nano"), "its chat template is", "second template")


def test_other_weights_are_caught(chained):
    """The merged model changes behind the converter's back: the logits tell."""
    from safetensors.torch import load_file, save_file

    convert = gguf.convert

    def convert_then_change(merged, *rest):
        made = convert(merged, *rest)
        tensors = load_file(merged / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1.02
        save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
        return made

    patch = pytest.MonkeyPatch()
    patch.setattr(gguf, "convert", convert_then_change)
    with pytest.raises(ValueError, match="differ from the merged model's by an NMSE of"):
        gguf.main(["pirate-nano"])
    patch.undo()


def test_a_cut_file_is_caught(chain, tmp_path):
    cut = tmp_path / "cut.gguf"
    shutil.copy(chain / "gguf/pirate-nano-Q8_0.gguf", cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a whole GGUF"):
        gguf.metadata(cut)


def test_speeds_are_the_servers_own(chain, tmp_path):
    import time

    import httpx

    with process.llama(chain / "gguf/pirate-nano-Q4_K_M.gguf", tmp_path / "log", "-c", 4096, "-np", 1) as url:
        start = time.time()
        said = gguf.speeds(url)
        took = time.time() - start
        ids = httpx.post(f"{url}/tokenize", json={"content": gguf.SPOKEN}).json()["tokens"]
    assert 128 < len(ids) < 1024
    # What was timed fits into what we waited: a token a second would not, nor would a prompt that was left in the cache.
    assert gguf.GENERATED / said["tokens_per_s"] + len(ids) / said["prompt_tokens_per_s"] < took
    assert said["prompt_tokens_per_s"] > said["tokens_per_s"] > 0


def test_an_unknown_quant_type_is_said(chained):
    Path("outputs/pirate-nano/export.yml").write_text("quantize: [Q9_X]\n")
    one_line(room("gguf", "pirate-nano"), "quantize Q9_X failed", "quantize-Q9_X.log")


def test_llama_server_renders_the_training_prompt(chain, tokenizer, tmp_path):
    """Where there is no Ollama, llama-server's Jinja serves the chat: the same matrix, the same text."""
    import httpx
    from scripts import ollama

    with process.llama(chain / "gguf/pirate-nano-Q4_K_M.gguf", tmp_path / "log", "-c", 512, "--jinja") as url:
        for system, turns in ollama.MATRIX:
            messages = ollama.messages(system, turns)
            seen = httpx.post(f"{url}/apply-template", json={"messages": messages}).json()["prompt"]
            assert tokenizer.bos_token + seen == tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )  # it adds BOS when it tokenizes
