"""What this machine can do: each tool and part that some step needs, what was found, and the command that mends it.

    python -m scripts.doctor                  # exit 1 only if something is missing that every recipe needs
    python -m scripts.doctor pirate --json    # ends with a verdict; exit 1 if this recipe cannot run here

`missing` stops what was asked about, `warning` does not. Nothing heavy is imported, and all questions go out at once, each with a limit.
A token is never printed, nor the text of an error that might quote one.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module, metadata
from pathlib import Path

from scripts import facts, files, process, recipe

LIMIT = 2  # seconds for an answer
OLDEST = (0, 24)  # Ollama: as in scripts/ollama.py
DRIVER = 580  # the oldest NVIDIA driver for CUDA 13, which requirements/train.txt brings
DISK = 6  # bytes a parameter that make writes: merged and F16 two each, Q8_0 and Q4_K_M 1.7, the checkpoints; the base is 2 more
COLOUR = {"ok": "\033[32m", "warning": "\033[33m", "missing": "\033[31m"}
TOOLS = {"make": "apt install make", "g++": "apt install g++ (Fedora: dnf install gcc-c++)", "ninja": "make setup"}


def row(what, found, fault=None, mend="", how="missing"):
    """(what, status, found, mend) of one line: `found` where there is no fault."""
    return (what, how, fault, mend) if fault else (what, "ok", found, "")


def ask(*cmd, limit=LIMIT, **env):
    """(what a command printed, None), or ("", why not)."""
    tool = Path(cmd[0]).name
    try:
        done = subprocess.run(cmd, capture_output=True, text=True, errors="replace", timeout=limit, env={**os.environ, **env})
    except FileNotFoundError:
        return "", f"{tool} is not on PATH"
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{tool} fails: {getattr(error, 'strerror', None) or f'no answer within {limit} s'}"
    said = (done.stdout + done.stderr).strip() or f"exit {done.returncode}"
    return ("", f"{tool} fails: {said.splitlines()[0][:160]}") if done.returncode else (said, None)


def fetch(method, url, token=None):
    """(status, text) of an HTTP answer, or (0, ""). In a thread of its own: looking up a host's name knows no limit."""
    import httpx

    def question():
        with suppress(httpx.HTTPError, httpx.InvalidURL, ValueError):
            answer.append(httpx.request(method, url, headers={"authorization": f"Bearer {token}"} if token else {}, timeout=LIMIT))

    answer, thread = [], threading.Thread(target=question, daemon=True)
    thread.start()
    thread.join(LIMIT + 1)
    return (answer[0].status_code, answer[0].text) if answer else (0, "")


def numbers(version):
    """`0.33.0-rc2` → (0, 33); () where there is nothing to read."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def lock_row(what, level):
    """What is installed against what requirements/LEVEL.txt pins."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lock = Path(f"requirements/{level}.txt")
    pins = [Requirement(line) for line in re.findall(r"^[\w.-]+(?:\[.*?\])?==[^\\\n]+", lock.read_text(encoding="utf-8"), re.M)]
    pins = {canonicalize_name(p.name): p.specifier for p in pins if not p.marker or p.marker.evaluate()}
    have = {canonicalize_name(d.name): d.version for d in metadata.distributions()}
    wrong = [n for n, pin in pins.items() if n not in have or not pin.contains(have[n], prereleases=True)]
    first = "; ".join(f"{n} {have.get(n, 'missing')} ({pins[n]})" for n in wrong[:3]) + "; …" * (len(wrong) > 3)
    fault = wrong and f"{len(wrong)} of {len(pins)} differ from {lock}: {first}"
    return row(what, f"{len(pins)}, as in {lock}", fault, f"rm .venv/{level} && make setup", "missing" if pins.keys() - have else "warning")


