"""Create the model in Ollama and prove that it is prompted as it was trained.

    python -m scripts.ollama pirate-nano          # → the model `pirate-nano`, receipt outputs/pirate-nano/ollama.json

The model is made under a name of its own, proven there, and only then copied over the name that people run. Proven: for each conversation of a matrix,
the prompt that the server renders equals the training template's, and has as many tokens; and replies end by themselves.
"""

import os
import subprocess
import sys
from pathlib import Path

from scripts import data, files, process, receipt, recipe

TESTED = (0, 24)  # the oldest Ollama this was tried with
MATRIX = [  # system message (None: none, the Modelfile's own applies), then user and assistant by turns
    (None, ["Hello"]),
    ("", ["Hello"]),
    ("You are a helpful assistant.", ["Hello"]),
    ("Answer in one word.", ["Hello", "Aye.", "And now?"]),
    (None, ["What is 2 + 2?", "Four, matey.", "And 3 + 3?", "Six.", "Sure?"]),
    (None, ["  leading and trailing blanks  "]),
    (" a system of blanks ", ["\n\nlines\n\n"]),
    (None, ["naïve café, Ελληνικά, 日本語, 🏴‍☠️ e\u0301"]),
    (None, ["def f():\n\treturn {'a': \"b\"}  # {{ .System }} {% x %} <b>&amp;</b>"]),
    (None, ["a", "b ", " c", " d ", "e\n"]),
]
ASKED = 5  # held-out prompts whose replies must end; at least half, since a stop that does not work ends none
LONGEST = 400  # tokens of such a reply


def call(url, path, body):
    import httpx

    answer = httpx.post(f"{url}{path}", json=body, timeout=600)
    if answer.status_code != 200:
        raise ValueError(f"Ollama at {url}: {path} answers {answer.status_code}: {answer.text[:200]}")
    return answer.json() if answer.content else {}


def refuse_server(url):
    """Not running, or too old: one line."""
    import httpx

    try:
        version = httpx.get(f"{url}/api/version", timeout=5).json()["version"]
    except (httpx.HTTPError, ValueError, KeyError):
        how = (
            f"start it with `{process.ollama_binary()} serve`"
            if process.ollama_binary()
            else "install it (ollama.com), or `make ollama-server` where there is Go"
        )
        raise ValueError(f"Ollama is not running at {url}; {how}") from None
    numbers = tuple(int(n) for n in version.split("-")[0].split(".")[:2])
    if (0, 0) < numbers < TESTED:  # 0.0.0 is a server that somebody built without naming its version
        raise ValueError(f"Ollama {version} at {url} is too old: {'.'.join(map(str, TESTED))} is the oldest tried; update it")
    return version


def standing(url):
    """{model name: digest} of what the server holds."""
    import httpx

    return {m["name"].removesuffix(":latest"): m["digest"] for m in httpx.get(f"{url}/api/tags", timeout=30).json().get("models") or []}


def refuse_foreign(url, model, family):
    """A model of that name that this project didn't make stays, unless FORCE=1."""
    if model in standing(url) and os.environ.get("FORCE") != "1":
        licence = call(url, "/api/show", {"model": model}).get("license") or ""
        if f"Galley recipe: {family}" not in licence:
            raise ValueError(
                f"Ollama at {url} already has a model {model!r} that was not made here; keep it with `ollama cp {model} another-name`, or overwrite it with FORCE=1"
            )


def create(url, model, modelfile, log):
    binary = process.ollama_binary()
    if not binary:
        raise ValueError("no `ollama` on PATH to create the model with; install it (ollama.com), or `make ollama-server` where there is Go")
    process.run([binary, "create", model, "-f", modelfile], log, f"ollama create {model}", env={"OLLAMA_HOST": url})


def messages(system, turns):
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    return ([] if system is None else [{"role": "system", "content": system}]) + said


