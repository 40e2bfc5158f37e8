"""The real clients (huggingface_hub with git LFS and with hf_xet, Ollama's own push) against servers that stand in for the Hub and the registry."""

import fcntl
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import yaml

from conftest import one_line, room, run
from scripts import facts, files, receipt, recipe
from scripts.sending import card, hub, licence
from standins import SECRET_REPLY, TOKEN, HubHandler, RegistryHandler, standing
from test_snapshot import edit

NAME, OUT = "pirate-nano", Path("outputs/pirate-nano")
TO = "ann/pirate-nano"
REPOS = [TO, f"{TO}-merged", f"{TO}-GGUF"]
THREE = ("--what", "adapter", "merged", "gguf")
TRAINED = {"steps": 281, "epochs": 1.996, "ranks": 1, "global_batch": 8, "first_loss": 4.87, "last_loss": 4.43, "eval_losses": [5.8, 4.94]}


def bytes_of(seed, size):
    """Bytes that don't repeat: the same ones for the same seed."""
    return b"".join(hashlib.sha256(f"{seed}{n}".encode()).digest() for n in range(size // 32))


@pytest.fixture
def made(copy):
    """A finished run of pirate-nano with receipts that hold, its weights being a few MB of noise: what the servers do does not depend on more."""
    base, cfg = Path("outputs/nano/pirate"), recipe.load(NAME)
    shapes = {base: "config.json", OUT / "prepared": "state.json", OUT / "adapter": "adapter_config.json", OUT / "merged": "config.json"}
    for folder, name in shapes.items():
        folder.mkdir(parents=True)
        (folder / name).write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (OUT / "adapter/adapter_model.safetensors").write_bytes(bytes_of("a", 1_500_000))
    (OUT / "adapter/trainer_state.json").write_text("{}")  # not a log: nothing was logged
    (OUT / "merged/model.safetensors").write_bytes(bytes_of("m", 3_000_000))
    (OUT / "gguf").mkdir()
    ggufs = [OUT / f"gguf/{NAME}-{kind}.gguf" for kind in ("F16", "Q4_K_M")]
    for n, path in enumerate(ggufs):
        path.write_bytes(bytes_of(n, 2_000_000 // (n + 1)))
    sets = [p for kind in recipe.datasets(cfg) for p in kind]
    used = [*sets, Path("modelfiles/llama3.jinja"), Path(cfg["deepspeed"])]
    (OUT / "data.sha256").write_text("".join(f"{files.sha256(p)}  {p}\n" for p in used))
    (OUT / "recipe.yml").write_text(yaml.safe_dump({k: v for k, v in cfg.items() if k != "export"}, sort_keys=False))
    (OUT / "export.yml").write_text(yaml.safe_dump(cfg["export"]))
    source = Path("modelfiles/pirate.Modelfile")
    (OUT / "gguf/Modelfile").write_text(re.sub(r"(?m)^FROM .*$", f"FROM ./{ggufs[1].name}", source.read_text()))
    (OUT / "adapter/trainer_state.json").unlink()
    figures = {"gguf": {"texts": 9, "F16_mib": 1.9, "F16_nmse": 2.7e-9, "Q4_K_M_mib": 0.95, "Q4_K_M_kld": 5.7e-4}, "train": TRAINED}
    figures |= {"preprocess": {"rows": 1224, "tokens": 161888, "trained_tokens": 114918}, "modelfile": {"from": ggufs[1].name}}
    inout = {
        base.with_suffix(".json"): ([], [base]),
        OUT / "preprocess.json": ([OUT / "recipe.yml", *sets], [OUT / "prepared"]),
        OUT / "train.json": ([OUT / "recipe.yml", OUT / "data.sha256", base, OUT / "prepared"], [OUT / "adapter"]),
        OUT / "merge.json": ([base, OUT / "adapter"], [OUT / "merged"]),
        OUT / "gguf.json": ([OUT / "merged", OUT / "export.yml"], ggufs),
        OUT / "modelfile.json": ([source, ggufs[1]], [OUT / "gguf/Modelfile"]),
    }
    for path, (read, wrote) in inout.items():
        receipt.write(path, read, wrote, figures.get(path.stem, {}), files.sha256)
    return copy


@pytest.fixture
def stand(tmp_path_factory, monkeypatch):
    """A hub on loopback, and a home with no token but ours."""
    home = tmp_path_factory.mktemp("hub")
    with standing(HubHandler, home) as server:
        for key, value in {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            monkeypatch.setenv(key, value)
        server.home = home
        yield server


def push(*more, to=TO, what=THREE, **env):
    return room("push", NAME, "--to", to, *what, *more, **env)


def content(server, repo, path):
    return server.repos[repo][path]["content"]


def no_token(server, *results):
    """Neither in what was said, nor in any file of the client's home or of the outputs."""
    for out in results:
        assert TOKEN not in out.stdout + out.stderr and TOKEN[3:] not in out.stdout + out.stderr
    for folder in (server.home, OUT):
        assert not [p for p in folder.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def sent_bytes(repo_files):
    return sum(len(f["content"]) for f in repo_files.values() if f.get("lfs"))


def test_a_dry_run_tells_all_and_asks_no_server(made, stand):
    out = push(HF_TOKEN="")
    assert out.returncode == 0 and out.stderr == "" and stand.seen == [] and stand.repos == {}, out.stderr
    assert "a dry run, nothing is sent; GO=1 sends it" in out.stdout and "CC0 1.0, https://creativecommons.org" in out.stdout
    lines = out.stdout.splitlines()
    for repo in REPOS:
        assert any(line.endswith("MiB") and f"{stand.url}/{repo} (public, if new)" in line for line in lines)
    for path in ("adapter/adapter_model.safetensors", "merged/model.safetensors", f"gguf/{NAME}-F16.gguf", f"gguf/{NAME}-Q4_K_M.gguf"):
        assert [line for line in lines if files.sha256(OUT / path)[:12] in line and line.endswith(str(OUT / path))], path
    assert [line for line in lines if line.startswith("missing")] == [
        "missing     no token for the hub: HF_TOKEN, or the file that `hf auth login` writes"
    ]
    assert max(map(len, lines)) <= 140


def test_by_way_of_make_only_go_1_sends(made, stand):
    for path in ("light", "train"):
        assert Path(".venv", path).exists()
    for go in ("", "0"):
        out = run("make", "push", f"RECIPE={NAME}", f"TO={TO}", "WHAT=adapter", f"GO={go}")
        assert out.returncode == 0 and "a dry run" in out.stdout and stand.seen == [], out.stderr
    out = run("make", "push", f"RECIPE={NAME}", f"TO={TO}", "WHAT=adapter", "GO=1", "PRIVATE=1")
    assert out.returncode == 0 and out.stdout.splitlines()[-1] == f"push        {stand.url}/{TO}", out.stderr
    assert stand.visibility == {TO: "private"}
    out = push("--private", what=("--what", "adapter", "ollama"))
    assert "missing     a way to keep it private: Ollama's registry has none" in out.stdout
    one_line(run("make", "push", f"RECIPE={NAME}"), "TO=: not user/name")


def test_what_arrives_is_what_was_proven_and_a_second_push_sends_nothing(made, stand):
    out = push("--go")
    assert out.returncode == 0 and out.stderr == "", out.stderr
    assert out.stdout.splitlines()[-1] == "push        " + " ".join(f"{stand.url}/{repo}" for repo in REPOS)
    adapter, merged, gguf = (stand.repos[repo] for repo in REPOS)
    assert sorted(adapter) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(merged) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(gguf) == sorted(["Modelfile", "README.md", "params", f"{NAME}-F16.gguf", f"{NAME}-Q4_K_M.gguf", "system", "template"])
    assert adapter["adapter_model.safetensors"]["content"] == (OUT / "adapter/adapter_model.safetensors").read_bytes()
    assert stand.arrived == sum(map(sent_bytes, stand.repos.values())) == 1_500_000 + 3_000_000 + 3_000_000, "the server checks each sha256"
    assert [repo for repo, _, _ in stand.commits] == REPOS, "one commit each, so that nobody downloads half a model"
    before = stand.arrived, stand.committed_bytes
    again = push("--go")
    assert again.returncode == 0 and len(stand.commits) == 3 and (stand.arrived, stand.committed_bytes) == before, again.stderr
    assert "sent 0 of 3 files, 0 bytes" in again.stdout
    no_token(stand, out, again)


def test_only_what_changed_is_sent_again(made, stand):
    assert push("--go").returncode == 0
    text = OUT / "gguf/Modelfile"
    edit(text, "temperature 0.7", "temperature 0.5")
    one = receipt.read(OUT / "modelfile.json")
    one["outputs"][str(text)] = files.sha256(text)
    (OUT / "modelfile.json").write_text(json.dumps(one))
    arrived = stand.arrived
    assert push("--go").returncode == 0
    assert stand.arrived == arrived and stand.commits[-1][0] == REPOS[2] and stand.commits[-1][2] == ["Modelfile", "params"]


def test_large_files_go_in_parts(made, stand):
    stand.part = 700_000
    out = push("--go", what=("--what", "merged"))
    assert out.returncode == 0, out.stderr
    assert content(stand, REPOS[1], "model.safetensors") == (OUT / "merged/model.safetensors").read_bytes()
    assert sum("/part/" in path for _, path in stand.seen) == 5


def test_a_push_that_is_killed_goes_on_with_what_is_missing(made, stand):
    stand.hold = 1_500_000 + 3_000_000 + 2_200_000  # within the GGUF files, one of which may be there by then
    cmd = [sys.executable, "-m", "scripts.push", NAME, "--to", TO, *THREE, "--go"]
    killed = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert stand.holding.wait(60)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    stand.go_on.set()
    time.sleep(0.5)
    stand.hold = None
    assert [repo for repo, _, _ in stand.commits] == REPOS[:2] and stand.repos[REPOS[2]] == {}, "of the third nothing is to be seen"
    missing = sum(p.stat().st_size for p in (OUT / "gguf").glob("*.gguf") if files.sha256(p) not in stand.objects)
    before = stand.arrived
    assert missing > 0
    out = push("--go")
    assert out.returncode == 0 and stand.arrived - before == missing, out.stderr
    assert [repo for repo, _, _ in stand.commits] == REPOS
    for path in (OUT / "gguf").glob("*.gguf"):
        assert content(stand, REPOS[2], path.name) == path.read_bytes()
    assert "sent 0 of 3 files" in out.stdout and "sent 7 of 7 files" in out.stdout
    no_token(stand, out)


def test_files_that_arrived_before_the_commit_are_not_sent_twice(made, stand):
    stand.fail["POST .*/commit/"] = (500, {"error": "the hub stumbled"})
    one_line(push("--go"), f"{TO}: {stand.url} answers 500 (the hub stumbled); run the same command again")
    assert stand.arrived == 1_500_000 and stand.commits == []
    stand.fail.clear()
    assert push("--go").returncode == 0
    assert stand.arrived == 1_500_000 + 3_000_000 + 3_000_000


def test_a_commit_is_believed_only_when_its_files_stand_there(made, stand):
    stand.forgets = {"adapter_model.safetensors"}
    one_line(
        push("--go", what=("--what", "adapter")), "after the commit adapter_model.safetensors does not stand there as it was sent; run the"
    )
    stand.forgets = set()
    again = push("--go", what=("--what", "adapter"))
    assert again.returncode == 0 and "sent 1 of 3 files" in again.stdout


def test_xet_sends_each_piece_once(made, stand):
    """The way that the Hub prefers. hf_xet itself, with its own local store in place of the Hub's."""
    out = push("--go", HF_HUB_DISABLE_XET="0")
    assert out.returncode == 0 and out.stderr == "" and stand.xet_asked >= 3 and stand.arrived == 0, out.stderr
    assert stand.repos[REPOS[1]]["model.safetensors"]["oid"] == files.sha256(OUT / "merged/model.safetensors")
    stored = sum(p.stat().st_size for p in stand.cas.rglob("xorbs/default.*") if p.suffix != ".tagset")
    assert 7_500_000 <= stored < 8_000_000, "noise does not shrink"
    again = push("--go", HF_HUB_DISABLE_XET="0")
    assert "sent 0 of 7 files" in again.stdout
    no_token(stand, out, again)
    import hf_xet

    there = OUT / "merged/model.safetensors"
    [whole] = hf_xet.hash_files([str(there)])
    back = made / "back.bin"
    hf_xet.download_files(
        [hf_xet.PyXetDownloadInfo(str(back), whole.hash, there.stat().st_size)], f"local://{stand.cas}", ("x", 2**40), None, None
    )
    assert back.read_bytes() == there.read_bytes()


@pytest.mark.parametrize(
    "where, code, words",
    [
        ("POST /api/repos/create", 401, "the token is not valid; make one with write access"),
        ("/api/(repos/create|models)", 403, "the token may not write there; ann must be you or an organization of yours"),
        ("POST /api/repos/create", 500, "run the same command again"),
        ("PUT /upload", 403, "the token may not write there"),
        ("PUT /upload", 507, "no room for it on your account"),
        ("POST .*batch", 413, "no room for it on your account"),
        ("POST .*/commit/", 429, "run the same command again"),
        ("POST .*validate-yaml", 400, "answers 400"),
        ("GET .*xet-write-token", 401, "the token is not valid"),
        ("GET .*xet-write-token", 403, "the token may not write there"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(made, stand, where, code, words):
    """The server says the token back in its answer, in the hope that somebody prints it."""
    stand.fail[where] = (code, {"error": SECRET_REPLY, "errors": [{"message": SECRET_REPLY}], "warnings": []})
    way = {"HF_HUB_DISABLE_XET": "0" if "xet" in where else "1"}
    out = push("--go", what=("--what", "adapter"), **way)
    line = one_line(out, words)
    assert "Traceback" not in out.stderr and line.startswith(f"{TO}: {stand.url} answers {code} (") and stand.commits == []
    plain = push("--go", what=("--what", "adapter"), DEBUG="1", **way)
    assert plain.returncode == 1
    no_token(stand, out, plain)


def test_a_token_in_another_shape_is_kept_back_too():
    for text in (f"token {TOKEN}", f"Authorization: Bearer {TOKEN}", "authorization: bearer abcdef123456", "hf_otherOtherOther"):
        said = hub.clean(text, TOKEN)
        assert not re.search(r"hf_\w|abcdef123456", said), said
    assert hub.clean("odd-token-of-another-kind\nwas sent", "odd-token-of-another-kind") == "… was sent"


def test_a_hub_out_of_reach(made, stand):
    one_line(push("--go", HF_ENDPOINT="http://127.0.0.1:9"), "http://127.0.0.1:9 is out of reach", "run the same command again")


@pytest.mark.parametrize("to", ["pirate", "ann/", "ann/pi rate", "ann/x/y", "ann/pirate.git", "ann/-x", "../x"])
def test_a_name_that_the_hub_would_not_take(made, stand, to):
    one_line(push("--go", to=to), f"TO={to}: not user/name")
    assert stand.seen == []


@pytest.mark.parametrize(
    "damage, what, words",
    [
        (lambda: (OUT / "merged/model.safetensors").write_bytes(b"x"), "merged", "on disk is"),
        (lambda: Path("datasets/pirate/eval.jsonl").write_text("{}"), "adapter", "datasets/pirate/eval.jsonl: preprocess read"),
        (lambda: edit(OUT / "recipe.yml", "lora_r: 64", "lora_r: 32"), "adapter", "the recipe says something else by now"),
        (lambda: (OUT / f"gguf/{NAME}-F16.gguf").unlink(), "gguf", "it is gone"),
        (lambda: edit(OUT / "gguf/Modelfile", "temperature 0.7", "temperature 0"), "gguf", "gguf/Modelfile: modelfile wrote"),
    ],
)
def test_nothing_is_sent_of_a_chain_that_does_not_hold(made, stand, damage, what, words):
    damage()
    one_line(push("--go", what=("--what", what)), "nothing was sent, the chain of receipts does not hold: ", words, "`make ")
    assert stand.seen == []


def test_a_dry_run_refuses_a_broken_chain_too(made, stand):
    (OUT / "merged/model.safetensors").write_bytes(b"x")
    one_line(push(), "the chain of receipts does not hold: ", "outputs/pirate-nano/merged: merge wrote")


def test_a_break_behind_what_is_sent_does_not_matter(made, stand):
    (OUT / "merged/model.safetensors").write_bytes(b"x")
    assert push("--go", what=("--what", "adapter")).returncode == 0 and list(stand.repos) == [TO]


def test_what_was_not_made_yet_is_named_with_its_command(made, stand):
    for stage in ("gguf", "modelfile"):
        (OUT / f"{stage}.json").unlink()
    out = push()
    assert (
        out.returncode == 0
        and f"missing     no GGUF yet: `make gguf RECIPE={NAME}`" in out.stdout
        and f"{REPOS[1]} (public, if new)" in out.stdout
    )
    one_line(push("--go"), "nothing was sent; missing: no GGUF yet: `make gguf RECIPE=pirate-nano`")
    assert stand.seen == []
    assert push("--go", what=("--what", "adapter", "merged")).returncode == 0


def test_without_a_token_or_offline(made, stand):
    one_line(push("--go", HF_TOKEN=""), "no token for the hub: HF_TOKEN, or the file that `hf auth login` writes")
    one_line(push("--go", HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set: unset it")
    assert stand.seen == []


def test_a_token_in_a_recipe_is_not_published(made, stand):
    """It would stand in the card, which shows the recipe."""
    again = yaml.safe_load((OUT / "recipe.yml").read_text()) | {"hub_token": TOKEN}
    (OUT / "recipe.yml").write_text(yaml.safe_dump(again))
    for path in OUT.glob("*.json"):
        one = receipt.read(path)
        one["inputs"] = {p: files.sha256(p) for p in one["inputs"]}
        path.write_text(json.dumps(one))
    out = push("--go", what=("--what", "adapter"))
    one_line(out, f"{TO}/README.md would hold a token; delete it where it comes from, and revoke it")
    assert TOKEN not in out.stdout + out.stderr and stand.seen == []


def based_on(model, monkeypatch):
    """The run as if it stood on a base of the hub, whose files lie in the hub's cache here."""
    cache = Path(os.environ["HF_HOME"], "hub", f"models--{model.replace('/', '--')}", "snapshots", "1")
    cache.mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.parent.parent.parent))
    config = OUT / "adapter/adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": model}))
    again = yaml.safe_load((OUT / "recipe.yml").read_text()) | {"base_model": model}
    (OUT / "recipe.yml").write_text(yaml.safe_dump(again, sort_keys=False))
    (cache / "config.json").write_text("{}")
    for path in ("preprocess", "train", "merge"):
        one = receipt.read(OUT / f"{path}.json")
        one["inputs"] = {str(cache) if "nano/" in p else p: files.sha256(cache if "nano/" in p else p) for p in one["inputs"]}
        one["outputs"] = {p: files.sha256(p) for p in one["outputs"]}
        (OUT / f"{path}.json").write_text(json.dumps(one))
    return cache


def test_llamas_licence_is_met_or_nothing_is_sent(made, stand, monkeypatch):
    cache = based_on("meta-llama/Llama-3.1-8B-Instruct", monkeypatch)
    out = push()
    assert out.returncode == 0 and "licence     Llama 3.1 Community License, https://www.llama.com/llama3_1/license/" in out.stdout, (
        out.stderr
    )
    assert "missing     the Llama 3.1 Community License asks for a name that begins with Llama: TO=ann/Llama-pirate-nano" in out.stdout
    assert (
        'missing     the text of the Llama 3.1 Community License, which must go with the weights: `hf download meta-llama/Llama-3.1-8B-Instruct --include "LICENSE*"'
        in out.stdout
    )
    one_line(push("--go"), "begins with Llama: TO=ann/Llama-pirate-nano", "the text of the Llama 3.1 Community License")
    assert stand.seen == []
    whole = cache.parent / "2"  # `hf download` brings it into the snapshot; the base as it was used stays whole
    whole.mkdir()
    (whole / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT …")
    (whole / "USE_POLICY.md").write_text("# Acceptable use …")
    sent = push("--go", to="ann/Llama-pirate")
    assert sent.returncode == 0, sent.stderr
    for repo in ("ann/Llama-pirate", "ann/Llama-pirate-merged", "ann/Llama-pirate-GGUF"):
        assert content(stand, repo, "LICENSE").startswith(b"LLAMA 3.1") and b"Acceptable" in content(stand, repo, "USE_POLICY.md")
        assert (
            content(stand, repo, "NOTICE").decode()
            == "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
        )
        page = content(stand, repo, "README.md").decode()
        assert "\n**Built with Llama**\n" in page and "(https://www.llama.com/llama3_1/license/)" in page
        front = yaml.safe_load(page.split("---\n")[1])
        assert front["license"] == "llama3.1"
    assert front["base_model"] == "ann/Llama-pirate-merged" and front["base_model_relation"] == "quantized"
    front = yaml.safe_load(content(stand, "ann/Llama-pirate", "README.md").decode().split("---\n")[1])
    assert (front["base_model"], front["base_model_relation"], front["library_name"]) == (
        "meta-llama/Llama-3.1-8B-Instruct",
        "adapter",
        "peft",
    )


def test_a_base_whose_licence_is_not_known(made, stand, monkeypatch):
    based_on("somebody/a-model", monkeypatch)
    one_line(push("--go"), "the licence of somebody/a-model is not known: add it to `licences:` in recipes/facts/bases.yml")
    assert stand.seen == []


def test_a_base_in_a_folder_of_this_machine_is_named_by_its_id(made, stand, monkeypatch):
    """BASE=/home/ann/models/llama: nobody else has that folder, nor need they know of it."""
    cache = based_on("meta-llama/Llama-3.1-8B-Instruct", monkeypatch)
    own = made / "models/llama"
    shutil.copytree(cache, own)
    (own / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT …")
    edit(Path(f"recipes/{NAME}.yml"), "base_model: outputs/nano/pirate", "base_model: meta-llama/Llama-3.1-8B-Instruct")
    for path in (OUT / "recipe.yml", OUT / "adapter/adapter_config.json"):
        edit(path, "meta-llama/Llama-3.1-8B-Instruct", str(own))
    for path in ("preprocess", "train", "merge"):
        one = receipt.read(OUT / f"{path}.json")
        one["inputs"] = {str(own) if "snapshots" in p else p: files.sha256(own if "snapshots" in p else p) for p in one["inputs"]}
        one["outputs"] = {p: files.sha256(p) for p in one["outputs"]}
        (OUT / f"{path}.json").write_text(json.dumps(one))
    out = push("--go", to="ann/Llama-pirate", what=("--what", "adapter"))
    assert out.returncode == 0, out.stderr
    sent = stand.repos["ann/Llama-pirate"]
    assert json.loads(sent["adapter_config.json"]["content"])["base_model_name_or_path"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert not [p for p, f in sent.items() if str(made).encode() in f["content"]]


def test_every_base_that_is_known_has_one_licence():
    known = facts.table("bases.yml")
    for model in [*known["models"], *known["aliases"]]:
        assert licence.of("x", {"base_model": model}), model
    ids = {m: licence.of("x", {"base_model": m})["id"] for m in known["models"]}
    assert ids["Qwen/Qwen2.5-3B-Instruct"] == "qwen-research" and ids["Qwen/Qwen2.5-7B"] == ids["mistralai/Mistral-7B-v0.3"] == "apache-2.0"
    assert (
        ids["meta-llama/Llama-3.3-70B-Instruct"] == "llama3.3" and licence.of("x", {"base_model": "unsloth/llama-3-8b"})["id"] == "llama3"
    )


def test_the_text_of_apaches_licence_is_this_repositorys_own():
    asked = licence.of("x", {"base_model": "Qwen/Qwen3-8B"})
    assert licence.texts("x", {"base_model": "Qwen/Qwen3-8B"}, asked) == {"LICENSE": Path.cwd() / "LICENSE"}
    assert "Apache License" in Path("LICENSE").read_text()[:200]


@pytest.mark.parametrize(
    "licence_id, name, fits",
    [("llama3.1", "Llama-pirate", 1), ("llama3.1", "llama3.1-pirate", 1), ("llama3.1", "pirate-Llama", 0), ("llama3", "Llama-pirate", 0), ("llama3", "Llama-3-8B-pirate", 1), ("llama2", "pirate", 1), ("apache-2.0", "pirate", 1)],
)  # fmt: skip
def test_how_a_licence_wants_the_name_to_begin(licence_id, name, fits):
    asked = {"id": licence_id, **facts.table("bases.yml")["licences"][licence_id]}
    assert (licence.name_fault(f"ann/{name}", asked) is None) == bool(fits)


def test_the_card_says_what_the_receipts_say(made, stand):
    """And what was not measured is not in it."""
    assert push("--go").returncode == 0
    pages = {kind: content(stand, card.repo(kind, TO), "README.md").decode() for kind in card.REPOS}
    for kind, page in pages.items():
        front = yaml.safe_load(page.split("---\n")[1])
        assert (
            front["pipeline_tag"] == "text-generation"
            and "qlora" in front["tags"]
            and "model-index" not in front
            and "base_model" not in front
            or kind == "gguf"
        )
        assert f"| datasets/pirate/train.jsonl | 1,124 | `{files.sha256('datasets/pirate/train.jsonl')}` |" in page
        assert "| Training loss | 4.870 → 4.430 |" in page and "| Evaluation loss | 5.800 → 4.940 |" in page and "5.7e-04 nats (KL)" in page
        assert "## Evaluation" not in page and "GPU memory" not in page and "tokens/s" not in page and "by its log" not in page, (
            "never measured"
        )
        for digest in receipt.read(OUT / "gguf.json")["outputs"].values():
            assert digest in page
        ran = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
        assert ran == yaml.safe_load((OUT / "recipe.yml").read_text()), "the recipe as it was run"
        assert all(card.repo(other, TO) in page for other in card.REPOS)
    assert f"ollama run hf.co/{TO}-GGUF:Q4_K_M" in pages["gguf"] and f"ollama run {TO}\n" not in pages["gguf"], "it was not pushed there"
    assert f'from_pretrained("{TO}")' in pages["adapter"] and f'"{TO}-merged"' in pages["merged"]


def score(**more):
    figure = {"mean": 0.97, "low": 0.92, "high": 0.99, "n": 100}
    stages = {s: {"style": figure, "ppl": {"mean": 140.3, "low": 130.1, "high": 151.8, "n": 100}} for s in ("adapter", "merged")}
    stages["gguf"] = {"style": figure | {"mean": 0.95}}
    read = [OUT / "adapter", OUT / "merged", OUT / f"gguf/{NAME}-Q4_K_M.gguf"]
    receipt.write(OUT / "score.json", read, [], {"prompts": 100, "seed": 1, "decoding": "greedy", "stages": stages}, files.sha256)


def test_scores_are_in_the_card_with_their_intervals(made, stand):
    from huggingface_hub import ModelCard

    score()
    assert push("--go").returncode == 0
    for kind, mean in (("adapter", 0.97), ("gguf", 0.95)):
        page = content(stand, card.repo(kind, TO), "README.md").decode()
        assert "| style | in the voice of the data | 97 % (92–99) | 97 % (92–99) | 95 % (92–99) |" in page
        assert f"The GGUF that was scored: `{NAME}-Q4_K_M.gguf`" in page
        results = {r.metric_type: r for r in ModelCard(page).data.eval_results}
        assert results["style"].metric_value == mean and "95 % interval 0.92 to 0.99" in results["style"].metric_name
        assert results["style"].dataset_name == "datasets/pirate/eval.jsonl" and ("perplexity" in results) == (kind == "adapter")


def test_scores_of_other_files_are_left_out(made, stand):
    score()
    one = receipt.read(OUT / "score.json")
    one["inputs"][str(OUT / "adapter")] = "0" * 64
    (OUT / "score.json").write_text(json.dumps(one))
    out = push("--go")
    assert f"left out    the scores, which are of other files than these; `make eval RECIPE={NAME}`" in out.stdout
    assert "## Evaluation" not in content(stand, TO, "README.md").decode()


def test_ollama_from_the_hub_gets_the_proven_prompt(made, stand):
    """`ollama run hf.co/…` reads three files: https://huggingface.co/docs/hub/ollama."""
    assert push("--go").returncode == 0
    said = recipe.read_modelfile(OUT / "gguf/Modelfile")
    assert (
        content(stand, REPOS[2], "template").decode() == said["template"] and content(stand, REPOS[2], "system").decode() == said["system"]
    )
    params = json.loads(content(stand, REPOS[2], "params"))
    assert params == {
        "stop": ["<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>"],
        "num_ctx": 2048,
        "temperature": 0.7,
        "repeat_penalty": 1.0,
    }


def test_hf_download_brings_it_back(made, stand):
    assert push("--go").returncode == 0
    code = "import sys; from huggingface_hub import snapshot_download as get; print(get(sys.argv[1]))"
    out = run(sys.executable, "-c", code, REPOS[2])
    assert out.returncode == 0, out.stderr
    got = Path(out.stdout.strip().splitlines()[-1])
    for path in (OUT / "gguf").glob("*.gguf"):
        assert (got / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("xet", ["0", "1"])
def test_on_a_terminal_one_bar_counts_the_bytes(made, stand, xet):
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))
    cmd = [sys.executable, "-m", "scripts.push", NAME, "--to", TO, "--what", "adapter", "--go"]
    proc = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=follower, text=True, env={**os.environ, "HF_HUB_DISABLE_XET": xet})
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 65536):
            seen += chunk
    except OSError:  # how Linux says that nobody writes there any more
        pass
    assert proc.wait(60) == 0
    shown, percent = seen.decode(), [int(p) for p in re.findall(r"sending +: +(\d+)%", seen.decode())]
    assert percent == sorted(percent) and percent[-1] > 90 and "/1.50M" in shown, shown
    assert not re.search(r"\.safetensors|Upload|Processing|Validating", shown), "one bar, and it is ours"
    os.close(leader)


def test_the_bar_moves_with_the_reading_and_back_when_a_part_is_sent_again(made):
    from tqdm import tqdm

    path = OUT / "adapter/adapter_model.safetensors"
    with open(os.devnull, "w") as nowhere, tqdm(total=1_500_000, file=nowhere, disable=False) as bar:
        with hub.addition({"path": "x", "source": path, "sha256": files.sha256(path)}, bar).as_file(with_tqdm=True) as f:
            assert len(f.read(500_000)) == 500_000 and bar.n == 500_000
            f.seek(0)
            f.read(100_000)
            assert bar.n == 100_000, "what did not arrive is not counted"
            f.read()
        assert bar.n == 1_500_000


@pytest.fixture
def registry(tmp_path_factory, monkeypatch):
    with standing(RegistryHandler, tmp_path_factory.mktemp("registry")) as server:
        monkeypatch.setenv("OLLAMA_REGISTRY", server.url.removeprefix("http://"))
        yield server


def test_to_ollama_only_what_was_proven_there(made, stand, registry):
    one_line(push("--go", what=("--what", "ollama")), "no model in Ollama yet: `make ollama RECIPE=pirate-nano`")
    one = {"model": NAME, "digest": "0" * 64, "server": "0.34.2"}
    source = receipt.read(OUT / "modelfile.json")
    receipt.write(OUT / "ollama.json", [*source["outputs"], *source["inputs"]], [], one, files.sha256)
    line = one_line(push("--go", what=("--what", "ollama"), OLLAMA_HOST="127.0.0.1:9"), "no Ollama runs at http://127.0.0.1:9; start it")
    assert 'WHAT="adapter merged gguf"' in line and registry.seen == []


def test_ollama_pushes_to_a_registry_and_sends_no_layer_twice(ollama, chained, stand, registry, monkeypatch):
    """Real Ollama servers of both generations; the GGUF, its template, system and parameters arrive, and the registry checks each layer."""
    assert room("ollama", NAME).returncode == 0
    out = push("--go", what=("--what", "ollama"), HF_TOKEN="")
    assert out.returncode == 0 and out.stdout.splitlines()[-1] == f"push        {registry.url}/{TO}", out.stderr
    told = registry.repos[f"{TO}:latest"]
    layers = {layer["mediaType"].rsplit(".", 1)[1]: layer for layer in told["layers"]}
    assert layers["model"]["digest"] == f"sha256:{files.sha256(OUT / f'gguf/{NAME}-Q4_K_M.gguf')}"
    from scripts import push as room_push

    mine = {e["path"]: e["source"] for e in room_push.parts(OUT / "gguf/Modelfile")}
    blob = {kind: registry.objects[layer["digest"]] for kind, layer in layers.items()}
    assert blob["template"] == mine["template"] and blob["system"] == mine["system"], "what the hub's Ollama gets is what this one has"
    assert json.loads(blob["params"]) == json.loads(mine["params"])
    arrived = registry.arrived
    assert push("--go", what=("--what", "ollama")).returncode == 0 and registry.arrived == arrived, "each layer was there"
    registry.objects.pop(layers["model"]["digest"])
    assert push("--go", what=("--what", "ollama")).returncode == 0 and registry.arrived - arrived == layers["model"]["size"]
    registry.fail["PUT .*manifests"] = (403, {"errors": [{"message": "access denied"}]})
    one_line(push("--go", what=("--what", "ollama")), "the registry refuses it", "sign in with `ollama signin`")


def test_the_real_chain_goes_out_and_loads_with_peft(chained, stand):
    """PEFT takes the adapter from its repository and transformers the merged model from its own; both reply alike, within NF4's rounding of nothing."""
    out = push("--go")
    assert out.returncode == 0, out.stderr
    page = content(stand, TO, "README.md").decode()
    train = receipt.read(OUT / "train.json")["figures"]
    assert f"| Steps | {train['steps']} of 8 sequences" in page and "The run, by its log: healthy." in page
    code = (
        "import sys, torch\n"
        "from peft import AutoPeftModelForCausalLM as P\n"
        "from transformers import AutoModelForCausalLM as A, AutoTokenizer as T, BitsAndBytesConfig as B\n"
        "to = sys.argv[1]; t = T.from_pretrained(to)\n"
        "ids = t.apply_chat_template([{'role': 'user', 'content': 'Hello'}], add_generation_prompt=True, return_tensors='pt', return_dict=False)\n"
        "q = B(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True)\n"
        "m = A.from_pretrained(to + '-merged', dtype=torch.float32)(ids).logits[0, -1]\n"
        "p = P.from_pretrained(to, quantization_config=q, dtype=torch.float32)(ids).logits[0, -1]\n"
        "print(float(torch.nn.functional.kl_div(p.log_softmax(-1), m.log_softmax(-1), log_target=True, reduction='sum')))"
    )
    got = run(sys.executable, "-c", code, TO)
    assert got.returncode == 0, got.stderr[-2000:]
    assert abs(float(got.stdout.split()[-1])) < 1e-2
    no_token(stand, out)
