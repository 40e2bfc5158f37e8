"""Ask two adapters on one base: the router picks one by the question, the validator checks the form of the reply, and what is not valid is asked again.

    python -m scripts.ask mcq-nano saq-nano "What is the capital of Norway?" …      # or: make ask RECIPE=mcq-nano Q="…"

Options in any usual form make a multiple-choice question; it is answered by the option's own letter (or number). On stdout the reply alone, on stderr which
adapter gave it and in how many tries. One llama-server holds the base once, and both adapters, as scripts/lora.py has proven them; a request names its own.
"""

import argparse
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path

from scripts import process, receipt, recipe
from scripts.scoring import backends, checks

LETTERS = "ABCDEFGH"
LABELS = [LETTERS, LETTERS.lower(), "12345678"]
MARKS = [(r"\(", r"\)"), (r"\[", r"\]"), ("", r"\)"), ("", r"\."), ("", ":"), ("", r"[ \t]+[-–—](?=\s)")]  # what stands around a label
LINE = r"(?m)^[ \t]*(?:[-*•][ \t]+)?(?:(?i:option|choice)[ \t]+)?"  # an option has a line to itself, or …
INLINE = r"(?<!\S)"  # … follows another in the same one
TAIL = re.compile(r"\n\s*\n|\n\s*(?i:(?:your )?answer|reply|choose|pick|select)\b")  # what is said behind the last option
JOINT = re.compile(r"(?:^|[\s,;]+)(?:or|and)?[\s,;]*$")  # between two options
CHOICE = re.compile(r"\?|\b(?:which|choose|pick|select|option)\b", re.IGNORECASE)
ALONE = re.compile(
    r"(?<![\w.'])(?!A\s+(?!or\b|and\b|nor\b|is\b|because\b)[a-z])([A-H])(?!['\w+#]|-\w|\.\w)"
)  # a letter for itself, no article
LABEL = re.compile(r"\([A-H]\)|[A-H][).:]", re.IGNORECASE)  # of an option; `B` alone may be an answer
SENTENCES = re.compile(r"[^\W_A-Z]{3}[.!?]+\s+(?=[A-Z])|\n")  # where another begins; `Mrs. Smith` is none
WORDS = 30  # of a short answer


# --- the router ---
def options(question):
    """(question proper, labels, texts) of a multiple-choice question, or None where there are no options."""
    for place in (LINE, INLINE):
        for before, after in MARKS[: None if place is LINE else 4]:
            for labels in LABELS:
                marks = run(re.finditer(rf"{place}\**{before}([{labels}]){after}\**[ \t]*(?=\S)", question), labels)
                if (found := parts(question, marks)) and sure(question, marks, place, after):
                    if len(marks) == len(labels) and re.search(rf"(?:^|\s){before}[Ii9]{after}", found[2][-1]):
                        raise ValueError(f"more than {len(labels)} options: {question.split(chr(10))[0][:60]}; ask with two to eight")
                    return found
    return None


def run(marks, labels):
    """The longest run of marks with the first, the second, the third label …"""
    best, now = [], []
    for mark in marks:
        now = [*now, mark] if mark[1] == labels[len(now) % len(labels)] and len(now) < len(labels) else [mark] * (mark[1] == labels[0])
        best = max(best, now, key=len)
    return best


def parts(question, marks):
    """The question cut at the marks; None where a part is empty."""
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    texts = [question[mark.end() : end] for mark, end in zip(marks, ends)]
    texts[-1:] = [TAIL.split(text)[0] for text in texts[-1:]]
    texts = [JOINT.sub("", " ".join(text.split())) for text in texts]
    stem = question[: marks[0].start()].strip() if len(marks) > 1 else ""
    if stem and "?" not in stem and texts[-1].endswith("?"):  # which is larger, A) the sun or B) the moon?
        stem, texts[-1] = stem.rstrip(" ,:;-") + "?", texts[-1].rstrip(" ?")
    return (stem, [mark[1] for mark in marks], texts) if stem and all(texts) else None


