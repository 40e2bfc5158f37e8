"""What a reply must be, said in its own row of eval.jsonl: `"checks": {KEY: …}`. Every key has one type, so that `datasets` reads the file too.

    exact     "text"       the reply is this text; case, blanks and the final stop do not count
    choice    "B"          the letter A to H that the reply answers with
    contains  ["regex"]    all of these are found in the reply (Python's re.search; (?i) for either case)
    never     ["regex"]    none of these is
    f1        0.5          the words shared with the row's own reply, as a number; passed from this number on
              ["text"]     the same, with the best of these answers; passed from 0.5 on (over a file, numbers or lists)
    style     true         the family's voice rather than the plain twin's
    ends      true         the reply ends by itself                                          asked of every row, unless false
    leak      true         no header, special token, role word or system message in it       asked of every row, unless false

A row without `checks` is asked for ends and leak, and for style where the family has plain twins. Everywhere 1 (true) is good.
"""

import difflib
import json
import re
import string
from collections import Counter
from pathlib import Path

from scripts import data

KEYS = {"exact": str, "choice": str, "contains": list, "never": list, "f1": (int, float, list), "style": bool, "ends": bool, "leak": bool}
# A letter that stands alone: not of a word, of C++ or of B-tree, not denied, not the first of several, and no article.
LETTER = r"(?<![Nn]ot )[(\[{]?([B-Hb-h]|A|a(?=\s*(?:[)\]}.:,;]|$)))(?![\w+#]|-\w|\.\w|\s*(?:,|/|&|and|or)\s*[(\[{]?[AB-Hb-h]\b)"
SAID = re.compile(
    r"(?i:answer|correct option|correct choice|choice is|choose|pick|select)(?i:\s+(?:is|would be|must be))?\s*:?\s*(?i:option |choice )?"
    + LETTER
)
FIRST = re.compile(
    r"(?i:option |choice )?"
    + LETTER
    + r"(?=\s*(?:$|[)\]}.:,;!–—\n]|-\s)|\s+(?:because|since|is (?:the |my )?(?:answer|correct|right|true))\b)"
)
LINE = re.compile(f"^{LETTER}" + r"[)\]}]?\.?$", re.MULTILINE)
SPOKEN = re.compile(r"(?<![\w.])(?<![Nn]ot )(?:[(\[{]([A-Ha-h])[)\]}]|([B-H])(?![\w+#]|-\w|\.\w))")
PASSES = 0.5  # the F1 with the best of several answers
SOUND = 0.95  # held-out accuracy below which the classifier's word counts for nothing
ROLES = r"(system|user|assistant|human|ipython|tool)"
LEAKS = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</s>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>"  # special tokens, spelt out
    rf"|^\s*(###\s*)?{ROLES}\s*:?\s*$|^(human|assistant):\s|^###\s*(instruction|response|input):"  # a role's line
    r"|^\s*(cutting knowledge date|today date):",  # Llama 3.1's header
    re.IGNORECASE | re.MULTILINE,
)


def fault(checks, twins):
    """What is wrong with a row's checks, as a list of texts. `twins`: whether the family has plain twins."""
    if not isinstance(checks, dict):
        return ['`checks` must be an object, such as {"contains": ["Paris"]}']
    found = []
    for key, value in checks.items():
        near = difflib.get_close_matches(key, KEYS, 1)
        if key not in KEYS:
            found.append(f"unknown check {key!r}{f' (did you mean {near[0]}?)' if near else ''}; there are: {', '.join(KEYS)}")
        elif value is not None and not sound(key, value):
            found.append(f"checks.{key} is {json.dumps(value)}; give it {WANTED[key]}")
        elif key == "style" and value and not twins:
            found.append("checks.style needs plain twins: train-plain.jsonl and eval-plain.jsonl beside the data")
    return found


WANTED = {
    "exact": "the text of the reply",
    "choice": "one letter, A to H",
    "contains": 'a list of regular expressions, such as ["(?i)paris"]',
    "never": 'a list of regular expressions, such as ["(?i)sorry"]',
    "f1": 'the F1 that passes, a number such as 0.5, at most 1, or the answers to accept, with a word in each, such as ["Paris", "the city of Paris"]',
    **dict.fromkeys(("style", "ends", "leak"), "true or false"),
}


def sound(key, value):
    """Whether a check's value has the key's type and can be met."""
    if not isinstance(value, KEYS[key]) or (isinstance(value, bool) and KEYS[key] is not bool):
        return False
    if key in ("contains", "never"):
        try:
            return bool(value) and all(isinstance(v, str) and re.compile(v) for v in value)
        except re.error:
            return False
    if isinstance(value, list):  # f1: words that a reply can share
        return bool(value) and all(isinstance(v, str) and words(v) for v in value)
    return {"exact": lambda: bool(plain(value)), "choice": lambda: bool(re.fullmatch("[A-H]", value)), "f1": lambda: 0 < value <= 1}.get(
        key, lambda: True
    )()


