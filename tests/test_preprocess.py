from pathlib import Path

from conftest import one_line, room, run
from test_snapshot import edit


def test_the_reply_and_its_end_are_what_is_learned(chain):
    from scripts import receipt

    figures = receipt.read(chain / "preprocess.json")["figures"]
    assert figures["rows"] == 1224 and figures["rows_dropped"] == 0
    assert figures["rows_without_reply"] == figures["rows_without_end"] == 0
    assert 0.5 < figures["trained_tokens"] / figures["tokens"] < 0.9


def test_a_damaged_row_is_named_before_axolotl_starts(chained):
    path = Path("datasets/pirate/train.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:41] + [lines[41][:50]] + lines[42:]))
    one_line(room("preprocess", "pirate-nano"), "datasets/pirate/train.jsonl:42: not JSON")
    path.write_text("")
    one_line(room("preprocess", "pirate-nano"), "datasets/pirate/train.jsonl: no rows")


def test_data_that_teaches_nothing_is_refused(chained):
    """roles_to_train names nobody: Axolotl prepares it without a word."""
    edit("outputs/pirate-nano/recipe.yml", "roles_to_train:\n  - assistant", "roles_to_train:\n  - nobody")
    before = sorted(Path("outputs/pirate-nano/prepared").rglob("*"))
    one_line(room("preprocess", "pirate-nano"), "rows carry no loss on a reply")
    assert sorted(Path("outputs/pirate-nano/prepared").rglob("*")) == before


def test_a_base_that_cannot_be_read_is_said_at_once(copy):
    assert room("snapshot", "pirate").returncode == 0
    one_line(
        room("preprocess", "pirate", HF_HUB_OFFLINE="1"),
        "meta-llama/Llama-3.1-8B-Instruct: not in the local hub cache and the hub is out of reach",
    )
    room("snapshot", "pirate-nano")
    one_line(room("preprocess", "pirate-nano"), "outputs/nano/pirate: no base model there; `make base`")


def test_a_gated_base_without_a_token(copy, tmp_path):
    """A hub of our own on loopback that answers as the real one does for a gated repository."""
    import http.server
    import threading

    class Gated(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gated)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    room("snapshot", "pirate")
    result = room(
        "preprocess", "pirate", HF_HUB_OFFLINE="0", HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}", HF_HOME=str(tmp_path / "hf")
    )
    hub.shutdown()
    one_line(result, "is gated and no token", "HF_TOKEN", "BASE=")


def test_the_big_recipe_is_one_that_axolotl_takes(chained):
    """recipes/pirate.yml through Axolotl itself, on the nano base's tokenizer: schema, plug-ins, template, packing."""
    result = run(
        ".venv/bin/axolotl",
        "preprocess",
        "recipes/pirate.yml",
        "--base-model",
        "outputs/nano/pirate",
        "--dataset-prepared-path",
        "outputs/p",
        AXOLOTL_DO_NOT_TRACK="1",
    )
    assert result.returncode == 0 and list(Path("outputs/p").rglob("dataset_info.json")), (result.stdout + result.stderr)[-2000:]
