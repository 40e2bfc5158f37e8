"""The real Ollama, both generations: the last with the engine inside, and one with a llama-server beside it."""

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from conftest import one_line, room
from scripts import ollama as room_ollama
from scripts import receipt
from test_snapshot import edit


def test_created_proven_and_left_alone(ollama, chained):
    Path("outputs/pirate-nano/ollama.json").unlink(missing_ok=True)
    made = room("ollama", "pirate-nano")
    assert made.returncode == 0 and "10 prompts as in training" in made.stdout, made.stdout + made.stderr
    figures = receipt.read("outputs/pirate-nano/ollama.json")["figures"]
    assert room_ollama.standing(ollama) == {"pirate-nano": figures["digest"]}, "the trial model must be gone"
    again = room("ollama", "pirate-nano")
    assert again.returncode == 0 and "pirate-nano stands" in again.stdout
    answer = httpx.post(
        f"{ollama}/api/chat", json={"model": "pirate-nano", "messages": [{"role": "user", "content": "Hello"}], "stream": False}, timeout=60
    ).json()
    assert answer["done_reason"] == "stop" and answer["message"]["content"] and "<|" not in answer["message"]["content"]


@pytest.mark.parametrize(
    "old, new",
    [
        ("{{ .Content }}<|eot_id|>", "{{ .Content }} <|eot_id|>"),
        ("<|end_header_id|>\n\n{{ .Content }}", "<|end_header_id|>\n{{ .Content }}"),
    ],
)
def test_a_prompt_that_differs_by_a_blank_is_caught(ollama, chained, old, new):
    path = Path("outputs/pirate-nano/gguf/Modelfile")
    edit(path, old, new)
    line = one_line(room("ollama", "pirate-nano"), "TEMPLATE and the recipe's chat template differ")
    assert "Ollama renders" in line and room_ollama.standing(ollama) == {}, "an unproven model must not stay"


def test_another_system_message_is_no_fault(ollama, chained):
    edit(Path("outputs/pirate-nano/gguf/Modelfile"), 'SYSTEM "You', 'SYSTEM " You')
    assert room("ollama", "pirate-nano").returncode == 0, "it is rendered as training would render it"


def test_somebody_elses_model_is_not_overwritten(ollama, chained, tmp_path):
    import os

    (tmp_path / "M").write_text(f"FROM {Path('outputs/pirate-nano/gguf/pirate-nano-Q8_0.gguf').resolve()}\nLICENSE mine\n")
    subprocess.run([os.environ["OLLAMA"], "create", "pirate-nano", "-f", tmp_path / "M"], check=True, capture_output=True)
    before = room_ollama.standing(ollama)
    one_line(room("ollama", "pirate-nano"), "already has a model 'pirate-nano' that was not made here", "FORCE=1")
    assert room_ollama.standing(ollama) == before
    assert room("ollama", "pirate-nano", FORCE="1").returncode == 0
    assert room_ollama.standing(ollama) != before


def test_replies_that_do_not_end_are_refused(ollama, chained):
    """Weights that say one token on and on: Ollama cuts the reply, the newer one with an error, the older one by an answer that is not done."""
    from gguf import GGUFReader

    path = Path("outputs/pirate-nano/gguf/pirate-nano-F16.gguf").resolve()
    next(t for t in GGUFReader(path, "r+").tensors if t.name == "output_norm.weight").data[:] = 0  # every logit 0: the first token, greedily
    modelfile = Path("outputs/pirate-nano/gguf/Modelfile")
    text = re.sub(r"FROM .*", f"FROM {path}", modelfile.read_text()).replace("PARAMETER temperature 0.7", "PARAMETER temperature 0")
    modelfile.write_text(text)
    room_ollama.create(ollama, "babbler", modelfile, Path("outputs/pirate-nano/logs/ollama.log"))
    with pytest.raises(ValueError, match="0 of 5 replies ended by themselves within 400 tokens; check eot_tokens"):
        room_ollama.prove_ends(ollama, "babbler", [{"messages": room_ollama.messages(None, [f"Hello {n}", "Ahoy"])} for n in range(5)])


def test_not_running(chained):
    one_line(room("ollama", "pirate-nano", OLLAMA_HOST="127.0.0.1:1"), "Ollama is not running at http://127.0.0.1:1;")


def test_too_old():
    """Only the version number is played; no Ollama that old can be built here."""
    import http.server
    import threading

    class Old(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"version": "0.5.7"}')

        def log_message(self, *_):
            pass

    old = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Old)
    threading.Thread(target=old.serve_forever, daemon=True).start()
    with pytest.raises(ValueError, match="Ollama 0.5.7 at .* is too old: 0.24 is the oldest tried"):
        room_ollama.refuse_server(f"http://127.0.0.1:{old.server_port}")
    old.shutdown()
