"""The shape of the house: rooms import foundations only, heavy imports wait, nothing shadows a Hugging Face package."""

import ast
import re
import subprocess
import sys
from pathlib import Path

FOUNDATION = {"files", "recipe", "data", "facts", "receipt", "process"}
ROOMS = {p.stem: ast.parse(p.read_text()) for p in Path("scripts").glob("*.py") if p.stem != "__init__"}
HEAVY = {
    "torch",
    "axolotl",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "sklearn",
    "safetensors",
    "gguf",
    "sentencepiece",
    "tokenizers",
    "numpy",
    "matplotlib",
    "PIL",
    "scipy",
}


def ours(tree):
    return {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "scripts" for a in node.names}


def test_rooms_import_foundations_and_foundations_nothing():
    for name, tree in ROOMS.items():
        assert ours(tree) <= (set() if name in FOUNDATION else FOUNDATION), name


def test_the_parts_that_rooms_share_import_the_foundation_only():
    for path in Path("scripts").glob("*/*.py"):
        assert ours(ast.parse(path.read_text())) <= FOUNDATION, path


def test_heavy_imports_wait_for_the_function_that_needs_them():
    for name, tree in ROOMS.items():
        top = {
            (a.name if isinstance(node, ast.Import) else node.module).split(".")[0]
            for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for a in node.names
        }
        assert name in ("cpu", "health", "order") or not top & HEAVY, name  # plug-ins are only ever imported by Axolotl


def test_only_mains_print_or_exit():
    for name, tree in ROOMS.items():
        for f in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            calls = {n.func.id for n in ast.walk(f) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            assert "print" not in calls or f.name in ("main", "command", "say", "build_llama_cpp", "build_ollama"), f"{name}.{f.name}"


def test_every_room_says_what_it_is_for_and_has_a_test():
    for name, tree in ROOMS.items():
        assert ast.get_docstring(tree), name
        assert Path(f"tests/test_{name}.py").exists(), name


def test_no_python_under_datasets():
    assert not list(Path("datasets").rglob("*.py"))


def test_what_only_reads_works_on_the_light_level():
    """help, status, validate and snapshot import nothing that the light level lacks. (Their seconds are in `make bench`.)"""
    names = ["snapshot", "status", "validate", "chat", "serve", "modelfile", "tools", "lint", "plan", "doctor", "track", "diagnose", "report", "compare", "lineage", "explain", "push", "questions", "ask"]
    code = f"import sys; {'; '.join(f'import scripts.{n}' for n in names)}; print(*(m for m in {sorted(HEAVY)} if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
    assert "make demo" in subprocess.run(["make", "help"], capture_output=True, text=True, check=True).stdout


def test_the_readme_names_targets_and_variables_that_exist():
    readme, make = Path("README.md").read_text(), Path("Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", make, re.M))
    assert set(re.findall(r"(?:^|[`$] ?)make ([a-z][\w-]*)", readme, re.M)) <= targets
    assert set(re.findall(r"python -m scripts\.(\w+)", readme)) <= set(ROOMS)
    for variable in set(re.findall(r"\b([A-Z]{3,}(?:_[A-Z]+)*)=", readme)) - {"PATH", "HF_TOKEN"}:
        assert re.search(rf"^{variable} [?:]?=", make, re.M), variable
    assert sys.version_info[:2] == (3, 12)


def test_locked_with_hashes_and_without_addresses():
    for path in Path("requirements").glob("*.txt"):
        text = path.read_text()
        pins = re.findall(r"^[\w.\[\]-]+==", text, re.M)
        assert pins and text.count("--hash=sha256:") >= len(pins) and "://" not in text, path
