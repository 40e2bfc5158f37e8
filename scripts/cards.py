"""Study cards on a page of this machine: a topic goes to the model in Ollama, flip cards come back while it writes; export to CSV and Anki.

    python -m scripts.cards pirate-nano                 # http://127.0.0.1:7860, until Ctrl-C; `make cards RECIPE=pirate-nano PORT=7861`
    python -m scripts.cards llama3.2                    # any other model that Ollama holds

The model is asked for plain lines, `Q: …` and `A: …`, and whatever it makes of that is read tolerantly. Ollama's structured outputs (a JSON schema as a
grammar) are not used: a model that was tuned on prose ends its JSON late or never, and what a grammar wrings out of a model that can't do it looks right.
What the model writes reaches the page as text, never as HTML. Nothing is asked of any other machine, and nothing is sent to one.
"""

import argparse
import csv
import html
import io
import json
import os
import re
import socket
import sys
import time
from contextlib import aclosing, suppress
from pathlib import Path

from scripts import process, recipe

MOST, TOKENS = 30, 120  # cards on one page; tokens that one may take before the reply is cut
# The front or the back of a card at a line's start: `Q:`, `**Question 2:**`, `3. A:`, `### Card 1 - Front:`. A single letter is capital: `a:` is a choice.
SIDE = re.compile(
    r"[\W_]*(?:(?i:(?:flash ?)?card)\W*\d+[\W_]*|\d+\s*[.):]?[\W_]*)?"
    r"(?:(?P<front>Q|(?i:question|front))|(?P<back>A|(?i:answer|back)))\s*#?\d*\s*[*_]*\s*(?:[:：]|(?<=\d)[.)])[*_]*\s*"
)
INLINE = re.compile(r"(?<=[?.!…*|)\]])[ \t]+[*_|]*(?=(?:Q|A|Question|Answer)[ #]?\d*\**:)")  # the other side on the same line
LOOSE = re.compile(r"[\s>#]*(?:\d+\s*[.)][\s*]*|\*\*)(?=.*\?)")  # where no line says Q: a numbered or bold line with a question in it
BETWEEN = re.compile(r"(?i)[\W_]*((flash ?)?card\W*\d+\W*|\d+[.):]\W*)|\s*([-*_=]\s*){3,}")  # only separates: `Card 3`, `3.`, a rule
ITEM = re.compile(r"\s*([-*•+]|\d+[.)])\s|\s{2,}\S|\t")  # goes on with an answer after an empty line
OBJECT = re.compile(r'\{(?:[^{}"]++|"(?:[^"\\]|\\.)*+")*+\}', re.DOTALL)  # in JSON, the innermost ones
NAMES = {"question": 0, "q": 0, "front": 0, "term": 0, "answer": 1, "a": 1, "back": 1, "definition": 1}


def prompt(topic, count):
    """What the model is asked. No line of it begins with Q: or A:, so that a model which repeats it makes no card of it."""
    many = f"{count} study cards" if count > 1 else "one study card"
    return (
        f"Write {many} about this topic: {topic}\n\nEach card is a question and its answer, on two lines. The line of the question begins with “Q:”, "
        "the line of its answer with “A:”. An answer is one or two sentences. Leave an empty line between cards, and write nothing else."
    )


