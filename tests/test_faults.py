"""Kills and full disks, for real: the stages as a terminal starts them, and a disk of a few megabytes under their outputs."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import one_line, room, run
from scripts import files, receipt
from test_snapshot import edit

OUT = Path("outputs/pirate-nano")


@pytest.mark.parametrize("stage, kills", [("merge", 3), ("modelfile", 9)])
def test_killed_at_random_moments(chain, stage, kills):
    """Some of `make fault-test`: the stages whose undisturbed run is at hand."""
    done = room("faults", "--finished", "--stages", stage, "--kills", kills, "--seed", 5, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert figures["kills"] == figures["finished"] == figures["nothing"] + figures["old"] + figures["new"] == kills and figures["half"] == 0


def test_it_tells_what_is_not_as_it_should_be(chained, monkeypatch):
    """What `make fault-test` proves, it proves by these."""
    from scripts.kills import stages

    reference = stages.made("merge", None)
    assert stages.stands("merge", reference, None, None) == "new" and stages.unsound() == []
    stages.age("merge", None)
    old = stages.made("merge", None)
    assert old != reference and stages.stands("merge", reference, old, None) == "old" and stages.unsound() == ["gguf.json"], (
        "gguf was made of another"
    )
    path = OUT / "merged/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert stages.stands("merge", reference, old, None) == "half" and stages.unsound() == ["gguf.json", "merge.json"]
    shutil.rmtree(OUT / "merged")
    assert (
        stages.stands("merge", reference, old, None) == "nothing" and stages.status("merge") == "-" and stages.status("train") == "stands"
    )


def test_an_orphan_is_found_and_ended(copy):
    """By the mark in its environment, whatever session it made for itself."""
    from scripts.kills import processes

    Path("tmp").mkdir()
    Path("Makefile").write_text("x:\n\t@setsid sh -c 'trap \"\" TERM; sleep 600' & sleep 600\n")
    child = processes.start("x", "pirate-nano", 7)
    until = time.monotonic() + 20
    while sum(command.startswith("sleep 600") for command in processes.living(7).values()) < 2:
        assert time.monotonic() < until, processes.living(7)
        time.sleep(0.05)
    assert not processes.living(8) and set(processes.living(7)) == set(processes.living())
    processes.strike(child.pid, signal.SIGKILL, "group")
    processes.BOUND, bound = 2, processes.BOUND
    try:
        assert "sleep 600" in processes.gone(child, 7, 0)[0] and not processes.living(7)
    finally:
        processes.BOUND = bound
        processes.end_all()


@pytest.mark.parametrize(
    "args, word",
    [(["--stages", "bake"], "--stages some of preprocess"), (["--kills", "0"], "1 or more"), (["--finished"], "is for merge, gguf and modelfile")],
)
def test_wrong_usage(args, word):
    done = room("faults", *args)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def disk(chained):
    """The finished chain on a disk of its own: a tmpfs over outputs/ in a mount namespace, which ends with the process that holds it."""
    held = subprocess.Popen(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            "mv outputs kept; mkdir outputs; mount -t tmpfs none outputs && cp -a kept/. outputs && echo there && exec sleep 3600",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert held.stdout.readline() == "there\n", (
            "no mount namespace: this needs unshare (util-linux), and a machine that lets its users have one"
        )
        yield held.pid
    finally:
        held.kill()
        held.wait()


def inside(disk, *cmd):
    return ["nsenter", "-t", str(disk), "-U", "-m", "--preserve-credentials", "--wd", *map(str, cmd)]


def seen(disk):
    """The disk as it is seen from here."""
    return Path(f"/proc/{disk}/cwd/outputs")


def leave(disk, bytes_free):
    """Make the disk smaller or larger."""
    now = shutil.disk_usage(seen(disk))
    assert run(*inside(disk, "mount", "-o", f"remount,size={now.total - now.free + bytes_free}", "outputs")).returncode == 0


def fill(disk, cmd, sign, bytes_free):
    """Run a command; as soon as `sign` appears, let something else fill the disk up to that. Returns how it ended; `make room` is to delete `filler`."""
    child = subprocess.Popen(inside(disk, *cmd), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    while not list(seen(disk).glob(sign)) and child.poll() is None:
        time.sleep(0.01)
    with open(seen(disk) / "filler", "wb") as f:
        os.posix_fallocate(f.fileno(), 0, shutil.disk_usage(seen(disk)).free - bytes_free)
    out, err = child.communicate()
    return subprocess.CompletedProcess(cmd, child.returncode, out, err)


def stale(disk, stage):
    """Have Make redo the stage, whose old work and receipt stand."""
    (seen(disk) / f"pirate-nano/{stage}.json").touch()


def held(disk):
    """The hashes of all artifacts and receipts, without logs and what training works in."""
    folder = seen(disk) / "pirate-nano"
    found = {str(p.relative_to(folder)): files.sha256(p) for p in folder.rglob("*") if p.is_file()}
    return {k: v for k, v in found.items() if not k.startswith(("logs/", "training/", "health.jsonl"))}


def full(done, place):
    """One line that says so, where, and what to do."""
    line = one_line(done, f"{place}: No space left on device; make room and run the same command again")
    assert line == f"{place}: No space left on device; make room and run the same command again"


def test_the_disk_fills_up_during_the_merge(disk):
    before = held(disk)
    stale(disk, "train")
    leave(disk, 5 * 2**20)
    one_line(run(*inside(disk, "make", "merge", "RECIPE=pirate-nano")), "needs 9.4 MiB of disk, 5.0 MiB are free; make room")
    leave(disk, 50 * 2**20)
    full(fill(disk, ["make", "merge", "RECIPE=pirate-nano"], "pirate-nano/.merged.new.*/.work", 3 * 2**20), OUT / "merged")
    assert held(disk) == before, "the old merge and its receipt stand"
    (seen(disk) / "filler").unlink()
    done = run(*inside(disk, "make", "merge", "RECIPE=pirate-nano"))
    assert done.returncode == 0, done.stderr
    assert {k: v for k, v in held(disk).items() if k != "merge.json"} == {k: v for k, v in before.items() if k != "merge.json"}


def test_the_disk_fills_up_during_quantization(disk):
    before = held(disk)
    stale(disk, "merge")
    leave(disk, 10 * 2**20)
    one_line(run(*inside(disk, "make", "gguf", "RECIPE=pirate-nano")), "needs 18.7 MiB of disk, 10.0 MiB are free; make room")
    leave(disk, 50 * 2**20)
    full(fill(disk, ["make", "gguf", "RECIPE=pirate-nano"], "pirate-nano/.gguf.new.*/*Q4_K_M.gguf", 2**20), OUT / "gguf")
    assert held(disk) == before
    (seen(disk) / "filler").unlink()
    done = run(*inside(disk, "make", "gguf", "RECIPE=pirate-nano"))
    assert done.returncode == 0, done.stderr
    after = held(disk)
    assert {k: v for k, v in after.items() if k.endswith(".gguf")} == {k: v for k, v in before.items() if k.endswith(".gguf")}
    assert not [k for k in after if "/." in f"/{k}"]


def test_the_disk_fills_up_during_the_second_checkpoint(disk):
    """Twelve megabytes each. Its adapter from before stays; afterwards training goes on from the first."""
    edit("recipes/pirate-nano.yml", "num_epochs: 2", "max_steps: 4")
    edit("recipes/pirate-nano.yml", "saves_per_epoch: 2", "save_steps: 2")
    assert run(*inside(disk, ".venv/bin/python", "-m", "scripts.snapshot", "pirate-nano")).returncode == 0
    shutil.rmtree(seen(disk) / "pirate-nano/training")
    before = held(disk)
    leave(disk, 18 * 2**20)
    cmd = inside(disk, ".venv/bin/python", "-m", "scripts.train", "pirate-nano")
    done = run(*cmd)
    done.stderr = "".join(x for x in done.stderr.splitlines(True) if not x.startswith("health "))  # four steps are too few, it says
    full(done, OUT)
    assert held(disk) == before
    leave(disk, 60 * 2**20)
    done = run(*cmd)
    assert done.returncode == 0, done.stderr
    made = receipt.read(seen(disk) / "pirate-nano/train.json")["figures"]
    assert made["steps"] == 4 and made["resumed_from_step"] == 2


def test_the_disk_fills_up_while_rows_are_prepared(disk):
    before = held(disk)
    edit("datasets/pirate/eval.jsonl", "ghost", "gull")
    leave(disk, 2**20)
    full(run(*inside(disk, "make", "preprocess", "RECIPE=pirate-nano")), OUT / "prepared")
    assert {k: v for k, v in held(disk).items() if k != "data.sha256"} == {k: v for k, v in before.items() if k != "data.sha256"}


@pytest.mark.parametrize("pages", range(4))
def test_no_room_for_the_small_files(disk, pages):
    """Snapshot, Modelfile and receipt take a page each, and the folder they are in may take another."""
    edit("modelfiles/pirate.Modelfile", "temperature 0.7", "temperature 0.6")
    before = held(disk)
    leave(disk, 4096 * pages)
    done = run(*inside(disk, "make", "modelfile", "RECIPE=pirate-nano"))
    if done.returncode:
        line = one_line(done, "No space left on device; make room and run the same command again")
        assert re.match(r"outputs/pirate-nano/(prompt.sha256|gguf/Modelfile|modelfile.json): ", line), line
        text = (seen(disk) / "pirate-nano/gguf/Modelfile").read_text()
        assert "temperature 0.7" in text or "temperature 0.6" in text and text.rstrip().endswith('"""'), "whole, the old or the new"
        leave(disk, 2**20)
        assert run(*inside(disk, "make", "modelfile", "RECIPE=pirate-nano")).returncode == 0
    after = held(disk)
    assert "temperature 0.6" in (seen(disk) / "pirate-nano/gguf/Modelfile").read_text()
    changed = {k for k in after.keys() | before.keys() if after.get(k) != before.get(k)}
    assert changed == {"prompt.sha256", "gguf/Modelfile", "modelfile.json"}