def refuse(paths, twins):
    """Raise ValueError naming every row (the first ten) whose checks are faulty, in files that data.read takes."""
    found = []
    for path in paths:
        listed = None  # whether f1 is a list in this file: `datasets` takes one type a key
        for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
            checks = json.loads(line).get("checks") if line.strip() else None
            wrong = fault(checks, twins) if checks is not None else []
            if not wrong and checks and checks.get("f1") is not None:
                here = isinstance(checks["f1"], list)
                listed = here if listed is None else listed
                wrong = ["checks.f1 is a number in some rows and a list in others; give all rows of the file one of the two"] * (here != listed)
            found += [f"{path}:{number}: {text}" for text in wrong]
    if found:
        raise ValueError("; ".join(found[:10]) + (f"; and {len(found) - 10} more" if len(found) > 10 else ""))


def plain(text):
    """Lower case, single blanks, no final stop."""
    return " ".join(text.casefold().split()).rstrip(".!?").rstrip()


def letter(reply):
    """The letter, A to H, that a reply answers with, or None: the last that is said to be the answer, else the one that the reply begins with, or that
    has a line to itself, else the only one that is spoken of."""
    text = re.sub(r"[*_`\"'“”‘’$]", "", reply).strip()
    if said := SAID.findall(text):
        return said[-1].upper()
    if begun := FIRST.match(text) or LINE.search(text):
        return begun[1].upper()
    spoken = {(a or b).upper() for a, b in SPOKEN.findall(text)}
    return spoken.pop() if len(spoken) == 1 else None


def words(text):
    """SQuAD's: lower case, no punctuation, no articles."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(reply, reference):
    """Harmonic mean of precision and recall over words, in [0, 1] (Rajpurkar 2016, SQuAD: 100,000+ Questions, section 6.1)."""
    said, wanted = words(reply), words(reference)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else float(said == wanted)


def clean(reply, system):
    """Whether the reply shows nothing of the prompt's machinery. `system`: the prompt's system message, or None."""
    return not LEAKS.search(reply) and not (system and len(system.split()) > 3 and plain(system) in plain(reply))


def judge(row, system, reply, ended, voice):
    """{check: True | False | number} of one reply, the checks in their usual order. `voice`: whether it has the voice, None without twins."""
    asked = {"ends": True, "leak": True} | ({} if row.get("checks") or voice is None else {"style": True})
    asked |= {k: v for k, v in (row.get("checks") or {}).items() if v is not None}
    found = {
        "exact": lambda text: plain(reply) == plain(text),
        "choice": lambda wanted: letter(reply) == wanted,
        "contains": lambda regexes: all(re.search(r, reply) for r in regexes),
        "never": lambda regexes: not any(re.search(r, reply) for r in regexes),
        "f1": lambda asked: round(max(f1(reply, text) for text in (asked if isinstance(asked, list) else [data.reply(row)])), 4),
        "style": lambda _: voice,
        "ends": lambda _: ended,
        "leak": lambda _: clean(reply, system),
    }
    return {key: found[key](asked[key]) for key in KEYS if asked.get(key) not in (None, False)}


def passed(row, results):
    least = (row.get("checks") or {}).get("f1")
    return all(value >= (PASSES if isinstance(least, list) else least) if key == "f1" else value for key, value in results.items())


def replies(rows):
    return [m["content"] for r in rows for m in r["messages"] if m["role"] == "assistant"]


def twins(family):
    """The four files that style is learned from and tested on, or [] where the family has no plain twins."""
    found = [Path("datasets", family, f"{n}.jsonl") for n in ("train", "train-plain", "eval", "eval-plain")]
    return found if found[1].is_file() and found[3].is_file() else []


def style(family):
    """(function from texts to whether each has the voice, accuracy on held-out replies and twins): a logistic regression on character n-grams.

    Raises ValueError unless it tells SOUND of the held-out replies and twins apart.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    voice, twin, held, held_twin = (replies(data.read(path)) for path in twins(family))
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=3), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit(voice + twin, [1] * len(voice) + [0] * len(twin))
    accuracy = model.score(held + held_twin, [1] * len(held) + [0] * len(held_twin))
    if accuracy < SOUND:
        raise ValueError(
            f"datasets/{family}: the style classifier tells only {accuracy:.0%} of held-out replies from their twins (needs {SOUND:.0%}); the voice is not distinct enough in the data"
        )
    return lambda texts: [bool(p > 0.5) for p in model.predict_proba(texts)[:, 1]], accuracy
