"""Real runs, on whatever machine this is. Two things are played, since no test machine has them: GPUs, by an `nvidia-smi` that prints
what the driver's own would (only the reading of it is tested), and the model hub, by a server on loopback that gives its status codes."""

import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from conftest import CACHE, OLLAMA_VERSIONS, one_line, room
from scripts import doctor
from scripts import ollama as room_ollama

SECRET = "hf_aVerySecretToken"
A100, T4 = "NVIDIA A100-SXM4-80GB, 81920, {free}, 8.0", "Tesla T4, 15360, {free}, 7.5"
BASE = "meta-llama/Llama-3.1-8B-Instruct"


def examine(*args, **env):
    """(exit code, {what: row})."""
    out = room("doctor", *args, "--json", **env)
    assert not out.stderr, out.stderr
    return out.returncode, {r["what"]: r for r in json.loads(out.stdout)}


@pytest.fixture(autouse=True)
def no_hub_of_the_callers(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


@pytest.fixture
def smi(tmp_path):
    """Put a pretended nvidia-smi on PATH: (count, line for each GPU, free MiB, driver, peer access) → the environment to run with."""

    def pretend(count, line, free=80000, driver="580.95.05", peer="OK"):
        gpus = [f"{i}, GPU-0000{i}, {driver}, {line.format(free=free)}" for i in range(count)]
        heads = "\t" + "\t".join(f"GPU{i}" for i in range(count))
        links = [f" GPU{i}\t" + "\t".join("X" if i == j else peer for j in range(count)) for i in range(count)]
        topology = "\n".join([heads, *links, "", "Legend:", "", "  X    = Self", "  OK   = Status Ok", "  CNS  = Chipset not supported"])
        tool = tmp_path / "bin/nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(
            "#!/bin/bash\nif [ $1 = topo ]; then cat <<'E'\n" + topology + "\nE\nelse cat <<'E'\n" + "\n".join(gpus) + "\nE\nfi\n"
        )
        tool.chmod(0o755)
        return {"PATH": f"{tool.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}

    return pretend


@pytest.fixture
def server():
    """A server on loopback that answers everything alike: answer(status, body) → (its URL, the Authorization headers it saw)."""
    made = []

    def answer(status, body=b""):
        seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append(self.headers["authorization"])
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if self.command == "GET" else b"")

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        made.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=made[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made[-1].server_port}", seen

    yield answer
    for one in made:
        one.shutdown()
        one.server_close()


def test_the_nano_runs_here():
    out = room("doctor", "pirate-nano")
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.splitlines()[-1].split() == ["pirate-nano", "ok", "can", "run", "here"]
    assert "none, and pirate-nano needs none" in out.stdout and "\033" not in out.stdout, "colour is for terminals"


def test_the_pirate_needs_four_gpus():
    code, rows = examine("pirate")
    assert code == 1 and rows["pirate"]["found"].startswith("cannot run here: 4 × a100-80g needed, 0 GPUs here")
    assert rows["GPU count"]["mend"] == "make train RECIPE=pirate-nano"


def test_without_a_name_only_what_every_recipe_needs_counts():
    code, rows = examine()
    assert code == 0 and rows["Python"]["status"] == rows["packages"]["status"] == rows["make"]["status"] == "ok"
    assert all(r.keys() == {"what", "status", "found", "mend"} and r["found"] for r in rows.values())
    assert all(r["mend"] for r in rows.values() if r["status"] != "ok") and {r["status"] for r in rows.values()} <= {"ok", "warning"}


def test_an_unknown_recipe_and_a_gpus_that_does_not_divide():
    one_line(room("doctor", "pirat"), "no recipe 'pirat' (did you mean pirate?)")
    one_line(room("doctor", "pirate", GPUS="3"), "GPUS can be 1, 2, 4, 8")


