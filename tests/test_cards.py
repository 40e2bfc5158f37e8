"""The study cards: the parser and the exports; and the page, in a real Chromium, on a stand-in for Ollama's network service and on the real one.

.venv/bin/python tests/test_cards.py        # → reports/cards.png, with texts of ours in place of a model's
"""

import base64
import csv
import io
import json
import os
import queue
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from conftest import one_line, room

from scripts import cards, process

ROOT = Path(__file__).resolve().parent.parent
KEYS = {"Enter": (13, "\r"), " ": (32, " "), "Tab": (9, None), "Home": (36, None), "End": (35, None)}
KEYS |= {f"Arrow{way}": (37 + n, None) for n, way in enumerate(["Left", "Up", "Right", "Down"])}


# --- helpers: Ollama's service, the page's server, a browser ---
@contextmanager
def stand_in(models=("pirate",)):
    """Ollama's /api/show and /api/chat on loopback. What the test puts into `replies` is streamed, piece by piece.

    None ends the reply, "cut" cuts it, "die" drops the connection; a dict is a line of its own.
    """

    class Service(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status, body):
            body = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked["model"] not in models:
                return self.answer(404, {"error": f"model '{asked['model']}' not found"})
            if self.path == "/api/show":
                return self.answer(200, {"details": {}, "model_info": {}})
            asked["left"] = threading.Event()
            server.asked.append(asked)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while True:
                piece = "nothing yet"
                with suppress(queue.Empty):
                    piece = server.replies.get(timeout=0.05)
                if select.select([self.connection], [], [], 0)[0]:  # nobody listens any more; the piece is for who comes next
                    if piece != "nothing yet":
                        with server.replies.mutex:
                            server.replies.queue.appendleft(piece)
                            server.replies.not_empty.notify()
                    self.close_connection = True
                    return asked["left"].set()
                if piece == "nothing yet":
                    continue
                if piece == "die":
                    self.close_connection = True
                    return None
                end = {"done_reason": {None: "stop", "cut": "length"}[piece]} if piece in (None, "cut") else {}
                line = {
                    "model": asked["model"],
                    "message": {"role": "assistant", "content": "" if end else piece},
                    "done": bool(end),
                    **end,
                }
                line = json.dumps(piece if isinstance(piece, dict) else line).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                if end:
                    return self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.daemon_threads = True
    server.asked, server.replies, server.url = [], queue.Queue(), f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@contextmanager
def serving(name, ollama_url, log, **env):
    """`python -m scripts.cards`, as `make cards` starts it; yields its URL and its process."""
    port = process.free_port()
    command = [sys.executable, "-m", "scripts.cards", name, "--port", port]
    with process.started(command, f"http://127.0.0.1:{port}/", log, {"OLLAMA_HOST": ollama_url, **env}) as server:
        yield f"http://127.0.0.1:{port}", server


@contextmanager
def opened(devtools, url):
    """A Tab with the page in it, ready to be written on."""
    from websockets.sync.client import connect

    address = httpx.put(f"{devtools}/json/new?about:blank").json()["webSocketDebuggerUrl"]
    with connect(address, max_size=None, proxy=None) as socket:
        tab = Tab(socket)
        for domain in ("Page", "Network", "Runtime"):
            tab(f"{domain}.enable")
        tab("Emulation.setFocusEmulationEnabled", enabled=True)  # as if it were the window in front
        tab.look()
        tab("Page.navigate", url=url)
        tab.until(
            "document.querySelector('.deck') && document.activeElement.labels?.length && document.querySelectorAll('#ask label').length == 2"
        )
        yield tab
        tab("Page.close")