def prove_prompts(url, model, tokenizer, system):
    """Rendered text and token count of every conversation of the matrix, against the template that training saved."""
    bos = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""  # the server adds what the tokenizer adds
    for own, turns in MATRIX:
        sent = messages(own, turns)
        trained = tokenizer.apply_chat_template(messages(system if own is None else own, turns), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(trained, add_special_tokens=False)["input_ids"]
        seen = call(url, "/api/chat", {"model": model, "messages": sent, "stream": False, "_debug_render_only": True})["_debug_info"][
            "rendered_template"
        ]
        if bos + seen != trained:
            raise ValueError(
                f"Ollama renders {seen!r}, training {trained.removeprefix(bos)!r}: the Modelfile's TEMPLATE and the recipe's chat template differ"
            )
        counted = call(url, "/api/chat", {"model": model, "messages": sent, "stream": False, "options": {"num_predict": 1}})[
            "prompt_eval_count"
        ]
        if counted != len(ids):
            raise ValueError(
                f"Ollama reads {counted} tokens where training has {len(ids)}, for {turns!r}: a doubled or missing BOS, or another tokenizer"
            )
    return len(MATRIX)


def ends(url, model, row):
    """Whether the reply to a held-out prompt ends by itself. One that says a token on and on does not: Ollama cuts it, with an error or without a reason."""
    asked = {"messages": data.prompt(row), "stream": False, "options": {"num_predict": LONGEST, "seed": 1}}
    try:
        return call(url, "/api/chat", {"model": model, **asked}).get("done_reason") == "stop"
    except ValueError as error:
        if process.CUT in str(error):
            return False
        raise


def prove_ends(url, model, rows):
    """How many of a few held-out prompts are answered with an end of the reply's own."""
    ended = sum(ends(url, model, row) for row in rows)
    if 2 * ended < len(rows):
        raise ValueError(
            f"{ended} of {len(rows)} replies ended by themselves within {LONGEST} tokens; check eot_tokens, train_on_eot and the Modelfile's stops"
        )
    return ended


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.ollama NAME", file=sys.stderr)
        return 2
    name, folder, url = argv[0], Path("outputs", argv[0]), process.ollama_url()
    model, modelfile = recipe.ollama_name(name), folder / "gguf/Modelfile"
    version = refuse_server(url)
    done = receipt.read(folder / "ollama.json")
    made_from = receipt.read(folder / "modelfile.json")
    if done and done["inputs"] == made_from["outputs"] | made_from["inputs"] and standing(url).get(model) == done["figures"]["digest"]:
        print(f"ollama      {model} stands: ollama run {model}")
        return 0
    refuse_foreign(url, model, recipe.family(name))
    trial = f"{model.replace(':', '-')}:unproven"
    create(url, trial, modelfile, folder / "logs/ollama-create.log")
    try:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoTokenizer

        cfg = recipe.read(folder / "recipe.yml")
        tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
        rows = data.read((recipe.datasets(cfg)[1] or recipe.datasets(cfg)[0])[0])[:ASKED]
        figures = {
            "server": version,
            "prompts_proven": prove_prompts(url, trial, tokenizer, recipe.read_modelfile(modelfile).get("system")),
            "asked": len(rows),
            "ended": prove_ends(url, trial, rows),
        }
        (folder / "ollama.json").unlink(missing_ok=True)  # no receipt outlives what it vouches for
        call(url, "/api/copy", {"source": trial, "destination": model})
    finally:
        subprocess.run([process.ollama_binary(), "rm", trial], env={**os.environ, "OLLAMA_HOST": url}, capture_output=True)
    figures |= {"model": model, "digest": standing(url)[model]}
    receipt.write(folder / "ollama.json", [Path(p) for p in [*made_from["outputs"], *made_from["inputs"]]], [], figures, files.sha256)
    print(
        f"ollama      {model}: {figures['prompts_proven']} prompts as in training, {figures['ended']} of {figures['asked']} replies end; talk to it: ollama run {model}"
    )
    return 0


if __name__ == "__main__":
    process.command(main)
