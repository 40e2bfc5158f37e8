"""Rules on the rows of local datasets: `c.views` are data.view of each file, (entry's place in the recipe, whether for evaluation, view)."""

from itertools import accumulate
from pathlib import Path

from scripts import data

REPLIES = ("chat", "pair")
NEAR = 0.6  # Jaccard similarity of word triples; two wordings of one row lie above, two rows on one subject below
AFTER = {None: "system user", "system": "user", "user": "assistant", "assistant": "user tool", "tool": "tool assistant"}
SHORT = 4  # words
COMPARE = 2_000_000  # characters of a file whose rows are compared with each other: about a second


def places(numbers, show=3):
    """`3 rows (lines 4, 9, 12)`: how many, and the first few."""
    numbers = list(dict.fromkeys(numbers))
    head = ", ".join(map(str, numbers[:show])) + " …" * (len(numbers) > show)
    return f"{len(numbers)} row{'s' * (len(numbers) != 1)} (line{'s' * (len(numbers) != 1)} {head})"


def at(view, numbers):
    """Where a finding about rows points: the file, at the first of them."""
    return Path(view["path"]), numbers[0]


def replies(turns):
    return [text for role, text in turns if role == "assistant"]


def bad_row(c):
    """error | a line that is not JSON, or lacks the fields that its type reads; or no rows
    | Axolotl stops with an error that names no line, or drops the row | tried with Axolotl 0.21 | mend or delete the line"""
    for _, _, view in c.views:
        for line, what in view["faults"][:10]:
            yield at(view, [line]), what, "mend or delete the line"
        if len(view["faults"]) > 10:
            yield at(view, [view["faults"][10][0]]), f"{len(view['faults']) - 10} more faulty rows", "mend or delete them"
        if not view["count"] and not view["faults"]:
            yield at(view, [1]), "no rows", "a dataset needs at least one row"


def empty_reply(c):
    """error | a reply without text | the model learns to end at once | Axolotl takes it without a word | write it, or drop the row"""
    for _, _, view in c.views:
        empty = [n for n, turns in view["rows"] if not all(text.strip() for text in replies(turns))]
        if empty:
            yield at(view, empty), f"empty reply in {places(empty)}", "write it, or drop the row"


def untrimmed(c):
    """error | text that begins or ends with blanks, under a chat template of one's own
    | where the template does not trim, the blanks are learned and a served prompt differs | `chat_template: jinja` in recipes/README.md
    | strip them"""
    if c.cfg.get("chat_template") != "jinja":
        return
    for _, _, view in c.views:
        loose = [n for n, turns in view["rows"] if any(text != text.strip() for _, text in turns)]
        if loose and view["kind"] == "chat":
            yield at(view, loose), f"blanks around the text in {places(loose)}", "strip them"


def duplicate_rows(c):
    """warning | the same row twice | it counts twice, and may sit in training and validation at once
    | Lee 2022, Deduplicating Training Data Makes Language Models Better | drop one of them, or `dataset_exact_deduplication: true`"""
    for _, _, view in c.views:
        seen, again = set(), []
        for n, turns in view["rows"]:
            key = hash(tuple(turns))
            again += [n] * (key in seen)
            seen.add(key)
        if again and not c.cfg.get("dataset_exact_deduplication"):
            yield at(view, again), f"said before: {places(again)}", "drop them, or dataset_exact_deduplication: true"


def compared(view):
    """How many of the first rows are compared with each other."""
    lengths = (sum(len(text) for _, text in turns) for _, turns in view["rows"])
    return sum(total <= COMPARE for total in accumulate(lengths))


def alike(view, other=None):
    """[(i, j, similarity)] of rows of a view that nearly are rows of another, or earlier ones of its own; kept with the view, which recipes share."""
    for v in (view, other or view):
        if "shingles" not in v:
            v["shingles"] = [data.shingles(" ".join(text for _, text in turns), 3) for _, turns in v["rows"][: compared(v)]]
    key = ("alike", other and other["path"])
    if key not in view:
        view[key] = data.near(view["shingles"], NEAR, other and other["shingles"])
    return view[key]


