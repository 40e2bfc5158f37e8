import hashlib
import tarfile
from pathlib import Path

import pytest

from conftest import CACHE, OLLAMA_VERSIONS, one_line, room, run


def test_the_pinned_llama_cpp_is_in_the_cache():
    root = next(CACHE.glob("llama.cpp-0.3.36-*"))
    for tool in ("build/bin/llama-quantize", "build/bin/llama-server"):
        assert run(root / tool, "--help").returncode in (0, 1)
    assert (root / "convert_hf_to_gguf.py").exists() and not list(root.glob("*.tar.gz"))


@pytest.mark.parametrize("version", OLLAMA_VERSIONS)
def test_both_generations_of_ollama_are(version):
    assert f"client version is {version}" in run(CACHE / f"ollama-{version}/bin/ollama", "--version", OLLAMA_HOST="127.0.0.1:1").stdout


def test_a_source_of_another_hash_is_refused(copy, tmp_path):
    """The right package with the wrong sha256: nothing is unpacked, nothing built."""
    fake = tmp_path / "index"
    (fake / "llama_cpp_python-0.3.36").mkdir(parents=True)
    (fake / "llama_cpp_python-0.3.36/PKG-INFO").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\n")
    archive = fake / "llama_cpp_python-0.3.36.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(fake / "llama_cpp_python-0.3.36", "llama_cpp_python-0.3.36")
    pin = Path("requirements/llama.cpp.txt")
    pin.write_text("--no-index\n--find-links " + str(fake) + "\n" + pin.read_text())
    assert hashlib.sha256(archive.read_bytes()).hexdigest() not in pin.read_text()
    target = tmp_path / "made"
    pip = next(CACHE.glob("uv-0.13.8-*")) / "bin/python"
    one_line(
        room("tools", "llama.cpp", str(target), PIP=str(pip), XDG_CACHE_HOME=str(tmp_path / "c")),
        "llama.cpp source failed",
        "llama.cpp-download.log",
    )
    assert "HASH" in (tmp_path / "c/galley/logs/llama.cpp-download.log").read_text().upper() and not target.exists()


def test_without_go_it_says_what_to_do(tmp_path):
    one_line(room("tools", "ollama", str(tmp_path / "o"), "0.34.2", PATH="/nonexistent"), "go is missing; install Go")
