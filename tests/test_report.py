import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import one_line, room

from scripts import facts, report
from scripts.runs import book, canvas, draw, gather, page, published, words

NAME = "pirate-nano"
OUT, PAGES = Path("outputs", NAME), Path("reports", NAME)
NASTY = ["<script>alert(1)</script> & <b>bold</b>\n\n# no heading\n- a | b", "`code` *star* _under_ [link](x) ~~gone~~ 5 $", "x" * 300]
KINDS = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]


@pytest.fixture
def plain(chained):
    """The chain's copy with neither scores nor health.jsonl, and no reports yet: each test lays down what it is about."""
    for path in (OUT / "health.jsonl", OUT / "score.json", OUT / "eval", PAGES, book.LOG, book.INDEX):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return chained


def read(path):
    return json.loads(Path(path).read_text())


def lines_of(rows):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def change(stage, **what):
    path = OUT / f"{stage}.json"
    path.write_text(json.dumps(read(path) | what))


def interval(mean, n=100):
    half = 1.96 * math.sqrt(max(mean * (1 - mean), 0.01) / n)
    return {"mean": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "n": n}


def log_health(until=None, spoil=None, end=True):
    """health.jsonl as the plug-in writes it, from the real losses of the chain; `spoil` changes a row."""
    state = read(OUT / "adapter/trainer_state.json")
    run = {"began": "2026-11-21T10:00:00+00:00", "steps": 281, "epochs": 2, "ranks": 1, "global_batch": 8, "rows": 1124, "resumed_from": 0}
    found = [{"run": run | {"device": "cpu"}}]
    for row in [r for r in state["log_history"] if until is None or r["step"] <= until]:
        line = {k: row[k] for k in ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss") if k in row}
        if "eval_loss" in row:
            grown = 0.3 * (1 - math.exp(-row["step"] / 70))
            line["adapter"] = {
                f"layers.{n}.{k}": {"a": 3.0, "b": 9 * grown, "delta": 20 * grown, "base": 20.0, "share": grown + n / 1000}
                for n in range(3)
                for k in KINDS
            }
        else:
            line |= {"memory_gib": 1.5, "tokens_per_s": 900.0 + row["step"]}
        found.append(spoil(line) if spoil else line)
    found += [{"end": {"step": found[-1]["step"], "verdict": "healthy", "seconds": 90.0}}] if end else []
    (OUT / "health.jsonl").write_text(lines_of(found))


def score_it(stages=("base", "merged", "ollama")):
    """score.json and the replies as `make eval` writes them."""
    figures = {}
    for n, stage in enumerate(stages):
        figures[stage] = {
            "style": interval(0.3 * n + 0.05),
            "ends": interval(0.99),
            "passed": interval(0.4 * n),
            "tokens_per_s": 800.0,
            "seconds": 9.0,
        }
        figures[stage] |= (
            {"ppl": {"mean": 300.5 - 90 * n, "low": 280.0 - 90 * n, "high": 320.0 - 90 * n, "n": 100}} if stage != "ollama" else {}
        )
        (OUT / "eval").mkdir(exist_ok=True)
        ten = [json.loads(line) for line in Path("datasets/pirate/ten.jsonl").read_text().splitlines()]
        said = [NASTY[i] if i < 3 and stage == "ollama" else f"reply {i} of {stage}" for i in range(len(ten))]
        rows = [
            {"id": t["id"], "prompt": t["messages"][-1]["content"], "reply": r, "ended": i != 4} for i, (t, r) in enumerate(zip(ten, said))
        ]
        (OUT / f"eval/ten-{stage}.jsonl").write_text(lines_of(rows))
        (OUT / f"eval/{stage}.jsonl").write_text(lines_of(rows))
    made = read(OUT / "train.json") | {"stage": "score", "made": read(OUT / "modelfile.json")["made"]}
    (OUT / "score.json").write_text(json.dumps(made | {"figures": {"prompts": 100, "seed": 1, "decoding": "greedy", "stages": figures}}))


def unfinish(step=120, **more):
    """The chain as if training had stopped there."""
    log_health(until=step, **more)
    for stage in gather.STAGES[1:]:
        (OUT / f"{stage}.json").unlink(missing_ok=True)
    for folder in ("adapter", "merged", "gguf", "training"):
        shutil.rmtree(OUT / folder)
    old = (OUT / "train.json", OUT / "health.jsonl", OUT / "logs/train.log")
    for path in old:
        os.utime(path, (1e9, 1e9)) if path.exists() else None


class Reader(HTMLParser):
    """A page's elements, the addresses in it, and the texts of its replies."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.addresses, self.replies, self.inside, self.open = [], [], [], False, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "srcset", "href", "action", "data")]
        if tag == "p" and self.inside:
            self.replies.append("")
            self.open = True
        self.inside = self.inside or dict(attributes).get("class") == "reply"

    def handle_endtag(self, tag):
        self.open, self.inside = self.open and tag != "p", self.inside and tag != "article"

    def handle_data(self, text):
        if self.open:
            self.replies[-1] += text


def content():
    """What the page says, without drawing it."""
    found = gather.run(NAME)
    told, why = report.predict(found)
    return page.content(found, book.line(found, told), told, why)


def test_the_page_of_the_real_chain(chained, tmp_path):
    made = room("report", NAME, XDG_CACHE_HOME=tmp_path / "cache", MPLCONFIGDIR=tmp_path / "none")  # no font cache yet
    assert made.returncode == 0 and made.stderr == "", made.stderr
    assert "verdict     healthy" in made.stdout
    text, markdown = (PAGES / "index.html").read_text(), (PAGES / "README.md").read_text()
    train = read(OUT / "train.json")
    first, last = (f"{train['figures']['eval_losses'][i]:.3f}" for i in (0, -1))
    of = [f"{first} → {last}", "r 64", words.seconds(train["seconds"]), words.gib(train["peak_memory_gib"]), "lora_dropout: 0.05"]
    of += [*train["outputs"].values(), train["machine"]["cpu"], train["versions"]["torch"]]
    of += [f"{size:,.1f} MiB" for kind, size in read(OUT / "gguf.json")["figures"].items() if kind.endswith("_mib")]
    assert not [said for said in of if said not in text or said not in markdown]
    for name, there in (("curves", True), ("strength", (OUT / "health.jsonl").exists()), ("scores", (OUT / "score.json").exists())):
        assert (PAGES / f"{name}.png").is_file() == there == (f"({name}.png)" in markdown), name
    row = next(r for r in book.read() if r["run"] == gather.run(NAME)["run"])
    assert row["recipe"] == NAME and row["status"] == "healthy" and float(row["eval_loss"]) == round(train["figures"]["eval_losses"][-1], 4)
    assert row["steps"] == "281" and row["rows"] == "1124" and float(row["minutes"]) == round(train["seconds"] / 60, 2)


def test_the_page_stands_alone_and_is_the_same_again(plain):
    log_health()
    score_it()
    assert report.main([NAME]) == 0
    text = (PAGES / "index.html").read_text()
    read_page = Reader(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(read_page.elements)
    assert read_page.addresses and all(a.startswith("data:image/png;base64,") for a in read_page.addresses)
    assert not re.search(r"@import|url\(|https?:", text) and len(text.encode()) < 1_000_000
    private = [str(plain), str(Path.home()), os.uname().nodename]
    for path in PAGES.iterdir():
        if path.suffix in (".html", ".md"):
            assert not [p for p in private if len(p) > 5 and p in path.read_text()], path
    for name in report.PICTURES:
        png = (PAGES / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n" and b"tEXt" not in png and b"tIME" not in png
        assert report.size(png)[0] == canvas.WIDE * canvas.DPI
    before = {p: p.read_bytes() for p in (*PAGES.iterdir(), book.LOG, book.INDEX)}
    again = room("report", NAME)  # another process
    assert again.returncode == 0, again.stderr
    assert before == {p: p.read_bytes() for p in (*PAGES.iterdir(), book.LOG, book.INDEX)}


def test_what_a_model_says_is_shown_and_never_obeyed(plain):
    from markdown_it import MarkdownIt

    score_it()
    shown = content() | {"drawn": {}, "alt": report.PICTURES, "yaml": ""}
    replies = Reader(report.render(".html", shown, True)).replies
    assert [r.removeprefix("ollama") for r in replies[1::2][:3]] == NASTY
    assert replies[8].endswith("[cut off: it did not end]") and not replies[10].endswith("]")
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(report.render(".md", shown, False))
    cells = [t.children for t in tokens if t.type == "inline"]
    for reply in NASTY:
        cell = next(
            c for c in cells if c and c[0].type == "text" and "".join(x.content for x in c if x.type == "text").startswith(reply[:7])
        )
        assert {c.type for c in cell} <= {"text", "html_inline"} and {c.content for c in cell if c.type == "html_inline"} <= {
            "<br>",
            "<span>",
            "</span>",
            "<wbr>",
        }
        assert "".join("\n" if c.content == "<br>" else c.content * (c.type == "text") for c in cell) == reply


def test_scores_stand_before_and_after_with_their_intervals(plain):
    score_it()
    shown = content()
    assert ("Score", "0 % → 80 %", "base\u00a00–2\u00a0%, ollama\u00a072–88\u00a0%") in shown["cards"]
    rows = {check: cells for check, _, cells in shown["scores"]["rows"]}
    assert list(rows) == ["passed", "style", "ends", "perplexity", "tokens/s"] and rows["passed"][2] == ("80 %", "72–88")
    assert rows["perplexity"] == [("300.5", "280–320"), ("210.5", "190–230"), ("–", "")]
    line = book.line(gather.run(NAME))
    assert (line["scored"], line["score"], line["ppl"], line["style"]) == ("ollama", 0.8, 210.5, 0.65)
    figures = read(OUT / "score.json")["figures"] | {"tasks": {"arc_easy": {"acc": 0.25, "acc_stderr": 0.0089, "acc_norm": 0.5}}}
    change("score", figures=figures)
    assert content()["tasks"] == [("arc_easy", "acc", "0.25 ± 0.0089"), ("arc_easy", "acc_norm", "0.5")]
    score_it(["base"])
    assert book.line(gather.run(NAME))["score"] is None  # the base is not this run's work


def test_a_run_that_learned_nothing_gets_its_page(plain):
    unfinish(30, spoil=lambda row: row | {"grad_norm": 0.0} if "loss" in row else row)
    made = room("report", NAME)
    assert made.returncode == 0 and "verdict     dead" in made.stdout, made.stderr
    text = (PAGES / "index.html").read_text()
    assert 'class="verdict bad"' in text and "no gradient" in text and "1 min 30 s" in text and "nothing to hold one to" in text
    assert f"| dead | [report]({NAME}/README.md)" in book.INDEX.read_text()


def test_what_the_plugin_saw_in_the_weights_counts_though_the_log_does_not_show_it(plain):
    unfinish(6)
    finding = {
        "cause": "no gradient",
        "evidence": "lora_B is still 0 in every one of 21 modules",
        "fix": "look",
        "severity": "dead",
        "cost": "1",
    }
    with open(OUT / "health.jsonl", "a") as out:
        out.write(lines_of([{"step": 6, "finding": finding}, {"end": {"step": 6, "verdict": "dead", "seconds": 9.0}}]))
    shown = content()["verdict"]
    assert shown["word"] == "dead" and shown["findings"][0]["evidence"] == finding["evidence"]


def test_a_run_that_was_killed_or_goes_on_says_so(plain):
    unfinish(end=False)
    shown = content()["verdict"]
    assert shown["word"] == "unfinished" and "step 120 of 281" in shown["sentence"]
    (OUT / "logs/train.log").touch()
    shown = content()["verdict"]
    assert shown["word"] == "in progress" and "step 120 of 281" in shown["sentence"]
    assert book.line(gather.run(NAME))["minutes"] is None


def test_a_checkpoint_alone_is_a_run_too(plain):
    for stage in gather.STAGES[1:]:
        (OUT / f"{stage}.json").unlink(missing_ok=True)
    shutil.rmtree(OUT / "adapter")
    shutil.rmtree(OUT / "training/checkpoint-281")
    os.utime(OUT / "logs/train.log", (1e9, 1e9))
    found = gather.run(NAME)
    assert (found["state"], found["log"]["step"], found["verdict"]["verdict"]) == ("stopped", 213, "unfinished")
    assert not draw.strength(found["log"]) and draw.curves([(NAME, found["log"])])


def test_receipts_of_an_earlier_run_are_left_out(plain):
    score_it()
    health = {"run": {"began": "2100-01-01T00:00:00Z", "steps": 281, "ranks": 1, "resumed_from": 0}}
    (OUT / "health.jsonl").write_text(lines_of([health, {"step": 1, "loss": 4.5}, {"step": 2, "loss": 4.4}]))
    found = gather.run(NAME)
    assert found["earlier"] == ["train", "merge", "gguf", "modelfile", "score"] and list(found["score"]["stages"]) == ["base"]
    assert found["run"] == "2100-01-01T00:00:00Z pirate-nano" and found["log"]["step"] == 2 and book.line(found)["last_loss"] == 4.4


def test_nothing_to_report_is_one_line(plain):
    one_line(room("report", "pirate+seed=7"), "pirate", "not run yet", 'make train RECIPE=pirate SET="seed=7"')
    one_line(room("report", "pirat"), "did you mean pirate?")
    one_line(room("report", "pirate-nano+seed=7"), 'make train RECIPE=pirate-nano SET="seed=7"')
    for path in (*OUT.glob("*.json"), OUT / "adapter", OUT / "training"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    one_line(room("report", NAME), "nothing was trained yet", "make train")
    assert room("report").returncode == 2 and not PAGES.exists()


@pytest.mark.parametrize("stage", ["preprocess", "train", "gguf"])
@pytest.mark.parametrize(
    "spoil",
    [lambda text: text[:200], lambda text: "[]", lambda text: "{}", lambda text: json.dumps(json.loads(text) | {"made": "yesterday"})],
)
def test_a_damaged_receipt_is_named(plain, stage, spoil):
    path = OUT / f"{stage}.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(
        ValueError, match=rf"^{path}: not a whole receipt \(.*\); `rm '{path}'`, then `make {stage} RECIPE=pirate-nano` makes it anew$"
    ):
        gather.run(NAME)


def test_what_else_is_damaged_is_named(plain):
    score_it()
    whole = (OUT / "score.json").read_text()
    change("score", figures={"classifier_accuracy": 0.97, "base": {"style": 0.0}})  # as an older version wrote it
    one_line(room("report", NAME), "score.json", "no sound figures.stages", "make eval")
    change("score", figures={"stages": {"base": {"passed": {"mean": 0.5}}}})
    with pytest.raises(ValueError, match="base.passed.low"):
        gather.run(NAME)
    (OUT / "score.json").write_text(whole)
    rows = (OUT / "eval/ten-base.jsonl").read_text().splitlines()
    (OUT / "eval/ten-base.jsonl").write_text("\n".join([*rows[:3], rows[3][:20]]))
    with pytest.raises(ValueError, match=r"ten-base.jsonl:4: .*make eval"):
        gather.run(NAME)
    (OUT / "eval/ten-base.jsonl").write_text("")  # as of a family without ten prompts
    assert "base" not in gather.run(NAME)["ten"]
    (OUT / "eval/ten-base.jsonl").write_text("\n".join(rows))
    shutil.rmtree(OUT / "training")
    (OUT / "adapter/trainer_state.json").write_text('{"log_history": [')
    assert "trainer_state.json" in one_line(room("report", NAME))


def test_a_prediction_is_held_to_the_recipe_that_was_run(plain):
    shown = content()["plan"]
    assert shown["rows"][0] == ("steps", "281", "281", "as predicted") and shown["rows"][1][0] == "minutes"
    took = read(OUT / "train.json")["seconds"] / 60
    assert shown["rows"][1][2] == f"{took:.2f}" and page.within(5.0, {"low": 1.0, "high": 2.5}) == "2.0 × the highest"
    expected = []
    for cores in (1, 16):  # those of the machine that it ran on, not of the one that writes the page
        change("train", machine=read(OUT / "train.json")["machine"] | {"cores": cores})
        expected.append(report.predict(gather.run(NAME))[0]["minutes"]["expected"])
    assert expected[0] > 2 * expected[1]
    figures = read(OUT / "train.json")["figures"]
    change("train", figures=figures | {"resumed_from_step": 142})
    shown = content()
    assert "resumed" in shown["plan"]["rows"][1][2] and any("since step 142" in note for _, _, note in shown["cards"])
    recipe = Path("recipes/pirate-nano.yml")
    recipe.write_text(recipe.read_text().replace("num_epochs: 2", "num_epochs: 3"))
    assert "num_epochs" in content()["plan"]["why"]
    recipe.unlink()
    assert "no recipe 'pirate-nano'" in content()["plan"]["why"]


def test_a_gpu_run_shows_what_the_gpu_reserved(plain):
    figures = read(OUT / "train.json")["figures"] | {"gpu_memory_gib": 28.4, "ranks": 4, "base_memory_gib": 5.9, "peak_memory_gib": 28.4}
    change("train", figures=figures, machine={"cpu": "x", "cores": 64, "ram_gib": 500.0, "gpus": ["NVIDIA A100-SXM4-80GB"] * 8})
    found = gather.run(NAME)
    line = book.line(found, {"minutes": {"expected": 3.0}, "vram_gib": {"expected": 9.0, "parts": {"runtime": 1.2}}, "rows": 7})
    assert (line["machine"], line["peak_memory_gib"], line["predicted_gib"]) == ("4 × NVIDIA A100-SXM4-80GB", 28.4, 7.8)
    split = "reserved on a GPU; 5.90 GiB before the first step, 22.5 GiB more in training"
    assert ("Peak memory", "28.4 GiB", split) in page.cards(found, line)
    assert "make train RECIPE=pirate-nano GPUS=4" in page.commands(found, line)


def test_a_variant_has_a_page_of_its_own(plain):
    name = "pirate-nano+lora_r=16"
    shutil.move(OUT, f"outputs/{name}")
    recipe = Path("outputs", name, "recipe.yml")
    recipe.write_text(recipe.read_text().replace("lora_r: 64", "lora_r: 16").replace("outputs/nano/pirate", "/home/ann/models/llama"))
    assert room("report", name).returncode == 0
    text = Path("reports", name, "README.md").read_text()
    assert 'make train RECIPE=pirate-nano SET="lora_r=16" BASE=…/llama' in text and "ann" not in text
    index = book.INDEX.read_text()
    assert (
        f"| `{name}` |" in index and "(pirate-nano%2Blora_r%3D16/README.md)" in index and "| `pirate-nano` | any, no GPU needed |" in index
    )
    assert [r["base"] for r in book.read()] == ["…/llama"]


def test_the_index_says_what_never_ran_and_keeps_what_failed(copy):
    shutil.rmtree("reports")
    row = dict.fromkeys(book.COLUMNS) | {
        "run": "2026-01-01T00:00:00Z pirate",
        "recipe": "pirate",
        "status": "dead",
        "eval_loss": 2.5,
        "machine": "4 × A100",
    }
    book.record(row)
    index = book.INDEX.read_text()
    assert re.search(r"^\| `pirate` \| 4 × A100 \|.* 2\.500 \| not scored \| dead \|", index, re.M)
    assert re.search(r"^\| `pirate-nano` \| any, no GPU needed \|.* not run yet \|", index, re.M)
    for kept in ("[bench.json](bench.json)", "(calibration/README.md)", "xray.html"):
        assert kept in index
    book.record(row | {"run": "2026-02-01T00:00:00Z pirate", "status": "healthy", "eval_loss": 1.25})
    assert "1.250" in book.INDEX.read_text() and "| dead |" not in book.INDEX.read_text() and len(book.read()) == 2
    Path("recipes/pirate-nano.yml").write_text("a: [")
    book.record(row)
    assert "cannot be read" in book.INDEX.read_text()


def test_the_log_is_plain_csv_and_a_run_has_one_line(copy):
    shutil.rmtree("reports")
    row = dict.fromkeys(book.COLUMNS) | {"run": "a", "recipe": "pirate", "machine": 'AMD "EPYC", 2 cores', "base": "a\nb", "minutes": 1.5}
    book.record(row)
    book.record(row | {"minutes": 2.0})
    book.record(row | {"run": "b"})
    raw = book.LOG.read_bytes()
    assert raw.count(b"\r\n") == 3 and list(csv.reader(io.StringIO(raw.decode(), newline="")))[0] == book.COLUMNS
    rows = book.read()
    assert (
        [(r["run"], r["minutes"]) for r in rows] == [("a", "2"), ("b", "1.5")]
        and rows[0]["machine"] == row["machine"]
        and rows[0]["base"] == "a\nb"
    )


def test_reports_at_once_lose_nothing(copy):
    shutil.rmtree("reports")
    one = "book.record(dict.fromkeys(book.COLUMNS) | {'run': f'{me}-{n}', 'recipe': f'r{me}', 'status': 'x' * 2000})"
    code = f"import sys; from scripts.runs import book; me = sys.argv[1]\nfor n in range(20): {one}"
    at_once = [subprocess.Popen([sys.executable, "-c", code, str(n)], stderr=subprocess.PIPE, text=True) for n in range(8)]
    torn = []
    while any(p.poll() is None for p in at_once):
        torn += [r for r in book.read() if r["status"] != "x" * 2000]
    assert [p.communicate()[1] for p in at_once] == [""] * 8 and not torn
    assert sorted(r["run"] for r in book.read()) == sorted(f"{p}-{n}" for p in range(8) for n in range(20))
    assert not [p for p in Path("reports").iterdir() if p not in (book.LOG, book.INDEX)]
    assert all(f"| `r{n}` |" in book.INDEX.read_text() for n in range(8))


@pytest.mark.parametrize(
    "text, said",
    [
        ("date,model,loss\n1,2,3\n", "experiments.csv:1: its columns"),
        (",".join(book.COLUMNS) + "\r\na,b\r\n", "experiments.csv:2: 2 fields"),
        ("\x00\xff", "experiments.csv"),
        ("", "experiments.csv:1"),
    ],
)
def test_a_damaged_log_is_one_line_and_is_left_as_it_is(plain, text, said):
    book.LOG.write_bytes(text.encode("latin-1"))
    one_line(room("report", NAME), said)
    assert book.LOG.read_bytes() == text.encode("latin-1") and not PAGES.exists()


def test_pictures_show_what_there_is(tmp_path):
    log = {"rows": [{"step": n, "epoch": n / 10, "loss": 4 - n / 50, "grad_norm": 0.0} for n in range(1, 31)], "step": 30, "steps": 30}
    whole = draw.curves([("a", log)])
    assert whole == draw.curves([("a", log)]) != draw.curves([("a", log)], "dark") and draw.curves([("a", log), ("b", log)])
    assert report.size(draw.curves([("a", log)], width=canvas.NARROW))[0] == canvas.NARROW * canvas.DPI
    spoilt = {**log, "rows": [*log["rows"], {"step": 31, "loss": "nan"}, {"step": 32, "loss": math.inf}]}
    assert draw.curves([("a", spoilt)]) != whole
    assert draw.curves([("a", {"rows": [{"step": 1, "learning_rate": 1e-4}]})]) is None and draw.scores({}) is None
    assert canvas.running([1, 2, 3, 4, 5], 3) == [1.5, 2, 3, 4, 4.5]
    many = [(n, math.sin(n)) for n in range(100_000)]
    few = canvas.thinned(many)
    assert len(few) <= canvas.POINTS + 2 and few == sorted(few) and set(few) <= set(many)
    norms = {f"layers.{n}.mlp.experts.{e}.up_proj": {"share": 0.1 * e} for n in range(2) for e in range(3)}
    assert draw.shares({"rows": [{"step": 5, "adapter": norms | {"lm_head": {"share": 1.0}}}]}) == [
        (5, {("up_proj", 0): pytest.approx(0.1), ("up_proj", 1): pytest.approx(0.1)})
    ]


def test_figures_read_as_people_write_them():
    assert [words.seconds(x) for x in (0.06, 47, 812.4, 7500)] == ["0.1 s", "47 s", "13 min 32 s", "2 h 05 min"]
    assert [words.share(x) for x in (0, 0.003, 0.92, 0.998, 1)] == ["0 %", "0.3 %", "92 %", "99.8 %", "100 %"]
    assert words.public({"a": ["/home/ann/x", "outputs/x", 3]}) == {"a": ["…/x", "outputs/x", 3]}


def rows_of(text, start):
    """The cells of the Markdown table row that begins so."""
    found = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    assert len(found) == 1, (start, found)
    return [cell.strip() for cell in found[0].strip("|").split(" | ")]


def test_a_published_run_has_its_page_before_the_recipe_is_run(copy):
    assert room("report", "pirate").returncode == 0
    text, index = Path("reports/pirate/README.md").read_text(), book.INDEX.read_text()
    told = read_json(room("plan", "pirate", "--json"))
    assert "Not run yet." in text and "| `pirate` |" in index and "[report](pirate/README.md)" in index
    space, time = page.told_as(told["vram_gib"]), page.told_as(told["minutes"])
    assert rows_of(text, "GiB active")[1:] == ["24.73", space, "no GPU has been measured"]
    assert rows_of(text, "GiB reserved")[1:3] == ["28.42", space] and rows_of(text, "minutes")[1:3] == ["39.56", time]
    assert rows_of(text, "loss at epochs 1.27 and 1.33")[1:] == ["0.9456 → 0.9146", "not predicted", "not run here"]
    assert rows_of(text, "The loss falls steadily")[1:] == [
        "**cannot be told**",
        "not known here: pirate-nano has not been run on this machine",
    ]
    assert "{" not in text and "None" not in text and "nan" not in text.split()
    before = {p: p.read_bytes() for p in Path("reports").rglob("*") if p.is_file()}
    assert room("report", "pirate").returncode == 0 and before == {p: p.read_bytes() for p in Path("reports").rglob("*") if p.is_file()}


def read_json(made):
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_the_published_run_beside_what_the_twin_measured(plain):
    found, of = gather.run(NAME), facts.table("published.yml")["runs"]["pirate"]
    assert room("report", "pirate").returncode == 0
    text = Path("reports/pirate/README.md").read_text()
    wanted = [min((r for r in found["log"]["rows"] if "loss" in r), key=lambda r: abs(r["epoch"] - e)) for e in of["log"]["epoch"]]
    assert rows_of(text, "loss at")[3] == " → ".join(f"{r['loss']:.3f}" for r in wanted) + " (pirate-nano)"
    assert rows_of(text, "epochs")[3] == f"{found['stages']['train']['figures']['epochs']:.2f} (pirate-nano)"
    assert f"{Path('outputs/nano/pirate/model.safetensors').stat().st_size:,} bytes each" in text and "not known here" not in text
    shutil.copytree(OUT, "outputs/pirate")
    assert room("report", "pirate").returncode == 0
    text = Path("reports/pirate/README.md").read_text()
    assert text.index("## Curves") < text.index("## The published run") < text.index("## To make it again") and "Not run yet" not in text
    assert (
        rows_of(text, "loss at")[3].endswith("(pirate)")
        and "not run yet" not in re.search(r"^\| `pirate` .*", book.INDEX.read_text(), re.M)[0]
    )


def test_a_gpu_run_of_the_recipe_is_laid_beside_the_published_one(copy):
    of, told = facts.table("published.yml")["runs"]["pirate"], read_json(room("plan", "pirate", "--json"))
    rows = [
        {"step": 100 * n, "epoch": e, "loss": x, "grad_norm": 0.5, "memory/max_active (GiB)": 7.25}
        for n, (e, x) in enumerate([(1.27, 0.9), (1.33, 0.8)], 1)
    ]
    made = {"seconds": 2370.0, "machine": {"gpus": ["NVIDIA A100-SXM4-80GB"] * 4}, "figures": {"gpu_memory_gib": 8.5}}
    found = {"name": "pirate", "log": {"rows": rows}, "stages": {"train": made}}
    shown = {row[0]: row[3] for row in published.compared(of, published.recipe.load("pirate"), told, found, None)}
    assert shown["GiB reserved on a device"] == "8.50" and shown["GiB active on a device"] == "7.25" and shown["minutes"] == "39.50"
    assert shown["loss at epochs 1.27 and 1.33"] == "0.900 → 0.800 (pirate)" and shown["learning rate there"] == "not run here"


def test_what_is_said_of_the_published_figures_is_computed():
    of = facts.table("published.yml")["runs"]["pirate"]
    lies = {row[0]: row[2:] for row in published.supposed(of)}
    inside = [what for what, found in lies.items() if set(found) == {"within the interval"}]
    assert 0 < len(inside) < len(lies), "where every setting fits, or none, the interval says nothing"
    for epoch, rate in zip(of["log"]["epoch"], of["log"]["learning_rate"]):  # the epochs are rounded to 0.01, the rates to three digits
        early, late = (2e-4 * published.share_of_peak(epoch + off, 2, 0.02) for off in (-0.005, 0.005))
        assert late - 5e-8 <= rate <= early + 5e-8, (late, rate, early)
    values = published.figures(of, published.recipe.load("pirate"), None)
    assert values["adapter_16"] == 336 and values["base_gb"] == "16.1" and "jitter" not in values
    assert published.part("pirate-nano", None) is None
    told = {"tokens": 100, "epochs": 2}
    low, high = map(float, re.findall(r"^(\d+) to (\d+) million", published.tokens(of, told))[0])
    assert 5 < low < high < 100


def test_all_published_points_lie_within_the_plan():
    found = published.points()
    assert len(found) >= 17 and {lies for *_, lies in found} == {"within the interval"}