class Tab:
    """A tab of Chromium, driven over the DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.count, self.events = socket, 0, []

    def __call__(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        end = time.time() + 60
        while (message := json.loads(self.socket.recv(timeout=60))).get("id") != self.count:
            self.events.append(message)
            assert time.time() < end, f"no answer to {method} {params}"
        assert "error" not in message, message
        return message["result"]

    def js(self, expression):
        done = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression, seconds=30):
        end = time.time() + seconds
        while not (value := self.js(f"(() => {{ const x = {expression}; return x instanceof Node ? true : x }})()")):
            assert time.time() < end, f"{expression}: not in {seconds} s; the page says {self.js('document.body.innerText')!r}"
            time.sleep(0.03)
        return value

    def key(self, *names, shift=False):
        for name in names:
            code, text = KEYS[name]
            about = {"key": name, "code": {" ": "Space"}.get(name, name), "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
            self("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
            self("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, label, text):
        self.js(
            f"(x => {{ x.focus(); x.select() }})([...document.querySelectorAll('#ask label')].find(x => x.innerText.trim() === '{label}').control)"
        )
        self("Input.insertText", text=text)

    def press(self, text):
        self.js(f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {json.dumps(text)}).click()")

    def ask(self, topic, count):
        """Ask for cards. Enter again where nothing came of it: between the last card and the end of its own event Gradio takes no new one."""
        self.write("Cards", str(count))
        self.write("Topic", topic)
        looks = "document.querySelector('[data-state]').dataset.state + document.querySelector('.say').textContent"
        other = f"{looks} !== {json.dumps(self.js(looks))}"
        wait = f"(look => look(Date.now() + 1000, look))((end, again) => {other} ? done(true) : Date.now() > end ? done(false) : setTimeout(again, 10, end, again))"
        for _ in range(30):
            self.key("Enter")
            if self.js(f"new Promise(done => {wait})"):
                return
        raise AssertionError(f"Enter does nothing; the page says {self.js('document.body.innerText')!r}")

    def shown(self):
        return [
            tuple(pair)
            for pair in self.js(
                "[...document.querySelectorAll('.deck button')].map(b => [...b.querySelectorAll('.text')].map(t => t.textContent))"
            )
        ]

    def says(self):
        return self.js("document.querySelector('.say').textContent")

    def state(self, name):
        self.until(f"document.querySelector('[data-state={name}]')")
        return self.says()

    def focused(self):
        """The element that has the focus: "card 0", a button's text, or a field's label."""
        which = "a.closest('.deck') ? 'card ' + [...document.querySelectorAll('.deck button')].indexOf(a) : a.labels?.[0] ? a.labels[0].innerText : a.innerText"
        return self.js(f"(a => {which})(document.activeElement)").strip()

    def style(self, selector, name):
        return self.js(f"getComputedStyle(document.querySelector({json.dumps(selector)})).getPropertyValue('{name}')")

    def names(self):
        """(role, name) of what a screen reader meets, in its order."""
        nodes = self("Accessibility.getFullAXTree")["nodes"]
        return [(n["role"]["value"], n["name"]["value"]) for n in nodes if not n["ignored"] and n.get("name", {}).get("value")]

    def look(self, width=1200, height=800, dark=False):
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path, **look):
        """A picture of the whole page."""
        self.look(**look)
        tall = self.js("new Promise(done => setTimeout(() => done(document.querySelector('.gradio-container > .main').offsetHeight), 600))")
        self.look(**look | {"height": tall})
        self.js("new Promise(done => setTimeout(done, 600))")  # cards that turn
        Path(path).write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(folder):
    """A headless Chromium; yields its DevTools URL."""
    binary = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    assert binary, "no Chromium on PATH: `apt-get install chromium`"
    port = process.free_port()
    flags = [
        "--headless",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
        f"--remote-debugging-port={port}",
    ]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    with process.started(
        [binary, *flags, f"--user-data-dir={folder}/profile"], f"http://127.0.0.1:{port}/json/version", Path(folder) / "chromium.log"
    ):
        yield f"http://127.0.0.1:{port}"


# --- the parser ---
TWO = [("What is X?", "It is Y."), ("Who is Z?", "Me.")]
REPLIES = {  # all of them mean TWO
    "as asked": "Q: What is X?\nA: It is Y.\n\nQ: Who is Z?\nA: Me.",
    "with words around": "Here are 2 cards:\n\nQ: What is X?\nA: It is Y.\n\nQ: Who is Z?\nA: Me.\n\nLet me know:\n- if you want more\n",
    "bold": "**Q: What is X?**\n**A:** It is **Y**.\n\n**Question 2:** Who is Z?\n**Answer 2:** Me.",
    "headings and rules": "### Card 1\n**Front:** What is X?\n**Back:** It is Y.\n\n---\n\n### Flashcard 2\nFront: Who is Z?\nBack: Me.\n",
    "numbered sides": "1. Q: What is X?\n   A: It is Y.\n2) Question: Who is Z?\n   Answer: Me.",
    "numbers on lines of their own": "1.\nQ: What is X?\nA: It is Y.\n2.\nQ: Who is Z?\nA: Me.",
    "numbers for colons": "Q1. What is X?\nA1. It is Y.\nQ2) Who is Z?\nA2) Me.",
    "one line": "Q: What is X? A: It is Y. Q: Who is Z? A: Me.",
    "one line each": "Card 1: **Q:** What is X? **A:** It is Y.\nCard 2: **Q:** Who is Z? **A:** Me.",
    "no A": "Q: What is X?\nIt is Y.\nQ: Who is Z? Me.",
    "no A, and an empty line": "Q: What is X?\n\nIt is Y.\n\nQ: Who is Z?\n\nMe.\n",
    "no Q either": "Sure!\n\n1. What is X?\n   It is Y.\n2. **Who is Z?** Me.",
    "bold questions": "**What is X?**\nIt is Y.\n\n**Who is Z?**\nMe.",
    "JSON": '[{"question": "What is X?", "answer": "It is Y."}, {"question": "Who is Z?", "answer": "Me."}]',
    "JSON in a fence, cut": '```json\n{"cards": [{"Front": "What is X?",\n "Back": "It is Y."}, {"q": "Who is Z?", "a": ["Me."]}, {"q": "Wh',
    "carriage returns": "Q: What is X?\r\nA: It is Y.\r\n\r\nQ: Who is Z?\r\nA: Me.\r\n",
    "thoughts": "<think>Q: no?\nA: no</think>Q: What is X?\nA: It is Y.\n\nQ: Who is Z?\nA: Me.",
    "said again": "Q: What is X?\nA: It is Y.\nQ: Who is Z?\nA: Me.\nQ: what is x\nA: Something else.",
    "a question without an answer": "Q: Why?\n\nQ: What is X?\nA: It is Y.\nQ: Who is Z?\nA: Me.\nQ: And who",
    "control characters": "Q:\tWhat is\x00 X?\nA:\u00a0It is  Y.\x1b\n\nQ: Who is Z?\nA: Me.",
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_cards_are_found_in_what_models_write(reply):
    assert cards.parse(reply) == TWO


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_while_it_is_written_a_card_never_goes_away_nor_shows_half_an_answer(reply):
    before = []
    for end in range(len(reply) + 1):
        now = cards.parse(reply[:end], done=False)
        assert now[: len(before)] == before and set(now) <= set(TWO), reply[:end]
        before = now


def test_a_card_is_complete_once_something_follows_it():
    first = "Q: What is X?\nA: It is Y."
    assert cards.parse(first, done=False) == cards.parse(first + "\n", done=False) == []
    assert cards.parse(first + "\n\n", done=False) == cards.parse(first + "\nQ:", done=False) == cards.parse(first) == TWO[:1]


def test_answers_of_several_lines():
    reply = "Q: Which?\na) x\nb) y\nA: b) y\n\nQ: How?\nA: So:\n\n- one\n- two\n\nThat is all.\n- no\n\nQ: Code?\nA: This:\n```python\nprint(2**3 * 2**4)\n```"
    assert cards.parse(reply) == [("Which?\na) x\nb) y", "b) y"), ("How?", "So:\n- one\n- two"), ("Code?", "This:\nprint(2**3 * 2**4)")]
    shown = [cards.parse(reply[:end], done=False) for end in range(len(reply))]
    assert all(len(a) <= len(b) for a, b in pairwise(shown)), "a list that goes on after an empty line takes no card away"


def test_whatever_a_model_writes_is_read():
    import random

    pieces = [
        "Q:",
        "A:",
        "**",
        "1.",
        "{",
        "}",
        '{"question": ',
        '"',
        "?",
        "\n",
        "\n\n",
        "---",
        "```",
        "<think>",
        "Card 3",
        "aye",
        " ",
        "\x00",
        "[",
        "Answer:",
        "*",
        "|",
    ]
    chance = random.Random(0)
    for _ in range(2000):
        reply = "".join(chance.choices(pieces, k=chance.randrange(60)))
        for question, answer in cards.parse(reply, chance.random() < 0.5):
            assert question.strip() == question and answer.strip() == answer and question and answer and "\x00" not in question + answer
    for reply in ("{" * 20000, '{"a":' * 20000, "Q: " * 9000, "?" + " " * 20000, "**" * 9000, "- " * 9000, "Q: x? A: y. " * 2000):
        cards.parse(reply, done=False)


def test_the_prompt_repeated_is_no_card():
    asked = cards.prompt("Photosynthesis", 3)
    assert "3 study cards" in asked and "Photosynthesis" in asked and "one study card" in cards.prompt("x", 1)
    assert cards.parse(asked) == [] and cards.parse(f"{asked}\n\nQ: What is X?\nA: It is Y.") == TWO[:1]


# --- the exports ---
ODD = [
    ("=HYPERLINK(1)", "+1 for it"),
    ("-x", "@sum"),
    ("＝1", "-5"),
    ("#1: a “question”?", 'It is <b>Y</b>, "so".\n- one\n- two'),
    ("2 = 2; =1+1", "naïve 日本語"),
]


def test_csv_opens_in_a_spreadsheet_and_computes_nothing():
    data = cards.to_csv(ODD).encode()
    assert data.startswith(b'\xef\xbb\xbf"question","answer"\r\n') and data.endswith(b"\r\n")
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert rows[1:4] == [["'=HYPERLINK(1)", "'+1 for it"], ["'-x", "'@sum"], ["'＝1", "-5"]], "a number is no formula"
    assert rows[4:] == [list(card) for card in ODD[3:]]
    by_semicolon = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=";"))
    assert not any(cell.startswith("=") for row in by_semicolon for cell in row)


def test_anki_text_is_tab_separated_and_a_number_sign_is_no_comment():
    """Tried with Anki 26.09.3's own importer: two fields, no tags, HTML escaped, newlines as <br>. With #columns:question… the answers became tags."""
    text = cards.to_anki(ODD)
    assert text.startswith('#separator:tab\n#html:false\n"=HYPERLINK(1)"\t"+1 for it"\n') and "\r" not in text and "\ufeff" not in text
    assert [tuple(row) for row in csv.reader(io.StringIO(text.split("\n", 2)[2], newline=""), delimiter="\t")] == ODD
    assert text.count("\n#") == 1


