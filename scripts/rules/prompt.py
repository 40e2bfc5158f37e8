"""Rules on prompt and special tokens: what training writes, what the base knows, what Ollama will write."""

import os
import re
from pathlib import Path

TOKEN = re.compile(r"<[|｜][^|｜<>\s]{1,40}[|｜]>|</?s>|<(?:start|end)_of_turn>|<turn[|]>|\[/?INST\]")
BOS = {"<|begin_of_text|>", "<s>", "<bos>"}
# The end of a turn that the vocabulary of a family's base models holds, and their pre-training hardly ever showed.
ENDS = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>", "qwen3": "<|im_end|>", "smollm2": "<|im_end|>"}
ENDS |= {"gemma2": "<end_of_turn>", "gemma3": "<end_of_turn>"}


def chat_template(c):
    """{"end", "tokens", "tools"} of the recipe's chat template: Axolotl's by name, a file or a text of one's own, the tokenizer's where the base is known; else None."""
    name, text = c.cfg.get("chat_template"), c.cfg.get("chat_template_jinja")
    if name == "tokenizer_default" and (own := c.base.get("template")):
        name, text = ("jinja", own) if own.endswith(".jinja") else (own, None)
    if name not in (None, "jinja") or not text:
        known = c.schema["x-chat-templates"].get(name)
    else:
        if os.path.isfile(text):
            text = Path(text).read_bytes().decode("utf-8", "replace")
        tokens = list(dict.fromkeys(TOKEN.findall(text)))
        ends = [t for t in tokens if re.search(r"eot|im_end|end_of_turn|</s>|\|end\|", t)] + ["eos_token"] * ("eos_token" in text)
        known = {"end": (ends or [None])[0], "tokens": tokens, "tools": bool(re.search(r"\btools\b", text))}
    if not known:
        return None
    end, eos = (c.cfg.get("eot_tokens") or [known["end"]])[0], [c.base["eos"]] if known["end"] == "eos_token" and c.base.get("eos") else []
    return known | {"end": c.base.get("eos") if end == "eos_token" else end, "tokens": [*known["tokens"], *eos]}


def beginnings(c):
    """Tokens that a server puts before a prompt; not a BOS with which the chat template begins each turn (SmolLM2's <|im_start|>)."""
    return BOS | ({c.base.get("bos")} - set((c.template or {}).get("tokens") or []))


def eot_untrained(c):
    """error | an adapter teaches a base (not an instruct) model a template whose end of turn it never saw, without training embeddings
    | the token's row in embedding and head is as it was initialized, so replies may not end | Llama 3's reserved tokens; Axolotl's docs on new tokens
    | the instruct model, or `lora_modules_to_save: [embed_tokens, lm_head]`"""
    end, cfg = (c.template or {}).get("end"), c.cfg
    targets = cfg.get("lora_target_modules") or []
    trained = {*(cfg.get("lora_modules_to_save") or []), *(targets if isinstance(targets, list) else [targets])}
    added = {*(cfg.get("tokens") or []), *(cfg.get("eot_tokens") or []), *(cfg.get("special_tokens") or {}).values()}
    trained = trained & {"embed_tokens", "lm_head"} or cfg.get("peft_trainable_token_indices")
    # What is no token of the vocabulary, nor made one here, is written as several old tokens, and learned like any text.
    new = end and end != c.base.get("eos") and (end == ENDS.get(c.base.get("family")) or end in added)
    if c.lora and c.base.get("instruct") is False and new and not trained:
        what = f"a base model; {end} ends a turn in the template, and its embedding is untrained"
        yield "base_model", what, "take the instruct model, or lora_modules_to_save: [embed_tokens, lm_head]"


def pad_is_eos(c):
    """warning | the pad token is the one that ends a turn, or without a chat template the end of the sequence
    | whatever masks by token id (the language-modelling collator of transformers, other trainers) masks the end of replies too, and they never end
    | Axolotl itself falls back to EOS where a tokenizer has no pad | `special_tokens: {pad_token: …}`, a token that nothing else uses"""
    special, base = c.cfg.get("special_tokens") or {}, c.base
    eos = special.get("eos_token") or base.get("eos")
    pad = special.get("pad_token") or (base.get("pad") or eos if base else None)
    ends = {c.template["end"] if c.template else eos, *(c.cfg.get("eot_tokens") or [])}
    if pad and pad in ends:
        later = re.search(r"3[.][1-9]", base.get("name") or "")  # Llama 3.1 and on have a token for it
        llama = "<|finetune_right_pad_id|>" if later else "<|reserved_special_token_0|>"
        spare = {"llama3": llama, "qwen2": "<|fim_pad|>", "qwen3": "<|fim_pad|>", "llama2": "<unk>", "mistral": "<unk>"}
        spare = (spare | {"smollm2": "<|endoftext|>"}).get(base.get("family"), "…")
        why = "" if special.get("pad_token") or base.get("pad") else ": the tokenizer has no pad token, so Axolotl takes EOS"
        yield "special_tokens", f"{pad} both pads and ends{why}", f"special_tokens: {{pad_token: {spare}}}, a token that nothing else uses"


def template_mismatch(c):
    """error | recipe and Modelfile do not write the same special tokens, or the end of a turn is no stop
    | the model is asked in another form than it was trained in | a model whose every reply began with the prompt's own header
    | make TEMPLATE and stops say what the chat template says"""
    if not c.template or not c.modelfile.get("template"):
        return
    ours, theirs = (set(found) - beginnings(c) for found in (c.template["tokens"], TOKEN.findall(c.modelfile["template"])))
    parts = [f"{c.modelfile_path} lacks {', '.join(sorted(ours - theirs))}"] * bool(ours - theirs)
    parts += [f"{c.modelfile_path} writes {', '.join(sorted(theirs - ours))}, which training does not"] * bool(theirs - ours)
    if parts:
        yield (
            "chat_template",
            "; ".join(parts),
            "make TEMPLATE say what the chat template says; `make ollama` compares them token for token",
        )
    for end in c.cfg.get("eot_tokens") or [c.template["end"]]:
        if end and end not in c.modelfile["parameters"].get("stop", []):
            yield "eot_tokens", f"{end} ends a turn in training, {c.modelfile_path} has no such stop", f"add `PARAMETER stop {end}` there"


def bos_in_template(c):
    """error | the Modelfile's TEMPLATE writes the BOS token | Ollama adds it too: two in a row, which no training row had
    | Ollama's server adds BOS when it tokenizes | delete it from TEMPLATE"""
    written = set(TOKEN.findall(c.modelfile.get("template") or "")) & beginnings(c)
    for bos in sorted(written):
        lines = Path(c.modelfile_path).read_text(encoding="utf-8").splitlines()
        line = next((n for n, text in enumerate(lines, 1) if bos in text and not text.startswith("#")), 1)
        yield (c.modelfile_path, line), f"TEMPLATE writes {bos}, which the server adds", "delete it there"


def tools_in_template(c):
    """warning | the chat template knows tools, and the recipe is served through a Modelfile
    | from 0.30 on Ollama may ignore TEMPLATE and render the GGUF's own template | Ollama's source
    | a chat template without tools, such as modelfiles/llama3.jinja"""
    if c.template and c.template.get("tools") and c.modelfile:
        what = "the template mentions tools, so Ollama ≥ 0.30 may render it instead of TEMPLATE"
        yield "chat_template", what, "train on a template without tools (modelfiles/llama3.jinja), or check both with `make ollama`"
