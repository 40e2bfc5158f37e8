"""Ollama's registry: a model that the running Ollama holds, under a name with a namespace, pushed by Ollama itself.

    from scripts.sending import registry
    registry.push(url, "pirate", "user/pirate", bar)

OLLAMA_REGISTRY=host:port names a registry of your own; over plain HTTP only where it is on this machine. What the registry has of the layers is not sent again.
"""

import os
import re

from scripts.sending import hub

OURS = "Galley recipe: "


def destination(to):
    """What Ollama calls it: user/name, with the registry before it where that is not ollama.com's."""
    own = os.environ.get("OLLAMA_REGISTRY")
    return f"{own}/{to}" if own else to


def plain_http():
    """Whether the registry is one on this machine, which has no certificate."""
    return bool(re.match(r"(127\.0\.0\.1|localhost|\[::1\])(:|$)", os.environ.get("OLLAMA_REGISTRY") or ""))


def page(to):
    own = os.environ.get("OLLAMA_REGISTRY")
    return f"{'http' if plain_http() else 'https'}://{own}/{to}" if own else f"https://ollama.com/{to}"


def call(url, path, body=None):
    import httpx

    answer = httpx.post(f"{url}{path}", json=body, timeout=60) if body else httpx.get(f"{url}{path}", timeout=5)
    answer.raise_for_status()
    return answer.json() if answer.content else {}


def faults(url, done, to, family, make):
    """What keeps the proven model from being pushed: [] or sentences. `done` is the receipt of `make ollama`, `make` its command."""
    import httpx

    if not done:
        return [f"no model in Ollama yet: {make}"]
    model, proven = done["figures"]["model"], done["figures"]["digest"]
    try:
        held = {m["name"].removesuffix(":latest"): m["digest"] for m in call(url, "/api/tags")["models"] or []}
        if held.get(model) != proven:
            what = "has another model of that name than the proven one" if model in held else f"has no model {model}"
            return [f"the Ollama at {url} {what}: {make}"]
        target = destination(to)
        if held.get(target, proven) != proven and os.environ.get("FORCE") != "1":
            licence = call(url, "/api/show", {"model": target}).get("license") or ""
            if f"{OURS}{family}" not in licence:
                return [f"the Ollama at {url} already has a model {target} that was not made here; another name, or FORCE=1"]
    except (httpx.HTTPError, ValueError, KeyError):
        return [f'no Ollama runs at {url}; start it with `ollama serve`, or leave it out: WHAT="adapter merged gguf"']
    return []


def layers(url, model):
    """Bytes that the model takes in Ollama."""
    held = call(url, "/api/tags")["models"] or []
    return next((m["size"] for m in held if m["name"].removesuffix(":latest") == model), 0)


def push(url, model, to, bar):
    """Copy it to its full name and push that; the bar counts bytes. Raises ValueError with one line."""
    import httpx
    import ollama

    client, target, before = ollama.Client(host=url), destination(to), {}
    try:
        client.copy(model, target)
        for step in client.push(target, insecure=plain_http(), stream=True):
            if step.digest and step.completed is not None:
                bar.update(step.completed - before.get(step.digest, 0))
                before[step.digest] = step.completed
    except (ollama.ResponseError, httpx.HTTPError, ConnectionError) as error:
        raise ValueError(f"{target}: {told(error)}") from None


def told(error):
    said = hub.clean(error, None)[:300]
    if re.search(r"unauthorized|access denied|\b40[13]\b", said, re.I):
        return f"the registry refuses it ({said}); sign in with `ollama signin`, and push under your own name"
    return f"Ollama could not push it ({said}); run the same command again, the layers that arrived are not sent twice"
