"""Processes: our own mains, the tools we run to their end, and private model servers that end with their block.

    with llama(Path("x.gguf"), log) as url: httpx.post(f"{url}/tokenize", …)

Servers listen on a free loopback port. Errors that a person can mend are ValueError or OSError with one line: what is wrong, where, what to do.
"""

import ctypes
import errno
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

# What every tool we start must see: no telemetry, no progress bars in logs, tokens never printed.
QUIET = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
WAIT = 120  # seconds for a server to answer; an 8B model from a cold disk takes most of it
CUT = "repeat limit"  # stands in the error with which Ollama cuts a reply that says a token on and on


def die_with_parent(parent=None):
    """On Linux: end (SIGTERM) when the parent does, even if that was killed, so that no orphan goes on writing where a new run begins.

    At once if it is gone already. What make started shares make's session; an orphan finds itself under a parent of another.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if parent and os.getppid() != parent or not parent and os.getsid(0) not in (os.getpid(), os.getsid(os.getppid())):
        os._exit(130)


def _stop(*_):
    """SIGTERM ends like Ctrl-C, so that temporary folders go and children end; make passes it on, and a second one must not stop the clean-up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def command(main):
    """Run a room's main: exit 0, 1 for a finding (one line on stderr), 2 for wrong usage, 130 for Ctrl-C. DEBUG=1 shows the traceback."""
    if "MAKELEVEL" in os.environ:
        die_with_parent()
    if os.environ.get("DEBUG") != "1":  # what libraries say on import and their own bars are not what was asked for
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
    try:
        signal.signal(signal.SIGTERM, _stop)
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("DEBUG") == "1":
            traceback.print_exc()
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            room = "; make room and run the same command again" if error.errno == errno.ENOSPC and "make room" not in error.strerror else ""
            text = f"{error.filename}: {error.strerror}{room}" if error.filename else f"{error.strerror}{room}"
        elif not isinstance(error, (ValueError, OSError)):  # a library's own: no advice of ours, but one line too
            text = f"{type(error).__name__}: {text}"[:500] + "; DEBUG=1 shows where"
        print(" ".join(text.split()), file=sys.stderr)
        sys.exit(1)


def run(cmd, log, title, env=None, follow=None):
    """Run a command with all its output in `log`; show `title` and a bar. `follow(line, bar)` reads each output line and moves the bar.

    Raises ChildProcessError with the last error line, or OSError (ENOSPC) where the disk was full, in whatever words the command said so.
    """
    log, full = Path(log), None
    log.parent.mkdir(parents=True, exist_ok=True)
    room = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 50 else "/tmp"  # sockets lie in it, whose paths end at 107 characters
    for stale in Path(room).glob("galley-[0-9]*"):  # a killed run's
        if not _lives(stale.name.split("-")[1]):
            shutil.rmtree(stale, ignore_errors=True)
    tmp = tempfile.mkdtemp(prefix=f"galley-{os.getpid()}-", dir=room)  # torchrun and Axolotl leave their temporary folders behind
    kernels = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"  # these are to stay
    try:
        # PEFT writes the target modules in the order of a set: the same run is to make the same bytes.
        own = {"TQDM_DISABLE": "", "TMPDIR": tmp, "TORCHINDUCTOR_CACHE_DIR": kernels, "PYTHONHASHSEED": "0"}
        code = _logged(cmd, log, title, {**QUIET, **own, **(env or {})}, follow)
        full = _full_disk(log) if code else None
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        full = log.parent.parent  # the log's own disk
    finally:
        until = time.monotonic() + 2  # a tool's last helpers may be writing there still
        while os.path.exists(tmp) and time.monotonic() < until:
            shutil.rmtree(tmp, ignore_errors=True)
    if full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(full))
    if code:
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        raise ChildProcessError(f"{title.strip()} failed ({how}): {_cause(log)}; the whole log is in {log}")


