"""What the model will be taught: the rows that Axolotl prepared, token by token, coloured by whether they carry loss.

    python -m scripts.xray pirate-nano            # → reports/pirate-nano/xray.html, and xray.png of its head where there is a Chromium
    python -m scripts.xray pirate-nano --json     # prints the figures

Everything is read from outputs/NAME/prepared, the very ids and labels that training takes; nothing is tokenized anew.
No time and no chance goes into the page: the same data gives the same bytes.
"""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

from scripts import data, files, process, recipe

# What begins a turn; the role's name follows, up to a newline or the next special token. Llama 3, ChatML, Gemma, Llama 4, Granite, Harmony.
HEADERS = ["<|start_header_id|>", "<|im_start|>", "<start_of_turn>", "<|header_start|>", "<|start_of_role|>", "<|start|>"]
FLAGS = ["--headless", "--hide-scrollbars", "--window-size=1200,900", "--disable-background-networking", "--disable-dev-shm-usage"]
SAMPLE, SUSPICIOUS = 24, 8  # rows on the page; of each kind of suspicious rows, at most
TOKENS = 8000  # on the page, over all its rows: it stays below 400 KB


def prepared(folder):
    """The prepared sets' folders, training first, then evaluation if there is one: Axolotl looks for them in this order, and its log says so."""
    make = recipe.command("preprocess", folder.name)
    found = {p.parent.name: p.parent for p in (folder / "prepared").glob("*/dataset_info.json")}
    if not found or not (folder / "recipe.yml").is_file():
        raise ValueError(f"{folder}/prepared: no prepared data; {make} makes it")
    if len(found) == 1:
        return list(found.values())
    log = folder / "logs/preprocess.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    order = [h for h in dict.fromkeys(re.findall(r"prepared dataset in .*/(\w+)$", text, re.M)) if h in found]
    if len(order) != len(found):
        raise ValueError(f"{log}: does not say which set in {folder}/prepared is for training; `rm {folder}/preprocess.json`, then {make}")
    return [found[h] for h in order]


def load(path, ends):
    """[(ids, which carry loss, which end a turn)] of a prepared set."""
    import numpy as np
    from datasets import load_from_disk

    rows = load_from_disk(str(path)).with_format("numpy", columns=["input_ids", "labels"])
    return [(row["input_ids"], row["labels"] != -100, np.isin(row["input_ids"], ends)) for row in rows]


def measure(rows, limit, in_files):
    """(figures of a set, {what is suspicious: its rows}). `in_files`: the rows of its dataset files, None if they are not local."""
    odd = {
        "no reply token is learned": [i for i, (_, trained, end) in enumerate(rows) if not (trained & ~end).any()],
        "no turn end is learned": [i for i, (_, trained, end) in enumerate(rows) if not (trained & end).any()],
        # In ChatML a newline follows the token that ends a turn.
        f"the end is cut off at {limit:,} tokens": [i for i, (_, _, end) in enumerate(rows) if len(end) >= limit and not end[-2:].any()],
    }
    lengths = sorted(len(ids) for ids, *_ in rows) or [0]
    figures = {"rows": len(rows), "tokens": sum(lengths), "trained_tokens": sum(int(trained.sum()) for _, trained, _ in rows)}
    figures |= {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]}
    figures |= zip(["rows_without_reply", "rows_without_end", "rows_cut"], map(len, odd.values()))
    return figures | {"rows_dropped": None if in_files is None else in_files - len(rows)}, odd


def roles(tokenizer, rows):
    """{role: {turns, tokens, trained_tokens, ends_trained}}, each turn up to the next header; None if the template's headers are unknown."""
    known, found = tokenizer.get_vocab(), {}
    begin = next((known[t] for t in HEADERS if t in known and any((ids == known[t]).any() for ids, *_ in rows)), None)
    for ids, trained, end in rows if begin is not None else []:
        for a, b in pairwise(sorted({0, *(ids == begin).nonzero()[0].tolist(), len(ids)})):
            name = re.match(r"\s*(\w[\w .-]*?)\s*(<\||\n)", tokenizer.decode(ids[a + 1 : min(b, a + 12)].tolist()))
            role = name[1] if name and ids[a] == begin else "no role"
            of = found.setdefault(role, dict.fromkeys(["turns", "tokens", "trained_tokens", "ends_trained"], 0))
            for key, n in zip(of, [1, b - a, int(trained[a:b].sum()), bool((trained & end)[a:b].any())]):
                of[key] += n
    return dict(sorted(found.items(), key=lambda item: "system user assistant".find(item[0]))) or None