def tidy(lines):
    """Lines as text: no bold, no control characters, single blanks."""
    text = re.sub(r"[^\S\n]+", " ", re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", "\n".join(map(str, lines))))
    text = re.sub(r"(?<!\w)\*\*(\S(?:[^\n]*?\S)?)\*\*(?!\w)", r"\1", text)  # `2**3` stays
    return re.sub(r"^\*\*|\*\*$", "", re.sub(r" ?\n ?", "\n", text).strip()).strip()


def from_lines(text, done):
    """Cards written as lines; the last one counts if the reply is done or an empty line has followed it."""
    lines = INLINE.sub("\n", text).split("\n")
    if not done and not ((side := SIDE.match(lines[-1])) and side["front"]):
        lines.pop()  # half a line may become anything
    named = any((side := SIDE.match(line)) and side["front"] for line in lines)
    cards, front, back, at, whole = [], None, None, "text", False

    def card():
        if back is not None:
            return tidy(front), tidy(back)
        head, mark, rest = front[0].partition("?")  # no A: the answer follows the question, on its line or below it
        return tidy([head + mark]), tidy([rest, *front[1:]])

    for line in lines:
        side, loose = SIDE.match(line), LOOSE.match(line)
        if side and side["front"] or not named and loose:
            cards.extend([card()] if front else [])
            front, back, at, whole = [line[(side if named else loose).end() :]], None, "text", False
        elif front is None or at == "remark" or line.strip().startswith("```"):
            continue
        elif side:
            back, at = [*(back or []), line[side.end() :]], "text"
        elif not line.strip() or BETWEEN.fullmatch(line):
            whole = whole or bool(back and tidy(back))
            at = "gap" if whole else "text"
        elif at == "gap" and not ITEM.match(line):
            at = "remark"  # a closing word is no part of the answer, nor is what follows it
        else:
            (front if back is None else back).append(line)
            at = "text"
    return cards + ([card()] if front and (done or whole) else [])


def from_json(text):
    """Cards written as JSON objects, alone or in any structure; one that is not whole yet is none."""
    cards = []
    for found in OBJECT.findall(text):
        with suppress(ValueError, RecursionError):
            sides = {NAMES.get(key.lower()): value for key, value in json.loads(found, strict=False).items() if value is not None}
            cards.append(tuple(tidy(side if isinstance(side, list) else [side]) for side in (sides.get(0, ""), sides.get(1, ""))))
    return cards


def parse(text, done=True):
    """[(question, answer), …] of a model's reply so far; unless it is `done`, only cards that are complete. Never raises."""
    text, cards = re.sub(r"(?s)<think>.*?(</think>|\Z)", "", text.replace("\r\n", "\n")), {}
    for question, answer in list(filter(all, from_lines(text, done))) or filter(all, from_json(text)):
        cards.setdefault(re.sub(r"\W+", " ", question).strip().casefold() or question, (question, answer))  # asked twice is asked once
    return list(cards.values())


def to_csv(cards):
    """RFC 4180 with a header. A byte-order mark tells Excel that it is UTF-8; an apostrophe before = + - @ keeps it from computing the cell (CWE-1236)."""

    def inert(cell):  # a plain number computes nothing
        return f"'{cell}" if re.match(r"[=+\-@＝＋－＠\t\r]", cell) and not re.fullmatch(r"[+-]?\d+([.,]\d+)?", cell) else cell

    out = io.StringIO()
    # All cells in quotes: where a semicolon separates, an unquoted one would be split, and its second half could be a formula.
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("question", "answer"), *((inert(q), inert(a)) for q, a in cards)])
    return "\ufeff" + out.getvalue()


