"""An adapter beside its base, for real: the Axolotl-trained adapter of the chain, llama.cpp's converters and server."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import one_line, room
from scripts import lora, receipt


def broken(monkeypatch, function):
    """lora.convert on an adapter that `function` has changed."""
    real = lora.convert

    def convert(adapter, base, out, log):
        changed = out / ".changed"
        shutil.copytree(adapter, changed)
        function(changed)
        real(changed, base, out, log)
        shutil.rmtree(changed)

    monkeypatch.setattr(lora, "convert", convert)


def louder(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 1.02}))


def test_base_and_adapter_are_what_was_trained_and_a_fault_is_found(chained, monkeypatch, capsys):
    """One after another on one copy, because each takes seconds: sound, an adapter 2 % too loud, a base that was not rounded, a damaged base."""
    folder = Path("outputs/pirate-nano")
    assert lora.main(["pirate-nano"]) == 0 and "without the adapter" in capsys.readouterr().out
    made = receipt.read(folder / "lora.json")
    figures, base = made["figures"], Path(made["figures"]["base"])
    assert figures["F16_nmse"] < 1e-7 < 1e-3 < figures["F16_nmse_without_the_adapter"] and figures["prompts"] == 100
    assert figures["Q8_0_kld"] < figures["Q4_K_M_kld"] < 0.05
    assert sorted(p.name for p in base.iterdir()) == ["F16.gguf", "Q4_K_M.gguf", "Q8_0.gguf"]
    assert [p.name for p in (folder / "lora").iterdir()] == ["adapter.gguf"] and figures["adapter_mib"] < 5
    assert receipt.holds(folder / "lora.json", lora.files.sha256) and receipt.holds(f"{base}.json", lora.files.sha256)

    before = (base / "F16.gguf").stat().st_mtime_ns
    with monkeypatch.context() as changed:
        broken(changed, louder)
        with pytest.raises(ValueError, match="its logits differ from the trained adapter's by an NMSE of .* the conversion is wrong"):
            lora.main(["pirate-nano"])
    assert (base / "F16.gguf").stat().st_mtime_ns == before, "the base stood; it is made once"
    assert receipt.read(folder / "lora.json") == made and not Path(f"{base}.json").exists(), "the next run proves both anew"

    with monkeypatch.context() as changed:
        changed.setattr(lora.bases, "round_trip", lambda weight: weight)
        with pytest.raises(ValueError, match="the conversion is wrong"):
            lora.main(["pirate-nano"])
    assert (
        lora.main(["pirate-nano"]) == 0
        and lora.files.sha256(base / "F16.gguf") == receipt.read(f"{base}.json")["outputs"][f"{base}/F16.gguf"]
    )


def test_a_rank_stabilised_adapter_is_converted_at_its_own_scale(chained, tmp_path):
    from gguf import GGUFReader

    adapter = Path("outputs/pirate-nano/adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    (tmp_path / "out").mkdir()
    lora.convert(adapter, Path("outputs/nano/pirate"), tmp_path / "out", tmp_path / "log")
    alpha = GGUFReader(tmp_path / "out/adapter.gguf").fields["adapter.lora.alpha"].contents()
    assert alpha / config["r"] == pytest.approx(config["lora_alpha"] / config["r"] ** 0.5)


def test_a_base_is_shared_by_those_who_agree_in_all_that_decides_it(chained):
    folder, base = Path("outputs/pirate-nano"), Path("outputs/nano/pirate")
    cfg = {"base_model": str(base), "load_in_4bit": True}

    def key(kinds=("F16",), **changes):
        return lora.served_by(cfg | changes, base, folder, list(kinds))

    first = key()
    assert first.parent == Path("outputs/served") and first.name.startswith("pirate-") and key() == first == key(learning_rate=1)
    others = {key(["F16", "Q8_0"]), key(load_in_4bit=False)}
    with open(folder / "adapter/chat_template.jinja", "a") as out:
        out.write(" ")
    others.add(key())
    made = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(made | {"inputs": made["inputs"] | {str(base): "another"}}))
    assert len({first, *others, key()}) == 5


def test_wrong_usage_and_nothing_trained(copy):
    assert room("lora").returncode == 2
    one_line(room("lora", "mcq-nano"), "outputs/mcq-nano/recipe.yml", "No such file")
