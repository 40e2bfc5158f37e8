"""The stages that are served: the GGUF by llama-server, started here, and the model of the running Ollama."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from scripts import process, receipt, recipe
from scripts.scoring import weights


def several(ask, prompts, parallel, tick):
    """[ask(p) for p in prompts], so many at a time; the first error ends it."""
    found = []
    with ThreadPoolExecutor(parallel) as pool:
        try:
            for answer in pool.map(ask, prompts):
                found.append(answer)
                tick(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


@contextmanager
def llama(folder, cfg, parallel):
    """llama-server on the GGUF that the Modelfile names. It gets and gives token ids, so that template and special tokens are training's own."""
    import httpx

    modelfile = recipe.read_modelfile(folder / "gguf/Modelfile")
    context, stops = int(modelfile["parameters"].get("num_ctx", [4096])[-1]), modelfile["parameters"].get("stop", [])
    tokenizer = weights.tokenizer_of(folder, cfg)
    with (
        process.llama(
            folder / "gguf" / modelfile["from"], folder / "logs/eval-llama.log", "-c", context * parallel, "-np", parallel
        ) as url,
        httpx.Client(timeout=600) as client,
    ):

        def ask(conversation, chosen):
            ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
            body = {"prompt": ids, "n_predict": chosen["num_predict"], "stop": stops, "return_tokens": True, "cache_prompt": False}
            answer = client.post(f"{url}/completion", json=body | {k: v for k, v in chosen.items() if k != "num_predict"})
            if answer.status_code != 200:
                raise ValueError(f"llama-server: {answer.text[:200]}; the whole log is in {folder}/logs/eval-llama.log")
            answer = answer.json()
            text, _, tokens = weights.spoken(tokenizer, answer["tokens"], weights.ends_of(tokenizer, cfg))
            return answer["content"] if answer["stop_type"] == "word" else text, answer["stop_type"] != "limit", tokens

        yield lambda conversations, chosen, tick: several(lambda c: ask(c, chosen), conversations, parallel, tick), None


def held(name):
    """The URL of the running Ollama, if it holds the very model that `make ollama` made. Raises ValueError with what to do."""
    import httpx

    url, model = process.ollama_url(), recipe.ollama_name(name)
    try:
        models = {m["name"].removesuffix(":latest"): m["digest"] for m in httpx.get(f"{url}/api/tags", timeout=30).json()["models"] or []}
    except (httpx.HTTPError, ValueError, KeyError):
        raise ValueError(
            f"Ollama is not running at {url}; start it with `ollama serve`, or {recipe.command('eval', name)} starts one of its own"
        ) from None
    made = receipt.read(Path("outputs", name, "ollama.json")) or {"figures": {}}
    if model not in models or models[model] != made["figures"].get("digest"):
        has = f"another model {model!r} than was made last" if model in models else f"no model {model!r}"
        raise ValueError(f"Ollama at {url} has {has}; {recipe.command('ollama', name)} creates it")
    return url


@contextmanager
def ollama(name, parallel):
    """The running Ollama, by /api/chat. Streamed, for it cuts replies that repeat themselves with an error, and what was said so far counts."""
    import httpx

    url, model = held(name), recipe.ollama_name(name)
    threads = os.environ.get("OMP_NUM_THREADS", "")  # Ollama's own threads wait for each other at every operation: two on a core that is shared take minutes
    bound = {"num_thread": int(threads)} if threads.isdigit() else {}
    with httpx.Client(timeout=600) as client:

        def ask(conversation, chosen):
            body = {"model": model, "messages": conversation, "options": chosen | bound}
            text, count, last = "", 0, {}
            with client.stream("POST", f"{url}/api/chat", json=body) as answer:
                for line in answer.iter_lines():
                    last = json.loads(line)
                    text, count = text + last.get("message", {}).get("content", ""), count + 1
            if "error" in last and process.CUT not in last["error"]:
                raise ValueError(f"Ollama at {url}: {last['error'][:200]}; `ollama ps` and its log say more")
            return text, last.get("done_reason") == "stop", last.get("eval_count", count)

        yield lambda conversations, chosen, tick: several(lambda c: ask(c, chosen), conversations, parallel, tick), None