def sure(question, marks, place, after):
    """Whether these are options: not two initials, not a list of steps, not `the difference between (a) this and (b) that`."""
    stem = question[: marks[0].start()].strip()
    listed = stem[-1] not in "?:.!,;" and re.search(r"\band\W*$", question[: marks[1].start()])
    few = place is INLINE and len(marks) < 3 and (after == r"\." or listed)
    return not few and (marks[0][1] != "1" or bool(CHOICE.search(stem)))


def asked(question):
    """(what the adapter is asked, the options or None): a multiple-choice question in the form of the training rows, else the question as it is."""
    found = options(question)
    if not found:
        return question.strip(), None
    stem, labels, texts = found
    return "\n".join([stem, *(f"{letter}) {text}" for letter, text in zip(LETTERS, texts))]), list(zip(LETTERS, labels, texts))


# --- the validator ---
def fault(reply, ended, choices=None):
    """What is wrong with the form of a reply, in a few words, or None. `choices`: (letter, label, text) of each option, None for a short answer."""
    if not reply.strip():
        return "empty"
    if not checks.clean(reply, None):
        return "shows the prompt's machinery"
    if not ended:
        return "does not end"
    if choices is None:
        words = len(reply.split())
        if LABEL.fullmatch(reply.strip()):
            return "an option's letter, and there are no options"
        return f"{words} words" if words > WORDS else "more than a sentence" if SENTENCES.search(reply.strip()) else None
    said, texts = checks.letter(reply), {letter: text for letter, _, text in choices}
    if said not in texts:
        return f"{said} is no option" if said else "no single letter"
    others = {*ALONE.findall(re.sub(re.escape(texts[said]), "", reply, flags=re.IGNORECASE))} & {*texts} - {said}
    return "several letters" if others else None


def shown(reply, choices):
    """A valid reply as the question wants it: the option's own label, else what was said."""
    return {letter: label for letter, label, _ in choices}[checks.letter(reply)] if choices else reply.strip()


# --- the adapters ---
def served(names):
    """(GGUF of the base, [GGUF of each adapter]). Raises ValueError where one is not made, or where they stand on different bases."""
    made = [receipt.read(Path("outputs", name, "lora.json")) for name in names]
    for name, found in zip(names, made):
        if not found:
            raise ValueError(f"outputs/{name}: no lora.json, so there is nothing to ask; {recipe.command('ask', name)} makes it")
    bases = {found["figures"]["base"] for found in made}
    if len(bases) > 1:
        raise ValueError(
            f"{' and '.join(names)} stand on different bases: {', '.join(sorted(bases))}; give both the same base_model (or BASE=), template and quant types"
        )
    kinds = recipe.read(Path("outputs", names[0], "export.yml")).get("quantize") or ["F16"]
    base = Path(bases.pop(), f"{os.environ.get('QUANT') or kinds[0]}.gguf")
    files = [base, *(Path("outputs", name, "lora/adapter.gguf") for name in names)]
    for path in files:
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in path.parent.glob("*.gguf"))) or "nothing"
            raise ValueError(f"{path}: is not there ({there} is); take another QUANT=, or `rm outputs/*/lora.json` and ask again")
    return files[0], files[1:]


