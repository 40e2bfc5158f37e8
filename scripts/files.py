"""Files, handled so that nothing half-made is ever taken for a whole one.

    with fresh(Path("outputs/pirate/merged")) as tmp: ...   # a folder beside it, renamed into place at the end

Errors that a person can mend are ValueError or OSError with one line: what is wrong, where, what to do.
"""

import errno
import fcntl
import glob
import hashlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galley"


def sha256(path):
    """Hex digest of a file's bytes; of a folder, the digest of its sorted `digest  name` lines."""
    path = Path(path)
    if path.is_dir():
        lines = [f"{sha256(p)}  {p.relative_to(path)}\n" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_if_changed(path, text):
    """Write atomically, and only if the text differs: an unchanged file keeps its time, so Make rebuilds nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    with replacing(path) as out:
        out.write(text)
    return True


@contextmanager
def replacing(path):
    """Yield a text file that takes the place of `path` if the body succeeds."""
    path = Path(path)
    tmp = sweep(path)
    try:
        with _full_disk_at(path):
            with open(tmp, "w", encoding="utf-8") as out:
                yield out
            os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


@contextmanager
def fresh(target, stamp=None):
    """Yield an empty folder beside `target`; rename it into place if the body succeeds, remove it if not.

    What a killed run left behind is removed at the next try. The old target stays until the new one is whole; its receipt, `stamp`,
    goes just before it does, so that no receipt outlives what it vouches for.
    """
    target = Path(target)
    old = target.with_name(f".{target.name}.old")
    _settle(old, target)
    tmp = sweep(target)
    try:
        with _full_disk_at(target):
            tmp.mkdir(parents=True)
            yield tmp
            for p in tmp.rglob("*"):
                if p.is_file():
                    with open(p, "rb") as f:
                        os.fsync(f.fileno())
            if stamp:
                Path(stamp).unlink(missing_ok=True)
            if target.exists():
                os.replace(target, old)
            os.replace(tmp, target)
    finally:
        _settle(old, target)
        shutil.rmtree(tmp, ignore_errors=True)


@contextmanager
def locked(folder):
    """One process at a time. The lock is on the folder itself: no file is left behind."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _settle(old, target):
    """Stopped between the two renames, the old target takes its place again; after them it goes."""
    if old.exists() and not target.exists():
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)


def sweep(path):
    """Our temporary name beside `path`, told by its maker, after removing what dead makers left there: another clone may be at work on the same tool."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.new.*"):
        pid, _, start = stale.suffix[1:].partition("-")
        if not start or start != _start(pid):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.new.{os.getpid()}-{_start(os.getpid())}")


def _start(pid):
    """When a process began, in clock ticks since boot, or "" if it is dead. A number alone comes again: a container that is started anew gives the same ones.

    A dead process stays listed until its parent asks, and a container's first process may never ask.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


@contextmanager
def _full_disk_at(path):
    """A write's own "No space left on device" names no file, a copy's the source: say where there was no room."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.strerror == os.strerror(error.errno):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise


def need_disk(folder, need):
    """Refuse before starting what the disk cannot hold. `need` in bytes."""
    folder = Path(folder)
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if free < need:
        wanted, there = (f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB" for n in (need, free))
        raise OSError(errno.ENOSPC, f"{folder}: needs {wanted} of disk, {there} are free; make room, or `make clean` another recipe")
