import json

from scripts import files, receipt


def test_a_receipt_says_what_went_in_and_came_out(tmp_path):
    (tmp_path / "in").write_text("a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").write_text("b")
    receipt.write(tmp_path / "train.json", [tmp_path / "in"], [tmp_path / "out"], {"steps": 3}, files.sha256)
    read = receipt.read(tmp_path / "train.json")
    assert (read["stage"], read["recipe"], read["figures"]) == ("train", tmp_path.name, {"steps": 3})
    assert read["inputs"] == {str(tmp_path / "in"): files.sha256(tmp_path / "in")} and read["outputs"] == {
        str(tmp_path / "out"): files.sha256(tmp_path / "out")
    }
    assert (
        read["seconds"] > 0
        and read["peak_memory_gib"] > 0
        and read["machine"]["cores"] > 0
        and read["versions"]["python"].startswith("3.12")
    )


def test_half_a_receipt_is_none(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"a": 1})[:4])
    assert receipt.read(tmp_path / "r.json") is None and receipt.read(tmp_path / "none.json") is None


def test_gpus_are_the_drivers_word(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf 'NVIDIA A100\\nNVIDIA A100\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert receipt.gpus() == ["NVIDIA A100"] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(receipt.gpus()) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert receipt.gpus() == []
