"""Datasets: JSONL rows of chat messages, read with the file and line of whatever is wrong.

A row is `{"id": str, "kind": str, "messages": [{"role": "system|user|assistant", "content": str}, …]}`;
Axolotl's `type: chat_template` reads `messages` and leaves the rest alone. ShareGPT's `"conversations": [{"from": "human|gpt", "value": str}, …]` are read as those.
"""

import csv
import json
import re
from collections import Counter
from functools import lru_cache
from itertools import islice
from pathlib import Path

LOOK_AT = 20_000  # rows of a file that `view` reads closely; the others it counts
CHARS_PER_TOKEN = 4.2  # English and code under vocabularies of 100,000 and more; measured texts lie within 15 % of it
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "input": "user", "output": "assistant", "bot": "assistant"}
NEXT = {None: {"system", "user"}, "system": {"user"}, "user": {"assistant"}, "assistant": {"user"}}


def read(path):
    """All rows of a JSONL file. Raises ValueError naming every faulty line (the first ten), or that there are no rows."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such dataset; put the rows there, or mend `datasets:` in the recipe")
    rows, faults = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both
            faults.append(f"{path}:{number}: not JSON ({error}); mend or delete the line")
            continue
        row = standard(row)
        if fault := row_fault(row):
            faults.append(f"{path}:{number}: {fault}")
        rows.append(row)
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError("; ".join(faults[:10]) + more)
    if not rows:
        raise ValueError(f"{path}: no rows; a dataset needs at least one JSON object a line")
    return rows


def standard(row):
    """A row in ShareGPT's form with `messages` in place of `conversations`; any other as it is."""
    if not isinstance(row, dict) or "messages" in row or not (turns := chat(row, {})[1]):
        return row
    return {k: v for k, v in row.items() if k != "conversations"} | {"messages": [{"role": r, "content": text} for r, text in turns]}


def sliced(rows, split):
    """The rows that a `split` such as train[:400] or train[-10%:] names, in datasets' syntax; all of them where it names no slice."""
    found = re.fullmatch(r"\w+\[(-?\d{1,9}%?)?:(-?\d{1,9}%?)?\]", str(split))
    ends = found.groups() if found else (None, None)
    return rows[slice(*(e and (round(int(e[:-1]) * len(rows) / 100) if e[-1] == "%" else int(e)) for e in ends))]


def count(entries, paths):
    """How many rows a recipe's entries name, slices as such; None unless all lie at `paths`, those of local files, which are read and proven."""
    sizes = [len(sliced(read(e["path"]), e.get("split"))) for e in entries or [] if Path(e["path"]) in paths]
    return sum(sizes) if len(sizes) == len(entries or []) else None


def row_fault(row):
    """What is wrong with a row, or None."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return "`messages` must be a list of {role, content}, or `conversations` of {from, value}"
    before = None
    for n, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in NEXT[before]:
            return f"message {n} has role {role!r} after {before!r}; expected {' or '.join(sorted(NEXT[before]))}"
        if not isinstance(content, str) or not content.strip():
            return f"message {n} ({role}) is empty; write it or drop the row"
        if content != content.strip():
            return f"message {n} ({role}) begins or ends with blanks; strip it: the chat template does not trim"
        before = role
    if before != "assistant":
        return f"the last message is by {before!r}; a row ends with the reply to learn"
    return None


@lru_cache(maxsize=None)
def view(path, spec):
    """A local dataset file of any of Axolotl's usual types, for a recipe's entry `spec` (as JSON).

    {"path", "count", "rows": [(line, [(role, text), …])], "faults": [(line, what)], "kind": "chat" | "pair" | "text" | None}; kind None: not understood.
    Nothing is raised for a faulty row. JSON arrays and CSV number their rows instead of their lines.
    """
    spec, path = json.loads(spec), Path(path)
    found = {"path": str(path), "count": 0, "rows": [], "faults": [], "kind": None}
    if path.suffix not in (".jsonl", ".json", ".csv", ".txt"):
        return found
    lines = path.read_bytes().split(b"\n")
    if path.suffix == ".json" and path.read_bytes().lstrip()[:1] == b"[":
        try:
            lines = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            return found | {"faults": [(getattr(error, "lineno", 1), f"not JSON ({error})")]}
    elif path.suffix == ".csv":
        try:
            lines = list(csv.DictReader(line.decode(errors="replace") for line in lines))
        except csv.Error as error:  # a field of megabytes
            return found | {"faults": [(1, f"not CSV ({error})")]}
    elif path.suffix == ".txt":
        lines = [{"text": line.decode(errors="replace")} for line in lines if line.strip()]
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line and (not isinstance(line, bytes) or line.strip())]
    numbered = sliced(numbered, spec.get("split"))
    found["count"] = len(numbered)
    for number, line in islice(numbered, LOOK_AT):
        try:
            row = json.loads(line) if isinstance(line, bytes) else line
        except (ValueError, RecursionError) as error:
            found["faults"].append((number, f"not JSON ({error})"))
            continue
        kind, turns, fault = conversation(row, spec)
        if fault:
            found["faults"].append((number, fault))
        elif kind:
            found["kind"] = kind
            found["rows"].append((number, turns))
    return found


def named(spec):
    """Rows of a dataset entry whose `split` says so itself, as `train[:45000]` and `train[100:200]` do: 45,000 and 100. None for any other."""
    found = re.fullmatch(r"\w+\[(\d*):(\d+)\]", str(spec.get("split")))
    return max(0, int(found[2]) - int(found[1] or 0)) or None if found else None


def conversation(row, spec):
    """(kind, [(role, text), …], fault) of a row under a recipe's dataset entry; kind None where the type is not one of the usual ones."""
    if not isinstance(row, dict):
        return None, None, "not a JSON object"
    kind = spec.get("type") or ""
    if isinstance(kind, dict):  # fields of one's own
        parts = [
            (role, row.get(kind.get(f"field_{name}") or name))
            for role, name in (("system", "system"), ("user", "instruction"), ("user", "input"))
        ]
        reply = row.get(kind.get("field_output") or "output")
        if not isinstance(reply, str):
            return None, None, f"no field {kind.get('field_output') or 'output'!r} with a text"
        return "pair", [(r, x) for r, x in parts if isinstance(x, str) and x] + [("assistant", reply)], None
    if kind.startswith(("chat_template", "sharegpt")) and not spec.get("field_chosen") and "." not in kind:
        return chat(row, spec)
    if kind.startswith(("completion", "pretrain")):
        text, field = row.get(spec.get("field") or "text"), spec.get("field") or "text"
        return ("text", [("assistant", text)], None) if isinstance(text, str) else (None, None, f"no field {field!r} with a text")
    if kind.startswith(("alpaca", "gpteacher", "explainchoice", "concisechoice", "summarizetldr", "reflection")) and "output" in row:
        asked = "\n".join(str(row[k]) for k in ("instruction", "input") if row.get(k))
        return "pair", [("user", asked), ("assistant", str(row["output"] or ""))], None
    return None, None, None


