"""Datasets: JSONL rows of chat messages, read with the file and line of whatever is wrong.

A row is `{"id": str, "kind": str, "messages": [{"role": "system|user|assistant", "content": str}, …]}`;
Axolotl's `type: chat_template` reads `messages` and leaves the rest alone.
"""

import json
import re
from pathlib import Path

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
        if fault := row_fault(row):
            faults.append(f"{path}:{number}: {fault}")
        rows.append(row)
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError("; ".join(faults[:10]) + more)
    if not rows:
        raise ValueError(f"{path}: no rows; a dataset needs at least one JSON object a line")
    return rows


def row_fault(row):
    """What is wrong with a row, or None."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return "`messages` must be a list of {role, content}"
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


def shingles(text, n):
    """The set of n-word sequences of a text, lower-cased: what near-duplicates share."""
    words = re.findall(r"[^\W_]+'?[^\W_]*", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def near(sets, limit, others=None):
    """Pairs (i, j, similarity) whose Jaccard similarity exceeds `limit`; i among `sets`, j among `others` or earlier in `sets`.

    An inverted index finds the candidates, so that thousands of rows take a second.
    """
    where, found = {}, []
    for j, s in enumerate(others or []):
        for shingle in s:
            where.setdefault(shingle, []).append(j)
    pool = sets if others is None else others
    for i, s in enumerate(sets):
        shared = {}
        for shingle in s:
            for j in where.get(shingle, ()):
                shared[j] = shared.get(j, 0) + 1
        found += [(i, j, n / (len(s) + len(pool[j]) - n)) for j, n in shared.items() if n > limit * (len(s) + len(pool[j]) - n)]
        if others is None:
            for shingle in s:
                where.setdefault(shingle, []).append(i)
    return found


def prompt(row):
    """The messages up to the last reply, which is left to the model."""
    return row["messages"][:-1]


def reply(row):
    return row["messages"][-1]["content"]
