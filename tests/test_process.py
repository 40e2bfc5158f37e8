import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
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


def test_a_second_sigterm_does_not_stop_the_clean_up():
    """Make passes on the one that its group has got as well."""
    code = (
        "import time; from scripts import process\n"
        "def main(argv):\n    try:\n        print('at work', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        time.sleep(1)\n        print('tidy', flush=True)\n"
        "process.command(main)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "at work\n"
    for _ in range(2):
        child.terminate()
        time.sleep(0.3)
    assert child.communicate() == ("tidy\n", "stopped; run the same command again to go on\n") and child.returncode == 130


def test_a_room_whose_make_is_gone_before_it_began_does_not_begin(tmp_path):
    """Killed while Python was starting, make can no longer be the parent whose end is told."""
    code = f"from scripts import process; process.command(lambda argv: open({str(tmp_path / 'began')!r}, 'w').close())"
    for orphan, began in ((False, True), (True, False)):
        script = '(sleep 0.5; exec env MAKELEVEL=1 "$@"; ) & ' + ("exit" if orphan else "wait")
        child = subprocess.Popen(["bash", "-c", script, "make", sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
        child.communicate()  # the pipe ends with the last of them
        assert (tmp_path / "began").exists() == began
        (tmp_path / "began").unlink(missing_ok=True)


def test_what_a_tool_leaves_in_its_temporary_folder_goes(tmp_path, monkeypatch):
    """The folder's path is short, whatever TMPDIR is: multiprocessing puts its sockets there."""
    code = "import tempfile; print(tempfile.mkdtemp())"
    with process.tempfile.TemporaryDirectory() as short:
        monkeypatch.setattr(process.tempfile, "tempdir", short)
        for name in ("galley-999999999-x", f"galley-{os.getppid()}-x", "galley-notes"):
            Path(short, name).mkdir()
        process.run([sys.executable, "-c", code], tmp_path / "log", "x")
        assert (tmp_path / "log").read_text().startswith(f"{short}/galley-{os.getpid()}-")
        assert sorted(os.listdir(short)) == [f"galley-{os.getppid()}-x", "galley-notes"]
    monkeypatch.setattr(process.tempfile, "tempdir", "/tmp/" + 60 * "x")
    process.run([sys.executable, "-c", code], tmp_path / "log", "x")
    assert (tmp_path / "log").read_text().startswith(f"/tmp/galley-{os.getpid()}-")


@pytest.mark.parametrize(
    "said, place",
    [
        ("safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)", "outputs/x"),
        ("OSError: [Errno 28] No space left on device: '/hub/blobs/y'", "/hub/blobs/y"),
        ("OSError: [Errno 122] Disk quota exceeded", "outputs/x"),
    ],
)
def test_a_tool_that_met_a_full_disk_is_no_mystery(tmp_path, monkeypatch, said, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError) as error:
        process.run([sys.executable, "-c", f"print({said!r}); print('  at the end'); raise SystemExit(1)"], "outputs/x/logs/log", "x")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, place)


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