def local_rows():
    version, fits = platform.python_version(), sys.version_info[:2] == (3, 12)
    yield row("Python", version, not fits and f"{version}; 3.12 is needed", "rm -r .venv && make setup")
    yield lock_row("packages", "light")
    later = "training", "warning", "not installed; make does it when first needed (7 GB)", "make setup"
    yield lock_row("training", "train") if Path(".venv/train").exists() else later
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for tool, mend in TOOLS.items():
        said, why = ask(shutil.which(tool, path=beside) or tool, "--version")
        yield row(tool, said.split("\n")[0], why, mend, "warning" if tool == "ninja" else "missing")
    root = Path(os.environ.get("LLAMA_CPP_DIR") or "-")
    try:
        server = [process.llama_cpp(tool) for tool in ("convert_hf_to_gguf.py", "llama-quantize", "llama-server")][-1]
        said, why = ask(server, "--version")
        mend = f"rm -r {root} && make setup" if root.is_relative_to(files.CACHE) else "build it anew"
        version = (re.search(r"version: (\S+)", said) or ["", "built"])[1]
        yield row("llama.cpp", f"{version} in {root}", why, mend)
    except ValueError as error:  # make builds its own when first needed, but never in a folder of yours
        how = "warning" if str(root) == "-" or root.is_relative_to(files.CACHE) else "missing"
        yield "llama.cpp", how, str(error).partition("; ")[0], "make setup, or set LLAMA_CPP_DIR to a built one"


def nvidia():
    """(the GPUs that this process may use, the driver's version, why there are none)."""
    keys = ["index", "uuid", "driver_version", "name", "memory.total", "memory.free", "compute_cap"]
    said, why = ask("nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits", limit=2 * LIMIT)
    gpus = [dict(zip(keys, map(str.strip, line.split(",")))) for line in said.splitlines() if line.count(",") == len(keys) - 1]
    driver, visible = gpus[0]["driver_version"] if gpus else "", os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and visible is not None:
        why = f"CUDA_VISIBLE_DEVICES={visible} hides {len(gpus)}"
        gpus = [g for g in gpus if {g["index"], g["uuid"]} & set(visible.replace(" ", "").split(","))]
    for g in gpus:  # [N/A] where a GPU shares the machine's memory
        total, free, g["capability"] = (float(g[k]) if re.fullmatch(r"[\d.]+", g[k]) else float("inf") for k in keys[4:])
        g["total"], g["free"] = total / 1024, free / 1024
    return gpus, driver, why or "nvidia-smi lists none"


def gpu_rows(name, cfg):
    (gpus, driver, why), kind = nvidia(), recipe.hardware(cfg)[0]
    if driver:
        old = numbers(driver) < (DRIVER,) and f"{driver}; CUDA 13 needs {DRIVER} or newer"
        yield row("NVIDIA driver", driver, old, "install a newer driver from NVIDIA", "missing" if kind else "warning")
    for g in gpus:
        yield row(f"GPU {g['index']}", f"{g['name']}, {g['free']:.0f} of {g['total']:.0f} GiB free, compute capability {g['capability']}")
    if not gpus:
        mend = "unset CUDA_VISIBLE_DEVICES" if driver else "install NVIDIA's driver, if there is a GPU"
        yield row("GPUs", f"none, and {name} needs none", (kind or not name) and f"none: {why}", mend, "warning")
    if len(gpus) > 1:
        said, why = ask("nvidia-smi", "topo", "-p2p", "r")
        links = {link for line in re.findall(r"^\s*GPU\d+\s+((?!GPU).*)", said, re.M) for link in line.split()} - {"X", "OK"}
        slow = links and f"not between all ({', '.join(sorted(links))}): their data goes through the host, slower"
        yield row("peer access", "between all", why or slow, "`nvidia-smi topo -m` shows the wiring", "warning")
    if kind:
        yield from fit_rows(name, cfg, gpus)


