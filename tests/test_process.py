import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from conftest import ROOT
from scripts import process


def test_a_failing_command_names_its_cause_and_its_log(tmp_path):
    with pytest.raises(ChildProcessError, match=r"thing failed \(exit 3\): ValueError: the cause; the whole log is in .*log"):
        process.run(
            [sys.executable, "-c", "print('ValueError: the cause'); print('noise after'); raise SystemExit(3)"], tmp_path / "log", "thing"
        )


def main_of(body, **env):
    code = f"from scripts import process\ndef main(argv):\n    {body}\nprocess.command(main)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})


def test_a_finding_is_one_line_and_debug_shows_the_traceback():
    body = "raise ValueError('recipes/x.yml:3: wrong;\\n mend it')"
    quiet, loud = main_of(body), main_of(body, DEBUG="1")
    assert (quiet.returncode, quiet.stderr) == (1, "recipes/x.yml:3: wrong; mend it\n")
    assert loud.returncode == 1 and "Traceback" in loud.stderr


def test_no_space_left_is_said_plainly():
    full = main_of("open('/dev/full', 'w').write('x' * 10**6)")
    assert full.returncode == 1 and full.stderr == "No space left on device; make room and run the same command again\n"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_a_stopped_run_started_ends_too(tmp_path, sign):
    """Also under kill -9: an orphan that goes on writing would spoil the next run."""
    (tmp_path / "child.py").write_text("import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    code = (
        "import sys; from scripts import process\n"
        "def main(argv): process.run([sys.executable, argv[0] + '/child.py', argv[0] + '/pid'], argv[0] + '/log', 'x')\n"
        "process.command(main)"
    )
    # A job started in the background has SIGINT ignored, and its children inherit that.
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until = time.time() + 10
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.time() < until
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(sign)
    assert parent.wait(timeout=20) == (-9 if sign == signal.SIGKILL else 130)
    until = time.time() + 10
    while os.path.exists(f"/proc/{child}") and open(f"/proc/{child}/stat").read().split(")")[1].split()[0] != "Z":
        assert time.time() < until, "the child lives on"
        time.sleep(0.05)


def test_a_server_that_does_not_start_says_why(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with (
        pytest.raises(ChildProcessError, match="llama-server did not start: .*; the whole log is in"),
        process.llama(tmp_path / "bad.gguf", tmp_path / "log"),
    ):
        pass


def test_a_server_listens_on_loopback_and_ends_with_its_block(chain, tmp_path):
    with process.llama(chain / "gguf/pirate-nano-Q8_0.gguf", tmp_path / "log", "-c", 512) as url:
        assert url.startswith("http://127.0.0.1:") and httpx.get(f"{url}/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_missing_tool_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_DIR", "/nowhere")
    with pytest.raises(ValueError, match="llama-quantize is not in LLAMA_CPP_DIR=/nowhere; run through make"):
        process.llama_cpp("llama-quantize")


@pytest.mark.parametrize(
    "host, url",
    [
        (None, "http://127.0.0.1:11434"),
        ("10.1.2.3", "http://10.1.2.3:11434"),
        ("10.1.2.3:99", "http://10.1.2.3:99"),
        ("http://h:1", "http://h:1"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(monkeypatch, host, url):
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    if host:
        monkeypatch.setenv("OLLAMA_HOST", host)
    assert process.ollama_url() == url
