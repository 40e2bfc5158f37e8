import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import files


def test_a_folder_hash_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    one = files.sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    two = files.sha256(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({one, two, files.sha256(tmp_path)}) == 3


def test_an_unchanged_file_keeps_its_time(tmp_path):
    path = tmp_path / "x"
    assert files.write_if_changed(path, "a")
    os.utime(path, (1, 1))
    assert not files.write_if_changed(path, "a") and path.stat().st_mtime == 1
    assert files.write_if_changed(path, "b") and path.read_text() == "b"


def test_a_failed_stage_leaves_the_old_folder(tmp_path):
    target = tmp_path / "merged"
    with files.fresh(target) as tmp:
        (tmp / "w").write_text("old")
    with pytest.raises(RuntimeError), files.fresh(target) as tmp:
        (tmp / "w").write_text("half")
        raise RuntimeError
    assert (target / "w").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["merged"]


def test_kill_9_never_leaves_a_half_made_folder(tmp_path):
    """At whatever moment it comes: the target is the old whole or the new whole, and the next try works."""
    code = (
        "import sys, time; from pathlib import Path; from scripts import files\n"
        "for n in range(10**6):\n"
        "    with files.fresh(Path(sys.argv[1])) as tmp:\n"
        "        for i in range(20): (tmp / str(i)).write_text(str(n))\n"
    )
    target = tmp_path / "t"
    for wait in (0.05, 0.11, 0.17, 0.23, 0.31):
        child = subprocess.Popen([sys.executable, "-c", code, str(target)])
        time.sleep(0.3 + wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if target.exists():
            assert len({p.read_text() for p in target.iterdir()}) == 1 and len(list(target.iterdir())) == 20
        else:  # between the two renames: the old one is beside it, and the next try puts it back
            assert (tmp_path / ".t.old").exists()
    with files.fresh(target) as tmp:
        (tmp / "done").write_text("")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t"]


STOPPED = """
import os, shutil, sys
from pathlib import Path
from scripts import files
left = int(sys.argv[2])
def counted(call):
    def step(*args, **more):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*args, **more)
    return step
os.replace, os.fsync, os.unlink, os.mkdir, os.rmdir = map(counted, (os.replace, os.fsync, os.unlink, os.mkdir, os.rmdir))
with files.fresh(Path(sys.argv[1]), stamp=Path(sys.argv[1] + ".json")) as tmp:
    for name in "ab":
        (tmp / name).write_text("new")
"""


def test_stopped_at_any_of_its_steps_it_is_the_old_or_the_new_and_no_receipt_outlives_the_old(tmp_path):
    """The process ends at its first, second, third … call that changes the disk, until one gets through."""
    target, stamp, seen = tmp_path / "t", tmp_path / "t.json", set()
    for step in range(40):
        shutil.rmtree(tmp_path)
        target.mkdir(parents=True)
        for name in "ab":
            (target / name).write_text("old")
        stamp.write_text("of the old")
        code = subprocess.run([sys.executable, "-c", STOPPED, str(target), str(step)]).returncode
        stands = {p.read_text() for p in target.iterdir()} if target.exists() else {"nothing"}
        seen |= stands
        assert len(stands) == 1 and (not stamp.exists() or stands == {"old"}), step
        with files.fresh(target) as tmp:
            (tmp / "done").write_text("")
        assert {p.name for p in tmp_path.iterdir()} <= {"t", "t.json"} and [p.name for p in target.iterdir()] == ["done"], step
        if not code:
            break
    assert code == 0 and step > 6 and seen == {"old", "new", "nothing"}


def test_stopped_between_the_two_renames_the_old_comes_back(tmp_path, monkeypatch):
    """Ctrl-C there, or a full disk: what was taken away must not be thrown away."""
    target, replace = tmp_path / "t", os.replace
    with files.fresh(target) as tmp:
        (tmp / "w").write_text("old")

    def interrupted(source, to):
        if ".new." in str(source):
            raise KeyboardInterrupt
        replace(source, to)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), files.fresh(target) as tmp:
        (tmp / "w").write_text("new")
    assert (target / "w").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["t"]


def test_what_a_killed_run_left_goes_though_its_number_lives_again(tmp_path):
    """In a container that is started anew the same numbers come again at once."""
    mine = f"{os.getpid()}-{files._start(os.getpid())}"
    for maker in ("999999999-1", f"{os.getpid()}-1", f"{os.getppid()}-1", str(os.getpid())):
        (tmp_path / f".t.new.{maker}").mkdir()
        (tmp_path / f".x.new.{maker}").write_text("half")
    (tmp_path / f".t.new.{os.getppid()}-{files._start(os.getppid())}").mkdir()  # somebody at work
    with files.fresh(tmp_path / "t") as tmp:
        assert tmp.name == f".t.new.{mine}"
    assert files.write_if_changed(tmp_path / "x", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".t.new.{os.getppid()}-{files._start(os.getppid())}", "t", "x"]


def test_what_a_dead_process_left_goes_though_nobody_asked_how_it_ended(tmp_path):
    """In a container the first process may never ask: the dead one stays listed, with its number and its start."""
    child = subprocess.Popen(["sleep", "60"])
    left = tmp_path / f".t.new.{child.pid}-{files._start(child.pid)}"
    left.mkdir()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    with files.fresh(tmp_path / "t"):
        assert not left.exists()
    child.wait()


def test_a_full_disk_is_refused_beforehand(tmp_path):
    with pytest.raises(OSError, match="GiB are free; make room"):
        files.need_disk(tmp_path / "not/yet/there", 2**60)