def fit_rows(name, cfg, gpus):
    """Whether a recipe that was written for GPUs fits on these; at the very least its weights must, spread over all (ZeRO-3, FSDP)."""
    kind, nano, here = recipe.hardware(cfg)[0], f"{recipe.family(name)}-nano", len(gpus)
    wanted, ranks = recipe.ranks(cfg), int(cfg.get("micro_batch_size") or 1) * int(os.environ.get("NNODES") or 1)
    fewer = next((n for n in range(here, 0, -1) if recipe.global_batch(cfg) % (ranks * n) == 0), 0)
    other = f"make train RECIPE={nano}" if nano in recipe.names() else "take another machine"
    few = here < wanted and f"{wanted} × {kind} needed, {here} GPU{'s' * (here != 1)} here"
    yield row("GPU count", f"{wanted} needed, {here} here", few, f"make train RECIPE={name} GPUS={fewer}" if fewer else other)
    least = parameters(cfg) * (0.7 if cfg.get("load_in_4bit") else 1.1 if cfg.get("load_in_8bit") else 2) / facts.GIB / wanted
    oldest, fullest = (min(gpus[:wanted], key=lambda g: g[key], default=None) for key in ("capability", "free"))
    if oldest and cfg.get("bf16") is True and oldest["capability"] < 8:
        yield "bf16", "missing", f"bf16 needs compute capability 8.0, GPU {oldest['index']} has {oldest['capability']}", other
    if fullest and fullest["free"] < least:
        why = f"GPU {fullest['index']} has {fullest['free']:.1f} GiB free, its share of the weights takes {least:.1f}"
        yield "GPU memory", "missing", why, f"end what holds it (`nvidia-smi` shows who), or {other}"


def parameters(cfg):
    base = facts.base(cfg.get("base_model"))
    return facts.parameters(base) if base.get("hidden") else 0