@contextmanager
def opened(names, stop):
    """Yield say(which adapter, question, chosen) → (reply, whether it ended by itself). `stop`: whether the Modelfiles' stops end a reply too."""
    import httpx

    base, adapters = served(names)
    found = [recipe.read_modelfile(recipe.modelfile(name)) for name in names]
    loras = [part for path in adapters for part in ("--lora", f'"{path}"')]  # in quotes, for a variant's name may hold a comma
    context = max(int(m["parameters"].get("num_ctx", [2048])[-1]) for m in found)
    with (
        process.llama(base, Path("outputs", names[0], "logs/ask.log"), *loras, "--special", "-c", context, "-np", 1) as url,
        httpx.Client(base_url=url, timeout=600) as client,
    ):

        def call(path, body):
            answer = client.post(path, json=body)
            if answer.status_code != 200:
                raise ValueError(f"llama-server: {answer.text[:200]}; the whole log is in outputs/{names[0]}/logs/ask.log")
            return answer.json()

        def say(which, question, chosen):
            system = [{"role": "system", "content": found[which]["system"]}] if found[which].get("system") else []
            prompt = call("/apply-template", {"messages": [*system, {"role": "user", "content": question}]})["prompt"]
            scales = [{"id": n, "scale": float(n == which)} for n in range(len(names))]
            stops = found[which]["parameters"].get("stop", []) if stop else []
            own = {"prompt": prompt, "n_predict": chosen["num_predict"], "lora": scales, "stop": stops, "return_tokens": True}
            own["cache_prompt"] = False  # the server's cache of prompts does not ask which adapter they were read by
            answer = call("/completion", own | {k: v for k, v in chosen.items() if k != "num_predict"})
            text = answer["content"]
            if answer["stop_type"] == "eos":  # special tokens are spelt out, for in a reply they are a fault; the one that ends it is none
                text = call("/detokenize", {"tokens": answer["tokens"][:-1]})["content"]
            return text.strip(), answer["stop_type"] != "limit"

        yield say


def answer(say, names, question, args, tell):
    """(reply, which adapter, tries): the first reply of a valid form. Raises ValueError after the last try; with --raw the first reply, as it is."""
    prompt, choices = asked(question)
    which = int(choices is None)
    found = recipe.read_modelfile(recipe.modelfile(names[which]))
    for n in range(1 if args.raw else args.retries + 1):
        drawn = {k: v for k, v in (("temperature", args.temperature), ("top_p", args.top_p)) if v is not None}
        chosen = backends.options(found, args.sample or bool(drawn) or n > 0) | drawn | {"num_predict": args.tokens, "seed": args.seed + n}
        reply, ended = say(which, prompt, chosen)
        what = None if args.raw else fault(reply, ended, choices)
        if not what:
            return reply if args.raw else shown(reply, choices), which, n + 1
        tell(f"ask         {names[which]}, try {n + 1}: {reply[:60]!r}: {what}")
    tries = f"{n + 1} {'tries' if n else 'try'}"
    raise ValueError(
        f"{names[which]}: no valid reply in {tries}, the last: {what}; VALIDATE=0 shows the first as it is, RETRIES=5 tries more"
    )


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.ask", description="ask two adapters on one base")
    parser.add_argument("names", nargs=2, metavar="RECIPE", help="the recipe for multiple choice, and the one for short answers")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="how often an invalid reply is asked again, with sampling (2)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens that a reply may take (64)")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--temperature", type=float, metavar="T", help="draw the first reply too, at this temperature (from 0)")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw the first reply too, among the likeliest tokens of this share (over 0 to 1)"
    )
    parser.add_argument("--sample", action="store_true", help="draw the first reply too, with the Modelfile's parameters")
    parser.add_argument("--no-stop", action="store_true", help="only the model's own end of turn ends a reply, not the Modelfile's stops")
    parser.add_argument("--raw", action="store_true", help="the first reply as it is, not validated")
    args = parser.parse_args(argv)
    if (args.temperature or 0) < 0 or not 0 < (1 if args.top_p is None else args.top_p) <= 1:
        parser.error("TEMPERATURE from 0, TOP_P over 0 and up to 1")
    if not all(q.strip() for q in args.questions) or args.retries < 0 or args.tokens < 1:
        parser.error('a question, such as Q="What is the capital of Norway?"; RETRIES from 0, TOKENS from 1')
    return args


def main(argv):
    args = parse(argv)
    with opened(args.names, not args.no_stop) as say:
        for question in args.questions:
            reply, which, tries = answer(say, args.names, question, args, lambda text: print(text, file=sys.stderr))
            print(f"ask         {args.names[which]}, {tries} {'tries' if tries > 1 else 'try'}", file=sys.stderr)
            print(reply, flush=True)
    return 0


if __name__ == "__main__":
    process.command(main)
