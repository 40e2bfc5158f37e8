from pathlib import Path

from conftest import one_line, room


def test_it_talks_through_llama_server_where_there_is_no_ollama(chain):
    said = room("chat", "pirate-nano", "--ask", "Hello", "Who are you?", OLLAMA_HOST="127.0.0.1:1")
    assert said.returncode == 0, said.stderr
    assert "llama-server, ./pirate-nano-Q4_K_M.gguf" in said.stdout and said.stdout.count(">>> ") == 2
    assert all(len(part.split("\n", 1)[1].strip()) > 5 for part in said.stdout.split(">>> ")[1:]) and "<|" not in said.stdout


def test_and_through_ollama_where_it_holds_the_model(ollama, chain):
    assert room("ollama", "pirate-nano").returncode == 0
    said = room("chat", "pirate-nano", "--ask", "Hello")
    assert said.returncode == 0 and "Ollama, model pirate-nano" in said.stdout and len(said.stdout.splitlines()) >= 4


def test_a_conversation_from_standard_input(chain):
    import os
    import subprocess
    import sys

    said = subprocess.run(
        [sys.executable, "-m", "scripts.chat", "pirate-nano"],
        input="Hello\nAnd then?\n\n",
        capture_output=True,
        text=True,
        env={**os.environ, "OLLAMA_HOST": "127.0.0.1:1"},
    )
    assert said.returncode == 0 and len([line for line in said.stdout.splitlines() if line.strip()]) >= 3


def test_nothing_to_talk_to_yet(copy):
    Path("outputs/pirate").mkdir(parents=True)
    one_line(room("chat", "pirate", OLLAMA_HOST="127.0.0.1:1"), "no model to talk to yet; `make modelfile RECIPE=pirate`")
