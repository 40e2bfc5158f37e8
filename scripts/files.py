"""Files, handled so that nothing half-made is ever taken for a whole one.

    with fresh(Path("outputs/pirate/merged")) as tmp: ...   # a folder beside it, renamed into place at the end

Errors that a person can mend are ValueError or OSError with one line: what is wrong, where, what to do.
"""

import errno
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
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}")
    tmp.write_text(text, encoding="utf-8")
    os.replace(tmp, path)
    return True


@contextmanager
def replacing(path):
    """Yield a text file that takes the place of `path` if the body succeeds."""
    path = Path(path)
    tmp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(tmp, "w", encoding="utf-8") as out:
            yield out
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


@contextmanager
def fresh(target):
    """Yield an empty folder beside `target`; rename it into place if the body succeeds, remove it if not.

    What a killed run left behind is removed at the next try. The old target stays until the new one is whole.
    """
    target = Path(target)
    tmp, old = target.with_name(f".{target.name}.new.{os.getpid()}"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():  # killed between the two renames below
        os.replace(old, target)
    for stale in target.parent.glob(f".{target.name}.new.*"):
        if not Path("/proc", stale.suffix[1:]).exists():  # its maker is dead; another clone may be at work on the same tool
            shutil.rmtree(stale, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        yield tmp
        for p in tmp.rglob("*"):
            if p.is_file():
                with open(p, "rb") as f:
                    os.fsync(f.fileno())
        if target.exists():
            os.replace(target, old)
        os.replace(tmp, target)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def need_disk(folder, need):
    """Refuse before starting what the disk cannot hold. `need` in bytes."""
    folder = Path(folder)
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if free < need:
        raise OSError(
            errno.ENOSPC,
            f"{folder}: needs {need / 2**30:.1f} GiB of disk, {free / 2**30:.1f} GiB are free; make room, or `make clean` another recipe",
        )