def packed(cfg, lengths, limit, micro):
    """(places for tokens in an epoch's batches, how they are filled), packed by Axolotl's own sampler in the order on disk."""
    from axolotl.utils.samplers.multipack import MultipackBatchSampler
    from axolotl.utils.schemas.enums import ATTN_IMPLS_SUPPORTING_PACKING, attn_impl_base

    real = cfg.get("multipack_real_batches")
    if real is None:  # where attention keeps packed rows apart, Axolotl makes one long bin of a micro batch
        real = attn_impl_base(cfg.get("attn_implementation")) not in ATTN_IMPLS_SUPPORTING_PACKING
    room, size = limit if real else limit * micro, cfg.get("sample_packing_bin_size") or 200
    more = {"sequential": bool(cfg.get("sample_packing_sequentially")), "group_size": cfg.get("sample_packing_group_size") or 100_000}
    sampler = MultipackBatchSampler(range(len(lengths)), 1, room, lengths, size, drop_last=False, **more)
    bins = sum(map(len, sampler.generate_batches()))
    return bins * room, f"packed by Axolotl into {bins:,} bins of {room:,} tokens"


def padded(cfg, lengths, limit, micro):
    """The same without packing: each micro batch padded as Axolotl's collator does, in one seeded order."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    pad, multiple, seeded = cfg.get("pad_to_sequence_len"), cfg.get("pad_to_multiple_of") or 64, torch.Generator().manual_seed(0)
    multiple = multiple * math.ceil(limit / multiple) if pad else multiple if pad is None else 1
    order, how = torch.randperm(len(lengths), generator=seeded).tolist(), f"not packed: padded in micro batches of {micro}"
    if cfg.get("group_by_length"):
        order = get_length_grouped_indices(lengths, micro * int(cfg.get("gradient_accumulation_steps") or 1), generator=seeded)
        how += ", rows of like length together"
    groups = [[lengths[i] for i in order[n : n + micro]] for n in range(0, len(order), micro)]
    return sum(len(group) * multiple * math.ceil(max(group) / multiple) for group in groups), how


def visible(text):
    """Blanks and what has no glyph, made visible. A single blank before a word stays: the token's box shows it."""
    text = re.sub(r"^ +$|  +| +$", lambda m: "␣" * len(m[0]), text).replace("\t", "⇥")
    text = re.sub("\n+", lambda m: "↵" * len(m[0]) + "\n", text)
    return "".join(c if c in " \n" or unicodedata.category(c)[0] not in "CZ" else f"⟨U+{ord(c):04X}⟩" for c in text)


def spell(tokenizer, ids, trained):
    """[{text, ids, trained, special}]: a token each, or the few tokens that only together make a character."""
    special = set(tokenizer.all_special_ids) | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]  # a decoder may strip the first token's blank
    skip, found, i = len(tokenizer.decode(anchor)), [], 0

    def text(n):
        return tokenizer.decode([*anchor, *ids[i : i + n]], clean_up_tokenization_spaces=False)[skip:]

    while i < len(ids):
        spelt, n = tokenizer.convert_ids_to_tokens(ids[i]) if ids[i] in special else text(1), 1
        if "\ufffd" in spelt:
            n = next((k for k in range(2, 7) if len(set(trained[i : i + k])) == 1 and "\ufffd" not in text(k)), 1)
            spelt = text(n)
        about = {"ids": " ".join(map(str, ids[i : i + n])), "trained": trained[i], "special": ids[i] in special}
        found.append({"text": visible(spelt) or f"⟨{ids[i]}⟩"} | about)
        i += n
    return found


