import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import one_line, room, run
from scripts import files, receipt
from scripts import ollama as room_ollama
from scripts.runs import words as said
from test_snapshot import edit

OUT = Path("outputs/pirate-nano")


def looked(name="pirate-nano"):
    out = room("lineage", name, "--json")
    return out, json.loads(out.stdout)


def test_the_whole_chain_holds_with_the_disks_own_hashes(chained):
    out, told = looked()
    assert out.returncode == 0 and told["breaks"] == [], out.stderr
    sums = dict(
        line.split()[::-1]
        for line in run("sha256sum", *(x["path"] for x in told["links"] if Path(x["path"]).is_file())).stdout.splitlines()
    )
    assert len(sums) == 9, "two datasets, template, DeepSpeed, recipe, three GGUF files, the Modelfile"
    assert all(x["sha256"] == sums.get(x["path"], x["sha256"]) for x in told["links"])
    assert [x["rows"] for x in told["links"] if x["rows"]] == [1124, 100]
    stages = [x["stage"] for x in told["links"]]
    assert list(dict.fromkeys(stages)) == ["data", "recipe", "base", "preprocess", "train", "merge", "gguf", "modelfile"]
    train = next(x for x in told["links"] if x["stage"] == "train")
    made = receipt.read(OUT / "train.json")
    assert (train["seconds"], train["made"], train["commit"], train["machine"]) == tuple(
        made[k] for k in ("seconds", "made", "commit", "machine")
    )


def test_on_screen_it_is_short_and_aligned(chained):
    out, told = room("lineage", "pirate-nano"), looked()[1]
    assert out.returncode == 0 and out.stderr == ""
    head, *lines = out.stdout.splitlines()
    table, last = lines[: len(told["links"])], lines[len(told["links"]) :]
    at = {word: head.index(word) for word in ("sha256", "made", "took", "machine")}
    for line, link in zip(table, told["links"]):
        assert line[at["sha256"] :].startswith(link["sha256"][:12] + "  ") or line.endswith(link["sha256"][:12])
        assert line[at["sha256"] - 2 : at["sha256"]] == "  " and max(map(len, lines)) <= 120
        assert not link["made"] or line[at["made"] :].startswith(link["made"][:10]) and line[at["machine"] :] == said.machine(link)
    assert last[0].startswith("ends        with modelfile; next is `make ollama RECIPE=pirate-nano`") and last[1].startswith("holds ")


def cut(path):
    Path(path).write_bytes(Path(path).read_bytes()[:-1])


def reread(path, key):
    """Another run's receipt: it read something else than the stage before it wrote."""
    made = receipt.read(OUT / path)
    made["inputs"][key] = "0" * 64
    (OUT / path).write_text(json.dumps(made))


@pytest.mark.parametrize(
    "damage, stage, path, words",
    [
        (
            lambda: cut("datasets/pirate/eval.jsonl"),
            "preprocess",
            "datasets/pirate/eval.jsonl",
            "on disk is {new}; `git checkout abc1234 -- ",
        ),
        (lambda: cut("modelfiles/llama3.jinja"), "train", "modelfiles/llama3.jinja", "train read {old}, on disk is {new}"),
        (
            lambda: edit(OUT / "recipe.yml", "lora_r: 64", "lora_r: 32"),
            "preprocess",
            f"{OUT}/recipe.yml",
            "`make train RECIPE=pirate-nano` trains it",
        ),
        (
            lambda: cut("outputs/nano/pirate/model.safetensors"),
            "base",
            "outputs/nano/pirate",
            "`rm 'outputs/nano/pirate.json'` and `make base",
        ),
        (lambda: shutil.rmtree(OUT / "prepared"), "preprocess", f"{OUT}/prepared", "preprocess wrote {old}, it is gone"),
        (
            lambda: cut(OUT / "adapter/adapter_model.safetensors"),
            "train",
            f"{OUT}/adapter",
            "`rm 'outputs/pirate-nano/train.json'` and `make train",
        ),
        (
            lambda: cut(OUT / "gguf/pirate-nano-Q8_0.gguf"),
            "gguf",
            f"{OUT}/gguf/pirate-nano-Q8_0.gguf",
            "gguf wrote {old}, on disk is {new}",
        ),
        (
            lambda: reread("merge.json", f"{OUT}/adapter"),
            "merge",
            f"{OUT}/adapter",
            "merge read it as 000000000000, train wrote {old}; `make merge",
        ),
        (lambda: (OUT / "merge.json").unlink(), "merge", f"{OUT}/merge.json", "no receipt, though later stages have one; `make merge"),
    ],
)
def test_a_broken_link_is_named(chained, damage, stage, path, words):
    edit(OUT / "preprocess.json", f'"commit": {json.dumps(receipt.read(OUT / "preprocess.json")["commit"])}', '"commit": "abc1234"')
    old = files.sha256(path)[:12] if Path(path).exists() else ""
    damage()
    new = files.sha256(path)[:12] if Path(path).exists() else ""
    out = room("lineage", "pirate-nano")
    line = one_line(out, f"broken      {stage}: {path}: ", words.format(old=old, new=new))
    assert "holds" not in out.stdout and len(line) < 250
    told = looked()[1]["breaks"]
    assert [(b["stage"], b["path"]) for b in told] == [(stage, path)] and (told[0]["expected"] or old)[:12] == old


