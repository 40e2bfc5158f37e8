"""Run a command beside a private Ollama, or tell how to get one.

    python -m scripts.serve outputs/ollama make ollama chat RECIPE=pirate-nano

The server listens on a free loopback port, keeps its models in the given folder, and ends with the command.
"""

import os
import subprocess
import sys
from pathlib import Path

from scripts import process


def main(argv):
    if len(argv) < 2:
        print("usage: python -m scripts.serve MODELS COMMAND …", file=sys.stderr)
        return 2
    if not process.ollama_binary():
        raise ValueError("no `ollama` on PATH; install it (ollama.com), or `make ollama-server` where there is Go")
    models = Path(argv[0])
    with process.ollama(models, models.with_suffix(".log")) as url:
        return subprocess.run(argv[1:], env={**os.environ, "OLLAMA_HOST": url}).returncode


if __name__ == "__main__":
    process.command(main)
