"""Write the Modelfile beside the GGUF, FROM filled in and the rest word for word, after checking that it fits what was trained.

python -m scripts.modelfile pirate-nano       # → outputs/pirate-nano/gguf/Modelfile, receipt modelfile.json
QUANT=Q8_0 …                                  # another of the recipe's quant types than the first
"""

import json
import os
import re
import sys
from pathlib import Path

from scripts import files, process, receipt, recipe


def chosen_gguf(folder):
    """The file that Ollama gets: QUANT, else the recipe's first quant type, else F16; whole, as the gguf stage proved it."""
    made = {Path(p).stem.rsplit("-", 1)[1]: (Path(p), digest) for p, digest in receipt.read(folder / "gguf.json")["outputs"].items()}
    kinds = recipe.read(folder / "export.yml").get("quantize") or ["F16"]
    kind = os.environ.get("QUANT") or kinds[0]
    if kind not in made:
        raise ValueError(f"QUANT={kind}: {folder}/gguf has {', '.join(made)}; add it to the recipe's `export: quantize:`")
    path, digest = made[kind]
    if not path.exists() or files.sha256(path) != digest:
        raise ValueError(f"{path}: not the file that was proven (cut or changed since); `rm {folder}/gguf.json` and run `make gguf` again")
    return path


def added_bos(merged, tokenizer):
    """The BOS that a server puts before a prompt because the tokenizer does, or None: SmolLM2's, <|im_start|>, only begins the turns."""
    bos = tokenizer.get("bos_token")
    bos = bos["content"] if isinstance(bos, dict) else bos
    processor = json.loads((merged / "tokenizer.json").read_text(encoding="utf-8")).get("post_processor")
    return bos if bos and json.dumps(bos) in json.dumps(processor) else None


def faults(path, found, cfg, merged):
    """Everything in the Modelfile that parts from the training: a list of sentences."""
    tokenizer = json.loads((merged / "tokenizer_config.json").read_text())
    context = json.loads((merged / "config.json").read_text())["max_position_embeddings"]
    bos = added_bos(merged, tokenizer)
    wrong = [
        f"no {word.upper()}; a model without one is not served as it was trained" for word in ("from", "template") if not found.get(word)
    ]
    if bos and bos in found.get("template", ""):
        wrong.append(f"TEMPLATE writes {bos}, which the server adds itself; delete it there")
    if re.search(r"\.Messages", found.get("template", "")) and re.search(r"\.System", found.get("template", "")):
        wrong.append("TEMPLATE prints .System and ranges over .Messages, which holds the system message too; keep one")
    for token in cfg.get("eot_tokens") or [tokenizer.get("eos_token")]:
        if token not in found["parameters"].get("stop", []):
            wrong.append(f"no `PARAMETER stop {token}`, which ends a reply in training; add it")
    size = int((found["parameters"].get("num_ctx") or ["0"])[-1])
    if not 0 < size <= context:
        wrong.append(f"num_ctx is {size or 'not set'}; set it, to at most the model's {context}")
    return [f"{path}: {w}" for w in wrong]


def main(argv):
    if len(argv) != 1:
        print("usage: python -m scripts.modelfile NAME", file=sys.stderr)
        return 2
    folder = Path("outputs", argv[0])
    source, target = recipe.modelfile(argv[0]), folder / "gguf/Modelfile"
    gguf = chosen_gguf(folder)
    if wrong := faults(source, recipe.read_modelfile(source), recipe.read(folder / "recipe.yml"), folder / "merged"):
        raise ValueError("; ".join(wrong))
    text = re.sub(r"(?mi)^FROM .*$", f"FROM ./{gguf.name}", source.read_text(encoding="utf-8"), count=1)
    (folder / "modelfile.json").unlink(missing_ok=True)  # no receipt outlives what it vouches for
    files.write_if_changed(target, text)
    receipt.write(folder / "modelfile.json", [source, gguf], [target], {"from": gguf.name}, files.sha256)
    print(f"modelfile   {target}: FROM ./{gguf.name}")
    return 0


if __name__ == "__main__":
    process.command(main)
