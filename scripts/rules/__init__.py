"""The rules of `make lint`: each function of a group whose docstring is a row of the table, `level | when | why | source | fix`.

A rule is called with all that is known of a recipe (case.py) and yields (place, what is wrong, what to do[, a change that mends it]). A place is a key,
a path of keys, a line, or (file, line); a change is ("set", key, value) or ("rename", key, new key).
"""

from functools import lru_cache

from scripts.rules import keys, learning, machine, prompt, rows


@lru_cache
def of(group):
    """{name: (function, level, when, why, source, fix)} of one group."""
    found = {}
    for name, function in vars(group).items():
        row = " ".join((getattr(function, "__doc__", None) or "").split()).split(" | ")
        if callable(function) and len(row) == 5:
            found[name.replace("_", "-")] = (function, *row)
    return found


@lru_cache
def rules():
    return of(keys) | of(learning) | of(prompt) | of(machine) | of(rows)