def test_a_missing_and_a_broken_tool(tmp_path):
    code, rows = examine(PATH="/nonexistent")
    assert code == 1 and rows["g++"]["found"] == "g++ is not on PATH" and rows["make"]["status"] == "missing"
    (tmp_path / "g++").write_text("#!/bin/sh\necho cannot load libmpc >&2\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    code, rows = examine("pirate-nano", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert code == 1 and rows["g++"]["found"] == "g++ fails: cannot load libmpc" and "apt install g++" in rows["g++"]["mend"]
    assert rows["pirate-nano"]["found"] == "cannot run here: g++ fails: cannot load libmpc"


def test_without_a_package_that_doctor_itself_needs(tmp_path):
    (tmp_path / "httpx.py").write_text("raise ImportError('no httpx')\n")
    one_line(room("doctor", PYTHONPATH=str(tmp_path)), "no httpx; `rm .venv/light && make setup` brings them")


def test_packages_that_differ_from_the_lock_or_are_missing(copy):
    lock = Path("requirements/light.txt")
    there = lock.read_text()
    lock.write_text(there.replace("httpx==0.28.1", "httpx==9.9.9") + 'elsewhere==1.0 ; sys_platform == "win32" \\\n    --hash=sha256:00\n')
    code, rows = examine()
    assert (code, rows["packages"]["status"]) == (0, "warning") and "httpx 0.28.1 (==9.9.9)" in rows["packages"]["found"]
    assert "elsewhere" not in rows["packages"]["found"] and rows["packages"]["mend"] == "rm .venv/light && make setup"
    lock.write_text(there + "no-such-package==1.0 \\\n    --hash=sha256:00\n")
    code, rows = examine()
    assert (code, rows["packages"]["status"]) == (1, "missing") and "no-such-package missing (==1.0)" in rows["packages"]["found"]


def test_the_training_level_counts_only_where_it_is_installed(copy):
    lock = Path("requirements/train.txt")
    lock.write_text(lock.read_text() + "no-such-package==1.0 \\\n    --hash=sha256:00\n")
    assert examine()[1]["training"]["mend"] == "rm .venv/train && make setup"
    Path(".venv").unlink()
    code, rows = examine()
    assert code == 0 and rows["training"]["found"].startswith("not installed") and rows["training"]["mend"] == "make setup"


def test_four_a100_are_enough(smi):
    """Pretended GPUs."""
    _, rows = examine("pirate", **smi(4, A100))
    assert rows["GPU 3"]["found"] == "NVIDIA A100-SXM4-80GB, 78 of 80 GiB free, compute capability 8.0"
    assert rows["GPU count"]["status"] == rows["peer access"]["status"] == rows["NVIDIA driver"]["status"] == "ok"
    assert "GPU" not in rows["pirate"]["found"] and "bf16" not in rows


def test_what_makes_gpus_unfit(smi):
    """Pretended GPUs: too old for bf16, full, an old driver, no way between them, some hidden."""
    _, rows = examine("pirate", **smi(4, T4, free=15000))
    assert "bf16 needs compute capability 8.0, GPU 0 has 7.5" in rows["pirate"]["found"] and "pirate-nano" in rows["bf16"]["mend"]
    assert "GPU 0 has 0.5 GiB free" in examine("pirate", **smi(4, A100, free=512))[1]["GPU memory"]["found"]
    assert examine("pirate", **smi(4, A100, driver="535.161.08"))[1]["NVIDIA driver"]["status"] == "missing"
    assert "not between all (CNS)" in examine(**smi(2, A100, peer="CNS"))[1]["peer access"]["found"]
    code, rows = examine("pirate", **smi(4, A100) | {"CUDA_VISIBLE_DEVICES": "0,GPU-00002,3"})
    assert code == 1 and rows["GPU count"]["found"] == "4 × a100-80g needed, 3 GPUs here"
    assert rows["GPU count"]["mend"] == "make train RECIPE=pirate GPUS=2" and "GPU 1" not in rows
    assert examine("pirate", GPUS="2", **smi(2, A100))[1]["GPU count"]["status"] == "ok"


def test_a_driver_that_does_not_answer(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver'\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    _, rows = examine(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert rows["GPUs"]["found"] == "none: nvidia-smi fails: NVIDIA-SMI has failed: no driver" and rows["GPUs"]["mend"]


@pytest.mark.parametrize("token", [SECRET, "sécret" + SECRET])
def test_a_token_is_never_printed(token, server):
    """The second cannot be sent in a header, and an error would quote it."""
    url, _ = server(403)
    for form in ([], ["--json"]):
        out = room("doctor", "pirate", *form, HF_TOKEN=token, HF_ENDPOINT=url, HF_HUB_OFFLINE="0", DEBUG="1")
        assert SECRET not in out.stdout + out.stderr and "there is one" in out.stdout and not out.stderr, out.stderr


@pytest.mark.parametrize(
    "status, what, how, words",
    [
        (200, "base", "ok", "may be read"),
        (307, "base", "ok", "may be read"),
        (401, "base", "missing", "does not give it for this token (401)"),
        (404, "base", "missing", "does not give it for this token (404)"),
        (503, "Hub", "warning", "out of reach: it answers 503"),
    ],
)
def test_whether_the_base_may_be_read(server, status, what, how, words):
    """The hub's part is played."""
    url, seen = server(status)
    _, rows = examine("pirate", HF_TOKEN=SECRET, HF_ENDPOINT=url, HF_HUB_OFFLINE="0")
    assert seen == [f"Bearer {SECRET}"] and rows[what]["status"] == how and words in rows[what]["found"]
    assert (BASE in rows["pirate"]["found"]) == (rows["base"]["status"] == "missing")


def test_no_hub_no_token():
    _, rows = examine("pirate", HF_ENDPOINT="http://127.0.0.1:1", HF_HUB_OFFLINE="0")
    assert rows["Hub"]["status"] == rows["Hub token"]["status"] == "warning" and "out of reach: no answer" in rows["Hub"]["found"]
    assert rows["base"]["status"] == "missing" and BASE in rows["pirate"]["found"]
    assert "HF_HUB_OFFLINE is set" in examine("pirate")[1]["Hub"]["found"] and "Hub" not in examine("pirate-nano")[1]


def test_a_base_that_is_here_needs_no_hub(tmp_path, copy):
    folder = tmp_path / "hf/hub/models--meta-llama--Llama-3.1-8B-Instruct"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        assert examine("pirate")[1]["base"]["status"] == "missing"
        (folder / "snapshots" / ("0" * 40) / name).write_text("{}")
    assert examine("pirate")[1]["base"]["found"] == f"{BASE}, in the hub's cache"
    assert examine("pirate", BASE="./nowhere")[1]["base"]["found"] == "./nowhere: no model there"
    Path("outputs/pirate").mkdir(parents=True)
    Path("outputs/pirate/base").write_text("outputs/nano/pirate\n")
    assert examine("pirate")[1]["base"]["found"] == "outputs/nano/pirate", "an earlier BASE is kept"
    assert examine("pirate", BASE="recipe")[1]["base"]["found"] == f"{BASE}, in the hub's cache"


def test_llama_cpp(tmp_path):
    built = next(CACHE.glob("llama.cpp-0.3.36-*"))
    assert "0.5.0" in examine(LLAMA_CPP_DIR=str(built))[1]["llama.cpp"]["found"]
    code, rows = examine("pirate-nano", LLAMA_CPP_DIR=str(tmp_path))
    assert code == 1 and "convert_hf_to_gguf.py is not in" in rows["pirate-nano"]["found"]
    code, rows = examine("pirate-nano", LLAMA_CPP_DIR=str(CACHE / "llama.cpp-none"))
    assert code == 0 and rows["llama.cpp"]["status"] == "warning", "make builds that one"


def test_ollama_of_both_generations(ollama):
    _, rows = examine()
    version = room_ollama.refuse_server(ollama)
    assert rows["Ollama"]["status"] == "ok" and rows["Ollama server"]["found"] == f"{version} at {ollama}"
    assert ("Jinja" in rows["templates"]["found"]) == (version >= "0.30")


def test_ollama_not_running_too_old_or_lame(server, tmp_path):
    """Only the old server's version number is played."""
    _, rows = examine(OLLAMA_HOST="127.0.0.1:1", OLLAMA="")
    assert rows["Ollama server"]["found"] == "not running at http://127.0.0.1:1" and "serve" in rows["Ollama server"]["mend"]
    _, rows = examine(OLLAMA_HOST=server(200, b'{"version":"0.5.7"}')[0])
    assert rows["Ollama server"]["status"] == "warning" and "0.24 is the oldest tried" in rows["Ollama server"]["found"]
    (tmp_path / "bin").mkdir()
    newest = CACHE / f"ollama-{OLLAMA_VERSIONS[0]}/bin/ollama"
    shutil.copy2(newest if newest.exists() else shutil.which("ollama"), tmp_path / "bin/ollama")
    assert "lib/ollama/llama-server, which it needs" in examine(OLLAMA=str(tmp_path / "bin/ollama"))[1]["Ollama"]["found"]


def test_what_it_repeats_is_still_so():
    assert doctor.OLDEST == room_ollama.TESTED
    assert "\nnvidia-cuda-runtime==13." in Path("requirements/train.txt").read_text(), "CUDA 13 is what DRIVER is for"
