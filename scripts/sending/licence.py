"""The licence under which a model of ours may be passed on: its base's, and what that asks for (recipes/facts/bases.yml).

from scripts.sending import licence
licence.of("meta-llama/Llama-3.1-8B-Instruct")["begins"]     # "Llama"
"""

import re
from fnmatch import fnmatchcase
from pathlib import Path

from scripts import facts, recipe

FREE = {"CC0": ("cc0-1.0", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/")}


def base_id(name, cfg):
    """The base's id on the hub, or None for one made here. `BASE=folder` is another place for the recipe's own base, so that counts."""
    for model in (cfg["base_model"], own_base(name)):
        if model and not recipe.is_local({"base_model": model}):
            return str(model)
        if model and str(model).startswith("outputs/"):
            return None
    return None


def own_base(name):
    try:
        return recipe.load(name)["base_model"]
    except ValueError:  # the recipe is gone since
        return None


def of(name, cfg):
    """{"id", "name", "link", …} of the base's licence, {} where it is not known. A nano base is made of its family's rows, and under their licence."""
    model = base_id(name, cfg)
    if not model:
        return of_data(Path("datasets", recipe.family(Path(cfg["base_model"]).name)))
    original = facts.table("bases.yml")["aliases"].get(model, model)
    for key, found in facts.table("bases.yml")["licences"].items():
        if any(fnmatchcase(original, pattern) for pattern in found["models"]):
            return {"id": key, **found}
    return {}


def of_data(folder):
    """{"id", "name", "link"} by the line `Licence: …` of a dataset's README, {} where it says none that we know."""
    said = sentence(folder)
    return next((dict(zip(("id", "name", "link"), found)) for word, found in FREE.items() if word in said), {})


def sentence(folder):
    """What a dataset's README says after `Licence:`, or ""."""
    page = Path(folder, "README.md")
    found = page.is_file() and re.search(r"(?im)^\W*licen[cs]e:?\W*?\s(.+)$", page.read_text(encoding="utf-8"))
    return found[1].strip().removesuffix(".") if found else ""


def name_fault(repo, asked):
    """What is wrong with the model's name under the licence, or None. Case, blanks and dashes are not weighed."""

    def bare(text):
        return re.sub(r"[-_.\s]", "", text).lower()

    user, model = repo.split("/")
    if not asked.get("begins") or bare(model).startswith(bare(asked["begins"])):
        return None
    return f"the {asked['name']} asks for a name that begins with {asked['begins']}: TO={user}/{asked['begins']}-{model}"


def texts(name, cfg, asked):
    """{name in the repository: file} of the licence's text and use policy: from the base's own files, or recipes/facts/ID.txt; {} where neither is here."""
    base, model = Path(str(cfg["base_model"])), base_id(name, cfg)
    ids = [model, facts.table("bases.yml")["aliases"].get(model)] if model else []
    folders = [base, *(folder for i in ids if i for folder in sorted(facts.cache_of(i).glob("snapshots/*"), reverse=True))]
    for folder in folders:
        found = {p.name: p for p in sorted(folder.glob("*")) if re.match(r"(LICEN[CS]E|USE_POLICY)", p.name, re.I) and p.is_file()}
        if any(not n.upper().startswith("USE") for n in found):
            return found
    mine = {"apache-2.0": facts.ROOT.parent.parent / "LICENSE"}.get(asked["id"], facts.ROOT / f"{asked['id']}.txt")
    return {"LICENSE": mine} if mine.is_file() else {}


def notice(asked):
    return f"{asked['notice']}\n".encode() if asked.get("notice") else None
