"""Files and processes, handled so that nothing half-made is ever taken for a whole one.

    with fresh(Path("outputs/pirate/merged")) as tmp: ...   # a folder beside it, renamed into place at the end

Errors that a person can mend are ValueError or OSError with one line: what is wrong, where, what to do.
"""
import errno
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galley"
# What every tool we start must see: no telemetry, no progress bars in logs, tokens never printed.
QUIET = {"AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
         "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


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
def fresh(target):
    """Yield an empty folder beside `target`; rename it into place if the body succeeds, remove it if not.

    What a killed run left behind is removed at the next try. The old target stays until the new one is whole.
    """
    target = Path(target)
    tmp, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():  # killed between the two renames below
        os.replace(old, target)
    for stale in (tmp, old):
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
        raise OSError(errno.ENOSPC, f"{folder}: needs {need / 2**30:.1f} GiB of disk, {free / 2**30:.1f} GiB are free; "
                      "make room, or `make clean` another recipe")


def run(cmd, log, title, env=None, follow=None):
    """Run a command with all its output in `log`; show `title` and a bar. Raises ChildProcessError with the last error line.

    `follow(line, bar)` reads each output line and moves the bar.
    """
    from tqdm import tqdm
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    form = "{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}" if follow else "{desc} {elapsed}"
    with open(log, "w", encoding="utf-8", errors="replace") as out, \
            tqdm(desc=f"{title:<28}", bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:
        proc = subprocess.Popen([str(c) for c in cmd], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                errors="replace", env={**os.environ, **QUIET, "TQDM_DISABLE": "", **(env or {})}, start_new_session=True)
        try:
            for line in _lines(proc.stdout):
                out.write(line + "\n")
                out.flush()
                follow(line, bar) if follow else bar.refresh()
            code = proc.wait()
        except BaseException:
            _end(proc)
            raise
    if code:
        raise ChildProcessError(f"{title.strip()} failed ({_exit(code)}): {_cause(log)}; the whole log is in {log}")


def _lines(stream):
    """Split on newline and on carriage return: progress bars are lines too."""
    rest = ""
    while chunk := stream.readline():
        *whole, rest = re.split(r"[\r\n]", rest + chunk)
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest


def _end(proc):
    """End the whole group that we started (torchrun's ranks too): politely, then for certain."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(proc.pid, sig)
            proc.wait(timeout=15)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _exit(code):
    return f"signal {-code}" if code < 0 else f"exit {code}"


def _cause(log):
    """The line of a log that says most: the last exception, else the last line."""
    lines = [line.strip() for line in Path(log).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(\[rank\d+\]:? ?)?([\w.]*(Error|Exception|Exit|Interrupt)\b: |error: |fatal: )", line)
             and not re.match(r"(subprocess|torch\.distributed)", line)]
    return (named or lines or ["no output"])[-1][:300]


def command(main):
    """Run a room's main: exit 0, 1 for a finding (one line on stderr), 2 for wrong usage, 130 for Ctrl-C. DEBUG=1 shows the traceback."""
    if os.environ.get("DEBUG") != "1":  # what libraries say on import and their own bars are not what was asked for
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
    try:
        # SIGTERM ends like Ctrl-C, so that temporary folders go and children end.
        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get("DEBUG") == "1":
            traceback.print_exc()
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename
        text = f"{error.filename}: no space left on the disk; make room and run the same command again" if full else \
            error.args[-1] if isinstance(error, OSError) and len(error.args) == 2 and not error.filename else str(error)
        print(" ".join(str(text).split()), file=sys.stderr)
        sys.exit(1)
