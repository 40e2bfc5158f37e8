"""What the tests share: a copy of the repository to break, the real chain of pirate-nano, and real Ollama servers."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galley"
OLLAMA_VERSIONS = re.search(r"^OLLAMA_TESTED := (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
TRACKED = ["Makefile", "README.md", "pyproject.toml", "requirements", "recipes", "datasets", "modelfiles", "reports", "scripts", "tests"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of the CPU path, also where there is a GPU
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background is handed down a SIGINT that is ignored


def pytest_collection_modifyitems(items):
    """One file makes the chain; beside it run long ones that do without; then come those that wait for it, and the quick ones fill what is left of each core."""
    needs = {}
    for item in items:
        needs.setdefault(item.path, set()).update(item.fixturenames)
    chained = [path for path, names in needs.items() if "chain" in names]
    turn = {path: 1 if names & {"laptop", "site"} else 2 if path in chained else 3 for path, names in needs.items()} | dict.fromkeys(chained[:1], 0)
    items.sort(key=lambda item: turn[item.path])


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    """Every test starts in the repository, with none of the caller's choices."""
    monkeypatch.chdir(ROOT)
    for name in (
        "RECIPE",
        "SET",
        "BASE",
        "GPUS",
        "QUANT",
        "FORCE",
        "NNODES",
        "NODE_RANK",
        "MASTER",
        "OLLAMA_HOST",
        "HF_TOKEN",
        "DEBUG",
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "MAKECMDGOALS",
        "ASK",
    ):
        monkeypatch.delenv(name, raising=False)


def run(*cmd, cwd=None, **env):
    """Run to the end; returns the CompletedProcess with text output."""
    return subprocess.run(
        [str(c) for c in cmd], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def room(name, *args, cwd=None, **env):
    return run(sys.executable, "-m", f"scripts.{name}", *args, cwd=cwd, **env)


def one_line(result, *words):
    """A finding: exit 1, one line on stderr with these words, no traceback."""
    lines = result.stderr.strip().splitlines()
    lines = [line for line in lines if not line.startswith("make")]
    assert result.returncode in (1, 2), result.stdout + result.stderr
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def clone(place, nano=False):
    """Lay the repository out in a folder: its own recipes, data and outputs; the installed packages, and on request the nano bases, are the real ones."""
    for item in TRACKED:
        source = ROOT / item
        if source.is_dir():
            shutil.copytree(source, place / item, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, place / item)
    (place / ".venv").symlink_to(ROOT / ".venv")
    if nano:
        shutil.copytree(ROOT / "outputs/nano", place / "outputs/nano")
    return place


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the repository to break."""
    monkeypatch.chdir(clone(tmp_path))
    return tmp_path


def make(*goals):
    """make in the repository itself, one process of the tests after the other. A chain whose training was resumed is made anew: its minutes are no run's."""
    from scripts import files, receipt

    with files.locked(ROOT):
        trained = receipt.read(ROOT / "outputs/pirate-nano/train.json")
        if trained and trained["figures"].get("resumed_from_step"):
            shutil.rmtree(ROOT / "outputs/pirate-nano")
        made = run("make", *goals, cwd=ROOT)
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.fixture(scope="session")
def chain():
    """outputs/pirate-nano, made by `make modelfile`: trained, merged, converted, proven. The real thing, minutes long the first time."""
    make("modelfile", "RECIPE=pirate-nano")
    return ROOT / "outputs/pirate-nano"


@pytest.fixture
def chained(chain, copy):
    """The copy, holding its own copy of the finished chain, without what other tests have made of it since."""
    shutil.copytree(ROOT / "outputs/nano", copy / "outputs/nano")
    later = shutil.ignore_patterns("ollama.json", "score.json", "eval")
    shutil.copytree(chain, copy / "outputs/pirate-nano", ignore=later)
    return copy


@pytest.fixture(params=OLLAMA_VERSIONS)
def ollama(request, tmp_path_factory, monkeypatch):
    """A running private Ollama, of each generation in turn; yields its URL. Without Go, the one on PATH stands for both."""
    from scripts import process

    built = CACHE / f"ollama-{request.param}/bin/ollama"
    binary = built if built.exists() else shutil.which("ollama")
    assert binary, "no Ollama: install Go or Ollama; a missing one is a failure here, not a skip"
    monkeypatch.setenv("OLLAMA", str(binary))
    home = tmp_path_factory.mktemp("ollama")
    with process.ollama(home / "models", home / "log") as url:
        monkeypatch.setenv("OLLAMA_HOST", url)
        yield url
