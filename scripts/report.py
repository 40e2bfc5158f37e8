"""The page of a run: what came of it, what it was made from, and how to make it again.

    python -m scripts.report pirate-nano     # → reports/pirate-nano/index.html, README.md; reports/experiments.csv; reports/README.md

Everything is read from the receipts, log and scores in outputs/NAME; nothing is trained or measured here.
A run that failed, or goes on, gets its page too; so does, in README.md, a recipe modelled on a published run (recipes/facts/published.yml), run or not. index.html stands alone: no scripts, nothing from elsewhere.
The same outputs give the same bytes.
"""

import base64
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from scripts import facts, files, process, recipe
from scripts.runs import book, canvas, draw, gather, page, published, words

PICTURES = {  # file: what is on it, for those who do not see it
    "curves": "Curves by step: loss with evaluations, and learning rate, gradient norm, throughput and memory as far as they were logged",
    "strength": "The adapter's change as a share of the base's weights, by kind of matrix and layer, and its growth over the evaluations",
    "scores": "The share of replies that pass each check, by stage, with 95 % intervals",
}


def predict(found):
    """(what `make plan` says of this run, None), or (None, why nothing it says could be held to it)."""
    name, made, then = found["name"], found["stages"]["train"], found["recipe"]
    try:
        now = recipe.meaning(recipe.load(name))
        changed = [k for k in sorted({*now, *then} - {"base_model"}) if now.get(k) != then.get(k)]
        changed += [p for p, digest in found["data"].items() if not Path(p).is_file() or files.sha256(p) != digest]
        if changed:
            return None, f"the plan is of the recipe as it is now; since this run there changed: {', '.join(changed)}"
        asked = [sys.executable, "-m", "scripts.plan", name, "--json", *(["--gpus", str(made["figures"]["ranks"])] if made else [])]
        machine = (made or found["stages"]["preprocess"] or {}).get("machine") or {}
        asked += ["--gpu", facts.gpu_called(machine["gpus"][0])] if made and machine.get("gpus") else []
        asked += ["--cores", str(machine["cores"])] if machine.get("cores") else []
    except ValueError as error:
        return None, str(error)
    told = subprocess.run(asked, capture_output=True, text=True)
    return (json.loads(told.stdout), None) if not told.returncode else (None, told.stderr.strip())


def pictures(found):
    """{picture: {"light", "dark", "light narrow", "dark narrow": PNG bytes}} of those that there is something to draw for."""
    log, stages = found["log"], (found["score"] or {"stages": {}})["stages"]
    drawn = {}
    for form, width in (("", canvas.WIDE), (" narrow", canvas.NARROW)):
        for theme in canvas.THEMES:
            made = {"curves": draw.curves([(found["name"], log)], theme, width) if log else None}
            made |= {"strength": draw.strength(log, theme, width) if log else None, "scores": draw.scores(stages, theme, width)}
            for name in [n for n, png in made.items() if png]:
                drawn.setdefault(name, {})[theme + form] = made[name]
    return drawn


def inline(png):
    return "data:image/png;base64," + base64.b64encode(png).decode()


def size(png):
    """Width and height in pixels, from a PNG's header."""
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def plain(text):
    """A text for a cell of a Markdown table: one line, none of its characters taken for a sign, long words breakable."""
    text = re.sub(r"(\S{30})(?=\S)", "\\1\u200b", str(text))
    text = re.sub(r"[&<>]", lambda m: {"&": "&amp;", "<": "&lt;", ">": "&gt;"}[m[0]], text)
    text = re.sub(r"([\\`*\[\]~|#]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text).replace("$", "<span>$</span>")
    return re.sub(r"\r?\n", "<br>", text).replace("\u200b", "<wbr>")


def said(text):
    """A sentence of ours in Markdown: what stands in backticks stays code."""
    return "".join(f"`{part}`" if n % 2 else plain(part) if part.strip() else part for n, part in enumerate(str(text).split("`")))


def said_html(text):
    """The same in HTML."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(str(text), quote=False)))


def render(template, content, escape):
    import jinja2

    env = jinja2.Environment(autoescape=escape, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    env.filters |= {"plain": plain, "said": said_html if escape else said, "inline": inline, "size": size}
    text = Path(__file__).with_suffix(template).read_text(encoding="utf-8")
    return env.from_string(text).render(content) + "\n"


def write(folder, content, drawn):
    """The two pages and their pictures; a picture that there is no more is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        path = folder / f"{name}.png"
        if name not in drawn:
            path.unlink(missing_ok=True)
        elif not path.is_file() or path.read_bytes() != drawn[name]["light"]:
            tmp = path.with_name(f".{path.name}.{os.getpid()}")
            tmp.write_bytes(drawn[name]["light"])
            os.replace(tmp, path)
    files.write_if_changed(folder / "index.html", render(".html", content, True))
    files.write_if_changed(folder / "README.md", render(".md", content, False))


def main(argv):
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python -m scripts.report NAME", file=sys.stderr)
        return 2
    book.read()  # a log that cannot be added to is told of before anything is drawn
    folder = Path("reports", argv[0])
    if not gather.ran(argv[0]) and (part := published.part(argv[0], None)):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_if_changed(folder / "README.md", f"# {argv[0]}\n\nNot run yet.\n\n{render('.published.md', part, False)}")
        book.renew()
        print(f"report      {folder}/README.md: not run yet; published figures beside the plan's\nindex       {book.INDEX}")
        return 0
    found = gather.run(argv[0])
    told, why = predict(found)
    row, drawn = book.line(found, told), pictures(found)
    content = page.content(found, row, told, why) | {"drawn": drawn, "alt": PICTURES}
    content |= {"yaml": yaml.safe_dump(words.public(found["recipe"]), sort_keys=False, allow_unicode=True, width=110)}
    part = published.part(argv[0], found)
    content["published"] = render(".published.md", part, False) if part else ""
    write(folder, content, drawn)
    book.record(row)
    print(f"report      {folder}/index.html, README.md\nverdict     {content['verdict']['word']}: {content['verdict']['sentence']}")
    for finding in content["verdict"]["findings"]:
        print(f"            {finding['cause']}: {finding['evidence']}")
    print(f"log         {book.LOG}\nindex       {book.INDEX}")
    return 0


if __name__ == "__main__":
    process.command(main)