def sample(tokenizer, rows, odd):
    """(rows of the page: suspicious, median, shortest, longest, and a seeded choice; how many tokens of each are shown)."""
    order, why = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]), i)), {}
    for reason, some in [*odd.items(), ("median", order[len(order) // 2 :][:3]), ("shortest", order[:3]), ("longest", order[:-4:-1])]:
        for i in some[:SUSPICIOUS]:
            why.setdefault(i, []).append(reason)
    for i in random.Random(0).sample(range(len(rows)), min(len(rows), SAMPLE)):
        if len(why) < SAMPLE:
            why.setdefault(i, ["random choice"])
    most, found = max(len(rows[i][0]) for i in why), []
    while sum(min(most, len(rows[i][0])) for i in why) > TOKENS:
        most = most * 9 // 10
    for i, reasons in why.items():
        ids, trained, _ = (part.tolist() for part in rows[i])
        found.append({"row": i, "why": reasons, "size": len(ids), "trained": sum(trained), "tokens": spell(tokenizer, ids, trained)})
    return found, most


def look(folder):
    """(figures, what else the page shows). Raises ValueError if a set teaches no reply, or no end of one."""
    paths, cfg, odd = prepared(folder), recipe.read(folder / "recipe.yml"), {}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cfg.get("tokenizer_config") or cfg["base_model"])
    tokenizer.add_special_tokens(cfg.get("special_tokens") or {})
    tokenizer.add_tokens(cfg.get("tokens") or [])
    turn_ends, limit = cfg.get("eot_tokens") or [tokenizer.eos_token], int(cfg.get("sequence_len") or 512)
    sets = [load(path, tokenizer.convert_tokens_to_ids(turn_ends)) for path in paths]
    figures = {"recipe": folder.name, "base": str(cfg["base_model"]), "sequence_len": limit, "turn_ends": turn_ends, "evaluation": None}
    for which, key, sources, rows in zip(["training", "evaluation"], ["datasets", "test_datasets"], recipe.datasets(cfg), sets):
        in_files = data.count(cfg.get(key), sources) if sources else None
        figures[which], odd[which] = measure(rows, int(cfg.get("eval_sequence_len") or limit) if rows is not sets[0] else limit, in_files)
        for reason in [r for r, some in odd[which].items() if r.startswith("no ") and len(some) == len(rows)]:
            raise ValueError(f"{folder}/recipe.yml: {reason} in any {which} row; check roles_to_train, train_on_eot and eot_tokens")
    lengths = [len(ids) for ids, *_ in sets[0]]
    slots, how = (packed if cfg.get("sample_packing") else padded)(cfg, lengths, limit, int(cfg.get("micro_batch_size") or 1))
    figures["batches"] = {"packed": bool(cfg.get("sample_packing")), "tokens": sum(lengths), "slots": slots, "how": how}
    figures["roles"], step = roles(tokenizer, sets[0]), max(1, int(float(f"{max(lengths) / 30:.0e}")))
    page = {"odd": odd["training"], "val_set_size": cfg.get("val_set_size"), "step": step}
    page["bars"] = sorted(Counter((n - 1) // step * step for n in lengths).items())
    page["rows"], page["most"] = sample(tokenizer, sets[0], odd["training"])
    return figures, page


def share(part, whole):
    """Never 100% of what is not whole, never 0% of what is there."""
    return "0%" if not part else "100%" if part == whole else f"{min(max(100 * part / whole, 0.1), 99.9):.1f}%"


def picture(page, png):
    """A picture of the page's head; returns what to say of it. One made earlier stays where none can be made."""
    browser = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if not browser:
        return "not made: no Chromium on PATH; `apt-get install chromium` brings one"
    shot = png.with_name(f".{os.getpid()}.png")
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS  # Chromium refuses root otherwise
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        try:
            cmd = [browser, *flags, f"--user-data-dir={profile}", f"--screenshot={shot}", page.resolve().as_uri()]
            subprocess.run(cmd, timeout=90, capture_output=True)
            os.replace(shot, png)
        except (OSError, subprocess.TimeoutExpired):
            shot.unlink(missing_ok=True)
            return f"not made: {browser} drew nothing; open {page} in a browser"
    return str(png)


def main(argv):
    names = [a for a in argv if a != "--json"]
    if len(names) != 1 or names[0].startswith("-"):
        print("usage: python -m scripts.xray NAME [--json]", file=sys.stderr)
        return 2
    import jinja2

    figures, page = look(Path("outputs", names[0]))
    html, template = Path("reports", names[0], "xray.html"), Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    files.write_if_changed(html, env.from_string(template).render(figures | page, share=share))
    drawn = picture(html, html.with_suffix(".png"))
    print(f"xray        {html}\npicture     {drawn}", file=sys.stderr if "--json" in argv else sys.stdout)
    if "--json" in argv:
        print(json.dumps(figures, indent=2))
        return 0
    of, full, each = figures["training"], figures["batches"], figures["roles"] or {}
    rows, limit, dropped = f"{of['rows']:,}", f"{figures['sequence_len']:,}", "?" if of["rows_dropped"] is None else of["rows_dropped"]
    by_role = "".join(f", {role} {share(r['trained_tokens'], r['tokens'])}" for role, r in each.items() if role != "no role")
    by_role = by_role or ", roles not told apart for this template"
    ended = share(of["rows"] - of["rows_without_end"], of["rows"])
    print(f"rows        {rows}, the longest {of['longest']:,} of {limit} tokens; {dropped} dropped, {of['rows_cut']} cut")
    print(f"learned     {share(of['trained_tokens'], of['tokens'])} of the tokens{by_role}; the end of a turn in {ended} of rows")
    print(f"batches     {share(full['tokens'], full['slots'])} full; {full['how']}")
    return 0


if __name__ == "__main__":
    process.command(main)
