"""Talk to a recipe's model in the terminal: through Ollama where it runs and has the model, else through llama-server on the GGUF.

python -m scripts.chat pirate-nano                     # a conversation; an empty line or Ctrl-D ends it
python -m scripts.chat pirate-nano --ask "Hello" …     # these questions, one conversation each
"""

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path

from scripts import process, receipt, recipe

SEED = 1  # the same question gets the same answer


@contextmanager
def speaker(name):
    """Yield (what answers, a function from messages to pieces of the reply)."""
    import httpx

    folder, model, url = Path("outputs", name), recipe.ollama_name(name), process.ollama_url()
    try:
        held = {m["name"].removesuffix(":latest") for m in httpx.get(f"{url}/api/tags", timeout=2).json()["models"]}
    except (httpx.HTTPError, ValueError, KeyError):
        held = set()
    if model in held:
        import ollama

        client = ollama.Client(url)
        yield (
            f"Ollama, model {model}",
            lambda messages: (
                part.message.content for part in client.chat(model, messages, stream=True, options={"seed": SEED, "num_predict": 512})
            ),
        )
        return
    made = receipt.read(folder / "modelfile.json")
    if not made:
        raise ValueError(f"{folder}: no model to talk to yet; `make modelfile RECIPE={name}` makes it")
    found = recipe.read_modelfile(folder / "gguf/Modelfile")
    system = [{"role": "system", "content": found["system"]}] if found.get("system") else []
    with process.llama(
        folder / "gguf" / found["from"], folder / "logs/chat-process.log", "-c", found["parameters"]["num_ctx"][0], "--jinja"
    ) as url:
        yield (
            f"llama-server, {found['from']}",
            lambda messages: stream(
                f"{url}/v1/chat/completions",
                {
                    "messages": system + messages,
                    "stream": True,
                    "seed": SEED,
                    "max_tokens": 512,
                    "temperature": float(found["parameters"]["temperature"][0]),
                },
            ),
        )


def stream(url, body):
    import httpx

    with httpx.stream("POST", url, json=body, timeout=600) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])["choices"][0]["delta"].get("content") or ""


def say(reply):
    """Print a reply as it comes; return it whole."""
    pieces = []
    for piece in reply:
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.chat", description="talk to a recipe's model")
    parser.add_argument("name")
    parser.add_argument("--ask", nargs="+", metavar="QUESTION", help="ask these, one conversation each, and end")
    args = parser.parse_args(argv)
    with speaker(args.name) as (who, reply):
        print(f"chat        {who}\n")
        for question in args.ask or []:
            print(f">>> {question}")
            say(reply([{"role": "user", "content": question}]))
            print()
        messages = []
        while not args.ask:
            try:
                question = input(">>> " if sys.stdin.isatty() else "")
            except EOFError:
                break
            if not question.strip():
                break
            messages.append({"role": "user", "content": question.strip()})
            messages.append({"role": "assistant", "content": say(reply(messages))})
    return 0


if __name__ == "__main__":
    process.command(main)