def _lives(pid):
    """Whether a process runs; a dead one stays listed until its parent asks, and a container's first process may never ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def _logged(cmd, log, title, env, follow):
    """Run it to its end, or end it with us; returns the exit code."""
    from tqdm import tqdm

    form = "{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}" if follow else "{desc} {elapsed}"
    with (
        open(log, "w", encoding="utf-8", errors="replace") as out,
        tqdm(desc=f"{title:<28}", bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar,
    ):
        proc = _start(cmd, env, stdout=subprocess.PIPE, text=True, errors="replace")
        try:
            for line in _lines(proc.stdout):
                out.write(line + "\n")
                out.flush()
                follow(line, bar) if follow else bar.refresh()
            return proc.wait()
        except BaseException:
            _end(proc)
            raise


def _start(cmd, env, **streams):
    """A command in a session of its own, which Ctrl-C does not reach; it ends when we do."""
    cmd, env, born = [str(c) for c in cmd], {**os.environ, **env}, partial(die_with_parent, os.getpid())
    return subprocess.Popen(cmd, stderr=subprocess.STDOUT, env=env, start_new_session=True, preexec_fn=born, **streams)


def _lines(stream):
    """Split on newline and on carriage return: progress bars are lines too."""
    rest = ""
    while chunk := stream.readline():
        *whole, rest = re.split(r"[\r\n]", rest + chunk)
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest


def _end(proc):
    """End the group that we started (Ollama has runners of its own): politely, then for certain."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(proc.pid, sig)
            proc.wait(timeout=45)  # torchrun gives its ranks, which have sessions of their own, 30 s


def _cause(log):
    """The line of a log that says most: the last exception, else the last line."""
    lines = [line.strip() for line in Path(log).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = re.compile(r"(?!subprocess|torch\.distributed)(\[rank\d+\]:? ?)?([\w.]*(Error|Exception|Exit|Interrupt)\b: |error: |fatal: )")
    named = [line for line in lines if named.match(line)]
    return (named or lines or ["no output"])[-1][:300]


def _full_disk(log):
    """Where a failed tool met a full disk: the file that its last words name, else the folder of its log, or None.

    PyTorch's writer ("enforce fail at inline_container.cc") and llama.cpp's ("iostream error") do not say why they failed: the disk itself does.
    """
    said = re.findall(r".*(?:No space left on device|Disk quota exceeded).*", log.read_text(encoding="utf-8", errors="replace"))
    named = said and re.search(r"'(/[^']+)'", said[-1])
    if said or shutil.disk_usage(log.parent).free < 2**20:
        return named[1] if named else log.parent.parent
    return None


def llama_cpp(tool):
    """A built tool of llama.cpp, or its converter. `make` sets LLAMA_CPP_DIR; it may be a build of your own."""
    root = os.environ.get("LLAMA_CPP_DIR", "")
    for place in (Path(root, tool), Path(root, "build/bin", tool), Path(root, "bin", tool)):
        if root and place.is_file():
            return place
    raise ValueError(f"{tool} is not in LLAMA_CPP_DIR={root}; run through make, which builds it, or set LLAMA_CPP_DIR to a built llama.cpp")


def ollama_binary():
    """The ollama on PATH, else the one `make ollama-server` installed (`make` sets OLLAMA), else None."""
    found = os.environ.get("OLLAMA") or shutil.which("ollama")
    return found if found and Path(found).is_file() else None


def ollama_url():
    """Where the user's Ollama listens: OLLAMA_HOST as Ollama itself reads it, else loopback."""
    host = os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434"
    host = host if "://" in host else f"http://{host}"
    return host if host.count(":") > 1 else f"{host}:11434"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(url):
    import httpx

    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2).status_code == 200
    return False


@contextmanager
def started(cmd, url, log, env=None):
    """Run a server until the block ends. Raises ChildProcessError with its last line if it does not answer."""
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as out:
        proc = _start(cmd, env or {}, stdout=out, stdin=subprocess.DEVNULL)
    try:
        until = time.time() + WAIT
        while not answers(url):
            if proc.poll() is not None or time.time() > until:
                lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()]
                wrong = [x for x in lines if "error" in x.lower()] or lines or ["no output"]
                raise ChildProcessError(f"{Path(cmd[0]).name} did not start: {wrong[-1][:200]}; the whole log is in {log}")
            time.sleep(0.1)
        yield proc
    finally:
        _end(proc)


@contextmanager
def llama(gguf, log, *options):
    """llama-server on a model; yields its URL."""
    port = free_port()
    cmd = [llama_cpp("llama-server"), "-m", gguf, "--host", "127.0.0.1", "--port", port, "--no-webui", *options]
    with started(cmd, f"http://127.0.0.1:{port}/health", log):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def ollama(models, log):
    """A private Ollama with its own model folder; yields its URL."""
    url = f"http://127.0.0.1:{free_port()}"
    env = {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(Path(models).resolve()), "OLLAMA_KEEP_ALIVE": "5m", "OLLAMA_NOPRUNE": "1", "OLLAMA_NO_CLOUD": "1"}
    with started([ollama_binary(), "serve"], f"{url}/api/version", log, env):
        yield url