# --- before there is a page ---
def test_no_ollama_no_model_no_port(tmp_path):
    one_line(
        room("cards", "pirate", OLLAMA_HOST="127.0.0.1:1"),
        "Ollama is not running at http://127.0.0.1:1;",
        "then `make ollama RECIPE=pirate` brings the model",
    )
    with stand_in() as service:
        one_line(
            room("cards", "pirate+seed=1", OLLAMA_HOST=service.url),
            "has no model 'pirate:seed-1'; `make ollama RECIPE=pirate+seed=1` brings it",
        )
        one_line(room("cards", "llama3.2:1b", OLLAMA_HOST=service.url), "has no model 'llama3.2:1b'; `ollama pull llama3.2:1b` brings it")
        taken = service.server_port
        one_line(
            room("cards", "pirate", "--port", str(taken), OLLAMA_HOST=service.url),
            f"port {taken} is not free",
            f"RECIPE=pirate PORT={taken + 1}",
        )
        one_line(room("cards", "pirate", "--port", "70000", OLLAMA_HOST=service.url), "port 70000 is not free")
    assert room("cards").returncode == 2


def test_gradio_comes_without_torch():
    code = "import sys; from scripts import cards; assert 'gradio' not in sys.modules; cards.page('pirate', ''); print(*{'torch', 'transformers', 'axolotl'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    )
    assert done.stdout.strip() == ""