def to_anki(cards):
    """Anki's text form (docs.ankiweb.net/importing/text-files.html). All cells in quotes, since a line that begins with # is a comment.

    No #columns: they are matched with the names of a note's fields, which are translated, and an answer without a match becomes tags. Without, they are
    taken in their order, front and back.
    """
    out = io.StringIO()
    csv.writer(out, "excel-tab", quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(cards)
    return "#separator:tab\n#html:false\n" + out.getvalue()


def deck(cards, topic, line, state):
    """What the page shows: cards, a line of text, "idle", "writing", "done" or "wrong"; and the exports, ready to be saved."""
    name = re.sub(r"\W+", "-", topic.lower()).strip("-")[:60] or "cards"
    return {"cards": cards, "say": line, "state": state, "name": name, "csv": to_csv(cards), "anki": to_anki(cards)}


def trouble(error, name, url):
    """One line: what went wrong with Ollama, and what to do."""
    model, ours = recipe.ollama_name(name), Path(recipe.ROOT, name.split("+")[0] + ".yml").is_file()
    binary, get = process.ollama_binary(), f"`make ollama RECIPE={name}`" if ours else f"`ollama pull {model}`"
    if getattr(error, "status_code", 0) == 404:
        return f"Ollama at {url} has no model {model!r}; {get} brings it"
    if isinstance(error, ConnectionError) or type(error).__name__.startswith("Connect"):
        how = f"start it with `{binary} serve`" if binary else "install it (ollama.com), or `make ollama-server` where there is Go"
        return f"Ollama is not running at {url}; {how}; then {get} brings the model"
    words = getattr(error, "error", "") or str(error) or type(error).__name__
    return f"Ollama at {url} broke off: {' '.join(words.split())[:200]}; its own log says more"


def outcome(cards, count, text, cut, model):
    """(one line on what came of it, whether it is trouble)."""
    if cards:
        less = f" of {count} cards: {'the reply was cut' if cut else f'{model} wrote no more'}"
        return f"{len(cards)}{less if len(cards) < count else ' cards' if count > 1 else ' card'}", False
    began = " ".join(tidy([text]).split())
    wrote = f"only “{began[:60]}{'…' * (len(began) > 60)}”" if began else "nothing at all"
    return f"{model} wrote no card, {wrote}; ask again, or take a larger model: make cards RECIPE=…", True


def say(line, wrong=False):
    print(line, file=sys.stderr if wrong else sys.stdout, flush=True)


async def write(name, url, topic, count):
    """Yield the deck as it grows. Stopped by cancelling, it drops the connection, and Ollama stops writing."""
    import httpx
    import ollama

    model, topic = recipe.ollama_name(name), " ".join((topic or "").split())
    if not topic:
        yield deck([], "", "What are the cards to be about? Write a topic first.", "wrong")
        return
    cards, text, cut, count = [], "", False, int(count or 1)
    asked = {"messages": [{"role": "user", "content": prompt(topic, count)}], "options": {"num_predict": TOKENS * count}}
    yield deck([], topic, f"{model} begins …", "writing")
    try:
        async with aclosing(await ollama.AsyncClient(url).chat(model, stream=True, **asked)) as parts:
            async for part in parts:
                piece, cut = part.message.content or "", part.done_reason == "length"
                text += piece
                if not part.done and not re.search(r"[\n:：.)}]", piece):  # nothing else completes a card
                    continue
                found = parse(text, bool(part.done) and not cut)[:count]
                if found != cards:
                    cards = found
                    yield deck(cards, topic, f"{len(cards)} of {count} cards …", "writing")
                if len(cards) == count:
                    break
        line, wrong = outcome(cards, count, text, cut, model)
    except (ollama.ResponseError, OSError, ValueError, httpx.HTTPError) as error:
        line, wrong = trouble(error, name, url), True
    say(line if wrong else f"            {topic}: {line}", wrong)
    yield deck(cards, topic, line, "wrong" if wrong else "done")


def page(name, url):
    """The page, a gradio.Blocks. It shows what `write` yields; scripts/cards.js makes cards of it."""
    import gradio as gr

    def stopped(shown):
        number = len(shown["cards"])
        return shown | {"say": f"Stopped after {number} card{'s' * (number != 1)}", "state": "done"}, gr.Button(interactive=False)

    async def started(topic, count):
        async with aclosing(write(name, url, topic, count)) as decks:
            async for each in decks:
                yield each, gr.Button(interactive=each["state"] == "writing")

    script, model = Path(__file__).with_suffix(".js").read_text(encoding="utf-8"), html.escape(recipe.ollama_name(name))
    with gr.Blocks(title="Study cards", analytics_enabled=False) as app:
        gr.HTML(f"<h1>Study cards</h1><p>Written by {model} in Ollama. Check what matters: a model can be wrong.</p>", elem_id="head")
        with gr.Row(elem_id="ask"):
            topic = gr.Textbox(label="Topic", placeholder="Photosynthesis", max_length=200, max_lines=1, autofocus=True, scale=6)
            count = gr.Number(10, label="Cards", minimum=1, maximum=MOST, precision=0, min_width=90)
            make = gr.Button("Make cards", variant="primary", min_width=130)
            stop = gr.Button("Stop", interactive=False, min_width=90, elem_id="stop")
        shown = gr.HTML(deck([], "", "", "idle"), html_template="", js_on_load=script, apply_default_css=False)
        both = {"outputs": [shown, stop], "show_progress": "hidden", "api_visibility": "private"}
        going = gr.on([make.click, topic.submit], started, [topic, count], trigger_mode="once", concurrency_limit=None, **both)
        stop.click(stopped, shown, cancels=[going], **both)
    return app


def refuse(name, url, port):
    """What stands in the way, before the seconds that Gradio takes to import."""
    import ollama

    try:
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError):
        raise ValueError(f"port {port} is not free; take another: make cards RECIPE={name} PORT={port + 1}") from None
    try:
        ollama.Client(url).show(recipe.ollama_name(name))
    except (ollama.ResponseError, OSError) as error:
        raise ValueError(trouble(error, name, url)) from None


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m scripts.cards", description="study cards, written by a recipe's model")
    parser.add_argument("name", help="the recipe, or any model that Ollama holds")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args(argv)
    refuse(args.name, process.ollama_url(), args.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    look = Path(__file__).with_suffix(".css")
    theme = gr.themes.Default(neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"])  # the machine's own fonts
    here = {"server_name": "127.0.0.1", "server_port": args.port, "share": False, "ssr_mode": False, "mcp_server": False, "pwa": False}
    bare = {"footer_links": [], "run_history": False, "enable_monitoring": False, "quiet": True, "prevent_thread_lock": True}
    page(args.name, process.ollama_url()).launch(theme=theme, css_paths=look, **here, **bare)
    print(f"cards       http://127.0.0.1:{args.port}, by {recipe.ollama_name(args.name)}; Ctrl-C ends it", flush=True)
    with suppress(KeyboardInterrupt):
        while True:  # not one long wait: the signal may reach another thread, which does not wake this one
            time.sleep(0.5)
    os._exit(0)  # nothing is left to be saved, and Gradio's threads would wait for open pages, or die with tracebacks


if __name__ == "__main__":
    process.command(main)