def near_duplicates(c):
    """warning | rows that share more than 60 % of their word triples | the set is smaller than it looks
    | Lee 2022, Deduplicating Training Data Makes Language Models Better | keep one of each"""
    for _, _, view in c.views:
        pairs = [(i, j, like) for i, j, like in alike(view) if like < 1 and len(view["shingles"][i]) > 5]
        if pairs:
            (_, j, like), again = pairs[0], [view["rows"][i][0] for i, _, _ in pairs]
            what = f"nearly said before: {places(again)}; the first is {like:.0%} of line {view['rows'][j][0]}"
            yield at(view, again), what, "keep one of each"


def train_eval_leak(c):
    """error | an evaluation row that is, or nearly is, a training row | the eval loss then measures memory | arithmetic
    | take the row out of one of the two"""
    train, held = ([v for _, is_eval, v in c.views if is_eval is wanted] for wanted in (False, True))
    for view in held:
        for other in train:
            if view["path"] == other["path"]:
                yield at(view, [1]), "evaluation rows are the training rows", "hold rows out: a file of their own, or val_set_size"
                continue
            leaked = sorted({view["rows"][i][0] for i, _, _ in alike(view, other)})
            if leaked:
                yield at(view, leaked), f"also in {other['path']}: {places(leaked)}", "take them out of one of the two"


def role_order(c):
    """error | turns that do not alternate, begin with the assistant, or end with the user
    | the template writes a prompt that nobody will ever send, or nothing is learned from the row
    | Axolotl takes two replies in a row without a word | system?, then user and assistant in turn, the assistant last"""
    for _, _, view in c.views:
        wrong = []
        for n, turns in view["rows"] if view["kind"] == "chat" else []:
            roles = ["system" if role == "developer" else role for role, _ in turns]
            pairs = [(a, b) for a, b in zip([None, *roles], roles) if a in AFTER and b in AFTER]  # a role of one's own may stand anywhere
            if roles[-1] in AFTER and roles[-1] != "assistant" or any(b not in AFTER[a].split() for a, b in pairs):
                wrong.append(n)
        if wrong:
            what = "system?, then user and assistant in turn, the assistant last"
            yield at(view, wrong), f"roles out of order in {places(wrong)}", what


def truncated(c):
    """warning | more than 1 % of the rows are longer than `sequence_len` (lengths are estimated, and 15 % is granted)
    | Axolotl drops or cuts them, and a cut reply has no end | axolotl/utils/data: excess_length_strategy
    | a larger `sequence_len`, or split the rows"""
    length = c.cfg.get("sequence_len") or 512
    for _, _, view in c.views:
        long = [n for n, turns in view["rows"] if data.tokens(turns) * 0.85 > length] if view["kind"] in REPLIES else []
        if len(long) > 0.01 * len(view["rows"]):
            what = f"{len(long) / len(view['rows']):.1%} of {view['path']} is longer than {length} tokens, such as line {long[0]}"
            yield "sequence_len", what, "a larger sequence_len, or split the rows"


def short_replies(c):
    """warning | more than 30 % of the replies have fewer than 4 words
    | answers of a word teach to answer in a word; for classification that is meant, so waive it
    | an adapter trained on multiple choice, which could do nothing else | longer replies, or `x_waive: {short-replies: why}`"""
    for _, is_eval, view in c.views:
        if view["kind"] in REPLIES and not is_eval:
            said = [(n, text) for n, turns in view["rows"] for text in replies(turns) if text.strip()]
            short = [n for n, text in said if len(text.split()) < SHORT]
            if len(short) > 0.3 * len(said):
                what = f"{len(short) / len(said):.0%} of the replies have fewer than {SHORT} words"
                yield at(view, short), what, "longer replies, or x_waive: {short-replies: why}"
