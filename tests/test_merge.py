import json
import shutil
from pathlib import Path

import pytest

from conftest import one_line, room
from scripts import files, merge, receipt, recipe


def parts(folder):
    cfg, adapter = recipe.read(folder / "recipe.yml"), folder / "adapter"
    return cfg, *merge.refuse_unfit(cfg, Path(cfg["base_model"]), adapter), merge.scale(adapter)


def test_the_sum_is_right_and_the_check_sees_the_rounding(chain):
    figures = receipt.read(chain / "merge.json")["figures"]
    assert figures["matrices"] == 21 and figures["worst_relative_error"] <= figures["bound"]
    assert figures["norm_off"] < 0.01 < figures["norm_off_had_the_base_not_been_rounded"]


def test_the_tokenizer_and_the_template_are_those_of_training(chain):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (chain / "merged" / name).read_bytes() == (chain / "adapter" / name).read_bytes()
    assert (chain / "adapter/chat_template.jinja").read_text() == Path("modelfiles/llama3.jinja").read_text()


@pytest.mark.parametrize("wrong", ["one matrix not merged", "one doubled", "base not rounded", "a tensor missing", "embeddings touched"])
def test_a_wrong_merge_is_caught(chain, tmp_path, wrong):
    from safetensors.torch import load_file, save_file

    cfg, weights, lora, pairs, factor = parts(chain)
    tensors = load_file(chain / "merged/model.safetensors")
    name = f"{sorted(pairs)[0]}.weight"
    base = merge.get(weights, name)[0]
    if wrong == "one matrix not merged":
        tensors[name] = base
    elif wrong == "one doubled":
        tensors[name] = tensors[name] + (tensors[name] - merge.bases.round_trip(base))
    elif wrong == "base not rounded":
        tensors[name] = tensors[name] - merge.bases.round_trip(base) + base
    elif wrong == "a tensor missing":
        del tensors["model.norm.weight"]
    else:
        tensors["model.embed_tokens.weight"][5, 5] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the merge is wrong|are missing|though nothing trained it"):
        merge.prove(cfg, tmp_path, weights, lora, pairs, factor)


def test_what_was_trained_on_an_embedding_is_merged_too(chain, tmp_path):
    """Axolotl's merge leaves it out. PEFT says what it is."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    shutil.copytree(chain / "adapter", tmp_path / "adapter")
    shutil.copytree(chain / "merged", tmp_path / "merged")
    (cfg, *_, factor), path = parts(chain), tmp_path / "adapter/adapter_model.safetensors"
    torch.manual_seed(1)
    more = {"A": torch.randn(64, 4096) / 50, "B": torch.randn(256, 64) / 50}
    save_file(load_file(path) | {f"base_model.model.model.embed_tokens.lora_embedding_{k}": t for k, t in more.items()}, path)
    config = tmp_path / "adapter/adapter_config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"target_modules": [*told["target_modules"], "embed_tokens"]}))

    weights, lora, pairs = merge.refuse_unfit(cfg, Path(cfg["base_model"]), tmp_path / "adapter")
    with pytest.raises(ValueError, match="the merge is wrong"):
        merge.prove(cfg, tmp_path / "merged", weights, lora, pairs, factor)
    merge.add_embeddings(tmp_path / "merged", lora, pairs, factor)
    assert merge.prove(cfg, tmp_path / "merged", weights, lora, pairs, factor)["matrices"] == 22
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(cfg["base_model"], dtype=torch.float32), tmp_path / "adapter")
    theirs = model.base_model.model.model.embed_tokens.get_delta_weight("default")
    assert torch.allclose(theirs, merge.product(lora, pairs["model.embed_tokens"], factor), atol=1e-6) and theirs.any()
    tied = {name: shard for name, shard in weights.items() if name != "lm_head.weight"}
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(merge, "index", lambda folder: lora if folder.name == "adapter" else tied)
        with pytest.raises(ValueError, match="is the head too; merged, it would change both"):
            merge.refuse_unfit(cfg, Path(cfg["base_model"]), tmp_path / "adapter")


def test_an_unfinished_run_is_refused_with_its_steps(chained):
    path = Path("outputs/pirate-nano/adapter/trainer_state.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "global_step": 100}))
    one_line(room("merge", "pirate-nano"), "trained 100 of 281 steps; run `make train`")


def test_an_adapter_of_another_base_is_refused(chained):
    path = Path("outputs/pirate-nano/adapter/adapter_config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "meta-llama/Llama-3.2-1B"}))
    one_line(room("merge", "pirate-nano"), "an adapter of meta-llama/Llama-3.2-1B, the recipe's base is outputs/nano/pirate")
    path.write_text(json.dumps(config))
    from safetensors.torch import load_file, save_file

    weights = Path("outputs/nano/pirate/model.safetensors")
    tensors = load_file(weights)
    save_file({k: v[:, :128].contiguous() if v.ndim == 2 else v for k, v in tensors.items()}, weights, metadata={"format": "pt"})
    one_line(room("merge", "pirate-nano"), "made for another base", "has B·A of shape")


def test_an_adapter_that_is_all_zero_or_matches_nothing_is_refused(chained):
    from safetensors.torch import load_file, save_file

    path = Path("outputs/pirate-nano/adapter/adapter_model.safetensors")
    tensors = load_file(path)
    save_file({k: v * 0 if "lora_B" in k else v for k, v in tensors.items()}, path)
    one_line(room("merge", "pirate-nano"), "21 of 21 LoRA products are zero")
    save_file({"other": tensors[next(iter(tensors))]}, path)
    one_line(room("merge", "pirate-nano"), "0 of 0 LoRA products")


def test_a_cut_shard_is_named(chained):
    path = Path("outputs/nano/pirate/model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    before = files.sha256("outputs/pirate-nano/merged")
    one_line(room("merge", "pirate-nano"), "model.safetensors: damaged")
    assert files.sha256("outputs/pirate-nano/merged") == before


def test_pickled_weights_are_not_loaded(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="pickled weights are not loaded"):
        merge.shards(tmp_path)


def test_rank_stabilised_scale(tmp_path):
    for rslora, scale in ((False, 0.5), (True, 4.0)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 64, "lora_alpha": 32, "use_rslora": rslora}))
        assert merge.scale(tmp_path) == scale


def test_no_room_is_said_before_the_work(chained, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="0.0 MiB are free; make room"):
        merge.main(["pirate-nano"])