def cached(base):
    """Whether the hub's cache holds the model: its config, and weights beside it."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(base, "config.json")
    return isinstance(config, str) and any(Path(config).parent.glob("*.safetensors"))


def machine_rows(name, cfg):
    a_weight = DISK if not cfg or recipe.is_local(cfg) or cached(cfg["base_model"]) else DISK + 2
    made = int((ask("du", "-sk", f"outputs/{name}")[0] or "0").split()[0]) * 1024  # 0 where nothing is made yet
    setup = 1 if Path(".venv/train").exists() else 10  # packages, llama.cpp
    free, need = shutil.disk_usage(".").free / facts.GIB, setup + (parameters(cfg) * a_weight - made) / facts.GIB
    full = free < need and f"{int(free)} GiB of disk free, about {int(need) + 1} needed"
    yield row("disk", f"{free:.0f} GiB free", full, "make clean RECIPE=… (`make status` lists them)")
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M))
    (free, total), need = (int(memory[k]) / 2**20 for k in ("MemAvailable", "MemTotal")), max(3, 4 * parameters(cfg) / facts.GIB)
    low = free < need and f"{free:.0f} of {total:.0f} GiB free; the F16 check wants {need:.0f}, here or on a GPU"
    yield row("memory", f"{free:.0f} of {total:.0f} GiB free", low, "end what else runs", "warning")


def ollama_rows():
    binary, url, version, why = process.ollama_binary(), process.ollama_url(), "", "not found; the demo ends in llama-server instead"
    if binary:
        said, why = ask(binary, "--version", OLLAMA_HOST="127.0.0.1:1")  # of the binary, whatever server may run
        version = (re.search(r"version is (\S+)", said) or ["", "?"])[1]
        engine = Path(binary).resolve().parent.parent / "lib/ollama/llama-server"
        why = why or (numbers(version) >= (0, 30) and not engine.is_file() and f"{version}, and no {engine}, which it needs")
    yield row("Ollama", f"{version}: {binary}", why, "install it (ollama.com), or `make ollama-server` where there is Go", "warning")
    served = (re.search(r'"version":\s*"([^"]+)"', fetch("GET", f"{url}/api/version")[1]) or ["", ""])[1]
    old = (0, 0) < numbers(served) < OLDEST and f"{served} at {url}; {'.'.join(map(str, OLDEST))} is the oldest tried"
    mend = "update it (ollama.com)" if served else f"{binary or 'ollama'} serve, in another terminal"
    yield row("Ollama server", f"{served} at {url}", old if served else f"not running at {url}", mend, "warning")
    if numbers(served or version) > (0, 0):
        jinja = "a llama-server beside it: TEMPLATE, or the GGUF's own Jinja where that mentions tools"
        rule = jinja if numbers(served or version) >= (0, 30) else "the engine inside: the Modelfile's TEMPLATE"
        yield row("templates", f"{served or version}, {rule}")


def hub_rows(cfg):
    from huggingface_hub import constants, get_token

    token, base, offline = get_token(), cfg.get("base_model"), constants.HF_HUB_OFFLINE
    yield row("Hub token", "there is one", not token and "none; gated bases need one", "export HF_TOKEN=…", "warning")
    if cfg and recipe.is_local(cfg):
        there = base.startswith("outputs/nano/") or Path(base, "config.json").is_file()  # make makes the nano base
        yield row("base", base, not there and f"{base}: no model there", "mend BASE or `base_model`")
    elif cfg and cached(base):
        yield row("base", f"{base}, in the hub's cache")
    elif cfg:
        code = 0 if offline else fetch("HEAD", f"{constants.ENDPOINT}/{base}/resolve/main/config.json", token)[0]
        if 200 <= code < 400:
            yield row("base", f"{base} may be read")
        elif code in (401, 403, 404):
            why = f"{base}: the hub does not give it {'for this token' if token else 'without a token'} ({code})"
            yield "base", "missing", why, f"accept its licence at {constants.ENDPOINT}/{base} and export HF_TOKEN=…, or BASE=an open mirror"
        else:
            why = "HF_HUB_OFFLINE is set" if offline else f"it answers {code}" if code else "no answer"
            yield "Hub", "warning", f"the hub is out of reach: {why}", "unset HF_HUB_OFFLINE" if offline else "connect, or set HTTPS_PROXY"
            yield "base", "missing", f"{base} is not in the hub's cache", "connect, or BASE=a/local/folder"


def say(rows):
    colour, plain = (COLOUR, "\033[0m") if sys.stdout.isatty() else ({}, "")
    width = max(len(what) for what, *_ in rows)
    for what, status, found, mend in rows:
        print(f"{what:<{width}}  {colour.get(status, '')}{status:<7}{plain}  {found}{f' → {mend}' if mend else ''}")


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.doctor", description="what this machine can do")
    parser.add_argument("name", nargs="?", help="a recipe: can it run here?")
    parser.add_argument("--json", action="store_true", help="a list of {what, status, found, mend}")
    args = parser.parse_args(argv)
    name, cfg = args.name, recipe.load(args.name) if args.name else {}
    if name:
        recipe.accumulation(cfg, recipe.ranks(cfg), int(os.environ.get("NNODES") or 1))
        kept = Path("outputs", name, "base")  # as in scripts/snapshot.py
        base = os.environ.get("BASE") or (kept.read_text().strip() if kept.is_file() else "recipe")
        cfg["base_model"] = cfg["base_model"] if base == "recipe" else base
    checks = [local_rows, lambda: gpu_rows(name, cfg), lambda: machine_rows(name, cfg), ollama_rows, lambda: hub_rows(cfg)]
    try:  # before the threads: two that import the same packages at once can lock each other out
        [import_module(package) for package in ("httpx", "httpcore", "huggingface_hub.file_download", "packaging.utils")]
    except ImportError as error:
        raise ValueError(f"doctor itself needs the light packages: {error}; `rm .venv/light && make setup` brings them") from None
    with ThreadPoolExecutor() as pool:  # side by side: the slowest alone decides how long it takes
        rows = [found for some in pool.map(lambda check: list(check()), checks) for found in some]
    against = "; ".join(found for _, status, found, _ in rows if status == "missing")
    if name:
        rows.append(row(name, "can run here", against and f"cannot run here: {against}"))
    print(json.dumps([dict(zip(("what", "status", "found", "mend"), r)) for r in rows], indent=2)) if args.json else say(rows)
    return int(bool(against))


if __name__ == "__main__":
    process.command(main)
