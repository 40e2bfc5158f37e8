"""Private model servers for checks, chats and tests: llama.cpp's and Ollama's, on a free loopback port, ended with the block.

    with llama(Path("x.gguf")) as url: httpx.post(f"{url}/tokenize", …)
"""
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

WAIT = 120  # seconds for a server to answer; an 8B model from a cold disk takes most of it


def llama_cpp(tool):
    """A built tool of llama.cpp, or its converter. `make` sets LLAMA_CPP_DIR; it may be a build of your own."""
    root = Path(os.environ.get("LLAMA_CPP_DIR", ""))
    for place in (root / tool, root / "build/bin" / tool, root / "bin" / tool):
        if os.environ.get("LLAMA_CPP_DIR") and place.is_file():
            return place
    raise ValueError(f"{tool} is not in LLAMA_CPP_DIR={os.environ.get('LLAMA_CPP_DIR', '')}; run through make, which builds it, or set LLAMA_CPP_DIR to a built llama.cpp")


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
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def started(cmd, url, log, env=None):
    """Run a server until the block ends. Raises ChildProcessError with its last line if it does not answer."""
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as out:
        proc = subprocess.Popen([str(c) for c in cmd], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                env={**os.environ, **(env or {})}, start_new_session=True)
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
        try:  # the whole group: Ollama has runners of its own
            os.killpg(proc.pid, signal.SIGTERM)
            proc.wait(timeout=10)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(proc.pid, signal.SIGKILL)
            proc.wait()


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
    env = {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(Path(models).resolve()), "OLLAMA_KEEP_ALIVE": "5m", "OLLAMA_NOPRUNE": "1",
           "OLLAMA_NO_CLOUD": "1"}
    with started([ollama_binary(), "serve"], f"{url}/api/version", log, env):
        yield url