def chat(row, spec):
    names = spec.get("message_property_mappings") or {}
    field = spec.get("field_messages") or ("messages" if "messages" in row else "conversations")
    turns, messages = [], row.get(field)
    if not isinstance(messages, list) or not messages:
        return None, None, f"{field!r} is not a list of messages"
    own = {alias: role for role, aliases in (spec.get("roles") or {}).items() for alias in (aliases or [])}
    for n, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            return None, None, f"message {n} is not an object"
        role = message.get(names.get("role") or ("role" if "role" in message else "from"))
        content = message.get(names.get("content") or ("content" if "content" in message else "value"))
        if isinstance(content, list):  # parts of a multimodal message: the texts among them
            content = "".join(str(part.get("text") or f"<{part.get('type')}>") for part in content if isinstance(part, dict))
        if not isinstance(role, str) or not (isinstance(content, str) or message.get("tool_calls")):
            return None, None, f"message {n} has no role or no content"
        said = content if isinstance(content, str) else ""
        turns.append((own.get(role) or ROLES.get(role, role), said or ("<tool call>" if message.get("tool_calls") else "")))
    return "chat", turns, None


def tokens(turns):
    """Estimated length of a row in tokens: text by CHARS_PER_TOKEN, and five tokens of header and end a turn. About ±15 %."""
    return round(sum(len(text) for _, text in turns) / CHARS_PER_TOKEN + 5 * len(turns)) + 1


def shingles(text, n):
    """The set of n-word sequences of a text, lower-cased: what near-duplicates share."""
    words = re.findall(r"[^\W_]+'?[^\W_]*", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def near(sets, limit, others=None):
    """Pairs (i, j, similarity) whose Jaccard similarity exceeds `limit`; i among `sets`, j among `others` or earlier in `sets`.

    Two sets that alike share one of their rarest shingles, so only those are looked up: thousands of rows take a fraction of a second
    (prefix filtering: Bayardo, Ma, Srikant 2007, Scaling Up All Pairs Similarity Search).
    """
    pool, common, where, found = sets if others is None else others, Counter(), {}, []
    for s in (*sets, *(others or [])):
        common.update(s)

    def rare(s):
        return sorted(s, key=lambda x: (common[x], x))[: int(len(s) * (1 - limit)) + 1]

    for j, s in enumerate(others or []):
        for shingle in rare(s):
            where.setdefault(shingle, []).append(j)
    for i, s in enumerate(sets):
        mine = rare(s)
        for j in sorted({j for shingle in mine if common[shingle] > 1 for j in where.get(shingle, ())}):
            shared = len(s & pool[j])
            if shared > limit * (len(s) + len(pool[j]) - shared):
                found.append((i, j, shared / (len(s) + len(pool[j]) - shared)))
        if others is None:
            for shingle in mine:
                where.setdefault(shingle, []).append(i)
    return found


def prompt(row):
    """The messages up to the last reply, which is left to the model."""
    return row["messages"][:-1]


def reply(row):
    return row["messages"][-1]["content"]
