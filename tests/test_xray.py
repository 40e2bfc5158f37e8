import html
import json
import re
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest import one_line, room

from scripts import xray

NAME = "pirate-nano"
RECIPE, REPORT = Path("outputs", NAME, "recipe.yml"), Path("reports", NAME)
PAGE, PNG = REPORT / "xray.html", REPORT / "xray.png"


def sets():
    """The prepared folders, the training set first: here it is the larger one."""
    found = [p.parent for p in Path("outputs", NAME, "prepared").glob("*/dataset_info.json")]
    return sorted(found, key=lambda p: -(p / "data-00000-of-00001.arrow").stat().st_size)


def rows_of(folder):
    from datasets import load_from_disk

    return load_from_disk(str(folder)).to_list()


def replace_rows(folder, rows):
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk("outputs/changed")
    shutil.rmtree(folder)
    shutil.move("outputs/changed", folder)


def change_recipe(**keys):
    RECIPE.write_text(yaml.safe_dump(yaml.safe_load(RECIPE.read_text()) | keys))


@pytest.fixture
def tokenizer(chain):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained("outputs/nano/pirate")


@pytest.fixture
def no_browser(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


class Reader(HTMLParser):
    """A page's elements, and of each row its text and its tokens: (id, whether it is shown as learned)."""

    def __init__(self):
        super().__init__()
        self.elements, self.text, self.tokens, self.row = set(), {}, {}, None
        self.feed(PAGE.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        attributes = dict(attributes)
        if tag == "article":
            self.row = int(attributes["id"].removeprefix("row-"))
            self.text[self.row], self.tokens[self.row] = "", []
        elif tag in "bi" and self.row is not None:
            self.tokens[self.row] += [(int(i), tag == "b") for i in attributes["title"].split()]

    def handle_data(self, text):
        if self.row is not None:
            self.text[self.row] += text


def figures(capsys):
    assert xray.main([NAME, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def counted(rows, end):
    """The same figures, counted by a walk over each row's tokens."""
    found = {"rows": len(rows), "tokens": 0, "trained_tokens": 0, "rows_without_reply": 0, "rows_without_end": 0}
    for row in rows:
        learned = [i for i, label in zip(row["input_ids"], row["labels"]) if label != -100]
        found["tokens"] += len(row["input_ids"])
        found["trained_tokens"] += len(learned)
        found["rows_without_reply"] += not [i for i in learned if i != end]
        found["rows_without_end"] += end not in learned
    return found


def counted_roles(rows, tokenizer):
    begin, close, end = tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    found = {}
    for row in rows:
        ids, role = row["input_ids"], "no role"
        for n, (token, label) in enumerate(zip(ids, row["labels"])):
            if token == begin:
                role = tokenizer.decode(ids[n + 1 : ids.index(close, n)])
            of = found.setdefault(role, {"turns": 0, "tokens": 0, "trained_tokens": 0, "ends_trained": 0})
            of["turns"] += token == begin or n == 0
            of["tokens"] += 1
            of["trained_tokens"] += label != -100
            of["ends_trained"] += label == end
    return found


def test_the_figures_are_those_of_the_data(chained, tokenizer, capsys, no_browser):
    found, (training, evaluation) = figures(capsys), map(rows_of, sets())
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    for which, rows in ("training", training), ("evaluation", evaluation):
        lengths = [len(row["input_ids"]) for row in rows]
        expected = counted(rows, end) | {"shortest": min(lengths), "longest": max(lengths), "rows_dropped": 0, "rows_cut": 0}
        assert expected.items() <= found[which].items()
    assert found["training"]["rows"] == 1124 and found["evaluation"]["rows"] == 100
    assert found["roles"] == counted_roles(training, tokenizer)
    assert found["roles"]["assistant"]["trained_tokens"] == found["training"]["trained_tokens"]
    assert found["training"]["tokens"] <= found["batches"]["slots"] < 1.1 * found["training"]["tokens"]


def test_the_page_stands_alone_and_is_the_same_again(chained, capsys):
    shutil.rmtree(REPORT, ignore_errors=True)
    assert xray.main([NAME]) == 0
    said, before = capsys.readouterr().out, PAGE.read_bytes()
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        image = PNG.read_bytes()
        assert image.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">II", image[16:24]) == (1200, 900) and len(image) > 20_000
    else:
        assert "no Chromium on PATH" in said and not PNG.exists()
    assert re.search(r"^rows +1,124, the longest 322 of 1,024 tokens; 0 dropped, 0 cut$", said, re.M) and len(said.splitlines()) == 5
    assert xray.main([NAME]) == 0
    assert PAGE.read_bytes() == before and len(before) < 400_000
    page, rows = Reader(), rows_of(sets()[0])
    assert not {"script", "link", "img", "iframe", "a"} & page.elements
    assert not re.search(rb"https?:|//|url\(|@import|src=", before)
    assert len(page.tokens) == 24 and not list(REPORT.glob(".*"))
    for i, tokens in page.tokens.items():
        assert tokens == [(token, label != -100) for token, label in zip(rows[i]["input_ids"], rows[i]["labels"])]


def test_without_a_browser_the_old_picture_stays(chained, capsys, no_browser):
    REPORT.mkdir(parents=True, exist_ok=True)
    PNG.write_bytes(b"an older picture")
    assert xray.main([NAME, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["recipe"] == NAME
    assert "picture     not made: no Chromium on PATH; `apt-get install chromium`" in said.err
    assert PNG.read_bytes() == b"an older picture" and PAGE.is_file()


def test_suspicious_rows_come_first_and_text_stays_text(chained, tokenizer, capsys, no_browser):
    """One row longer than all with markup, an emoji and blanks in it; one cut; one without a reply; one without an end; one of the file dropped."""
    rows = rows_of(sets()[0])[:-1]
    begin, end = tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|eot_id|>"])
    text = 'Avast <script>alert("1 & 2")</script> 🦜\n\n  two\u200bblanks '
    ids = tokenizer.encode(text, add_special_tokens=False)
    rows[7]["input_ids"][-1:-1] = ids * 12
    rows[7]["labels"][-1:-1] = ids * 12
    rows[3] = {"input_ids": [begin] + [40] * 1023, "labels": [-100] * 24 + [40] * 1000, "attention_mask": [1] * 1024}
    rows[6] = rows[3] | {"input_ids": [*rows[3]["input_ids"][:-1], end], "labels": [*rows[3]["labels"][:-1], end]}  # as long, and whole
    rows[4]["labels"] = [label if label == end else -100 for label in rows[4]["labels"]]
    rows[5]["labels"] = [label if label != end else -100 for label in rows[5]["labels"]]
    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    replace_rows(sets()[0], rows)
    found = figures(capsys)["training"]
    assert (found["rows_without_reply"], found["rows_without_end"], found["rows_cut"], found["rows_dropped"]) == (1, 2, 1, 1)
    page, source = Reader(), PAGE.read_text()
    assert list(page.text)[:3] == [4, 3, 5] and 7 in page.text
    assert "! the end is cut off at 1,024 tokens" in page.text[3] and "! no turn end is learned" in page.text[5]
    assert "script" not in page.elements and "<script" not in source and html.escape("<|eot_id|>") in source
    assert 'Avast <script>alert("1 & 2")</script> 🦜↵↵\n  two⟨U+200B⟩blanks' in page.text[7].replace("␣", " ")
    assert "2 rows where no turn end is learned" in source and "1 of 1,124 rows in the dataset files" in source


def test_rows_of_any_length_leave_the_page_small(chained, tokenizer, capsys, no_browser):
    rows = rows_of(sets()[0])[:60]
    for n, row in enumerate(rows[:40]):
        row["input_ids"], row["labels"] = (row[key][:-1] * (60 + n) + row[key][-1:] for key in ("input_ids", "labels"))
        row["attention_mask"] = [1] * len(row["input_ids"])
    replace_rows(sets()[0], rows)
    change_recipe(sequence_len=65536)
    assert figures(capsys)["training"]["longest"] == max(len(row["input_ids"]) for row in rows) > 5000
    assert PAGE.stat().st_size < 400_000 and "tokens not shown" in PAGE.read_text()
    # The training set is the smaller one now: its log names it, not its size.
    Path("outputs", NAME, "logs/preprocess.log").unlink()
    with pytest.raises(ValueError, match="does not say which set .* is for training"):
        xray.main([NAME])


def test_data_that_teaches_nothing_is_refused(chained, tokenizer, capsys, no_browser):
    shutil.rmtree(REPORT, ignore_errors=True)
    training, rows = sets()[0], rows_of(sets()[0])[:50]
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    replace_rows(training, [row | {"labels": [label if label != end else -100 for label in row["labels"]]} for row in rows])
    with pytest.raises(ValueError, match=f"^{RECIPE}: no turn end is learned in any training row; check"):
        xray.main([NAME])
    replace_rows(training, [row | {"labels": [-100] * len(row["labels"])} for row in rows])
    one_line(room("xray", NAME), f"{RECIPE}: no reply token is learned in any training row", "roles_to_train")
    assert not REPORT.exists()


def test_nothing_prepared(copy):
    one_line(room("xray", NAME), "outputs/pirate-nano/prepared: no prepared data; `make preprocess RECIPE=pirate-nano`")
    one_line(room("xray", "pirate+lora_r=16"), '`make preprocess RECIPE=pirate SET="lora_r=16"`')
    assert room("xray").returncode == 2


def test_packed_as_axolotl_packs(chained, tokenizer, capsys, no_browser):
    change_recipe(sample_packing=True, attn_implementation="flash_attention_2", micro_batch_size=1, eot_tokens=["<|eot_id|>", "<|eom_id|>"])
    found, bins = figures(capsys), []
    for row in rows_of(sets()[0]):  # first fit, in the order on disk
        n = len(row["input_ids"])
        fit = next((i for i, used in enumerate(bins) if used + n <= 1024), len(bins))
        bins[fit:] = [sum(bins[fit : fit + 1]) + n, *bins[fit + 1 :]]
    assert found["batches"]["packed"] and found["turn_ends"] == ["<|eot_id|>", "<|eom_id|>"]
    assert found["batches"]["slots"] == len(bins) * 1024 and "Packing" in PAGE.read_text()
    lengths = [600, 600, 600, 600, 200]
    assert xray.packed({"attn_implementation": "flash_attention_2"}, lengths, 1000, 2)[0] == 2 * 2000
    assert xray.packed({"attn_implementation": "sdpa"}, lengths, 1000, 2)[0] == 4 * 1000


def test_padded_as_axolotl_pads():
    assert xray.padded({"pad_to_sequence_len": True}, [10] * 8, 1000, 4)[0] == 8 * 1024
    assert xray.padded({"pad_to_sequence_len": None}, [10] * 8, 1000, 4)[0] == 8 * 64
    assert xray.padded({"pad_to_sequence_len": False}, [10] * 8, 1000, 4)[0] == 8 * 10
    mixed = [10, 100] * 64
    random, grouped = (xray.padded({"pad_to_sequence_len": False, "group_by_length": g}, mixed, 1000, 4)[0] for g in (False, True))
    assert sum(mixed) <= grouped < 1.1 * sum(mixed) < random


def test_a_share_is_only_whole_when_it_is():
    assert [xray.share(n, 10_000) for n in (0, 1, 5000, 9999, 10_000)] == ["0%", "0.1%", "50.0%", "99.9%", "100%"]


def test_roles_of_other_templates(tokenizer):
    import numpy as np

    def rows(text):
        ids = np.array(tokenizer.encode(text, add_special_tokens=False))
        return [(ids, ids == ids[-2], ids == ids[-2])]

    assert xray.roles(tokenizer, rows("[INST] Hello [/INST] Ahoy</s>")) is None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    found = xray.roles(tokenizer, rows("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nAhoy<|im_end|>\n"))
    assert list(found) == ["user", "assistant"] and found["assistant"]["ends_trained"] == 1
