import os
import signal
import subprocess
import sys
import time

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


def test_a_full_disk_is_refused_beforehand(tmp_path):
    with pytest.raises(OSError, match="GiB are free; make room"):
        files.need_disk(tmp_path / "not/yet/there", 2**60)
