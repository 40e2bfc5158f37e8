import os
import sys

from conftest import CACHE, OLLAMA_VERSIONS, one_line, room


def test_a_command_gets_a_private_server_and_its_exit_code(tmp_path):
    binary = CACHE / f"ollama-{OLLAMA_VERSIONS[0]}/bin/ollama"
    code = "import os, httpx, sys; print(os.environ['OLLAMA_HOST'], httpx.get(os.environ['OLLAMA_HOST'] + '/api/tags').json()); sys.exit(7)"
    done = room("serve", str(tmp_path / "models"), sys.executable, "-c", code, OLLAMA=str(binary if binary.exists() else ""))
    assert done.returncode == 7 and "http://127.0.0.1:" in done.stdout and "[]" in done.stdout, done.stdout + done.stderr


def test_no_ollama_says_how_to_get_one(tmp_path):
    one_line(
        room("serve", str(tmp_path), "true", OLLAMA="/nowhere/ollama", PATH=os.path.dirname(sys.executable)),
        "no `ollama` on PATH; install it",
        "make ollama-server",
    )
