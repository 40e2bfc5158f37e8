"""Starting a stage as a terminal would, hitting it, and seeing to it that all of it ends. (Linux: /proc is read.)"""

import os
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from scripts import process

MARK = "GALLEY_FAULT"  # in the environment of all that a stage starts, down to the last worker
CHOICES = ("RECIPE", "SET", "BASE", "GPUS", "QUANT", "NNODES", "NODE_RANK", "MASTER", "ASK", "FORCE", "DEBUG")
MAKES_OWN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
BOUND = 180  # seconds that all has to be gone in once make is: torchrun gives its ranks 30; a worker that was being spawned notices after its imports


def start(goal, recipe, n):
    """`make GOAL` as the leader of a session and a foreground group, with none of the caller's choices, marked as the n-th that this process started.

    What it says goes to the file `said`, its temporary files to `tmp`. Where Python was told to keep no bytecode it keeps it in `pycache`:
    compiling Axolotl anew takes more time than training here.
    """
    ours = {MARK: f"{os.getpid()}-{n}.", "TMPDIR": str(Path("tmp").resolve())}
    if "PYTHONDONTWRITEBYTECODE" in os.environ:
        ours["PYTHONPYCACHEPREFIX"] = str(Path("pycache").resolve())
    env = {k: v for k, v in os.environ.items() if k not in (*CHOICES, *MAKES_OWN, "PYTHONDONTWRITEBYTECODE")}
    with open("said", "w", encoding="utf-8") as said:
        return subprocess.Popen(
            ["make", goal, f"RECIPE={recipe}"],
            env=env | ours | {"CUDA_VISIBLE_DEVICES": ""},  # bitwise the same is what the CPU promises
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(_as_a_terminal_would, os.getpid()),
        )


def _as_a_terminal_would(parent):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job has it ignored, and its children inherit that
    process.die_with_parent(parent)


def stat(pid):
    """(state, parent, session) of a process; raises OSError where there is none."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return fields[0], int(fields[1]), int(fields[3])


def each():
    return [int(p) for p in os.listdir("/proc") if p.isdecimal()]


def living(n=None):
    """{pid: command} of what carries the mark of the n-th start, or of any; what only waits to be reaped does not count."""
    found, mark = {}, f"{MARK}={os.getpid()}-{'' if n is None else f'{n}.'}".encode()
    for pid in each():
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes() and stat(pid)[0] != "Z":
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:100]
        except OSError:
            continue
    return found


def end_all():
    """End by force what this process started and what that started, whatever became of it."""
    until = time.monotonic() + 20
    while (left := living()) and time.monotonic() < until:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def room_of(make):
    """The room that make runs just now: its child, in its session. Make itself where there is none."""
    for pid in each():
        try:
            if stat(pid)[1:] == (make, make) and b"-m\0scripts." in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return make


def strike(make, sign, target):
    """Send a signal to the foreground group (Ctrl-C, a closing terminal), to make, or to the room's python alone."""
    if target == "group":
        os.killpg(make, sign)
    else:
        os.kill(room_of(make) if target == "python" else make, sign)


def gone(child, n, seconds):
    """Wait until all of the n-th start has ended by itself. Returns what did not: [] or one sentence.

    While make lives it may finish what it waits for (on SIGINT that it alone got, it does): thrice `seconds`. After it, BOUND.
    """
    until, waiting = time.monotonic() + 3 * seconds + 120, True
    while left := living(n) or living(n):  # asked twice: a process that is just being started shows no environment
        if waiting and child.poll() is not None:
            waiting, until = False, time.monotonic() + BOUND
        if time.monotonic() > until:
            end_all()
            child.wait()
            return [f"still there {BOUND} s later: {'; '.join(left.values())}"]
        time.sleep(0.02)
    child.wait()
    return []


def listing(*folders):
    """The names in these folders, temporary ones without their maker."""
    return {re.sub(r"\.new\..*", ".new", p.name) for d in folders if d.is_dir() for p in d.iterdir()}


def watch(child, folders, seconds=float("inf"), event=None):
    """Wait for a moment, for an event (a name that comes or goes: `+adapter`, `-.merge`), or for the end. Returns the events so far."""
    before, came, began = listing(*folders), [], time.monotonic()
    while child.poll() is None and time.monotonic() - began < seconds and event not in came:
        time.sleep(0.002)
        now = listing(*folders)
        came += [f"+{n}" for n in sorted(now - before)] + [f"-{n}" for n in sorted(before - now)]
        before = now
    return came
