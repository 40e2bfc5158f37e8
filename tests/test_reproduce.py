import json
import shutil
from pathlib import Path

import pytest

from conftest import clone, one_line, room, run
from scripts import files, receipt, reproduce
from scripts.runs import apart
from test_snapshot import edit

NAME = "pirate-nano+lora_r=8"
OUT = Path("outputs", NAME)


@pytest.fixture(scope="module")
def made(chain, tmp_path_factory):
    """A variant made to the merge in three steps of training, once for this file. Its rows are those that the real chain prepared."""
    place = clone(tmp_path_factory.mktemp("made"), nano=True)
    edit(place / "recipes/pirate-nano.yml", "num_epochs: 2\n", "num_epochs: 2\nmax_steps: 3\n")
    assert room("snapshot", NAME, cwd=place).returncode == 0
    shutil.copytree(chain / "prepared", place / OUT / "prepared")
    prepared = receipt.read(chain / "preprocess.json")
    for key in ("inputs", "outputs"):
        prepared[key] = {path.replace("pirate-nano", NAME): digest for path, digest in prepared[key].items()}
    prepared["inputs"][f"{OUT}/recipe.yml"] = files.sha256(place / OUT / "recipe.yml")
    (place / OUT / "preprocess.json").write_text(json.dumps(prepared))
    done = run("make", "merge", "RECIPE=pirate-nano", "SET=lora_r=8", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preprocess  1224 rows" not in done.stdout
    return place


@pytest.fixture
def again(made, tmp_path, monkeypatch):
    """A copy of it to break."""
    shutil.copytree(made, tmp_path / "it", symlinks=True)
    monkeypatch.chdir(tmp_path / "it")
    return tmp_path / "it"


def test_the_same_machine_makes_the_same_bytes(again, tmp_path):
    """All of it a second time, although the recipe was edited since: what was run counts."""
    edit("recipes/pirate-nano.yml", "lora_alpha: 32", "lora_alpha: 64")
    out = room("reproduce", NAME, TMPDIR=str(tmp_path), KEEP="1")
    assert out.returncode == 0, out.stdout + out.stderr
    assert f"reproduce   {NAME}: 3 of 3 stages bitwise the same; the folder is {tmp_path}/galley-" in out.stdout
    assert "reproduce   pirate-nano+lora_r=8 to merge, from the files as they are here (made at no commit)" in out.stdout
    tree = next(tmp_path.glob("galley-*"))
    for file in ("adapter/adapter_model.safetensors", "merged/model.safetensors", "recipe.yml"):
        assert files.sha256(tree / OUT / file) == files.sha256(OUT / file), file
    assert not (tree / OUT / "gguf").exists() and (OUT / "logs/reproduce.log").stat().st_size > 100
    assert (tree / OUT / "adapter").stat().st_ino != (OUT / "adapter").stat().st_ino
    lines = {line.split()[0]: line for line in out.stdout.splitlines()}
    assert "the data files' paths and times aside" in lines["preprocess"] and "clock times" in lines["train"]
    assert lines["merge"].startswith("merge       bitwise the same; ") and "because" not in out.stdout


def judged(made, capsys):
    """What is said of the outputs here, as if those of `made` had been made from their receipts just now."""
    receipts = {s: receipt.read(OUT / f"{s}.json") for s in ("preprocess", "train", "merge")}
    found = reproduce.judge(NAME, receipts, made, receipts["train"]["commit"])
    reproduce.say(NAME, found, "")
    return [one["same"] for one in found], capsys.readouterr().out


def doctor(stage, **changes):
    """Another receipt: {"versions": {"torch": "2.13.0"}} changes that, and its outputs are hashed as they are now."""
    made = receipt.read(OUT / f"{stage}.json")
    for key, value in changes.items():
        made[key] = made[key] | value if isinstance(value, dict) else value
    made["outputs"] = {p: files.sha256(p) for p in made["outputs"]}
    (OUT / f"{stage}.json").write_text(json.dumps(made))


def test_a_difference_is_measured_and_explained(again, made, capsys):
    from safetensors.torch import load_file, save_file

    path = OUT / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    largest = max(t.abs().max().item() for t in tensors.values())
    save_file({k: t / 1.001 for k, t in tensors.items()}, path, metadata={"format": "pt"})
    losses = receipt.read(OUT / "train.json")["figures"]["eval_losses"]
    was = {
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "Another CPU", "cores": 64},
        "figures": {"eval_losses": [*losses[:-1], 9.5], "resumed_from_step": 2},
    }
    doctor("train", **was, commit="abc1234")
    doctor("merge", figures={"worst_relative_error": 0.5})
    same, said = judged(made, capsys)
    assert same == [True, False, True]
    assert f"adapter_model.safetensors: max |Δ| {largest * 0.001 / 1.001:.1e}, ‖Δ‖/‖W‖ 1.0e-03" in said
    assert f"eval_losses[{len(losses) - 1}] 9.5 then, {losses[-1]:.4g} now" in said
    now = receipt.read(made / OUT / "train.json")
    for reason in (
        f"torch 2.13.0 then, {now['versions']['torch']} now",
        f"Another CPU then, {now['machine']['cpu']} now: other vector instructions",
        f"64 cores then, {now['machine']['cores']} now: as many threads share a sum",
        "then it went on from the checkpoint of step 2",
    ):
        assert reason in said.split("because")[1].split("\nmerge")[0], said
    assert "worst_relative_error 0.5 then" in said and "reproduce   pirate-nano+lora_r=8: 2 of 3 stages bitwise the same" in said