def test_an_unfinished_chain_ends_and_is_no_fault(chained):
    for stage in ("gguf", "modelfile"):
        (OUT / f"{stage}.json").unlink()
    out = room("lineage", "pirate-nano")
    assert out.returncode == 0 and "ends        with merge; next is `make gguf RECIPE=pirate-nano`" in out.stdout, out.stderr
    assert "gguf/" not in out.stdout and "holds " in out.stdout
    variant = "pirate-nano+seed=1+lora_r=16"
    assert room("snapshot", variant).returncode == 0
    out = room("lineage", variant)
    assert out.returncode == 0 and 'before it began; next is `make preprocess RECIPE=pirate-nano SET="seed=1 lora_r=16"`' in out.stdout, (
        out.stderr
    )


def test_what_cannot_be_read_is_one_line(chained):
    one_line(room("lineage", "pirate"), "outputs/pirate: nothing was made under this name; `make status`")
    path = OUT / "train.json"
    whole = json.loads(path.read_text())
    for text in (
        path.read_text()[:300],
        "[]",
        json.dumps(whole | {"inputs": 3}),
        json.dumps({k: v for k, v in whole.items() if k != "machine"}),
    ):
        path.write_text(text)
        one_line(
            room("lineage", "pirate-nano"),
            f"{path}: not a whole receipt (",
            f"`rm '{path}'`, then `make train RECIPE=pirate-nano` makes it anew",
        )
    path.write_text(json.dumps(whole))
    Path("outputs/nano/pirate.json").write_text("{")
    one_line(
        room("lineage", "pirate-nano"),
        "outputs/nano/pirate.json: not a whole receipt (not JSON)",
        "`make base RECIPE=pirate-nano` makes it anew",
    )
    assert room("lineage").returncode == 2


def test_down_to_the_weights_in_ollama(ollama, chained):
    """The receipt is written as scripts/ollama.py writes it; the server, its digest and its blob are real."""

    def create(quant):
        other = OUT / "gguf/Other"
        shutil.copy(OUT / "gguf/Modelfile", other)
        edit(other, "FROM ./pirate-nano-Q4_K_M.gguf", f"FROM ./pirate-nano-{quant}.gguf")
        subprocess.run([os.environ["OLLAMA"], "create", "pirate-nano", "-f", other], check=True, capture_output=True)
        return room_ollama.standing(ollama)["pirate-nano"]

    made, digest = receipt.read(OUT / "modelfile.json"), create("Q4_K_M")
    read = [Path(p) for p in made["outputs"] | made["inputs"]]
    receipt.write(OUT / "ollama.json", read, [], {"model": "pirate-nano", "digest": digest}, files.sha256)
    out, told = looked()
    assert out.returncode == 0 and told["end"] == f"in Ollama: the Ollama at {ollama} has this very one", out.stderr
    assert (told["links"][-1]["stage"], told["links"][-1]["sha256"]) == ("ollama", digest)
    elsewhere = room("lineage", "pirate-nano", OLLAMA_HOST="127.0.0.1:9")
    assert elsewhere.returncode == 0 and "as recorded; no Ollama runs at http://127.0.0.1:9 to be asked" in elsewhere.stdout
    other = create("Q8_0")
    why = [b["why"] for b in looked()[1]["breaks"]]
    gguf = receipt.read(OUT / "gguf.json")["outputs"]
    assert why[0] == f"the model: {digest[:12]} was proven, Ollama at {ollama} has {other[:12]}"
    assert (
        f"{gguf[f'{OUT}/gguf/pirate-nano-Q4_K_M.gguf'][:12]} was proven" in why[1]
        and gguf[f"{OUT}/gguf/pirate-nano-Q8_0.gguf"][:12] in why[1]
    )