def test_make_passes_recipe_and_port():
    told = subprocess.run(["make", "-n", "cards", "RECIPE=pirate-nano", "PORT=7999"], capture_output=True, text=True, check=True).stdout
    assert "-m scripts.cards pirate-nano --port 7999" in told


# --- the page ---
@contextmanager
def listening():
    """A proxy that lets nobody through; yields what was asked of it."""
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def refuse(self):
            asked.append(self.requestline)
            self.send_error(403)

        do_GET = do_POST = do_HEAD = do_CONNECT = refuse

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield asked, {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": url, "NO_PROXY": "127.0.0.1,localhost"}
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as devtools:
        yield devtools


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(the stand-in for Ollama, the page's URL, the terminal's output, what was asked of the proxy)."""
    log = tmp_path_factory.mktemp("cards") / "log"
    with stand_in() as service, listening() as (asked, proxy), serving("pirate", service.url, log, **proxy) as (url, _):
        yield service, url, log, asked


@pytest.fixture
def tab(site, browser):
    with opened(browser, site[1]) as one:
        yield one


PLANTS = [
    ("What is photosynthesis?", "Plants, algae and some bacteria make sugar and oxygen of light, water and carbon dioxide."),
    ("Where in a plant cell does it take place?", "In the chloroplasts, mostly in the cells of the leaves."),
    ("Why are leaves green?", "Chlorophyll absorbs red and blue light, and reflects much of the green."),
    ("Where does the oxygen come from?", "From water, which is split by light; not from carbon dioxide."),
    ("What do the light reactions make?", "ATP and NADPH, which carry energy to the Calvin cycle, and oxygen as a by-product."),
    ("What does the Calvin cycle make, and of what?", "Sugars of three carbon atoms, out of carbon dioxide, ATP and NADPH."),
]


def written(pairs):
    return "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in pairs)


def test_cards_appear_while_the_model_writes_and_the_keyboard_is_enough(site, tab):
    service = site[0]
    outline = "(s => s.outlineStyle + s.outlineWidth)(getComputedStyle(document.activeElement))"
    assert tab.focused() == "Topic" and tab.until(f"{outline} === 'solid3px'")
    tab.ask("Photosynthesis", 6)
    tab.until("document.querySelector('.say').textContent === 'pirate begins …'")
    for piece in written(PLANTS[:4])[:-1]:  # letter by letter, up to the middle of the fourth card's end
        service.replies.put(piece)
    tab.until("document.querySelectorAll('.deck button').length === 3")
    assert tab.shown() == PLANTS[:3] and tab.state("writing") == "3 of 6 cards …" and service.replies.empty(), "the rest is not even sent"
    assert service.asked[-1]["messages"] == [{"role": "user", "content": cards.prompt("Photosynthesis", 6)}]

    tab.key("Tab", "Tab", "Tab")
    assert tab.focused() == "Stop"
    tab.key("Tab", "Enter", "ArrowRight", " ")
    turned = "[...document.querySelectorAll('.deck button')].map(card => card.classList.contains('over'))"
    assert tab.focused() == "card 1" and tab.js(turned) == [True, True, False]
    assert tab.js(outline) == "solid3px"
    service.replies.put("\n" + written(PLANTS[4:]))
    assert tab.state("done") == "6 cards" and tab.shown() == PLANTS
    assert tab.focused() == "card 1" and tab.js(turned) == [True, True, False, False, False, False], (
        "what comes later leaves focus and cards alone"
    )
    names = tab.names()
    assert ("button", f"Answer 2 {PLANTS[1][1]}") in names and ("button", f"Question 3 {PLANTS[2][0]}") in names
    assert ("button", f"Question 2 {PLANTS[1][0]}") not in names, "the side that faces away is not read out"
    assert ("textbox", "Topic") in names and ("spinbutton", "Cards") in names and ("list", "Study cards") in names

    places = [
        ("End", 5),
        ("ArrowRight", 5),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("ArrowDown", 3),
        ("ArrowDown", 3),
        ("ArrowUp", 0),
        ("ArrowRight", 1),
    ]
    for key, place in places:  # three cards a row
        tab.key(key)
        assert tab.focused() == f"card {place}", key
    tab.key("Enter")
    assert not tab.js(turned)[1]
    for text in ("Save as CSV", "Save for Anki"):
        tab.key("Tab")
        assert tab.focused() == text and tab.js(outline) == "solid3px"
    tab.key("Tab", "Tab", "Tab", shift=True)
    assert tab.focused() == "Make cards", "the cards are one stop; a Stop that has nothing to stop is none"
    tab.js("document.querySelectorAll('.deck button')[4].click()")
    assert tab.js(turned)[4]


def test_the_files_that_are_saved(site, tab, tmp_path):
    tab("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.ask("=Ça & “là”/../etc", 5)
    site[0].replies.put("".join(f"Q: {q}\nA: {a}\n\n" for q, a in ODD))
    tab.state("done")
    assert tab.shown() == ODD
    for button, name, content in [
        ("Save as CSV", "ça-là-etc.csv", cards.to_csv(ODD)),
        ("Save for Anki", "ça-là-etc-anki.txt", cards.to_anki(ODD)),
    ]:
        tab.press(button)
        end = time.time() + 30
        while not (tmp_path / name).exists():
            assert time.time() < end, list(tmp_path.iterdir())
            time.sleep(0.05)
        assert (tmp_path / name).read_bytes() == content.encode()


def test_what_the_model_writes_is_text(site, tab):
    evil = [
        ("<script>window.hacked = 1</script>?", "<img src=x onerror='window.hacked = 1'> & &lt;b&gt;"),
        ("${window.hacked = 1} {{7*7}}?", "[x](javascript:window.hacked=1) _md_ `code` # no heading"),
        ("\u202eright to left?", "</button></li><h1>out</h1>"),
    ]
    tab.ask("<b>topic</b>", 3)
    site[0].replies.put(written(evil))
    tab.state("done")
    assert (
        tab.shown() == evil and tab.js("window.hacked") is None and not tab.js("document.querySelector('.deck :is(script, img, a, h1, b)')")
    )
    tab.ask("<img src=x onerror='window.hacked = 1'>", 3)
    site[0].replies.put("<img src=x onerror='window.hacked = 1'>")
    site[0].replies.put(None)
    assert "wrote no card, only “<img src=x" in tab.state("wrong") and tab.js("window.hacked") is None


def test_stop_keeps_the_cards_and_stops_the_model(site, tab):
    service = site[0]
    tab.ask("Photosynthesis", 6)
    service.replies.put(written(PLANTS[:2]) + "Q: And")
    tab.until("document.querySelectorAll('.deck button').length === 2")
    tab.js("document.querySelector('.deck button').click()")
    tab.key("Tab", "Tab", "Tab", "Enter")
    assert tab.state("done") == "Stopped after 2 cards" and tab.shown() == PLANTS[:2]
    assert service.asked[-1]["left"].wait(30), "Ollama would write on"
    tab.until("document.activeElement.closest('.deck')")
    tab.ask("Photosynthesis again", 1)
    service.replies.put(written(PLANTS[3:4]))
    tab.until("document.querySelector('.say').textContent === '1 card'")
    assert tab.shown() == PLANTS[3:4] and not tab.js("document.querySelector('.over')")


def test_a_closed_tab_stops_the_model_at_the_next_card(site, browser):
    service = site[0]
    with opened(browser, site[1]) as tab:
        tab.ask("Photosynthesis", 30)
        service.replies.put(written(PLANTS[:1]))
        tab.until("document.querySelector('.deck button')")
    left = service.asked[-1]["left"]
    for number in range(25):
        service.replies.put(f"Q: Number {number}?\nA: Yes.\n\n")
        if left.wait(1):
            break
    assert left.is_set(), "Ollama would write on"
    while not service.replies.empty():
        service.replies.get()


def test_what_goes_wrong_is_one_line_on_the_page_and_one_in_the_terminal(site, tab, monkeypatch):
    service, _, log, _ = site

    def asked(*pieces, count=3):
        tab.ask("Photosynthesis", count)
        tab.state("writing")
        for piece in pieces:
            service.replies.put(piece)

    def told(line):
        assert tab.state("wrong") == line
        assert log.read_text().splitlines()[-1] == line
        assert tab.style(".say", "color") == "rgb(179, 38, 30)" and "Traceback" not in log.read_text()

    asked("Aye, matey!", None)
    told("pirate wrote no card, only “Aye, matey!”; ask again, or take a larger model: make cards RECIPE=…")
    asked(None)
    told("pirate wrote no card, nothing at all; ask again, or take a larger model: make cards RECIPE=…")
    asked(written(PLANTS[:1]), "Q: And the rest", "cut")
    assert tab.state("done") == "1 of 3 cards: the reply was cut"
    asked(written(PLANTS[:1]), None)
    assert tab.state("done") == "1 of 3 cards: pirate wrote no more"
    asked(written(PLANTS[:1]), {"error": "out of memory"})
    told(f"Ollama at {service.url} broke off: out of memory; its own log says more")
    assert tab.shown() == PLANTS[:1], "what was there stays"
    asked("Q: And", "die")
    assert "broke off: peer closed connection" in tab.state("wrong") and "Traceback" not in log.read_text()
    tab.ask(" ", 3)
    tab.until("document.querySelector('.say').textContent.includes('Write a topic first')")
    tab.write("Topic", "Photosynthesis")
    tab.write("Cards", "99")
    tab.press("Make cards")
    tab.until("document.body.innerText.includes('greater than maximum value 30')")


def test_ollama_goes_away_and_ctrl_c_ends_it(browser, tmp_path):
    with stand_in() as service, serving("pirate", service.url, tmp_path / "log") as (url, server), opened(browser, url) as tab:
        service.RequestHandlerClass.do_POST = lambda handler: handler.answer(404, {"error": "model 'pirate' not found"})
        tab.ask("Photosynthesis", 3)
        assert tab.state("wrong") == f"Ollama at {service.url} has no model 'pirate'; `make ollama RECIPE=pirate` brings it"
        service.RequestHandlerClass.do_POST = lambda handler: handler.answer(500, {"error": "llama runner process has terminated"})
        tab.ask("Photosynthesis 2", 3)
        tab.until("document.querySelector('.say').textContent.includes('broke off: ')")
        assert "llama runner process has terminated" in tab.says()
        service.shutdown()
        service.server_close()
        tab.ask("Photosynthesis 3", 3)
        tab.until("document.querySelector('.say').textContent.includes('not running')")
        assert tab.says().startswith(f"Ollama is not running at {service.url}; ")
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    said = (tmp_path / "log").read_text().splitlines()
    assert len(said) == 4 and said[0].startswith("cards ") and all(line.startswith("Ollama ") for line in said[1:]), said


def contrast(one, other):
    """WCAG 2's contrast ratio of two colours, "rgb(r, g, b)"."""

    def light(colour):
        parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
        return sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    a, b = sorted([light(one), light(other)])
    return (b + 0.05) / (a + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_light_and_dark_wide_and_narrow(site, tab, dark, width):
    tab.look(width=width, dark=dark)
    tab.ask("Photosynthesis", 2)
    site[0].replies.put(written([PLANTS[0], ("Which word is long?", "Donaudampfschifffahrt" * 6)]))
    tab.state("done")
    tab.until(f"document.body.classList.contains('dark') === {json.dumps(dark)}")
    assert tab.js("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
    assert tab.js("[...document.querySelectorAll('.deck .text')].every(text => text.scrollWidth <= text.clientWidth)"), "out of the card"
    page, front, back = (tab.style(s, "background-color") for s in (".gradio-container", ".question", ".answer"))
    assert contrast(page, "rgb(0, 0, 0)") < 2 if dark else contrast(page, "rgb(255, 255, 255)") < 2
    pairs = [(".say", page), (".hint", page), ("#head h1", page), ("#head p", page), (".question .text", front), (".question .side", front)]
    pairs += [
        (".answer .text", back),
        (".answer .side", back),
        ("#ask button.primary", tab.style("#ask button.primary", "background-color")),
    ]
    for selector, ground in pairs:
        assert contrast(tab.style(selector, "color"), ground) >= 4.5, selector
    columns = tab.js("new Set([...document.querySelectorAll('.deck li')].map(x => x.offsetLeft)).size")
    assert columns == (2 if width == 1200 else 1)


def test_nothing_leaves_this_machine(site, tab):
    _, url, _, proxied = site
    tab.ask("Photosynthesis", 1)
    site[0].replies.put(written(PLANTS[:1]))
    tab.state("done")
    tab.js("new Promise(done => setTimeout(done, 1000))")
    seen = {event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"}
    assert len(seen) > 10 and all(address.startswith((f"{url}/", "data:", f"blob:{url}/")) for address in seen), seen
    assert not [event for event in tab.events if event["method"] == "Network.webSocketCreated"]
    assert not [event for event in tab.events if event["method"] == "Runtime.exceptionThrown"]
    assert proxied == [], "the server asked something of another machine"
    config = httpx.get(f"{url}/config").json()
    assert not config["analytics_enabled"] and httpx.get(f"{url}/gradio_api/info").json()["named_endpoints"] == {}
    with pytest.raises(ConnectionRefusedError):  # a server that listens on all addresses answers here too
        socket.create_connection(("127.0.0.2", int(url.rsplit(":", 1)[1])))


def test_with_the_real_ollama_and_the_nano_model(ollama, chained, browser, tmp_path):
    """It has learned to talk like a pirate, and nothing of cards: the page says so, or shows what passed for a card; it does not break."""
    made = room("ollama", "pirate-nano")
    assert made.returncode == 0, made.stderr
    with serving("pirate-nano", ollama, tmp_path / "log") as (url, _), opened(browser, url) as tab:
        tab.ask("How a sailing ship tacks", 2)
        tab.until(
            "/^(done|wrong)$/.test(document.querySelector('[data-state]').dataset.state) && document.querySelector('.say').textContent", 300
        )
        line, shown = tab.says(), tab.shown()
        assert shown if " card" in line and "no card" not in line else line.startswith("pirate-nano wrote no card, "), line
        assert (tmp_path / "log").read_text().count("\n") == 2 and line in (tmp_path / "log").read_text()


if __name__ == "__main__":  # the README's picture
    with (
        tempfile.TemporaryDirectory() as home,
        stand_in(["stand-in"]) as ours,
        serving("stand-in", ours.url, Path(home) / "log") as (page, _),
    ):
        with chromium(home) as devtools, opened(devtools, page) as one:
            one.ask("Photosynthesis", 8)
            ours.replies.put(written(PLANTS))
            one.until("document.querySelectorAll('.deck button').length === 6")
            one.js("document.querySelectorAll('.deck button')[1].click()")
            one.picture("reports/cards.png")