def test_what_follows_from_a_difference_says_so_and_none_is_left_without_a_reason(again, made, capsys):
    for file in (OUT / "adapter/tokenizer_config.json", OUT / "merged/config.json"):
        file.write_text(file.read_text() + "\n")
    doctor("train")
    doctor("merge")
    same, said = judged(made, capsys)
    train, merge = said.split("\ntrain")[1].split("\nmerge")
    assert same == [True, False, False] and "tokenizer_config.json: " in train and "bytes then, " in train
    assert "because   nothing in versions, machine, commit or inputs" in train and "because   it follows from train" in merge


def test_the_same_although_another_version(again, made, capsys):
    doctor("merge", versions={"peft": "0.1"})
    assert judged(made, capsys)[0] == [True] * 3
    assert "although  peft 0.1 then, " in judged(made, capsys)[1]


def test_an_original_that_is_gone_is_known_by_its_hash_only(again, made, capsys):
    shutil.rmtree(OUT / "merged")
    assert judged(made, capsys)[0] == [True] * 3, "the hashes are equal"
    edit(OUT / "merge.json", receipt.read(OUT / "merge.json")["outputs"][f"{OUT}/merged"], "0" * 64)
    same, said = judged(made, capsys)
    assert same == [True, True, False] and "merged: sha256 000000000000 then, " in said and "no longer on disk to look closer" in said


def test_other_gguf_files_are_told_by_size_and_divergence(chained):
    folder, there = Path("outputs/pirate-nano"), Path("there")
    shutil.copytree(folder, there / folder)
    then = receipt.read(folder / "gguf.json")
    cut = there / folder / "gguf/pirate-nano-Q8_0.gguf"
    cut.write_bytes(cut.read_bytes()[:-7])
    now = then | {
        "outputs": {p: files.sha256(there / p) for p in then["outputs"]},
        "figures": then["figures"] | {"Q8_0_kld": 0.5, "Q8_0_tokens_per_s": 1.0},
    }
    found = apart.outputs(then, now, Path("."), there)
    size = cut.stat().st_size
    assert found["apart"] == [f"pirate-nano-Q8_0.gguf: {size + 7:,} bytes then, {size:,} now"] and not found["same"]
    assert found["figures"] == [f"Q8_0_kld {then['figures']['Q8_0_kld']:.4g} then, 0.5 now"], "a speed is no figure of the model"


def git(*args):
    done = run("git", "-c", "user.name=a", "-c", "user.email=a@b", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def committed():
    git("init", "-q")
    git("add", "Makefile", "scripts", "recipes", "datasets", "modelfiles", "requirements", "pyproject.toml")
    git("commit", "-qm", "as it was run")
    return git("describe", "--always")


def test_data_that_changed_is_named_with_the_way_back(again):
    path = "datasets/pirate/eval.jsonl"
    old = Path(path).read_text()
    Path(path).write_text(old.replace("a", "b", 1))
    line = one_line(
        room("reproduce", NAME), f"{path}: no longer the bytes that {NAME} was made from (", "no commit has them; put the file back"
    )
    assert files.sha256(path)[:12] in line
    Path(path).write_text(old)
    commit = committed()
    Path(path).write_text(old.replace("a", "b", 1))
    git("commit", "-qam", "other data")
    one_line(room("reproduce", NAME), f"{path}: no longer", f"`git checkout {commit} -- {path}` brings them back")
    git("checkout", "-q", commit, "--", path)
    assert Path(path).read_text() == old


def test_the_folder_is_laid_out_as_at_the_receipts_commit(again, tmp_path):
    commit = committed()
    edit("modelfiles/pirate.Modelfile", "temperature 0.7", "temperature 0.1")
    edit("datasets/pirate/eval.jsonl", "\n", "\n\n")
    for asked, said, warmth in (
        (commit, f"commit {commit}", "0.7"),
        (f"{commit}-dirty", "the files as they are here (made at ", "0.1"),
        ("abc1234", "commit abc1234 is not in", "0.1"),
    ):
        tree = tmp_path / asked
        tree.mkdir()
        assert said in reproduce.lay_out(asked, tree)
        assert f"temperature {warmth}" in (tree / "modelfiles/pirate.Modelfile").read_text()
        assert (tree / ".venv").resolve() == Path(".venv").resolve() and (tree / "requirements/train.txt").stat().st_mtime == 0
    receipts = {"preprocess": receipt.read(OUT / "preprocess.json")}
    assert reproduce.bring(NAME, receipts, tmp_path / commit) == [], "the commit has the data though the folder here has not"
    (tmp_path / commit / "modelfiles/llama3.jinja").unlink()
    assert reproduce.bring(NAME, receipts, tmp_path / commit) == ["modelfiles/llama3.jinja"]
    edit(OUT / "recipe.yml", "lora_r: 8", "lora_r: 9")
    with pytest.raises(ValueError, match=f"{OUT.name}/recipe.yml: rewritten since".replace("+", r"\+")):
        reproduce.bring(NAME, receipts, tmp_path / commit)


def test_what_cannot_be_run_again_is_one_line(again):
    one_line(room("reproduce", "pirate"), "outputs/pirate: nothing was made under this name")
    one_line(
        room("reproduce", NAME, "--to", "gguf"),
        f'{OUT}/gguf.json: no receipt to reproduce; `make gguf RECIPE=pirate-nano SET="lora_r=8"` first',
    )
    assert room("reproduce", NAME, "--to", "ollama").returncode == 2
    Path("scripts/snapshot.py").write_text("raise ValueError('torn')\n")
    line = one_line(
        room("reproduce", NAME, TMPDIR=str(again.parent)), "torn; that was `make merge` in the clean folder", "logs/reproduce.log", "KEEP=1"
    )
    assert "rm" not in line and not list(again.parent.glob("galley-*")), "the folder is removed"
    (OUT / "train.json").write_text("{")
    one_line(room("reproduce", NAME), f"{OUT}/train.json: not a whole receipt (not JSON)")
